"""Measure the accuracy of rings and of a mesh with dead heaters, and two remedies.

On each of 20 chips, 1 % or 3 % of all heaters have no contact: their rings stay where
they are without current, their phase shifters at 0. The network is trained plainly, or
among such chips, drawn anew at every step. Its controls are then used unchanged, or
programmed around the dead heaters of each chip, which must be known for that.

    python examples/paper/stuck_heaters.py              # digits, about ten minutes
    python examples/paper/stuck_heaters.py --quick

The table is printed, and written to `stuck_heaters.csv` in the output folder.
"""

import argparse
import dataclasses
import pathlib

import keras
import numpy as np
from keras import layers
from shared import compiled, few, fit

import keras_pnn as pnn

SHARES = (0.01, 0.03)
# Each heater of a bank also warms its neighbours.
CROSSTALK = 0.02


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/stuck_heaters")
    )
    return parser.parse_args()


def rings() -> keras.Model:
    """Returns 100–32–10 on banks of 10 × 10 rings, with a gain."""
    keras.utils.set_random_seed(0)
    bank = {
        "tuning": pnn.HeaterTuning(max_current=3.0),
        "bank_size": (10, 10),
        "crosstalk": pnn.physics.heater.nearest_neighbour((10, 10), CROSSTALK),
        "gain": True,
    }
    inputs = keras.Input((100,))
    x = layers.LayerNormalization()(pnn.layers.MRRBank(32, **bank)(inputs))
    x = pnn.layers.MRRBank(10, **bank)(layers.ReLU()(x))
    return keras.Model(inputs, x, name="rings")


def mesh() -> keras.Model:
    """Returns a digital layer in front of a mesh of 16 modes, of which 10 are read."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((100,))
    x = layers.Dense(16)(layers.LayerNormalization()(inputs))
    x = pnn.layers.MZIMesh(16)(x)
    x = pnn.layers.Photodetector(normalize="l2", ports=10)(x)
    return keras.Model(inputs, layers.Rescaling(10.0)(x), name="mesh")


SYSTEMS = {"rings": rings, "mesh": mesh}


def trained(make, data, epochs: int, share: float = 0.0) -> keras.Model:
    """Returns a trained network; a share above 0 trains it with dead heaters."""
    batches = pnn.datasets.Batches(data.x_train, data.y_train, 32, seed=0)
    network, steps = make(), epochs * len(batches)
    model = network
    if share:
        stuck = pnn.Variation(stuck=pnn.Stuck(share))
        model = pnn.SATModel(network, ascent=None, variation=stuck)
    decay = keras.optimizers.schedules.CosineDecay(0.02, steps)
    fit(compiled(model, keras.optimizers.Adam(decay)), batches, epochs)
    return compiled(network)


def programmed_around(model: keras.Model, chips, test) -> np.ndarray:
    """Returns the accuracy on each chip whose dead heaters `program` works around."""
    parts = pnn.layers.physical_layers(model)
    before = [v.numpy() for v in model.variables]
    wanted = [matrix(part).numpy() for part in parts]
    found = []
    for chip in chips:
        with chip.installed(model):
            for part, target in zip(parts, wanted, strict=True):
                options = {"clip": True} if hasattr(part, "effective_weights") else {}
                part.program(target, **options)
            found.append(model.evaluate(*test, verbose=0)[1])
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
    return np.array(found)


def matrix(part):
    """Returns the matrix of a layer."""
    own = getattr(part, "effective_weights", None)
    return own() if own else part.transfer_matrix()


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    shares = SHARES
    if args.quick:
        data, args.epochs, args.chips, shares = few(data), 2, 2, SHARES[1:]
    small = {
        name: getattr(data, name)[:, ::3, ::3].reshape(-1, 100)
        for name in ("x_train", "x_test")
    }
    data = dataclasses.replace(data, **small)
    test = data.x_test, data.y_test
    lines = ["system,dead heaters,training,nominal,20 chips: mean,minimum"]
    for name in args.systems:
        plain = trained(SYSTEMS[name], data, args.epochs)
        for share in shares:
            among = trained(SYSTEMS[name], data, args.epochs, share)
            stuck = pnn.Variation(stuck=pnn.Stuck(share))
            for words, model in (("plain", plain), ("among such chips", among)):
                nominal = model.evaluate(*test, verbose=0)[1]
                chips = stuck.sample(model, args.chips, seed=1)
                found = pnn.evaluate_devices(model, *test, chips, verbose=0)
                rows = [(words, found["accuracy"])]
                around = programmed_around(model, chips, test)
                rows.append((f"{words}, programmed around", around))
                for row, accuracy in rows:
                    cells = 100 * np.array([nominal, accuracy.mean(), accuracy.min()])
                    figures = ",".join(f"{c:.1f}" for c in cells)
                    lines.append(f'{name},{share:.0%},"{row}",{figures}')
                    print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines).replace("20 chips", f"{args.chips} chips")
    (args.out / "stuck_heaters.csv").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
