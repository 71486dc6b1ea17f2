"""What many devices cost: `evaluate_devices` against `evaluate` in a loop.

    pip install -e ".[benchmark]" && python benchmarks/devices.py

Prints a table and writes `results/benchmark_devices.json`: the hybrid network of
`examples/paper/shared.py`, a digital front end before a mesh of 64 modes, on 100
devices and 10,000 images. In turn, round by round,

- `model.evaluate` inside `device.installed(model)`, one device after the other, with
  `jit_compile` as Keras sets it and with `jit_compile=True`, in batches of 100 and of
  1,000. What it compiles is not counted. A few devices are timed, and the time is
  scaled to all.
- `evaluate_devices`, in the same batches. The first call compiles; the graph is kept
  with the model, and later calls use it again.

Ratios are of medians over the rounds, each against the fastest loop. Then, for one
pass over all images: the front end, and the matrices of the meshes, by themselves.
`--memory` adds the peak memory for several limits, and by how much the process grows
in 50 calls of `evaluate_devices`, each in a process of its own (Linux). The network
is not trained; times do not depend on it.
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
from keras_pnn.physics import mesh

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper"))
from shared import free_space, hybrid, lenet5, standardized

ERRORS = {"theta_error": 0.15, "phi_error": 0.15, "splitter_imbalance": 0.15}
# For the memory: a network and how its devices differ.
NETWORKS = {
    "hybrid": (hybrid, ERRORS),
    "lenet5": (lenet5, {"resonance_shift": 0.08}),
    "free_space": (free_space, {"rotation": 0.5, "shift": 0.5}),
}
LIMITS = (0.25, 0.5, 1.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--batches", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-loop", type=int, default=10, help="devices in the loop")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--growth", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


def images_and_labels(count: int):
    """Test images of MNIST; drawn ones where there are fewer, or no MNIST."""
    data = pnn.datasets.load(verbose=False)
    if data.name == "mnist" and len(data.x_test) >= count:
        return standardized(data.x_test[:count]), data.y_test[:count]
    generator = np.random.default_rng(0)
    images = generator.random((count, 28, 28, 1), dtype="float32")
    return images, generator.integers(0, 10, count)


def compiled(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], **kwargs)
    return model


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loop(model, data, devices, batch: int, count: int):
    """A loop over `count` devices."""

    def run():
        for device in devices[:count]:
            with device.installed(model):
                model.evaluate(**data, batch_size=batch, verbose=0)

    return run


def ways(args, data):
    """{name: (function, what its time is multiplied with)}, and the first calls."""
    found, first = {}, {}
    models = {
        "default": compiled(hybrid()),
        "XLA": compiled(hybrid(), jit_compile=True),
    }
    devices = pnn.Variation(**ERRORS).sample(models["default"], args.devices, seed=0)
    count = min(args.in_loop, args.devices)
    for jit, model in models.items():
        for batch in args.batches:
            name = f"loop, batch {batch}, jit_compile {jit}"
            # What is left over after whole batches is compiled as well.
            first[name] = seconds(loop(model, data, devices, batch, 1))
            run = loop(model, data, devices, batch, count)
            found[name] = run, args.devices / count
    model = models["default"]
    for batch in args.batches:

        def at_once(batch=batch):
            pnn.evaluate_devices(
                model, **data, devices=devices, batch_size=batch, verbose=0
            )

        name = f"evaluate_devices, batch {batch}"
        first[name] = seconds(at_once)
        found[name] = at_once, 1.0
    return found, first


def in_turn(args, data):
    """Yields (name, figures)."""
    found, first = ways(args, data)
    times = {name: [] for name in found}
    for _ in range(args.rounds):
        for name, (function, factor) in found.items():
            times[name].append(factor * seconds(function))
    medians = {name: float(np.median(t)) for name, t in times.items()}
    best = min(s for name, s in medians.items() if name.startswith("loop"))
    for name, value in medians.items():
        row = {"s": value, "ratio": best / value, "seconds": times[name]}
        yield name, {**row, "first_s": first.get(name, float("nan"))}


def parts(args, data):
    """Yields (name, figures) of what a pass over all images consists of."""
    model = compiled(hybrid())
    layer = next(la for la in model.layers if isinstance(la, pnn.layers.MZIMesh))
    front = tf.function(keras.Model(model.inputs, layer.input), jit_compile=True)
    devices = pnn.Variation(**ERRORS).sample(model, args.devices, seed=0)
    names = list(devices[0].deviations)
    errors = {n: tf.stack([d.deviations[n, i] for d in devices]) for n, i in names}
    phases = [tf.convert_to_tensor(v) for v in layer.controls.values()]

    @tf.function(jit_compile=True)
    def matrices(errors):
        return mesh.transfer_matrix(*phases, **errors)

    matrices(errors)
    for batch in args.batches:
        steps = range(0, args.images, batch)
        pieces = [tf.constant(data["x"][i : i + batch]) for i in steps]
        front(pieces[0]), front(pieces[-1])
        every = {
            "front end": lambda p=pieces: [front(x) for x in p][-1].numpy(),
            "matrices of the meshes, for each batch": lambda p=pieces: [
                matrices(errors) for _ in p
            ][-1].numpy(),
        }
        for name, function in every.items():
            value = float(np.median([seconds(function) for _ in range(args.rounds)]))
            yield f"{name}, batch {batch}", {"s": value}


def memory_now(key: str) -> float:
    """GiB from the process's status."""
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    return int(next(r.split()[1] for r in status.splitlines() if key in r)) / 2**20


def peak(name: str, limit: float, batch: int) -> None:
    """Prints what one chunk takes beside what the process had before."""
    network, spreads = NETWORKS[name]
    model = compiled(network())
    images = np.random.default_rng(0).random((batch, 28, 28, 1), dtype="float32")
    data = {"x": images, "y": np.arange(batch) % 10, "batch_size": batch}
    devices = pnn.Variation(**spreads).sample(model, 1000 if batch < 1000 else 600)
    warm = pnn.devices.DeviceEvaluator(model, **data, chunk=2)
    warm.evaluate(devices[:2], verbose=0)
    evaluator = pnn.devices.DeviceEvaluator(model, **data, memory_limit=limit)
    before = memory_now("VmRSS")
    next(evaluator.chunks(devices))
    figures = {
        "devices_at_once": evaluator.devices_at_once(devices),
        "peak_GiB": memory_now("VmHWM") - before,
        "process_GiB": memory_now("VmHWM"),
    }
    print(json.dumps(figures))


def growth(name: str, calls: int = 50) -> None:
    """Prints by how much the process grows in calls for ever other devices."""
    network, spreads = NETWORKS[name]
    model = compiled(network())
    images = np.random.default_rng(0).random((250, 28, 28, 1), dtype="float32")
    labels = np.arange(250) % 10

    def call(seed):
        variation = pnn.Variation(**spreads).scaled(1 + seed % 5)
        devices = variation.sample(model, 8, seed)
        pnn.evaluate_devices(model, images, labels, devices, verbose=0)

    call(0)
    before = memory_now("VmRSS")
    for seed in range(1, calls + 1):
        call(seed)
    print(json.dumps({"growth_MiB": 1024 * (memory_now("VmRSS") - before)}))


def alone(*given: str) -> dict:
    """Returns what this script prints in a process of its own."""
    command = [sys.executable, __file__, *given]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def memory():
    """Yields (name, figures), each from a process of its own."""
    for name in NETWORKS:
        for batch in (100, 1000):
            for limit in LIMITS:
                figures = alone("--peak", name, str(limit), str(batch))
                title = f"memory, {name}, limit {limit} GiB, batch {batch}"
                print(
                    f"{title}: {figures['devices_at_once']} devices at once, "
                    f"{figures['peak_GiB']:.2f} GiB",
                    flush=True,
                )
                yield title, figures
        figures = alone("--growth", name)
        title = f"memory, {name}, growth in 50 calls"
        print(f"{title}: {figures['growth_MiB']:.1f} MiB", flush=True)
        yield title, figures


def main() -> None:
    args = arguments()
    if args.peak:
        name, limit, batch = args.peak
        peak(name, float(limit), int(batch))
        return
    if args.growth:
        growth(args.growth)
        return
    x, y = images_and_labels(args.images)
    data = {"x": x, "y": y}
    print(f"{args.devices} devices, {args.images} images")
    print(f"{'':48} {'s':>9} {'ratio':>7} {'first, s':>9}", flush=True)
    results = {"devices": args.devices, "images": args.images}
    for name, row in in_turn(args, data):
        results[name] = row
        cells = f"{row['s']:9.2f} {row['ratio']:7.2f} {row['first_s']:9.2f}"
        print(f"{name:48} {cells}", flush=True)
    for name, row in parts(args, data):
        results[name] = row
        print(f"{name:48} {row['s']:9.2f}", flush=True)
    for name, row in memory() if args.memory else ():
        results[name] = row
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_devices.json"
    path.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
