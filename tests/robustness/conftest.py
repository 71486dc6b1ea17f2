"""Share one small network of weight banks, and one study of it, among the tests."""

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness import Specification, Study
from keras_pnn.robustness.model_study import ModelStudy

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
STUDY = {
    "variation": pnn.Variation(resonance_shift=0.03),
    "n": 2,
    "sweeps": {"temperature": [-1.0, 0.0, 1.0]},
    "sensitivity": False,
    # One device at once: as many blocks as points.
    "memory_limit": 1e-9,
    "verbose": 0,
}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_network(seed=0, units=(5, 3), extra=(), metrics=("accuracy",), name=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = pnn.layers.MRRBank(units[0], activation="relu", name="one")(inputs)
    for layer in extra:
        x = layer(x)
    outputs = pnn.layers.MRRBank(units[1], name="two")(x)
    model = keras.Model(inputs, outputs, name=name or f"network_{seed}")
    model.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY, metrics=list(metrics))
    return model


@pytest.fixture(scope="session")
def network():
    """Makes an untrained network."""
    return make_network


@pytest.fixture(scope="session")
def data():
    return X, Y


@pytest.fixture(scope="session")
def model():
    """A trained network, which no test changes."""
    trained = make_network()
    trained.fit(X, Y, epochs=30, verbose=0)
    return trained


@pytest.fixture(scope="session")
def quiet():
    """What a report measures besides points, left out."""
    left_out = dict.fromkeys(("hessian", "landscape", "worst_case"), False)
    return {**left_out, "verbose": 0}


@pytest.fixture(scope="session")
def study():
    """Of twelve points: the design and two devices, alone and at three temperatures."""
    return STUDY


@pytest.fixture(scope="session")
def prepared(model, quiet):
    """Prepares a study of its points, which checks it, and measures nothing."""

    def make(model=model, x=X, y=Y, compare=None, name=None, **arguments):
        asked = {**quiet, **arguments}
        del asked["verbose"]
        study = Specification(**asked)
        return Study(study, model, x, y, compare=compare, name=name)

    return make


@pytest.fixture(scope="session")
def report(model, data, quiet):
    """Measures the study, but for how it was made."""

    def make(**arguments):
        asked = {**quiet, **STUDY, **arguments}
        found = pnn.robustness_report(model, *data, **asked).to_dict()
        del found["setting"]
        return found

    return make


@pytest.fixture(scope="session")
def whole(report):
    """All of the study, in one go."""
    return report()


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails where a study measures a point."""
    monkeypatch.setattr(ModelStudy, "block", lambda *_: pytest.fail("measured"))
