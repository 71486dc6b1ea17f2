"""Physics-aware training: the device's values, the model's derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_pnn as pnn

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 1.0, size=(8, 4)).astype("float32")
Y = RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIT = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
READOUTS = ["layers", "output"]


class Power(pnn.layers.PhysicalLayer):
    """outputs = factor · (gain · inputs)^1.1, which the model has a little too high."""

    def build(self, input_shape):
        self.add_control("gain", input_shape[-1:], unit="", initializer="ones")
        self.add_imperfection("factor", input_shape[-1:], unit="", nominal=2.01)

    def forward(self, inputs, controls, imperfections):
        return imperfections["factor"] * (controls["gain"] * inputs) ** 1.1


class Two:
    """The device: outputs = 2 · (gain · inputs)^1.1."""

    def measure(self, layer, inputs, controls):
        return 2.0 * (controls["gain"] * inputs) ** 1.1


def chain(n):
    inputs = x = keras.Input((1,), dtype="float64")
    for _ in range(n):
        x = Power(dtype="float64")(x)
    return keras.Model(inputs, x)


def mesh(dropout=0.4):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.Photodetector()(pnn.layers.MZIMesh(4)(inputs))
    if dropout:
        x = layers.Dropout(dropout)(layers.BatchNormalization(momentum=0.5)(x))
    x = pnn.layers.Photodetector(ports=3)(pnn.layers.MZIMesh(4)(x))
    return keras.Model(inputs, x)


def chip(scale=0.3):
    """A device for `mesh`; with scale=0 one that equals the model."""
    rng = np.random.default_rng(3)
    return pnn.SimulatedDevice(
        {
            (name, i): scale * rng.normal(size=(4, 2)).astype("float32")
            for name in ("theta_error", "phi_error")
            for i in range(2)
        }
    )


class Bench(pnn.HardwareDevice):
    """A simulated chip behind NumPy."""

    def __init__(self, simulated, **kwargs):
        super().__init__(backoff=0.0, **kwargs)
        self.simulated = simulated

    def measure(self, layer, inputs, controls):
        return self.simulated.measure(layer, tf.constant(inputs), controls).numpy()


def compiled(model, rate=0.1, **kwargs):
    model.compile(keras.optimizers.SGD(rate), LOSS, **kwargs)
    return model


def assert_close(one, other, atol):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_allclose(
            np.array(a), np.array(b), rtol=0, atol=atol, err_msg=a.path
        )


# Derivatives where the model is wrong by a known amount.


def slope(model, gradient):
    """The derivative of the output with respect to the first layer's control."""
    trainer = pnn.SATModel(model, ascent=None)
    loss = keras.losses.MeanAbsoluteError(dtype="float64")
    trainer.compile(keras.optimizers.SGD(), loss)
    batch = (tf.constant([[0.3]], "float64"), tf.zeros((1, 1), "float64"), None)
    first = model.layers[1].controls["gain"]
    return gradient(trainer, batch, [], [first])


@pytest.mark.parametrize("n", [1, 5, 20])
def test_the_error_of_a_chain(n):
    model = chain(n)
    states = [0.3]
    for _ in range(n):
        states.append(2.0 * states[-1] ** 1.1)
    # ∂x_n/∂gain: the device's law is a power of the gain.
    exact = 1.1**n * states[-1]
    expected = {
        "layers": 1.005**n - 1,
        # The model's own states have their error as well.
        "output": 1.005 ** ((1.1**n - 1) / 0.1) - 1,
    }
    for readout, error in expected.items():
        gradient = pnn.training.DeviceGradient(readout).on(Two())
        seen = slope(model, gradient)
        np.testing.assert_allclose(seen.y_pred, [[states[-1]]], rtol=1e-12)
        # Keras adds losses up in float32.
        np.testing.assert_allclose(seen.loss, states[-1], rtol=1e-6)
        (found,) = seen.gradients
        np.testing.assert_allclose(float(found[0]) / exact - 1, error, rtol=1e-5)
    if n == 20:
        assert round(expected["layers"], 4) == 0.1049


# A device that equals the model.


@pytest.mark.parametrize("readout", READOUTS)
def test_an_equal_device_is_plain_training(readout):
    plain, model = mesh(), mesh()
    pat = pnn.PATModel(model, device=chip(0.0), readout=readout)
    expected = compiled(plain).fit(X, Y, **FIT).history
    logs = compiled(pat).fit(X, Y, **FIT).history
    # Batch statistics and dropout masks, too: they have gone on once a step.
    assert_close(plain, model, 1e-6)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-6)
    assert np.abs(np.array(model.layers[1].controls["theta"]) - start_theta()).max() > 0


def start_theta():
    return np.array(mesh().layers[1].controls["theta"])


def test_an_equal_device_is_sat():
    offline = compiled(pnn.SATModel(mesh(), rho=0.5))
    online = compiled(pnn.SATModel(mesh(), rho=0.5, device=chip(0.0)))
    output = pnn.PATModel(mesh(), chip(0.0), "output", ascent=pnn.SAM(0.5))
    options = {**FIT, "epochs": 1}
    expected = offline.fit(X, Y, **options).history
    assert abs(expected["sharpness"][0]) > 1e-3
    for trainer in (online, compiled(output, run_eagerly=True)):
        logs = trainer.fit(X, Y, **options).history
        assert_close(offline.model, trainer.model, 1e-6)
        sharpness = expected["sharpness"]
        np.testing.assert_allclose(logs["sharpness"], sharpness, atol=1e-6)


# A device that differs.


@pytest.mark.parametrize("readout", READOUTS)
def test_loss_and_metrics_are_those_of_the_device(readout):
    model = mesh(dropout=0)
    device = chip()
    pat = pnn.PATModel(model, device, readout)
    compiled(pat, 0.0, metrics=["accuracy"], run_eagerly=True)
    ideal = pat.evaluate(X, Y, verbose=0, return_dict=True)
    with device.installed(model):
        expected = pat.evaluate(X, Y, verbose=0, return_dict=True)
    logs = pat.fit(X, Y, batch_size=8, verbose=0).history
    np.testing.assert_allclose(logs["loss"], [expected["loss"]], rtol=1e-6)
    np.testing.assert_allclose(logs["accuracy"], [expected["accuracy"]])
    assert abs(expected["loss"] - ideal["loss"]) > 1e-2


def test_statistics_are_those_of_the_device():
    """Of the measured pass, whichever readout; the model's own would differ."""
    seen = []
    for readout in READOUTS:
        model = mesh()
        pat = pnn.PATModel(model, chip(), readout)
        compiled(pat, 0.0, run_eagerly=True).train_on_batch(X, Y)
        norm = next(
            la for la in model.layers if isinstance(la, layers.BatchNormalization)
        )
        seen.append(norm.moving_mean.numpy())
        with chip().installed(model):
            batch = np.array(model.layers[2](model.layers[1](X))).mean(axis=0)
        np.testing.assert_allclose(seen[-1], 0.5 * batch, atol=1e-6)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_bench_and_its_simulation_give_the_same_step(readout):
    simulated, model = mesh(), mesh()
    pat = compiled(pnn.PATModel(simulated, chip(), readout), run_eagerly=True)
    pat.fit(X, Y, **FIT)
    bench = Bench(chip().attach(model), max_batch=3)
    compiled(pnn.PATModel(model, bench, readout)).fit(X, Y, **FIT)
    # Two layers, two calls for a batch of four, two batches, two epochs; and each
    # pass is measured once.
    assert bench.calls == 16
    assert_close(simulated, model, 2e-6)


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.MRRBank(4, name="bank")(inputs)
    outputs = {"p": layers.Dense(3)(x), "q": pnn.layers.MRRBank(2, name="last")(x)}
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("readout", READOUTS)
def test_the_loss_of_each_output_is_that_of_the_device(readout):
    model = two_outputs()
    (device,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
    targets = {"p": Y, "q": X[:, :2]}
    losses = {"p": LOSS, "q": "mse"}
    model.compile("sgd", losses, run_eagerly=True)
    with device.installed(model):
        expected = model.evaluate(X, targets, verbose=0, return_dict=True)
    assert model.evaluate(X, targets, verbose=0) != list(expected.values())
    pat = pnn.PATModel(model, device, readout)
    pat.compile(keras.optimizers.SGD(0.0), losses, run_eagerly=True)
    history = pat.fit(X, targets, batch_size=8, verbose=0).history
    for name in ("loss", "p_loss", "q_loss"):
        np.testing.assert_allclose(history[name], [expected[name]], rtol=1e-5)
        assert expected[name] > 0


@pytest.mark.parametrize("readout", READOUTS)
def test_a_layer_that_the_model_lacks_is_refused(readout):
    model = two_outputs()
    (simulated,) = pnn.Variation(resonance_shift=0.1).sample(model, 1)
    for names, received in (
        (["bnak"], "Received: bnak"),
        (["bank", "lats"], "Received: lats"),
    ):
        bench = Bench(simulated.attach(model), layers=names)
        pat = pnn.PATModel(model, bench, readout)
        pat.compile("sgd", {"p": LOSS, "q": "mse"})
        with pytest.raises(ValueError, match=rf"bank, last\. {received}"):
            pat.fit(X, {"p": Y, "q": X[:, :2]}, verbose=0)
        assert bench.calls == 0


@pytest.mark.parametrize("device", [Bench(None), Two(), pnn.SimulatedDevice({})])
def test_a_model_without_physical_layers_is_refused(device):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="digital")
    pat = compiled(pnn.PATModel(model, device))
    with pytest.raises(ValueError, match="Received: model 'digital', which has none"):
        pat.fit(X, Y, verbose=0)


class Nothing:
    def measure(self, layer, inputs, controls):
        return None


@pytest.mark.parametrize(
    "trainer",
    [
        lambda m: pnn.PATModel(m, Nothing()),
        lambda m: pnn.PATModel(m, Nothing(), "output"),
        lambda m: pnn.SATModel(m, device=Nothing()),
        lambda m: pnn.DATModel(m, Nothing(), 1),
        lambda m: pnn.DATModel(m, Nothing(), 1, internal_states=False),
    ],
    ids=["layers", "output", "sat", "dat", "dat outputs"],
)
def test_a_device_that_measures_nothing_is_refused(trainer):
    model = mesh()
    before = [np.array(v) for v in model.trainable_variables]
    online = compiled(trainer(model))
    with pytest.raises(ValueError, match="Received: one that leaves all of them"):
        online.fit(X, Y, verbose=0)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_training_lowers_the_loss_on_the_device():
    model = mesh(dropout=0)
    device = chip()
    pat = compiled(pnn.PATModel(model, device), 0.3)
    with device.installed(model):
        before = pat.evaluate(X, Y, verbose=0)
    pat.fit(X, Y, **{**FIT, "epochs": 10})
    with device.installed(model):
        after = pat.evaluate(X, Y, verbose=0)
    assert after < before - 0.05


def test_jit_compile_with_a_simulated_device():
    plain, fast = mesh(dropout=0), mesh(dropout=0)
    one = compiled(pnn.PATModel(plain, chip()), run_eagerly=True)
    other = compiled(pnn.PATModel(fast, chip()), jit_compile=True)
    for model in (one, other):
        model.train_on_batch(X, Y)
    assert_close(plain, fast, 1e-5)


def test_bad_arguments():
    model = mesh()
    with pytest.raises(ValueError, match=r"`readout`.*'both'"):
        pnn.PATModel(model, chip(), readout="both")
    with pytest.raises(ValueError, match="needs a device"):
        pnn.PATModel(model, device=None)
    with pytest.raises(ValueError, match="must have a method measure"):
        pnn.PATModel(model, device="chip")
    assert pnn.PATModel(mesh(), chip()).name.startswith("pat_")
