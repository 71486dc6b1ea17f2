"""Training through a simulated bench in another process, whatever happens to it."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import scpi_server
import train_through_instrument as training

import keras_pnn as pnn

ROOT = pathlib.Path(__file__).parents[2]


def bench_with(*arguments):
    """A simulated bench whose readings are noisy."""
    return scpi_server.running("--noise", 1e-5, *arguments)


def same(one, two):
    assert len(one) == len(two) > 3
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module", params=["PAT", "SAT"])
def undisturbed(request):
    """A kind of training, its result without a fault, and the measurements."""
    with bench_with() as port, training.bench(port) as device:
        state = training.train(request.param, device)
    assert device.failures == 0
    return request.param, state, device.calls


def test_training_sees_the_bench(undisturbed):
    kind, state, calls = undisturbed
    passes = 2 if kind == "SAT" else 1
    # 3 epochs of 5 batches in 2 chunks each.
    assert calls == 3 * 5 * 2 * passes
    layer = training.network().get_layer("bank").controls["control"]
    moved = np.abs(state[0] - layer.numpy())
    assert moved.max() > 0.05
    with bench_with("--seed", 1) as port, training.bench(port) as device:
        other = training.train(kind, device)
    assert np.abs(other[0] - state[0]).max() > 1e-3


def test_refusals_and_a_hang_change_nothing(undisturbed):
    kind, state, calls = undisturbed
    with (
        bench_with("--refuse", 0.02, "--hang-at", 17) as port,
        training.bench(port, timeout=0.5) as device,
    ):
        disturbed = training.train(kind, device)
    assert device.failures >= 3 and device.calls > calls
    same(disturbed, state)


def test_an_instrument_that_dies_loses_no_step(undisturbed, tmp_path):
    kind, state, _ = undisturbed
    keeper = pnn.callbacks.Checkpoint(tmp_path / "state")
    with bench_with("--dead-after", 45) as port:
        device = training.bench(port, timeout=0.5)
        device.retries = 1
        with pytest.raises(pnn.DeviceError, match="'bank'") as caught, device:
            training.train(kind, device, keeper)
    assert "Checkpoint" in "".join(caught.value.__notes__)
    again = pnn.callbacks.Checkpoint(tmp_path / "state")
    with bench_with() as port, training.bench(port) as device:
        resumed = training.train(kind, device, again)
    # What was done is not measured again.
    passes = 2 if kind == "SAT" else 1
    assert 0 < device.calls < 3 * 5 * 2 * passes
    same(resumed, state)


def test_the_example_goes_on_with_runs_of_the_same_setting_alone(monkeypatch):
    """A state of another seed or bench would be trained on with this one's data."""
    path = ROOT / "examples" / "instrument_in_the_loop.py"
    spec = importlib.util.spec_from_file_location("instrument_in_the_loop", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def folder(text, name="PAT"):
        monkeypatch.setattr(sys, "argv", ["example", *text.split()])
        return example.state_folder(name, example.arguments())

    others = [
        "--seed 1",
        "--shift 0.05",
        "--epochs 3",
        "--quick",
        "--quick --epochs 3",
        "--config one.toml",
        "--config two.toml",
        "--out elsewhere",
    ]
    folders = [folder(text) for text in ("", *others)] + [folder("", "SAT")]
    assert len(set(folders)) == len(folders)
    assert folder("--seed 0 --shift 0.04 --epochs 20 --out results") == folders[0]


def run(kind, port, folder, *kill):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    arguments = [kind, port, folder / "state", folder / "resumed.npz", *kill]
    return subprocess.run(
        [sys.executable, training.__file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_killed_run_goes_on(undisturbed, tmp_path):
    kind, state, calls = undisturbed
    if kind == "PAT":
        pytest.skip("SAT does all that PAT does, and starting takes long")
    with bench_with("--refuse", 0.02) as port:
        killed = run(kind, port, tmp_path, "kill")
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert killed.stdout.split() == ["EPOCH", "0", "EPOCH", "1"]
        again = run(kind, port, tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    words = again.stdout.split()
    assert words[:4] == ["EPOCH", "1", "EPOCH", "2"]
    # From the fourth batch of the second epoch on, refused calls included.
    assert calls * 7 / 15 <= int(words[-1]) < calls
    with np.load(tmp_path / "resumed.npz") as resumed:
        same([resumed[name] for name in resumed.files], state)
