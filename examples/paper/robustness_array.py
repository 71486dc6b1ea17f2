r"""Compute one robustness report by many processes or jobs, which share its points.

A point depends only on the model file, the data, the arguments below and the seed, so
that jobs on several machines share nothing but a folder. A stopped job resumes when it
is started again. Points are measured in blocks of up to 128 (3,000 points here, 24
blocks): jobs beyond the number of blocks are idle.

For an array of 8 jobs under Slurm, write `array.sh`:

    #!/bin/sh
    #SBATCH --array=0-7
    #SBATCH --cpus-per-task=4
    #SBATCH --time=01:00:00
    python examples/paper/robustness_array.py --model trained.keras \
        --part $SLURM_ARRAY_TASK_ID 8

submit it, and write the report once all jobs are done:

    sbatch --wait array.sh                  # sbatch --array=2,5: these parts again
    python examples/paper/robustness_array.py --model trained.keras --report

On one machine a pool of processes needs no parts:

    python examples/paper/robustness_array.py --report --workers 4

Without --model, a small network of weight banks is trained on scikit-learn's digits.
For a model of your own change `VARIATION`, `SWEEPS` and `test_data`.
"""

import argparse
import contextlib
import os
import pathlib

import keras
import numpy as np

import keras_pnn as pnn

VARIATION = pnn.Variation(resonance_shift=0.05)
SWEEPS = {
    "temperature": np.linspace(-1, 1, 9),
    "variation": np.linspace(0, 2, 5),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, help="a .keras file")
    parser.add_argument("--data", default="digits", help="auto, mnist, digits, a path")
    parser.add_argument("--images", type=int, default=None, help="test images, or all")
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--part",
        type=int,
        nargs=2,
        default=(0, 1),
        metavar=("I", "N"),
        help="the I-th of N parts, from 0; default: everything",
    )
    parser.add_argument("--report", action="store_true", help="the last step")
    parser.add_argument("--workers", type=int, help="processes of this machine")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/robustness_array")
    )
    return parser.parse_args()


def test_data(args) -> tuple[np.ndarray, np.ndarray]:
    """Returns the test images and labels, the same in all jobs."""
    data = pnn.datasets.load(args.data, verbose=False)
    return data.x_test[: args.images], data.y_test[: args.images]


def small_network(path: pathlib.Path) -> pathlib.Path:
    """Trains a network for the demonstration; keeps that of the first job."""
    if path.exists():
        return path
    data = pnn.datasets.load("digits", verbose=False)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            pnn.layers.MRRBank(32, activation="relu"),
            pnn.layers.MRRBank(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=10, verbose=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{os.getpid()}_{path.name}")
    model.save(mine)
    try:
        os.link(mine, path)
    except FileExistsError:
        print(f"{path} is there by now, and is used")
    finally:
        mine.unlink()
    return path


def main() -> None:
    args = arguments()
    path = args.model or small_network(args.out / "digits.keras")
    model = keras.models.load_model(path)
    x, y = test_data(args)
    # Everything that a point depends on, the same for the jobs and the report.
    study = {
        "variation": VARIATION,
        "n": args.devices,
        "sweeps": SWEEPS,
        "seed": args.seed,
        # Fixed, so that all machines evaluate as many devices at once.
        "memory_limit": 1.0,
        "cache_dir": args.out / "points",
    }
    if not args.report:
        rows = pnn.robustness_rows(model, x, y, part=tuple(args.part), **study)
        print(f"part {args.part[0]} of {args.part[1]}: {len(rows)} points")
        return
    # Points that no job has measured are measured now.
    processes = contextlib.nullcontext()
    if args.workers:
        processes = pnn.robustness.ProcessPool(args.workers)
    with processes as executor:
        report = pnn.robustness_report(
            model, x, y, spec=0.9, data=args.data, executor=executor, **study
        )
    print(report)
    report.save(args.out / "report.html")
    print(f"The page is {args.out / 'report.html'}")


if __name__ == "__main__":
    main()
