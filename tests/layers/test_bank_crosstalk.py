"""Heaters of a whole bank that warm each other."""

import keras
import models
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.physics import heater

TUNING = pnn.HeaterTuning(offset=-0.6)


def bank(rows, columns, inputs, outputs, matrix, **kwargs):
    layer = pnn.layers.MRRBank(
        outputs, tuning=TUNING, bank_size=(rows, columns), crosstalk=matrix, **kwargs
    )
    layer.build((None, inputs))
    return layer


def by_hand(layer, matrix, control):
    """The weights ring by ring, with the heat of each ring of the same pass."""
    places = {}
    for i, j in np.ndindex(control.shape):
        tile, row, column = layer.position("control", (i, j))
        places[i, j] = tile, row * layer.columns + column
    weights = np.zeros(control.shape)
    for here, (tile, number) in places.items():
        heat = sum(
            matrix[number, other] * 0.53 * 0.375 * control[there] ** 2
            for there, (its_tile, other) in places.items()
            if its_tile == tile and there != here
        )
        weights[here] = TUNING.weight(control[here], heat)
    return weights


@pytest.mark.parametrize("size", [(2, 3, 3, 2), (2, 3, 5, 3), (3, 2, 2, 7)])
def test_heat_reaches_all_rings_of_a_pass(rng, size):
    rows, columns, inputs, outputs = size
    matrix = np.eye(rows * columns) + rng.uniform(0, 0.05, (rows * columns,) * 2)
    np.fill_diagonal(matrix, 1.0)
    layer = bank(*size, matrix)
    control = rng.uniform(0, 2.5, (inputs, outputs)).astype("float32")
    layer.controls["control"].assign(control)
    expected = by_hand(layer, matrix, control.astype("float64"))
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=2e-5)


@pytest.mark.parametrize("size", [(2, 3, 3, 2), (2, 3, 5, 3), (3, 2, 2, 7)])
def test_program_compensates_it(rng, size):
    matrix = heater.nearest_neighbour(size[:2], 0.03)
    layer = bank(*size, matrix)
    target = rng.uniform(-0.9, 0.9, size[2:])
    assert layer.program(target) < 1e-4
    np.testing.assert_allclose(layer.effective_weights(), target, atol=1e-3)
    # As that of each row alone, where rows do not touch.
    rows, columns = size[:2]
    row = np.eye(columns) + 0.03 * (np.eye(columns, k=1) + np.eye(columns, k=-1))
    apart = [bank(*size, m) for m in (row, np.kron(np.eye(rows), row))]
    for one in apart:
        one.program(target)
    models.assert_same(*([one.controls["control"]] for one in apart), atol=1e-5)


def test_devices_and_convolutions():
    matrix = heater.nearest_neighbour((2, 4), 0.05)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 1))
    outputs = pnn.layers.MRRConv2D(
        3, 2, tuning=TUNING, bank_size=(2, 4), crosstalk=matrix
    )(inputs)
    model = models.compiled(keras.Model(inputs, outputs), loss="mse")
    x = np.random.default_rng(0).uniform(size=(4, 5, 5, 1))
    y = np.zeros((4, 4, 4, 3))
    devices = pnn.Variation(resonance_shift=0.05).sample(model, 3)
    found = pnn.evaluate_devices(model, x, y, devices, verbose=0)["loss"]
    for device, loss in zip(devices, found, strict=True):
        with device.installed(model):
            assert model.evaluate(x, y, verbose=0) == pytest.approx(loss, rel=1e-4)


def test_matrices_of_another_size():
    with pytest.raises(ValueError, match=r"`crosstalk`.*\(3, 3\).*\(6, 6\)"):
        bank(2, 3, 3, 2, np.eye(4))
