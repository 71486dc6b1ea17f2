"""Time an MZI mesh, forward and backward, as ratios in one run.

    pip install -e ".[benchmark]" && python benchmarks/mesh.py
    TF_USE_LEGACY_KERAS=1 python benchmarks/mesh.py --modes 64 --neurophox --memory

Prints a table and writes `results/benchmark_mesh.json`. For each number of modes and
each batch size, gradients with respect to all phases and the fields are taken

- through `MZIMesh`,
- through a dense complex matrix of the same size,
- through the mesh column by column, the simplest program.

`--neurophox` adds the mesh layer of that package (`pip install neurophox`), which needs
tf_keras and `TF_USE_LEGACY_KERAS=1` in the environment; if it is missing, a line says
so. Then 100 devices of one mesh at once are timed against a loop over them.

Programs are timed in turn, A B A B …, and a ratio is the median over rounds, so that
drifts of the machine's speed cancel. First calls, which trace and compile, are reported
separately. `--memory` runs each size in a separate process and reports its peak memory
(Linux).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.physics import interferometer, mesh


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128, 500, 6000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--modes-of-columns", type=int, default=256)
    parser.add_argument("--neurophox", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


class Dense(keras.layers.Layer):
    """A dense complex matrix, stored as two real ones."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        size = (shape[-1], self.units)
        self.real, self.imag = (self.add_weight(shape=size) for _ in range(2))

    def call(self, x):
        return tf.matmul(x, tf.complex(self.real.value, self.imag.value))


def by_columns(theta, phi, fields):
    """Propagates fields (batch, modes) column by column; `modes` must be even."""
    modes = fields.shape[-1]
    cells = interferometer.transfer_matrix(theta, phi)
    fields = tf.transpose(fields)
    for column in range(theta.shape[0]):
        odd = column % 2
        inner = fields[odd : modes - odd]
        count = inner.shape[0] // 2
        pairs = tf.reshape(inner, [count, 2, -1])
        inner = tf.reshape(tf.matmul(cells[column, :count], pairs), inner.shape)
        fields = tf.concat([fields[:odd], inner, fields[modes - odd :]], 0)
    return tf.transpose(fields)


class Columns(pnn.layers.MZIMesh):
    """An ideal rectangular mesh as a loop over its columns."""

    def forward(self, inputs, controls, imperfections):
        gamma = controls["gamma"]
        fields = inputs * tf.complex(tf.cos(gamma), tf.sin(gamma))
        return by_columns(controls["theta"], controls["phi"], fields)


def gradients(layer, x, jit: bool):
    """Returns a function that runs forward and backward, and waits for the result."""
    layer.build(x.shape)
    variables = [v.value for v in layer.trainable_variables]

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.math.real(y) * tf.math.imag(y))
        return tape.gradient(loss, [x, *variables])

    return lambda: [g.numpy() for g in step(x)]


def fields(batch: int, modes: int):
    generator = np.random.default_rng(0)
    parts = generator.standard_normal((2, batch, modes), dtype="float32")
    return tf.complex(*parts / np.float32(np.sqrt(modes)))


def in_turn(functions: dict, rounds: int) -> dict[str, dict]:
    """Returns each one's median time in ms, and median ratio to the first function."""
    first = {}
    for name, function in functions.items():
        start = time.perf_counter()
        function()
        first[name] = time.perf_counter() - start
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    table = {}
    for name in functions:
        ratios = np.array(times[name]) / np.array(times[next(iter(functions))])
        table[name] = {
            "ms": 1e3 * float(np.median(times[name])),
            "ratio": float(np.median(ratios)),
            "ratio_quartiles": np.percentile(ratios, (25, 75)).tolist(),
            "first_s": first[name],
        }
    return table


def neurophox(modes: int, x):
    """Returns neurophox's mesh layer, forward and backward, or None without it."""
    try:
        from neurophox.tensorflow import RM
    except Exception as error:
        print(f"neurophox is left out: {type(error).__name__}: {error}", flush=True)
        return None
    layer = RM(modes)
    layer(x)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.math.real(y) * tf.math.imag(y))
        return tape.gradient(loss, [x, *layer.trainable_variables])

    return lambda: [g.numpy() for g in step(x) if g is not None]


def sizes(args):
    """Yields (name, figures) of single meshes."""
    for modes in args.modes:
        for batch in args.batches:
            x = fields(batch, modes)
            for jit in (False, True):
                functions = {
                    "dense": gradients(Dense(modes), x, jit),
                    "mesh": gradients(pnn.layers.MZIMesh(modes), x, jit),
                }
                if modes <= args.modes_of_columns and not jit:
                    functions["columns"] = gradients(Columns(modes), x, jit)
                    if args.neurophox:
                        other = neurophox(modes, x)
                        functions.update({"neurophox": other} if other else {})
                mode = "XLA" if jit else "no XLA"
                rounds = args.rounds if modes * batch < 10**6 else 5
                for name, row in in_turn(functions, rounds).items():
                    yield f"{name}, {modes} modes, batch {batch}, {mode}", row


def devices(count: int = 100, modes: int = 64, samples: int = 500):
    """Yields (name, figures) of many devices, at once and one after the other."""
    inputs = keras.Input((modes,))
    layer = pnn.layers.MZIMesh(modes)
    model = keras.Model(inputs, pnn.layers.Photodetector()(layer(inputs)))
    model.compile(loss="mse")
    population = pnn.Variation(splitter_error=0.1).sample(model, count, seed=0)
    errors = [d.deviations["splitter_error", 0] for d in population]
    errors = tf.constant(np.stack(errors))
    phases = [v.value for v in layer.controls.values()]
    x = np.random.default_rng(0).normal(size=(samples, modes)).astype("float32")

    def program(batch, with_gradients, jit):
        def outputs(error):
            y = mesh.propagate(x[:batch], *phases, splitter_error=error)
            return tf.reduce_sum(tf.math.real(y) * tf.math.imag(y))

        def gradient(error):
            with tf.GradientTape() as tape:
                tape.watch(phases)
                total = outputs(error)
            return tape.gradient(total, phases)[0]

        return tf.function(gradient if with_gradients else outputs, jit_compile=jit)

    programs = {
        f"{what}, batch {batch}, {'XLA' if jit else 'no XLA'}": program(
            batch, what == "gradients", jit
        )
        for what in ("outputs", "gradients")
        for batch in (1, samples)
        for jit in (False, True)
    }
    pairs = {
        name: (
            lambda f=function: f(errors).numpy(),
            lambda f=function: [f(e).numpy() for e in errors],
        )
        for name, function in programs.items()
    }

    def loop():
        for device in population:
            with device.installed(model):
                model.evaluate(x, x, verbose=0)

    def installed():
        for device in population:
            with device.installed(model), tf.GradientTape() as tape:
                y = layer(x)
                total = tf.reduce_sum(tf.math.real(y) * tf.math.imag(y))
            tape.gradient(total, phases)[0].numpy()

    at_once, _ = pairs[f"gradients, batch {samples}, no XLA"]
    pairs[f"gradients, batch {samples}, loop not compiled"] = at_once, installed
    together = {"x": x, "y": x, "devices": population, "verbose": 0}
    pairs["loop: model.evaluate, at once: evaluate_devices"] = (
        lambda: pnn.evaluate_devices(model, **together),
        loop,
    )
    for name, (at_once, one_by_one) in pairs.items():
        table = in_turn({"at once": at_once, "loop": one_by_one}, 3)
        row = {
            "ms": table["loop"]["ms"],
            "ratio": table["loop"]["ratio"],
            "first_s": table["at once"]["first_s"],
        }
        yield f"{count} devices, loop / at once: {name}", row


def peak(modes: int, batch: int) -> None:
    """Trains one mesh for three steps, and prints the peak memory of the process."""
    inputs = keras.Input((modes,))
    outputs = pnn.layers.Photodetector()(pnn.layers.MZIMesh(modes)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(3 * batch, modes)).astype("float32")
    model.fit(x, np.ones_like(x), batch_size=batch, verbose=0)
    # `getrusage` would include the memory of the parent process.
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    kilobytes = next(r.split()[1] for r in status.splitlines() if "VmHWM" in r)
    print(json.dumps({"peak_GB": int(kilobytes) / 1e6}))


def memory(args):
    for modes in args.modes:
        command = [sys.executable, __file__, "--peak", str(modes), "128"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(run.stdout.splitlines()[-1])
        print(
            f"{modes} modes, batch 128, three steps of fit: peak of the process "
            f"{figures['peak_GB']:.2f} GB",
            flush=True,
        )
        yield f"memory, {modes} modes, batch 128", figures


def main() -> None:
    args = arguments()
    if args.peak:
        peak(*args.peak)
        return
    print(f"{'':70} {'ms':>9} {'ratio':>9} {'first, s':>9}", flush=True)
    results = {}
    for part in (sizes(args), devices()):
        for name, row in part:
            results[name] = row
            print(
                f"{name:70} {row['ms']:9.2f} {row['ratio']:9.2f} {row['first_s']:9.2f}",
                flush=True,
            )
    if args.memory:
        results.update(memory(args))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_mesh.json"
    path.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
