"""The log of a device: what is written is read, what is damaged is seen, replay."""

import resource
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import keras_pnn as pnn
from keras_pnn.hardware import log as measurement_log
from keras_pnn.hardware.log import Record, digest

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
SETTINGS = settings(max_examples=60, deadline=None)
ARRAYS = npst.arrays(
    st.sampled_from(["float16", "float32", "float64", "complex64", "int32", ">f8"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


class Noisy(pnn.HardwareDevice):
    """A chip that answers each time with other noise."""

    def __init__(self, chip, seed=0, **kwargs):
        super().__init__(backoff=0.0, **kwargs)
        self.chip = chip
        self.noise = np.random.default_rng(seed)
        self.refuse = ()

    def measure(self, layer, inputs, controls):
        if self.calls in self.refuse:
            raise OSError("refused")
        outputs = self.chip.measure(layer, tf.constant(inputs), controls).numpy()
        return outputs + self.noise.normal(size=outputs.shape) * 0.01


def network(dtype=None):
    inputs = keras.Input((3,))
    hidden = pnn.layers.MRRBank(5, activation="relu", name="first", dtype=dtype)(inputs)
    outputs = pnn.layers.MRRBank(4, name="second", dtype=dtype)(hidden)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def model():
    return network()


def noisy(model, **kwargs):
    (chip,) = pnn.Variation(resonance_shift=0.08).sample(model, 1)
    return Noisy(chip.attach(model), **kwargs)


def acquired(device, layer, inputs=X):
    now = {name: v.numpy() for name, v in layer.controls.items()}
    return device.acquire(layer, inputs, now)


def record(seed=0, layer="first"):
    generator = np.random.default_rng(seed)
    inputs, outputs = generator.normal(size=(2, 2, 3)).astype("float32")
    controls = {"control": generator.normal(size=3)}
    key = digest(layer, inputs, controls)
    return Record(layer, inputs, controls, outputs, 0.25, 2, key)


def same(one: Record, other: Record) -> bool:
    pairs = [
        (one.inputs, other.inputs),
        (one.outputs, other.outputs),
        *((one.controls[n], other.controls[n]) for n in one.controls),
    ]
    return (
        (one.layer, one.seconds, one.attempts, one.digest)
        == (other.layer, other.seconds, other.attempts, other.digest)
        and list(one.controls) == list(other.controls)
        and all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
        and all(a.tobytes() == b.tobytes() for a, b in pairs)
    )


def write(path, records):
    measurement_log.prepare(path)
    for each in records:
        measurement_log.append(path, each)
    return path


def read(path):
    return list(measurement_log.read(path, measurement_log.places(path)[0]))


@SETTINGS
@given(
    arrays=st.lists(ARRAYS, min_size=2, max_size=4),
    layer=st.text(min_size=1, max_size=8),
    seconds=st.floats(0, 1e9),
)
def test_round_trip(tmp_path_factory, arrays, layer, seconds):
    path = tmp_path_factory.mktemp("log") / "bench.log"
    inputs, outputs, *others = (a.astype(a.dtype.newbyteorder("=")) for a in arrays)
    controls = {f"c{i}": a for i, a in enumerate(others)}
    written = [
        Record(layer, inputs, controls, outputs, seconds, 1, "a"),
        Record(layer, outputs, {}, inputs, seconds, 7, "b"),
    ]
    write(path, written)
    assert all(map(same, written, read(path)))
    assert len(read(path)) == 2


def test_a_digest_sees_every_difference():
    a = np.arange(6, dtype="float32")
    base = ("first", a, {"p": a, "q": a + 1})
    others = [
        ("second", a, {"p": a, "q": a + 1}),
        ("first", a.astype("float64"), {"p": a, "q": a + 1}),
        ("first", a.view("int32"), {"p": a, "q": a + 1}),
        ("first", a.reshape(2, 3), {"p": a, "q": a + 1}),
        ("first", np.nextafter(a, np.float32(9)), {"p": a, "q": a + 1}),
        ("first", -a * 0, {"p": a, "q": a + 1}),
        ("first", a * 0, {"p": a, "q": a + 1}),
        ("first", a, {"p": a + 1, "q": a}),
        ("first", a, {"p": a, "r": a + 1}),
        ("first", a, {"p": a}),
    ]
    digests = [digest(*each) for each in [base, *others]]
    assert len(set(digests)) == len(digests)
    assert digest("first", a, {"q": a + 1, "p": a}) == digests[0]
    strided = np.repeat(a, 2)[::2]
    swapped = a.astype(">f4")
    for equal in (strided, swapped):
        assert digest("first", equal, base[2]) == digests[0]


def test_a_log_that_was_cut_at_any_byte(tmp_path):
    records = [record(0), record(1, "second"), record(2)]
    whole = write(tmp_path / "whole.log", records).read_bytes()
    starts, rest = measurement_log.places(tmp_path / "whole.log")
    assert rest == 0
    ends = [*starts[1:], len(whole)]
    path = tmp_path / "cut.log"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        expected = records[:complete]
        found, rest = measurement_log.places(path)
        assert len(found) == complete
        begun = [0 if size < starts[0] else starts[0], *(e for e in ends if e <= size)]
        assert rest == size - max(begun)
        # What comes next is appended behind the last whole record.
        write(path, [records[2]])
        back = read(path)
        assert len(back) == complete + 1
        assert all(map(same, [*expected, records[2]], back))
        assert measurement_log.places(path)[1] == 0


def test_every_damaged_byte_is_seen(tmp_path):
    path = write(tmp_path / "bench.log", [record(0), record(1)])
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bench\.log, (which is damaged|another)"):
            read(path)


def test_a_damaged_log_is_not_appended_to(tmp_path):
    path = write(tmp_path / "bench.log", [record(0), record(1)])
    whole = path.read_bytes()
    start = measurement_log.places(path)[0][1]
    for position in (3, start + 1, start + 6, start + 18, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bench\.log"):
            pnn.HardwareDevice(log=path)
        assert path.read_bytes() == damaged
    other = tmp_path / "thesis.txt"
    other.write_text("keys")
    with pytest.raises(ValueError, match=r"thesis\.txt, another file"):
        pnn.HardwareDevice(log=other)
    assert other.read_text() == "keys"
    with pytest.raises(FileNotFoundError):
        pnn.HardwareDevice(log=tmp_path / "missing" / "bench.log")


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path):
    path = write(tmp_path / "bench.log", [record(0)])
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, before[1]))
    try:
        with pytest.raises(OSError):
            measurement_log.append(path, record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    measurement_log.append(path, record(1))
    assert len(read(path)) == 2


def test_a_log_that_is_opened_loses_nothing_that_is_appended_meanwhile(
    tmp_path, monkeypatch
):
    path = write(tmp_path / "bench.log", [record(0)])
    appending = threading.Thread(target=measurement_log.append, args=(path, record(1)))
    walk = measurement_log._walk

    def slowly(file, path):
        yield from walk(file, path)
        appending.start()
        appending.join(0.2)

    with monkeypatch.context() as patch:
        patch.setattr(measurement_log, "_walk", slowly)
        measurement_log.prepare(path)
    appending.join()
    assert len(read(path)) == 2


def test_what_a_device_logs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = noisy(model, max_batch=4, log="bench.log")
    device.refuse = (2,)
    layer = model.get_layer("first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outputs = acquired(device, layer)
    recorded = pnn.RecordedDevice(tmp_path / "bench.log")
    (found,) = recorded
    assert (found.layer, found.attempts, len(recorded)) == ("first", 3, 1)
    assert found.seconds > 0
    np.testing.assert_array_equal(found.inputs, X)
    np.testing.assert_array_equal(found.outputs, outputs)
    assert set(found.controls) == set(layer.controls)
    for name, variable in layer.controls.items():
        np.testing.assert_array_equal(found.controls[name], variable.numpy())
    # A measurement that failed is not one.
    device.refuse = range(100)
    with pytest.raises(pnn.DeviceError):
        acquired(device, layer, X + 1)
    device.refuse = ()
    acquired(device, layer, X + 2)
    assert [r.attempts for r in pnn.RecordedDevice(tmp_path / "bench.log")] == [3, 2]


def test_replay_of_a_model_bit_for_bit(model, tmp_path):
    path = tmp_path / "bench.log"
    device = noisy(model, log=path)
    with device.installed(model):
        first = model.predict(X, batch_size=4, verbose=0)
        again = model(X).numpy()
    assert np.abs(first - again).max() > 1e-4
    recorded = pnn.RecordedDevice(path)
    assert len(recorded) == 6
    with recorded.installed(model):
        assert model.predict(X, batch_size=4, verbose=0).tobytes() == first.tobytes()
        assert model(X).numpy().tobytes() == again.tobytes()
    assert recorded.calls == 6


def test_replay_in_order_and_the_last_one_again(model, tmp_path):
    device = noisy(model, log=tmp_path / "bench.log")
    layer = model.get_layer("first")
    outputs = [acquired(device, layer, x) for x in (X, X + 1, X, X)]
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-4
    recorded = pnn.RecordedDevice(tmp_path / "bench.log")
    for expected in (0, 2, 3, 3, 3):
        np.testing.assert_array_equal(acquired(recorded, layer), outputs[expected])
    for _ in range(2):
        np.testing.assert_array_equal(acquired(recorded, layer, X + 1), outputs[1])
    np.testing.assert_array_equal(recorded[-2].outputs, outputs[2])
    with pytest.raises(IndexError):
        recorded[4]


def test_what_was_not_recorded_fails(model, tmp_path):
    path = tmp_path / "bench.log"
    first, second = model.layers[1:]
    acquired(noisy(model, log=path), first)
    recorded = pnn.RecordedDevice(path)
    other = np.nextafter(X, np.float32(9))
    with pytest.raises(pnn.DeviceError, match="not one bit may differ") as caught:
        acquired(recorded, first, other)
    assert recorded.failure is caught.value
    assert (recorded.calls, recorded.failures) == (1, 1)
    message = r"'second'.*no measurement of this layer, only of: first\. Pass `layers`"
    with pytest.raises(pnn.DeviceError, match=message), recorded.installed(model):
        model.predict(X, verbose=0)
    with pnn.RecordedDevice(path, layers=["first"]).installed(model):
        outputs = model(X).numpy()
    hidden = pnn.RecordedDevice(path)[0].outputs
    np.testing.assert_array_equal(outputs, second(hidden))
    narrow = pnn.layers.MRRBank(2, name="first")
    narrow.build((None, 3))
    now = {name: v.numpy() for name, v in first.controls.items()}
    with pytest.raises(pnn.DeviceError, match=r"shape \(6, 2\)\. Received: .*\(6, 5\)"):
        recorded.acquire(narrow, X, now)
    with pytest.raises(pnn.DeviceError, match="must have float64 outputs"):
        recorded.acquire(first, X, now, dtype="float64")


def test_a_recorded_device_reads_a_log_that_was_cut(model, tmp_path):
    path = tmp_path / "bench.log"
    device = noisy(model, log=path)
    layer = model.get_layer("first")
    outputs = [acquired(device, layer, x) for x in (X, X + 1)]
    shutil.copy(path, tmp_path / "copy.log")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 5)
    with pytest.warns(UserWarning, match=r"cut short.*1 whole records are used"):
        recorded = pnn.RecordedDevice(path)
    np.testing.assert_array_equal(acquired(recorded, layer), outputs[0])
    with pytest.raises(pnn.DeviceError):
        acquired(recorded, layer, X + 1)
    # The next run on the bench goes on behind the last whole record.
    acquired(noisy(model, seed=1, log=path), layer, X + 1)
    assert len(pnn.RecordedDevice(path)) == 2
    assert len(pnn.RecordedDevice(tmp_path / "copy.log")) == 2


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        pnn.RecordedDevice(tmp_path / "missing.log")
    other = tmp_path / "other.log"
    other.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(ValueError, match="another file"):
        pnn.RecordedDevice(other)
    empty = tmp_path / "empty.log"
    empty.touch()
    recorded = pnn.RecordedDevice(empty)
    assert (len(recorded), list(recorded)) == (0, [])


def test_replay_of_bfloat16_and_of_complex_fields(tmp_path):
    low = network("bfloat16")
    device = noisy(low, log=tmp_path / "low.log")
    with device.installed(low):
        expected = low(X)
    with pnn.RecordedDevice(tmp_path / "low.log").installed(low):
        replayed = low(X)
    assert replayed.dtype == tf.bfloat16
    np.testing.assert_array_equal(expected, replayed)
    mesh = keras.Sequential(
        [keras.Input((4,), dtype="complex64"), pnn.layers.MZIMesh(4, name="mesh")]
    )
    fields = (X[:, [0, 1, 2, 0]] + 1j).astype("complex64")
    (chip,) = pnn.Variation(theta_error=0.1).sample(mesh, 1)
    device = Noisy(chip.attach(mesh), log=tmp_path / "mesh.log")
    outputs = acquired(device, mesh.layers[0], fields)
    recorded = pnn.RecordedDevice(tmp_path / "mesh.log")
    replayed = acquired(recorded, mesh.layers[0], fields)
    assert replayed.dtype == np.complex64
    assert replayed.tobytes() == outputs.tobytes()
