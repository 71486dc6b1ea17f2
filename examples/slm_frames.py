"""Train masks for a spatial light modulator, and save them as 8-bit frames.

The free-space network 784–144–10 is trained once plainly and once with frames that
rotate, shift and scale at random. Each network is saved as 13 greyscale pictures for
the lab. They are read back, to show the accuracy with 8 bits and when misaligned.

    python examples/slm_frames.py            # MNIST: about four minutes on two cores
    python examples/slm_frames.py --quick    # half a minute; rough figures
"""

import argparse
import pathlib

import keras
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn

MISALIGNED = {
    "rotated by 1°": {"rotation": [1.0]},
    "1 pixel down": {"shift": [(1.0, 0.0)]},
    "5 % larger": {"scale": [0.05]},
    "0.5°, 0.5 px down": {"rotation": [0.5], "shift": [(0.5, 0.0)]},
}
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
quick = parser.parse_args().quick
data = pnn.datasets.load()
epochs = 80 if data.name == "digits" else 6
if quick:
    data, epochs = data.head(4000, 1000), 20 if data.name == "digits" else 8
x_test, y_test = (data.x_test - 0.1307) / 0.3081, data.y_test
x_train = (data.x_train - 0.1307) / 0.3081
batches = pnn.datasets.Batches(x_train, data.y_train, batch_size=256, seed=0)


def free_space():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    hidden = pnn.layers.MaskedSLM(144, activation="sigmoid", name="slm_1")(inputs)
    return keras.Model(inputs, pnn.layers.MaskedSLM(10, name="slm_2")(hidden))


def accuracy(model):
    return 100 * model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]


def fit(model, first, last):
    rate = keras.optimizers.schedules.CosineDecay(0.006, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, loss, metrics=["accuracy"], jit_compile=not quick)
    order = [pnn.callbacks.BatchOrder(batches)]
    model.fit(batches, epochs=last, initial_epoch=first, shuffle=False, callbacks=order)


# Drawn for each layer's frame: degrees, pixels, and relative changes of scale.
offsets, scales = tfd.Uniform(-1.5, 1.5), tfd.Uniform(-0.045, 0.065)
noise = pnn.Variation(rotation=offsets, shift=offsets, scale=scales)
out, frames = pathlib.Path("results", "slm_frames"), {}
for name in ("plain", "robust"):
    print(f"{name}: {epochs} epochs on {len(x_train)} images of {data.name}")
    model = free_space()
    if name == "plain":
        fit(model, 0, epochs)
    else:  # plain first: an untrained network does not learn from misaligned frames
        fit(model, 0, 1)
        fit(pnn.SATModel(model, ascent=None, variation=noise), 1, epochs)
    print(f"  aligned {accuracy(model):.2f} %")
    for layer in pnn.layers.physical_layers(model):
        layer.save_frames(out / name)
        layer.load_frames(out / name)
    frames[name] = pnn.layers.physical_layers(model)[0].frames()[0]
    print(f"  from 8-bit frames {accuracy(model):.2f} %")
    for what, values in MISALIGNED.items():
        with pnn.devices.grid(model, values)[0].installed(model):
            print(f"  {what} {accuracy(model):.2f} %")
pnn.plotting.save(pnn.plotting.images(frames), out / "frames.png")
print(f"The frames, and a picture of the first ones, are in {out}/")
