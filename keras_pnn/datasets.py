"""Image data sets for the examples, and batches in a reproducible order."""

import dataclasses
import math
import os
import socket
import threading
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_DOWNLOAD_TIMEOUT = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, divided into a training and a test set.

    Attributes:
        x_train: float32 in [0, 1], shape `(n, height, width, 1)`.
        y_train: int32, shape `(n,)`.
        x_test: As `x_train`.
        y_test: As `y_train`.
        name: `"mnist"`, `"digits"`, or the stem of the file.
        source: The path, or where else the data came from.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str
    source: str

    def head(self, n_train: int, n_test: int) -> "Dataset":
        """Returns the first images of both sets.

        Raises:
            ValueError: a number is no whole number, or is negative.
        """
        n_train = _integer("n_train", n_train, 0)
        n_test = _integer("n_test", n_test, 0)
        return dataclasses.replace(
            self,
            x_train=self.x_train[:n_train],
            y_train=self.y_train[:n_train],
            x_test=self.x_test[:n_test],
            y_test=self.y_test[:n_test],
        )

    def __repr__(self):
        return (
            f"Dataset(name={self.name!r}, x_train={self.x_train.shape}, "
            f"x_test={self.x_test.shape}, source={self.source!r})"
        )


def load(name="auto", verbose=True):
    """Loads a data set of small grey images.

    `mnist.npz` is looked for in the folder (or as the file) that the environment
    variable `KERAS_PNN_DATA` names, in `../shared/data` and `data` of the working
    directory and of the repository, and where Keras keeps its downloads; then it is
    downloaded with `keras.datasets.mnist`.

    Args:
        name: One of

            - `"mnist"`: 60,000 training and 10,000 test images, 28 x 28;
            - `"digits"`: the 1,797 digits of 8 x 8 pixels that scikit-learn brings
              along, enlarged three times and padded to 28 x 28; a fixed split into
              1,437 training and 360 test images;
            - `"auto"`: MNIST where it can be had, else the digits;
            - the path of an `.npz` file with the arrays `x_train`, `y_train`, `x_test`
              and `y_test`; images of shape `(n, height, width)` or
              `(n, height, width, 1)`, uint8, or floating in [0, 1].
        verbose: Whether to print which data set this is, and why.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If `name` is none of these, or a file is damaged, lacks an array,
            or holds arrays that do not fit. The message names the file.
        FileNotFoundError: If `name` is `"mnist"` and there is none; or
            `KERAS_PNN_DATA` is set and does not exist.

    Example:

    ```python
    data = keras_pnn.datasets.load()
    model.fit(data.x_train, data.y_train)
    ```
    """
    if name == "digits":
        data, reason = _digits(), "as asked"
    elif name in ("mnist", "auto"):
        data, reason = _mnist()
        if data is None and name == "mnist":
            raise FileNotFoundError(f"MNIST is not to be had: {reason}.")
        if data is None:
            data = _digits()
    else:
        try:
            path = Path(name)
            found = path.is_file()
        except TypeError:
            found = False
        if not found:
            raise ValueError(
                "Argument `name` must be 'auto', 'mnist', 'digits' or the path of an "
                f"existing .npz file. Received: name={name!r}"
            )
        data, reason = _read(path, path.stem), "as asked"
    if verbose:
        print(
            f"Data set {data.name!r} from {data.source} ({reason}): "
            f"{len(data.x_train)} training and {len(data.x_test)} test images"
        )
    return data


def _mnist():
    """MNIST and where it was found, or None and why not."""
    candidates = []
    override = os.environ.get("KERAS_PNN_DATA")
    if override:
        path = Path(override).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                "The environment variable KERAS_PNN_DATA must name an existing folder "
                f"or file. Received: KERAS_PNN_DATA={override!r}"
            )
        candidates.append(path / "mnist.npz" if path.is_dir() else path)
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        candidates.append(root.parent / "shared" / "data" / "mnist.npz")
        candidates.append(root / "data" / "mnist.npz")
    keras_home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    candidates.append(keras_home / "datasets" / "mnist.npz")
    for path in candidates:
        if path.is_file():
            return _read(path, "mnist"), "found"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:
        looked = ", ".join(str(path) for path in dict.fromkeys(candidates))
        reason = f"no MNIST at {looked}; the download failed: {error}"
        return None, reason
    finally:
        socket.setdefaulttimeout(timeout)
    arrays = dict(zip(_KEYS, (x_train, y_train, x_test, y_test), strict=True))
    return _dataset(arrays, "mnist", "keras.datasets.mnist"), "downloaded"


def _read(path, name):
    source = str(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            arrays = {key: file[key] for key in _KEYS if key in names}
    # A damaged archive raises nearly anything, from zlib.error to SyntaxError.
    except Exception as error:
        raise ValueError(
            "A data file must be an .npz archive of plain arrays. "
            f"Received: {source!r}, which cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"A data file must hold the arrays {list(_KEYS)}. "
            f"Received: {source!r}, which holds {names}, without {missing}"
        )
    return _dataset(arrays, name, source)


def _dataset(arrays, name, source):
    def fail(key, expected, received):
        raise ValueError(
            f"Array `{key}` of a data file must be {expected}. "
            f"Received: {received} in {source!r}"
        )

    checked = {}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim == 3:
            x = x[..., np.newaxis]
        if x.ndim != 4 or x.shape[-1] != 1 or not x.size:
            fail(
                f"x_{part}",
                "non-empty, of shape (n, height, width) or (n, height, width, 1)",
                f"shape {arrays[f'x_{part}'].shape}",
            )
        if x.dtype == np.uint8:
            x = x.astype("float32") / np.float32(255)
        elif np.issubdtype(x.dtype, np.floating):
            # Written so that NaN fails it too.
            if not (x.min() >= 0 and x.max() <= 1):
                fail(
                    f"x_{part}",
                    "uint8, or floating in [0, 1]",
                    f"values from {x.min()} to {x.max()}",
                )
            x = x.astype("float32")
        else:
            fail(f"x_{part}", "uint8, or floating in [0, 1]", f"dtype {x.dtype}")
        if y.shape != (len(x),):
            fail(f"y_{part}", f"of shape ({len(x)},), as x_{part}", f"shape {y.shape}")
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            fail(
                f"y_{part}",
                "class numbers from 0",
                f"dtype {y.dtype}, minimum {y.min()}",
            )
        checked[f"x_{part}"], checked[f"y_{part}"] = x, y.astype("int32")
    if checked["x_train"].shape[1:] != checked["x_test"].shape[1:]:
        fail(
            "x_test",
            f"of images as in x_train, {checked['x_train'].shape[1:]}",
            f"{checked['x_test'].shape[1:]}",
        )
    return Dataset(**checked, name=name, source=source)


def _digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits data set comes with scikit-learn: pip install scikit-learn."
        ) from error
    digits = load_digits()
    x = np.repeat(np.repeat(digits.images / 16.0, 3, axis=1), 3, axis=2)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[..., np.newaxis].astype("float32")
    y = digits.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:360], order[360:]
    return Dataset(
        x[train], y[train], x[test], y[test], name="digits", source="scikit-learn"
    )


class Batches(keras.utils.PyDataset):
    """Shuffled batches whose order is a function of (seed, epoch, step) alone.

    Batch `k` of epoch `e` holds the samples
    `np.random.default_rng([seed, e]).permutation(n)[k * batch_size:][:batch_size]`.
    A sweep over models thus compares them on the same batches, and with
    `keras_pnn.callbacks.BatchOrder` a resumed run continues with the batches that an
    uninterrupted one would have seen.

    Pass `shuffle=False` to `fit`: its default is to shuffle the batches of a
    `PyDataset` once more, with Python's global random state. That is noticed, and
    raises.

    Args:
        x: Array of shape `(n, ...)`, or a tuple or dict (nested, if need be) of them.
        y: As `x`, with the same `n`; or `None`.
        batch_size: Samples per batch.
        seed: Non-negative integer.
        sample_weight: Array of shape `(n,)`, or a structure as `y`; or `None`.
        drop_remainder: Whether to leave out a last batch that is not full.

    Attributes:
        epoch: The epoch that indexing refers to. `BatchOrder` sets it; without it,
            each pass of `fit` (or of `evaluate`) adds 1.

    Raises:
        ValueError: If lengths differ or are 0, `batch_size` is less than 1, there is
            not one batch, `x` holds NaN or infinity, or `sample_weight` comes without
            `y`.

    Example:

    ```python
    batches = keras_pnn.datasets.Batches(x, y, batch_size=64, seed=0)
    model.fit(batches, epochs=10, shuffle=False,
              callbacks=[keras_pnn.callbacks.BatchOrder(batches)])
    ```
    """

    def __init__(
        self, x, y, batch_size, seed=0, sample_weight=None, drop_remainder=False
    ):
        super().__init__()
        self.batch_size = _integer("batch_size", batch_size, minimum=1)
        self.seed = _integer("seed", seed, minimum=0)
        self.drop_remainder = bool(drop_remainder)
        if sample_weight is not None and y is None:
            raise ValueError(
                "Argument `sample_weight` needs `y`. Received: y=None, "
                f"sample_weight of type {type(sample_weight).__name__}"
            )
        self._data = tuple(
            keras.tree.map_structure(_array, data)
            for data in (x, y, sample_weight)
            if data is not None
        )
        shapes = [array.shape for array in keras.tree.flatten(self._data)]
        lengths = {shape[0] if shape else None for shape in shapes}
        if len(lengths) != 1 or not lengths - {None, 0}:
            raise ValueError(
                "Arguments `x`, `y` and `sample_weight` must hold non-empty arrays "
                f"of one length. Received: shapes {shapes}"
            )
        check_finite("x", self._data[0])
        self._samples = lengths.pop()
        rounding = math.floor if self.drop_remainder else math.ceil
        self._steps = rounding(self._samples / self.batch_size)
        if not self._steps:
            raise ValueError(
                "Argument `batch_size` must not be greater than the number of samples "
                f"with drop_remainder=True. Received: batch_size={self.batch_size}, "
                f"{self._samples} samples"
            )
        self.epoch = 0
        self._order = (None, None)
        self._running = False
        self._thread = None
        self._highest = -1
        self._skipped = False

    def __len__(self):
        return self._steps

    def batch(self, step, epoch):
        """Batch `step` of epoch `epoch`, whatever `fit` is doing.

        Args:
            step: Integer from 0 to `len(self) - 1`.
            epoch: Non-negative integer.

        Returns:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            IndexError: If there is no such step.
        """
        if not 0 <= step < self._steps:
            raise IndexError(
                f"Steps go from 0 to {self._steps - 1}. Received: step={step}"
            )
        # One assignment, one read: Keras may ask from another thread.
        cached, order = self._order
        if cached != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(self._samples)
            self._order = (epoch, order)
        chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
        return keras.tree.map_structure(lambda a: a.take(chosen, axis=0), self._data)

    def __getitem__(self, index):
        # `fit` reads from a thread of tf.data; this thread's own reads are a user's.
        if self._running and threading.get_ident() != self._thread:
            if index > self._highest + 1:
                self._skipped = True
            self._highest = max(self._highest, index)
        return self.batch(index, self.epoch)

    def on_epoch_begin(self):
        self._running = True
        self._thread = threading.get_ident()
        self._highest = -1
        self._skipped = False

    def on_epoch_end(self):
        # Keras also calls this before the first epoch.
        if not self._running:
            return
        self._running = False
        self.check_order()
        self.epoch += 1

    def check_order(self):
        """Raises a ValueError if batches were not asked for in their order."""
        if self._skipped:
            self._running = self._skipped = False
            raise ValueError(
                "`fit` shuffles the batches of a PyDataset with Python's global random "
                "state, and the order would no longer be that of `seed`: pass "
                "`shuffle=False` to `fit`. Received: shuffle=True"
            )


def check_inputs(name: str, data) -> None:
    """Raises if inputs that are known hold no sample, or NaN or infinity.

    Data sets, generators and tensors of a graph pass: they are not known ahead.

    Args:
        name: the argument's name, for the message.
        data: an array, an eager tensor, or a structure of them.

    Raises:
        ValueError: one has no sample, or holds NaN or infinity.
    """
    shapes = [a.shape for a in keras.tree.flatten(data) if _known(a)]
    if any(len(shape) and shape[0] == 0 for shape in shapes):
        raise ValueError(
            f"`{name}` must hold at least one sample. Received: shapes "
            f"{[tuple(shape) for shape in shapes]}"
        )
    check_finite(name, data)


def check_finite(name: str, data) -> None:
    """Raises ValueError if arrays or eager tensors hold NaN or infinity."""
    for array in filter(_known, keras.tree.flatten(data)):
        if not _all_finite(array):
            raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")


def _known(leaf) -> bool:
    eager = isinstance(leaf, tf.Tensor) and not tf.is_symbolic_tensor(leaf)
    return isinstance(leaf, np.ndarray) or eager


def _all_finite(array) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
    if array.dtype.is_complex:
        array = tf.abs(array)
    if not array.dtype.is_floating:
        return True
    return bool(tf.reduce_all(tf.math.is_finite(array)))


def _array(data):
    data = np.asarray(data)
    if np.issubdtype(data.dtype, np.floating):
        data = data.astype(keras.config.floatx(), copy=False)
    return np.ascontiguousarray(data) if data.ndim else data


def _integer(name, value, minimum):
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < minimum
    ):
        raise ValueError(
            f"Argument `{name}` must be an integer not less than {minimum}. "
            f"Received: {name}={value!r}"
        )
    return int(value)
