"""Train on measured curves of four rings, and on coarser descriptions of them.

The network is that of the quickstart, with weight k on measured ring k mod 4. It is
trained with the rings described in three ways:

- `published`: one published curve for all rings,
- `offset`: the published curve, shifted by a fitted offset for each ring,
- `measured`: the four measured curves,

and by four methods: plainly, by SAT, among random chips, and by SAT among random chips.
The currents are then applied to a simulated bench, whose rings follow the measured
curves, at several temperatures.

    python examples/paper/measured_rings.py --folder rings      # hours
    python examples/paper/measured_rings.py --folder rings --known measured
    python examples/paper/measured_rings.py --folder rings --curves   # no training
    python examples/paper/measured_rings.py --quick             # synthetic rings

The folder has one CSV file for each ring, `ring_*.csv`, and one for the published
curve, `model_curve.csv`. Each has two columns, the heater's current in mA and the
weight from -1 to 1, with the header `current_mA,weight`, currents increasing from 0.
Without a folder, four synthetic rings take their place.

The half-width of the published curve (`--half-width`, in nm) sets the scale of the
shifts in nm that heaters and temperature cause. Each run is kept as JSON in the output
folder and not repeated; `--report` prints the kept runs, and writes them to
`measured_rings.csv`.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from keras import layers
from shared import compiled, few, fit, keep, kept
from tensorflow_probability import distributions as tfd

import keras_pnn as pnn

TEMPERATURES = (-1.0, -0.6, 0.0, 0.5, 0.7, 0.9, 1.0)  # K
KNOWN = ("published", "offset", "measured")
METHODS = {
    "plain": "plain",
    "sat": "SAT",
    "random": "random chips",
    "both": "SAT and random chips",
}
SENSITIVITY = 0.08  # nm/K
# Largest change of temperature and shift in training; ROOM covers both.
WARMING, SHIFT, ROOM = 1.0, 0.02, 0.102  # K, nm, nm


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="measured curves")
    parser.add_argument("--known", nargs="+", choices=KNOWN, default=list(KNOWN))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=60000)
    parser.add_argument("--half-width", type=float, default=0.077, help="nm")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--curves", action="store_true", help="only their errors")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/measured_rings")
    )
    return parser.parse_args()


def read(path: pathlib.Path) -> np.ndarray:
    """Returns an array (points, 2) of currents in mA and weights."""
    return np.loadtxt(path, delimiter=",", skiprows=1)


def synthetic() -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns a published curve, and four curves of rings with noise of 0.004."""
    rng = np.random.default_rng(0)
    current = np.linspace(0, 5, 121)

    def curve(offset, half_width, noise):
        tuning = pnn.HeaterTuning(offset, half_width, efficiency=0.047)
        weight = np.asarray(tuning.weight(current))
        return np.stack([current, weight + noise * rng.normal(size=121)], axis=1)

    shapes = (-0.36, 0.08), (-0.34, 0.07), (-0.29, 0.08), (-0.28, 0.075)
    return curve(-0.28, 0.077, 0.0), [curve(*shape, 0.004) for shape in shapes]


class Rings:
    """Four rings as measured, and as each training describes them.

    Args:
        published: the published curve, (points, 2): currents in mA, and weights.
        curves: the measured curve of each ring, likewise.
        half_width: half-width of the published curve, in nm.

    Attributes:
        tunings: tuning by name of the description.
        errors: root mean square error of the weight for each ring, up to its highest
            current, by the same names, for measured curves without continuation
            ("measured, as swept"), and for fitted Lorentzians ("physical").
        limits: range of currents that keeps the rings on their curves, in mA.
    """

    def __init__(self, published, curves: list, half_width: float):
        model = pnn.HeaterTuning.fit(*published.T, half_width=half_width).tuning
        self.efficiency = model.efficiency
        # nm/mA²
        self._room = model.efficiency * model.resistance / 1000
        top = min(points[-1, 0] for points in curves)
        self.limits = float(np.sqrt(ROOM / self._room)), float(top)
        fits = [
            pnn.HeaterTuning.fit(*points.T, efficiency=model.efficiency).tuning
            for points in curves
        ]
        self.tunings = {
            "published": pnn.RingTunings([moved(model, 0.0)]),
            "offset": pnn.RingTunings([nearest(model, points) for points in curves]),
            "measured": pnn.RingTunings(
                [self._measured(*pair) for pair in zip(curves, fits, strict=True)]
            ),
        }
        swept = [pnn.MeasuredTuning(*points.T, "mA") for points in curves]
        rings = {
            **self.tunings,
            "measured, as swept": pnn.RingTunings(swept),
            "physical": pnn.RingTunings(fits),
        }
        self.errors = {
            name: [
                error(tuning.tunings[i % tuning.tunings.size], points)
                for i, points in enumerate(curves)
            ]
            for name, tuning in rings.items()
        }

    def _measured(self, points: np.ndarray, fitted: pnn.HeaterTuning):
        """Continues a measured curve by its Lorentzian, as far as rings are warmed.

        It ends somewhat later: the ascent moves the currents of a warm chip further.
        """
        current, weight = points.T
        end = np.sqrt(self.limits[1] ** 2 + 1.3 * ROOM / self._room)
        more = np.arange(current[-1], end, np.diff(current).mean())[1:]
        more = np.append(more, end) if current[-1] < end else more
        step = weight[-3:].mean() - np.mean(fitted.weight(current[-3:]))
        weight = np.append(weight, np.asarray(fitted.weight(more)) + step)
        return pnn.MeasuredTuning(
            np.append(current, more),
            weight,
            "mA",
            efficiency=self.efficiency,
            margin=ROOM,
            extend_below=True,
        )


def moved(tuning: pnn.HeaterTuning, offset: float) -> pnn.HeaterTuning:
    """Returns a tuning with its offset moved and without a limit of the current."""
    config = {**tuning.get_config(), "max_current": None}
    return pnn.HeaterTuning(**{**config, "offset": tuning.offset + offset})


def nearest(tuning: pnn.HeaterTuning, points: np.ndarray) -> pnn.HeaterTuning:
    """Returns the tuning whose offset fits a measured curve best."""
    tried = [moved(tuning, offset) for offset in np.arange(-0.3, 0.3, 0.0005)]
    return min(tried, key=lambda tuning: error(tuning, points))


def error(tuning: pnn.Tuning, points: np.ndarray) -> float:
    """Returns the root mean square error of the weight over a measured curve."""
    current, weight = points.T
    return float(np.sqrt(np.mean((np.asarray(tuning.weight(current)) - weight) ** 2)))


def lenet5(tuning: pnn.Tuning, limits: tuple[float, float], seed: int = 0):
    """Returns the network of the quickstart."""
    keras.utils.set_random_seed(seed)
    bank = {
        "tuning": tuning,
        "control_constraint": pnn.layers.ControlRange(*limits),
        "temperature_sensitivity": SENSITIVITY,
    }

    def normalized(x):
        x = x - keras.ops.mean(x, axis=-1, keepdims=True)
        return layers.ReLU()(layers.GroupNormalization(groups=1)(x))

    inputs = keras.Input((28, 28, 1))
    x = normalized(pnn.layers.MRRConv2D(6, 5, padding="same", **bank)(inputs))
    x = layers.MaxPooling2D()(x)
    x = normalized(pnn.layers.MRRConv2D(16, 5, **bank)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = normalized(pnn.layers.MRRBank(120, **bank)(x))
    x = normalized(pnn.layers.MRRBank(84, **bank)(x))
    return keras.Model(inputs, pnn.layers.MRRBank(10, **bank)(x), name="lenet5")


def trainer(method: str, network: keras.Model, ramp: int, seed: int) -> keras.Model:
    """Returns the trainer; random chips and ascent grow over `ramp` steps."""
    if method == "plain":
        return network
    noise = None
    if method != "sat":
        noise = pnn.Variation(
            resonance_shift=tfd.Uniform(-SHIFT, SHIFT),
            temperature=tfd.Uniform(-WARMING, WARMING),
        )
    ascent = None if method == "random" else pnn.ASAM(0.5)
    return pnn.SATModel(network, ascent=ascent, variation=noise, warmup=ramp, seed=seed)


def run(rings: Rings, known: str, method: str, seed: int, data, epochs: int) -> dict:
    batches = pnn.datasets.Batches(data.x_train, data.y_train, 128, seed=seed)
    network = lenet5(rings.tunings[known], rings.limits, seed)
    steps = epochs * len(batches)
    model = trainer(method, network, steps // 2, seed)
    decay = keras.optimizers.schedules.CosineDecay(0.01, steps)
    start = time.perf_counter()
    fit(compiled(model, keras.optimizers.Adam(decay)), batches, epochs)
    seconds = time.perf_counter() - start
    bench = compiled(lenet5(rings.tunings["measured"], rings.limits))
    bench.set_weights(network.get_weights())
    test = data.x_test, data.y_test
    warm = pnn.devices.sweep(bench, "temperature", TEMPERATURES)
    found = pnn.evaluate_devices(bench, *test, warm, verbose=0)["accuracy"]
    own = compiled(network).evaluate(*test, verbose=0)[1]
    return {
        "known": known,
        "method": method,
        "seed": seed,
        "seconds": seconds,
        "in_its_model": 100 * own,
        "bench": (100 * found).tolist(),
    }


def report(out: pathlib.Path) -> None:
    """Prints the kept runs, and writes them as a table."""
    runs = [json.loads(p.read_text("utf-8")) for p in sorted(out.glob("run_*.json"))]
    heads = [f"{t:+g} K" if t else "0 K" for t in TEMPERATURES]
    lines = [",".join(["rings known by", "training", "seeds", "in its model", *heads])]
    for known in KNOWN:
        for method, words in METHODS.items():
            mine = [r for r in runs if (r["known"], r["method"]) == (known, method)]
            if mine:
                figures = [[r["in_its_model"], *r["bench"]] for r in mine]
                cells = [f"{value:.1f}" for value in np.mean(figures, axis=0)]
                lines.append(",".join([known, words, str(len(mine)), *cells]))
    print(*lines, sep="\n")
    (out / "measured_rings.csv").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    args = arguments()
    if args.quick:
        args.out = args.out / "quick"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        if args.folder:
            names = sorted(args.folder.glob("ring_*.csv"))
            curves = [read(path) for path in names]
            published = read(args.folder / "model_curve.csv")
        else:
            published, curves = synthetic()
        rings = Rings(published, curves, args.half_width)
        print(f"{rings.efficiency:.4f} nm/mW, currents {rings.limits} mA")
        heads = ",".join(f"ring {i}" for i in range(len(curves)))
        lines = [f"weight error (rms),{heads}"]
        for name, errors in rings.errors.items():
            lines.append(",".join([f'"{name}"', *(f"{e:.4f}" for e in errors)]))
        print(*lines, sep="\n")
        text = "\n".join(lines) + "\n"
        (args.out / "measured_rings_curves.csv").write_text(text, "utf-8")
        if args.curves:
            return
        data = pnn.datasets.load(args.data).head(args.images, 10000)
        if args.quick:
            data, args.epochs = few(data), 1
        for seed in args.seeds:
            for known in args.known:
                for method in args.methods:
                    path = args.out / f"run_{known}_{method}_{seed}.json"
                    setting = {
                        "epochs": args.epochs,
                        "data": data.name,
                        "images": len(data.x_train),
                        "half_width": args.half_width,
                    }
                    if not kept(path, **setting):
                        print(f"\n{known}, {METHODS[method]}; seed {seed}")
                        found = run(rings, known, method, seed, data, args.epochs)
                        keep(path, {**setting, **found})
                        # Otherwise the graphs of all runs stay in memory.
                        keras.utils.clear_session()
    report(args.out)


if __name__ == "__main__":
    main()
