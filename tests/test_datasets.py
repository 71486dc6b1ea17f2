import io
import socket

import keras
import numpy as np
import pytest

from keras_pnn import datasets
from keras_pnn.callbacks import BatchOrder


def arrays(**changes):
    rng = np.random.default_rng(0)
    data = {
        "x_train": rng.integers(0, 256, (6, 4, 5), dtype="uint8"),
        "y_train": np.arange(6),
        "x_test": rng.integers(0, 256, (3, 4, 5), dtype="uint8"),
        "y_test": np.arange(3),
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}


def store(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


@pytest.fixture
def download(monkeypatch):
    """Sets what Keras' download of MNIST gives: arrays, or an error."""
    monkeypatch.delenv("KERAS_PNN_DATA", raising=False)

    def set_result(error=None):
        def load_data():
            if error is not None:
                raise error
            a = arrays()
            assert socket.getdefaulttimeout() == 10.0
            return (a["x_train"], a["y_train"]), (a["x_test"], a["y_test"])

        monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)

    return set_result


def test_file(tmp_path, capsys):
    stored = arrays()
    path = store(tmp_path / "small.npz")
    data = datasets.load(path)
    assert "small" in capsys.readouterr().out
    assert data.x_train.shape == (6, 4, 5, 1) and data.x_train.dtype == np.float32
    assert data.y_test.dtype == np.int32 and data.name == "small"
    assert data.source == str(path)
    np.testing.assert_array_equal(
        np.rint(data.x_train[..., 0] * 255), stored["x_train"]
    )
    store(path, x_train=stored["x_train"] / 255.0)
    again = datasets.load(path, verbose=False)
    np.testing.assert_allclose(again.x_train, data.x_train, rtol=1e-6)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_test": None}, "without.*y_test"),
        ({"y_train": np.arange(5)}, r"`y_train`.*\(6,\)"),
        ({"y_train": np.arange(6.0)}, "class numbers"),
        ({"y_train": np.arange(6) - 1}, "class numbers"),
        ({"x_train": np.zeros((0, 4, 5), "uint8"), "y_train": np.arange(0)}, "empty"),
        ({"x_train": np.full((6, 4, 5), np.nan)}, "nan"),
        ({"x_train": np.full((6, 4, 5), 1.5)}, "values from 1.5"),
        ({"x_train": np.zeros((6, 4, 5), "int64")}, "int64"),
        ({"x_train": np.zeros((6, 4, 5, 3), "uint8")}, "shape"),
        ({"x_test": np.zeros((3, 4, 4), "uint8")}, "`x_test`"),
        ({"y_test": np.array([None] * 3)}, "cannot be read"),
    ],
)
def test_bad_file(tmp_path, changes, message):
    path = store(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as error:
        datasets.load(path)
    assert "bad.npz" in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "npy"])
def test_damaged_file(tmp_path, damage):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    middle = len(whole) // 4
    flipped = bytes(b ^ 255 for b in whole[middle - 20 : middle + 20])
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    content = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[: middle - 20] + flipped + whole[middle + 20 :],
        "text": b"hello",
        "npy": array.getvalue(),
    }
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=r"bad\.npz"):
        datasets.load(path)


@pytest.mark.parametrize("name", ["cifar", "missing.npz", None, 3])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"Argument `name`.*Received: "):
        datasets.load(name)


def test_digits():
    data = datasets.load("digits", verbose=False)
    assert data.x_train.shape == (1437, 28, 28, 1)
    assert data.x_test.shape == (360, 28, 28, 1)
    assert data.x_train.min() == 0.0 and data.x_train.max() == 1.0
    assert not data.x_train[:, :2].any() and not data.x_train[:, :, -2:].any()
    x = np.concatenate([data.x_train, data.x_test])
    np.testing.assert_array_equal(x[:, 2:-2:3, 2:-2:3], x[:, 4:-2:3, 3:-2:3])
    assert set(data.y_test) == set(range(10))
    again = datasets.load("digits", verbose=False)
    np.testing.assert_array_equal(again.y_train, data.y_train)
    # Every image is in one of the two parts, once.
    from sklearn.datasets import load_digits

    found = sorted((x[:, 2:-2:3, 2:-2:3, 0] * 16).reshape(-1, 64).tolist())
    assert found == sorted(load_digits().data.tolist())


def test_mnist_is_read_from_the_variable(download, monkeypatch, tmp_path):
    download(error=AssertionError("a download"))
    other, mnist = store(tmp_path / "other.npz"), store(tmp_path / "mnist.npz")
    for named, path in ((other, other), (tmp_path, mnist)):
        monkeypatch.setenv("KERAS_PNN_DATA", str(named))
        data = datasets.load("auto", verbose=False)
        assert data.name == "mnist" and data.source == str(path)
    mnist.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"mnist\.npz"):
        datasets.load("auto")
    mnist.unlink()
    with pytest.raises(FileNotFoundError, match="KERAS_PNN_DATA"):
        datasets.load()


def test_the_variable_can_ask_for_the_digits(download, monkeypatch):
    download()
    monkeypatch.setenv("KERAS_PNN_DATA", "digits")
    assert datasets.load(verbose=False).name == "digits"
    with pytest.raises(FileNotFoundError, match="KERAS_PNN_DATA"):
        datasets.load("mnist")


def test_mnist_is_downloaded_else_auto_falls_back_to_digits(download, capsys):
    before = socket.getdefaulttimeout()
    download()
    data = datasets.load("mnist", verbose=False)
    assert data.source == "keras.datasets.mnist" and len(data.x_train) == 6
    download(error=OSError("no network"))
    assert datasets.load().name == "digits"
    assert "no network" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no network"):
        datasets.load("mnist")
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize("sizes", [(-5, 10), (10, 2.5)])
def test_head_of_an_impossible_number(sizes):
    with pytest.raises(ValueError, match=r"`n_(train|test)`.*Received"):
        datasets.load("digits", verbose=False).head(*sizes)


# Batches


class Seen(keras.Model):
    """Keeps the first feature, its number, of each sample that it trains on."""

    def __init__(self):
        super().__init__()
        self.order = []
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.compile("sgd", "mse", run_eagerly=True)
        self.build((None, 1))

    def call(self, x):
        return x * self.scale

    def train_step(self, data):
        self.order.append(np.asarray(data[0])[:, 0].astype(int).tolist())
        return super().train_step(data)


def numbered(n):
    """Samples of one feature, which is their number."""
    return np.arange(n, dtype="float32")[:, None]


def expected_order(n, batch_size, epochs, seed=0):
    """The samples of each batch, as `Batches` promises them."""
    out = []
    for epoch in epochs:
        order = np.random.default_rng([seed, epoch]).permutation(n).tolist()
        out += [order[k : k + batch_size] for k in range(0, n, batch_size)]
    return out


def test_order_is_the_formula():
    batches = datasets.Batches(numbered(10), numbered(10), 4, seed=5)
    assert len(batches) == 3
    for epoch, step in ((1, 2), (0, 0), (1, 0), (7, 1)):
        batches.epoch = epoch
        x, y = batches[step]
        assert x[:, 0].tolist() == expected_order(10, 4, [epoch], seed=5)[step]
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(batches.batch(step, epoch)[0], x)
    with pytest.raises(IndexError, match="Received: step=3"):
        batches[3]


def test_fit_sees_each_epoch_in_its_order():
    # Two batches are asked for before training, and many are prefetched.
    batches = datasets.Batches(numbered(23), numbered(23), 4)
    model = Seen()
    model.fit(batches, epochs=2, shuffle=False, verbose=0)
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    assert model.order == expected_order(23, 4, [0, 1, 2])


def test_a_read_during_fit_does_not_count_as_shuffling():
    class Probe(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches[5]
            batches.check_order()

    batches = datasets.Batches(numbered(24), numbered(24), 4)
    model = Seen()
    model.fit(batches, shuffle=False, verbose=0, callbacks=[Probe()])
    assert model.order == expected_order(24, 4, [0])


def test_initial_epoch():
    batches = datasets.Batches(numbered(12), numbered(12), 4)
    model = Seen()
    options = {"initial_epoch": 4, "epochs": 6, "shuffle": False, "verbose": 0}
    model.fit(batches, steps_per_epoch=3, callbacks=[BatchOrder(batches)], **options)
    assert model.order == expected_order(12, 4, [4, 5])


def test_a_resumed_run_sees_the_same_batches(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.model.order) == 8:
                raise RuntimeError("power cut")

    def fit(model, *callbacks):
        batches = datasets.Batches(numbered(12), numbered(12), 4)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [BatchOrder(batches), backup, *callbacks]
        model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(Seen(), Crash())
    model = Seen()
    fit(model)
    assert model.order == expected_order(12, 4, [2, 3])


def test_what_the_order_rules_out():
    batches = datasets.Batches(numbered(80), numbered(80), 4)
    with pytest.raises(ValueError, match="shuffle=False"):
        Seen().fit(batches, verbose=0)
    for options, match in (({}, "shuffle=False"), ({"steps_per_epoch": 2}, "epoch=2")):
        with pytest.raises(ValueError, match=match):
            Seen().fit(batches, verbose=0, callbacks=[BatchOrder(batches)], **options)
    with pytest.raises(ValueError, match="`batches`"):
        BatchOrder([1, 2])


def test_structures_and_dtypes():
    x = {"a": numbered(6).astype("float64"), "b": np.arange(6, dtype="int64")}
    y = (numbered(6), np.arange(6, dtype="uint8"))
    weights = np.arange(6.0)
    batches = datasets.Batches(x, y, 4, sample_weight=weights, drop_remainder=True)
    assert len(batches) == 1
    (bx, by, bw), order = batches[0], expected_order(6, 4, [0])[0]
    assert bx["a"].dtype == np.float32 and bx["b"].dtype == np.int64
    assert isinstance(by, tuple) and by[1].dtype == np.uint8
    for array in (bx["a"][:, 0], bx["b"], by[0][:, 0], by[1], bw):
        assert array.tolist() == order
    assert len(datasets.Batches(x, None, 4)[0]) == 1


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"y": numbered(5)}, "one length"),
        ({"x": {"a": numbered(6), "b": numbered(5)}}, "one length"),
        ({"sample_weight": np.ones(5)}, "one length"),
        ({"x": numbered(0), "y": numbered(0)}, "one length"),
        ({"x": None}, r"`x` must be an array.*Received: None"),
        ({"x": numbered(6) * np.nan}, "`x` must be finite.*Received: NaN"),
        ({"batch_size": 0}, "`batch_size` must be an integer ≥ 1. Received: 0"),
        ({"seed": -1}, "`seed` must be an integer ≥ 0. Received: -1"),
        ({"batch_size": 7, "drop_remainder": True}, "`batch_size`.*6 samples"),
        ({"y": None, "sample_weight": np.ones(6)}, "`sample_weight`.*without `y`"),
    ],
)
def test_bad_batches(kwargs, message):
    good = {"x": numbered(6), "y": numbered(6), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        datasets.Batches(**{**good, **kwargs})
