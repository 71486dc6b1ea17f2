"""Load image data sets: MNIST, the digits of scikit-learn, or a file."""

import dataclasses
import os
import socket
from pathlib import Path

import keras
import numpy as np

from keras_pnn import _checks

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_DOWNLOAD_TIMEOUT = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a training set and a test set.

    Attributes:
        x_train, x_test: float32 in [0, 1], shape `(n, height, width, 1)`.
        y_train, y_test: int32, shape `(n,)`.
        name: `"mnist"`, `"digits"`, or the stem of the file.
        source: The path of the file, or another origin of the data.

    Example:

    >>> data = pnn.datasets.load("digits", verbose=False).head(100, 50)
    >>> data.x_train.shape
    (100, 28, 28, 1)
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
            ValueError: If a number is not an integer of 0 or more.
        """
        n_train = _checks.integer("n_train", n_train, 0)
        n_test = _checks.integer("n_test", n_test, 0)
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


def load(name: str = "auto", verbose: bool = True) -> Dataset:
    """Loads a data set of small grey images.

    MNIST is read from the path in the environment variable `KERAS_PNN_DATA`, an `.npz`
    file or a folder with `mnist.npz`. Without the variable, `keras.datasets.mnist`
    loads it, and downloads it if necessary. With `KERAS_PNN_DATA=digits`, `"auto"`
    loads the digits.

    Args:
        name: One of

            - `"mnist"`: 60,000 training and 10,000 test images, 28 x 28;
            - `"digits"`: the 1,797 digits of 8 x 8 pixels that come with
              scikit-learn, enlarged three times and padded to 28 x 28; a fixed split
              into 1,437 training and 360 test images;
            - `"auto"`: MNIST if available, else the digits;
            - the path of an `.npz` file with the arrays `x_train`, `y_train`, `x_test`
              and `y_test`; images of shape `(n, height, width)` or
              `(n, height, width, 1)`, uint8, or floating in [0, 1].
        verbose: Whether to print the name of the data set, and why it was chosen.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If `name` is anything else, or a file is damaged, lacks an array,
            or holds arrays that do not fit. The message names the file.
        FileNotFoundError: If `name` is `"mnist"` and MNIST is not available, or
            `KERAS_PNN_DATA` names a path that does not exist.

    Example:

    ```python
    data = keras_pnn.datasets.load()
    model.fit(data.x_train, data.y_train)
    ```
    """
    reason = "as asked"
    if name == "auto" and os.environ.get("KERAS_PNN_DATA") == "digits":
        name, reason = "digits", "from KERAS_PNN_DATA"
    if name == "digits":
        data = _digits()
    elif name in ("mnist", "auto"):
        data, reason = _mnist()
        if data is None and name == "mnist":
            raise FileNotFoundError(f"MNIST is not available: {reason}.")
        data = data or _digits()
    elif isinstance(name, (str, os.PathLike)) and Path(name).is_file():
        data = _read(Path(name), Path(name).stem)
    else:
        expected = "'auto', 'mnist', 'digits' or the path of an existing .npz file"
        raise _checks.error("name", expected, repr(name))
    if verbose:
        print(
            f"Data set {data.name!r} from {data.source} ({reason}): "
            f"{len(data.x_train)} training and {len(data.x_test)} test images"
        )
    return data


def _mnist():
    """Returns MNIST and its origin, or `None` and the reason."""
    override = os.environ.get("KERAS_PNN_DATA")
    if override:
        path = Path(override).expanduser()
        path = path / "mnist.npz" if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(
                "The environment variable KERAS_PNN_DATA must name an .npz file, or a "
                f"folder with mnist.npz. Received: {override!r}"
            )
        return _read(path, "mnist"), "from KERAS_PNN_DATA"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        train, test = keras.datasets.mnist.load_data()
    except Exception as error:
        return None, f"KERAS_PNN_DATA is not set, and the download failed: {error}"
    finally:
        socket.setdefaulttimeout(timeout)
    arrays = dict(zip(_KEYS, (*train, *test), strict=True))
    return _dataset(arrays, "mnist", "keras.datasets.mnist"), "downloaded by Keras"


def _read(path, name):
    source = str(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            arrays = {key: file[key] for key in _KEYS if key in names}
    # A damaged archive raises anything from zlib.error to SyntaxError.
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
    def require(good, key, expected, received):
        if not good:
            raise ValueError(
                f"Array `{key}` of a data file must be {expected}. "
                f"Received: {received} in {source!r}"
            )

    checked = {}
    for part in ("train", "test"):
        images, labels = f"x_{part}", f"y_{part}"
        x, y = arrays[images], arrays[labels]
        shape = f"shape {x.shape}"
        x = x[..., np.newaxis] if x.ndim == 3 else x
        grey = x.ndim == 4 and x.shape[-1] == 1 and x.size
        expected = "non-empty, of shape (n, height, width) or (n, height, width, 1)"
        require(grey, images, expected, shape)
        if x.dtype == np.uint8:
            x = x.astype("float32") / np.float32(255)
        else:
            expected = "uint8, or floating in [0, 1]"
            floating = np.issubdtype(x.dtype, np.floating)
            require(floating, images, expected, f"dtype {x.dtype}")
            low, high = x.min(), x.max()
            inside = low >= 0 and high <= 1
            require(inside, images, expected, f"values from {low} to {high}")
        fits = y.shape == (len(x),)
        require(fits, labels, f"of shape ({len(x)},), as {images}", f"shape {y.shape}")
        classes = np.issubdtype(y.dtype, np.integer) and y.min() >= 0
        received = f"dtype {y.dtype}, minimum {y.min()}"
        require(classes, labels, "class numbers from 0", received)
        checked |= {images: x.astype("float32"), labels: y.astype("int32")}
    size, other = checked["x_train"].shape[1:], checked["x_test"].shape[1:]
    require(size == other, "x_test", f"of images as in x_train, {size}", other)
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
