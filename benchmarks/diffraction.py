"""Time a stack of masks in free space, forward and backward.

    python benchmarks/diffraction.py
    python benchmarks/diffraction.py --torchoptics ../other/bin/python

For each size of the plane, it times gradients with respect to all phases of a
periodic stack of masks, five by default, each behind 2 mm of free space,

- through `FreeSpace` and `PhaseMask`,
- for the necessary Fourier transforms alone, two for each plane and direction,
- with `--torchoptics`, through that package in its own environment, whose Python this
  program starts and asks for one run at a time. torchoptics computes in double
  precision; `--double` does so here too.

Programs are timed in turn, and a ratio is the median over rounds, so that drifts of the
machine's speed cancel. Their results are compared first.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

DISTANCE, WAVELENGTH, PITCH = 2e-3, 532e-9, 2e-6


def problem(n: int, batch: int, planes: int):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, batch, n, n)).astype("float32") / n
    phases = rng.uniform(0, 2 * np.pi, (planes, n, n)).astype("float32")
    return parts[0] + 1j * parts[1], phases


def worker(n: int, batch: int, planes: int) -> None:
    """Runs torchoptics once per line of input; prints seconds, light and a norm."""
    import torch
    from torchoptics import Field
    from torchoptics.elements import PhaseModulator

    fields, phases = problem(n, batch, planes)
    fields = torch.tensor(fields)
    phases = [torch.nn.Parameter(torch.tensor(p)) for p in phases]
    masks = [
        PhaseModulator(phase, z=(i + 1) * DISTANCE, spacing=PITCH)
        for i, phase in enumerate(phases)
    ]
    for _ in sys.stdin:
        start = time.perf_counter()
        field = Field(fields, WAVELENGTH, z=0, spacing=PITCH)
        for mask in masks:
            field = field.propagate_to_z(
                float(mask.z), propagation_method="ASM", asm_pad=0
            )
            field = mask(field)
        light = (field.data.abs() ** 2).square().sum()
        own = [getattr(mask, "phase", None) for mask in masks]
        slopes = torch.autograd.grad(light, [p for p in own if p is not None])
        seconds = time.perf_counter() - start
        print(seconds, light.item(), slopes[0].norm().item(), flush=True)


def programs(n: int, batch: int, planes: int, double: bool):
    """Returns our stack and the transforms alone, as functions without arguments."""
    import keras
    import tensorflow as tf

    from keras_pnn.layers import FreeSpace, PhaseMask

    fields, phases = problem(n, batch, planes)
    kind, own = ("complex128", "float64") if double else ("complex64", "float32")
    fields = tf.constant(fields, kind)
    layers = [keras.Input(fields.shape[1:], dtype=kind)]
    for phase in phases:
        start = keras.initializers.Constant(phase)
        mask = PhaseMask(phase_initializer=start, dtype=own)
        space = FreeSpace(DISTANCE, band_limit=False, padding=0, dtype=own)
        layers += [space, mask]
    stack = keras.Sequential(layers)
    variables = [v.value for v in stack.trainable_variables]

    @tf.function
    def ours():
        with tf.GradientTape() as tape:
            outputs = stack(fields)
            light = tf.reduce_sum(
                (tf.math.real(outputs) ** 2 + tf.math.imag(outputs) ** 2) ** 2
            )
        return light, tf.norm(tape.gradient(light, variables)[0])

    @tf.function
    def transforms():
        values = fields
        for _ in range(2 * planes):
            values = tf.signal.ifft2d(tf.signal.fft2d(values))
        return values

    return ours, transforms


def timed(run) -> float:
    start = time.perf_counter()
    run()[0].numpy()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--planes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--double", action="store_true", help="complex128")
    parser.add_argument("--torchoptics", metavar="PYTHON")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.batch_size, args.planes)
        return
    for n in args.sizes:
        ours, transforms = programs(n, args.batch_size, args.planes, args.double)
        answers = [float(v) for v in ours()]
        transforms()
        other = None
        if args.torchoptics:
            command = [args.torchoptics, __file__, "--worker", n]
            command += ["--batch-size", args.batch_size, "--planes", args.planes]
            other = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

        def ask(other=other):
            other.stdin.write("\n")
            other.stdin.flush()
            return [float(v) for v in other.stdout.readline().split()]

        if other:
            theirs = ask()[1:]
            np.testing.assert_allclose(answers, theirs, rtol=2e-3)
        times = {"ours": [], "transforms": [], "torchoptics": []}
        for _ in range(args.rounds):
            times["ours"].append(timed(ours))
            times["transforms"].append(timed(transforms))
            if other:
                times["torchoptics"].append(ask()[0])
        if other:
            other.stdin.close()
            other.wait()
        found = {"pixels": n, "ms": 1e3 * float(np.median(times["ours"]))}
        for name in ("transforms", "torchoptics"):
            if times[name]:
                ratios = np.array(times["ours"]) / times[name]
                found[f"ours / {name}"] = float(np.median(ratios))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
