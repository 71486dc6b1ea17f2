"""What is called and saved comes back, or saving raises: no file holds code."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import LOSS, bank, compiled, mesh, samples

import keras_pnn as pnn
from keras_pnn.training.gradients.base import ModelGradient

X, Y = samples(features=2, classes=2)
register = keras.saving.register_keras_serializable(package="test_callables")


@register
def same(value, *others, **kwargs):
    return value


@register
def controls(variable):
    return variable.name == "control"


@register
def cross_entropy(y_true, y_pred):
    return LOSS(y_true, y_pred)


@register
def accuracy(y_true, y_pred):
    return keras.metrics.sparse_categorical_accuracy(y_true, y_pred)


@register
def penalty(value):
    return keras.ops.sum(keras.ops.square(value))


def sat(**kwargs):
    return compiled(pnn.SATModel(bank(), **kwargs), run_eagerly=True)


def asked(**kwargs):
    model = pnn.SATModel(bank())
    model.compile("sgd", **{"loss": LOSS, "run_eagerly": True, **kwargs})
    return model


def slm(**kwargs):
    layer = pnn.layers.MaskedSLM(2, name="slm", **kwargs)
    return keras.Sequential([keras.Input((4,)), layer])


def conv(**kwargs):
    layer = pnn.layers.MRRConv2D(2, 2, name="conv", **kwargs)
    return keras.Sequential([keras.Input((4, 4, 1)), layer])


def svd(**kwargs):
    layer = pnn.layers.MZIDense(2, name="svd", **kwargs)
    return keras.Sequential([keras.Input((2,)), layer])


# What has the argument, the argument, and a function for it that is registered.
TAKERS = [
    (sat, "perturb", controls),
    (asked, "loss", cross_entropy),
    (asked, "metrics", [accuracy]),
    (bank, "activation", same),
    (bank, "dac", same),
    (bank, "kernel_initializer", keras.initializers.Zeros()),
    (bank, "kernel_regularizer", penalty),
    (bank, "control_constraint", same),
    (conv, "dac", same),
    (conv, "bias_constraint", same),
    (mesh, "dac", same),
    (mesh, "phase_regularizer", penalty),
    (svd, "phase_constraint", same),
    (slm, "dac", same),
    (slm, "mask_regularizer", penalty),
]


def identify(value):
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    return name or type(value).__name__


def refused(make, name, value, path):
    """Whether saving raises what to do, and leaves what was in the file."""
    model = make(**{name: value})
    path.write_text("the last epoch")
    expected = rf"cannot be saved with this `{name}`: .*register_keras.*{name}="
    with pytest.raises(ValueError, match=expected):
        model.save(path)
    # Keras has opened the file of a model that is not ours.
    return make not in (sat, asked) or path.read_text() == "the last epoch"


@pytest.mark.parametrize(("make", "name", "function"), TAKERS, ids=identify)
def test_a_lambda_is_refused_and_a_registered_function_is_loaded(
    make, name, function, tmp_path
):
    unnamed = lambda *args, **kwargs: function(*args, **kwargs)  # noqa: E731
    if isinstance(function, list):
        unnamed = [lambda *args: function[0](*args)]
    path = tmp_path / "model.keras"
    assert refused(make, name, unnamed, path)
    model = make(**{name: function})
    model.save(path)
    loaded = keras.saving.load_model(path)
    ours = make in (sat, asked)
    inputs = X if ours else np.ones((3, *model.input_shape[1:]))
    np.testing.assert_array_equal(
        loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
    if ours:
        logs = [m.fit(X, Y, verbose=0, shuffle=False).history for m in (model, loaded)]
        assert logs[0] == logs[1]


class Bare:
    """A selection of variables without a configuration."""

    def __call__(self, variable):
        return True

    def method(self, variable):
        return True


class Damped(ModelGradient):
    """A source of gradients that does not tell its argument."""

    def __init__(self, factor=1.0):
        self._factor = factor


class Unsaid(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without `get_config`."""

    def __call__(self, step):
        return 0.1


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (sat, "perturb", Bare()),
        (sat, "perturb", Bare().method),
        (sat, "perturb", functools.partial(same, 1)),
        (sat, "gradient", Damped(0.5)),
        (sat, "ascent", pnn.SAM(Unsaid())),
        (asked, "loss", functools.partial(cross_entropy)),
        (asked, "metrics", [keras.metrics.MeanMetricWrapper(lambda y, p: p[:, 0])]),
        (bank, "activation", layers.Lambda(lambda v: v)),
        (bank, "dac", np.round),
        (mesh, "dac", functools.partial(same)),
    ],
    ids=identify,
)
def test_what_has_neither_a_name_nor_a_configuration_is_refused(
    make, name, value, tmp_path
):
    assert refused(make, name, value, tmp_path / "model.keras")


def test_the_names_in_place_of_a_predicate_are_told():
    unnamed = pnn.SATModel(bank(), perturb=lambda v: v.name == "control")
    expected = r"SATModel 'sat_.*' cannot .* patterns such as 'mrr_bank_\*/control'"
    with pytest.raises(ValueError, match=expected):
        unnamed.get_config()


def relu(value):
    """Not that of Keras, which would be loaded in its place."""
    return -value


def steps(value):
    """Not registered, and of a name that Keras has not."""
    return keras.ops.round(value)


def test_functions_that_are_not_registered(tmp_path):
    path = tmp_path / "model.keras"
    assert refused(bank, "activation", relu, path)
    for name, function in {"dac": steps, "activation": tf.nn.relu}.items():
        model = bank(**{name: function})
        model.save(path)
        loaded = keras.saving.load_model(path, custom_objects={"steps": steps})
        np.testing.assert_array_equal(loaded(X), model(X))
