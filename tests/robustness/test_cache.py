"""Points that are kept: interruptions, damage, several processes and several parts."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import cache
from keras_pnn.robustness.cache import Cache
from keras_pnn.robustness.model_study import ModelStudy

POINTS = 12


@pytest.fixture
def measured(monkeypatch):
    """Counts the points that are measured."""
    counted, real = [], ModelStudy.block

    def block(self, numbers):
        counted.extend(numbers)
        return real(self, numbers)

    monkeypatch.setattr(ModelStudy, "block", block)
    return counted


# One file.


def some(folder, study="study", part=(0, 1), loss=1.0):
    return Cache(folder, study, 3, loss, part)


def test_points_come_back_bit_for_bit(tmp_path):
    values = {"loss": 0.1 + 0.2, "accuracy": float(np.float32(0.7)), "nan": np.nan}
    some(tmp_path).add({0: values})
    some(tmp_path, part=(1, 2)).add({2: values})
    some(tmp_path, "other").add({1: values})
    found = some(tmp_path).read()
    assert sorted(found) == [0, 2]
    for point in found.values():
        np.testing.assert_array_equal(list(point.values()), list(values.values()))


def test_a_changed_loss_is_refused(tmp_path):
    some(tmp_path).add({0: {"loss": 1.0}})
    assert some(tmp_path, loss=1.001).read()
    assert not some(tmp_path, "other", loss=2.0).read()
    with pytest.raises(ValueError, match=r"`cache_dir`.*a function changed.*loss of 2"):
        some(tmp_path, loss=2.0).read()


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:4096] + b"x" * 4096 + whole[8192:],
        lambda whole: b"{}",
        lambda whole: b"",
    ],
    ids=["cut short", "overwritten", "another file", "empty"],
)
def test_a_damaged_file_is_made_again(tmp_path, content):
    some(tmp_path).add({i: {"loss": float(i)} for i in range(500)})
    path, other = some(tmp_path).path, some(tmp_path, part=(1, 2))
    path.write_bytes(content(path.read_bytes()))
    # Another part's file is left alone.
    with pytest.warns(UserWarning, match="is damaged"):
        assert other.read() == {}
    assert path.exists()
    with pytest.warns(UserWarning, match="is damaged"):
        assert some(tmp_path).read() == {}
    some(tmp_path).add({1: {"loss": 2.0}})
    assert other.read() == {1: {"loss": 2.0}}


def test_a_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="`cache_dir` must be a folder"):
        some(path)


def forked(function, *arguments):
    """Runs a function in another process, which shares nothing but files."""
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments
    )
    process.start()
    return process


def test_two_processes_write_one_file(tmp_path):
    def write(first):
        for i in range(first, first + 40):
            some(tmp_path).add({i: {"loss": float(i)}})

    writers = [forked(write, first) for first in (0, 40)]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert some(tmp_path).read() == {i: {"loss": float(i)} for i in range(80)}


def test_a_kill_within_a_transaction_takes_that_block_alone(tmp_path):
    def write():
        some(tmp_path).add({0: {"loss": 0.0}})
        with cache._opened(some(tmp_path).path) as file:
            # More than the memory holds back, so that the file itself is half written.
            file.execute("PRAGMA cache_size = 1")
            rows = [("study", i, "x" * 1000) for i in range(1, 200)]
            file.executemany("INSERT INTO points VALUES (?, ?, ?)", rows)
            os.kill(os.getpid(), signal.SIGKILL)

    writer = forked(write)
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    # Another part's reader takes the half back, too.
    assert some(tmp_path, part=(1, 2)).read() == {0: {"loss": 0.0}}
    some(tmp_path).add({1: {"loss": 1.0}})
    assert sorted(some(tmp_path).read()) == [0, 1]


# Studies.


KILLED = """
import os, sys
sys.path.insert(0, {here!r})
import conftest
from keras_pnn.robustness.cache import Cache
import keras_pnn as pnn

model = conftest.make_network()
model.load_weights({weights!r})
add, count = Cache.add, []

def dies(self, points):
    add(self, points)
    count.append(points)
    if len(count) == 3:
        os.kill(os.getpid(), 9)

Cache.add = dies
pnn.robustness_rows(
    model, conftest.X, conftest.Y, cache_dir={folder!r}, **conftest.STUDY
)
"""


def test_a_killed_study_goes_on_in_another_process(
    model, report, whole, tmp_path, measured
):
    weights, folder = tmp_path / "model.weights.h5", tmp_path / "points"
    model.save_weights(weights)
    here = str(pathlib.Path(__file__).parent)
    text = KILLED.format(here=here, weights=str(weights), folder=str(folder))
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, timeout=300
    )
    assert ended.returncode == -9, ended.stderr[-2000:]
    for missing in (POINTS - 3, 0):
        measured.clear()
        assert report(cache_dir=folder) == whole
        assert len(measured) == missing


def test_other_weights_data_or_arguments_are_another_study(
    prepared, network, data, study
):
    def digest(**arguments):
        (one,) = prepared(**{**study, **arguments}).studies.values()
        return one.digest()

    same = digest()
    assert digest(metric="loss", spec=0.2, worst_case=True) == same
    others = [
        digest(model=network(3)),
        digest(x=data[0][:40], y=data[1][:40]),
        digest(seed=1),
        digest(batch_size=50),
        digest(sweeps={"temperature": [-1.0, 0.0, 1.5]}),
    ]
    assert len({same, *others}) == 6


def test_parts_make_the_whole(model, data, study, report, whole, tmp_path, measured):
    rows = []
    for part in range(3):
        # A job that sees no other's folder.
        folder = tmp_path / str(part)
        rows += pnn.robustness_rows(
            model, *data, cache_dir=folder, part=(part, 3), **study
        )
    assert len(rows) == len(measured) == POINTS
    for path in tmp_path.glob("*/*.sqlite"):
        path.rename(tmp_path / path.name)
    measured.clear()
    assert report(cache_dir=tmp_path) == whole
    assert not measured
    # Every point once, in the types of JSON.
    places = [(r["section"], r["name"], *r["index"], r["device"]) for r in rows]
    assert len(set(places)) == POINTS
    assert ("sweep", "temperature", 2, None) in places
    (nominal,) = (r for r in rows if r["section"] == "nominal")
    assert nominal["metrics"] == whole["models"][model.name]["nominal"]


def test_rows_of_all_models_of_a_report(model, network, data, tmp_path):
    variation = pnn.Variation(resonance_shift=0.03)
    (device,) = variation.sample(model, 1)
    study = {
        "compare": {"other": network(5)},
        "trained_on": {"other": device},
        "variation": variation,
        "n": 1,
        "name": "mine",
        "verbose": 0,
    }
    rows = pnn.robustness_rows(model, *data, cache_dir=tmp_path, **study)
    # The design, the device, two layers alone, and the device of the other model.
    assert [row["model"] for row in rows] == ["mine"] * 5 + ["other"] * 5
    named = {(row["section"], row["name"]) for row in rows}
    assert {("transfer", "other"), ("sensitivity", "two/resonance_shift")} < named


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0.5, 2), 3], ids=str)
def test_parts_that_do_not_exist(model, data, study, tmp_path, part):
    with pytest.raises(ValueError, match="`part` must be"):
        pnn.robustness_rows(model, *data, cache_dir=tmp_path, part=part, **study)
