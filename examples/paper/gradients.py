"""Compare sources of gradients on small chips: accuracy against measurements.

The chips are a mesh of 16 modes, a bank of 16 × 16 rings, and two such banks in series
(random feedback needs two layers), behind 16 principal components and before a dense
layer, on the embedded digits. Each source trains on one device, with and without the
ascent. The table has the cosine between its gradient and the device's own at start and
end, the accuracy on this device and on 20 unseen ones, and the number of measurements
until 90 and 95 %.

    python examples/paper/gradients.py            # hours
    python examples/paper/gradients.py --quick    # a few minutes
    python examples/paper/gradients.py --report

Each run is kept as JSON in the output folder and not repeated.
"""

import argparse
import csv
import itertools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from shared import compiled, few, keep, kept

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides

SOURCES = {
    "PAT": pnn.training.DeviceGradient,
    "adjoint": pnn.Adjoint,
    "parameter shift": pnn.ParameterShift,
    "central difference": pnn.CentralDifference,
    "SPSA": lambda: pnn.SPSA(0.01, directions=8),
    "SPGD": lambda: pnn.SPGD(0.01, directions=8, momentum=0.5),
    "forward gradient": lambda: pnn.ForwardGradient(8),
    "random feedback": pnn.FeedbackAlignment,
}
NETWORKS = ("mesh", "bank", "banks")
SPREAD = {
    "mesh": {"theta_error": 0.15, "phi_error": 0.15, "splitter_imbalance": 0.15},
    "bank": {"resonance_shift": 0.05},
    "banks": {"resonance_shift": 0.05},
}
# Networks to which a source does not apply, or which are not meant for it.
LEFT_OUT = {
    ("bank", "adjoint"),
    ("banks", "adjoint"),
    ("mesh", "random feedback"),
    ("bank", "random feedback"),
}

HEADINGS = (
    "network",
    "source",
    "ρ",
    "seeds",
    "cosine at the start",
    "at the end",
    "own device",
    "unseen: mean",
    "unseen: minimum",
    "asked to 90 %",
    "to 95 %",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS)
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--rho", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.03, help="of Adam")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--unseen", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/gradients")
    )
    return parser.parse_args()


def components(images: np.ndarray) -> keras.layers.Layer:
    """Returns a fixed layer that computes 16 principal components of variance 1."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, widths, directions = np.linalg.svd(flat - mean, full_matrices=False)
    matrix = directions[:16].T / widths[:16] * np.sqrt(len(images))
    layer = keras.layers.Dense(16, trainable=False)
    layer.build((None, len(mean)))
    layer.set_weights([matrix, -mean @ matrix])
    return layer


def network(kind: str, seed: int, images: np.ndarray) -> keras.Model:
    """Returns a network of 16 principal components, the chip, and ten logits."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((28, 28, 1))
    x = components(images)(keras.layers.Flatten()(inputs))
    if kind == "mesh":
        x = pnn.layers.MZIMesh(16)(x)
        x = pnn.layers.Photodetector(normalize="l2")(x)
        x = keras.layers.Rescaling(6.0)(x)
    else:
        x = pnn.layers.MRRBank(16)(x)
        if kind == "banks":
            x = pnn.layers.MRRBank(16)(keras.layers.Activation("tanh")(x))
        x = keras.layers.Activation("tanh")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x), name=kind)


def cosine(trainer, chip, batch) -> float:
    """Returns the cosine between the source's gradient and the device's own."""
    wrt = trainer.model.trainable_variables

    def flat(gradients):
        return np.concatenate([np.ravel(g) for g in gradients])

    @tf.function(autograph=False)
    def found():
        return trainer.gradient(trainer, batch, Overrides(), wrt).gradients

    one = flat(found())
    with chip.installed(trainer.model), tf.GradientTape() as tape:
        logits = trainer.model(batch[0], training=True)
        loss = keras.losses.sparse_categorical_crossentropy(
            batch[1], logits, from_logits=True
        )
        loss = tf.reduce_mean(loss)
    other = flat(tape.gradient(loss, [v.value for v in wrt]))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def run(kind: str, source: str, rho: float, seed: int, data, args) -> dict:
    model = network(kind, seed, data.x_train)
    variation = pnn.Variation(**SPREAD[kind])
    (chip,) = variation.sample(model, 1, seed=100 + seed)
    trainer = pnn.SATModel(
        model,
        ascent=pnn.SAM(rho) if rho else None,
        device=chip,
        gradient=SOURCES[source](),
        seed=seed,
    )
    compiled(trainer, keras.optimizers.Adam(args.rate))
    trainer.optimizer.build(trainer.trainable_variables)
    x, y, held, wanted = data.x_train, data.y_train, data.x_test, data.y_test
    batch = (tf.constant(x[:64]), tf.constant(y[:64]), None)
    start = cosine(trainer, chip, batch)
    batches = pnn.datasets.Batches(x, y, args.batch, seed=seed)
    history = trainer.fit(
        batches, epochs=args.epochs, verbose=2, validation_data=(held, wanted)
    ).history
    end = cosine(trainer, chip, batch)
    compiled(model)
    devices = {
        "own": pnn.devices.DeviceSet([chip]),
        "unseen": variation.sample(model, args.unseen, seed=1),
    }
    accuracy = {
        name: pnn.evaluate_devices(model, held, wanted, found, verbose=0)["accuracy"]
        for name, found in devices.items()
    }
    return {
        "network": kind,
        "source": source,
        "rho": rho,
        "seed": seed,
        "epochs": args.epochs,
        "rate": args.rate,
        "batch": args.batch,
        "images": len(x),
        "cosine": [start, end],
        "accuracy": {name: (100 * a).tolist() for name, a in accuracy.items()},
        "measurements": [int(n) for n in history["measurements"]],
        "on device": [100 * a for a in history["val_accuracy"]],
    }


def until(found: dict, level: float) -> float:
    """Returns the measurements taken until the accuracy reached a level."""
    pairs = zip(found["measurements"], found["on device"], strict=True)
    return next((n for n, accuracy in pairs if accuracy >= level), np.inf)


def mean(values: list[float], digits: int = 1) -> str:
    """Returns the mean over seeds, ± the standard deviation if there are several."""
    shown = f"{np.mean(values):.{digits}f}"
    return shown + (f" ± {np.std(values):.{digits}f}" if len(values) > 1 else "")


def asked(values: list[float]) -> str:
    """Returns the mean over seeds; a dash if a seed did not reach the level."""
    return f"{np.mean(values):,.0f}" if np.isfinite(values).all() else "–"


def grouped(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Groups the runs of several seeds by (network, source, ρ)."""
    found: dict[tuple, list[dict]] = {}
    for r in runs:
        found.setdefault((r["network"], r["source"], r["rho"]), []).append(r)
    places = [*NETWORKS, *SOURCES]

    def order(key: tuple) -> list:
        return [places.index(key[0]), places.index(key[1]), key[2]]

    return {key: found[key] for key in sorted(found, key=order)}


def report(out: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    groups = grouped(runs)
    with open(out / "gradients.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADINGS)
        for (kind, source, rho), found in groups.items():
            unseen = [r["accuracy"]["unseen"] for r in found]
            table.writerow(
                [
                    kind,
                    source,
                    f"{rho:g}",
                    len(found),
                    *(mean([r["cosine"][i] for r in found], 2) for i in (0, 1)),
                    mean([r["accuracy"]["own"][0] for r in found]),
                    mean([np.mean(u) for u in unseen]),
                    mean([np.min(u) for u in unseen]),
                    *(asked([until(r, level) for r in found]) for level in (90, 95)),
                ]
            )
    print((out / "gradients.csv").read_text("utf-8"))
    kinds = [kind for kind in NETWORKS if any(k[0] == kind for k in groups)]
    figure, axes = plt.subplots(1, len(kinds), squeeze=False, sharey=True)
    figure.set_size_inches(5 * len(kinds), 4)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for (network, source, rho), found in groups.items():
            if network == kind:
                axis.plot(
                    found[0]["measurements"],
                    np.mean([r["on device"] for r in found], axis=0),
                    "--" if rho else "-",
                    color=f"C{list(SOURCES).index(source)}",
                    label=None if rho else source,
                )
        axis.set(xscale="log", title=kind, xlabel="measurements (settings × samples)")
        axis.legend(fontsize="x-small", title="dashed: with the ascent")
    axes[0, 0].set_ylabel("accuracy on the device (%)")
    figure.savefig(out / "gradients.png", bbox_inches="tight", dpi=150)


def main() -> None:
    args = arguments()
    if args.quick:
        args.out, args.epochs, args.unseen = args.out / "quick", 1, 2
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        data = pnn.datasets.load("digits")
        if args.quick:
            data = few(data, 128, 50)
        keys = itertools.product(args.networks, args.sources, args.rho, args.seeds)
        for kind, source, rho, seed in keys:
            if (kind, source) in LEFT_OUT:
                continue
            name = f"{kind}_{source.replace(' ', '_')}_rho{rho:g}_seed{seed}"
            path = args.out / f"run_{name}.json"
            setting = {
                "epochs": args.epochs,
                "rate": args.rate,
                "batch": args.batch,
                "images": len(data.x_train),
            }
            if not kept(path, **setting):
                print(name)
                keep(path, run(kind, source, rho, seed, data, args))
                keras.utils.clear_session()
    report(args.out)


if __name__ == "__main__":
    main()
