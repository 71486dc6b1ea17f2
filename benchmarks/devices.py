"""Time `evaluate_devices` on many devices against loops over the devices.

    pip install -e ".[benchmark]" && python benchmarks/devices.py

Prints a table and writes `results/benchmark_devices.json`. The networks are those of
`examples/paper/shared.py` with a mesh of 64 modes behind a digital front end
(`hybrid`) and with banks of microrings (`lenet5`), on 32, 100 and 1,000 devices. Each
round times in turn

- `model.evaluate` inside `device.installed(model)`, one device after the other, with
  `jit_compile` as Keras sets it and with `jit_compile=True`;
- the fairest loop: one `tf.function` of the model's `test_step`, compiled once, on
  tensors that are made once, without and with XLA;
- `evaluate_devices`: its first call, which traces and compiles, and later ones, which
  reuse the graph kept with the model.

The times of loops exclude compiling, and are scaled from a few devices to all. Ratios
are of medians over the rounds, against the fastest loop of each kind. Then the front
end and the matrices of the meshes are timed separately, for one pass of the hybrid
network over all images. `--memory` adds the peak memory for several limits, and the
growth of the process in 50 calls of `evaluate_devices`, each in a separate process
(Linux). The networks are not trained; this does not affect the times.
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
# Networks, and the spreads of their devices.
NETWORKS = {
    "hybrid": (hybrid, ERRORS),
    "lenet5": (lenet5, {"resonance_shift": 0.08}),
    "free_space": (free_space, {"rotation": 0.5, "shift": 0.5}),
}
LIMITS = (0.25, 0.5, 1.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", type=int, default=[32, 100, 1000])
    parser.add_argument(
        "--networks", nargs="+", default=["lenet5", "hybrid"], choices=NETWORKS
    )
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--batches", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-loop", type=int, default=5, help="devices in the loops")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--growth", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


def images_and_labels(count: int):
    """Returns test images of MNIST; random ones if there are fewer, or no MNIST."""
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


def evaluate_loop(model, data, batch: int):
    """Returns a loop of `evaluate` over devices."""

    def run(devices):
        for device in devices:
            with device.installed(model):
                model.evaluate(**data, batch_size=batch, verbose=0)

    return run


def step_loop(model, data, batch: int, **kwargs):
    """Returns a loop over devices that runs one compiled test step on ready tensors."""
    count = len(data["x"])
    batches = [
        tuple(tf.constant(data[name][i : i + batch]) for name in ("x", "y"))
        for i in range(0, count, batch)
    ]
    step = tf.function(model.test_step, **kwargs)

    def run(devices):
        for device in devices:
            with device.installed(model):
                model.reset_metrics()
                for one in batches:
                    found = step(one)
                float(found["accuracy"])

    return run


def ways(name: str, data, batch: int):
    """Returns the loops as functions of devices, and a function that draws devices."""
    network, spreads = NETWORKS[name]
    plain, xla = compiled(network()), compiled(network(), jit_compile=True)
    found = {
        "evaluate, jit_compile default": evaluate_loop(plain, data, batch),
        "evaluate, jit_compile XLA": evaluate_loop(xla, data, batch),
        "step, jit_compile default": step_loop(plain, data, batch),
        "step, jit_compile XLA": step_loop(plain, data, batch, jit_compile=True),
    }
    return found, lambda n: pnn.Variation(**spreads).sample(plain, n, seed=0)


def in_turn(args, data, name: str, batch: int):
    """Yields (name, figures) of one network and one batch size."""
    loops, drawn = ways(name, data, batch)
    few = drawn(args.in_loop)
    for run in loops.values():
        run(few[:1])
    at_once, first = {}, {}
    for count in args.devices:
        # A new model for each count, since graphs are kept with the model.
        model, devices = compiled(NETWORKS[name][0]()), drawn(count)

        def call(model=model, devices=devices):
            pnn.evaluate_devices(
                model, **data, devices=devices, batch_size=batch, verbose=0
            )

        first[count], at_once[count] = seconds(call), call
    times = {key: [] for key in (*loops, *at_once)}
    for _ in range(args.rounds):
        for kind, run in loops.items():
            times[kind].append(seconds(lambda run=run: run(few)) / len(few))
        for count, call in at_once.items():
            times[count].append(seconds(call))
    medians = {key: float(np.median(t)) for key, t in times.items()}
    title = f"{name}, batch {batch}"
    for kind in loops:
        yield f"{title}: {kind}, a device", {"s": medians[kind], "all": times[kind]}
    best = {
        way: min(medians[kind] for kind in loops if kind.startswith(way))
        for way in ("evaluate", "step")
    }
    for count in at_once:
        calls = {"first": first[count], "second": medians[count]}
        for which, value in calls.items():
            row = {"s": value, "all": times[count] if which == "second" else [value]}
            row |= {f"{way} /": count * s / value for way, s in best.items()}
            yield f"{title}: {count} devices, {which} call", row


def parts(args, data):
    """Yields (name, figures) of the parts of a pass over all images."""
    model = compiled(hybrid())
    layer = next(la for la in model.layers if isinstance(la, pnn.layers.MZIMesh))
    front = tf.function(keras.Model(model.inputs, layer.input), jit_compile=True)
    devices = pnn.Variation(**ERRORS).sample(model, 100, seed=0)
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
    """Returns an entry of the process's status in GiB."""
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    return int(next(r.split()[1] for r in status.splitlines() if key in r)) / 2**20


def peak(name: str, limit: float, batch: int) -> None:
    """Prints the memory that one chunk takes on top of that of the process."""
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
    """Prints the growth of the process in calls with new devices each time."""
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
    """Runs this script in a separate process, and returns its last line."""
    command = [sys.executable, __file__, *given]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def memory():
    """Yields (name, figures), each from a separate process."""
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
    print(f"{args.images} images")
    print(f"{'':56} {'s':>9} {'evaluate /':>10} {'step /':>8}", flush=True)
    results = {"images": args.images}
    for network in args.networks:
        for batch in args.batches:
            for name, row in in_turn(args, data, network, batch):
                results[name] = row
                ratios = "".join(
                    f" {row[key]:{width}.2f}"
                    for key, width in (("evaluate /", 10), ("step /", 8))
                    if key in row
                )
                print(f"{name:56} {row['s']:9.3f}{ratios}", flush=True)
    for name, row in parts(args, data) if "hybrid" in args.networks else ():
        results[name] = row
        print(f"{name:56} {row['s']:9.3f}", flush=True)
    for name, row in memory() if args.memory else ():
        results[name] = row
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_devices.json"
    path.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
