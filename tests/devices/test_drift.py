"""Drift processes: reproducible paths, their statistics, recorded ones."""

import json
import math
import pickle
import time

import keras
import numpy as np
import pytest

from keras_pnn.devices import drift

PROCESSES = [
    drift.Linear(0.5, start=1.0),
    drift.Uniform(-1.0, 2.0),
    drift.RandomWalk(0.3, start=1.0),
    drift.OrnsteinUhlenbeck(0.5, relaxation=20.0, mean=2.0),
    drift.Sinusoid(2.0, period=8.0, phase=0.1),
    drift.Recorded([1.0, 2.0, 4.0], past_end="repeat"),
]
RANDOM = PROCESSES[1:4]


def kind(process):
    return type(process).__name__


def fresh(process):
    return type(process).from_config(process.get_config())


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_a_path_is_its_points_in_any_order(process):
    path = fresh(process).path(2500, seed=3)
    assert path.shape == (2500,) and path.dtype == np.float64
    other = fresh(process)
    for step in (2499, 0, 1024, 1023, 2048, 1, 2047):
        assert other.at(step, seed=3) == path[step]
        assert fresh(process).at(step, seed=3) == path[step]
    assert fresh(process).path(0).shape == (0,)


@pytest.mark.parametrize("process", RANDOM, ids=kind)
def test_seeds_share_no_state(process):
    expected = {seed: fresh(process).path(1100, seed) for seed in range(12)}
    shared = fresh(process)
    for step in (0, 1050, 3):
        for seed in range(12):
            assert shared.at(step, seed) == expected[seed][step]
    assert len({shared.at(1050, seed) for seed in range(12)}) == 12
    assert shared.at(5, seed=(0, 1)) != shared.at(5, seed=(0, 2))
    assert shared.at(5, seed=(1,)) == shared.at(5, seed=1)
    # NumPy alone would take these for one seed.
    assert shared.at(5, seed=(1, 0)) != shared.at(5, seed=1)


def test_draws_are_those_of_earlier_versions():
    walk, held = drift.RandomWalk(0.3, start=1.0), drift.OrnsteinUhlenbeck(0.5, 20.0)
    assert walk.at(2500, seed=3) == 3.7491453731518423
    assert held.at(2500, seed=(3, 1)) == 0.6352879890216141
    assert drift.Uniform(-1.0, 2.0).at(2500, seed=3) == 1.5072812192769676


def test_steps_in_order_take_constant_time():
    def seconds(start):
        begin = time.perf_counter()
        for step in range(start, start + 20_000):
            for seed in (0, (0, 1)):
                walk.at(step, seed)
        return time.perf_counter() - begin

    walk = drift.RandomWalk(0.1)
    first = seconds(0)
    walk.at(400_000)
    walk.at(400_000, (0, 1))
    # Drawing all blocks anew at each step would take a thousand times as long.
    assert seconds(400_000) < 20 * first


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_serialisation(process):
    process.at(1500, seed=1)
    config = keras.saving.serialize_keras_object(process)
    for copy in (
        keras.saving.deserialize_keras_object(config),
        pickle.loads(pickle.dumps(process)),
    ):
        assert copy == process
        assert copy.at(1500, seed=1) == process.at(1500, seed=1)


def test_closed_forms():
    np.testing.assert_allclose(
        drift.Linear(0.5, start=1.0).path(4), [1.0, 1.5, 2.0, 2.5], rtol=1e-15
    )
    np.testing.assert_allclose(
        drift.Sinusoid(2.0, period=4.0).path(5), [0, 2, 0, -2, 0], atol=1e-14
    )
    assert drift.Sinusoid(2.0, period=4.0, phase=math.pi / 2).at(0) == 2.0
    assert drift.RandomWalk(0.0, start=3.0).at(2000) == 3.0
    assert drift.OrnsteinUhlenbeck(0.0, relaxation=5.0, mean=3.0).at(2000) == 3.0


def test_uniform_statistics():
    draws = drift.Uniform(-1.0, 3.0).path(20_000, seed=0)
    assert draws.min() >= -1 and draws.max() < 3
    # Mean 1, variance 16 / 12; four standard errors.
    assert abs(draws.mean() - 1.0) < 4 * math.sqrt(16 / 12 / 20_000)
    correlation = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(correlation) < 4 / math.sqrt(20_000)


def test_random_walk_statistics():
    process = drift.RandomWalk(std=0.3, start=5.0)
    walk = process.path(30_001, seed=0)
    steps = np.diff(walk)
    assert walk[0] == 5.0
    # The variance of n normal draws has the relative standard error sqrt(2 / n).
    assert abs(steps.var() / 0.09 - 1) < 4 * math.sqrt(2 / len(steps))
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 4 / math.sqrt(len(steps))
    # Across seeds, and across the border between two blocks.
    ends = np.array([process.at(1100, seed) for seed in range(600)]) - 5.0
    assert abs(ends.var() / (1100 * 0.09) - 1) < 4 * math.sqrt(2 / 600)


def test_ornstein_uhlenbeck_statistics():
    process = drift.OrnsteinUhlenbeck(std=0.5, relaxation=10.0, mean=2.0)
    # Stationary from step 0 on, not grown from the mean.
    starts = np.array([process.path(8, seed) for seed in range(1000)])
    for step in (0, 1, 7):
        assert abs(starts[:, step].mean() - 2.0) < 4 * 0.5 / math.sqrt(1000)
        assert abs(starts[:, step].var() / 0.25 - 1) < 4 * math.sqrt(2 / 1000)
    # The standard error of an autocovariance of a long path is at most this, since
    # the squared correlations sum to the relaxation time.
    path = process.path(60_000, seed=0) - 2.0
    error = math.sqrt(2 * 10.0 / len(path))
    for lag in (0, 1, 5, 10, 20):
        correlation = np.mean(path[: len(path) - lag] * path[lag:]) / 0.25
        assert abs(correlation - math.exp(-lag / 10.0)) < 4 * error
    innovation = path[1:] - math.exp(-0.1) * path[:-1]
    variance = 0.25 * (1 - math.exp(-0.2))
    assert abs(innovation.var() / variance - 1) < 4 * math.sqrt(2 / len(path))


def test_processes_with_one_seed_are_independent():
    steps = np.diff(drift.RandomWalk(1.0).path(5001, seed=0))
    path = drift.OrnsteinUhlenbeck(1.0, relaxation=0.01).path(5000, seed=0)
    for lag in (0, 1):
        correlation = np.corrcoef(steps[: 5000 - lag], path[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(5000)


def test_recorded_past_its_end():
    values = [1.0, 2.0, 4.0]
    assert drift.Recorded(values, past_end="hold").path(5).tolist() == [1, 2, 4, 4, 4]
    assert drift.Recorded(values, past_end="repeat").path(5).tolist() == [1, 2, 4, 1, 2]
    assert drift.Recorded(values).path(3).tolist() == values
    with pytest.raises(ValueError, match=r"3 values.*Received: step=3"):
        drift.Recorded(values).at(3)


def test_recorded_from_csv(tmp_path):
    path = tmp_path / "chip.csv"
    path.write_text("\ufefftime_s, temperature_K\n0,1.5\n\n1,-2e-1\n", encoding="utf-8")
    record = drift.Recorded.from_csv(path, "temperature_K", past_end="hold")
    assert record == drift.Recorded((1.5, -0.2), past_end="hold")
    path.write_text("temperature_K\n3\n")
    assert drift.Recorded.from_csv(path).values == (3.0,)


@pytest.mark.parametrize(
    "text, column, message",
    [
        ("temperature_K\n", None, r"at least one row.*\['temperature_K'\]"),
        ("a,b\n1,2\n", None, r"`column`.*\['a', 'b'\].*Received: None"),
        ("a,b\n1,2\n", "c", "Received: 'c'"),
        ("a,b\n1,2\n", ["a", "c"], "`column`.*'c'"),
        ("a,a\n1,2\n", "a", "exactly one"),
        ("a,b\n1,2\n1,warm\n", "b", "chip.csv, line 3.*'warm'"),
    ],
)
def test_bad_csv(tmp_path, text, column, message):
    path = tmp_path / "chip.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        drift.Recorded.from_csv(path, column)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: drift.Linear(math.nan), "`rate`.*Received: nan"),
        (lambda: drift.Linear(1.0, start="0"), "`start`.*Received: '0'"),
        (lambda: drift.Uniform(2.0, 1.0), "Received: low=2.0, high=1.0"),
        (lambda: drift.Uniform(-1e308, 1e308), "finite range"),
        (lambda: drift.RandomWalk(-0.1), "`std`.* ≥ 0. Received: -0.1"),
        (lambda: drift.OrnsteinUhlenbeck(1.0, 0.0), "`relaxation`.* > 0"),
        (lambda: drift.Sinusoid(1.0, 0), "`period`.*Received: 0"),
        (lambda: drift.Recorded([]), r"`values`.*Received: \[\]"),
        (lambda: drift.Recorded([[[1.0]]]), r"`values`.*array \(steps, series\)"),
        (lambda: drift.Recorded([1.0, math.inf]), "`values`.*Received: inf"),
        (lambda: drift.Recorded([1.0], past_end="stop"), "`past_end`.*'stop'"),
        (lambda: drift.Linear(1.0).at(-1), "`step`.*Received: -1"),
        (lambda: drift.Linear(1.0).at(0, seed=(1, -1)), "`seed`.*Received: -1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_series_for_each_ring(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("Time (s),ch1,ch2,sum\n0,0.1,0.2,0.3\n4,0.4,0.5,0.9\n")
    found = drift.Recorded.from_csv(path, ["ch1", "ch2"], past_end="repeat")
    np.testing.assert_array_equal(found.at(3), [0.4, 0.5])
    np.testing.assert_array_equal(found.path(3), [[0.1, 0.2], [0.4, 0.5], [0.1, 0.2]])
    again = drift.Recorded.from_config(json.loads(json.dumps(found.get_config())))
    assert again == found and hash(again) == hash(found)
