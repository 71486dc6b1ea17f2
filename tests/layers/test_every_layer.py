"""Check all layers alike: configuration, saving, graphs, XLA, devices, derivatives."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import assert_same, measured, moved, numbers, policy

import keras_pnn as pnn
from keras_pnn.layers import (
    ADC,
    DAC,
    AmplitudeMask,
    Aperture,
    Attenuators,
    BalancedDetector,
    ControlRange,
    DetectorArray,
    Encode,
    FreeSpace,
    HomodyneDetector,
    Lens,
    MaskedSLM,
    MRRBank,
    MRRConv2D,
    MZIDense,
    MZIMesh,
    PhaseBlocks,
    PhaseMask,
    PhaseRoughness,
    Photodetector,
    Saturable,
    ShotNoise,
    Threshold,
    mesh_initializers,
)

L1, L2 = keras.regularizers.L1, keras.regularizers.L2
WARMING = pnn.physics.heater.nearest_neighbour((2, 4), 0.05)


# Every argument, with a value of its own.
RINGS = dict(
    activation="tanh",
    use_bias=True,
    tuning=pnn.HeaterTuning(offset=-0.2, max_current=2.0, port="through"),
    kernel_initializer=keras.initializers.HeNormal(seed=3),
    bias_initializer="ones",
    kernel_regularizer=L2(0.1),
    control_regularizer=L1(0.2),
    bias_regularizer=L2(0.3),
    activity_regularizer=L2(0.4),
    control_constraint=ControlRange(0.1, 1.5),
    bias_constraint=keras.constraints.NonNeg(),
    temperature_sensitivity=0.07,
    crosstalk=0.9 * np.eye(3) + 0.1,
    channel_spacing=0.9,
    bank_size=(2, 3),
    dac=DAC(7, 0.0, 2.0),
    adc_bits=9,
    gain=1.7,
    signed=True,
    read_noise=0.01,
    seed=5,
    adc_range=4.0,
    dtype="float32",
    trainable=False,
    name="every_argument",
)
CONVOLUTION = dict(
    filters=4,
    kernel_size=(2, 3),
    strides=(2, 1),
    padding="same",
    data_format="channels_first",
)
MESH = dict(
    arrangement="reck",
    phase_initializer=mesh_initializers.Cross(0.2, seed=3),
    phase_regularizer=L2(0.1),
    phase_constraint=ControlRange(-7.0, 7.0),
    loss_db=0.2,
    straight_loss_db=0.1,
    dac=DAC(9, 0.0, 6.2),
    dtype="float64",
    trainable=False,
    name="every_argument",
)
COUPLED = {"crosstalk": np.eye(20) + 0.01}
MASKS = dict(
    tile=(4, 5),
    grid=(2, 3),
    margin=(1, 3),
    pixel_repeat=(3, 1),
    activation="tanh",
    use_bias=True,
    display_range=(-0.5, 1.5),
    display_bits=7,
    dac=DAC(6, -1, 1),
    contrast=30.0,
    photons=100.0,
    read_noise=0.2,
    seed=5,
    mask_initializer=keras.initializers.HeNormal(seed=3),
    mask_regularizer=L1(0.2),
    mask_constraint=ControlRange(-0.5, 0.5),
    bias_initializer="ones",
    bias_regularizer=L2(0.3),
    activity_regularizer=L2(0.4),
    trainable=False,
    name="every_argument",
)
LIGHT = dict(wavelength=600e-9, pitch=1e-6, dtype="float64", name="every_argument")
PHASES = dict(
    shape=(6, 8),
    phase_initializer=keras.initializers.RandomUniform(0, 7, seed=3),
    phase_regularizer=PhaseRoughness(0.2),
    phase_constraint=PhaseBlocks(3),
    dac=DAC(4, 0.1, 6.0),
    outside=0.5,
    trainable=False,
    **LIGHT,
)
AMPLITUDES = dict(
    shape=(6, 8),
    amplitude_initializer=keras.initializers.RandomUniform(0.2, 0.9, seed=3),
    amplitude_regularizer=L2(0.2),
    amplitude_constraint=ControlRange(0.1, 0.8),
    dac=DAC(4, 0.0, 1.0),
    outside=0.0,
    trainable=False,
    **LIGHT,
)
SPACE = dict(distance=2e-5, band_limit=False, padding=3, **LIGHT)
PLAIN = {
    "bank": (lambda: MRRBank(4), (2, 5)),
    "conv": (lambda: MRRConv2D(4, 2, dilation_rate=(1, 2), groups=2), (2, 4, 5, 2)),
    "mesh": (lambda: MZIMesh(4), (3, 4)),
    "dense": (lambda: MZIDense(3), (3, 4)),
    "masks": (lambda: MaskedSLM(3), (3, 4, 5)),
    "phases": (lambda: PhaseMask(), (3, 6, 8)),
}
LAYERS = {
    **PLAIN,
    "measured": (lambda: MRRBank(3, use_bias=False, tuning=measured()), (2, 5)),
    "full bank": (lambda: MRRBank(4, **RINGS), (2, 5)),
    "full conv": (lambda: MRRConv2D(**CONVOLUTION, **RINGS), (2, 2, 5, 4)),
    "full mesh": (lambda: MZIMesh(4, **COUPLED, **MESH), (3, 4)),
    "full dense": (lambda: MZIDense(3, **MESH), (3, 4)),
    "attenuators": (lambda: Attenuators(3, dtype="float64"), (3, 4)),
    "full masks": (lambda: MaskedSLM(5, **MASKS), (3, 4, 5)),
    "photodetector": (lambda: Photodetector("l2", ports=[5, 0, 3]), (3, 6)),
    "homodyne": (lambda: HomodyneDetector("tanh", bias_initializer="ones"), (3, 6)),
    "balanced": (lambda: BalancedDetector(plus=[5, 1], minus=[0, 2]), (3, 6)),
    "noise": (lambda: ShotNoise(photons=100, seed=1), (3, 6)),
    "converter": (lambda: ADC(bits=3, low=0.2, high=0.7), (3, 6)),
    "encode": (lambda: Encode("intensity", size=(5, 7), padding=1), (2, 4, 4, 1)),
    "free space": (lambda: FreeSpace(1e-4), (2, 16, 12)),
    "full space": (lambda: FreeSpace(**SPACE), (2, 6, 8)),
    "lens": (lambda: Lens(2e-4, on_pixel=False, **LIGHT), (2, 6, 8)),
    "aperture": (lambda: Aperture((4e-6, 9e-6), 1e-6, "rectangle"), (2, 6, 8)),
    "full phases": (lambda: PhaseMask(**PHASES), (2, 6, 8)),
    "amplitudes": (lambda: AmplitudeMask(), (2, 6, 8)),
    "full amplitudes": (lambda: AmplitudeMask(**AMPLITUDES), (2, 6, 8)),
    "threshold": (lambda: Threshold(0.8), (2, 6, 8)),
    "saturable": (lambda: Saturable(2.0, 0.3), (2, 6, 8)),
    "detector array": (
        lambda: DetectorArray([(0, 1, 2, 3), (3, 0, 1, 8)], normalize=None),
        (2, 6, 8),
    ),
}


def case(name):
    """A layer that is not built, and inputs."""
    make, shape = LAYERS[name]
    x = np.linspace(0.1, 0.9, np.prod(shape)).reshape(shape).astype("float32")
    return make(), x


@pytest.mark.parametrize("name", LAYERS)
def test_config_round_trip(name):
    layer, x = case(name)
    config = json.loads(json.dumps(layer.get_config()))
    packed = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    outputs = layer(x)
    for again in (
        type(layer).from_config(config),
        keras.saving.deserialize_keras_object(packed),
    ):
        assert json.loads(json.dumps(again.get_config())) == config
        again.build(x.shape)
        if "full" in name:  # Their initializers have seeds.
            assert_same(layer.weights, again.weights)
        again.set_weights(layer.get_weights())
        np.testing.assert_array_equal(again(x), outputs)


@pytest.mark.parametrize(
    "full, plain, alike",
    [
        ("full bank", MRRBank(3), {"use_bias", "dtype"}),
        (
            "full conv",
            MRRConv2D(3, 1),
            {"use_bias", "dtype", "dilation_rate", "groups"},
        ),
        ("full mesh", MZIMesh(3), set()),
        ("full dense", MZIDense(4), set()),
        ("full masks", MaskedSLM(3), {"dtype"}),
        ("full phases", PhaseMask(), set()),
        ("full amplitudes", AmplitudeMask(), set()),
        ("full space", FreeSpace(1e-4), {"trainable"}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_full_layers_have_a_value_of_their_own_for_every_argument(full, plain, alike):
    ours, theirs = case(full)[0].get_config(), plain.get_config()
    assert ours.keys() >= theirs.keys()
    assert {k for k in ours if ours[k] == theirs.get(k)} <= alike


@pytest.mark.parametrize("name", LAYERS)
def test_a_saved_model_is_the_design(name, tmp_path):
    layer, x = case(name)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    design = model(x)
    imperfect = [
        variable
        for part in pnn.layers.physical_layers(model)
        for variable in part.imperfections.values()
    ]
    for variable in imperfect:
        variable.assign(variable + np.full(variable.shape, 0.1))
    if imperfect:
        assert np.abs(model(x) - design).max() > 1e-4
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded(x), design)
    for part in pnn.layers.physical_layers(loaded):
        for quantity in map(part.quantity, part.imperfections):
            np.testing.assert_array_equal(
                quantity.variable, np.float32(quantity.nominal)
            )
    other = keras.Sequential([keras.Input(x.shape[1:]), case(name)[0]])
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(x), design)


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_may_be_built_inside_a_graph(name):
    layer, x = case(name)
    outputs = tf.function(lambda x: layer(x))(x)
    np.testing.assert_allclose(outputs, layer(x), atol=1e-6)
    assert np.std(np.asarray(layer.trainable_variables[0])) > 0.01


CAMERA = dict(display_range=(0, 1), contrast=20.0, photons=50, read_noise=0.1, seed=3)
FITTED = {
    "rings": (
        (6, 6, 2),
        1e-3,
        lambda: [
            MRRConv2D(2, 2, strides=2, kernel_regularizer="l2"),
            keras.layers.Flatten(),
            MRRBank(
                2,
                bank_size=(2, 4),
                crosstalk=0.95 * np.eye(4) + 0.05,
                channel_spacing=0.8,
            ),
        ],
    ),
    "mesh": ((3,), 0.1, lambda: [MZIDense(2), Photodetector()]),
    "masks": (
        (4, 5),
        0.1,
        lambda: [MaskedSLM(3, display_range=(0, 1), display_bits=8, contrast=20.0)],
    ),
    "planes": (
        (6, 6),
        0.5,
        lambda: [
            Encode(size=8, padding=4),
            Lens(4e-4),
            AmplitudeMask(),
            FreeSpace(1e-4),
            Threshold(0.2),
            PhaseMask(dac=DAC(8, 0, 6.2)),
            Saturable(),
            FreeSpace(1e-4),
            Aperture(40e-6),
            DetectorArray(size=2),
        ],
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_compiled_by_xla_equals_an_eager_one(rng, name):
    shape, rate, layers = FITTED[name]
    x = rng.uniform(size=(8, *shape)).astype("float32")
    losses, weights = [], []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        keras.utils.set_random_seed(7)
        model = keras.Sequential([keras.Input(shape), *layers()])
        model.compile(keras.optimizers.SGD(rate), loss="mse", **options)
        y = np.linspace(0, 1, 8 * model.output_shape[-1]).reshape(8, -1)
        fitted = model.fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0)
        losses.append(fitted.history["loss"])
        weights.append(model.trainable_weights)
    assert losses[0][-1] < losses[0][0]
    assert_same(*weights, atol=1e-4)


HALVED = {
    **FITTED,
    "converters": (
        (5, 5, 2),
        1e-3,
        lambda: [
            MRRConv2D(3, 2, bank_size=(3, 4), adc_bits=12),
            keras.layers.Flatten(),
            MRRBank(2, bank_size=(2, 2), adc_bits=12, adc_range=9.0),
        ],
    ),
    "camera": ((4, 5), 0.1, lambda: [MaskedSLM(3, use_bias=True, **CAMERA)]),
}
MIXED = ("mixed_float16", "mixed_bfloat16")


@pytest.mark.parametrize(
    "name, kind",
    [
        *itertools.product(HALVED, MIXED),
        ("camera", "float16"),
        ("mesh", "bfloat16"),
    ],
)
def test_half_precision(rng, name, kind):
    shape, rate, layers = HALVED[name]
    with policy(kind):
        half = keras.Sequential([keras.Input(shape), *layers()])
    full = keras.Sequential([keras.Input(shape), *layers()])
    for ours, theirs in zip(half.weights, full.weights, strict=True):
        theirs.assign(tf.cast(ours, theirs.dtype))
    parts = pnn.layers.physical_layers(half)
    if kind in MIXED:
        own = [{**part.controls, **part.imperfections}.values() for part in parts]
        assert {v.dtype for v in itertools.chain(*own)} == {"float32"}
    x = rng.uniform(size=(8, *shape)).astype("float32")
    outputs = half(x)
    # Fields are wide, and so are the intensities behind them.
    wide = name in ("mesh", "planes")
    assert outputs.dtype == ("float32" if wide else kind.removeprefix("mixed_"))
    # A camera counts photons, of which there may be one more.
    coarse = 0.1 if "bfloat16" in kind or name == "camera" else 0.02
    single = tf.cast(outputs, "float32")
    np.testing.assert_allclose(single, full(x), atol=1e-6 if wide else coarse)
    before = numbers(half.trainable_variables)
    # In a graph, as it is used, where that is made soon.
    half.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=name != "masks")
    history = half.fit(x, np.ones(outputs.shape), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert max(moved(before, half.trainable_variables)) > 0


@pytest.mark.parametrize(
    "shape, layers, spread",
    [
        (
            (6,),
            lambda: [MZIMesh(6), Photodetector(), MZIDense(3), Photodetector()],
            {"theta_error": 0.1, "splitter_imbalance": 0.15, "loss_db": 0.2},
        ),
        (
            (5, 5, 1),
            lambda: [
                MRRConv2D(3, 2, bank_size=(2, 4), crosstalk=WARMING),
                keras.layers.GlobalAveragePooling2D(),
            ],
            {"resonance_shift": 0.05},
        ),
        (
            (4, 5),
            lambda: [MaskedSLM(3, display_range=(0, 1), mask_initializer="he_normal")],
            {"rotation": 3.0, "shift": 0.5, "scale": 0.05},
        ),
        (
            (6, 6),
            lambda: [
                *(Encode(size=8, padding=4), Lens(4e-4), FreeSpace(1e-4)),
                *(AmplitudeMask(), FreeSpace(1e-4), PhaseMask(), FreeSpace(1e-4)),
                DetectorArray(grid=(1, 2), size=2),
            ],
            {
                "rotation": 3.0,
                "shift_um": 1.0,
                "scale": 0.05,
                "tilt": 3.0,
                "distance_error": 20.0,
                "wavelength_shift": 10.0,
                "phase_gain": 0.1,
                "phase_offset": 0.3,
                "dead_pixels": 0.1,
                "decenter": 1.0,
                "defocus": 0.3,
                "astigmatism": 0.3,
            },
        ),
    ],
    ids=["mesh", "heated conv", "masks", "planes"],
)
def test_many_devices_equal_one_after_the_other(rng, shape, layers, spread):
    model = keras.Sequential([keras.Input(shape), *layers()])
    x = rng.uniform(size=(12, *shape)).astype("float32")
    y = rng.uniform(size=(12, 3)).astype("float32")
    model.compile("sgd", loss="mse", metrics=["mae"], run_eagerly=True)
    devices = pnn.Variation(**spread).sample(model, 3, seed=2)
    together = pnn.evaluate_devices(model, x, y, devices, batch_size=6, verbose=0)
    assert together.vectorized
    for i, device in enumerate(devices):
        with device.installed(model):
            loss, mae = model.evaluate(x, y, verbose=0)
        assert together["loss"][i] == pytest.approx(loss, rel=1e-4)
        assert together["mae"][i] == pytest.approx(mae, rel=1e-4)
    assert np.ptp(together["loss"]) > 1e-4


UNITARY = np.eye(4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MRRBank(3).effective_weights(),
        lambda: MRRBank(3).heater_power(),
        lambda: MRRBank(3).program(np.zeros((4, 3))),
        lambda: MZIMesh(4).program(UNITARY),
        lambda: MZIMesh(4).transfer_matrix(),
        lambda: MZIMesh(4).correct(UNITARY),
        lambda: MZIMesh(4).wrap(),
        lambda: MZIDense(4).program(UNITARY),
        lambda: MZIDense(4).transfer_matrix(),
        lambda: MaskedSLM(3).frame_shape,
        lambda: MaskedSLM(3).frames(),
        lambda: MaskedSLM(3).effective_weights(),
        lambda: MaskedSLM(3).program(np.zeros((4, 3))),
        lambda: MaskedSLM(3).load_frames("frames"),
        lambda: PhaseMask().frame(),
        lambda: PhaseMask().load_frame("frames"),
    ],
)
def test_a_layer_that_is_not_built_says_so(call):
    with pytest.raises(ValueError, match=r"built.*Received"):
        call()


# Derivatives, in float64.

TILED = {"bank_size": (2, 3), "crosstalk": 0.95 * np.eye(3) + 0.05}
DIFFERENTIABLE = {
    "bank": (lambda **k: MRRBank(3, activation="tanh", **k), (4, 5)),
    "row": (lambda **k: MRRBank(3, channel_spacing=0.8, **TILED, **k), (4, 5)),
    "heater": (lambda **k: MRRBank(3, tuning="heater", **TILED, **k), (4, 5)),
    "measured": (lambda **k: MRRBank(2, tuning=measured(), **k), (4, 3)),
    "conv": (lambda **k: MRRConv2D(2, 2, activation="tanh", **k), (2, 4, 3, 2)),
    "mesh": (lambda **k: MZIMesh(4, **k), (3, 4)),
    "triangle": (
        lambda **k: MZIMesh(4, "reck", crosstalk=np.eye(20) + 0.02, **k),
        (3, 4),
    ),
    "dense": (lambda **k: MZIDense(2, **k), (3, 3)),
    "masks": (
        lambda **k: MaskedSLM(3, grid=(1, 2), activation="tanh", **k),
        (2, 3, 4),
    ),
    "intensities": (
        lambda **k: MaskedSLM(3, grid=(1, 2), display_range=(-4, 4), contrast=8.0, **k),
        (2, 3, 4),
    ),
    "space": (lambda **k: FreeSpace(2e-5, pitch=6e-7, **k), (2, 6, 5)),
    "lens": (lambda **k: Lens(2e-4, **k), (2, 6, 5)),
    "phases": (lambda **k: PhaseMask(**k), (2, 6, 5)),
    "amplitudes": (lambda **k: AmplitudeMask(**k), (2, 6, 5)),
    "threshold": (lambda **k: Threshold(0.3, **k), (2, 6, 5)),
    "saturable": (lambda **k: Saturable(**k), (2, 6, 5)),
}
RANGES = {
    "control": (0.05, 0.5),
    "theta": (0.2, 2.9),
    "phi": (-3, 3),
    "gamma": (-3, 3),
    "mask": (-1, 1),
    "attenuation": (0.1, 0.9),
    "resonance_shift": (-0.01, 0.01),
    "temperature": (0.1, 0.2),
    "loss_db": (0.1, 0.5),
    "rotation": (2, 4),
    "shift": (-1.6, -1.3),
    "scale": (0.95, 1.05),
    "phase": (0, 6),
    "amplitude": (0.1, 0.9),
    "phase_gain": (0.9, 1.1),
    "dead_pixels": (0.1, 0.3),
}


def real_sum(outputs, weights):
    """A real number that depends on every output's amplitude and phase."""
    if outputs.dtype.is_complex:
        mixed = outputs * tf.cast(tf.complex(1.0, 0.5), outputs.dtype)
        mixed += outputs[..., ::-1]
        outputs = tf.math.real(mixed) ** 2 + tf.math.imag(mixed) ** 2
    return tf.reduce_sum(outputs * weights + 0.1 * outputs**2)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_and_hessian_products_against_differences(rng, name):
    make, shape = DIFFERENTIABLE[name]
    layer = make(dtype="float64")
    x = tf.constant(rng.normal(size=shape))
    weights = rng.normal(size=layer(x).shape)
    quantities = [
        part.quantity(n)
        for part in pnn.layers.physical_layers(layer)
        for n in (*part.controls, *part.imperfections)
        # Stuck or not: a step, which has no slope.
        if not part.quantity(n).holds
    ]
    for quantity in quantities:
        low, high = RANGES.get(quantity.name, (-0.1, 0.1))
        if quantity.unit == "mA":
            low, high = 1.2, 1.7
        variable = quantity.variable
        variable.assign(rng.uniform(low, high, variable.shape))
    variables = [q.variable for q in quantities]
    start = [tf.convert_to_tensor(v) for v in variables] + [x]
    bumps = [tf.constant(rng.normal(size=v.shape)) for v in start]
    step = 1e-6

    def loss(point):
        with keras.StatelessScope(list(zip(variables, point[:-1], strict=True))):
            return real_sum(layer(point[-1]), weights)

    def gradient(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = loss(point)
        return tape.gradient(value, point)

    def product(point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = along(gradient(point))
        return along(tape.gradient(value, point))

    def along(parts):
        return sum(tf.reduce_sum(p * b) for p, b in zip(parts, bumps, strict=True))

    def beside(amounts):
        return [p + a * b for p, a, b in zip(start, amounts, bumps, strict=True)]

    exact = gradient(start)
    for i, slope in enumerate(exact):
        one = step * np.eye(len(start))[i]
        expected = float(loss(beside(one)) - loss(beside(-one))) / (2 * step)
        along_one = float(tf.reduce_sum(slope * bumps[i]))
        assert along_one != 0
        assert along_one == pytest.approx(expected, rel=2e-5, abs=1e-5)
    all_of_them = np.full(len(start), step)
    above, below = (along(gradient(beside(s * all_of_them))) for s in (1, -1))
    expected = float(above - below) / (2 * step)
    assert float(product(start)) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for quantity, slope in zip(quantities, exact[:-1], strict=True):
        if quantity.mask is not None:
            np.testing.assert_array_equal(slope != 0, quantity.exists)


@pytest.mark.parametrize("symbolic", [False, True], ids=["eager", "symbolic"])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (lambda: MRRBank(2), (4,)),
        (lambda: MRRBank(2, adc_bits=8), (4,)),
        (lambda: MRRConv2D(2, 2), (3, 3, 1)),
        (lambda: MaskedSLM(2), (4, 4)),
        (lambda: MaskedSLM(2, display_range=(0, 1)), (4, 4)),
    ],
)
def test_a_layer_of_powers_refuses_complex_fields(layer, shape, symbolic):
    fields = np.full((1, *shape), 1 + 1j, "complex64")
    if symbolic:
        fields = keras.Input(shape, dtype="complex64")
    with pytest.raises(ValueError, match="must be real: put a `Photodetector`"):
        layer()(fields)
