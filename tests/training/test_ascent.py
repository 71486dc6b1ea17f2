"""Eq. 3 and its adaptive form, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_pnn as pnn

# Entries that stay normal numbers in float32 when they are divided by each other.
ENTRIES = st.floats(-1e3, 1e3, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
ARRAYS = hnp.arrays("float32", st.integers(1, 6), elements=ENTRIES)


def steps_of(ascent, values, gradients, iteration=0):
    constants = [tf.constant(v) for v in values]
    gradients = [None if g is None else tf.constant(g) for g in gradients]
    return [s.numpy() for s in ascent(constants, gradients, iteration)]


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(a, dtype="float64")) for a in arrays))


@given(a=ARRAYS, b=ARRAYS, rho=st.floats(1e-3, 10), log_scale=st.integers(-20, 30))
@settings(max_examples=30, deadline=None)
def test_norm_is_rho_and_scale_cancels(a, b, rho, log_scale):
    values = [np.ones_like(a), np.ones_like(b)]
    step = steps_of(pnn.SAM(rho), values, [a, b])
    if not norm([a, b]):
        assert norm(step) == 0
        return
    np.testing.assert_allclose(norm(step), rho, rtol=1e-5)
    for s, g in zip(step, [a, b], strict=True):
        np.testing.assert_allclose(s, rho * g / norm([a, b]), rtol=1e-5, atol=1e-9)
    factor = np.float32(2.0**log_scale)
    scaled = steps_of(pnn.SAM(rho), values, [factor * a, factor * b])
    for one, other in zip(step, scaled, strict=True):
        np.testing.assert_array_equal(one, other)


@given(data=st.data(), rho=st.floats(1e-3, 10))
@settings(max_examples=30, deadline=None)
def test_adaptive_norm_is_rho(data, rho):
    size = data.draw(st.integers(1, 6))
    value, gradient = (
        data.draw(hnp.arrays("float32", size, elements=ENTRIES)) for _ in range(2)
    )
    (step,) = steps_of(pnn.ASAM(rho, eta=0.5), [value], [gradient])
    scale = np.abs(value) + 0.5
    if gradient.any():
        np.testing.assert_allclose(norm([step / scale]), rho, rtol=1e-5)
    # Rescaled weights with the inverse gradient move by the same fraction.
    (one,) = steps_of(pnn.ASAM(rho, eta=0.0), [value], [gradient])
    (other,) = steps_of(pnn.ASAM(rho, eta=0.0), [value * 4], [gradient / 4])
    np.testing.assert_allclose(other, 4 * one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [pnn.SAM, lambda rho: pnn.ASAM(rho, eta=0.0)])
def test_zero_and_missing_gradients(kind):
    values = [np.ones(2, "float32"), np.ones((2, 2), "float32")]
    zero = steps_of(kind(0.5), values, [np.zeros(2, "float32"), None])
    assert [z.shape for z in zero] == [(2,), (2, 2)]
    assert norm(zero) == 0
    some = steps_of(kind(0.5), values, [np.array([3, 4], "float32"), None])
    np.testing.assert_allclose(some[0], [0.3, 0.4], rtol=1e-6)
    assert norm(some[1:]) == 0


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1e30), ("float32", 3e38), ("float64", 1e300), ("bfloat16", 1e30)],
)
def test_huge_gradients_do_not_overflow(dtype, size):
    gradient = tf.cast(tf.constant([size, -size], "float64"), dtype)
    (step,) = pnn.SAM(0.5)([tf.ones(2, dtype)], [gradient], 0)
    assert step.dtype == dtype
    expected = np.array([0.5, -0.5]) / np.sqrt(2)
    np.testing.assert_allclose(tf.cast(step, "float64"), expected, rtol=4e-3)


def test_nan_gradient_gives_nan():
    # Not a zero step: a NaN must reach whoever watches for it.
    (step,) = steps_of(pnn.SAM(), [np.ones(2, "float32")], [np.full(2, np.nan)])
    assert np.isnan(step).all()
