from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import FIT, assert_same, banks, compiled, samples

import keras_pnn as pnn
from keras_pnn.layers import MRRBank, PhysicalLayer, context, lookup


@keras.saving.register_keras_serializable(package="tests")
class Attenuators(PhysicalLayer):
    """The example in the docstring of `PhysicalLayer`, with a second state."""

    def build(self, input_shape):
        self.add_control(
            "amplitude", input_shape[-1:], unit="", initializer="ones", nominal=1.0
        )
        self.add_imperfection("loss_db", input_shape[-1:], unit="dB")
        self.add_imperfection("gain", (), unit="", nominal=1.0, shared=True)

    def forward(self, inputs, controls, imperfections):
        loss = 10.0 ** (-imperfections["loss_db"] / 20)
        return inputs * controls["amplitude"] * loss * imperfections["gain"]


def test_the_example_of_the_docstring_runs():
    text = PhysicalLayer.__doc__.split("```python")[1].split("```")[0]
    spots = {"pnn": pnn}
    lines = text.splitlines()
    exec("\n".join(line[4:] for line in lines), spots)
    layer = spots["Attenuators"]()
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(layer(x), x)
    layer.imperfections["loss_db"].assign([0, 20, 40])
    np.testing.assert_allclose(layer(x)[0], [1, 0.1, 0.01], rtol=1e-6)


def test_controls_and_imperfections_are_what_was_declared():
    layer = Attenuators()
    layer.build((None, 3))
    assert list(layer.controls) == ["amplitude"]
    assert list(layer.imperfections) == ["loss_db", "gain"]
    assert layer.trainable_variables == [layer.controls["amplitude"]]
    gain, loss = layer.quantity("gain"), layer.quantity("loss_db")
    assert (gain.unit, gain.nominal, gain.shared) == ("", 1.0, True)
    assert (loss.unit, loss.nominal, loss.shared) == ("dB", 0.0, False)
    assert loss.variable is layer.imperfections["loss_db"]
    assert layer.quantity("amplitude").variable is layer.controls["amplitude"]
    bank = MRRBank(2)
    bank.build((None, 3))
    units = {n: bank.quantity(n).unit for n in (*bank.controls, *bank.imperfections)}
    assert units == {
        "control": "nm",
        "resonance_shift": "nm",
        "half_width_error": "",
        "temperature": "K",
        "control_stuck": "nm",
    }
    assert bank.quantity("temperature").shared
    assert not bank.quantity("resonance_shift").shared


def test_a_bound_of_an_imperfection():
    layer = PhysicalLayer()
    layer.add_imperfection("scale", (), unit="", nominal=1.0, lower_bound=0.0)
    layer.add_imperfection("loss", (), unit="dB", nominal=1.0)
    assert layer.quantity("scale").lower_bound == 0.0
    assert layer.quantity("loss").lower_bound is None
    with pytest.raises(ValueError, match=r"`nominal`.*above 1,.*'size'\. Received: 1"):
        layer.add_imperfection("size", (), unit="", nominal=1.0, lower_bound=1.0)
    with pytest.raises(ValueError, match=r"`nominal`.*below 1,.*'size'\. Received: 1"):
        layer.add_imperfection("size", (), unit="", nominal=1.0, upper_bound=1.0)
    bounds = {"lower_bound": 0.0, "upper_bound": 3.0}
    layer.add_imperfection("width", (), unit="", nominal=1.0, **bounds)
    assert layer.quantity("width").room == (-1.0, 2.0)
    layer.quantity("width").check(np.array([-0.9, 1.9]))
    for bad, side in ((-1.0, "above 0"), (2.0, "below 3"), ([1.0, 2.5], "below 3")):
        with pytest.raises(ValueError, match=rf"width' must be {side}.*Received: "):
            layer.quantity("width").check(bad)
    layer.quantity("scale").check(np.array([0.5, -0.999]))
    layer.quantity("loss").check(-5.0)
    # What is above the bound in float64 alone is on it in float32.
    for bad in (-1.0, [0.5, -1.5], np.nan, -1 + 1e-9):
        with pytest.raises(ValueError, match=r"scale' must be above 0.*Received: "):
            layer.quantity("scale").check(bad)


def test_a_file_of_another_layer_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), MRRBank(2, name="a")])
    other = keras.Sequential([keras.Input((3,)), MRRBank(2, use_bias=False, name="a")])
    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="Received"):
        other.load_weights(tmp_path / "a.weights.h5")


def test_optimizer_state_survives_saving(tmp_path):
    model, (x, y) = compiled(banks(), "adam"), samples()
    model.fit(x, y, **FIT)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for m in (model, again):
        m.fit(x, y, **FIT)
    assert_same(model.weights, again.weights, atol=1e-6)


class Tripling:
    """A device whose outputs are three times the model's, plus one."""

    def __init__(self):
        self.seen = []

    def measure(self, layer, inputs, controls):
        self.seen.append((layer, sorted(controls)))
        return 3 * inputs * controls["amplitude"] + 1


def test_a_device_gives_the_value_and_the_model_the_derivative():
    layer, device = Attenuators(), Tripling()
    x = np.array([[1.0, 2.0]], "float32")
    layer(x)
    amplitude = layer.controls["amplitude"]
    with context.measured_by(device), tf.GradientTape() as tape:
        y = layer(x)
        value = tf.reduce_sum(y)
    np.testing.assert_allclose(y, [[4.0, 7.0]])
    np.testing.assert_allclose(tape.gradient(value, amplitude.value), [1.0, 2.0])
    assert device.seen == [(layer, ["amplitude"])]
    np.testing.assert_array_equal(layer(x), x)


def test_contexts_end_when_the_body_raises():
    layer = Attenuators()
    x = np.ones((1, 2), "float32")
    layer(x)
    with pytest.raises(RuntimeError), context.measured_by(Tripling()):
        raise RuntimeError
    np.testing.assert_array_equal(layer(x), x)
    with pytest.raises(RuntimeError), context.kernels_per_device():
        assert context.current().stacked
        raise RuntimeError
    assert not context.current().stacked


def test_forward_must_be_written():
    with pytest.raises(NotImplementedError, match="forward"):
        PhysicalLayer()(np.ones((1, 2), "float32"))


def test_layers_are_found_once_and_in_order():
    bank = MRRBank(3, name="shared")
    inner = keras.Sequential([keras.Input((3,)), bank, MRRBank(3, name="inner")])
    inputs = keras.Input((3,))
    outputs = MRRBank(2, name="last")(inner(bank(inputs)))
    model = keras.Model(inputs, outputs)
    names = [la.name for la in lookup.physical_layers(model)]
    assert sorted(names) == ["inner", "last", "shared"]
    assert names.index("last") == 2
    wrapped = pnn.SATModel(model, rho=0.1)
    assert lookup.physical_layers(wrapped) == lookup.physical_layers(model)
    assert len(pnn.layers.controls_of(model)) == 3


def test_frozen_controls_are_left_out():
    model = keras.Sequential([keras.Input((3,)), MRRBank(3), MRRBank(2)])
    model.layers[0].trainable = False
    assert pnn.layers.controls_of(model) == [model.layers[1].controls["control"]]


def test_imperfections_are_found_by_name():
    model = keras.Sequential(
        [keras.Input((3,)), MRRBank(3, name="one"), MRRBank(2, name="two")]
    )
    one, two = model.layers
    found = lookup.find(model, "temperature")
    assert [q.variable for q in found] == [
        one.imperfections["temperature"],
        two.imperfections["temperature"],
    ]
    (found,) = lookup.find(model, "two/resonance_shift")
    assert found.variable is two.imperfections["resonance_shift"]
    assert (found.index, found.path, found.unit) == (1, "two/resonance_shift", "nm")
    for name in ("heat", "three/temperature", "one/control", ""):
        with pytest.raises(ValueError, match=r"two/temperature.*Received"):
            lookup.find(model, name)


def test_variables_are_selected():
    model = keras.Sequential(
        [keras.Input((3,)), MRRBank(3, name="one"), keras.layers.Dense(2)]
    )
    control = model.layers[0].controls["control"]
    select = lookup.select_variables
    assert select(model, "controls") == [control]
    assert select(model, "all") == model.trainable_variables
    heat = select(model, lambda v: v.name == "temperature")
    assert heat == [model.layers[0].imperfections["temperature"]]
    dense = model.layers[1].name
    shift = model.layers[0].imperfections["resonance_shift"]
    for which, expected in {
        "control": [control],
        "one/control": [control],
        f"{dense}/bias": [model.layers[1].bias],
        "*/bias": [model.layers[0].bias, model.layers[1].bias],
        "o*/[cr]*": [control, shift],
        ("bias", "controls", f"{dense}/*"): [
            model.layers[0].bias,
            model.layers[1].bias,
            control,
            model.layers[1].kernel,
        ],
    }.items():
        given = which if isinstance(which, str) else list(which)
        found = select(model, given)
        assert [id(v) for v in found] == [id(v) for v in expected], which
    unknown = ("weights", "two/*", ["control", "weights"], "Control", "*_stuck")
    for which in unknown:
        with pytest.raises(ValueError, match=r"`variables`.*It has: control, bias"):
            select(model, which)
    with pytest.raises(ValueError, match=r"`variables` must be.*Received: 3"):
        select(model, 3)
    with pytest.raises(ValueError, match="`variables` must"):
        select(model, lambda v: False)
    # What is frozen is no variable to train.
    model.layers[1].trainable = False
    with pytest.raises(ValueError, match="`variables` must"):
        select(model, "kernel")
    digital = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="all"):
        select(digital, "controls")


@pytest.mark.parametrize(
    "first, second, name",
    [
        ("add_control", "add_imperfection", "gain"),
        ("add_imperfection", "add_control", "gain"),
        ("add_control", "add_control", "gain"),
        ("add_imperfection", "add_control", "old name"),
    ],
)
def test_a_name_means_one_quantity(first, second, name):
    class Twice(pnn.layers.PhysicalLayer):
        aliases: ClassVar = {"old name": ("gain", lambda amount: amount)}

        def build(self, input_shape):
            getattr(self, first)("gain", (1,), unit="")
            getattr(self, second)(name, (1,), unit="")

    with pytest.raises(ValueError, match=f"`name`.*Received: '{name}'"):
        Twice().build((None, 1))
