"""Training that collapses is told, and training that learns is not."""

import warnings

import keras
import numpy as np
import pytest

import keras_pnn as pnn

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 8))
X = np.eye(4, dtype="float32")[Y]


def fit(metrics=("accuracy",), rate=0.5, **kwargs):
    """Logs and warnings of six epochs, which plain training learns in two."""
    keras.utils.set_random_seed(0)
    bank = pnn.layers.MRRBank
    model = keras.Sequential([keras.Input((4,)), bank(8, activation="relu"), bank(4)])
    sat = pnn.SATModel(model, **kwargs)
    sat.compile(keras.optimizers.SGD(rate), LOSS, metrics=list(metrics))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        logs = sat.fit(X, Y, batch_size=8, epochs=6, verbose=0).history
    return logs, [str(w.message) for w in told if "collapsed" in str(w.message)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rho", 2.0), ("variation", pnn.Variation(resonance_shift=30.0))],
)
def test_a_collapse_is_told_once(name, value):
    logs, messages = fit(**{name: value})
    assert max(logs["accuracy"]) <= 0.25
    assert len(messages) == 1
    assert f"{name}={value!r}" in messages[0] and "warmup" in messages[0]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rho": 0.01},
        {"variation": pnn.Variation(resonance_shift=0.01)},
        # Nothing that could be too large, or nothing that shows it.
        {"ascent": None, "rate": 0.0},
        {"rho": 2.0, "metrics": ()},
    ],
)
def test_other_training_is_not_accused(kwargs):
    assert fit(**kwargs)[1] == []
