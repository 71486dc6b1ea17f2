import doctest
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_pnn as pnn
from keras_pnn.layers import MRRBank, MRRConv2D, mrr
from keras_pnn.layers.context import kernels_per_device

HALF_WIDTH = 0.15


def lorentz(detuning, half_width=HALF_WIDTH):
    return 1 - 2 / (1 + (np.asarray(detuning, "float64") / half_width) ** 2)


def dip(x):
    return 1 - 2 / (1 + ((x - 0.4) / 0.1) ** 2)


def measured(unit="nm"):
    control = np.linspace(0, 1.0, 60) if unit == "nm" else np.linspace(0, 2.2, 60)
    shift = control if unit == "nm" else 0.53 * 0.375 * control**2
    return pnn.MeasuredTuning(control, dip(shift), unit)


def drop_port():
    control = np.linspace(0, 1.0, 60)
    return pnn.MeasuredTuning(control, 1 / (1 + ((control - 0.5) / 0.1) ** 2), "nm")


def set_random(layer, rng, low=0.0, high=0.5):
    """Random controls and imperfections; returns the first in float64."""
    control = layer.controls["control"]
    control.assign(rng.uniform(low, high, control.shape))
    layer.imperfections["resonance_shift"].assign(rng.normal(0, 0.05, control.shape))
    layer.imperfections["half_width_error"].assign(rng.normal(0, 0.05, control.shape))
    layer.imperfections["temperature"].assign(0.7)
    return values(layer)


def values(layer):
    names = ("resonance_shift", "half_width_error", "temperature")
    imperfect = [np.asarray(layer.imperfections[n], "float64") for n in names]
    return np.asarray(layer.controls["control"], "float64"), *imperfect


# --- The physics, against NumPy in float64.


def test_bank_is_inputs_times_the_balanced_weight(rng):
    x = rng.normal(size=(5, 7))
    layer = MRRBank(3, bias_initializer="ones", dtype="float64")
    layer.build((None, 7))
    control = rng.uniform(0, 1, (7, 3))
    layer.controls["control"].assign(control)
    expected = x @ lorentz(control) + 1
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_all_imperfections_act_as_detuning_and_width(rng):
    x = rng.normal(size=(4, 6))
    layer = MRRBank(3, temperature_sensitivity=0.1, dtype="float64")
    layer.build((None, 6))
    control, shift, error, kelvin = set_random(layer, rng)
    weights = lorentz(control + shift + 0.1 * kelvin, HALF_WIDTH * (1 + error))
    np.testing.assert_allclose(
        layer.effective_weights(), weights, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(layer(x), x @ weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sensitivity", [0.08, -0.02, 0.0])
def test_one_kelvin_moves_every_ring_by_the_sensitivity(sensitivity):
    layer = MRRBank(2, temperature_sensitivity=sensitivity, dtype="float64")
    layer.build((None, 3))
    layer.controls["control"].assign(np.full((3, 2), 0.1))
    layer.imperfections["temperature"].assign(1.0)
    np.testing.assert_allclose(
        layer.effective_weights(),
        np.full((3, 2), lorentz(0.1 + sensitivity)),
        rtol=1e-12,
    )


def test_twelve_pm_is_the_temperature_of_the_paper():
    # 0.15 K at 0.08 nm/K is 12 pm.
    layer = MRRBank(1, dtype="float64")
    layer.build((None, 1))
    layer.controls["control"].assign([[0.2]])
    layer.imperfections["temperature"].assign(0.15)
    np.testing.assert_allclose(
        layer.effective_weights(), [[lorentz(0.212)]], rtol=1e-12
    )


def test_heater_currents_and_power(rng):
    tuning = pnn.HeaterTuning(offset=-0.25, efficiency=0.5, resistance=400.0)
    layer = MRRBank(3, tuning=tuning, dtype="float64")
    layer.build((None, 4))
    current = rng.uniform(0, 2, (4, 3))
    layer.controls["control"].assign(current)
    power = current**2 * 0.4
    np.testing.assert_allclose(layer.heater_power(), power, rtol=1e-12)
    np.testing.assert_allclose(
        layer.effective_weights(), lorentz(-0.25 + 0.5 * power, 0.077), atol=1e-12
    )


def test_a_detuning_has_no_heater_power():
    layer = MRRBank(2)
    layer.build((None, 2))
    assert layer.heater_power() is None


def test_measured_bank_follows_the_curve(rng):
    layer = MRRBank(3, tuning=measured("mA"), dtype="float64")
    layer.build((None, 4))
    current = rng.uniform(0.9, 1.9, (4, 3))
    shift = rng.normal(0, 0.02, (4, 3))
    layer.controls["control"].assign(current)
    layer.imperfections["resonance_shift"].assign(shift)
    expected = dip(0.53 * 0.375 * current**2 + shift)
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=2e-2)


@pytest.mark.parametrize("columns", [2, 3, 5, 8], ids=lambda c: f"columns={c}")
@pytest.mark.parametrize("heated", [False, True], ids=["nm", "mA"])
def test_crosstalk_couples_the_rings_of_one_tile(rng, columns, heated):
    fan_in, outputs = 5, 3
    crosstalk = rng.uniform(0, 0.2, (columns, columns))
    np.fill_diagonal(crosstalk, 1)
    tuning = pnn.HeaterTuning() if heated else pnn.LorentzianTuning()
    layer = MRRBank(
        outputs,
        tuning=tuning,
        crosstalk=crosstalk,
        bank_size=(2, columns),
        dtype="float64",
    )
    layer.build((None, fan_in))
    control, shift, error, kelvin = set_random(layer, rng)
    heat = 0.53 * 0.375 * control**2 if heated else control
    total = np.array(heat)
    for out in range(outputs):
        for i in range(fan_in):
            for j in range(fan_in):
                if i != j and i // columns == j // columns:
                    share = crosstalk[i % columns, j % columns]
                    total[i, out] += share * heat[j, out]
    offset, half_width = (-0.3, 0.077) if heated else (0.0, HALF_WIDTH)
    expected = lorentz(offset + total + shift + 0.08 * kelvin, half_width * (1 + error))
    np.testing.assert_allclose(
        layer.effective_weights(), expected, rtol=1e-10, atol=1e-12
    )


def test_crosstalk_of_no_strength_changes_nothing(rng):
    plain, coupled = MRRBank(3), MRRBank(3, crosstalk=np.eye(4))
    for layer in (plain, coupled):
        layer.build((None, 4))
        layer.controls["control"].assign(np.linspace(0, 1, 12).reshape(4, 3))
    np.testing.assert_array_equal(
        plain.effective_weights(), coupled.effective_weights()
    )


@pytest.mark.parametrize("columns", [2, 3, 5, 7])
def test_wdm_row_against_a_loop_over_rings_and_channels(rng, columns):
    fan_in, outputs, spacing = 5, 2, 0.8
    layer = MRRBank(
        outputs, channel_spacing=spacing, bank_size=(1, columns), dtype="float64"
    )
    layer.build((None, fan_in))
    control, shift, error, kelvin = set_random(layer, rng)
    detuning = control + shift + 0.08 * kelvin
    expected = np.empty((fan_in, outputs))
    for out in range(outputs):
        for k in range(fan_in):
            tile = range(k // columns * columns, fan_in)[:columns]
            light, dropped = 1.0, 0.0
            for j in tile:
                u = (detuning[j, out] + (j - k) * spacing) / (
                    HALF_WIDTH * (1 + error[j, out])
                )
                dropped += light / (1 + u**2)
                light *= u**2 / (1 + u**2)
            expected[k, out] = light - dropped
    # Places without a ring are far away, not infinitely far.
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=1e-12)


def test_wdm_of_far_channels_is_the_plain_bank(rng):
    plain, row = (
        MRRBank(3, dtype="float64"),
        MRRBank(3, channel_spacing=1e4, dtype="float64"),
    )
    for layer in (plain, row):
        layer.build((None, 4))
        set_random(layer, np.random.default_rng(5))
    np.testing.assert_allclose(
        row.effective_weights(), plain.effective_weights(), atol=1e-8
    )


def test_rings_that_a_tile_lacks_meet_no_channel_of_a_wide_bank():
    # 1,300 channels of 0.8 nm: a place without a ring must stay away from all.
    layer = MRRBank(1, channel_spacing=0.8, bank_size=(1, 1300), dtype="float64")
    layer.build((None, 2))
    layer.controls["control"].assign(np.full((2, 1), 0.1))
    near = MRRBank(1, channel_spacing=0.8, bank_size=(1, 2), dtype="float64")
    near.build((None, 2))
    near.controls["control"].assign(np.full((2, 1), 0.1))
    np.testing.assert_allclose(
        layer.effective_weights(), near.effective_weights(), atol=1e-9
    )


def read_out(value, bits, peak=None, limit=None):
    """Two's complement: 2**bits codes from -limit up, of which 0 is one."""
    limit = peak / (1 - 2.0 ** (1 - bits)) if limit is None else limit
    step = limit / 2 ** (bits - 1)
    code = np.clip(np.round(value / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return code * step


def quantized(value, bits, low, high):
    value = np.clip(value, low, high)
    step = (high - low) / (2**bits - 1)
    return low + step * np.round((value - low) / step)


@pytest.mark.parametrize("limit", [2.0, None], ids=["fixed", "auto"])
@pytest.mark.parametrize("columns", [2, 3, 5, 8])
def test_adc_reads_each_tile_before_the_sum(rng, columns, limit):
    bits, fan_in, outputs = 5, 5, 3
    x = rng.normal(size=(4, fan_in))
    layer = MRRBank(
        outputs,
        bank_size=(2, columns),
        adc_bits=bits,
        adc_range=limit,
        use_bias=False,
        dtype="float64",
    )
    layer.build((None, fan_in))
    weights = lorentz(set_random(layer, rng)[0])
    layer.reset_imperfections()
    expected = np.zeros((4, outputs))
    for sample in range(4):
        tiles = []
        for start in range(0, fan_in, columns):
            part = slice(start, start + columns)
            tiles.append(x[sample, part] @ weights[part])
        for tile in tiles:
            expected[sample] += read_out(tile, bits, np.abs(tiles).max(), limit)
    np.testing.assert_allclose(layer(x), expected, atol=1e-10)


@pytest.mark.parametrize("limit", [1.5, None], ids=["fixed", "auto"])
def test_adc_of_a_convolution(rng, limit):
    x = rng.normal(size=(2, 4, 5, 2))
    layer = MRRConv2D(
        3, 2, bank_size=(3, 3), adc_bits=4, adc_range=limit, dtype="float64"
    )
    layer.build(x.shape)
    weights = lorentz(set_random(layer, rng)[0]).reshape(8, 3)
    layer.reset_imperfections()
    parts = np.zeros((2, 3, 4, 3, 3))  # sample, height, width, tile, filter
    for n, i, j in itertools.product(range(2), range(3), range(4)):
        patch = x[n, i : i + 2, j : j + 2].ravel()
        for t in range(3):
            part = slice(3 * t, 3 * t + 3)
            parts[n, i, j, t] = patch[part] @ weights[part]
    expected = np.zeros((2, 3, 4, 3))
    for n in range(2):
        expected[n] = read_out(parts[n], 4, np.abs(parts[n]).max(), limit).sum(-2)
    np.testing.assert_allclose(layer(x), expected, atol=1e-10)


def test_adc_of_many_bits_is_the_plain_layer(rng):
    x = rng.normal(size=(2, 5, 5, 3)).astype("float32")
    fine = MRRConv2D(4, 3, padding="same", adc_bits=24, bank_size=(4, 5))
    plain = MRRConv2D(4, 3, padding="same")
    fine.build(x.shape)
    plain.build(x.shape)
    plain.controls["control"].assign(fine.controls["control"])
    np.testing.assert_allclose(fine(x), plain(x), atol=1e-5)


def test_adc_of_a_dark_input_is_zero():
    layer = MRRBank(3, adc_bits=4, use_bias=False)
    dark = np.zeros((2, 4), "float32")
    np.testing.assert_allclose(layer(dark), np.zeros((2, 3)), atol=1e-7)


def test_dac_rounds_the_controls(rng):
    dac = pnn.layers.DAC(bits=3, low=0.0, high=0.7)
    layer = MRRBank(3, dac=dac, dtype="float64")
    layer.build((None, 5))
    control = rng.uniform(0, 0.9, (5, 3))
    layer.controls["control"].assign(control)
    expected = lorentz(quantized(control, 3, 0.0, 0.7))
    np.testing.assert_allclose(layer.effective_weights(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "bank_size, passes, tiles",
    [(None, 1, (1, 1)), ((4, 7), 1, (1, 1)), ((2, 3), 6, (2, 3)), ((3, 2), 8, (2, 4))],
)
def test_passes_tiles_and_places(bank_size, passes, tiles):
    layer = MRRBank(4, bank_size=bank_size)
    layer.build((None, 7))
    assert layer.passes == passes and layer.tiles == tiles
    rows, columns = bank_size or (4, 7)
    places = set()
    for out in range(4):
        for i in range(7):
            tile, row, column = layer.place(out, i)
            assert 0 <= row < rows and 0 <= column < columns
            assert (tile // tiles[1] * rows + row) == out
            assert (tile % tiles[1] * columns + column) == i
            places.add((tile, row, column))
    assert len(places) == 28 and {p[0] for p in places} == set(range(passes))


# --- The convolution, against Keras.

CONVOLUTIONS = [
    {"padding": p, "data_format": f, **extra}
    for p in ("valid", "same")
    for f in ("channels_last", "channels_first")
    for extra in (
        {},
        {"strides": 2},
        {"strides": (3, 1)},
        {"dilation_rate": 2},
        {"dilation_rate": (1, 3)},
        {"groups": 2},
        {"groups": 2, "strides": (1, 2)},
        {"kernel_size": (2, 4)},
        {"kernel_size": (1, 1), "strides": 2},
        {"filters": 2},
        {"filters": 14},
    )
]


def convolution(options, **kwargs):
    options = {"filters": 6, "kernel_size": (3, 2), **options}
    return MRRConv2D(**options, **kwargs), options


def name_of(options):
    return ",".join(f"{k}={v}" for k, v in options.items())


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=name_of)
def test_convolution_equals_that_of_keras(rng, options):
    layer, options = convolution(options, bias_initializer="ones")
    images = rng.normal(size=(2, 8, 9, 4)).astype("float32")
    first = options["data_format"] == "channels_first"
    x = images.transpose(0, 3, 1, 2) if first else images
    y = layer(x)
    # Keras has no convolution with channels first on the CPU.
    digital = keras.layers.Conv2D(**{**options, "data_format": "channels_last"})
    digital.build(images.shape)
    digital.set_weights([lorentz(layer.controls["control"]), np.ones(layer.filters)])
    expected = np.asarray(digital(images))
    expected = expected.transpose(0, 3, 1, 2) if first else expected
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == tuple(y.shape)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=name_of)
def test_many_kernels_at_once_equal_one_by_one(rng, options):
    layer, options = convolution(options)
    x = rng.normal(size=(2, 8, 9, 4)).astype("float32")
    if options["data_format"] == "channels_first":
        x = x.transpose(0, 3, 1, 2)
    layer.build(x.shape)
    control = layer.controls["control"]
    shifts = tf.constant(rng.normal(0, 0.1, (3, *control.shape)), "float32")

    def one(shift):
        return layer.forward(
            x,
            {"control": tf.convert_to_tensor(control)},
            {"resonance_shift": shift, "half_width_error": 0.0, "temperature": 0.0},
        )

    @tf.function
    def together(shifts):
        with kernels_per_device():
            return tf.vectorized_map(one, shifts, fallback_to_while_loop=False)

    expected = np.stack([one(s) for s in shifts])
    np.testing.assert_allclose(together(shifts), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"crosstalk": 0.9 * np.eye(3) + 0.1},
        {"channel_spacing": 0.8},
        {"adc_bits": 20},
        {"adc_bits": 20, "adc_range": 4.0},
        {"dac": pnn.layers.DAC(8, 0.0, 1.0)},
        {"tuning": measured("mA")},
    ],
    ids=lambda o: "+".join(o),
)
def test_many_banks_at_once_equal_one_by_one(rng, options):
    # The matrix leaves places of the bank empty.
    layer = MRRBank(4, bank_size=(3, 3), **options)
    x = rng.normal(size=(2, 5)).astype("float32")
    layer.build(x.shape)
    controls = tf.constant(rng.uniform(0, 0.5, (3, 5, 4)), "float32")

    def one(control):
        with keras.StatelessScope([(layer.controls["control"], control)]):
            return layer(x)

    @tf.function
    def together(controls):
        with kernels_per_device():
            return tf.vectorized_map(one, controls, fallback_to_while_loop=False)

    expected = np.stack([one(c) for c in controls])
    np.testing.assert_allclose(together(controls), expected, atol=3e-5)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    stacked=st.booleans(),
)
def test_output_shape_is_the_one_computed(
    size, kernel, stride, dilation, padding, stacked
):
    if stride > 1:
        dilation = 1
    spans = [dilation * (k - 1) + 1 for k in kernel]
    layer = MRRConv2D(
        2, kernel, strides=stride, dilation_rate=dilation, padding=padding
    )
    shape = (2, *size, 1)
    if padding == "valid" and any(s > n for s, n in zip(spans, size, strict=True)):
        with pytest.raises(ValueError, match="Received"):
            layer.compute_output_shape(shape)
        return
    layer.build(shape)
    x = np.ones(shape, "float32")
    plain = layer(x)
    assert layer.compute_output_shape(shape) == tuple(plain.shape)
    if stacked:
        with kernels_per_device():
            np.testing.assert_allclose(layer(x), plain, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (2, 3, 4, 5), (None, 5)])
def test_bank_output_shape(shape):
    layer = MRRBank(3)
    assert layer.compute_output_shape(shape) == (*shape[:-1], 3)
    if None not in shape:
        assert tuple(layer(np.ones(shape, "float32")).shape) == (*shape[:-1], 3)
    assert layer(keras.Input(shape[1:])).shape == (None, *shape[1:-1], 3)


# --- Derivatives.


def differentiable_layers():
    tiled = {"bank_size": (2, 3), "crosstalk": 0.95 * np.eye(3) + 0.05}
    return {
        "plain": (MRRBank(3, activation="tanh", dtype="float64"), (4, 5)),
        "wdm": (MRRBank(3, channel_spacing=0.8, **tiled, dtype="float64"), (4, 5)),
        "heater": (
            MRRBank(3, tuning=pnn.HeaterTuning(), **tiled, dtype="float64"),
            (4, 5),
        ),
        "measured": (MRRBank(2, tuning=measured("mA"), dtype="float64"), (4, 3)),
        "conv": (MRRConv2D(2, 2, activation="tanh", dtype="float64"), (2, 4, 3, 2)),
    }


@pytest.mark.parametrize("kind", differentiable_layers())
def test_gradients_and_hessian_products_against_differences(rng, kind):
    layer, shape = differentiable_layers()[kind]
    x = rng.normal(size=shape)
    layer.build(shape)
    low, high = (1.2, 1.7) if kind in ("heater", "measured") else (0.05, 0.5)
    set_random(layer, rng, low, high)
    if kind == "measured":
        layer.imperfections["resonance_shift"].assign(
            rng.normal(0, 0.01, layer.controls["control"].shape)
        )
    variables = [*layer.controls.values(), *layer.imperfections.values()]
    sizes = rng.normal(size=layer(x).shape)
    start = [tf.convert_to_tensor(v) for v in variables]
    direction = [tf.constant(rng.normal(size=v.shape), "float64") for v in variables]

    def loss(point):
        with keras.StatelessScope(list(zip(variables, point, strict=True))):
            y = layer(x)
        return tf.reduce_sum(y * sizes + 0.1 * y**2)

    def gradient(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = loss(point)
        return tape.gradient(value, point)

    def moved(step):
        return [p + step * d for p, d in zip(start, direction, strict=True)]

    def along(parts):
        return float(
            sum(tf.reduce_sum(p * d) for p, d in zip(parts, direction, strict=True))
        )

    step = 1e-6
    for i, variable in enumerate(variables):
        bump = rng.normal(size=variable.shape)
        shifted = [
            [p + sign * step * bump if j == i else p for j, p in enumerate(start)]
            for sign in (1, -1)
        ]
        slope = float(loss(shifted[0]) - loss(shifted[1])) / (2 * step)
        exact = float(np.sum(np.asarray(gradient(start)[i]) * bump))
        assert exact != 0 and slope == pytest.approx(exact, rel=2e-5, abs=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(start)
        inner = gradient(start)
        product = sum(
            tf.reduce_sum(g * d) for g, d in zip(inner, direction, strict=True)
        )
    curvature = along(tape.gradient(product, start))
    forward, backward = gradient(moved(step)), gradient(moved(-step))
    expected = (along(forward) - along(backward)) / (2 * step)
    assert curvature == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_idle_heater_has_no_slope_but_its_temperature_has():
    layer = MRRBank(1, tuning=pnn.HeaterTuning(offset=-0.1), dtype="float64")
    layer.build((None, 1))
    layer.controls["control"].assign([[0.0]])
    current, kelvin = layer.controls["control"], layer.imperfections["temperature"]
    with tf.GradientTape() as tape:
        tape.watch([current.value, kelvin.value])
        weight = layer.effective_weights()[0, 0]
    slope, heat = tape.gradient(weight, [current.value, kelvin.value])
    assert float(slope[0, 0]) == 0 and abs(float(heat)) > 0.1


def test_training_goes_on_through_the_converters(rng):
    dac = pnn.layers.DAC(8, 0.0, 3.0)
    layer = MRRBank(2, dac=dac, adc_bits=6)
    x = rng.normal(size=(8, 4)).astype("float32")
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    gradient = tape.gradient(loss, layer.controls["control"].value)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


# --- Initial weights, programming, training.

INITIAL = {
    "lorentzian": (None, False),
    "heater": (pnn.HeaterTuning(), False),
    "heater_through": (pnn.HeaterTuning(port="through"), True),
    "measured_nm": (measured("nm"), False),
    "measured_mA": (measured("mA"), False),
}


@pytest.mark.parametrize("kind", INITIAL)
def test_initial_weights_are_as_large_as_those_of_dense(kind):
    tuning, positive = INITIAL[kind]
    init = keras.initializers.GlorotUniform(seed=3)
    layer = MRRBank(30, tuning=tuning, kernel_initializer=init)
    layer.build((None, 50))
    digital = np.asarray(keras.initializers.GlorotUniform(seed=3)((50, 30)))
    weights = np.asarray(layer.effective_weights())
    expected = np.abs(digital) if positive else digital
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    low, high = layer.tuning.control_range
    controls = np.asarray(layer.controls["control"])
    assert controls.min() >= low and controls.max() <= high


def test_initial_controls_keep_their_distance_from_a_measured_end():
    layer = MRRBank(10, tuning=drop_port())
    layer.build((None, 20))
    controls = np.asarray(layer.controls["control"])
    limits = layer.control_constraint
    assert limits.low > 0.05 and limits.high < 0.95
    assert controls.min() >= np.float32(limits.low)
    assert controls.max() <= np.float32(limits.high)
    layer.imperfections["resonance_shift"].assign(np.full((20, 10), -0.05))
    assert np.isfinite(layer.effective_weights()).all()


@pytest.mark.parametrize(
    "tuning",
    [
        None,
        pnn.HeaterTuning(max_current=1.5),
        pnn.HeaterTuning(port="through"),
        measured("mA"),
    ],
    ids=["lorentzian", "heater", "through", "measured"],
)
def test_program_gives_the_weights(rng, tuning):
    layer = MRRBank(4, tuning=tuning)
    layer.build((None, 6))
    low, high = layer.tuning.weight_range
    weights = rng.uniform(low + 0.02, min(high, 0.99) - 0.02, (6, 4))
    layer.program(weights)
    np.testing.assert_allclose(layer.effective_weights(), weights, atol=2e-5)


@pytest.mark.parametrize("bad", [1.5, -1.5, np.nan, np.inf])
def test_program_out_of_reach_leaves_the_controls(bad):
    layer = MRRBank(3)
    layer.build((None, 4))
    before = np.asarray(layer.controls["control"]).copy()
    weights = np.zeros((4, 3))
    weights[1, 1] = bad
    with pytest.raises(ValueError, match="Received"):
        layer.program(weights)
    np.testing.assert_array_equal(layer.controls["control"], before)


def test_program_clips_when_asked():
    layer = MRRBank(3)
    layer.build((None, 1))
    layer.program([[1.5, -1.5, 0.25]], clip=True)
    np.testing.assert_allclose(
        layer.effective_weights(), [[0.999, -1, 0.25]], atol=1e-5
    )
    with pytest.raises(ValueError, match="Received"):
        layer.program([[np.nan, 0, 0]], clip=True)


@pytest.mark.parametrize(
    "tuning",
    [None, pnn.HeaterTuning(max_current=1.4), measured("mA")],
    ids=["lorentzian", "heater", "measured"],
)
def test_training_keeps_the_controls_in_range(rng, tuning):
    model = keras.Sequential([MRRBank(4, tuning=tuning), MRRBank(2, tuning=tuning)])
    model.compile(keras.optimizers.SGD(5.0), loss="mse")
    x = rng.normal(size=(32, 6)).astype("float32")
    history = model.fit(x, x[:, :2] * 9, epochs=2, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for layer in model.layers:
        controls = np.asarray(layer.controls["control"])
        low, high = layer.tuning.control_range
        assert controls.min() >= low and controls.max() <= high
        layer.tuning.validate(controls)
    if isinstance(layer.tuning, pnn.MeasuredTuning):
        inside = layer.tuning.heater_shift(controls).numpy()
        assert inside.min() > 0.08 and inside.max() < 0.53 * 0.375 * 2.2**2 - 0.08


def test_training_learns(rng):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), MRRBank(1)])
    model.compile(keras.optimizers.Adam(0.02), loss="mse")
    x = rng.normal(size=(64, 4)).astype("float32")
    y = x @ np.array([[0.5], [-0.5], [0.2], [0.8]], "float32")
    before = model.evaluate(x, y, verbose=0)
    steps = 150
    model.fit(np.tile(x, (steps, 1)), np.tile(y, (steps, 1)), batch_size=64, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.05 * before


# --- What Keras asks of a layer.


def test_jit_compiled_fit_equals_the_plain_one(rng):
    x = rng.normal(size=(8, 6, 6, 2)).astype("float32")
    results = []
    for jit in (False, True):
        keras.utils.set_random_seed(7)
        crosstalk = 0.95 * np.eye(4) + 0.05
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                MRRConv2D(2, 2, strides=2, kernel_regularizer="l2"),
                keras.layers.Flatten(),
                MRRBank(2, bank_size=(2, 4), crosstalk=crosstalk, channel_spacing=0.8),
            ]
        )
        model.compile(keras.optimizers.SGD(0.01), loss="mse", jit_compile=jit)
        model.fit(x, np.ones((8, 2)), epochs=2, batch_size=8, shuffle=False, verbose=0)
        results.append([np.asarray(w) for w in model.trainable_weights])
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "adc", [{}, {"adc_bits": 12}, {"adc_bits": 12, "adc_range": 9}], ids=len
)
def test_mixed_precision_keeps_controls_in_float32(rng, policy, adc):
    x = rng.uniform(size=(4, 5, 5, 2)).astype("float32")
    half, single = [
        keras.Sequential(
            [
                keras.Input((5, 5, 2)),
                MRRConv2D(3, 2, bank_size=(3, 4), dtype=dtype, **adc),
                MRRBank(2, bank_size=(2, 2), dtype=dtype, **adc),
            ]
        )
        for dtype in (policy, "float32")
    ]
    single.set_weights(half.get_weights())
    y = half(x)
    assert y.dtype == policy.removeprefix("mixed_")
    for layer in half.layers:
        for variable in (*layer.controls.values(), *layer.imperfections.values()):
            assert variable.dtype == "float32"
        assert layer.effective_weights().dtype == tf.float32
    coarse = 0.02 if policy == "mixed_float16" else 0.15
    np.testing.assert_allclose(tf.cast(y, "float32"), single(x), atol=coarse)
    if adc == {"adc_bits": 12}:
        return
    half.compile("adam", loss="mse")
    history = half.fit(x, np.ones((4, 4, 4, 2)), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_unknown_sizes_of_batch_and_image(rng):
    inputs = keras.Input((None, None, 2))
    layer = MRRConv2D(3, 3, padding="same", strides=2)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 3)
    for size in (5, 8):
        x = rng.normal(size=(2, size, size, 2)).astype("float32")
        np.testing.assert_allclose(model.predict(x, verbose=0), layer(x), atol=1e-5)


def test_an_adc_needs_known_image_sizes():
    with pytest.raises(ValueError, match=r"known height and width.*Received"):
        MRRConv2D(3, 3, adc_bits=4)(keras.Input((None, 8, 2)))
    layer = MRRConv2D(3, 3, adc_bits=4)
    assert layer(keras.Input((8, 8, 2))).shape == (None, 6, 6, 3)


def test_mask_passes_through_a_bank():
    model = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), MRRBank(3)])
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    mask = model(tokens)._keras_mask
    np.testing.assert_array_equal(mask, tokens != 0)


def test_a_layer_may_be_built_inside_a_graph():
    layer = MRRBank(3)
    y = tf.function(lambda x: layer(x))(tf.ones((2, 4)))
    np.testing.assert_allclose(y, layer(np.ones((2, 4), "float32")), atol=1e-6)
    assert np.std(layer.effective_weights()) > 0.05


def test_regularisers_see_weights_and_controls():
    layer = MRRBank(
        2,
        kernel_regularizer=keras.regularizers.L2(0.5),
        control_regularizer=keras.regularizers.L1(2.0),
    )
    layer.build((None, 3))
    layer(np.ones((1, 3), "float32"))
    control = np.asarray(layer.controls["control"], "float64")
    expected = 0.5 * np.sum(lorentz(control) ** 2) + 2 * np.abs(control).sum()
    np.testing.assert_allclose(float(sum(layer.losses)), expected, 1e-4)


def test_a_shared_layer_is_regularised_once_as_dense_is():
    bank = MRRBank(3, kernel_regularizer=keras.regularizers.L2(1.0))
    dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(1.0))
    inputs = keras.Input((3,))
    for layer in (bank, dense):
        model = keras.Model(inputs, layer(layer(inputs)))
        model(np.ones((2, 3), "float32"))
        assert len(model.losses) == 1
    expected = np.sum(np.asarray(bank.effective_weights(), "float64") ** 2)
    frames = keras.layers.TimeDistributed(bank)
    frames(np.ones((2, 5, 3), "float32"))
    np.testing.assert_allclose(float(sum(frames.losses)), expected, 1e-6)
    bank.trainable = False
    assert bank.losses == []


def test_a_device_in_the_loop_does_not_double_the_regulariser():
    layer = MRRBank(2, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((3,)), layer])
    device = pnn.Variation(resonance_shift=0.1).sample(model, 1, seed=0)[0]
    with pnn.layers.physical.measured_by(device.attach(model)):
        model(np.ones((1, 3), "float32"))
    assert len(model.losses) == 1


FULL = dict(
    activation="tanh",
    use_bias=True,
    tuning=pnn.HeaterTuning(offset=-0.2, max_current=2.0),
    kernel_initializer=keras.initializers.HeNormal(seed=3),
    bias_initializer="ones",
    kernel_regularizer=keras.regularizers.L2(0.1),
    control_regularizer=keras.regularizers.L1(0.2),
    bias_regularizer=keras.regularizers.L2(0.3),
    activity_regularizer=keras.regularizers.L2(0.4),
    control_constraint=pnn.layers.ControlRange(0.1, 1.5),
    bias_constraint=keras.constraints.NonNeg(),
    temperature_sensitivity=0.07,
    crosstalk=0.9 * np.eye(3) + 0.1,
    channel_spacing=0.9,
    bank_size=(2, 3),
    dac=pnn.layers.DAC(7, 0.0, 2.0),
    adc_bits=9,
    adc_range=4.0,
    dtype="float32",
    trainable=False,
    name="every_argument",
)
CONV = dict(
    filters=4,
    kernel_size=(2, 3),
    strides=(2, 1),
    padding="same",
    data_format="channels_first",
)


@pytest.mark.parametrize(
    "layer, x",
    [
        (lambda: MRRBank(4, **FULL), (2, 5)),
        (lambda: MRRConv2D(**CONV, **FULL), (2, 2, 5, 4)),
        (lambda: MRRConv2D(4, 2, dilation_rate=(1, 2), groups=2), (2, 4, 5, 2)),
        (lambda: MRRBank(3, use_bias=False, tuning=measured("mA")), (2, 5)),
    ],
    ids=["bank", "conv", "groups", "measured"],
)
def test_config_round_trip(layer, x):
    layer, x = layer(), np.linspace(-1, 1, np.prod(x)).reshape(x).astype("float32")
    config = layer.get_config()
    again = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    layer.build(x.shape)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(x), again(x))


def test_every_argument_was_given_a_value_of_its_own():
    for full, plain in [
        (MRRBank(4, **FULL), MRRBank(3)),
        (MRRConv2D(**CONV, **FULL), MRRConv2D(3, 1)),
    ]:
        ours, theirs = full.get_config(), plain.get_config()
        same = {k for k in ours if ours[k] == theirs[k]}
        assert same <= {"use_bias", "dtype", "dilation_rate", "groups"}


def test_docstring_examples_run():
    finder = doctest.DocTestFinder(recurse=False)
    spots = {"pnn": pnn, "np": np, "keras": keras}
    for thing in (MRRBank, MRRConv2D):
        (example,) = finder.find(thing, thing.__name__, globs=spots)
        assert doctest.DocTestRunner().run(example).failed == 0
    assert mrr.MRRBank is pnn.layers.MRRBank


# --- Arguments that cannot be.

BAD = [
    *[{"units": u} for u in (0, -1, 1.5, None, "many", float("nan"), True)],
    *[{"bank_size": b} for b in (4, (0, 2), (2,), (1, 2, 3), "ab", (1.5, 2), (2, -1))],
    *[{"crosstalk": c} for c in ([[1, 2]], [1.0], [[2.0]], [[np.nan]], "x", [[1], []])],
    {"crosstalk": np.eye(3), "bank_size": (2, 2)},
    *[{"adc_bits": b} for b in (0, 1.5, 25, "8", True)],
    *[{"adc_bits": 4, "adc_range": r} for r in (0, -1, float("inf"))],
    {"adc_range": 1.0},
    *[{"channel_spacing": s} for s in (0, -0.8, float("nan"))],
    {"channel_spacing": 0.8, "tuning": measured()},
    {"temperature_sensitivity": float("nan")},
    {"tuning": "logistic"},
    {"dac": 3},
]


@pytest.mark.parametrize("arguments", BAD, ids=str)
def test_bad_arguments_of_a_bank(arguments):
    with pytest.raises(ValueError, match="Received"):
        MRRBank(**{"units": 3, **arguments})


BAD_CONV = [
    *[{"filters": f} for f in (0, -2, 2.5, None)],
    *[{"kernel_size": k} for k in (0, (3,), (3, 0), "x", None, 2.5, (1, 2, 3))],
    *[{"strides": s} for s in (0, (1, 1, 1), None, -1)],
    *[{"dilation_rate": d} for d in (0, 1.5, "same")],
    *[{"groups": g} for g in (0, 3, -1, 1.5, None)],
    {"padding": "causal"},
    {"data_format": "channels"},
    {"strides": 2, "dilation_rate": 2},
    {"groups": 2, "adc_bits": 4},
]


@pytest.mark.parametrize("arguments", BAD_CONV, ids=str)
def test_bad_arguments_of_a_convolution(arguments):
    with pytest.raises(ValueError, match="Received"):
        MRRConv2D(**{"filters": 4, "kernel_size": 2, **arguments})


def test_half_width_must_be_positive():
    for bad in (-0.1, 0, float("nan")):
        with pytest.raises(ValueError, match="Received"):
            MRRBank(3, tuning=pnn.LorentzianTuning(bad))


@pytest.mark.parametrize("layer", [MRRBank(3), MRRConv2D(3, 2)], ids=["bank", "conv"])
def test_wrong_inputs(layer):
    layer(np.ones((1, 4, 4, 3), "float32"))
    for shape in ((1, 4, 4, 2), (3,)):
        with pytest.raises(ValueError, match=r"received|Received"):
            layer(np.ones(shape, "float32"))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (MRRBank(3), (2, None)),
        (MRRConv2D(3, 2), (2, 4, 4, None)),
        (MRRConv2D(4, 2, groups=2), (2, 4, 4, 3)),
        (MRRConv2D(4, 6), (2, 4, 4, 3)),
        (MRRBank(3, crosstalk=np.eye(3)), (2, 4)),
    ],
)
def test_shapes_that_cannot_be_built(layer, shape):
    with pytest.raises(ValueError, match="Received"):
        layer.build(shape)


def test_wrong_shape_of_weights():
    layer = MRRBank(3)
    layer.build((None, 4))
    for shape in ((3, 4), (4,), (4, 3, 1), ()):
        with pytest.raises(ValueError, match="Received"):
            layer.program(np.zeros(shape))


@pytest.mark.parametrize("method", ["effective_weights", "heater_power"])
def test_a_layer_that_is_not_built_says_so(method):
    with pytest.raises(ValueError, match=r"built.*Received"):
        getattr(MRRBank(3), method)()
    with pytest.raises(ValueError, match=r"built.*Received"):
        MRRBank(3).program(np.zeros((4, 3)))
