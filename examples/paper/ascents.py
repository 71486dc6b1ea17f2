"""Does sharpness for less time give what SAT gives? All ascents at equal time.

Three systems: the quickstart's network of microring banks, without (`mrr`) and with
(`mrr_random`) random devices in training, and the network with a mesh of 64 modes from
Haar phases at σ = 0.15 (`mesh`). Every ascent trains for the same time, not for the
same epochs. Time is counted in plain steps: what a step of each ascent costs is first
measured here, in turn with the plain step, and kept in `cost_<system>.json`. Measure it
on a quiet machine, or pass `--clock processor`; a run then takes as many of its own
steps as fit in the budget, under any load. The learning rate falls to 0 in the run.

Of at most four strengths (ρ or λ), that with the best 5th percentile on 20 chips for
choosing, over the mean of the seeds, is measured on 20 others.

    python examples/paper/ascents.py                       # days on two cores
    python examples/paper/ascents.py --systems mrr --budgets 0.5
    python examples/paper/ascents.py --quick

Each run is kept as JSON in the output folder, and is not repeated; a run that was
interrupted goes on after its last whole epoch. The table and the plot of what is there
are made at the end; `--report` does only that.
"""

import argparse
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

# Chips for choosing a strength, and those of the table.
CHOOSING_SEED, UNSEEN_SEED = 100, 1


def random_chips():
    """What the quickstart draws at each step."""
    from tensorflow_probability import distributions as tfd

    temperature = tfd.Uniform(-2.5, 2.5)
    return pnn.Variation(resonance_shift=0.06, temperature=temperature)


def mesh_chips(sigma=0.15):
    return pnn.Variation(theta_error=sigma, phi_error=sigma, splitter_imbalance=sigma)


# `epochs`: the plain epochs of a budget of 1; `memory`: what SAF and MESA are given,
# whose outputs Ẽ epochs ago must come in a budget of 0.5.
MRR = {
    "network": lambda seed: lenet5("sample", seed=seed),
    "images": lambda images: images,
    "chips": pnn.Variation(resonance_shift=0.08),
    "variation": None,
    "batch": 128,
    "rate": 0.01,
    "epochs": 6,
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
        "batch": 6000,
        "rate": 0.1,
        "epochs": 40,
        "memory": {
            "saf": {"epochs": 3, "start": 5},
            "mesa": {"decay": 0.98, "start": 5},
        },
        # The logits are intensities between 0 and 1.
        "temperature": 1.0,
    },
}
# ρ or λ. That of SAF and MESA is in the paper's formula, without τ².
STRENGTHS = {
    "plain": [None],
    "sam": [0.1, 0.3, 1.0, 2.0],
    "asam": [0.1, 0.25, 0.5, 1.0],
    "saf": [0.3, 1.0, 3.0, 10.0],
    "mesa": [0.8, 2.5, 8.0, 25.0],
    "looksam": [0.1, 0.3, 1.0, 2.0],
    "esam": [0.1, 0.3, 1.0, 2.0],
    "friendlysam": [0.1, 0.3, 1.0, 2.0],
    "gsam": [0.1, 0.3, 1.0, 2.0],
}
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
    parser.add_argument(
        "--ascents", nargs="+", choices=STRENGTHS, default=list(STRENGTHS)
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--strengths", type=int, default=4, help="how many, at most")
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15, help="of timed steps")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/ascents")
    )
    return parser.parse_args()


def trainer(system: str, name: str, strength, seed: int, warmup=0, memory=None):
    """The network in what trains it."""
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
        # As in the quickstart, for chips alone.
        warmup=warmup if variation else 0,
        seed=seed,
    )


def costs(system: str, data, args) -> dict[str, float]:
    """What a step of each ascent costs in plain steps, and a plain step in seconds."""
    path = args.out / f"cost_{system}.json"
    if not path.exists():
        size = min(SYSTEMS[system]["batch"], len(data.x_train))
        x = SYSTEMS[system]["images"](data.x_train[:size])
        # In force from the first step on.
        memory = {"saf": {"epochs": 1, "start": 0}, "mesa": {"start": 0}}
        # Each is compiled, which takes longer than the runs of `--quick`.
        names = ["plain", *args.ascents] if args.quick else STRENGTHS
        models = {
            name: compiled(
                trainer(system, name, STRENGTHS[name][0], 0, memory=memory.get(name))
            )
            for name in names
        }
        times = step_times(models, x, data.y_train[:size], args.rounds)
        found = {"seconds": np.median(times["plain"], axis=0).tolist()}
        for name, seconds in times.items():
            found[name] = np.median(seconds / times["plain"], axis=0).tolist()
        keep(path, found)
    both = json.loads(path.read_text("utf-8"))
    return {name: pair[args.clock == "processor"] for name, pair in both.items()}


class StopAfter(keras.callbacks.Callback):
    """Ends a run after some steps, also in the middle of an epoch."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        done = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self.model.stop_training = done >= self.steps


def run(system, name, budget, strength, seed, data, args) -> dict:
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
    test = setting["images"](data.x_test), data.y_test
    accuracy = {}
    for which, chips_seed in (("choosing", CHOOSING_SEED), ("unseen", UNSEEN_SEED)):
        chips = setting["chips"].sample(model, args.chips, seed=chips_seed)
        found = pnn.evaluate_devices(model, *test, chips, verbose=0)
        accuracy[which] = (100 * found["accuracy"]).tolist()
    accuracy["nominal"] = (
        100 * model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    )
    probe = setting["images"](data.x_train[:500]), data.y_train[:500]
    top = pnn.hessian_eigenvalues(
        model, *probe, variables="controls", tolerance=0.02, max_iterations=150
    )
    return {
        "ascent": name,
        "steps": steps,
        "cost": cost[name],
        "plain_step_seconds": cost["seconds"],
        "accuracy": accuracy,
        "lambda_max": float(top.eigenvalues[0]),
    }


def chosen(runs: list[dict]) -> dict[tuple, list[dict]]:
    """The runs of each ascent and budget at its best strength for choosing."""
    groups = {}
    for r in runs:
        key = r["ascent"], r["budget"]
        groups.setdefault(key, {}).setdefault(r["strength"], []).append(r)

    def mark(mine):
        return np.mean([np.percentile(r["accuracy"]["choosing"], 5) for r in mine])

    return {key: max(group.values(), key=mark) for key, group in groups.items()}


def report(out: pathlib.Path) -> None:
    from keras_pnn import plotting

    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    for system in SYSTEMS:
        mine = [r for r in runs if r["system"] == system]
        best, curves = chosen(mine), {}
        budgets = sorted({budget for _, budget in best})
        print(f"\n{system}: accuracy (%) on unseen chips, mean ± deviation over seeds")
        heads = ("mean", "p05", "minimum", "nominal", "λ_max")
        line = "".join(f"{head:>14}" for head in heads)
        print(f"{'ascent, strength':22}{line}  steps")
        for budget, name in itertools.product(budgets, STRENGTHS):
            group = best.get((name, budget))
            if not group:
                continue
            unseen = np.array([r["accuracy"]["unseen"] for r in group])
            p05 = np.percentile(unseen, 5, axis=1)
            columns = (
                unseen.mean(1),
                p05,
                unseen.min(1),
                np.array([r["accuracy"]["nominal"] for r in group]),
                np.array([r["lambda_max"] for r in group]),
            )
            cells = "".join(f"{f'{c.mean():.4g}±{c.std():.2g}':>14}" for c in columns)
            label = f"{name} {group[0]['strength'] or ''}, {budget:g}"
            print(f"{label:22}{cells}  {group[0]['steps']}, {len(group)} seeds")
            curves.setdefault(name, {})[budget] = p05.mean()
        if not curves:
            continue
        seconds = mine[0]["plain_step_seconds"] * mine[0]["steps"] * mine[0]["cost"]
        minutes = [b * seconds / mine[0]["budget"] / 60 for b in budgets]
        whole = {
            name: [at[b] for b in budgets]
            for name, at in curves.items()
            if len(at) == len(budgets)
        }
        ax = plotting.sweep(
            minutes, whole, "training time (minutes)", "5th percentile of accuracy (%)"
        )
        plotting.save(ax, out / f"time_{system}.png")


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
        args.chips, args.seeds, args.strengths, args.rounds = 3, [0], 1, 2
        args.budgets = [1.0]
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load(args.data)
        if args.quick:
            data = few(data, 500, 200)
        for seed, budget, system, name in itertools.product(
            args.seeds, args.budgets, args.systems, args.ascents
        ):
            for strength in STRENGTHS[name][: args.strengths]:
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
                    print(f"\n{path.stem}")
                    key = system, name, budget, strength, seed
                    keep(path, {**setting, **run(*key, data, args)})
                    # Else the graphs of all runs stay in memory.
                    keras.utils.clear_session()
    report(args.out)


if __name__ == "__main__":
    main()
