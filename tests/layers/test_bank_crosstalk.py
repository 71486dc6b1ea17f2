"""Heaters of a whole bank that warm each other."""

import models
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.physics import heater

TUNING = pnn.HeaterTuning(offset=-0.6)
SIZES = pytest.mark.parametrize("size", [(2, 3, 3, 2), (2, 3, 5, 3), (3, 2, 2, 7)])


def bank(rows, columns, inputs, outputs, matrix, **kwargs):
    options = {"tuning": TUNING, "bank_size": (rows, columns), **kwargs}
    layer = pnn.layers.MRRBank(outputs, crosstalk=matrix, **options)
    layer.build((None, inputs))
    return layer


def by_hand(layer, matrix, control, shift, error):
    """The weights ring by ring, with the heat of each ring of the same pass."""
    places = {}
    for i, j in np.ndindex(control.shape):
        tile, row, column = layer.position("control", (i, j))
        places[i, j] = tile, row * layer.columns + column
    heat = np.asarray(layer.tuning.heater_shift(control))
    total = np.array(shift)
    for here, (tile, number) in places.items():
        for there, (its_tile, other) in places.items():
            if its_tile == tile and there != here:
                total[here] += matrix[number, other] * heat[there]
    return layer.tuning.weight(control, total, error)


@SIZES
@pytest.mark.parametrize("whole", [True, False], ids=["bank", "row"])
@pytest.mark.parametrize("tuning", [TUNING, pnn.LorentzianTuning()], ids=["mA", "nm"])
def test_heat_reaches_all_rings_of_a_pass_or_a_row(rng, size, whole, tuning):
    rows, columns, inputs, outputs = size
    rings = rows * columns if whole else columns
    matrix = np.eye(rings) + rng.uniform(0, 0.05, (rings, rings))
    np.fill_diagonal(matrix, 1.0)
    layer = bank(*size, matrix, tuning=tuning, dtype="float64")
    values = {
        "control": rng.uniform(0, 2.5, (inputs, outputs)),
        "resonance_shift": rng.normal(0, 0.05, (inputs, outputs)),
        "half_width_error": rng.normal(0, 0.05, (inputs, outputs)),
    }
    for name, value in values.items():
        {**layer.controls, **layer.imperfections}[name].assign(value)
    matrix = matrix if whole else np.kron(np.eye(rows), matrix)
    expected = by_hand(layer, matrix, *values.values())
    np.testing.assert_allclose(layer.effective_weights(), expected, atol=1e-10)


@SIZES
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


def test_matrices_of_another_size():
    with pytest.raises(ValueError, match=r"`crosstalk`.*\(3, 3\).*\(6, 6\)"):
        bank(2, 3, 3, 2, np.eye(4))
