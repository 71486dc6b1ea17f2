"""Fig. 4 of arXiv:2411.12352: train a mesh of 64 modes offline and on a device.

A LeNet front end, an MZI mesh of 64 modes, and photodiodes, on MNIST. The device has
phase errors of N(0, σ) rad and splitter errors of N(0, σ) in power. Every method is
measured on its training device and on 20 unseen devices, the same for all methods, with
batch statistics frozen, on all test images.

There are four settings. `published`: the authors' (Haar phases, batches of 6000, 40
epochs, 60 for DAT with U-Nets, their optimizers), plus BP with the optimizer of SAT,
DAT whose error networks go on learning from the device while the network takes smaller
steps, and DAT with a matrix in their place, with and without fixed phases. `same`:
every method from one start near the cross state, with the same Adam, batches and
epochs. `spread`: likewise from near the bar state, with the ten output ports spread
over the 64, which tolerates larger errors. `wide`: from the bar state, each class the
sum of six neighbouring ports, and logits six times as large; meant for --sigmas 0.3 0.4
and --unseen 100, with `nat` and `sat_nat` for random devices.

    python examples/paper/fig4_mzi.py                               # hours
    python examples/paper/fig4_mzi.py --settings same --sigmas 0.15 --devices 0
    python examples/paper/fig4_mzi.py --quick

Each run is kept as JSON in the output folder and not repeated; an interrupted run
resumes after its last complete epoch. All kept runs of the methods are printed and
plotted at the end; `--report` does only that. `--maps 5` adds a map of accuracy
over phase and splitter errors for each network, as in Fig. 4d; `--worst 8` adds the
least recognised class on each of the eight worst unseen devices.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import time

import keras
import numpy as np
from shared import (
    as_in_pytorch,
    compiled,
    few,
    fit,
    hybrid,
    keep,
    kept,
    standardized,
    unfinished,
)

import keras_pnn as pnn

METHODS = {
    "bp": "BP",
    "bp_adam": "BP, Adam",
    "nat": "NAT",
    "sat": "SAT offline",
    "sat_nat": "SAT offline, among random devices",
    "pat": "PAT",
    "dat": "DAT",
    "dat_on": "DAT, error networks that go on learning",
    "dat_linear": "DAT, a linear S from the first step on",
    "dat_fixed": "DAT, a linear S from the first step on, phases fixed",
    "online": "SAT online",
}
ON_DEVICE = ("pat", "dat", "dat_on", "dat_linear", "dat_fixed", "online")
WITH_ASCENT = ("sat", "sat_nat", "online")
# Training devices and unseen devices have different seeds.
TRAINING_SEED, UNSEEN_SEED = 100, 1
# Axes of `--maps`: standard deviations of phases (rad) and splitter imbalances.
SPREADS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sigmas", nargs="+", type=float, default=[0.15, 0.2, 0.3])
    parser.add_argument("--devices", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--rho", nargs="+", type=float, default=[0.3], help="radii of the ascent"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--unseen", type=int, default=20)
    parser.add_argument("--probe", type=int, default=1000, help="images for λ_max")
    parser.add_argument(
        "--maps",
        type=int,
        default=0,
        metavar="DEVICES",
        help="also map phase by splitter errors, with so many devices for each cell",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="DEVICES",
        help="also show what becomes of the classes on so many of the worst devices",
    )
    parser.add_argument("--data", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/fig4")
    )
    return parser.parse_args()


def variation(sigma: float) -> pnn.Variation:
    return pnn.Variation(theta_error=sigma, phi_error=sigma, splitter_imbalance=sigma)


def published(method: str, steps: int) -> dict:
    """Returns the authors' network and optimizer: see docs/results/published.md."""
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
    # The error networks can follow only a network that changes slowly.
    falls = {"dat": ([30], [0.1, 0.05]), "dat_on": ([20, 40], [0.1, 0.02, 0.01])}
    if method in falls:
        epochs, rates = falls[method]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [steps * epoch for epoch in epochs], rates
        )
        optimizer = keras.optimizers.SGD(rate, momentum=0.5)
    if method in ("bp_adam", "sat", "sat_nat", "online"):
        optimizer = keras.optimizers.Adam(0.1)
    clip = None if isinstance(optimizer, keras.optimizers.Adam) else 1.0
    return {
        "network": {"start": "haar", "clip": clip},
        "optimizer": optimizer,
        "perturb": "all",
        "dat": {"error_epochs": 20},
        "noise": variation(0.01),
    }


def same(method: str, steps: int, setting: str = "same", **network) -> dict:
    """Returns the same start, optimizer and budget for every method."""
    rate = keras.optimizers.schedules.CosineDecay(0.005, EPOCHS[setting] * steps)
    return {
        "network": network or {"start": "cross"},
        "optimizer": keras.optimizers.Adam(rate),
        "perturb": "controls",
        # Here DAT fails with internal amplitudes, which are given the model's phases,
        # and with error networks that learn at the default rate or in all epochs.
        "dat": {
            "internal_states": False,
            "error_epochs": 1,
            "error_optimizer": keras.optimizers.Adam(3e-5),
        },
        "noise": None,
    }


def spread(method: str, steps: int) -> dict:
    """Returns `same` from the bar state, with output ports far apart."""
    ports = [round(63 * i / 9) for i in range(10)]
    return same(method, steps, start="bar", ports=ports)


def wide(method: str, steps: int) -> dict:
    """Returns `same` from the bar state, with six neighbouring ports for each class."""
    groups = [list(range(2 + 6 * c, 8 + 6 * c)) for c in range(10)]
    return same(method, steps, "wide", start="bar", ports=groups, scale=6.0)


SETTINGS = {"published": published, "same": same, "spread": spread, "wide": wide}
EPOCHS = {"published": 40, "same": 5, "spread": 5, "wide": 6}
BATCH = {"published": 6000, "same": 128, "spread": 128, "wide": 128}


def epochs_of(setting: str, method: str) -> int:
    long = setting == "published" and method in ("dat", "dat_on")
    return 60 if long else EPOCHS[setting]


def trainer(method, model, options, sigma, device, rho, seed) -> keras.Model:
    """Returns the model, or the trainer that wraps it."""
    if method in ("bp", "bp_adam"):
        return model
    if method == "nat":
        noise = options["noise"] or variation(sigma)
        return pnn.SATModel(model, ascent=None, variation=noise, seed=seed)
    if method in ("sat", "sat_nat"):
        noise = variation(sigma) if method == "sat_nat" else None
        return pnn.SATModel(
            model, rho=rho, perturb=options["perturb"], variation=noise, seed=seed
        )
    # The fields behind an imperfect mesh differ in phase from the model's, so that
    # measured fields do not fit the model's derivatives; intensities have no phase.
    if method in ("pat", "online"):
        ascent = {}
        if method == "online":
            ascent = {"ascent": pnn.SAM(rho), "perturb": options["perturb"]}
        return pnn.PATModel(model, device=device, readout="output", seed=seed, **ascent)
    dat = dict(options["dat"])
    if method == "dat_on":
        dat["correct_from"] = dat.pop("error_epochs")
    if method in ("dat_linear", "dat_fixed"):
        adam = keras.optimizers.Adam(0.01)
        dat = {"error_networks": "linear", "error_optimizer": adam}
        (mesh,) = (x for x in model.layers if isinstance(x, pnn.layers.MZIMesh))
        mesh.trainable = method == "dat_linear"
    return pnn.DATModel(model, device=device, seed=seed, **dat)


def name_of(setting, method, sigma, device, rho, seed) -> str:
    """Returns a name with σ and the device, if the training depends on them."""
    parts = [setting, method]
    if method in ON_DEVICE:
        parts += [f"sigma{sigma:g}", f"device{device}"]
    elif method == "sat_nat" or (method == "nat" and setting != "published"):
        parts += [f"sigma{sigma:g}"]
    if method in WITH_ASCENT:
        parts += [f"rho{rho:g}"]
    return "_".join([*parts, f"seed{seed}"])


def trained(name, setting, method, sigma, device, rho, seed, data, args):
    """Returns the trained network and its log, from the files if they exist."""
    path, log = args.out / f"{name}.keras", args.out / f"trained_{name}.json"
    epochs = 2 if args.quick else epochs_of(setting, method)
    made = {"data": data.name, "images": len(data.x_train), "epochs": epochs}
    if kept(log, **made):
        model = compiled(keras.saving.load_model(path, compile=False))
        return model, json.loads(log.read_text("utf-8"))
    images = standardized(data.x_train)
    size = min(BATCH[setting], len(images))
    batches = pnn.datasets.Batches(images, data.y_train, size, seed=seed)
    options = SETTINGS[setting](method, len(batches))
    model = hybrid(seed=seed, **options["network"])
    if setting == "published":
        as_in_pytorch(model, seed)
    chip = variation(sigma).sample(model, device + 1, seed=TRAINING_SEED)[device]
    training = trainer(method, model, options, sigma, chip, rho, seed)
    compiled(training, options["optimizer"])
    folder = unfinished(args.out, name, *made.values())
    # Kept until all is written: the curvature after the training takes time, too.
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    history = keras.callbacks.CSVLogger(args.out / f"epochs_{name}.csv", append=True)
    start = time.perf_counter()
    print(f"{name}: {epochs} epochs")
    fit(training, batches, epochs, callbacks=[history, backup])
    found = {**made, "seconds of the last part": time.perf_counter() - start}
    # The curvature includes fixed phases.
    for layer in model.layers:
        layer.trainable = True
    found["curvature"] = curvature(compiled(model), data, args.probe)
    model.save(path)
    keep(log, found)
    shutil.rmtree(folder)
    return model, found


def curvature(model: keras.Model, data, samples: int) -> dict:
    """Returns λ_max of the digital model over all its variables and over the phases."""
    probe = standardized(data.x_train[:samples]), data.y_train[:samples]
    found = {}
    for which in ("all", "controls"):
        result = pnn.hessian_eigenvalues(
            model, *probe, variables=which, tolerance=0.02, max_iterations=150
        )
        found[which] = {
            "lambda_max": float(result.eigenvalues[0]),
            "residual": float(result.residuals[0]),
            "samples": samples,
        }
    return found


def run(setting, method, sigma, device, rho, seed, data, args) -> dict:
    key = (setting, method, sigma, device, rho, seed)
    name = name_of(*key)
    model, training = trained(name, *key, data, args)
    x, y = standardized(data.x_test), data.y_test
    chip = variation(sigma).sample(model, device + 1, seed=TRAINING_SEED)[device:]
    unseen = variation(sigma).sample(model, args.unseen, seed=UNSEEN_SEED)
    accuracy = {
        key: (
            100 * pnn.evaluate_devices(model, x, y, devices, verbose=0)["accuracy"]
        ).tolist()
        for key, devices in {
            "ideal": pnn.devices.DeviceSet([pnn.SimulatedDevice({})]),
            "device": chip,
            "unseen": unseen,
        }.items()
    }
    return {
        "setting": setting,
        "method": method,
        "sigma": sigma,
        "device": device,
        "rho": rho,
        "seed": seed,
        "data": data.name,
        "images": len(data.x_train),
        "batch_norm": "frozen",
        "training": {**training, "name": name},
        "accuracy": accuracy,
    }


def mapped(name: str, data, args) -> dict:
    """Maps the mean accuracy of a network over spreads of phases and splitters."""
    model = compiled(keras.saving.load_model(args.out / f"{name}.keras", compile=False))
    x, y = standardized(data.x_test), data.y_test
    accuracy = []
    for phase, splitter in itertools.product(SPREADS, SPREADS):
        spreads = {"theta_error": phase, "phi_error": phase}
        spreads = {**spreads, "splitter_imbalance": splitter}
        spreads = {k: s for k, s in spreads.items() if s}
        devices = pnn.devices.DeviceSet([pnn.SimulatedDevice({})])
        if spreads:
            noise = pnn.Variation(**spreads)
            devices = noise.sample(model, args.maps, seed=UNSEEN_SEED)
        found = pnn.evaluate_devices(model, x, y, devices, verbose=0)["accuracy"]
        accuracy.append(100 * float(np.mean(found)))
    rows = np.reshape(accuracy, (len(SPREADS), -1)).tolist()
    return {"name": name, "phases by splitters": rows}


def lost(name: str, sigma: float, unseen: list[float], data, args) -> list[dict]:
    """Returns the least recognised class on each of the worst unseen devices."""
    model = compiled(keras.saving.load_model(args.out / f"{name}.keras", compile=False))
    devices = variation(sigma).sample(model, len(unseen), seed=UNSEEN_SEED)
    x, y = standardized(data.x_test), data.y_test
    found = []
    for i in np.argsort(unseen)[: args.worst].tolist():
        with devices[i].installed(model):
            guesses = model.predict(x, batch_size=1000, verbose=0).argmax(1)
        counts = np.zeros((10, 10), int)
        np.add.at(counts, (y, guesses), 1)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        worst = int(np.argmin(np.diag(shares)))
        others = np.delete(np.diag(shares), worst)
        taken = int(np.argmax(np.where(np.arange(10) == worst, -1, shares[worst])))
        row = {"device": i, "accuracy": unseen[i], "class": worst}
        row |= {"recognised": shares[worst, worst], "taken for": taken}
        row |= {"share": shares[worst, taken], "next class": float(others.min())}
        found.append(row)
        print(", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    return found


def labelled(runs: list[dict]) -> dict[str, list[dict]]:
    """Groups the runs by method and ρ, in the order of the methods."""
    order = list(METHODS)
    groups = {}
    for r in sorted(runs, key=lambda r: (order.index(r["method"]), r["rho"] or 0)):
        rho = "" if r["rho"] is None else f", ρ = {r['rho']:g}"
        groups.setdefault(METHODS[r["method"]] + rho, []).append(r)
    return groups


def table(runs: list[dict], setting: str, sigma: float) -> str:
    """Returns a line per method: figures over unseen devices, then own devices."""
    lines = [
        f"{setting}, σ = {sigma:g}",
        f"{'accuracy (%)':44}{'ideal':>7}{'unseen':>8}{'std':>6}"
        f"{'p05':>7}{'min':>7}{'λ all':>9}{'λ phases':>10}  its own devices",
    ]
    for label, mine in labelled(runs).items():
        unseen = np.concatenate([r["accuracy"]["unseen"] for r in mine])
        mine = sorted(mine, key=lambda r: (r["device"], r["seed"]))
        own = " ".join(f"{r['accuracy']['device'][0]:.2f}" for r in mine)
        ideal = np.mean([r["accuracy"]["ideal"] for r in mine])
        top = {
            which: np.mean(
                [r["training"]["curvature"][which]["lambda_max"] for r in mine]
            )
            for which in ("all", "controls")
        }
        lines.append(
            f"{label:44}{ideal:7.2f}{unseen.mean():8.2f}{unseen.std():6.2f}"
            f"{np.percentile(unseen, 5):7.2f}{unseen.min():7.2f}{top['all']:9.3g}"
            f"{top['controls']:10.3g}  {own}"
        )
    return "\n".join(lines)


def report(out: pathlib.Path, methods: list[str]) -> None:
    from keras_pnn import plotting

    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    runs = [r for r in runs if r["method"] in methods]
    for setting, sigma in sorted({(r["setting"], r["sigma"]) for r in runs}):
        mine = [r for r in runs if (r["setting"], r["sigma"]) == (setting, sigma)]
        print(table(mine, setting, sigma), end="\n\n")
        values = {
            label: np.concatenate([r["accuracy"]["unseen"] for r in group])
            for label, group in labelled(mine).items()
        }
        plotting.save(
            plotting.distributions(values), out / f"unseen_{setting}_{sigma:g}.png"
        )


def draw_maps(out: pathlib.Path) -> None:
    """Plots all maps side by side, in the order of the methods."""
    from keras_pnn import plotting

    maps = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("map_*.json"))]
    maps.sort(key=lambda found: list(METHODS).index(found["method"]))
    if not maps:
        return
    figure = plotting.new_figure(5 * len(maps), 4)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, found in zip(axes, maps, strict=True):
        plotting.heat_map(
            SPREADS,
            SPREADS,
            found["phases by splitters"],
            "splitters: power imbalance (standard deviation)",
            "phases (rad, standard deviation)",
            "accuracy (%)",
            level=90,
            limits=(0, 100),
            ax=ax,
        )
        ax.set_title(METHODS[found["method"]])
    plotting.save(axes[0], out / "maps.png")


def wanted(args) -> list[tuple]:
    """Lists (setting, method, σ, device, ρ, seed); ρ is None without an ascent."""
    return [
        (setting, method, sigma, device, rho, seed)
        for seed, setting, sigma, device, method in itertools.product(
            args.seeds, args.settings, args.sigmas, args.devices, args.methods
        )
        # Outside `published`, "bp" has Adam, too.
        if method != "bp_adam" or setting == "published"
        for rho in (args.rho if method in WITH_ASCENT else [None])
    ]


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
        args.unseen, args.probe, args.maps = 3, 100, min(args.maps, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load(args.data)
        if args.quick:
            data = few(data, 1000, 500)
        for key in wanted(args):
            setting, method, sigma, device, rho, seed = key
            name = f"{setting}_{method}_sigma{sigma:g}_device{device}"
            name += f"_seed{seed}" if rho is None else f"_rho{rho:g}_seed{seed}"
            path = args.out / f"run_{name}.json"
            if not kept(path, data=data.name, images=len(data.x_train)):
                keep(path, run(*key, data, args))
                # Otherwise the graphs of all runs stay in memory.
                keras.utils.clear_session()
            path = args.out / f"map_{name_of(*key)}.json"
            if args.maps and not kept(path, data=data.name, devices=args.maps):
                made = {"data": data.name, "devices": args.maps, "method": method}
                keep(path, {**made, **mapped(name_of(*key), data, args)})
                keras.utils.clear_session()
            path = args.out / f"lost_{name}.json"
            if args.worst and not kept(path, data=data.name, devices=args.worst):
                run_file = args.out / f"run_{name}.json"
                unseen = json.loads(run_file.read_text("utf-8"))["accuracy"]["unseen"]
                made = {"data": data.name, "devices": args.worst}
                rows = lost(name_of(*key), sigma, unseen, data, args)
                keep(path, {**made, "rows": rows})
                keras.utils.clear_session()
    report(args.out, args.methods)
    draw_maps(args.out)


if __name__ == "__main__":
    main()
