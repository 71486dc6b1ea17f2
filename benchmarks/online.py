"""Time training steps with the device in the loop, as ratios in one run.

    python benchmarks/online.py

The hybrid network of the paper (a LeNet front end, a mesh of 64 modes) on a simulated
device. Prints a table and writes `results/benchmark_online.json`:

- PAT, at each layer and at the output, against a plain step;
- SAT online against PAT;
- DAT, with six error networks, without internal states and with a linear S, against
  PAT.

Steps are timed in turn, A B A B …, as in `benchmarks/steps.py`.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from steps import compiled, paired

import keras_pnn as pnn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper"))
from shared import hybrid


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--skip-dat", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


def trainers(device) -> dict:
    """Returns by name: a trainer, and the name of the one to compare it with."""
    return {
        "plain": (lambda m: m, None),
        "PAT": (lambda m: pnn.PATModel(m, device=device), "plain"),
        "PAT at the output": (
            lambda m: pnn.PATModel(m, device=device, readout="output"),
            "plain",
        ),
        "SAT online": (lambda m: pnn.SATModel(m, rho=0.3, device=device), "PAT"),
        "DAT": (lambda m: pnn.DATModel(m, device=device), "PAT"),
        "DAT without internal states": (
            lambda m: pnn.DATModel(m, device=device, internal_states=False),
            "PAT",
        ),
        "DAT with a linear S": (
            lambda m: pnn.DATModel(m, device=device, error_networks="linear"),
            "PAT",
        ),
    }


def main() -> None:
    args = arguments()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.batch_size, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, args.batch_size)
    variation = pnn.Variation(theta_error=0.15, phi_error=0.15, splitter_imbalance=0.15)
    results = {}
    for jit in (False, True):
        (device,) = variation.sample(hybrid(), 1)
        makers = trainers(device)

        def step(name, jit=jit, makers=makers):
            model = compiled(makers[name][0](hybrid()), jit)
            return lambda: model.train_on_batch(x, y)

        for name, (_, base) in makers.items():
            # XLA compiles error networks for minutes on CPU, and runs them slower.
            if base is None or (name.startswith("DAT") and (jit or args.skip_dat)):
                continue
            key = f"{name} / {base}, {'XLA' if jit else 'no XLA'}"
            found = paired(step(name), step(base), args.pairs)
            results[key] = found
            low, high = found["ratio_quartiles"]
            print(f"{key:50} {found['ratio']:6.2f}  ({low:.2f} to {high:.2f})")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_online.json"
    path.write_text(
        json.dumps({"batch_size": args.batch_size, "ratios": results}, indent=1),
        "utf-8",
    )


if __name__ == "__main__":
    main()
