"""Train a network whose last matrix is an MZI mesh, and test it on imperfect chips.

A digital LeNet front end feeds a mesh of 64 modes, whose phases start near the cross
state, and photodiodes. The network is trained by plain backpropagation on the ideal
mesh, saved, loaded, and measured on 20 chips for each σ, the standard deviation of
phase errors (rad) and of splitter errors (power imbalance).

    python examples/hybrid_mzi.py            # MNIST: about three minutes on two cores
    python examples/hybrid_mzi.py --quick    # half a minute; rough figures
"""

import argparse
import pathlib

import keras
from keras import layers

import keras_pnn as pnn

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
quick = parser.parse_args().quick
data = pnn.datasets.load()
epochs = 60 if data.name == "digits" else 5
if quick:
    data, epochs = data.head(4000, 1000), 20 if data.name == "digits" else 4


def standardized(images):
    """Standardise pixels by MNIST's mean and standard deviation."""
    return (images - 0.1307) / 0.3081


def hybrid():
    """Build the network: 64 features enter as amplitudes, 10 output ports give logits.

    The intensities of all 64 ports are normalised to a Euclidean length of 1.
    """
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((28, 28, 1))
    for filters, padding in ((6, "same"), (16, "valid")):
        x = layers.Conv2D(filters, 5, padding=padding)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.BatchNormalization()(layers.Dense(120)(layers.Flatten()(x)))
    field = pnn.layers.MZIMesh(64, phase_initializer="cross")(layers.Dense(64)(x))
    outputs = pnn.layers.Photodetector(normalize="l2", ports=10)(field)
    return keras.Model(inputs, outputs, name="hybrid")


model = hybrid()
images = standardized(data.x_train)
batches = pnn.datasets.Batches(images, data.y_train, batch_size=128, seed=0)
rate = keras.optimizers.schedules.CosineDecay(0.005, epochs * len(batches))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizer = keras.optimizers.Adam(rate)
model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=not quick)
order = pnn.callbacks.BatchOrder(batches)
print(f"{epochs} epochs on {len(images)} images of {data.name}")
model.fit(batches, epochs=epochs, shuffle=False, callbacks=[order])

path = pathlib.Path("results", "hybrid_mzi.keras")
path.parent.mkdir(exist_ok=True)
model.save(path)
model = keras.models.load_model(path)
x_test, y_test = standardized(data.x_test), data.y_test
ideal = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
print(f"Saved as {path} and loaded; accuracy on the ideal mesh: {100 * ideal:.2f} %")
for sigma in (0.05, 0.1, 0.15):
    errors = pnn.Variation(theta_error=sigma, phi_error=sigma, splitter_imbalance=sigma)
    chips = errors.sample(model, 20, seed=1)
    found = 100 * pnn.evaluate_devices(model, x_test, y_test, chips)["accuracy"]
    print(f"σ = {sigma}: 20 chips, mean {found.mean():.2f}, worst {found.min():.2f}")
