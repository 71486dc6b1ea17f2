import keras
import numpy as np
import pytest
from models import bits

import keras_pnn as pnn
from keras_pnn.layers import MRRBank, MRRConv2D

X = np.random.default_rng(0).normal(size=(4, 7, 7, 4)).astype("float32")


def functional():
    inputs = keras.Input((7, 7, 4))
    y = keras.layers.Conv2D(
        4, (3, 2), strides=(1, 2), padding="same", activation="relu", name="conv"
    )(inputs)
    y = keras.layers.BatchNormalization(name="norm")(y)
    z = keras.layers.Conv2D(
        4, 3, groups=2, dilation_rate=2, padding="same", use_bias=False, name="grouped"
    )(y)
    y = keras.layers.Add()([y, z])
    y = keras.layers.Dropout(0.3)(keras.layers.Flatten()(y))
    outputs = keras.layers.Dense(3, activation="softmax", name="dense")(y)
    return keras.Model(inputs, outputs)


def sequential():
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(3, "tanh", name="dense")]
    )
    model(X)
    return model


def settle(model, scale=0.1):
    """Weights in reach, and statistics of normalisation that are not the start's."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        values = rng.uniform(-scale, scale, weight.shape)
        weight.assign(1 + values if "variance" in weight.name else values)
    return model


def assert_equal(conversion, model, x=X, **tolerances):
    """Compares what a converted model predicts with what the digital one does."""
    ours, expected = (m.predict(x, verbose=0) for m in (conversion.model, model))
    np.testing.assert_allclose(
        ours, expected, **{"rtol": 0, "atol": 1e-5, **tolerances}
    )


@pytest.mark.parametrize("make", [functional, sequential])
@pytest.mark.parametrize(
    "options, scale",
    [
        ({}, 0.5),
        ({"gain": "layer"}, 2.5),
        ({"gain": "column"}, 2.5),
        ({"target": "mzi"}, 0.5),
    ],
)
def test_predictions_are_equal_when_all_weights_are_in_reach(
    make, options, scale, tmp_path
):
    model = settle(make(), scale)
    before = bits(model)
    conversion = pnn.convert(model, **options)
    error = 1e-3 if options else 2e-5
    assert_equal(conversion, model, rtol=error if options else 0, atol=error)
    assert all(row["clipped"] == 0 for row in conversion.layers)
    most = 1e-4 if options else 1e-5
    assert all(row["max_error"] < most for row in conversion.layers)
    assert bits(model) == before
    assert not any(isinstance(la, MRRBank | MRRConv2D) for la in model.layers)
    conversion.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    ours = conversion.model.predict(X, verbose=0)
    np.testing.assert_array_equal(again.predict(X, verbose=0), ours)


def test_layers_are_replaced_or_kept():
    conversion = pnn.convert(settle(functional()), bank_size=(2, 3))
    layers = {la.name: la for la in conversion.model.layers}
    assert type(layers["dense"]) is MRRBank
    assert type(layers["conv"]) is type(layers["grouped"]) is MRRConv2D
    assert conversion.kept == ["norm"]
    assert [row["name"] for row in conversion.layers] == ["conv", "grouped", "dense"]
    assert [row["weights"] for row in conversion.layers] == [96, 72, 336]
    assert all(layers[row["name"]].bank_size == (2, 3) for row in conversion.layers)
    for part in ("conv", "dense", "336", "kept digital: norm"):
        assert part in str(conversion)
    conversion.model.compile("adam", loss="sparse_categorical_crossentropy")
    conversion.model.fit(X, np.zeros(4), verbose=0)


def test_weights_out_of_reach_are_clipped_and_counted():
    model = settle(sequential(), 0.5)
    layer = model.get_layer("dense")
    kernel = np.asarray(layer.kernel).copy()
    kernel[0, 0], kernel[1, 1], kernel[2, 2] = 1.2, -1.5, 0.9995
    layer.kernel.assign(kernel)
    conversion = pnn.convert(model)
    (row,) = conversion.layers
    assert row["clipped"] == 3
    assert row["max_error"] == pytest.approx(0.5, abs=1e-5)
    expected = np.clip(kernel, -1, 0.999) - kernel
    assert row["rms_error"] == pytest.approx(np.sqrt(np.mean(expected**2)), abs=1e-5)
    weights = conversion.model.get_layer("dense").effective_weights()
    np.testing.assert_allclose(weights, np.clip(kernel, -1, 0.999), atol=1e-5)


def test_a_single_ended_port_clips_all_negative_weights():
    model = settle(sequential())
    (row,) = pnn.convert(model, tuning=pnn.HeaterTuning(port="through")).layers
    negative = np.sum(np.asarray(model.get_layer("dense").kernel) < 0)
    assert row["clipped"] == negative > 0


def test_what_the_layers_were_told_is_kept():
    dense = keras.layers.Dense(
        3,
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer="l1",
        bias_constraint="non_neg",
        activity_regularizer="l2",
        dtype="mixed_bfloat16",
        trainable=False,
    )
    bank = pnn.convert(keras.Sequential([keras.Input((4,)), dense])).model.layers[0]
    assert not bank.trainable and bank.compute_dtype == "bfloat16"
    assert bank.controls["control"].dtype == "float32"
    assert bank.kernel_regularizer.l2 == 0.5
    assert isinstance(bank.bias_regularizer, keras.regularizers.L1)
    assert isinstance(bank.bias_constraint, keras.constraints.NonNeg)
    assert isinstance(bank.activity_regularizer, keras.regularizers.L2)


def test_a_shared_layer_stays_shared():
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(4)
    model = keras.Model(inputs, dense(dense(inputs)))
    conversion = pnn.convert(settle(model))
    assert len(conversion.layers) == 1
    assert_equal(conversion, model, X[:, 0, 0])


def test_what_normalization_has_adapted_to_is_kept():
    normalization = keras.layers.Normalization()
    normalization.adapt(20 + 5 * X)
    layers = settle(sequential()).layers
    model = keras.Sequential([keras.Input((7, 7, 4)), normalization, *layers])
    converted = pnn.convert(model)
    assert_equal(converted, model, 20 + 5 * X)
    assert converted.kept == [normalization.name]


def test_models_inside_the_model_are_converted():
    inner = functional()
    last = keras.layers.Dense(2, name="last")
    model = settle(keras.Sequential([keras.Input((7, 7, 4)), inner, last]))
    converted = pnn.convert(model)
    names = [row["name"] for row in converted.layers]
    assert names == ["conv", "grouped", "dense", "last"]
    assert_equal(converted, model)
    before = converted.model.predict(X, verbose=0)
    kernel = inner.get_layer("dense").kernel
    kernel.assign(np.zeros(kernel.shape))
    np.testing.assert_array_equal(converted.model.predict(X, verbose=0), before)


def test_an_activation_with_weights_is_not_shared():
    dense = keras.layers.Dense(3, activation=keras.layers.PReLU())
    model, x = keras.Sequential([keras.Input((4,)), dense]), X[:, 0, 0]
    model(x)
    settle(model)
    before = np.asarray(model(x))
    converted = pnn.convert(model)
    assert_equal(converted, model, x, atol=1e-6)
    converted.model.layers[-1].activation.set_weights([np.full(3, 9.0)])
    np.testing.assert_array_equal(model(x), before)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_what_cannot_be_converted():
    subclassed = Subclassed()
    subclassed(X)
    nan = settle(sequential())
    nan.get_layer("dense").kernel.assign(np.full((196, 3), np.nan))
    nothing = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    for model in (subclassed, nan, nothing, unbuilt, "model", None):
        with pytest.raises(ValueError, match="Received"):
            pnn.convert(model)
    model = sequential()
    for gain in ("row", 2.0, True):
        with pytest.raises(ValueError, match=r"`gain`.*Received"):
            pnn.convert(model, gain=gain)
    for options in ({"gain": "layer"}, {"tuning": pnn.HeaterTuning()}):
        with pytest.raises(ValueError, match="left out with target='mzi'"):
            pnn.convert(model, target="mzi", **options)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("quantised", ["dense", "part"])
def test_a_quantised_layer_is_refused(mode, quantised):
    """One that stays digital too: its copy would need quantising first."""
    part = keras.layers.EinsumDense("ab,bc->ac", 4, name="part")
    dense = keras.layers.Dense(4, name="dense")
    model = keras.Sequential([keras.Input((6,)), part, dense])
    model.get_layer(quantised).quantize(mode)
    with pytest.raises(ValueError, match=f"quantised layers .*'{quantised}'"):
        pnn.convert(model)


@pytest.mark.parametrize("gain", ["layer", "column"])
def test_a_gain_brings_the_largest_weight_to_the_reach_of_its_ring(gain):
    converted = pnn.convert(settle(sequential(), 2.5), gain=gain).model
    bank = converted.get_layer("dense")
    largest = np.abs(np.asarray(bank.effective_weights())).max(axis=0)
    # 0.999 at the positive end, 1 at the negative.
    largest = largest if gain == "column" else largest.max()
    np.testing.assert_allclose(largest, 1 / 1.1, atol=2e-3)
    clone = keras.models.clone_model(converted).get_layer("dense")
    np.testing.assert_allclose(clone.gain_variable, bank.gain_variable)


def test_a_gain_of_a_single_detector_and_of_zeros():
    model = settle(sequential(), 2.5)
    tuning = pnn.HeaterTuning(port="through")
    conversion = pnn.convert(model, tuning=tuning, gain="layer")
    kernel = np.asarray(model.get_layer("dense").kernel)
    (row,) = conversion.layers
    assert row["clipped"] == np.sum(kernel < 0)
    bank = conversion.model.get_layer("dense")
    assert float(bank.gain_variable) == pytest.approx(1.1 * kernel.max() / 0.999)
    model.get_layer("dense").kernel.assign(0 * kernel)
    bank = pnn.convert(model, gain="column").model.get_layer("dense")
    np.testing.assert_array_equal(bank.gain_variable, np.ones(3))


def test_what_stays_digital_has_a_reason():
    inputs = keras.Input((6, 4))
    x = keras.layers.Dense(5, name="dense")(inputs)
    x = keras.layers.Conv1D(2, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    outputs = keras.layers.Dense(3, name="out")(keras.layers.Flatten()(x))
    conversion = pnn.convert(settle(keras.Model(inputs, outputs)))
    optical, digital = 6 * 4 * 5 + 8 * 3, 4 * 3 * 5 * 2
    assert conversion.optical_share == pytest.approx(optical / (optical + digital))
    assert set(conversion.reasons) == {"conv", "norm"}
    assert "not exactly a Dense or Conv2D" in conversion.reasons["conv"]
    assert "statistics" in conversion.reasons["norm"]
    assert "54.55 % of all multiplications are optical" in str(conversion)


@pytest.mark.parametrize(
    "shape, layers, optical, digital",
    [
        ((4,), lambda la: [la.Dense(3)], 12, 0),
        # Each pixel of 8 × 8 is spread to 3 × 3 pixels, by four channels to two.
        (
            (8, 8, 1),
            lambda la: [
                la.Conv2D(4, 3, padding="same"),
                la.Conv2DTranspose(2, 3, strides=2, padding="same"),
            ],
            64 * 9 * 4,
            64 * 9 * 4 * 2,
        ),
        # At each of six steps five values to 2 × 7.
        (
            (6, 4),
            lambda la: [la.Dense(5), la.EinsumDense("abc,cde->abde", (6, 2, 7))],
            6 * 4 * 5,
            6 * 5 * 14,
        ),
        # One that stays digital in a wrapper, at each of six steps.
        (
            (6, 4),
            lambda la: [la.TimeDistributed(la.Dense(5)), la.Flatten(), la.Dense(3)],
            6 * 5 * 3,
            6 * 4 * 5,
        ),
    ],
)
def test_the_share_of_optical_multiplications(shape, layers, optical, digital):
    model = keras.Sequential([keras.Input(shape), *layers(keras.layers)])
    found = pnn.convert(settle(model)).optical_share
    assert found == pytest.approx(optical / (optical + digital))


def test_dense_layers_as_meshes():
    conversion = pnn.convert(settle(functional(), 0.5), target="mzi")
    (row,) = conversion.layers
    assert (row["name"], row["weights"]) == ("dense", 112 * 3)
    assert "a mesh is for vectors" in conversion.reasons["conv"]
    assert 0 < conversion.optical_share < 1
    names = [row["name"] for row in pnn.hardware_cost(conversion.model).layers]
    assert {"dense_mesh", "dense_detector"} <= set(names)
    ours = conversion.model.predict(X, verbose=0)
    device = pnn.Variation(theta_error=0.1).sample(conversion.model, 1)[0]
    with device.installed(conversion.model):
        assert np.abs(conversion.model.predict(X, verbose=0) - ours).max() > 1e-2
