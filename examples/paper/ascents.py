"""Compare all ascents at equal training time.

Three systems: the quickstart's network of microring banks, without (`mrr`) and with
(`mrr_random`) random devices in training, and the network with a mesh of 64 modes from
Haar phases at σ = 0.15 (`mesh`). Every ascent trains for the same time, not for the
same number of epochs. Time is counted in plain steps: the cost of a step of each ascent
is first measured, in turn with the plain step, and kept in `cost_<system>.json`. Do
this on an idle machine, or pass `--clock processor`; later load does not matter. A run
takes as many steps as fit in its budget. The learning rate falls to 0 over the run.

The strength (ρ or λ, up to four values) is chosen with the first seed at the largest
budget, by the 5th percentile on 20 chips and the first 2,000 test images. Every seed
and budget trains with this strength, and is measured on 20 other chips and all images.

    python examples/paper/ascents.py                       # four hours on one core
    python examples/paper/ascents.py --systems mrr --budgets 1
    python examples/paper/ascents.py --quick

Each run is kept as JSON in the output folder and not repeated; an interrupted run
resumes after its last complete epoch. The table `ascents.csv` and the plot
`ascents.png` of all kept runs are written at the end; `--report` does only that, and
`--draw TABLE` plots such a table.
"""

import argparse
import csv
import itertools
import json
import math
import pathlib
import shutil

import keras
import numpy as np
from shared import (
    compiled,
    few,
    hybrid,
    keep,
    kept,
    lenet5,
    standardized,
    step_times,
    unfinished,
)

import keras_pnn as pnn

# Seeds of the chips that choose a strength, and of those in the table.
CHOOSING_SEED, UNSEEN_SEED = 100, 1


def random_chips():
    """Returns the variation of the quickstart."""
    from tensorflow_probability import distributions as tfd

    temperature = tfd.Uniform(-2.5, 2.5)
    return pnn.Variation(resonance_shift=0.06, temperature=temperature)


def mesh_chips(sigma=0.15):
    return pnn.Variation(theta_error=sigma, phi_error=sigma, splitter_imbalance=sigma)


# `epochs`: the plain epochs of a budget of 1; `memory`: arguments of SAF and MESA that
# let them take effect within a budget of 0.5. Rings train as in the quickstart, with a
# ramp; at full strength from the first step on, training may fail.
MRR = {
    "network": lambda seed: lenet5("sample", seed=seed),
    "images": lambda images: images,
    "chips": pnn.Variation(resonance_shift=0.08),
    "variation": None,
    "ramp": True,
    "batch": 128,
    "rate": 0.01,
    "epochs": 3,
    "memory": {"saf": {"epochs": 1, "start": 1}, "mesa": {"decay": 0.998, "start": 1}},
    "temperature": 5.0,
}
SYSTEMS = {
    "mrr": MRR,
    "mrr_random": {**MRR, "variation": random_chips},
    "mesh": {
        "network": lambda seed: hybrid("haar", seed=seed),
        "images": standardized,
        "chips": mesh_chips(),
        "variation": None,
        "ramp": False,
        "batch": 500,
        "rate": 0.01,
        "epochs": 5,
        "memory": {
            "saf": {"epochs": 1, "start": 1},
            "mesa": {"decay": 0.99, "start": 1},
        },
        # The logits are intensities between 0 and 1.
        "temperature": 1.0,
    },
}
# ρ or λ, for rings and for the mesh. λ of SAF and MESA is as in the paper's formula,
# without τ².
RINGS = {
    "plain": [None],
    "sam": [0.3, 1.0, 2.0],
    "asam": [0.5, 1.0, 2.0],
    "saf": [3.0, 10.0, 30.0],
    "mesa": [8.0, 25.0, 80.0],
    "looksam": [0.3, 1.0, 2.0],
    "esam": [0.3, 1.0, 2.0],
    "friendlysam": [0.3, 1.0, 2.0],
    "gsam": [0.3, 1.0, 2.0],
}
MESH = {
    "plain": [None],
    "sam": [0.1, 0.3, 1.0],
    "asam": [0.25, 0.5],
    "saf": [1.0, 3.0],
    "mesa": [2.5, 8.0],
    "looksam": [0.1, 0.3],
    "esam": [0.1, 0.3],
    "friendlysam": [0.1, 0.3],
    "gsam": [0.1, 0.3],
}
LARGER = {
    "asam": [0.5, 1.0, 2.0, 4.0],
    "saf": [3.0, 10.0, 30.0, 100.0],
    "mesa": [8.0, 25.0, 80.0, 250.0],
}
STRENGTHS = {"mrr": RINGS | LARGER, "mrr_random": RINGS, "mesh": MESH}
KINDS = {
    "sam": pnn.SAM,
    "asam": pnn.ASAM,
    "saf": pnn.SAF,
    "mesa": pnn.MESA,
    "looksam": pnn.LookSAM,
    "esam": pnn.ESAM,
    "friendlysam": pnn.FriendlySAM,
    "gsam": pnn.GSAM,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--ascents", nargs="+", choices=RINGS, default=list(RINGS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--strengths", type=int, default=4, help="how many, at most")
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15, help="of timed steps")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--draw", type=pathlib.Path, help="a table, and nothing else")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/ascents")
    )
    return parser.parse_args()


def trainer(system: str, name: str, strength, seed: int, warmup=0, memory=None):
    """Returns the network wrapped in its trainer."""
    setting = SYSTEMS[system]
    ascent = None
    if name in ("saf", "mesa"):
        memory = memory or setting["memory"][name]
        temperature = setting["temperature"]
        ascent = KINDS[name](strength, temperature=temperature, **memory)
    elif name != "plain":
        ascent = KINDS[name](strength)
    variation = setting["variation"] and setting["variation"]()
    return pnn.SATModel(
        setting["network"](seed),
        ascent=ascent,
        variation=variation,
        warmup=warmup if setting["ramp"] and (ascent or variation) else 0,
        seed=seed,
    )


def costs(system: str, data, args) -> dict[str, float]:
    """Returns the time of a step of each ascent, in plain steps."""
    path = args.out / f"cost_{system}.json"
    if not path.exists():
        size = min(SYSTEMS[system]["batch"], len(data.x_train))
        x = SYSTEMS[system]["images"](data.x_train[:size])
        # They take effect from the first step on.
        memory = {"saf": {"epochs": 1, "start": 0}, "mesa": {"start": 0}}
        # Compiling all ascents would take longer than the runs of `--quick`.
        strengths = STRENGTHS[system]
        names = ["plain", *args.ascents] if args.quick else strengths
        models = {
            name: compiled(
                trainer(system, name, strengths[name][0], 0, memory=memory.get(name))
            )
            for name in names
        }
        times = step_times(models, x, data.y_train[:size], args.rounds)
        ratios = {name: seconds / times["plain"] for name, seconds in times.items()}
        keep(path, {n: np.median(r, axis=0).tolist() for n, r in ratios.items()})
    both = json.loads(path.read_text("utf-8"))
    return {name: pair[args.clock == "processor"] for name, pair in both.items()}


class StopAfter(keras.callbacks.Callback):
    """Ends a run after a number of steps, even in the middle of an epoch."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        done = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self.model.stop_training = done >= self.steps


def run(system, name, budget, strength, seed, data, args, path) -> dict:
    """Trains for the budget, and measures the chips that choose a strength."""
    setting = SYSTEMS[system]
    cost = costs(system, data, args)
    images = setting["images"](data.x_train)
    size = min(setting["batch"], len(images))
    batches = pnn.datasets.Batches(images, data.y_train, size, seed=seed)
    epochs = 2 if args.quick else setting["epochs"]
    steps = max(1, round(budget * epochs * len(batches) / cost[name]))
    rate = keras.optimizers.schedules.CosineDecay(setting["rate"], steps)
    training = trainer(system, name, strength, seed, warmup=max(1, steps // 2))
    compiled(training, keras.optimizers.Adam(rate))
    folder = unfinished(
        args.out, system, name, budget, strength, seed, len(images), steps
    )
    training.fit(
        batches,
        epochs=math.ceil(steps / len(batches)),
        verbose=2,
        callbacks=[StopAfter(steps), pnn.callbacks.Checkpoint(folder)],
    )
    shutil.rmtree(folder, ignore_errors=True)
    model = compiled(training.model)
    model.save(path.with_suffix(".keras"))
    test = setting["images"](data.x_test[:2000]), data.y_test[:2000]
    return {
        "ascent": name,
        "steps": steps,
        "choosing": on_chips(setting, model, *test, CHOOSING_SEED, args),
    }


def measured(system, data, args, path) -> dict:
    """Measures a trained network for the table."""
    setting = SYSTEMS[system]
    model = keras.models.load_model(path.with_suffix(".keras"), compile=False)
    compiled(model)
    test = setting["images"](data.x_test), data.y_test
    probe = setting["images"](data.x_train[:500]), data.y_train[:500]
    top = pnn.hessian_eigenvalues(
        model, *probe, variables="controls", tolerance=0.02, max_iterations=150
    )
    nominal = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    return {
        "unseen": on_chips(setting, model, *test, UNSEEN_SEED, args),
        "nominal": 100 * nominal,
        "lambda_max": float(top.eigenvalues[0]),
    }


def on_chips(setting: dict, model, x, y, seed: int, args) -> list[float]:
    """Returns the accuracy on each chip in percent."""
    chips = setting["chips"].sample(model, args.chips, seed=seed)
    found = pnn.evaluate_devices(model, x, y, chips, verbose=0)
    return (100 * found["accuracy"]).tolist()


HEADS = ("mean", "5th percentile", "minimum", "nominal", "λ_max")
NAMES = {"plain": "plain"} | {name: kind.__name__ for name, kind in KINDS.items()}
TITLES = {
    "mrr": "rings",
    "mrr_random": "rings, random devices",
    "mesh": "mesh",
}


def mark(run: dict) -> float:
    """Returns the 5th percentile on the chips that choose a strength."""
    return np.percentile(run["choosing"], 5)


def report(out: pathlib.Path) -> None:
    """Prints the table and writes it to `ascents.csv`."""
    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    rows = [["network: ascent", "ρ or λ", "budget", "steps", "seeds", *HEADS]]
    for system in (s for s in SYSTEMS if any(r["system"] == s for r in runs)):
        mine = [r for r in runs if r["system"] == system and "unseen" in r]
        budgets = sorted({r["budget"] for r in mine})
        for budget, name in itertools.product(budgets, RINGS):
            of = {"ascent": name, "budget": budget}
            group = [r for r in mine if of.items() <= r.items()]
            if not group:
                continue
            # Strengths added later may have changed the choice.
            best = max(group, key=lambda r: (-r["seed"], mark(r)))["strength"]
            group = [r for r in group if r["strength"] == best]
            unseen = np.array([r["unseen"] for r in group])
            p05 = np.percentile(unseen, 5, axis=1)
            nominal, curvature = (
                np.array([r[key] for r in group]) for key in ("nominal", "lambda_max")
            )
            columns = unseen.mean(1), p05, unseen.min(1), nominal
            cells = [f"{c.mean():.1f} ± {c.std():.1f}" for c in columns]
            cells.append(f"{curvature.mean():.3g}")
            strength = group[0]["strength"]
            label = f"{TITLES[system]}: {NAMES[name]}"
            run = ["" if strength is None else f"{strength:g}", f"{budget:g}"]
            rows.append([label, *run, group[0]["steps"], len(group), *cells])
    with open(out / "ascents.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print((out / "ascents.csv").read_text("utf-8"))


def draw(table: pathlib.Path, out: pathlib.Path) -> None:
    """Plots a table as `ascents.png`; time is in plain runs of a budget of 1."""
    from keras_pnn import plotting

    lines = table.read_text("utf-8").splitlines()
    systems: dict = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        system, name = row["network: ascent"].split(": ")
        value, spread = map(float, row["5th percentile"].split(" ± "))
        point = float(row["budget"]), value, spread
        systems.setdefault(system, {}).setdefault(name, []).append(point)
    label = "training time (plain run = 1)"
    figure = plotting.new_figure(4.5 * len(systems) + 1, 4.5)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for panel, (system, curves) in zip(panels, systems.items(), strict=True):
        for i, name in enumerate(curves):
            budget, value, spread = np.array(curves[name]).T
            # Side by side, so that none hides another.
            beside = budget + 0.02 * (i - len(curves) // 2)
            marker = f"{'osD^vP*Xh'[i]}-"
            panel.errorbar(beside, value, spread, fmt=marker, label=name, capsize=2)
        ticks = sorted({budget for curve in curves.values() for budget, *_ in curve})
        limits = ticks[0] - 0.15, ticks[-1] + 0.15
        panel.set(title=system, xticks=ticks, xlim=limits, xlabel=label)
    panels[0].set_ylabel("5th percentile on unseen chips (%)")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plotting.save(panels[0], out / "ascents.png")


def run_once(system, name, budget, strength, seed, data, args) -> pathlib.Path:
    """Returns the path of the run; makes the run unless it is kept already."""
    setting = {
        "system": system,
        "budget": budget,
        "strength": strength,
        "seed": seed,
        "data": data.name,
        "images": len(data.x_train),
    }
    of = "" if strength is None else f"_{strength:g}"
    path = args.out / f"run_{system}_{name}{of}_{budget:g}_{seed}.json"
    if not kept(path, **setting):
        print(f"\n{path.stem}", flush=True)
        key = system, name, budget, strength, seed
        keep(path, {**setting, **run(*key, data, args, path)})
        # Otherwise the graphs of all runs stay in memory.
        keras.utils.clear_session()
    return path


def campaign(system: str, name: str, data, args) -> None:
    """Chooses a strength; trains and measures each budget and seed with it."""

    def tried(strength):
        key = system, name, max(args.budgets), strength, args.seeds[0]
        return mark(json.loads(run_once(*key, data, args).read_text("utf-8")))

    best = max(STRENGTHS[system][name][: args.strengths], key=tried)
    for budget, seed in itertools.product(args.budgets, args.seeds):
        path = run_once(system, name, budget, best, seed, data, args)
        found = json.loads(path.read_text("utf-8"))
        if "unseen" not in found:
            keep(path, {**found, **measured(system, data, args, path)})
            keras.utils.clear_session()


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
        args.chips, args.seeds, args.strengths, args.rounds = 3, [0], 1, 2
        args.budgets = [1.0]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.draw:
        draw(args.draw, args.out)
        return
    if not args.report:
        data = pnn.datasets.load(args.data)
        if args.quick:
            data = few(data, 500, 200)
        for system, name in itertools.product(args.systems, args.ascents):
            campaign(system, name, data, args)
    report(args.out)
    draw(args.out / "ascents.csv", args.out)


if __name__ == "__main__":
    main()
