"""The log of measurements: what is written is read, what is damaged is refused."""

import functools
import multiprocessing
import os
import resource
import signal
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import keras_pnn as pnn
from keras_pnn.hardware import log
from keras_pnn.hardware.log import Record, request_digest

# A child that imports the package anew would take seconds.
FORK = multiprocessing.get_context("fork")
ARRAYS = npst.arrays(
    st.sampled_from(["float16", "float32", "float64", "complex64", "int32"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


def record(seed=0, size=3, layer="first"):
    rng = np.random.default_rng(seed)
    inputs, outputs = rng.normal(size=(2, 2, size)).astype("float32")
    controls = {"control": rng.normal(size=3)}
    digest = request_digest(layer, inputs, controls)
    return Record(layer, inputs, controls, outputs, 0.25, 2, digest)


def content(record):
    arrays = [record.inputs, record.outputs, *record.controls.values()]
    return (
        (record.layer, record.seconds, record.attempts, record.digest),
        list(record.controls),
        [(a.shape, a.dtype, a.tobytes()) for a in arrays],
    )


def write(path, records):
    log.prepare(path)
    for each in records:
        log.append(path, each)
    return path


def read(path):
    return [content(each) for each in log.read(path, log.record_ids(path))]


@settings(max_examples=8, deadline=None)
@given(
    arrays=st.lists(ARRAYS, min_size=2, max_size=4),
    layer=st.text(min_size=1, max_size=8),
    seconds=st.floats(0, 1e9),
)
def test_round_trip(tmp_path_factory, arrays, layer, seconds):
    path = tmp_path_factory.mktemp("log") / "bench.log"
    inputs, outputs, *others = arrays
    controls = {f"c{i}": a for i, a in enumerate(others)}
    written = [
        Record(layer, inputs, controls, outputs, seconds, 1, "a"),
        Record(layer, outputs, {}, inputs, seconds, 7, "b"),
    ]
    assert read(write(path, written)) == list(map(content, written))


def test_a_digest_sees_every_difference():
    a = np.arange(6, dtype="float32")
    pq, bit = {"p": a, "q": a + 1}, np.nextafter(a, np.float32(9))
    others = [a.astype("float64"), a.view("int32"), a.reshape(2, 3), bit, -a * 0, a * 0]
    digests = [
        request_digest("second", a, pq),
        *(request_digest("first", other, pq) for other in others),
        request_digest("first", a, {"p": a + 1, "q": a}),
        request_digest("first", a, {"p": a, "r": a + 1}),
        request_digest("first", a, {"p": a}),
        request_digest("first", a, pq),
    ]
    assert len(set(digests)) == len(digests)
    assert request_digest("first", a, {"q": a + 1, "p": a}) == digests[-1]
    for equal in (np.repeat(a, 2)[::2], a.astype(">f4")):
        assert request_digest("first", equal, pq) == digests[-1]


@pytest.fixture
def whole(tmp_path):
    """The path of a log, its bytes and its records."""
    path = write(tmp_path / "bench.log", [record(0), record(1, layer="second")])
    return path, path.read_bytes(), read(path)


def test_a_log_that_was_cut_short_is_refused(whole):
    path, data, _ = whole
    # SQLite takes a file of one byte for an empty one.
    for size in range(2, len(data), 97):
        path.write_bytes(data[:size])
        for opening in (read, log.prepare):
            with pytest.raises(ValueError, match=r"bench\.log, which is damaged"):
                opening(path)
        assert path.read_bytes() == data[:size]


def test_a_damaged_byte_is_seen_or_changes_nothing(whole):
    path, data, records = whole
    seen = 0
    for position in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert read(path) == records
        except ValueError as error:
            assert "bench.log" in str(error)
            seen += 1
    assert seen > 70


@pytest.mark.parametrize("kind", ["text", "SQLite"])
def test_another_file_is_left_alone(tmp_path, kind):
    path = tmp_path / "thesis"
    path.write_text("keys")
    if kind == "SQLite":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE records (id)")
        connection.close()
    before = path.read_bytes()
    for opening in (pnn.RecordedDevice, lambda path: pnn.HardwareDevice(log=path)):
        with pytest.raises(ValueError, match=r"Received: .*thesis, "):
            opening(path)
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        pnn.HardwareDevice(log=tmp_path / "missing" / "bench.log")


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_trace(whole):
    path, data, records = whole
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) + 40, before[1]))
    try:
        with pytest.raises(OSError, match=r"bench\.log"):
            log.append(path, record(2, size=3000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(path) == records
    log.append(path, record(2))
    assert len(read(path)) == 3


class Killed(sqlite3.Connection):
    """Dies when the record is in the file and its transaction has not ended."""

    def execute(self, statement, *args):
        if not statement.startswith("INSERT"):
            return super().execute(statement, *args)
        super().execute("PRAGMA cache_size = 1")
        super().execute("BEGIN")
        super().execute(statement, *args)
        os.kill(os.getpid(), signal.SIGKILL)


def append_and_die(path):
    log.sqlite3.connect = functools.partial(sqlite3.connect, factory=Killed)
    log.append(path, record(5, size=300_000))


def test_a_process_that_is_killed_loses_what_it_writes_alone(whole):
    path, data, records = whole
    process = FORK.Process(target=append_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.stat().st_size > 10 * len(data)
    assert read(path) == records
    assert path.read_bytes() == data
    write(path, [record(7)])
    assert read(path) == [*records, content(record(7))]


def test_processes_share_a_log(tmp_path):
    path = tmp_path / "bench.log"
    parts = [[record(first + k) for k in range(20)] for first in (0, 100)]
    processes = [FORK.Process(target=write, args=(path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = read(path)
    for part in parts:
        mine = list(map(content, part))
        assert [each for each in found if each in mine] == mine
    assert len(found) == 40
