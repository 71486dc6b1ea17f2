import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pnn.layers import DAC, ControlRange


@pytest.mark.parametrize("high", [None, 1.0, float("inf")])
def test_range_keeps_values_inside(high):
    x = np.array([-1.0, 0.2, 0.7, 3.0], "float32")
    kept = ControlRange(0.5, high)(tf.constant(x))
    np.testing.assert_array_equal(kept, np.clip(x, 0.5, high))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_range_keeps_the_dtype(dtype):
    assert ControlRange(0.1, 2)(tf.zeros(3, dtype)).dtype == dtype


def test_range_acts_after_each_step():
    model = keras.Sequential(
        [keras.layers.Dense(2, kernel_constraint=ControlRange(0.25, 0.5))]
    )
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model.fit(x, x[:, :2] * 5, batch_size=4, verbose=0)
    kernel = np.asarray(model.layers[0].kernel)
    assert kernel.min() >= 0.25 and kernel.max() <= 0.5


def levels(bits, low, high):
    return low + np.arange(2**bits) * (high - low) / (2**bits - 1)


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(1, 8),
    low=st.floats(-3, 1),
    span=st.floats(0.1, 5),
    x=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
)
def test_quantizer_takes_the_nearest_level(bits, low, span, x):
    x = np.array(x)
    out = DAC(bits, low, low + span)(tf.constant(x)).numpy()
    distance = np.abs(levels(bits, low, low + span) - x[:, None])
    assert np.allclose(np.abs(out - x), distance.min(1), atol=1e-9)
    assert np.allclose(
        np.abs(levels(bits, low, low + span) - out[:, None]).min(1), 0, atol=1e-9
    )


def test_quantizer_is_straight_through():
    x = tf.constant([-0.5, 0.0, 0.3, 1.0, 1.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = DAC(2, 0.0, 1.0)(x)
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 1, 0])
    np.testing.assert_allclose(y, [0, 0, 1 / 3, 1, 1], atol=1e-7)


@pytest.mark.parametrize(
    "thing", [ControlRange(0.1, 2.0), ControlRange(0.5), DAC(7, -1.0, 2.0)]
)
def test_config_round_trip(thing):
    config = thing.get_config()
    assert type(thing).from_config(config).get_config() == config
    packed = keras.saving.serialize_keras_object(thing)
    again = keras.saving.deserialize_keras_object(packed)
    assert type(again) is type(thing) and again.get_config() == config
