"""Fig. 2 of arXiv:2411.12352: train LeNet-5 on microring weight banks by each method.

Every method is trained on MNIST with several seeds. With batch statistics frozen, it is
measured on the whole test set while all five banks are warmed together, and on 20
chips with random shifts of 0.08 nm per ring, the same chips for all methods.

    python examples/paper/fig2_mrr.py                         # everything, hours
    python examples/paper/fig2_mrr.py --methods sat --seeds 0 # a part; parts add up
    python examples/paper/fig2_mrr.py --quick

The paper's methods use the authors' initial weights and batch normalisation, and their
ascent moves all parameters: see docs/results/published.md. So do `rho_0` to `rho_100`,
the authors' study of the radius, with SAM, and Adam at a rate of 0.001.

Each run is kept as JSON in the output folder and not repeated; an interrupted run
resumes after its last complete epoch. To split the work, start parts in several
processes. All kept runs of the methods are printed and plotted at the end; `--report`
does only that.
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
    keep,
    kept,
    lenet5,
    unfinished,
)

import keras_pnn as pnn

RADII = (0, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100)
TEMPERATURES = (-2, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2)
METHODS = {
    "bp_weights": "BP on weights, SGD, then mapped to detunings",
    "nat": "BP on weights with Gaussian weight noise 0.3 (NAT)",
    "bp": "BP on detunings, Adam",
    "pruning": "BP on detunings, Adam, optical pruning",
    "sat": "SAT, adaptive, ρ = 0.5, Adam",
    "pat": "PAT on a chip with 0.08 nm per ring, Adam",
    "bp_sgd": "BP on detunings, SGD",
    "sat_sgd": "SAT, adaptive, ρ = 0.5, SGD",
    "bp_small": "BP on detunings, Adam, rate 0.001",
    "sat_small": "SAT, adaptive, ρ = 0.5, Adam, rate 0.001",
    "bp_frozen": "BP, rate 0.001, batch normalisation frozen after half the epochs",
    "sat_frozen": "SAT, rate 0.001, likewise, then with ρ = 2, not adaptive",
    "sample_bp": "BP, per-sample normalisation",
    "sample_noise": "BP with random chips and drift, per-sample normalisation",
    "sample_sat": "SAT with random chips and drift, per-sample normalisation",
    **{f"rho_{rho:g}": f"SAM, ρ = {rho:g}, Adam, rate 0.001" for rho in RADII},
}
PUBLISHED = ("bp_weights", "nat", "bp", "pruning", "sat", "pat")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/fig2")
    )
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more: some methods begin plainly")
    if args.chips < 1:
        parser.error("--chips must be 1 or more")
    return args


def trainer(method: str, seed: int, epochs: int, steps: int) -> keras.Model:
    """Returns a compiled model, ready for `fit`."""
    digital = method in ("bp_weights", "nat")
    bank = {}
    if method == "pruning":
        bank["control_regularizer"] = pnn.OpticalPruning(1e-3)
    normalization = "sample" if method.startswith("sample") else "batch"
    model = lenet5(normalization, digital, seed, **bank)
    radius = method.startswith("rho_")
    if method in PUBLISHED or radius:
        as_in_pytorch(model, seed)
    small = radius or method.endswith(("_small", "_frozen"))
    optimizer = keras.optimizers.Adam(0.001 if small else 0.01)
    if digital:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.5)
    if method.endswith("_sgd"):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
    if method == "nat":
        noise = pnn.Variation(kernel=0.3)
        model = pnn.SATModel(model, ascent=None, variation=noise, seed=seed)
    if method in ("sat", "sat_sgd", "sat_small", "sat_frozen"):
        perturb = "all" if method in PUBLISHED else "controls"
        model = pnn.SATModel(model, rho=0.5, ascent="asam", perturb=perturb, seed=seed)
    if radius:
        rho = float(method.removeprefix("rho_"))
        model = pnn.SATModel(model, rho=rho, perturb="all", seed=seed)
    if method == "pat":
        (chip,) = pnn.Variation(resonance_shift=0.08).sample(model, 1, seed=100)
        model = pnn.PATModel(model, device=chip, seed=seed)
    if method.startswith("sample"):
        decay = keras.optimizers.schedules.CosineDecay(0.01, epochs * steps)
        optimizer = keras.optimizers.Adam(decay)
    if method in ("sample_noise", "sample_sat"):
        from tensorflow_probability import distributions as tfd

        noise = pnn.Variation(resonance_shift=0.06, temperature=tfd.Uniform(-2.5, 2.5))
        ascent = pnn.ASAM(0.5) if method == "sample_sat" else None
        model = pnn.SATModel(model, ascent=ascent, variation=noise, seed=seed)
    return compiled(model, optimizer)


def second_half(method: str, network: keras.Model, seed: int, steps: int):
    """Freezes batch normalisation, and returns the compiled trainer of the second half.

    In training, batch normalisation cancels uniform heating, so that the ascent cannot
    see it; on the device the statistics are fixed, and nothing cancels it.
    """
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    rate = keras.optimizers.schedules.CosineDecay(0.001, steps)
    if method == "sat_frozen":
        # An adaptive ascent does not move rings at a detuning of 0.
        network = pnn.SATModel(network, rho=2.0, ascent="sam", seed=seed)
    return compiled(network, keras.optimizers.Adam(rate))


def on_banks(method: str, model: keras.Model) -> keras.Model:
    """Returns the trained network on weight banks, compiled for evaluation."""
    model = getattr(model, "model", model)
    if method in ("bp_weights", "nat"):
        model = pnn.convert(model).model
    return compiled(model)


def run(method: str, seed: int, data, args) -> dict:
    setting = seed, args.epochs, data.name, len(data.x_train)
    batches = pnn.datasets.Batches(data.x_train, data.y_train, 64, seed=seed)
    model = trainer(method, seed, args.epochs, len(batches))
    start = time.perf_counter()
    first_epoch = 0
    if method in ("sample_noise", "sample_sat"):
        # An untrained network does not learn on random devices, so the first epoch is
        # plain; it counts in the budget.
        fit(compiled(model.model, keras.optimizers.Adam(0.01)), batches, 1)
        first_epoch = 1
    if method.endswith("_frozen"):
        first_epoch = args.epochs // 2
        network = getattr(model, "model", model)
        half = unfinished(args.out, f"{method}_half", *setting)
        half = half.with_name(f"{half.name}.weights.h5")
        if not half.exists():
            backup = keras.callbacks.BackupAndRestore(half.with_suffix(".backup"))
            fit(model, batches, first_epoch, 0, [backup])
            network.save_weights(half)
        network.load_weights(half)
        steps = (args.epochs - first_epoch) * len(batches)
        model = second_half(method, network, seed, steps)
    backup = keras.callbacks.BackupAndRestore(unfinished(args.out, method, *setting))
    fit(model, batches, args.epochs, first_epoch, [backup])
    seconds = time.perf_counter() - start
    model = on_banks(method, model)
    x, y = data.x_test, data.y_test
    warm = pnn.devices.sweep(model, "temperature", TEMPERATURES)
    chips = pnn.Variation(resonance_shift=0.08).sample(model, args.chips, seed=1)
    curvature = pnn.hessian_eigenvalues(
        model, data.x_train[:1000], data.y_train[:1000], tolerance=0.01
    )
    by_temperature = pnn.evaluate_devices(model, x, y, warm, verbose=0)["accuracy"]
    by_chip = pnn.evaluate_devices(model, x, y, chips, verbose=0)["accuracy"]
    model.save(args.out / f"{method}_{seed}.keras")
    return {
        "method": method,
        "seed": seed,
        "batch_norm": "frozen",
        "seconds": seconds,
        "temperature": (100 * by_temperature).tolist(),
        "chips": (100 * by_chip).tolist(),
        "lambda_max": float(curvature.eigenvalues[0]),
        "residual": float(curvature.residuals[0]),
        "hessian_samples": 1000,
    }


def check_alike(runs: list[dict]) -> None:
    """Exits if runs of one method differ in their settings, and so have no mean."""
    for method in {r["method"] for r in runs}:
        mine = [r for r in runs if r["method"] == method]
        keys = ("data", "images", "epochs")
        settings = {(*(r[k] for k in keys), len(r["chips"])) for r in mine}
        if len(settings) > 1:
            raise SystemExit(
                f"The runs of {method} differ in data, images, epochs or chips "
                f"({sorted(settings)}): choose another --out for some"
            )


def report(out: pathlib.Path, methods: list[str]) -> None:
    """Prints mean ± standard deviation over seeds, and plots the curves."""
    from keras_pnn import plotting

    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    runs = [r for r in runs if r["method"] in methods]
    check_alike(runs)
    heads = [f"{t:+g} K" if t else "0 K" for t in TEMPERATURES]
    heads += ["chips", "p05", "min", "λ_max"]
    print(f"{'':14}" + " ".join(f"{h:>12}" for h in heads))
    warm, chips = {}, {}
    for method in METHODS:
        mine = [r for r in runs if r["method"] == method]
        if not mine:
            continue
        warm[method] = np.array([r["temperature"] for r in mine])
        chips[method] = np.array([r["chips"] for r in mine])
        columns = [
            *warm[method].T,
            chips[method].mean(1),
            np.percentile(chips[method], 5, axis=1),
            chips[method].min(1),
            np.array([r["lambda_max"] for r in mine]),
        ]
        cells = [f"{c.mean():.4g}±{c.std():.2g}" for c in columns]
        print(
            f"{method:14}"
            + " ".join(f"{c:>12}" for c in cells)
            + f"   {len(mine)} seeds, {mine[0]['epochs']} epochs"
        )
    if warm:
        axis = "temperature of the chip (K)"
        for name, group in (
            ("paper", [m for m in warm if not m.startswith("sample")]),
            ("sample", [m for m in warm if m.startswith("sample")]),
        ):
            if group:
                curves = {METHODS[m]: warm[m] for m in group}
                ax = plotting.sweep(TEMPERATURES, curves, axis)
                plotting.save(ax, out / f"temperature_{name}.png")
        plotting.save(plotting.distributions(chips), out / "chips.png")


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load(args.data)
        if args.quick:
            data, args.epochs, args.chips = few(data), 2, 2
        for seed in args.seeds:
            for method in args.methods:
                path = args.out / f"run_{method}_{seed}.json"
                setting = {
                    "epochs": args.epochs,
                    "data": data.name,
                    "images": len(data.x_train),
                    "batch_size": 64,
                }
                if not kept(path, **setting):
                    print(f"\n{METHODS[method]}; seed {seed}")
                    keep(path, {**setting, **run(method, seed, data, args)})
                    # Otherwise the graphs of all runs stay in memory.
                    keras.utils.clear_session()
    report(args.out, args.methods)


if __name__ == "__main__":
    main()
