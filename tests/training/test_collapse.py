"""Training that collapses is told, and training that learns is not."""

import warnings

import keras
import numpy as np
import pytest

import keras_pnn as pnn

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 8))
X = np.eye(4, dtype="float32")[Y]


def fit(metrics=("accuracy",), rate=0.5, tuning=None, epochs=6, **kwargs):
    """Logs and warnings of epochs of four steps; plain training learns in two."""
    keras.utils.set_random_seed(0)
    hidden = pnn.layers.MRRBank(8, activation="relu", tuning=tuning, name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, pnn.layers.MRRBank(4)])
    sat = pnn.SATModel(model, **kwargs)
    sat.compile(keras.optimizers.SGD(rate), LOSS, metrics=list(metrics))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        logs = sat.fit(X, Y, batch_size=8, epochs=epochs, verbose=0).history
    told = [w for w in told if "Train from new weights" in str(w.message)]
    assert all(w.filename == __file__ for w in told)
    return logs, [str(w.message) for w in told]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rho", 2.2), ("variation", pnn.Variation(resonance_shift=3000.0))],
)
def test_a_collapse_is_told_once(name, value):
    logs, messages = fit(**{name: value}, epochs=26)
    assert max(logs["accuracy"]) <= 0.25
    assert len(messages) == 1
    for word in (f"{name}={value!r}, ", "warmup", "learning_rate=0.5,", "inputs"):
        assert word in messages[0]


@pytest.mark.parametrize(
    ("kwargs", "cause"),
    [
        # The ends of the curve are 0.1 nm away.
        ({"variation": pnn.Variation(resonance_shift=0.2)}, "Rings of 'hidden'"),
        ({"ascent": None, "rate": 1e38, "tuning": None}, "learning_rate=1e+38"),
    ],
)
def test_a_loss_of_nan_is_told_once(kwargs, cause):
    shift = np.linspace(0, 1, 21)
    weight = 1 - 2 / (1 + (shift / 0.15) ** 2)
    curve = pnn.MeasuredTuning(shift, weight, "nm")
    logs, messages = fit(**{"tuning": curve, **kwargs})
    assert np.isnan(logs["loss"][-1]) and len(messages) == 1
    assert "NaN" in messages[0] and cause in messages[0] and "rho" not in messages[0]
    assert ("`margin=`" in messages[0]) == ("Rings" in cause)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rho": 0.01},
        {"variation": pnn.Variation(resonance_shift=0.01)},
        # Nothing that could be too large, or nothing that shows it.
        {"ascent": None, "rate": 0.0},
        {"rho": 2.2, "metrics": (), "epochs": 26},
        # Too few steps to tell.
        {"rho": 2.2},
    ],
)
def test_other_training_is_not_accused(kwargs):
    assert fit(**kwargs)[1] == []
