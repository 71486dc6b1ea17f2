"""What a study accepts, whatever the model."""

import inspect

import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import Specification
from keras_pnn.robustness.axes import DeviationAxis, FactorAxis, SpreadAxis
from keras_pnn.robustness.curvature import HessianOptions

VARIATION = pnn.Variation(resonance_shift=0.03)
DEVICE = pnn.SimulatedDevice({})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 0}, "`n` must be an integer ≥ 1. Received: 0"),
        ({"seed": -1}, "`seed` must be an integer ≥ 0. Received: -1"),
        ({"probe": 1.5}, "`probe` must be an integer ≥ 1. Received: 1.5"),
        ({"batch_size": "9"}, "`batch_size` must be an integer.*Received: '9'"),
        ({"memory_limit": 0}, "`memory_limit` must be .*> 0. Received: 0"),
        ({"spec": True}, "`spec` must be a finite number. Received: True"),
        ({"mode": "up"}, "`mode` must be one of 'auto', 'max', 'min'"),
        ({"sensitivity": 1}, "`sensitivity` must be True or False. Received: 1"),
        ({"worst_case": 3}, "`worst_case` must be True, False .*Received: 3"),
        ({"sweep_devices": 9}, r"`sweep_devices` must be .* \[0, 2\]. Received: 9"),
        ({"devices": 5, "variation": None}, "`devices` must be .*Received: 5"),
        ({"devices": [], "variation": None}, r"at least one. Received: \[\]"),
        ({"devices": [1], "variation": None}, "list of simulated devices"),
        ({"devices": VARIATION}, "not both"),
        ({"variation": 0.1}, "`variation` must be a `Variation`. Received: 0.1"),
        ({"trained_on": [1]}, r"`trained_on` must be a dictionary.*Received: \[1\]"),
        ({"trained_on": {"a": 1}}, "`trained_on` must be .*simulated devices"),
        ({"sweeps": ["temperature"]}, "`sweeps` must be a dictionary"),
        ({"sweeps": {1: [0.0]}}, r"`sweeps` must be .*\(strings\).*Received: \{1"),
        ({"sweeps": {"a": [0.0, np.nan]}}, r"`sweeps\['a'\]` must be finite numbers"),
        ({"sweeps": {"a": []}}, r"`sweeps\['a'\]` must be at least one value"),
        ({"sweeps": {"variation": [-1.0]}}, "must be finite numbers ≥ 0"),
        ({"sweeps": {"std:a": [-1.0]}}, "must be finite numbers ≥ 0"),
        ({"sweeps": {"std:a": [[1.0]]}}, "must be numbers ≥ 0"),
        ({"grid": {"a": [0.0]}}, "`grid` must be a dictionary of two names"),
        ({"variation": None, "sweeps": {"variation": [1]}}, "give `devices` or"),
        ({"sweeps": {"variation": [1]}, "sweep_devices": 0}, "be at least 1"),
        (
            {"variation": None, "devices": [DEVICE], "sweeps": {"std:a": [1]}},
            "give the `variation`",
        ),
        ({"hessian": 3}, "`hessian` must be True, False .*Received: 3"),
        ({"hessian": {"steps": 3}}, "`hessian` must be .*dictionary of"),
        ({"hessian": {"k": 0}}, "In `hessian`.*`k` must be .*Received: 0"),
        ({"hessian": {"variables": ()}}, r"In `hessian`.*`variables`.*Received: \(\)"),
        ({"landscape": "yes"}, "`landscape` must be .*Received: 'yes'"),
        ({"fast": 1}, "`fast` must be True or False. Received: 1"),
        ({"fast": True, "hessian": {"k": 2}}, "`hessian` must be no dictionary"),
        ({"landscape": {"x": 1}}, "`landscape` must be .*dictionary of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Specification(**{"variation": VARIATION, "n": 2, **arguments})


def test_an_unknown_argument():
    with pytest.raises(TypeError, match="variaton"):
        Specification(variaton=VARIATION)


def test_axes_are_typed():
    sweeps = {"a/b": [1, 2], "std:a+b": [0.0], "variation": 2}
    found = Specification(variation=VARIATION, sweeps=sweeps).sweeps
    assert list(found) == [axis.name for axis in found.values()] == list(sweeps)
    deviation, spread, factor = found.values()
    assert isinstance(deviation, DeviationAxis) and not deviation.random
    assert isinstance(spread, SpreadAxis) and spread.imperfections == ["a", "b"]
    assert isinstance(factor, FactorAxis) and factor.values.tolist() == [2.0]


def test_options():
    assert Specification(hessian=False).hessian is None
    assert Specification().hessian == HessianOptions()
    assert Specification(hessian={"variables": "all"}).hessian.variables == ("all",)
    assert Specification(landscape=None).landscape is None
    assert Specification(landscape={"points": 3}).landscape == {"points": 3}
    fast = Specification(fast=True)
    assert fast.hessian is None and fast.landscape is None
    assert fast.worst_case is True and fast.sensitivity is True


def test_devices():
    assert Specification(devices=VARIATION).variation is VARIATION
    assert Specification(devices=iter([DEVICE])).devices == [DEVICE]
    whole = Specification(variation=VARIATION, n=np.int64(3), seed=np.int32(1))
    assert (whole.n, whole.sweep_devices, whole.devices) == (3, 3, None)


def test_the_report_describes_every_argument():
    names = inspect.signature(Specification).parameters
    undescribed = [n for n in names if f"`{n}`" not in pnn.robustness_report.__doc__]
    assert not undescribed


@pytest.mark.parametrize(
    "function", [pnn.robustness_report, pnn.robustness.robustness_rows]
)
def test_an_unknown_keyword_names_the_function_and_the_nearest_keyword(function):
    message = rf"^{function.__name__}\(\) has no argument `sweep`.*`sweeps`\?$"
    with pytest.raises(TypeError, match=message):
        function(None, None, cache_dir=".", sweep={})
