"""Time training steps, as ratios in one run.

    pip install -e ".[benchmark]" && python benchmarks/steps.py

Prints a table and writes `results/benchmark_steps.json`:

- a SAT step against a plain step of the same network;
- a step of each ascent against a plain step, for LeNet-5 of microring banks and for the
  network with a mesh of 64 modes;
- LeNet-5 of microring banks against the same network of Dense and Conv2D;
- `evaluate` in a loop over 32 devices against `evaluate_devices`;
- a fit with `SATModel` against one with Keras' former
  `SharpnessAwareMinimization` (package tf_keras), on the same digital network.

Steps are timed in turn, A B A B …, and the ratio is the median over pairs, so that
drifts of the machine's speed cancel. For the ascents, the ratio of processor times is
given, too, which is valid under other load. First calls, which compile, are excluded;
for single steps they are reported separately.
"""

import argparse
import json
import pathlib
import sys
import time

import keras
import numpy as np

import keras_pnn as pnn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper"))
from shared import hybrid, lenet5, step_times


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument(
        "--skip",
        nargs="*",
        default=[],
        choices=["steps", "ascents", "devices", "fit"],
    )
    parser.add_argument("--jit", action="store_true", help="XLA for the ascents")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


def compiled(model, jit: bool):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=jit)
    return model


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired(a, b, pairs: int) -> dict:
    """Returns the median times of two functions run in turn, and of their ratio."""
    first = seconds(a), seconds(b)
    for _ in range(3):
        a(), b()
    times = np.array([(seconds(a), seconds(b)) for _ in range(pairs)])
    ratios = times[:, 0] / times[:, 1]
    return {
        "a_ms": 1e3 * float(np.median(times[:, 0])),
        "b_ms": 1e3 * float(np.median(times[:, 1])),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": np.percentile(ratios, (25, 75)).tolist(),
        "first_a_s": first[0],
        "first_b_s": first[1],
    }


def steps(images, labels, pairs: int):
    """Yields (name, figures) of single steps."""
    for batch in (64, 256):
        x, y = images[:batch], labels[:batch]
        for jit in (False, True):
            plain = compiled(lenet5(), jit)
            sat = compiled(pnn.SATModel(lenet5(), rho=0.5, ascent="asam"), jit)
            digital = compiled(lenet5(digital=True), jit)

            def step(model, x=x, y=y):
                return lambda: model.train_on_batch(x, y)

            mode = f"batch {batch}, {'XLA' if jit else 'no XLA'}"
            yield (
                f"SAT / plain step, {mode}",
                paired(step(sat), step(plain), pairs),
            )
            yield (
                f"banks / Dense+Conv2D step, {mode}",
                paired(step(plain), step(digital), pairs),
            )


# They take effect from the first step on.
ASCENTS = {
    "SAM": pnn.SAM(0.3),
    "ASAM": pnn.ASAM(0.3),
    "GSAM": pnn.GSAM(0.3),
    "FriendlySAM": pnn.FriendlySAM(0.3),
    "ESAM": pnn.ESAM(0.3),
    "ESAM(γ = 0.5)": pnn.ESAM(0.3, gamma=0.5),
    "LookSAM(5)": pnn.LookSAM(0.3, every=5),
    "MESA": pnn.MESA(start=0),
    "SAF": pnn.SAF(epochs=1, start=0),
}


def ascents(images, labels, rounds: int, jit: bool):
    """Yields (name, figures) of all ascents, timed in turn with the plain step."""
    for network, make in (("LeNet-5 of banks", lenet5), ("mesh of 64 modes", hybrid)):
        for batch in (64, 256):
            models = {"plain": compiled(make(), jit)}
            for name, ascent in ASCENTS.items():
                again = type(ascent).from_config(ascent.get_config())
                models[name] = compiled(pnn.SATModel(make(), ascent=again), jit)
            times = step_times(models, images[:batch], labels[:batch], rounds)
            for name in ASCENTS:
                ratios = times[name] / times["plain"]
                quartiles = np.percentile(ratios, (25, 75), axis=0).T.tolist()
                yield (
                    f"{name} / plain step, {network}, batch {batch}",
                    {
                        "a_ms": 1e3 * float(np.median(times[name][:, 0])),
                        "b_ms": 1e3 * float(np.median(times["plain"][:, 0])),
                        "ratio": float(np.median(ratios[:, 0])),
                        "ratio_quartiles": quartiles[0],
                        "processor_ratio": float(np.median(ratios[:, 1])),
                        "processor_quartiles": quartiles[1],
                        "rounds": rounds,
                        "jit": jit,
                    },
                )
            keras.utils.clear_session()


def population(images, labels):
    """Yields (name, figures) of many devices."""
    model = compiled(lenet5(), False)
    devices = pnn.Variation(resonance_shift=0.08).sample(model, 32, seed=0)

    def loop():
        for device in devices:
            with device.installed(model):
                model.evaluate(images, labels, verbose=0)

    def together():
        pnn.evaluate_devices(model, images, labels, devices, verbose=0)

    model.evaluate(images[:64], labels[:64], verbose=0)
    first = seconds(together)
    times = [(seconds(loop), seconds(together)) for _ in range(2)]
    ratios = [a / b for a, b in times]
    a, b = np.median(times, axis=0)
    yield (
        "32 devices: evaluate in a loop / evaluate_devices",
        {
            "a_ms": 1e3 * float(a),
            "b_ms": 1e3 * float(b),
            "ratio": float(np.median(ratios)),
            "first_b_s": first,
            "images": len(images),
        },
    )


def former_sam(images, labels):
    """Yields (name, figures) of epochs, in turn; the first ones compile."""
    import tf_keras

    k = tf_keras.layers
    old = tf_keras.Sequential([k.Input((28, 28, 1))])
    for filters, padding in ((6, "same"), (16, "valid")):
        for layer in (
            k.Conv2D(filters, 5, padding=padding),
            k.BatchNormalization(),
            k.ReLU(),
            k.MaxPooling2D(),
        ):
            old.add(layer)
    old.add(k.Flatten())
    for units in (120, 84):
        for layer in (k.Dense(units), k.BatchNormalization(), k.ReLU()):
            old.add(layer)
    old.add(k.Dense(10))
    old = tf_keras.models.experimental.SharpnessAwareMinimization(old, rho=0.05)
    old.compile(
        "adam",
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def fit(model):
        return lambda: model.fit(images, labels, batch_size=64, verbose=0)

    first_old = seconds(fit(old))
    for jit in (False, True):
        new = pnn.SATModel(lenet5(digital=True), rho=0.05, perturb="all")
        new = compiled(new, jit)
        first_new = seconds(fit(new))
        times = np.array([(seconds(fit(new)), seconds(fit(old))) for _ in range(3)])
        a, b = np.median(times, axis=0)
        mode = "XLA" if jit else "no XLA"
        yield (
            f"fit: SATModel, {mode} / tf_keras SharpnessAwareMinimization",
            {
                "a_ms": 1e3 * float(a),
                "b_ms": 1e3 * float(b),
                "ratio": float(np.median(times[:, 0] / times[:, 1])),
                "first_a_s": first_new,
                "first_b_s": first_old,
                "images": len(images),
            },
        )


def main() -> None:
    args = arguments()
    generator = np.random.default_rng(0)
    # Times do not depend on the contents of the images.
    images = generator.random((args.images, 28, 28, 1), dtype="float32")
    labels = generator.integers(0, 10, args.images)
    print(f"{'A / B':62} {'A, ms':>9} {'B, ms':>9} {'A / B':>7}", flush=True)
    results = {}
    parts = {
        "steps": lambda: steps(images, labels, args.pairs),
        "ascents": lambda: ascents(images, labels, max(1, args.pairs // 5), args.jit),
        "devices": lambda: population(images, labels),
        "fit": lambda: former_sam(images, labels),
    }
    for part in (parts[name] for name in parts if name not in args.skip):
        for name, row in part():
            results[name] = row
            a, b, ratio = row["a_ms"], row["b_ms"], row["ratio"]
            spent = f"{row['processor_ratio']:7.2f}" if "processor_ratio" in row else ""
            print(f"{name:62} {a:9.1f} {b:9.1f} {ratio:7.2f} {spent}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_steps.json"
    path.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
