"""Correlate sharpness with robustness over all networks that the campaigns kept.

Reads the runs of fig2_mrr.py, fig3_slm.py and fig4_mzi.py with their networks. For each
network it measures, on training images and with batch statistics frozen,

- λ_max of the loss over the controls, and over the imperfections of its devices;
- the trace of the Hessian over the controls;
- the rise of the loss at the worst point found in a small ball of controls;

and takes from the run the mean and the 5th percentile of its accuracy on unseen
devices. Rank correlations within each system and setting, and over all networks, have
intervals from a bootstrap over networks.

    python examples/paper/sharpness_study.py --runs results
    python examples/paper/sharpness_study.py --report
    python examples/paper/sharpness_study.py --quick    # the runs of --quick

Figures of a network are kept as JSON in the output folder and not measured again.
"""

import argparse
import csv
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import rankdata
from shared import compiled, keep, kept, standardized

import keras_pnn as pnn

# By folder of runs: the name, the imperfections of the devices, the radius of the ball
# in the controls' unit, and whether pixels are standardised.
SYSTEMS = {
    "fig2": ("microrings", ["resonance_shift"], 0.5, False),
    "fig3": ("masks", None, 0.3, True),
    "fig4": ("mesh", ["theta_error", "phi_error", "splitter_error"], 0.3, True),
}
MEASURES = {
    "controls": "λ_max, controls",
    "imperfections": "λ_max, imperfections",
    "trace": "trace, controls",
    "rise": "rise in a small ball",
}
TARGETS = {"mean": "mean", "p05": "5th percentile"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--vectors", type=int, default=30, help="of the trace")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/sharpness")
    )
    return parser.parse_args()


def networks(folder: pathlib.Path, system: str) -> list[dict]:
    """Returns the runs of a system: network, setting, accuracies on unseen devices."""
    found = []
    for path in sorted(folder.glob("run_*.json")):
        run = json.loads(path.read_text("utf-8"))
        name = f"{run['method']}_{run['seed']}"
        if system == "fig2":
            setting = run["method"].partition("_")[0]
            setting = setting if setting in ("rho", "sample") else "LeNet-5"
            accuracy = run["chips"]
        elif system == "fig3":
            setting, accuracy = "masks", run["accuracy"]["all"]["combined"]
        else:
            name = run["training"]["name"]
            setting = f"{run['setting']}, σ = {run['sigma']:g}"
            accuracy = run["accuracy"]["unseen"]
        row = {
            "system": SYSTEMS[system][0],
            "setting": setting,
            "name": name,
            "path": folder / f"{name}.keras",
            "mean": float(np.mean(accuracy)),
            "p05": float(np.percentile(accuracy, 5)),
        }
        # A network trained without a device has one run for each device.
        if row["path"].exists() and row not in found:
            found.append(row)
    return found


def measured(row: dict, system: str, data, args) -> dict:
    _, imperfections, radius, standard = SYSTEMS[system]
    model = compiled(keras.saving.load_model(row["path"], compile=False))
    x, y = data.x_train[: args.images], data.y_train[: args.images]
    x = standardized(x) if standard else x

    def top(variables):
        result = pnn.hessian_eigenvalues(
            model, x, y, variables=variables, tolerance=0.02, max_iterations=150
        )
        return float(result.eigenvalues[0])

    trace = pnn.hessian_trace(model, x, y, vectors=args.vectors)
    return {
        "controls": top("controls"),
        # With aligned frames the loss has a kink, and no second derivative.
        "imperfections": top(imperfections) if imperfections else None,
        "trace": float(trace.trace),
        "trace_error": float(trace.standard_error),
        "rise": worst_rise(model, x, y, radius),
    }


def worst_rise(model: keras.Model, x, y, radius: float, steps: int = 10) -> float:
    """Returns the largest rise of the loss over gradient steps within a ball."""
    controls = pnn.curvature.HessianOperator(model, x, y).variables
    start = [tf.convert_to_tensor(v) for v in controls]

    @tf.function
    def loss_and_slopes(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=False))
        return loss, tape.gradient(loss, [v.value for v in controls])

    def cut(parts, length):
        """Scales to a norm of `length`; zeros stay zeros."""
        norm = tf.linalg.global_norm(parts)
        return [p * (length / norm if norm > 0 else 0.0) for p in parts]

    moved = [tf.zeros_like(v) for v in start]
    losses = []
    for _ in range(steps + 1):
        loss, slopes = loss_and_slopes(x, y)
        losses.append(float(loss))
        # The first step reaches the surface; later ones move along it.
        step = cut(slopes, radius if len(losses) == 1 else radius / 2)
        moved = [m + s for m, s in zip(moved, step, strict=True)]
        if tf.linalg.global_norm(moved) > radius:
            moved = cut(moved, radius)
        for variable, value, move in zip(controls, start, moved, strict=True):
            variable.assign(value + move)
    for variable, value in zip(controls, start, strict=True):
        variable.assign(value)
    return max(losses) - losses[0]


def spearman(x, y) -> float:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def correlation(x, y, draws: int = 2000) -> tuple[float, float, float]:
    """Returns Spearman's coefficient and its 95 % interval from a bootstrap."""
    x, y = np.asarray(x), np.asarray(y)
    generator = np.random.default_rng(0)
    samples = generator.integers(0, len(x), (draws, len(x)))
    found = [spearman(x[s], y[s]) for s in samples]
    return (spearman(x, y), *np.nanpercentile(found, [2.5, 97.5]))


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """Groups networks by system and setting, without groups below five; then all."""
    found = {}
    for row in rows:
        found.setdefault(f"{row['system']}, {row['setting']}", []).append(row)
    found = {name: mine for name, mine in found.items() if len(mine) >= 5}
    return found if list(found.values()) == [rows] else {**found, "all": rows}


def table(rows: list[dict]) -> list[list[str]]:
    lines = [["", "networks", *TARGETS.values()]]
    for name, mine in groups(rows).items():
        for measure, label in MEASURES.items():
            have = [r for r in mine if r[measure] is not None]
            if len(have) < 5:
                continue
            cells = []
            for target in TARGETS:
                found = correlation(
                    [r[measure] for r in have], [r[target] for r in have]
                )
                cell = "{:.2f} ({:.2f} to {:.2f})".format(*found)
                cells.append(cell.replace("-", "−"))
            lines.append([f"{name}: {label}", str(len(have)), *cells])
    return lines


def report(out: pathlib.Path) -> None:
    from matplotlib.ticker import LogLocator

    from keras_pnn import plotting

    paths = sorted(out.glob("network_*.json"))
    rows = [json.loads(p.read_text("utf-8")) for p in paths]
    lines = table(rows)
    with open(out / "sharpness.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    keys = ["system", "setting", "name", *TARGETS, *MEASURES]
    with open(out / "networks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for line in lines:
        print(" | ".join(line))
    # One row per system, since their units differ.
    systems = list(dict.fromkeys(r["system"] for r in rows))
    figure = plotting.new_figure(14, 4 * len(systems))
    axes = figure.subplots(len(systems), len(MEASURES), sharey="row", squeeze=False)
    for row, system in zip(axes, systems, strict=True):
        row[0].set_ylabel(f"{system}: accuracy on unseen devices (%)")
        for ax, (measure, label) in zip(row, MEASURES.items(), strict=True):
            mine = [r for r in rows if r["system"] == system and r[measure] is not None]
            # The axis is logarithmic: figures that are not positive are left out.
            points = [(r[measure], r["mean"]) for r in mine if r[measure] > 0]
            if points:
                ax.plot(*zip(*points, strict=True), "o", alpha=0.7)
            ax.set(xscale="log", xlabel=label)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.tick_params(axis="x", rotation=60)
            ax.grid(alpha=0.3)
    plotting.save(axes[0, 0], out / "sharpness.png")


def main() -> None:
    args = arguments()
    if args.quick:
        args.out, args.images, args.vectors = args.out / "quick", 50, 2
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load(args.data)
        for system in args.systems:
            folder = args.runs / system / ("quick" if args.quick else "")
            for row in networks(folder, system):
                name = f"{row['system']}_{row['setting']}_{row['name']}"
                name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
                path = args.out / f"network_{name}.json"
                if kept(path, images=args.images):
                    continue
                print(name, flush=True)
                found = {"images": args.images, **measured(row, system, data, args)}
                keep(path, {**row, "path": str(row["path"].name), **found})
                # Otherwise the graphs of all networks stay in memory.
                keras.utils.clear_session()
    report(args.out)


if __name__ == "__main__":
    main()
