"""Train the journal's diffractive network on MNIST, and misalign its two masks.

Images of 64 × 64 pixels (2 µm, 532 nm) on a periodic plane of 128 × 128, two phase
masks with thresholds behind them, lenses before and after, ten detectors. The loss is
the cross-entropy of 30 times the detectors' shares of the light. Every method takes
the same number of steps of Adam, whose rate falls to 0 as a cosine. Methods among
random misalignments (drawn for each mask and distance) start with a fifth of plain
steps. Every network is measured aligned, with one misalignment at a time, and at random
corners, where each mask is off by ±1° and ±1 px and each distance by ±20 µm.

    python examples/paper/diffraction.py                             # hours
    python examples/paper/diffraction.py --methods plain --seeds 0   # parts add up
    python examples/paper/diffraction.py --quick

"SAT for rotation" takes the derivative of the loss with respect to the angle by finite
differences. Each run is kept as JSON in the output folder and not repeated; the table
is written to `diffraction.csv`.
"""

import argparse
import csv
import json
import pathlib
import time

import keras
import numpy as np
from shared import few, keep, kept
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn
from keras_pnn.layers import (
    DetectorArray,
    Encode,
    FreeSpace,
    Lens,
    PhaseBlocks,
    PhaseMask,
    PhaseRoughness,
    Threshold,
)

METHODS = {
    "plain": "BP",
    "random": "BP among random misalignments",
    "sat": "SAT",
    "rotation": "SAT for rotation",
    "both": "SAT among random misalignments",
}
# Arguments saved with a run; a kept run with other values stops the program.
SETTING = ("steps", "batch_size", "rate", "start", "padding", "among")
SETTING += ("images", "corners", "corner_images", "worst", "blocks", "roughness")
# Degrees, pixels, µm.
NOISE = {"rotation": 1.3, "shift": 1.3, "distance_error": 25.0}
CORNER = {"rotation": 1.0, "shift": 1.0, "distance_error": 20.0}
# Standard deviations of all imperfections at once, for the yield. Units: degrees,
# pixels, µm, mrad, rad, nm; one pixel in a hundred is dead.
EVERYTHING = {
    "rotation": 0.5,
    "shift": 0.5,
    "scale": 0.002,
    "tilt": 0.3,
    "phase_gain": 0.03,
    "phase_offset": 0.05,
    "dead_pixels": tfd.Bernoulli(probs=0.01),
    "distance_error": 10.0,
    "decenter": 0.5,
    "defocus": 0.2,
    "astigmatism": 0.2,
    "wavelength_shift": 0.3,
}


def system(
    seed: int = 0,
    start: str = "uniform",
    padding: int = 0,
    blocks: int | None = None,
    roughness: float = 0.0,
) -> keras.Model:
    """Returns the authors' network; with padding, light that leaves the plane is lost.

    Args:
        seed: seed of the initial masks.
        start: "uniform", phases in [0, 2π) as in the reference, or "flat": 0.
        padding: dark pixels on each side during propagation.
        blocks: side in pixels of the squares that share one phase.
        roughness: strength of the penalty for phase differences between neighbours.
    """
    keras.utils.set_random_seed(seed)
    light = {"band_limit": padding > 0, "padding": padding}
    masks = {"phase_initializer": "zeros" if start == "flat" else None}
    if blocks:
        masks["phase_constraint"] = PhaseBlocks(blocks)
    if roughness:
        masks["phase_regularizer"] = PhaseRoughness(roughness)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            Encode("intensity", size=64, padding=32),
            FreeSpace(5e-3, **light),
            Lens(5e-3),
            FreeSpace(4e-3, **light),
            PhaseMask(**masks),
            Threshold(0.5),
            FreeSpace(2e-3, **light),
            PhaseMask(**masks),
            Threshold(0.5),
            FreeSpace(4e-3, **light),
            Lens(5e-3),
            FreeSpace(5e-3, **light),
            DetectorArray(grid=(3, 4, 3), size=9, extent=63),
            keras.layers.Rescaling(30.0),
        ]
    )


def trained(method: str, seed: int, data, args) -> keras.Model:
    model = system(seed, args.start, args.padding, args.blocks, args.roughness)
    batches = pnn.datasets.Batches(
        data.x_train, data.y_train, args.batch_size, seed=seed
    )
    stream = [batches[i % len(batches)] for i in range(min(args.steps, len(batches)))]
    rate = keras.optimizers.schedules.CosineDecay(args.rate, args.steps)
    adam = keras.optimizers.Adam(rate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    spread = {name: tfd.Uniform(-NOISE[name], NOISE[name]) for name in args.among}
    kinds = {
        "random": {"ascent": None, "variation": pnn.Variation(spread)},
        "sat": {"rho": 0.1},
        "rotation": {
            "ascent": None,
            "adversarial": {"rotation": pnn.FiniteDifference(1.0, 0.2)},
        },
        "both": {"rho": 0.1, "variation": pnn.Variation(spread)},
    }
    model.compile(adam, loss, metrics=["accuracy"], jit_compile=args.jit)
    trainer, step = model, 0
    while step < args.steps:
        if method in kinds and trainer is model:
            noisy = "variation" in kinds[method]
            if not noisy or step >= args.steps // 5:
                trainer = pnn.SATModel(model, seed=seed, **kinds[method])
                trainer.compile(adam, loss, metrics=["accuracy"], jit_compile=args.jit)
        logs = trainer.train_on_batch(*stream[step % len(stream)], return_dict=True)
        step += 1
        if step % 50 == 0:
            text = ", ".join(f"{name} {float(v):.3f}" for name, v in logs.items())
            print(f"step {step}: {text}", flush=True)
            trainer.reset_metrics()
    model.compile(adam, loss, metrics=["accuracy"], jit_compile=args.jit)
    return model


def accuracy(model, x, y, devices) -> list[float]:
    found = pnn.evaluate_devices(model, x, y, devices, batch_size=100, verbose=0)
    return (100 * found["accuracy"]).tolist()


def measured(model: keras.Model, data, args) -> dict:
    """Returns percent: aligned, one misalignment at a time, random corners."""
    x, y = data.x_test[: args.images], data.y_test[: args.images]
    sides = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]
    points = {
        "aligned": ("rotation", [0.0]),
        "rotation": ("rotation", [-1.0, -0.5, 0.5, 1.0]),
        "shift": ("shift", sides),
        "distance": ("distance_error", [-20.0, 20.0]),
    }
    found = {
        what: accuracy(model, x, y, pnn.devices.sweep(model, name, values))
        for what, (name, values) in points.items()
    }
    two = {n: tfd.FiniteDiscrete([-v, v], probs=[0.5, 0.5]) for n, v in CORNER.items()}
    corners = pnn.Variation(two).sample(model, args.corners, seed=0)
    few_x, few_y = x[: args.corner_images], y[: args.corner_images]
    found["corners"] = accuracy(model, few_x, few_y, corners)
    worst = np.argsort(found["corners"])[: args.worst]
    found["worst"] = accuracy(
        model, x, y, pnn.DeviceSet([corners[int(i)] for i in worst])
    )
    return found


def page(methods: list[str], args, data) -> None:
    """Writes one report that compares the first seed of each method."""
    paths = [run_path(method, args.seeds[0], args) for method in methods]
    models = [keras.models.load_model(path.with_suffix(".keras")) for path in paths]
    for model in models:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, metrics=["accuracy"], jit_compile=args.jit)
    first, *others = (METHODS[method] for method in methods)
    found = pnn.robustness_report(
        models[0],
        data.x_test[: args.corner_images],
        data.y_test[: args.corner_images],
        variation=pnn.Variation(EVERYTHING),
        n=args.devices,
        sweeps={"rotation": [-1.0, -0.5, 0.0, 0.5, 1.0]},
        sweep_devices=1,
        spec=0.9,
        compare=dict(zip(others, models[1:], strict=True)),
        name=first,
        fast=True,
        worst_case=False,
        sensitivity=False,
        batch_size=100,
        cache_dir=args.out / "points",
        data=f"{data.name}, the first test images",
    )
    print(f"\n{found}")
    for suffix in ("html", "json", "csv"):
        found.save(args.out / f"report.{suffix}")
    print(f"The page is {args.out / 'report.html'}")


def run_path(method: str, seed: int, args) -> pathlib.Path:
    name = f"run_{method}_{args.start}_{args.padding}"
    name += f"_{args.blocks}" if args.blocks else ""
    name += f"_rough{args.roughness:g}" if args.roughness else ""
    return args.out / f"{name}_{seed}.json"


HEADINGS = (
    "method",
    "seeds",
    "aligned",
    "−1°",
    "+1°",
    "worst of ±1 px",
    "worst of ±20 µm",
    "corners: mean",
    "worst corner",
)


def report(out: pathlib.Path) -> None:
    """Prints means over seeds, and writes them to `diffraction.csv`."""
    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    groups: dict[str, list[list[float]]] = {}
    for run in runs:
        a = run["accuracy"]
        label = f"{METHODS[run['method']]}, {run['steps']} steps, rate {run['rate']:g}"
        if run["start"] != "uniform":
            label += f", {run['start']} start"
        if run["padding"]:
            label += f", {run['padding']} pixels of padding"
        if run.get("blocks"):
            label += f", squares of {run['blocks']} pixels"
        if run.get("roughness"):
            label += f", penalty of {run['roughness']:g} for rough masks"
        groups.setdefault(label, []).append(
            [a["aligned"][0], a["rotation"][0], a["rotation"][-1]]
            + [min(a["shift"]), min(a["distance"]), np.mean(a["corners"])]
            + [min(a["worst"])]
        )
    order = list(METHODS.values())
    with open(out / "diffraction.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADINGS)
        for label in sorted(groups, key=lambda n: (order.index(n.split(", ")[0]), n)):
            found = np.array(groups[label])
            cells = [f"{m:.1f}" for m in found.mean(0)]
            if len(found) > 1:
                spread = found.std(0)
                cells = [f"{c} ± {s:.1f}" for c, s in zip(cells, spread, strict=True)]
            table.writerow([label, len(found), *cells])
    print((out / "diffraction.csv").read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.1, help="of Adam, in rad")
    parser.add_argument("--start", choices=("uniform", "flat"), default="uniform")
    parser.add_argument("--padding", type=int, default=0)
    parser.add_argument("--blocks", type=int, help="of pixels with one phase")
    parser.add_argument(
        "--roughness", type=float, default=0.0, help="strength of its penalty"
    )
    parser.add_argument(
        "--among",
        nargs="+",
        choices=NOISE,
        default=list(NOISE),
        help="what is random in training",
    )
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--corners", type=int, default=200)
    parser.add_argument("--corner-images", type=int, default=2000)
    parser.add_argument("--worst", type=int, default=10, help="corners, on all images")
    parser.add_argument(
        "--page",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help="report on devices where everything is off, on these trained networks",
    )
    parser.add_argument("--devices", type=int, default=100, help="of the report")
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    out = pathlib.Path("results/diffraction")
    parser.add_argument("--out", type=pathlib.Path, default=out)
    args = parser.parse_args()
    data = pnn.datasets.load(args.data)
    if args.quick:
        data, args.out = few(data, 200, 20), args.out / "quick"
        args.steps, args.batch_size = 5, 20
        args.corners, args.worst, args.devices, args.seeds = 2, 1, 2, args.seeds[:1]
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.methods:
            path = run_path(method, seed, args)
            setting = {n: getattr(args, n) for n in SETTING} | {"data": data.name}
            if kept(path, **setting):
                continue
            print(f"\n{METHODS[method]}; seed {seed}", flush=True)
            clock = time.perf_counter()
            model = trained(method, seed, data, args)
            seconds = time.perf_counter() - clock
            model.save(path.with_suffix(".keras"))
            result = {"method": method, "seed": seed, "seconds": seconds}
            result["accuracy"] = measured(model, data, args)
            keep(path, {**setting, **result})
            keras.utils.clear_session()
    report(args.out)
    if args.page:
        page(args.page, args, data)


if __name__ == "__main__":
    main()
