"""Training through a simulated bench in another process, whatever happens to it."""

import keras
import numpy as np
import pytest
from models import LOSS, assert_same, numbers
from scpi_bench import configuration, network

import keras_pnn as pnn
from keras_pnn.hardware.instrument import simulator


def data(batch_size):
    """Four classes by the largest of four random mixtures, in batches."""
    rng = np.random.default_rng(0)
    x = rng.random((20, 4)).astype("float32")
    classes = np.argmax(x @ rng.normal(size=(4, 4)), axis=1)
    return pnn.datasets.Batches(x, classes, batch_size=batch_size, seed=3)


def bench(port, timeout=10.0, **options):
    """The example's bench at a port."""
    table = configuration(port, timeout=timeout)
    table["layers"]["bank"]["controls"]["control"]["beyond"] = "clip"
    options = {"max_batch": 2, "retries": 6, "backoff": 0.001, **options}
    return pnn.InstrumentDevice(table, **options)


def train(device, *callbacks):
    """Trains a bank and returns its variables and those of the optimizer."""
    trainer = pnn.SATModel(network(), rho=0.05, device=device)
    trainer.compile(keras.optimizers.Adam(0.05), LOSS)
    batches = data(batch_size=4)
    callbacks = [*callbacks, pnn.callbacks.BatchOrder(batches)]
    trainer.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    return numbers([*trainer.weights, *trainer.optimizer.variables])


def noisy_bench(**options):
    """A simulated bench whose readings are noisy."""
    return simulator.running(noise=1e-5, **options)


def same(one, two):
    assert len(one) == len(two) > 3
    assert_same(one, two)


@pytest.fixture(scope="module")
def undisturbed():
    """The result of training without a fault, and the measurements."""
    with noisy_bench() as port, bench(port) as device:
        state = train(device)
    assert device.failures == 0
    return state, device.calls


def test_training_sees_the_bench(undisturbed):
    state, calls = undisturbed
    # 3 epochs of 5 batches in 2 chunks each, in two passes.
    assert calls == 3 * 5 * 2 * 2
    control = network().get_layer("bank").controls["control"]
    assert np.abs(state[0] - control.numpy()).max() > 0.05
    with noisy_bench(seed=1) as port, bench(port) as device:
        other = train(device)
    assert np.abs(other[0] - state[0]).max() > 1e-3


def test_refusals_and_a_hang_change_nothing(undisturbed):
    state, calls = undisturbed
    with (
        noisy_bench(refuse=0.02, hang_at=17) as port,
        bench(port, timeout=0.5) as device,
    ):
        disturbed = train(device)
    assert device.failures >= 3 and device.calls > calls
    same(disturbed, state)


def test_an_instrument_that_dies_loses_no_step(undisturbed, tmp_path):
    state, calls = undisturbed
    keeper = pnn.callbacks.Checkpoint(tmp_path / "state")
    with noisy_bench(dead_after=45) as port:
        device = bench(port, timeout=0.5, retries=1)
        with pytest.raises(pnn.DeviceError, match="'bank'") as caught, device:
            train(device, keeper)
    assert "Checkpoint" in "".join(caught.value.__notes__)
    again = pnn.callbacks.Checkpoint(tmp_path / "state")
    with noisy_bench() as port, bench(port) as device:
        resumed = train(device, again)
    # What was done is not measured again.
    assert 0 < device.calls < calls
    same(resumed, state)


@pytest.mark.parametrize(
    "source", [pnn.ParameterShift(), pnn.SPGD(0.02, momentum=0.5)], ids=repr
)
def test_gradients_through_the_bench_are_those_of_its_rings(source):
    """In another process: the weights are those of training without it."""

    def trained(model, device):
        trainer = pnn.SATModel(model, rho=0.05, device=device, gradient=source)
        trainer.compile(keras.optimizers.SGD(0.05), LOSS)
        trainer.fit(data(batch_size=5), epochs=1, verbose=0)
        return trainer.measurements, model.layers[1].controls["control"].numpy()

    model, start = network(), network().layers[1].controls["control"].numpy()
    shifts = simulator.resonance_shifts(0, 4, 4, 0.03)
    chip = pnn.SimulatedDevice.from_dict(model, {"bank/resonance_shift": shifts})
    asked, expected = trained(model, chip)
    with simulator.running() as port, bench(port) as device:
        count, found = trained(network(), device)
    assert count == asked
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(found - start).max() > 1e-2
