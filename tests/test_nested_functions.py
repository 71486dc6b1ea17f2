"""Values stand for weights that are read behind functions of TensorFlow's own."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_layers_table import Concrete, Custom, Decorated, Recomputed
from models import FIT, LOSS, difference_of_gradients, samples

import keras_pnn as pnn

X, Y = samples(8)


class Branching(keras.layers.Dense):
    """Dense with a loop and a condition that AutoGraph makes part of a graph."""

    @tf.function
    def call(self, inputs):
        outputs = tf.matmul(inputs, self.kernel)
        for _ in tf.range(2):
            if tf.reduce_sum(outputs) > -1e6:
                outputs = tf.tanh(outputs)
        return outputs


class Kept(keras.layers.Dense):
    """Dense that keeps the `tf.Variable` behind its kernel."""

    def build(self, input_shape):
        super().build(input_shape)
        self.kept = [self.kernel.value]

    def call(self, inputs):
        return tf.matmul(inputs, self.kept[0])


class DecoratedBank(pnn.layers.MRRBank):
    """A bank, in a graph of its own."""

    @tf.function
    def call(self, inputs):
        return super().call(inputs)


class ConcreteBank(pnn.layers.MRRBank):
    """A bank, in a graph that was made once."""

    def call(self, inputs):
        if not hasattr(self, "function"):
            function = tf.function(super().call)
            spec = tf.TensorSpec((None, 4))
            self.function = function.get_concrete_function(spec)
        return self.function(inputs)


REACHED = [Decorated, Recomputed, Custom, Branching]
REFUSED = [Concrete, Kept]


def nested(kind, called=True, **kwargs):
    """A compiled model of such a layer, named "nested", and a plain one."""
    keras.utils.set_random_seed(0)
    bank = issubclass(kind, pnn.layers.MRRBank)
    options = {} if bank else {"use_bias": kind in (Decorated, Recomputed)}
    inputs = keras.Input((4,))
    hidden = kind(3, name="nested", **options, **kwargs)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile("sgd", LOSS)
    if called:
        model(X)
    return model


def trained(model):
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model.fit(X, Y, **FIT)
    return model.get_weights()


@pytest.mark.parametrize("kind", REACHED)
def test_training_without_radius_is_that_of_keras(kind):
    expected = trained(nested(kind))
    found = trained(pnn.SATModel(nested(kind), rho=0.0, perturb="all"))
    for now, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(now, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("kind", REACHED)
def test_products_and_losses_are_those_of_keras(kind, called):
    model = nested(kind, called)
    operator = pnn.curvature.HessianOperator(model, X, Y, "all")
    vector = np.random.default_rng(0).normal(size=operator.size)
    found = operator @ vector
    expected = difference_of_gradients(operator, X, Y, vector, 3e-3)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=3e-3 * scale)
    loss = operator.loss_at(vector)
    # A graph that was first traced for the Hessian would keep its tensors.
    for variable, part in zip(operator.variables, operator.split(vector), strict=True):
        variable.assign_add(part)
    np.testing.assert_allclose(loss, model.evaluate(X, Y, verbose=0), rtol=1e-5)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: trained(pnn.SATModel(model, rho=0.1, perturb="all")),
        lambda model: pnn.hessian_eigenvalues(model, X, Y, variables="all"),
    ],
    ids=["SAT", "Hessian"],
)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_read_past_the_values_is_refused(kind, use):
    message = r"(?s)Layer `nested` must .*`nested/kernel`.*Received.*self\.kernel"
    with pytest.raises(ValueError, match=message):
        use(nested(kind))


class Bench(pnn.HardwareDevice):
    def measure(self, layer, inputs, controls):
        return np.full((len(inputs), layer.units), 5.0, "float32")


@pytest.mark.parametrize("called", [True, False])
def test_devices_reach_a_decorated_bank(called):
    model = nested(DecoratedBank, called)
    devices = pnn.devices.sweep(model, "resonance_shift", [0.0, 0.1])
    found = pnn.evaluate_devices(model, X, Y, devices, verbose=0)["loss"]
    for device, loss in zip(devices, found, strict=True):
        with device.installed(model):
            expected = model.evaluate(X, Y, verbose=0)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert found[0] != found[1]


def test_devices_that_cannot_reach_a_bank_are_refused():
    model = nested(ConcreteBank)
    devices = pnn.devices.sweep(model, "resonance_shift", [0.0, 0.1])
    with pytest.raises(ValueError, match=r"(?s)`nested` must.*resonance_shift"):
        pnn.evaluate_devices(model, X, Y, devices, verbose=0)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("called", [True, False])
def test_an_installed_bench_measures_a_decorated_bank(called, eager):
    """Traced before, it would not be measured; traced inside, it always would."""
    model = nested(DecoratedBank, called)
    plain = nested(pnn.layers.MRRBank).predict(X, verbose=0)
    last = model.layers[-1]
    for _ in range(2):
        with Bench(retries=0).attach(model).installed(model):
            found = model(X) if eager else model.predict(X, verbose=0)
        np.testing.assert_allclose(found, last(np.full((8, 3), 5.0)), rtol=1e-5)
        found = model(X) if eager else model.predict(X, verbose=0)
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_functions_outside_are_as_they_were():
    """TensorFlow has its own functions back, after an error too."""
    before = type(tf.function(len)).__call__
    with contextlib.suppress(ValueError):
        pnn.hessian_eigenvalues(nested(Concrete), X, Y, variables="all")
    assert type(tf.function(len)).__call__ is before
    function = tf.function(lambda: tf.executing_eagerly())
    model = nested(Decorated)
    variable = model.get_layer("nested").kernel
    with pnn.layers.context.Overrides([(variable, tf.zeros((4, 3)))]).scope(model):
        assert function()
    assert not function()
