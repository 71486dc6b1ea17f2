"""Fig. 3 of arXiv:2411.12352: misalign masks on a spatial light modulator.

The network is 784–144–10 on MNIST, with masks within ±1 and a sigmoid between. Every
method is trained with several seeds and the same optimizer (Adam, 0.003 falling to 0 as
a cosine), and measured on the whole test set with frames rotated, shifted and scaled:
the first layer's alone, as in the authors' simulation, and those of all layers by the
same amount. Methods among random misalignments, drawn for each layer, take nine times
the epochs, the first of them plain: a step takes less than half as long, and accuracy
still rises. SAT sees shifts in y only. `published_…` are the authors' own settings,
for rotation: see docs/results/published.md.

    python examples/paper/fig3_slm.py                            # everything, hours
    python examples/paper/fig3_slm.py --methods bp --seeds 0     # a part; parts add up
    python examples/paper/fig3_slm.py --quick

Each run is kept as JSON in the output folder and not repeated; an interrupted run
resumes after its last complete epoch. All kept runs of the methods are printed and
plotted at the end; `--report` does only that. `--maps` adds a map of accuracy
over rotation and shift for each network.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from shared import (
    as_in_pytorch,
    compiled,
    few,
    fit,
    free_space,
    keep,
    kept,
    random_misalignment,
    standardized,
    unfinished,
)

import keras_pnn as pnn

ROTATIONS = (-3, -2, -1, 0, 1, 2, 3)
SHIFTS = (-2, -1, 0, 1, 2)
SCALES = (0.95, 0.97, 1, 1.03, 1.05, 1.1)
# Axes of `--maps`, as in the journal's Fig. 5e: degrees, and SLM pixels in y.
TURNS = SLIPS = tuple(np.linspace(0, 2, 11).round(1).tolist())
METHODS = {
    "bp": "BP",
    "first_rotation": "SAT for rotation, first layer",
    "first_shift": "SAT for shift, first layer",
    "first_scale": "SAT for scale, first layer",
    "first_all": "SAT for all three, first layer",
    "rotation": "SAT for rotation",
    "shift": "SAT for shift",
    "scale": "SAT for scale",
    "all": "SAT for all three",
    "random": "BP among random misalignments",
    "bp_fill": "BP, second layer magnified",
    "random_fill": "BP among random misalignments, second layer magnified",
    "published_bp": "BP, as published",
    "published_rotation": "SAT for rotation, first layer, as published",
}
RULES = {
    "rotation": pnn.FiniteDifference(radius=2.5, step=0.5, sample_radius=True),
    "shift": pnn.FiniteDifference(radius=(2.0, 0.0), step=0.5, sample_radius=True),
    "scale": pnn.FiniteDifference(radius=0.08, step=0.01, sample_radius=True),
}
# Learning rate and epochs; see docs/results/published.md.
PUBLISHED = {"published_bp": (1.5e-3, 10), "published_rotation": (1e-3, 5)}
PUBLISHED_RULE = pnn.FiniteDifference(
    radius=0.8, step=1.0, scheme="forward", normalize=False, sample_step=True
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--maps", action="store_true", help="also turned and shifted")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/fig3")
    )
    return parser.parse_args()


def trainer(method: str, model: keras.Model, seed: int) -> keras.Model:
    """Returns the model, or the trainer that wraps it."""
    if method.startswith("bp") or method == "published_bp":
        return model
    if method == "published_rotation":
        rules = {"slm_1/rotation": PUBLISHED_RULE}
        return pnn.SATModel(model, rho=0.3, perturb="all", adversarial=rules, seed=seed)
    if method.startswith("random"):
        noise = random_misalignment()
        return pnn.SATModel(model, ascent=None, variation=noise, seed=seed)
    layer, what = "", method
    if method.startswith("first_"):
        layer, what = "slm_1/", method.removeprefix("first_")
    names = RULES if what == "all" else [what]
    rules = {f"{layer}{name}": RULES[name] for name in names}
    return pnn.SATModel(model, rho=0.3, adversarial=rules, seed=seed)


def epochs_of(method: str, epochs: int) -> int:
    if method in PUBLISHED:
        return min(epochs, PUBLISHED[method][1])
    return 9 * epochs if method.startswith("random") else epochs


def batch_size_of(method: str, args) -> int:
    return 64 if method in PUBLISHED else args.batch_size


def sweeps(model: keras.Model, layer: str) -> dict:
    """Returns devices by name: one misalignment at a time, then all combinations."""
    down = [(s, 0.0) for s in SHIFTS]
    return {
        "rotation": pnn.devices.sweep(model, f"{layer}rotation", ROTATIONS),
        "shift": pnn.devices.sweep(model, f"{layer}shift", down),
        "scale": pnn.devices.sweep(model, f"{layer}scale", np.array(SCALES) - 1),
        "combined": pnn.devices.grid(
            model,
            {
                f"{layer}rotation": (-1, 0, 1),
                f"{layer}shift": [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)],
                f"{layer}scale": (-0.03, 0, 0.05),
            },
        ),
    }


def run(method: str, seed: int, data, args) -> dict:
    images, size = standardized(data.x_train), batch_size_of(method, args)
    batches = pnn.datasets.Batches(images, data.y_train, size, seed=seed)
    biases = {"use_bias": True} if method in PUBLISHED else {}
    model = free_space(seed, fill=method.endswith("fill"), **biases)
    start = time.perf_counter()
    first_epoch, epochs = 0, epochs_of(method, args.epochs)
    if method.startswith("random"):
        # An untrained network does not learn from random misalignments, so the first
        # epoch is plain; it counts in the budget.
        fit(compiled(model, keras.optimizers.Adam(0.003), True), batches, 1)
        first_epoch = 1
    rate = keras.optimizers.schedules.CosineDecay(0.003, epochs * len(batches))
    if method in PUBLISHED:
        as_in_pytorch(model, seed)
        rate = PUBLISHED[method][0]
    optimizer = keras.optimizers.Adam(rate)
    training = compiled(trainer(method, model, seed), optimizer, jit=True)
    setting = seed, epochs, data.name, len(batches), size
    backup = keras.callbacks.BackupAndRestore(unfinished(args.out, method, *setting))
    if method in PUBLISHED:
        # The authors do not shuffle.
        options = {"batch_size": size, "epochs": epochs, "shuffle": False}
        training.fit(images, data.y_train, verbose=2, callbacks=[backup], **options)
    else:
        fit(training, batches, epochs, first_epoch, [backup])
    seconds = time.perf_counter() - start
    compiled(model, jit=True)
    x, y = standardized(data.x_test), data.y_test
    accuracy = {
        reading: {
            name: (
                100 * pnn.evaluate_devices(model, x, y, devices, verbose=0)["accuracy"]
            ).tolist()
            for name, devices in sweeps(model, layer).items()
        }
        for reading, layer in (("first", "slm_1/"), ("all", ""))
    }
    model.save(args.out / f"{method}_{seed}.keras")
    return {
        "method": method,
        "seed": seed,
        "batch_norm": "none in this network",
        "seconds": seconds,
        "accuracy": accuracy,
    }


def mapped(method: str, seed: int, data, args) -> dict:
    """Maps the accuracy of a trained network over rotation and shift of its frames."""
    model = keras.saving.load_model(args.out / f"{method}_{seed}.keras", compile=False)
    compiled(model, jit=True)
    x, y = standardized(data.x_test), data.y_test
    found = {}
    for reading, layer in (("first", "slm_1/"), ("all", "")):
        places = {
            f"{layer}rotation": TURNS,
            f"{layer}shift": [(down, 0.0) for down in SLIPS],
        }
        devices = pnn.devices.grid(model, places)
        accuracy = pnn.evaluate_devices(model, x, y, devices, verbose=0)["accuracy"]
        found[reading] = (100 * accuracy).reshape(len(TURNS), -1).tolist()
    return {"method": method, "seed": seed, "rotation by shift": found}


def draw_maps(out: pathlib.Path) -> None:
    """Plots a column for each network: first layer alone on top, all layers below."""
    from keras_pnn import plotting

    maps = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("map_*.json"))]
    if not maps:
        return
    readings = {"first": "first layer", "all": "all layers"}
    figure = plotting.new_figure(5 * len(maps), 8)
    axes = figure.subplots(2, len(maps), squeeze=False)
    for column, found in zip(axes.T, maps, strict=True):
        for ax, (reading, what) in zip(column, readings.items(), strict=True):
            plotting.heat_map(
                SLIPS,
                TURNS,
                found["rotation by shift"][reading],
                "shift in y (SLM pixels)",
                "rotation (degrees)",
                "accuracy (%)",
                level=90,
                limits=(0, 100),
                ax=ax,
            )
            ax.set_title(f"{METHODS[found['method']]}\n{what}")
    plotting.save(axes[0, 0], out / "maps.png")


def table(runs: list[dict], reading: str) -> str:
    """Returns means ± standard deviations over seeds; last, the worst combination."""
    heads = [f"{r:+g}°" if r else "aligned" for r in ROTATIONS]
    heads += [f"{s:+g} px" for s in SHIFTS if s]
    heads += [f"×{s:g}" for s in SCALES if s != 1]
    heads += ["worst of all"]
    lines = [f"{reading:14}" + " ".join(f"{h:>10}" for h in heads)]
    for method in METHODS:
        mine = [r["accuracy"][reading] for r in runs if r["method"] == method]
        if not mine:
            continue
        columns = [
            *np.array([a["rotation"] for a in mine]).T,
            *np.delete([a["shift"] for a in mine], SHIFTS.index(0), axis=1).T,
            *np.delete([a["scale"] for a in mine], SCALES.index(1), axis=1).T,
            np.array([a["combined"] for a in mine]).min(1),
        ]
        cells = " ".join(f"{f'{c.mean():.1f}±{c.std():.1f}':>10}" for c in columns)
        lines.append(f"{method:14}{cells}   {len(mine)} seeds")
    return "\n".join(lines)


def report(out: pathlib.Path, methods: list[str]) -> None:
    from keras_pnn import plotting

    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    runs = [r for r in runs if r["method"] in methods]
    axes = {
        "rotation": (ROTATIONS, "rotation (degrees)"),
        "shift": (SHIFTS, "shift in y (SLM pixels)"),
        "scale": (SCALES, "scale"),
    }
    for reading in ("first", "all"):
        print(table(runs, reading))
        for name, (values, label) in axes.items():
            curves = {}
            own = f"first_{name}" if reading == "first" else name
            for method in ("bp", own, own.replace(name, "all"), "random"):
                mine = [r for r in runs if r["method"] == method]
                if mine:
                    curves[METHODS[method]] = np.array(
                        [r["accuracy"][reading][name] for r in mine]
                    )
            if curves:
                ax = plotting.sweep(values, curves, label)
                plotting.save(ax, out / f"{name}_{reading}.png")


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load(args.data)
        if args.quick:
            data, args.epochs = few(data), 2
        for seed in args.seeds:
            for method in args.methods:
                path = args.out / f"run_{method}_{seed}.json"
                setting = {
                    "epochs": epochs_of(method, args.epochs),
                    "data": data.name,
                    "images": len(data.x_train),
                    "batch_size": batch_size_of(method, args),
                }
                if not kept(path, **setting):
                    print(f"\n{METHODS[method]}; seed {seed}")
                    keep(path, {**setting, **run(method, seed, data, args)})
                    # Otherwise the graphs of all runs stay in memory.
                    keras.utils.clear_session()
                path = args.out / f"map_{method}_{seed}.json"
                if args.maps and not kept(path, data=data.name):
                    keep(path, {"data": data.name, **mapped(method, seed, data, args)})
                    keras.utils.clear_session()
    report(args.out, args.methods)
    draw_maps(args.out)


if __name__ == "__main__":
    main()
