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


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No MNIST on disk, and no network."""

    def fail(*args, **kwargs):
        raise OSError("no network")

    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    monkeypatch.setattr(datasets, "__file__", str(empty / "p" / "datasets.py"))
    monkeypatch.setenv("KERAS_HOME", str(empty / "keras"))
    monkeypatch.delenv("KERAS_PNN_DATA", raising=False)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    return empty


def test_file(tmp_path, capsys):
    path = tmp_path / "small.npz"
    stored = arrays()
    np.savez(path, **stored)
    data = datasets.load(path)
    assert "small" in capsys.readouterr().out
    assert data.x_train.shape == (6, 4, 5, 1) and data.x_train.dtype == np.float32
    assert data.y_test.dtype == np.int32 and data.name == "small"
    assert data.source == str(path)
    np.testing.assert_array_equal(
        np.rint(data.x_train[..., 0] * 255), stored["x_train"]
    )
    np.savez(path, **arrays(x_train=stored["x_train"] / 255.0))
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
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        datasets.load(path)
    assert "bad.npz" in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "npy"])
def test_damaged_file(tmp_path, damage):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    middle = len(whole) // 4
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        flipped = bytes(b ^ 255 for b in whole[middle - 20 : middle + 20])
        path.write_bytes(whole[: middle - 20] + flipped + whole[middle + 20 :])
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(b"hello" if damage == "text" else b"")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        datasets.load(path)


@pytest.mark.parametrize("name", ["cifar", "missing.npz", None, 3])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"Argument `name`.*Received: name="):
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


def test_auto_falls_back_to_digits(nowhere, capsys):
    assert datasets.load().name == "digits"
    assert "no network" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no network"):
        datasets.load("mnist")


def test_mnist_is_found(nowhere, monkeypatch, tmp_path):
    for place in ("data", "../shared/data", "keras/datasets"):
        folder = nowhere / place
        folder.mkdir(parents=True)
        np.savez(folder / "mnist.npz", **arrays())
        data = datasets.load("auto", verbose=False)
        assert data.name == "mnist"
        assert (folder / "mnist.npz").samefile(data.source)
        (folder / "mnist.npz").unlink()
    np.savez(tmp_path / "other.npz", **arrays())
    np.savez(tmp_path / "mnist.npz", **arrays())
    for override, name in ((tmp_path / "other.npz", "other"), (tmp_path, "mnist")):
        monkeypatch.setenv("KERAS_PNN_DATA", str(override))
        data = datasets.load("mnist", verbose=False)
        assert data.source == str(tmp_path / f"{name}.npz")
    monkeypatch.setenv("KERAS_PNN_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="KERAS_PNN_DATA"):
        datasets.load()


def test_a_damaged_mnist_is_not_passed_over(nowhere):
    (nowhere / "data").mkdir()
    (nowhere / "data" / "mnist.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"mnist\.npz"):
        datasets.load("auto")


def test_download_is_the_last_resort(nowhere, monkeypatch):
    import socket

    seen = []

    def load_data():
        seen.append(socket.getdefaulttimeout())
        a = arrays()
        return (a["x_train"], a["y_train"]), (a["x_test"], a["y_test"])

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    before = socket.getdefaulttimeout()
    data = datasets.load("mnist", verbose=False)
    assert data.source == "keras.datasets.mnist" and len(data.x_train) == 6
    assert seen == [10.0] and socket.getdefaulttimeout() == before


# Batches


class Seen(keras.Model):
    """Keeps the first feature of each sample that it trains on."""

    def __init__(self):
        super().__init__()
        self.order = []
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale

    def train_step(self, data):
        self.order.append(np.asarray(data[0])[:, 0].astype(int).tolist())
        return super().train_step(data)


def seen_model():
    model = Seen()
    model.compile("sgd", "mse", run_eagerly=True)
    model.build((None, 1))
    return model


def numbered(n):
    return np.arange(n, dtype="float32")[:, None]


def expected(n, batch_size, epochs, seed=0):
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
        assert x[:, 0].tolist() == expected(10, 4, [epoch], seed=5)[step]
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(batches.batch(step, epoch)[0], x)
    with pytest.raises(IndexError, match="Received: step=3"):
        batches[3]


@pytest.mark.parametrize("with_callback", [True, False])
def test_fit_sees_each_epoch_in_its_order(with_callback):
    # Two batches are asked for before training, and many are prefetched.
    batches = datasets.Batches(numbered(23), numbered(23), 4)
    callbacks = [BatchOrder(batches)] if with_callback else []
    model = seen_model()
    model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    assert model.order == expected(23, 4, [0, 1, 2])


def test_counting_goes_on_in_a_second_fit():
    batches = datasets.Batches(numbered(8), numbered(8), 4)
    model = seen_model()
    model.fit(batches, epochs=2, shuffle=False, verbose=0)
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    assert model.order == expected(8, 4, [0, 1, 2])


@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_initial_epoch(steps_per_epoch):
    batches = datasets.Batches(numbered(12), numbered(12), 4)
    model = seen_model()
    model.fit(
        batches,
        initial_epoch=4,
        epochs=6,
        shuffle=False,
        steps_per_epoch=steps_per_epoch,
        verbose=0,
        callbacks=[BatchOrder(batches)],
    )
    assert model.order == expected(12, 4, [4, 5])


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
        fit(seen_model(), Crash())
    model = seen_model()
    fit(model)
    assert model.order == expected(12, 4, [2, 3])


@pytest.mark.parametrize("with_callback", [True, False])
def test_keras_own_shuffle_raises(with_callback):
    batches = datasets.Batches(numbered(80), numbered(80), 4)
    callbacks = [BatchOrder(batches)] if with_callback else []
    with pytest.raises(ValueError, match="shuffle=False"):
        seen_model().fit(batches, verbose=0, callbacks=callbacks)


def test_reading_a_batch_during_fit_is_no_shuffle():
    class Probe(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches[5]

    batches = datasets.Batches(numbered(24), numbered(24), 4)
    model = seen_model()
    callbacks = [BatchOrder(batches), Probe()]
    model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks)
    assert model.order == expected(24, 4, [0])


def test_a_part_of_an_epoch_raises():
    batches = datasets.Batches(numbered(12), numbered(12), 4)
    with pytest.raises(ValueError, match="steps_per_epoch=2"):
        seen_model().fit(
            batches, steps_per_epoch=2, verbose=0, callbacks=[BatchOrder(batches)]
        )
    with pytest.raises(ValueError, match="`batches`"):
        BatchOrder([1, 2])


def test_structures_and_dtypes():
    x = {"a": numbered(6).astype("float64"), "b": np.arange(6, dtype="int64")}
    y = (numbered(6), np.arange(6, dtype="uint8"))
    weights = np.arange(6.0)
    batches = datasets.Batches(x, y, 4, sample_weight=weights, drop_remainder=True)
    assert len(batches) == 1
    (bx, by, bw), order = batches[0], expected(6, 4, [0])[0]
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
        ({"x": np.float32(1.0)}, "one length"),
        ({"x": numbered(0), "y": numbered(0)}, "one length"),
        ({"x": numbered(6) * np.nan}, "`x` must be finite.*Received: NaN"),
        ({"x": {"a": numbered(6) + np.inf}}, "`x` must be finite"),
        ({"batch_size": 0}, "`batch_size`.*Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size`"),
        ({"seed": -1}, "`seed`.*Received: seed=-1"),
        ({"batch_size": 7, "drop_remainder": True}, "`batch_size`.*6 samples"),
        ({"y": None, "sample_weight": np.ones(6)}, "needs `y`"),
    ],
)
def test_bad_batches(kwargs, message):
    good = {"x": numbered(6), "y": numbered(6), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        datasets.Batches(**{**good, **kwargs})


@pytest.mark.parametrize("sizes", [(-5, 10), (10, 2.5), (True, 1)])
def test_head_of_a_number_that_cannot_be(sizes):
    with pytest.raises(ValueError, match=r"`n_(train|test)`.*Received"):
        datasets.load("digits", verbose=False).head(*sizes)
