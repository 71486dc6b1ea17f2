"""Trains a network whose last matrix is an MZI mesh, then puts it on other chips.

Plain backpropagation on the ideal mesh: a LeNet front end, 64 modes, photodiodes.
The trained network is saved and loaded again, and measured on chips whose phases (rad)
and splitters (power imbalance) are off at random.

    python examples/hybrid_mzi.py
    python examples/hybrid_mzi.py --start haar
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from networks import hybrid, standardized
from runs import unfinished

import keras_pnn as pnn

SIGMAS = (0.05, 0.1, 0.15)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto", help="auto, mnist, digits or a path")
    parser.add_argument("--start", default="cross", help="haar, uniform, cross or bar")
    parser.add_argument("--epochs", type=int, default=None, help="default 5; digits 60")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/hybrid_mzi")
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    if args.quick:
        data, args.chips = data.head(1000, 500), 3
    epochs = args.epochs or (2 if args.quick else 60 if data.name == "digits" else 5)
    args.out.mkdir(parents=True, exist_ok=True)
    x_test, y_test = standardized(data.x_test), data.y_test
    batches = pnn.datasets.Batches(
        standardized(data.x_train), data.y_train, args.batch_size, seed=args.seed
    )
    model = hybrid(args.start, seed=args.seed)
    rate = keras.optimizers.schedules.CosineDecay(0.005, epochs * len(batches))
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
    )
    setting = args.start, data.name, len(batches), args.batch_size, epochs, args.seed
    backup = unfinished(args.out, "hybrid", *setting)
    print(f"{epochs} epochs on {len(data.x_train)} images of {data.name}")
    model.fit(
        batches,
        epochs=epochs,
        shuffle=False,
        callbacks=[
            pnn.callbacks.BatchOrder(batches),
            keras.callbacks.BackupAndRestore(backup),
        ],
    )
    path = args.out / "hybrid.keras"
    model.save(path)
    again = keras.models.load_model(path)
    same = np.array_equal(
        model.predict(x_test, verbose=0), again.predict(x_test, verbose=0)
    )
    nominal = (
        100 * model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    )
    print(f"accuracy on the ideal mesh: {nominal:.2f} %")
    print(
        f"saved and loaded: predictions {'equal' if same else 'NOT equal'} bit for bit"
    )
    results = {"nominal": nominal, "bit_equal": bool(same), "chips": {}}
    print(f"{args.chips} chips, accuracy (%)   mean     p05     min")
    for sigma in SIGMAS:
        variation = pnn.Variation(
            theta_error=sigma, phi_error=sigma, splitter_imbalance=sigma
        )
        chips = variation.sample(model, args.chips, seed=1)
        accuracy = 100 * pnn.evaluate_devices(model, x_test, y_test, chips)["accuracy"]
        results["chips"][sigma] = accuracy.tolist()
        figures = (accuracy.mean(), np.percentile(accuracy, 5), accuracy.min())
        print(f"σ = {sigma:<20}" + " ".join(f"{v:7.2f}" for v in figures))
    setting = {
        "data": data.name,
        "epochs": epochs,
        "seed": args.seed,
        "start": args.start,
        "batch_norm": "frozen",
    }
    (args.out / "hybrid_mzi.json").write_text(
        json.dumps({"setting": setting, "results": results}, indent=1), "utf-8"
    )


if __name__ == "__main__":
    main()
