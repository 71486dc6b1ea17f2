"""Time steps with eq. 5, and compare finite differences with the loss's derivative.

The network is the paper's free-space network 784–144–10, at batch 64. First, training
steps are timed in turn, as ratios to the plain step: SAT on the masks, and SAT with a
shared rotation, shift in y and scale by central differences (six extra forward passes).
Each time is from a `fit` of 50 steps, whose start-up takes a few per cent. Then, on
every batch of a training with SAT for rotation, the sign of dL/d(rotation) from central
differences of several step sizes is compared with automatic differentiation.

    python benchmarks/misalignment.py
    python benchmarks/misalignment.py --steps 100 --rounds 5
"""

import argparse
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import find
from keras_pnn.training.gradients.base import ModelGradient

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper"))
from shared import free_space, standardized

RULES = {
    "rotation": pnn.FiniteDifference(radius=1.0, step=0.5),
    "shift": pnn.FiniteDifference(radius=(1.0, 0.0), step=0.5),
    "scale": pnn.FiniteDifference(radius=0.05, step=0.01),
}
# In degrees.
DIFFERENCES = (0.05, 0.1, 0.25, 0.5, 1.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-round", type=int, default=50)
    parser.add_argument("--steps", type=int, default=938)
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--data", default="auto")
    return parser.parse_args()


def compiled(model: keras.Model, jit_compile: bool) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, jit_compile=jit_compile)
    return model


def trainers() -> dict[str, keras.Model]:
    return {
        "plain": free_space(),
        "SAT": pnn.SATModel(free_space(), rho=0.3),
        "SAT, rotation": pnn.SATModel(
            free_space(), rho=0.3, adversarial={"rotation": RULES["rotation"]}
        ),
        "SAT, all three": pnn.SATModel(free_space(), rho=0.3, adversarial=RULES),
        "SAT, all three by autodiff": pnn.SATModel(
            free_space(),
            rho=0.3,
            adversarial={n: pnn.Autodiff(r.radius) for n, r in RULES.items()},
        ),
    }


def cost(x, y, jit_compile: bool, args) -> None:
    """Prints the median time of a step of each, and its ratio to the plain step."""
    models = {n: compiled(m, jit_compile) for n, m in trainers().items()}
    count = args.per_round * args.batch_size
    data = tf.data.Dataset.from_tensor_slices((x[:count], y[:count]))
    data = data.batch(args.batch_size, drop_remainder=True).cache()
    times = {name: [] for name in models}
    for _ in range(args.rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(data, verbose=0)
            times[name].append((time.perf_counter() - start) / args.per_round)
    plain = np.array(times["plain"][1:])
    for name, values in times.items():
        each = np.array(values[1:])
        ratio = each / plain
        low, high = np.percentile(ratio, (25, 75))
        extra = getattr(models[name], "extra_passes", 0)
        print(
            f"{name:28} {'XLA' if jit_compile else 'no XLA':7} "
            f"{1e3 * np.median(each):8.2f} ms {np.median(ratio):7.2f} "
            f"({low:.2f}-{high:.2f})   {extra} extra passes",
            flush=True,
        )


def agreement(x, y, args) -> None:
    """Prints on which share of steps both derivatives have the same sign."""
    rule = RULES["rotation"]
    trainer = compiled(
        pnn.SATModel(free_space(), rho=0.3, adversarial={"rotation": rule}), True
    )
    rotations = [q.variable for q in find(trainer, "rotation")]
    source = ModelGradient()

    @tf.function(jit_compile=True)
    def slopes(images, labels):
        batch = (images, labels, None)
        exact = source(trainer, batch, Overrides(), rotations).gradients

        def loss(angle):
            moved = Overrides((v, v + angle) for v in rotations)
            return source.loss(trainer, batch, moved)

        central = [(loss(d) - loss(-d)) / (2 * d) for d in DIFFERENCES]
        return [tf.add_n(exact), *central]

    batches = pnn.datasets.Batches(x, y, args.batch_size, seed=0)
    pairs = []
    for step in range(args.steps):
        images, labels = batches[step % len(batches)]
        pairs.append([float(s) for s in slopes(images, labels)])
        trainer.train_on_batch(images, labels)
    exact, *central = np.array(pairs).T
    print(f"\nrotation, {args.steps} steps of SAT: autodiff and central differences")
    for degrees, difference in zip(DIFFERENCES, central, strict=True):
        same = np.sign(exact) == np.sign(difference)
        print(
            f"of {degrees:5}°: one sign on {100 * same.mean():5.1f} % of batches, "
            f"correlation {np.corrcoef(exact, difference)[0, 1]:.3f}"
        )


def main() -> None:
    args = arguments()
    data = pnn.datasets.load(args.data)
    x, y = standardized(data.x_train), data.y_train
    for jit_compile in () if args.skip_cost else (False, True):
        cost(x, y, jit_compile, args)
    agreement(x, y, args)


if __name__ == "__main__":
    main()
