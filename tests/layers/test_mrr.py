import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from mesh_columns import quantised
from models import dip, measured

import keras_pnn as pnn
from keras_pnn.layers import MRRBank, MRRConv2D
from keras_pnn.layers.context import kernels_per_device, measured_by

HALF_WIDTH = 0.15


def lorentz(detuning, half_width=HALF_WIDTH):
    return 1 - 2 / (1 + (np.asarray(detuning, "float64") / half_width) ** 2)


def drop_port():
    control = np.linspace(0, 1.0, 60)
    return pnn.MeasuredTuning(control, 1 / (1 + ((control - 0.5) / 0.1) ** 2), "nm")


def bank(outputs, inputs, dtype="float64", **options):
    layer = MRRBank(outputs, dtype=dtype, **options)
    layer.build((None, inputs))
    return layer


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


def test_all_imperfections_act_as_detuning_and_width(rng):
    x = rng.normal(size=(4, 6))
    layer = bank(3, 6, temperature_sensitivity=0.1, bias_initializer="ones")
    control, shift, error, kelvin = set_random(layer, rng)
    weights = lorentz(control + shift + 0.1 * kelvin, HALF_WIDTH * (1 + error))
    np.testing.assert_allclose(
        layer.effective_weights(), weights, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(layer(x), x @ weights + 1, rtol=1e-12, atol=1e-12)


def test_heater_currents_and_power(rng):
    tuning = pnn.HeaterTuning(offset=-0.25, efficiency=0.5, resistance=400.0)
    layer = bank(3, 4, tuning=tuning)
    current = rng.uniform(0, 2, (4, 3))
    layer.controls["control"].assign(current)
    power = current**2 * 0.4
    np.testing.assert_allclose(layer.heater_power(), power, rtol=1e-12)
    np.testing.assert_allclose(
        layer.effective_weights(), lorentz(-0.25 + 0.5 * power, 0.077), atol=1e-12
    )


def test_measured_bank_follows_the_curve(rng):
    layer = bank(3, 4, tuning=measured("mA"))
    current = rng.uniform(0.9, 1.9, (4, 3))
    shift = rng.normal(0, 0.02, (4, 3))
    layer.controls["control"].assign(current)
    layer.imperfections["resonance_shift"].assign(shift)
    expected = dip(0.53 * 0.375 * current**2 + shift)
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=2e-2)


@pytest.mark.parametrize("columns", [2, 3, 5, 7])
def test_wdm_row_against_a_loop_over_rings_and_channels(rng, columns):
    fan_in, outputs, spacing = 5, 2, 0.8
    layer = bank(outputs, fan_in, channel_spacing=spacing, bank_size=(1, columns))
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


@pytest.mark.parametrize("period", [None, 9.3])
def test_rings_that_a_tile_lacks_meet_no_channel_of_a_wide_bank(period):
    # 1,300 channels of 0.8 nm: a place without a ring must stay away from all.
    tuning = pnn.HeaterTuning(free_spectral_range=period)
    wide, near = (
        bank(1, 2, tuning=tuning, channel_spacing=0.8, bank_size=(1, n))
        for n in (1300, 2)
    )
    for layer in (wide, near):
        layer.controls["control"].assign(np.full((2, 1), 1.5))
    np.testing.assert_allclose(
        wide.effective_weights(), near.effective_weights(), atol=1e-9
    )


def read_out(value, bits, peak=None, limit=None):
    """Two's complement: 2**bits codes from -limit up, of which 0 is one."""
    limit = peak / (1 - 2.0 ** (1 - bits)) if limit is None else limit
    step = limit / 2 ** (bits - 1)
    code = np.clip(np.round(value / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return code * step


@pytest.mark.parametrize("limit", [2.0, None], ids=["fixed", "auto"])
@pytest.mark.parametrize("columns", [2, 3, 5, 8])
def test_adc_reads_each_tile_before_the_sum(rng, columns, limit):
    bits, fan_in, outputs = 5, 5, 3
    x = rng.normal(size=(4, fan_in))
    adc = {"adc_bits": bits, "adc_range": limit}
    layer = bank(outputs, fan_in, bank_size=(2, columns), use_bias=False, **adc)
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


def test_adc_of_a_dark_input_is_zero():
    layer = MRRBank(3, adc_bits=4, use_bias=False)
    dark = np.zeros((2, 4), "float32")
    np.testing.assert_allclose(layer(dark), np.zeros((2, 3)), atol=1e-7)


def test_dac_rounds_the_controls(rng):
    dac = pnn.layers.DAC(bits=3, low=0.0, high=0.7)
    layer = bank(3, 5, dac=dac)
    control = rng.uniform(0, 0.9, (5, 3))
    layer.controls["control"].assign(control)
    expected = lorentz(quantised(control, 3, 0.0, 0.7))
    np.testing.assert_allclose(layer.effective_weights(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "bank_size, passes, tiles",
    [(None, 1, (1, 1)), ((4, 7), 1, (1, 1)), ((2, 3), 6, (2, 3)), ((3, 2), 8, (2, 4))],
)
def test_passes_tiles_and_places(bank_size, passes, tiles):
    layer = bank(4, 7, "float32", bank_size=bank_size)
    assert layer.passes == passes and layer.tiles == tiles
    rows, columns = bank_size or (4, 7)
    places = set()
    for out in range(4):
        for i in range(7):
            tile, row, column = layer.position("control", (i, out))
            assert 0 <= row < rows and 0 <= column < columns
            assert (tile // tiles[1] * rows + row) == out
            assert (tile % tiles[1] * columns + column) == i
            places.add((tile, row, column))
    assert len(places) == 28 and {p[0] for p in places} == set(range(passes))


# --- The convolution, against Keras.

SHAPES = (
    {},
    {"strides": 2},
    {"strides": (3, 1)},
    {"dilation_rate": (1, 3)},
    {"groups": 2, "strides": (1, 2)},
    {"kernel_size": (2, 4)},
    {"kernel_size": (1, 1), "strides": 2},
    {"filters": 2},
    {"filters": 14},
)
CONVOLUTIONS = [
    *[{"padding": p, **extra} for p in ("valid", "same") for extra in SHAPES],
    *[{"data_format": "channels_first", **extra} for extra in SHAPES[:5]],
]


def all_at_once(function, values):
    """What a function gives for each of stacked values, and all in one graph."""

    @tf.function
    def together(values):
        with kernels_per_device():
            return tf.vectorized_map(function, values, fallback_to_while_loop=False)

    return np.stack([function(v) for v in values]), together(values)


def name_of(options):
    return ",".join(f"{k}={v}" for k, v in options.items())


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=name_of)
def test_convolution_equals_that_of_keras_for_one_kernel_and_many(rng, options):
    defaults = {"filters": 6, "kernel_size": (3, 2), "data_format": "channels_last"}
    options = {**defaults, **options}
    layer = MRRConv2D(**options, bias_initializer="ones")
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
    control = tf.convert_to_tensor(layer.controls["control"])
    shifts = tf.constant(rng.normal(0, 0.1, (3, *control.shape)), "float32")

    def one(shift):
        others = {"half_width_error": 0.0, "temperature": 0.0}
        imperfections = {"resonance_shift": shift, **others}
        return layer.forward(x, {"control": control}, imperfections)

    np.testing.assert_allclose(*all_at_once(one, shifts), atol=1e-5)


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

    np.testing.assert_allclose(*all_at_once(one, controls), atol=3e-5)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (2, 3, 4, 5), (None, 5)])
def test_bank_output_shape(shape):
    layer = MRRBank(3)
    assert layer.compute_output_shape(shape) == (*shape[:-1], 3)
    if None not in shape:
        assert tuple(layer(np.ones(shape, "float32")).shape) == (*shape[:-1], 3)
    assert layer(keras.Input(shape[1:])).shape == (None, *shape[1:-1], 3)


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
    layer = bank(4, 6, "float32", tuning=tuning)
    low, high = layer.tuning.weight_range
    weights = rng.uniform(low + 0.02, min(high, 0.99) - 0.02, (6, 4))
    layer.program(weights)
    np.testing.assert_allclose(layer.effective_weights(), weights, atol=2e-5)


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


# --- What Keras asks of a layer.


def test_unknown_sizes_of_batch_and_image(rng):
    inputs = keras.Input((None, None, 2))
    layer = MRRConv2D(3, 3, padding="same", strides=2)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 3)
    for size in (5, 8):
        x = rng.normal(size=(2, size, size, 2)).astype("float32")
        np.testing.assert_allclose(model.predict(x, verbose=0), layer(x), atol=1e-5)


def test_mask_passes_through_a_bank():
    model = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), MRRBank(3)])
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    mask = model(tokens)._keras_mask
    np.testing.assert_array_equal(mask, tokens != 0)


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
    with measured_by(device.attach(model)):
        model(np.ones((1, 3), "float32"))
    assert len(model.losses) == 1


@pytest.mark.parametrize("gain", [2.5, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("adc", [{}, {"adc_bits": 8, "bank_size": (2, 2)}])
def test_a_gain_acts_behind_the_readout(rng, gain, adc):
    x = rng.normal(size=(4, 5)).astype("float32")
    keras.utils.set_random_seed(0)
    plain = MRRBank(3, activation="tanh", bias_initializer="ones", **adc)
    keras.utils.set_random_seed(0)
    gained = MRRBank(3, activation="tanh", bias_initializer="ones", gain=gain, **adc)
    before = np.arctanh(plain(x)) - 1
    expected = np.tanh(np.array(gain) * before + 1)
    np.testing.assert_allclose(gained(x), expected, atol=1e-5)
    assert len(gained.trainable_variables) == 2
    again = MRRBank.from_config(gained.get_config())
    np.testing.assert_array_equal(again.gain, gain)


def test_a_trained_gain_is_no_control(rng):
    layer = MRRBank(3, gain=True, use_bias=False)
    model = keras.Sequential([keras.Input((5,)), layer])
    sat = pnn.SATModel(model, rho=0.5)
    sat.compile("sgd", loss="mse")
    x, y = rng.normal(size=(8, 5)), 10 * rng.normal(size=(8, 3))
    sat.fit(x, y, epochs=2, verbose=0)
    assert float(layer.gain_variable) != 1
    assert "gain" not in layer.controls and "gain" not in layer.imperfections
    assert [v.name for v in pnn.layers.controls_of(model)] == ["control"]
