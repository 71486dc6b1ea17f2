"""The search for the worst device, against losses whose worst is known."""

import keras
import numpy as np
import pytest
from keras_layers_table import BATCH, make
from models import Bench, bits

import keras_pnn as pnn
from keras_pnn.robustness import worst_device


@keras.saving.register_keras_serializable(package="tests")
class Offset(pnn.layers.PhysicalLayer):
    """Adds its imperfections to its inputs."""

    def build(self, input_shape):
        shape = input_shape[-1:]
        self.add_control("gain", shape, unit="", initializer="ones")
        self.add_imperfection("offset", shape, unit="mV")
        self.add_imperfection("temperature", (), unit="K", shared=True)
        self.add_imperfection("scale", (), unit="", nominal=1.0, lower_bound=0.0)

    def forward(self, inputs, controls, imperfections):
        moved = imperfections["offset"] + imperfections["temperature"]
        return imperfections["scale"] * controls["gain"] * inputs + moved


SLOPE = np.array([3.0, -4.0, 0.0, 0.0])


def linear(layers=1):
    """A model whose loss is the mean of SLOPE · outputs."""
    inputs = keras.Input((4,))
    x = inputs
    for index in range(layers):
        x = Offset(name=f"stage_{index}")(x)
    model = keras.Model(inputs, x)
    slope = keras.ops.convert_to_tensor(SLOPE, "float32")
    model.compile("sgd", lambda y, p: keras.ops.sum(slope * p, axis=-1))
    return model


X = np.zeros((10, 4))


def walled(end):
    """A model whose loss is its first output, up to where that is `end`."""
    model = linear()

    def loss(y, p):
        first = p[:, 0]
        return keras.ops.where(first < end, first, np.nan)

    model.compile("sgd", loss)
    return model


def test_on_a_linear_loss_it_is_each_radius_along_the_gradient():
    radius = {"offset": 0.1, "temperature": 0.5}
    model = linear()
    before = bits(model)
    device, losses = worst_device(model, X, X, radius, batch_size=4, seed=3)
    # A root mean square of 0.1 over four elements is a length of 0.2.
    expected = 0.2 * SLOPE / 5
    np.testing.assert_allclose(device.deviations["offset", 0], expected, atol=1e-6)
    assert losses.shape == (3, 21)
    assert losses.max() == pytest.approx(0.2 * 5 + 0.5, rel=1e-5)
    assert losses[0, 0] == 0
    # The model is left as it was, and what is found is the same again.
    assert bits(model) == before
    _, again = worst_device(model, X, X, radius, batch_size=4, seed=3)
    np.testing.assert_array_equal(losses, again)


def test_a_shared_imperfection_is_one_for_all_layers():
    model = linear(layers=2)
    device, _ = worst_device(model, X, X, {"temperature": 0.5})
    found = [device.deviations["temperature", i] for i in range(2)]
    # The loss falls by -1 per kelvin and layer.
    assert found == [pytest.approx(-0.5), pytest.approx(-0.5)]


def test_it_stays_within_what_exists():
    inputs = np.tile([-1.0, 1.0, 0.0, 0.0], (4, 1))
    # The loss is -7 × scale: the worst scale is the smallest, which is above 0.
    device, losses = worst_device(linear(), inputs, inputs, {"scale": 5.0})
    assert -1 < device.deviations["scale", 0] < -0.99
    assert np.isfinite(losses).all()


def test_cells_that_do_not_exist_stay_and_the_power_imbalance_is_a_radius():
    inputs = keras.Input((4,))
    mesh = pnn.layers.MZIMesh(4, phase_initializer="haar")
    model = keras.Model(inputs, pnn.layers.Photodetector(ports=2)(mesh(inputs)))
    model.compile("sgd", "mse")
    x = np.eye(4, dtype="float32")
    radius = {"theta_error": 0.1, "splitter_imbalance": 0.2}
    device, losses = worst_device(model, x, x[:, :2], radius, steps=5)
    assert set(device.deviations) == {("theta_error", 0), ("splitter_error", 0)}
    assert losses.max() > losses[0, 0]
    exists = np.broadcast_to(mesh.quantity("theta_error").mask, (4, 2))
    assert (device.deviations["theta_error", 0][~exists] == 0).all()
    angle = abs(np.arcsin(0.2) / 2)
    rms = np.sqrt(np.sum(device.deviations["splitter_error", 0] ** 2) / (6 * 2))
    assert 0.5 * angle < rms <= angle * (1 + 1e-5)


def test_it_is_worse_than_devices_of_its_radius():
    rng = np.random.default_rng(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, pnn.layers.MRRBank(4)(inputs))
    model.compile("sgd", "mse")
    x = rng.normal(size=(64, 6)).astype("float32")
    y = model.predict(x, verbose=0)
    device, losses = worst_device(model, x, y, {"resonance_shift": 0.02})
    chips = pnn.Variation(resonance_shift=0.02).sample(model, 64, seed=0)
    drawn = pnn.evaluate_devices(model, x, y, chips, verbose=0)["loss"]
    assert losses.max() > 1.05 * drawn.max()
    assert losses.max() > 1.5 * np.median(drawn)
    # At the design the outputs are the targets, and the loss has no slope.
    assert losses[0].min() > 0 and losses[0].max() > drawn.max()
    with device.installed(model):
        installed = model.evaluate(x, y, verbose=0)
    assert installed == pytest.approx(losses.max(), rel=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"radius": {}}, "at least one imperfection"),
        ({"radius": {"nothing": 1.0}}, "Received: 'nothing'"),
        ({"radius": {"offset": 0.0}}, r"`radius\['offset'\]` must be .*> 0"),
        ({"radius": {"gain": 0.1}}, "An imperfection must be .*Received: 'gain'"),
        ({"radius": {"offset": 0.1, "stage_0/offset": 0.1}}, "given once"),
        ({"steps": 0}, "`steps` must be an integer ≥ 1. Received: 0"),
        ({"restarts": 0}, "`restarts` must be an integer ≥ 1. Received: 0"),
        ({"model": keras.Sequential()}, "`model` must be compiled"),
        ({"model": walled(-1.0)}, "be finite on `x` and `y`.*Received: nan"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, message):
    given = {"model": linear(), "radius": {"offset": 0.1}, **arguments}
    with pytest.raises(ValueError, match=message):
        worst_device(x=X, y=X, **given)


def test_a_model_that_is_on_a_device_is_refused():
    """Its derivatives are those of the design, or its deviations would be lost."""
    model = linear()
    radius = {"offset": 0.1}
    with (
        Bench(None).attach(model).installed(model),
        pytest.raises(ValueError, match=r"outside .*installed.*device measures"),
    ):
        worst_device(model, X, X, radius)
    (chip,) = pnn.devices.sweep(model, "offset", [0.5])
    with (
        chip.installed(model),
        pytest.raises(ValueError, match=r"'stage_0/offset' is off its nominal value"),
    ):
        worst_device(model, X, X, radius)
    # Other imperfections stay as they are.
    (warm,) = pnn.devices.sweep(model, "temperature", [0.5])
    with warm.installed(model):
        _, losses = worst_device(model, X, X, radius)
    assert losses.max() == pytest.approx(0.2 * 5 - 0.5, rel=1e-5)


def test_the_ascent_stops_at_losses_that_are_not_finite():
    # The radius alone would let the first output go to 0.2.
    device, losses = worst_device(walled(0.13), X, X, {"offset": 0.1})
    assert np.isfinite(losses).all()
    assert 0.12 < losses.max() < 0.13
    assert device.deviations["offset", 0][0] == pytest.approx(losses.max())
    # From the design along the gradient, to half of the radius, then on to the wall.
    assert losses[0, :2] == pytest.approx([0, 0.1])
    assert (np.diff(losses[0]) >= 0).all()


def test_a_wall_around_the_design_leaves_the_design():
    device, losses = worst_device(walled(1e-6), X, X, {"offset": 0.1}, restarts=1)
    assert (losses == 0).all()
    assert not device.deviations["offset", 0].any()


def test_a_slope_that_is_not_finite_is_none():
    model = linear()

    # The derivative of the second term is infinite at the design.
    def loss(y, p):
        return p[:, 0] + keras.ops.sqrt(keras.ops.abs(p[:, 1]))

    model.compile("sgd", loss)
    _, losses = worst_device(model, X, X, {"offset": 0.1}, restarts=1)
    assert np.isfinite(losses).all()
    assert losses[0, 1] == pytest.approx(0.1) and losses.max() >= 0.2 * (1 - 1e-6)


def test_states_of_layers_need_one_batch():
    model, x, y = make("all states")
    model.compile("sgd", "mse")
    radius = {"temperature": 1.0}
    search = {"steps": 1, "restarts": 1}
    with pytest.raises(ValueError, match=r"`lstm.*` must not be stateful.*one batch"):
        worst_device(model, x, y, radius, batch_size=BATCH, **search)
    worst_device(model, x[:BATCH], y[:BATCH], radius, **search)
