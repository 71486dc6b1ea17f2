"""Trains a network of microring weight banks twice, and warms up the chip.

Plain backpropagation (BP) and sharpness-aware training (SAT) get the same network,
optimizer and number of epochs. The table shows what is left of each when the whole
chip is warmer or colder than it was calibrated at, and on other chips of the run.

    python examples/quickstart.py                # MNIST, or digits without a network
    python examples/quickstart.py --quick        # a minute, to see it run
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from networks import lenet5
from runs import unfinished

import keras_pnn as pnn

TEMPERATURES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto", help="auto, mnist, digits or a path")
    parser.add_argument("--epochs", type=int, default=None, help="default 3; digits 40")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chips", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    args = parser.parse_args()
    if args.epochs is not None and args.epochs < 2:
        parser.error("--epochs must be 2 or more, in which noise grows")
    if args.chips < 1:
        parser.error("--chips must be 1 or more")
    return args


def compiled(model: keras.Model, steps: int) -> keras.Model:
    schedule = keras.optimizers.schedules.CosineDecay(0.01, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(schedule), loss, metrics=["accuracy"], jit_compile=True
    )
    return model


def sharpness_aware(model: keras.Model, seed: int, warmup: int) -> pnn.SATModel:
    """SAT among chips that differ and warm up at random."""
    from tensorflow_probability import distributions as tfd

    return pnn.SATModel(
        model,
        rho=0.5,
        ascent="asam",
        variation=pnn.Variation(
            resonance_shift=0.06, temperature=tfd.Uniform(-2.5, 2.5)
        ),
        warmup=warmup,
        seed=seed,
    )


def train(model, name: str, data: str, batches, epochs: int, args) -> None:
    """BP, or SAT whose noise grows in the first half of the epochs, of two at least.

    Among random devices a network without any training finds no direction.
    """
    if name == "SAT":
        warmup = max(2, epochs // 2) * len(batches)
        model = sharpness_aware(model, args.seed, warmup)
    setting = data, len(batches), args.batch_size, epochs, args.seed
    backup = unfinished(args.out, name, *setting)
    compiled(model, epochs * len(batches)).fit(
        batches,
        epochs=epochs,
        shuffle=False,
        callbacks=[
            pnn.callbacks.BatchOrder(batches),
            keras.callbacks.BackupAndRestore(backup),
        ],
    )


def measure(model, data, chips: int) -> dict:
    """Accuracy in percent at each temperature and on each chip, and λ_max."""
    x, y = data.x_test, data.y_test
    warm = pnn.devices.sweep(model, "temperature", TEMPERATURES)
    others = pnn.Variation(resonance_shift=0.08).sample(model, chips, seed=1)
    print("  temperatures")
    by_temperature = pnn.evaluate_devices(model, x, y, warm)["accuracy"]
    print("  chips")
    by_chip = pnn.evaluate_devices(model, x, y, others)["accuracy"]
    print("  largest eigenvalue of the Hessian")
    probe = slice(0, 500)
    curvature = pnn.hessian_eigenvalues(
        model, data.x_train[probe], data.y_train[probe], tolerance=0.01, verbose=1
    )
    return {
        "temperature": (100 * by_temperature).tolist(),
        "chips": (100 * by_chip).tolist(),
        "lambda_max": float(curvature.eigenvalues[0]),
        "residual": float(curvature.residuals[0]),
    }


def table(results: dict) -> str:
    heads = [f"{t:+g} K" if t else "nominal" for t in TEMPERATURES]
    heads += ["chips mean", "p05", "min", "λ_max", "(residual)"]
    rows = ["accuracy (%)  " + " ".join(f"{h:>10}" for h in heads)]
    for name, r in results.items():
        chips = np.array(r["chips"])
        cells = [f"{a:10.2f}" for a in r["temperature"]]
        cells += [
            f"{a:10.2f}" for a in (chips.mean(), np.percentile(chips, 5), chips.min())
        ]
        cells += [f"{r['lambda_max']:10.3g}", f"{r['residual']:10.1g}"]
        rows.append(f"{name:<14}" + " ".join(cells))
    return "\n".join(rows)


def pictures(models: dict, results: dict, out: pathlib.Path) -> None:
    from keras_pnn import plotting

    curves = {n: r["temperature"] for n, r in results.items()}
    plotting.save(
        plotting.sweep(TEMPERATURES, curves, "temperature of the chip (K)"),
        out / "temperature.png",
    )
    plotting.save(
        plotting.distributions({n: r["chips"] for n, r in results.items()}),
        out / "chips.png",
    )
    controls = {
        name: np.concatenate([np.ravel(v) for v in pnn.layers.controls_of(model)])
        for name, model in models.items()
    }
    plotting.save(plotting.histograms(controls, "detuning (nm)"), out / "controls.png")
    tuning = pnn.LorentzianTuning()
    grid = np.linspace(0, 1.5, 301)
    trained = {n: (c, np.asarray(tuning.weight(c))) for n, c in controls.items()}
    curve = np.asarray(tuning.weight(grid))
    plotting.save(plotting.tuning_curve(grid, curve, trained, "nm"), out / "tuning.png")


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    if args.quick:
        args.out = args.out / "quick"
        data = data.head(2000, 500)
    epochs = args.epochs or (2 if args.quick else 40 if data.name == "digits" else 3)
    args.out.mkdir(parents=True, exist_ok=True)
    batches = pnn.datasets.Batches(
        data.x_train, data.y_train, args.batch_size, seed=args.seed
    )
    models, results = {}, {}
    for name in ("BP", "SAT"):
        model = lenet5("sample", seed=args.seed)
        print(f"\n{name}: {epochs} epochs on {len(data.x_train)} images of {data.name}")
        start = time.perf_counter()
        train(model, name, data.name, batches, epochs, args)
        print(f"  trained in {time.perf_counter() - start:.0f} s")
        compiled(model, 1)
        models[name] = model
        results[name] = measure(model, data, 4 if args.quick else args.chips)
        model.save(args.out / f"{name}.keras")
    print("\n" + table(results))
    pictures(models, results, args.out)
    with open(args.out / "quickstart.json", "w", encoding="utf-8") as file:
        setting = {
            "data": data.name,
            "epochs": epochs,
            "seed": args.seed,
            "temperatures": TEMPERATURES,
            "batch_norm": "none in this network",
        }
        json.dump({"setting": setting, "results": results}, file, indent=1)
    print(f"\nPlots, models and figures are in {args.out}/")


if __name__ == "__main__":
    main()
