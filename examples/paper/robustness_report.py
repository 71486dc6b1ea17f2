"""Trains a network plainly and robustly, and reports the robustness of both.

Three systems: LeNet-5 on microring weight banks (`mrr`), a digital front end with a
mesh of interferometers (`mzi`), masks on a spatial light modulator (`slm`). The robust
network sees random devices at every step after a plain start; for `mrr` and `mzi`, it
is also trained with the sharpness-aware ascent. The page holds the accuracy on
other devices, sweeps, yield, worst case, sensitivity, curvature and loss landscape.

    python examples/paper/robustness_report.py --system mrr
    python examples/paper/robustness_report.py --system mzi --devices 50
    python examples/paper/robustness_report.py --system slm --quick    # to see it run

Trained networks and measured points are kept in the output folder: the same command
resumes a stopped run.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import keras
import numpy as np
from shared import (
    compiled,
    few,
    fit,
    free_space,
    hybrid,
    keep,
    kept,
    lenet5,
    random_misalignment,
    standardized,
    unfinished,
)

import keras_pnn as pnn

PHASES = "std:theta_error+phi_error"
SPLITTERS = "std:splitter_imbalance"


@dataclasses.dataclass(frozen=True)
class System:
    """Hardware, the training of its networks, and the contents of the report.

    Args:
        network: makes the network from a seed.
        images: turns pixels from 0 to 1 into the network's inputs.
        robust: wraps the network for robust training.
        label: name of the robust network.
        rate, batch_size: learning rate and batch size.
        epochs: default numbers for MNIST and for digits.
        variation: distribution of the devices.
        sweeps, grid: as in `pnn.robustness_report`.
        spec: the accuracy that a device must reach.
    """

    network: Callable[[int], keras.Model]
    images: Callable[[np.ndarray], np.ndarray]
    robust: Callable[[keras.Model, int], pnn.SATModel]
    label: str
    rate: float
    batch_size: int
    epochs: tuple[int, int]
    variation: pnn.Variation
    sweeps: dict
    grid: dict
    spec: float


def rings(fine: int, coarse: int) -> System:
    """Returns a system with shifts of each ring (nm) and of the temperature (K)."""
    from tensorflow_probability import distributions as tfd

    def robust(model, seed):
        noise = pnn.Variation(resonance_shift=0.06, temperature=tfd.Uniform(-2.5, 2.5))
        return pnn.SATModel(model, rho=0.5, ascent="asam", variation=noise, seed=seed)

    return System(
        network=lambda seed: lenet5("sample", seed=seed),
        images=np.asarray,
        robust=robust,
        label="SAT",
        rate=0.01,
        batch_size=128,
        epochs=(3, 40),
        variation=pnn.Variation(resonance_shift=0.08),
        sweeps={
            "temperature": np.linspace(-2, 2, fine),
            "variation": np.linspace(0, 2, coarse),
        },
        grid={
            "temperature": np.linspace(-2, 2, coarse),
            "variation": np.linspace(0, 1.5, coarse),
        },
        spec=0.95,
    )


def interferometers(fine: int, coarse: int) -> System:
    """Returns a system with errors of phases (rad) and splitters (power imbalance)."""
    errors = pnn.Variation(theta_error=0.15, phi_error=0.15, splitter_imbalance=0.15)

    def robust(model, seed):
        return pnn.SATModel(model, rho=0.3, variation=errors, seed=seed)

    return System(
        network=lambda seed: hybrid("cross", seed=seed),
        images=standardized,
        robust=robust,
        label="SAT",
        rate=0.005,
        batch_size=128,
        epochs=(5, 60),
        variation=errors,
        sweeps={PHASES: np.linspace(0, 0.4, fine // 2 + 1)},
        grid={
            PHASES: np.linspace(0, 0.3, coarse),
            SPLITTERS: np.linspace(0, 0.3, coarse),
        },
        spec=0.97,
    )


def modulators(fine: int, coarse: int) -> System:
    """Returns a system whose frames are rotated (degrees), shifted (pixels), scaled."""

    def robust(model, seed):
        noise = random_misalignment()
        return pnn.SATModel(model, ascent=None, variation=noise, seed=seed)

    return System(
        network=free_space,
        images=standardized,
        robust=robust,
        label="among misalignments",
        rate=0.006,
        batch_size=256,
        epochs=(6, 80),
        variation=pnn.Variation(rotation=0.5, shift=0.5, scale=0.02),
        sweeps={
            "rotation": np.linspace(-3, 3, fine),
            "shift": [(y, 0.0) for y in np.linspace(-2, 2, fine)],
            "scale": np.linspace(-0.1, 0.1, fine),
        },
        grid={
            "rotation": np.linspace(-1.5, 1.5, coarse),
            "scale": np.linspace(-0.05, 0.05, coarse),
        },
        spec=0.9,
    )


SYSTEMS = {"mrr": rings, "mzi": interferometers, "slm": modulators}

# Shows every part of the page; the figures mean nothing.
QUICK = {
    "hessian": {
        "k": 2,
        "smallest": 0,
        "tolerance": 0.1,
        "trace_samples": 4,
        "density_steps": 8,
        "density_vectors": 1,
        "variables": ("controls",),
    },
    "landscape": {"points": 5},
    "probe": 32,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=list(SYSTEMS), default="mrr")
    parser.add_argument("--data", default="auto", help="auto, mnist, digits or a path")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--sweep-devices", type=int, default=8, help="of these, swept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/robustness")
    )
    args = parser.parse_args()
    if args.epochs is not None and args.epochs < 2:
        parser.error("--epochs must be 2 or more: the start is plain")
    return args


def trained(system: System, name: str, data, folder, setting: dict) -> keras.Model:
    """Returns a trained network, from its file if there is one.

    The first quarter of the robust training, one epoch on MNIST, is plain: an untrained
    network does not learn on random devices.
    """
    epochs, seed, fast = setting["epochs"], setting["seed"], not setting["quick"]
    stem = name.replace(" ", "_")
    model = system.network(seed)
    path = folder / f"{stem}.weights.h5"
    if kept(folder / f"{stem}.json", **setting):
        model.load_weights(path)
        return compiled(model, jit=fast)
    print(f"\n{name}: {epochs} epochs on {len(data.x_train)} images of {data.name}")
    batches = pnn.datasets.Batches(
        system.images(data.x_train), data.y_train, setting["batch_size"], seed=seed
    )
    rate = keras.optimizers.schedules.CosineDecay(system.rate, epochs * len(batches))
    phases = [(model, 0, epochs)]
    if name != "BP":
        plain = max(1, epochs // 4)  # ten or more on digits
        phases = [(model, 0, plain), (system.robust(model, seed), plain, epochs)]
    for phase, (trainer, first, last) in enumerate(phases):
        backup = unfinished(folder, f"{stem}_{phase}", *setting.values())
        callbacks = [keras.callbacks.BackupAndRestore(backup)]
        optimizer = keras.optimizers.Adam(rate)
        fit(compiled(trainer, optimizer, fast), batches, last, first, callbacks)
    model.save_weights(path)
    model.save(folder / f"{stem}.keras")
    keep(folder / f"{stem}.json", setting)
    return compiled(model, jit=fast)


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    system = SYSTEMS[args.system](*((5, 3) if args.quick else (21, 5)))
    folder = args.out / args.system
    batch_size, options = system.batch_size, {}
    if args.quick:
        # Separate from the fully trained networks.
        folder = folder.with_name(f"{args.system}_quick")
        data, args.devices, batch_size = few(data, 400, 50), 2, 50
        options = QUICK
    usual = system.epochs[data.name == "digits"]
    setting = {
        "data": data.name,
        "images": len(data.x_train),
        "batch_size": batch_size,
        "epochs": args.epochs or (2 if args.quick else usual),
        "seed": args.seed,
        "quick": args.quick,
    }
    folder.mkdir(parents=True, exist_ok=True)
    plain, robust = (
        trained(system, name, data, folder, setting) for name in ("BP", system.label)
    )
    report = pnn.robustness_report(
        plain,
        system.images(data.x_test),
        data.y_test,
        variation=system.variation,
        n=args.devices,
        sweeps=system.sweeps,
        grid=system.grid,
        sweep_devices=min(args.sweep_devices, args.devices),
        spec=system.spec,
        compare={system.label: robust},
        seed=args.seed + 1,
        cache_dir=folder / "points",
        data=f"{data.name}, test set",
        name="BP",
        **options,
    )
    print(f"\n{report}")
    for suffix in ("html", "json", "csv"):
        report.save(folder / f"report.{suffix}")
    print(f"\nThe page is {folder / 'report.html'}; the figures are beside it.")


if __name__ == "__main__":
    main()
