"""Train on device i, test on device j: does a network transfer to another chip?

The hybrid network (a LeNet front end, a mesh of 64 modes) is trained with each of a few
simulated chips in the loop, by PAT and by SAT online, and tested on all of them. The
chips have random errors of phases (rad) and splitters (power imbalance).

    python examples/paper/transfer_matrix.py
    python examples/paper/transfer_matrix.py --sigma 0.25 --devices 5

Each trained network is kept in the output folder, and not trained again.
"""

import argparse
import pathlib

import keras
import numpy as np
from shared import compiled, few, fit, hybrid, standardized

import keras_pnn as pnn

# Read at the output: the phases of the mesh's fields differ from the model's.
METHODS = {
    "PAT": lambda model, chip: pnn.PATModel(model, device=chip, readout="output"),
    "SAT online": lambda model, chip: pnn.PATModel(
        model, device=chip, readout="output", ascent=pnn.SAM(0.3)
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto", help="auto, mnist, digits or a path")
    parser.add_argument("--start", default="cross", help="haar, uniform, cross or bar")
    parser.add_argument("--sigma", type=float, default=0.2)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=None, help="default 2; digits 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/transfer_matrix")
    )
    return parser.parse_args()


def trained(method: str, index: int, chips, data, epochs: int, args) -> keras.Model:
    """Returns the network trained with one chip, from its file if there is one."""
    model = hybrid(args.start, seed=args.seed)
    setting = f"{data.name}{len(data.x_train)}_{args.start}_{args.sigma:g}_{epochs}"
    name = f"{method.replace(' ', '_')}_{setting}_{index}_{args.seed}"
    path = args.out / f"{name}.weights.h5"
    if path.exists():
        model.load_weights(path)
        return compiled(model)
    print(f"{method} on device {index}, {epochs} epochs")
    images = standardized(data.x_train)
    batches = pnn.datasets.Batches(
        images, data.y_train, min(250, len(images) // 4), seed=args.seed
    )
    rate = keras.optimizers.schedules.CosineDecay(0.004, epochs * len(batches))
    online = METHODS[method](model, chips[index])
    checkpoint = pnn.callbacks.Checkpoint(args.out / f"state_{name}", every=50)
    fit(
        compiled(online, keras.optimizers.Adam(rate)),
        batches,
        epochs,
        callbacks=[checkpoint],
    )
    model.save_weights(path)
    return compiled(model)


def main() -> None:
    args = arguments()
    if args.devices < 2:
        raise SystemExit(f"`--devices` must be 2 or more. Received: {args.devices}")
    data = pnn.datasets.load(args.data)
    if args.quick:
        data, args.devices = few(data, 1000, 500), 2
    epochs = args.epochs or (2 if args.quick else 30 if data.name == "digits" else 2)
    args.out.mkdir(parents=True, exist_ok=True)
    x, y = standardized(data.x_test), data.y_test
    variation = pnn.Variation(
        theta_error=args.sigma, phi_error=args.sigma, splitter_imbalance=args.sigma
    )
    matrices = {}
    for method in METHODS:
        rows = []
        for index in range(args.devices):
            chips = variation.sample(hybrid(), args.devices, seed=100)
            model = trained(method, index, chips, data, epochs, args)
            found = pnn.evaluate_devices(model, x, y, chips, verbose=0)
            rows.append(100 * found["accuracy"])
            keras.utils.clear_session()
        matrices[method] = np.array(rows)
    own = np.eye(args.devices, dtype=bool)
    for method, matrix in matrices.items():
        print(f"\n{method}: accuracy (%), trained on row, tested on column")
        for row in matrix:
            print("  ".join(f"{value:6.2f}" for value in row))
        print(f"own {matrix[own].mean():.2f}, other {matrix[~own].mean():.2f}")
    np.savez(args.out / "transfer_matrix.npz", **matrices)
    try:
        from keras_pnn import plotting

        axis = plotting.matrices(matrices, "tested on device", "trained on device")
        plotting.save(axis, args.out / "transfer_matrix.png")
    except ImportError as error:
        print(error)


if __name__ == "__main__":
    main()
