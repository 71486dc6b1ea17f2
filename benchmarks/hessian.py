"""Compare the cost of curvature with PyHessian, SciPy, and a gradient.

The loss is that of LeNet-5 (tanh, average pooling), trained for an epoch on MNIST, on
the first test images in one batch, in float32. Figures are medians over rounds:

- the time of the largest eigenvalue, or of `--top` eigenvalues, PyHessian's over ours,
  with the same weights and images, in turn within each round. PyHessian's power
  iteration stops when its eigenvalue changes little; its tolerance is reduced by
  factors of ten until the residual ‖Hv − λv‖ / |λ| of its answer, from one more
  product, is at most `--tolerance`, as ours is. A time is that of one call on a ready
  model; ours is given with and without building its graph;
- the time of a Hessian-vector product over that of a gradient, both from NumPy to
  NumPy.

PyHessian and PyTorch are imported if installed; otherwise name the Python of an
environment that has them, which then runs as a second process:

    python -m venv torch && torch/bin/pip install torch pyhessian numpy
    python benchmarks/hessian.py --torch-python torch/bin/python

Without either, the comparison is left out. Instead of these times,

    python benchmarks/hessian.py --arpack

counts the Hessian-vector products that our Lanczos solver and SciPy's `eigsh` (ARPACK)
need for LeNet-5 on microring banks (five epochs on scikit-learn's digits, 100 of its
test images, controls only; two runs of `eigsh` for both ends of the spectrum), and how
often each finds all copies of repeated eigenvalues of matrices of order 200. Tolerances
are relative residuals, counts are medians over seeds.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

TOLERANCES = [10.0**-n for n in range(3, 9)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--top", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--torch-python", default=None)
    parser.add_argument("--arpack", action="store_true")
    parser.add_argument("--serve", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def lenet():
    import keras

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(6, 5, padding="same", activation="tanh"),
            keras.layers.AveragePooling2D(2),
            keras.layers.Conv2D(16, 5, activation="tanh"),
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(120, activation="tanh"),
            keras.layers.Dense(84, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )


def torch_lenet(weights: list[np.ndarray]):
    """Returns the same network in PyTorch, with the weights from Keras."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )
    # Keras flattens (5, 5, 16) with channels last, PyTorch (16, 5, 5).
    order = np.arange(400).reshape(5, 5, 16).transpose(2, 0, 1).ravel()
    values = []
    for value in weights:
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.shape == (400, 120):
            value = value[order].T
        elif value.ndim == 2:
            value = value.T
        values.append(np.ascontiguousarray(value))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model


def serve(path: str) -> None:
    """Runs PyHessian once per line of input, and prints a line of JSON."""
    import torch
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with np.load(path) as file:
        weights = [file[f"w{i}"] for i in range(10)]
        x = torch.from_numpy(file["x"].transpose(0, 3, 1, 2).copy())
        y = torch.from_numpy(file["y"].astype("int64"))
    model = torch_lenet(weights).eval()
    criterion = torch.nn.CrossEntropyLoss()
    for line in sys.stdin:
        asked = json.loads(line)
        torch.manual_seed(asked["seed"])
        start = time.perf_counter()
        found = hessian(model, criterion, data=(x, y), cuda=False)
        values, vectors = found.eigenvalues(
            maxIter=asked["steps"], tol=asked["tolerance"], top_n=asked["top"]
        )
        seconds = time.perf_counter() - start
        residuals = []
        for value, vector in zip(values, vectors, strict=True):
            image = hessian_vector_product(found.gradsH, found.params, vector)
            pairs = zip(image, vector, strict=True)
            squares = sum(float(((h - value * v) ** 2).sum()) for h, v in pairs)
            residuals.append(squares**0.5 / abs(value))
        loss = criterion(model(x), y).item()
        answer = {"seconds": seconds, "values": values, "loss": loss}
        print(json.dumps({**answer, "residual": max(residuals)}), flush=True)


class Torch:
    """PyHessian in a separate process."""

    def __init__(self, python, path):
        command = [python, __file__, "--serve", path]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, tolerance, top, seed, steps=2000):
        question = {"tolerance": tolerance, "top": top, "seed": seed, "steps": steps}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("PyHessian stopped: see its message above.")
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def torch_python(given) -> str | None:
    if given is not None:
        return given
    names = ("torch", "pyhessian")
    there = all(importlib.util.find_spec(name) is not None for name in names)
    return sys.executable if there else None


def timed(function) -> tuple[float, object]:
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def compare(options, torch, operator, fresh) -> None:
    import keras_pnn as pnn

    def search(seed):
        return operator.eigenvalues(options.top, options.tolerance, seed=seed)

    def residual(result):
        return float((result.residuals / np.abs(result.eigenvalues)).max())

    # Builds the graph.
    search(0)
    for tolerance in TOLERANCES:
        answer = torch.ask(tolerance, options.top, 0)
        print(
            f"  PyHessian at tolerance {tolerance:g}: residual "
            f"{answer['residual']:.1e}, {answer['seconds']:.2f} s"
        )
        if answer["residual"] <= options.tolerance:
            break
    else:
        print("  (no tolerance reaches the residual; times are at the last)")
    rows = []
    for seed in range(options.rounds):
        theirs = torch.ask(tolerance, options.top, seed)
        warm, found = timed(lambda seed=seed: search(seed))
        cold, _ = timed(
            lambda seed=seed: pnn.hessian_eigenvalues(
                *fresh,
                options.top,
                "all",
                options.samples,
                None,
                options.tolerance,
                seed=seed,
            )
        )
        rows.append((theirs["seconds"], warm, cold, theirs["residual"]))
        rows[-1] += (residual(found), found.iterations)
    theirs, warm, cold, their_residual, our_residual, products = np.array(rows).T
    print(
        f"loss {operator.loss:.6f} and {answer['loss']:.6f}; eigenvalues "
        f"{found.eigenvalues.round(4).tolist()} and {np.round(answer['values'], 4)}"
    )
    print(
        f"relative residual, medians: ours {np.median(our_residual):.1e} in "
        f"{np.median(products):.0f} products, PyHessian's "
        f"{np.median(their_residual):.1e}"
    )
    print(
        f"seconds, median of {options.rounds}: PyHessian {np.median(theirs):.3f}, ours "
        f"{np.median(warm):.3f}, with building the graph {np.median(cold):.3f}"
    )
    for name, ours in (("", warm), (" with building the graph", cold)):
        ratios = theirs / ours
        print(
            f"PyHessian / ours{name}: {np.median(ratios):.1f} "
            f"({ratios.min():.1f} to {ratios.max():.1f})"
        )


def product_cost(options, model, operator, x, y) -> None:
    import tensorflow as tf

    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def gradient(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        parts = tape.gradient(loss, variables)
        return loss, tf.concat([tf.reshape(part, [-1]) for part in parts], 0)

    def gradients():
        loss, flat = gradient(tf.convert_to_tensor(x), tf.convert_to_tensor(y))
        return float(loss), flat.numpy()

    vector = np.random.default_rng(0).standard_normal(operator.size)
    ratios, times = [], []
    for index in range(4 * options.rounds + 1):
        one, _ = timed(gradients)
        two, _ = timed(lambda: operator.matvec(vector))
        if index:
            ratios.append(two / one)
            times.append((one, two))
    one, two = np.median(times, axis=0)
    print(
        f"product / gradient: {np.median(ratios):.2f} ({1e3 * two:.0f} ms / "
        f"{1e3 * one:.0f} ms, median of {len(ratios)})"
    )


# The eigenvalues beside 194 from 0 to 1, and how many of the largest to find.
REPEATED = {
    "double": ([9, 9, 5, 4, 3, 2], 2),
    "triple": ([9, 9, 9, 5, 4, 3], 3),
    "triple and double": ([9, 9, 9, 5, 5, 3], 5),
    "sixfold": ([5, 5, 5, 5, 5, 5], 4),
    "double, one per cent apart": ([5, 5, 4.95, 4.9, 4.9, 4], 2),
}


class Counted:
    """A matrix-vector product that counts its calls."""

    def __init__(self, product):
        self.product, self.count = product, 0

    def __call__(self, vector):
        self.count += 1
        return self.product(vector)


def arpack(product, size, k, which, tolerance, vectors, seed):
    """Returns eigenvalues from `eigsh`, and the number of its products."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    counted = Counted(product)
    operator = LinearOperator((size, size), counted, dtype="float64")
    start = np.random.default_rng(seed).standard_normal(size)
    values = eigsh(
        operator,
        k,
        which=which,
        tol=tolerance,
        ncv=vectors,
        v0=start,
        return_eigenvectors=False,
    )
    return np.sort(values)[::-1], counted.count


def compare_products(seeds: int) -> None:
    """Prints the numbers of products for LeNet-5 on microring banks."""
    import keras

    import keras_pnn as pnn
    from keras_pnn.curvature import lanczos

    sys.path.insert(
        0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper")
    )
    from shared import lenet5

    data = pnn.datasets.load("digits", verbose=False)
    model = lenet5()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=5, verbose=0)
    x, y = data.x_test[:100], data.y_test[:100]
    operator = pnn.curvature.HessianOperator(model, x, y, batch_size=100)
    print(f"LeNet-5 on microring banks, {operator.size} controls: products")
    print("  k smallest tolerance   ours (no check for copies)   eigsh   ncv=32")
    limit = lanczos.CHECK_PRODUCTS
    for k, smallest, tolerance in (
        *((k, 0, tolerance) for tolerance in (1e-2, 1e-3, 1e-5) for k in (1, 2, 3, 5)),
        (1, 1, 1e-2),
    ):
        counts = []
        for seed in range(seeds):
            row = []
            for lanczos.CHECK_PRODUCTS in (limit, 0):
                result = operator.eigenvalues(
                    k, tolerance, 3000, seed, smallest=smallest
                )
                # The last product of each vector only measures its residual.
                row.append(result.iterations - k - smallest)
            for vectors in (None, 32):
                count = 0
                for number, which in ((k, "LA"), (smallest, "SA")):
                    if number:
                        count += arpack(
                            operator.matvec,
                            operator.size,
                            number,
                            which,
                            tolerance,
                            vectors,
                            seed,
                        )[1]
                row.append(count)
            counts.append(row)
        lanczos.CHECK_PRODUCTS = limit
        ours, unchecked, default, wide = np.median(counts, axis=0)
        print(
            f"{k:>3} {smallest:>8} {tolerance:>9g} {ours:>6.0f} ({unchecked:.0f})"
            f"{default:>32.0f}{wide:>9.0f}"
        )


def compare_copies(seeds: int) -> None:
    """Prints how often all copies of repeated eigenvalues are found."""
    from keras_pnn.curvature.lanczos import extreme_vectors

    print(f"repeated eigenvalues: right of {seeds} (products)")
    print(f"{'':>28} tolerance   ours       eigsh      ncv=32")
    for name, (high, k) in REPEATED.items():
        spectrum = np.r_[np.linspace(0, 1, 194), high]
        expected = np.sort(high)[::-1][:k]
        for tolerance in (1e-3, 1e-5):
            found = {"ours": [], None: [], 32: []}
            for seed in range(seeds):
                counted = Counted(spectrum.__mul__)
                vectors = extreme_vectors(
                    counted,
                    200,
                    k,
                    0,
                    lambda v, tolerance=tolerance: tolerance * abs(v),
                    500,
                    seed,
                )
                values = np.sum(vectors * (spectrum[:, None] * vectors), axis=0)
                found["ours"].append((values, counted.count))
                for ncv in (None, 32):
                    found[ncv].append(
                        arpack(spectrum.__mul__, 200, k, "LA", tolerance, ncv, seed)
                    )
            cells = [
                f"{sum(np.allclose(v, expected, rtol=1e-3) for v, _ in rows)} "
                f"({np.median([count for _, count in rows]):.0f})"
                for rows in found.values()
            ]
            print(f"{name:>28} {tolerance:>9g}   " + "".join(f"{c:<11}" for c in cells))


def main() -> None:
    options = arguments()
    if options.serve is not None:
        serve(options.serve)
        return
    if options.arpack:
        compare_copies(10)
        compare_products(3)
        return
    import keras

    import keras_pnn as pnn

    keras.utils.set_random_seed(0)
    data = pnn.datasets.load(options.data)
    model = lenet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(
        data.x_train, data.y_train, batch_size=64, epochs=options.epochs, verbose=0
    )
    x, y = data.x_test[: options.samples], data.y_test[: options.samples]
    _, accuracy = model.evaluate(x, y, verbose=0)
    operator = pnn.curvature.HessianOperator(model, x, y, "all", options.samples)
    print(
        f"LeNet-5, {operator.size} parameters, {data.name}, {len(x)} samples, "
        f"accuracy {100 * accuracy:.1f} %, tolerance {options.tolerance:g}"
    )
    product_cost(options, model, operator, x, y)
    python = torch_python(options.torch_python)
    if python is None:
        seconds, found = timed(lambda: operator.eigenvalues(options.top))
        print(f"{found}\n{seconds:.3f} s; PyHessian is not there to compare with")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "network.npz")
        weights = {f"w{i}": w for i, w in enumerate(model.get_weights())}
        np.savez(path, x=x, y=y, **weights)
        torch = Torch(python, path)
        try:
            compare(options, torch, operator, (model, x, y))
        finally:
            torch.close()


if __name__ == "__main__":
    main()
