"""Masks on the frames of a spatial light modulator, and back."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from transforms import gradients

from keras_pnn.physics import frames


def layouts():
    def pairs(least, most):
        return st.tuples(st.integers(least, most), st.integers(least, most))

    return st.fixed_dictionaries(
        {
            "units": st.integers(1, 7),
            "tile": pairs(1, 4),
            "grid": pairs(1, 3),
            "margin": pairs(0, 2),
            "pixel_repeat": pairs(1, 3),
        }
    )


def place(unit, row, column, layout):
    """Frame, rows and columns that show one pixel of a mask."""
    frame, unit = divmod(unit, layout["grid"][0] * layout["grid"][1])
    tile = divmod(unit, layout["grid"][1])
    slices = []
    for i, pixel in enumerate((row, column)):
        side = layout["tile"][i] + 2 * layout["margin"][i]
        start = tile[i] * side + layout["margin"][i] + pixel
        repeat = layout["pixel_repeat"][i]
        slices.append(slice(start * repeat, (start + 1) * repeat))
    return frame, *slices


def split(layout):
    return {k: v for k, v in layout.items() if k not in ("units", "tile")}


def test_layout_of_the_reference():
    assert frames.frame_shape(144, (28, 28)) == (12, 96, 240)
    assert frames.tile(np.ones((144, 28, 28))).shape == (12, 96, 240)
    assert frames.frame_shape(10, (12, 12)) == (1, 48, 112)
    frame = frames.tile(np.ones((10, 12, 12)))[0].numpy()
    assert frame.sum() == 10 * 12 * 12 * 2
    assert not frame[32:, 56:].any()
    assert frame[16:32].any(0).sum() == frame[32:, :56].any(0).sum() * 2


@settings(max_examples=30, deadline=None)
@given(layouts(), st.integers(0, 1000))
def test_layouts(layout, seed):
    rng = np.random.default_rng(seed)
    masks = rng.normal(size=(layout["units"], *layout["tile"]))
    expected = np.full(frames.frame_shape(**layout), 0.5)
    cut, noise = np.zeros_like(masks), rng.normal(size=expected.shape)
    for index in np.ndindex(masks.shape):
        there = place(*index, layout)
        expected[there] = masks[index]
        cut[index] = noise[there].mean()
    shown = frames.tile(masks, fill=0.5, **split(layout))
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_allclose(frames.untile(shown, **layout), masks, rtol=1e-14)
    # Repeated pixels are averaged.
    np.testing.assert_allclose(frames.untile(noise, **layout), cut, atol=1e-14)


def test_gradient_of_tile_is_untile():
    layout = {"tile": (3, 2), "grid": (2, 2), "margin": (1, 0)}
    layout["pixel_repeat"] = (2, 3)
    rng = np.random.default_rng(20)
    weights = rng.normal(size=frames.frame_shape(5, **layout))
    masks = tf.constant(rng.normal(size=(5, 3, 2)))
    (slope,) = gradients(lambda m: weights * frames.tile(m, **layout), [masks])
    expected = 6 * frames.untile(weights, 5, **layout)
    np.testing.assert_allclose(slope, expected, rtol=1e-13)


def test_one_number_for_both_sides():
    masks = np.random.default_rng(21).random((3, 4, 4))
    shown = frames.tile(masks, grid=2, tile=4, margin=1, pixel_repeat=2)
    pairs = frames.tile(masks, (2, 2), (4, 4), (1, 1), (2, 2))
    np.testing.assert_array_equal(shown, pairs)
    np.testing.assert_array_equal(frames.untile(shown, 3, 4, 2, 1, 2), masks)


@pytest.mark.parametrize(
    "arguments",
    [
        {"units": 0},
        {"units": 1.0},
        {"tile": (0, 3)},
        {"tile": (1, 2, 3)},
        {"grid": (3, 0)},
        {"margin": -1},
        {"pixel_repeat": (1, True)},
    ],
    ids=str,
)
def test_bad_layout(arguments):
    layout = {"units": 3, "tile": (2, 2), **arguments}
    (name,) = arguments
    refused = pytest.raises(ValueError, match=f"`{name}` must be .*Received")
    with refused:
        frames.frame_shape(**layout)
    with refused:
        frames.untile(np.ones((1, 18, 32)), **layout)
    if name != "units":
        with refused:
            frames.tile(np.ones((3, 2, 2)), **split(layout), tile=layout["tile"])


def test_wrong_shapes():
    for masks in (np.ones((2, 2)), np.ones((3, 2, 2, 1))):
        with pytest.raises(ValueError, match=r"`masks` must have.*Received: shape"):
            frames.tile(masks)
    for tile in ((4, 5), 5):
        with pytest.raises(ValueError, match=r"`masks` must have .*Received: shape"):
            frames.tile(np.ones((3, 5, 4)), tile=tile)
    # One unit too many, and a frame of the wrong height.
    for units, shape in ((13, (1, 18, 32)), (12, (1, 19, 32))):
        with pytest.raises(ValueError, match=r"`frames` must have.*Received: shape"):
            frames.untile(np.ones(shape), units, (2, 2))
