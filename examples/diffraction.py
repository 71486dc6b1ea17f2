"""Train a diffractive network, plot the light in it, and misalign its masks.

Two phase masks recognise digits. They are trained plainly, then further with random
rotations and shifts. The picture shows the light of one digit in each plane.

    python examples/diffraction.py            # MNIST, a plane of 128 × 128
    python examples/diffraction.py --quick    # a plane of 64 × 64; rough figures
"""

import argparse
import pathlib

import keras
import numpy as np
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn
from keras_pnn.layers import DetectorArray, Encode, FreeSpace, Lens, PhaseMask

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a smaller plane, few images")
quick = parser.parse_args().quick
data = pnn.datasets.load("digits") if quick else pnn.datasets.load()
data = data.head(1000, 200) if quick else data.head(10_000, 2000)
n, epochs = (64, 8) if quick else (128, 2)
test = data.x_test, data.y_test
far = 1e-3 if quick else 4e-3  # m
MISALIGNED = {
    "aligned": {"rotation": [0.0]},
    "rotated by 1°": {"rotation": [1.0]},
    "1 pixel down": {"shift": [(1.0, 0.0)]},
    "5 µm too far": {"distance_error": [5.0]},
}


def trained(model, epochs):
    steps = epochs * len(data.x_train) // 50
    rate = keras.optimizers.schedules.CosineDecay(0.03, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=50, epochs=epochs, verbose=2)


def show(name, model):
    for what, values in MISALIGNED.items():
        devices = pnn.devices.grid(model, values)
        found = pnn.evaluate_devices(model, *test, devices, batch_size=100, verbose=0)
        print(f"{name}, {what}: {100 * found['accuracy'][0]:.1f} %")


keras.utils.set_random_seed(0)
periodic = {"band_limit": False, "padding": 0}
stack = [keras.Input(data.x_train.shape[1:])]
stack += [Encode("intensity", size=n // 2, padding=n // 4)]
for _ in range(2):
    stack += [FreeSpace(far, **periodic), PhaseMask(phase_initializer="zeros")]
    stack += [pnn.layers.Threshold()]
stack += [FreeSpace(far, **periodic), Lens(5e-3), FreeSpace(far, **periodic)]
stack += [DetectorArray(grid=(3, 4, 3), size=n // 14, extent=n // 2 - 1)]
model = keras.Sequential([*stack, keras.layers.Rescaling(30.0)])
off = tfd.Uniform(-1.3, 1.3)  # degrees and pixels, drawn for each mask
noise = pnn.Variation(rotation=off, shift=off)
trained(model, epochs)
show("plain", model)
trained(pnn.SATModel(model, ascent=None, variation=noise), 2 * epochs)
show("robust", model)
out = pathlib.Path("results", "diffraction")
out.mkdir(parents=True, exist_ok=True)
field, lights, masks = data.x_test[:1], [], []
for layer in model.layers[:-2]:
    field = layer(field)
    lights.append(np.abs(field[0]) / np.abs(field[0]).max())
    if isinstance(layer, PhaseMask):
        masks.append(layer.frame() / 255)
rows, dark = (lights[:6], lights[6:], masks), np.zeros((n, n))
rows = [np.hstack(r + [dark] * (6 - len(r))) for r in rows]
names = ("light", "light after mask 2", "phases")
picture = pnn.plotting.images(dict(zip(names, rows, strict=True)))
pnn.plotting.save(picture, out / "light.png")
print(f"The light of one digit, and the masks: {out}/light.png")
