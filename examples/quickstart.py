"""Train LeNet-5 on microring weight banks with and without SAT, and compare both.

Plain backpropagation (BP) and sharpness-aware training (SAT) get the same network,
optimizer and epochs. The table shows the accuracy of each when the whole chip is warmer
or colder than at calibration, and on 20 other chips.

    python examples/quickstart.py            # MNIST: about eight minutes on two cores
    python examples/quickstart.py --quick    # a minute; rough figures
"""

import argparse
import pathlib

import keras
from keras import layers
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn

TEMPERATURES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)  # K
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
quick = parser.parse_args().quick
data = pnn.datasets.load()
size, epochs = 128, 40 if data.name == "digits" else 3
if quick:
    data, size, epochs = data.head(2000, 500), 32, 8
batches = pnn.datasets.Batches(data.x_train, data.y_train, batch_size=size, seed=0)


def normalized(x):
    """Subtract the mean over channels, which uniform heating shifts; then normalise."""
    x = x - keras.ops.mean(x, axis=-1, keepdims=True)
    return layers.ReLU()(layers.GroupNormalization(groups=1)(x))


def lenet5():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = normalized(pnn.layers.MRRConv2D(6, 5, padding="same")(inputs))
    x = normalized(pnn.layers.MRRConv2D(16, 5)(layers.MaxPooling2D()(x)))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = normalized(pnn.layers.MRRBank(120)(x))
    x = normalized(pnn.layers.MRRBank(84)(x))
    return keras.Model(inputs, pnn.layers.MRRBank(10)(x))


# At each step SAT draws a shift for each ring (nm) and the chip's temperature (K). An
# untrained network does not learn on such chips, so both grow over the first half.
noise = pnn.Variation(resonance_shift=0.06, temperature=tfd.Uniform(-2.5, 2.5))
ramp = max(2, epochs // 2) * len(batches)
ascent = pnn.ASAM(rho=0.5)
sat = pnn.SATModel(lenet5(), ascent=ascent, variation=noise, warmup=ramp)
models, warm = {"BP": lenet5(), "SAT": sat}, {}
for name, model in models.items():
    print(f"{name}: {epochs} epochs on {len(data.x_train)} images of {data.name}")
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, loss, metrics=["accuracy"], jit_compile=not quick)
    order = pnn.callbacks.BatchOrder(batches)
    model.fit(batches, epochs=epochs, shuffle=False, callbacks=[order])

heads = [f"{t:+g} K" for t in TEMPERATURES] + ["chips", "worst", "λ_max"]
lines = ["accuracy (%)" + "".join(f"{h:>9}" for h in heads)]
test = data.x_test, data.y_test
probe = data.x_train[:500], data.y_train[:500]
for name, model in models.items():
    devices = pnn.devices.sweep(model, "temperature", TEMPERATURES)
    warm[name] = 100 * pnn.evaluate_devices(model, *test, devices)["accuracy"]
    devices = pnn.Variation(resonance_shift=0.08).sample(model, 20, seed=1)  # nm
    chips = 100 * pnn.evaluate_devices(model, *test, devices)["accuracy"]
    top = pnn.hessian_eigenvalues(model, *probe, tolerance=0.01).eigenvalues[0]
    cells = [*warm[name], chips.mean(), chips.min(), top]
    lines.append(f"{name:12}" + "".join(f"{c:9.2f}" for c in cells))
path = pathlib.Path("results", f"quickstart_{data.name}.png")
path.parent.mkdir(exist_ok=True)
pnn.plotting.save(pnn.plotting.sweep(TEMPERATURES, warm, "temperature (K)"), path)
print(*lines, f"The plot is {path}", sep="\n")
