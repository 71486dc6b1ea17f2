"""Light at the phase shifters of a mesh, forwards and backwards."""

import mesh_product
import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.physics.mesh import cell_mask
from keras_pnn.physics.mesh.monitors import monitored

CASES = [(2, "clements"), (5, "clements"), (6, "clements"), (5, "reck")]


def drawn(modes, arrangement, loss):
    rng = np.random.default_rng(modes)
    grid = mesh_product.shape(modes, arrangement)
    phases = [rng.uniform(0, 7, shape) for shape in (grid, grid, (modes,))]
    known = mesh_product.errors(modes, arrangement, 0.2, 1)
    if loss:
        known |= {"loss_db": rng.uniform(0, 1, grid), "straight_loss_db": 0.3}
    fields = rng.normal(size=(2, 3, modes))
    return phases, known, fields[0] + 1j * fields[1]


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize(("modes", "arrangement"), CASES)
def test_fields_are_those_of_the_matrix_and_of_its_transpose(modes, arrangement, loss):
    phases, known, x = drawn(modes, arrangement, loss)
    matrix = mesh_product.product(*phases, arrangement, **known)
    for backwards, expected in ((False, x @ matrix.T), (True, x @ matrix)):
        powers, fields = monitored(
            tf.constant(x), *phases, arrangement, **known, backwards=backwards
        )
        np.testing.assert_allclose(fields, expected, rtol=0, atol=1e-12)
        exists = cell_mask(modes, arrangement)
        assert powers["theta"].shape == (3, *exists.shape, 2)
        assert powers["phi"].shape == (3, *exists.shape)
        assert powers["gamma"].shape == (3, modes)
        dark = ~exists
        for name in ("theta", "phi"):
            assert not np.any(powers[name].numpy()[:, dark])
            assert np.all(powers[name].numpy()[:, exists] > 0)


@pytest.mark.parametrize("backwards", [False, True])
def test_powers_are_those_of_one_cell(backwards):
    """Two modes: the arms and the shifters by hand, from the parts of the cell."""
    (theta, phi, gamma), known, x = drawn(2, "clements", True)
    powers, _ = monitored(
        tf.constant(x), theta, phi, gamma, **known, backwards=backwards
    )
    first, second = (mesh_product.splitter(e) for e in known["splitter_error"][0, 0])
    kept = 10 ** (-known["loss_db"][0, 0] / 20)
    straight = 10 ** (-0.3 / 20)
    shifter = np.exp(1j * (phi + known["phi_error"])[0, 0])
    angle = (theta + known["theta_error"])[0, 0]
    arms = np.exp([0.5j * angle, -0.5j * angle])
    if backwards:
        there = straight * x
        inside = (kept * there * [shifter, 1]) @ second
        ends = inside * arms @ first
        expected = inside, there[:, 0], ends
    else:
        inside = (x * np.exp(1j * gamma)) @ first * arms
        expected = inside, (kept * inside @ second)[:, 0], x
    found = powers["theta"][:, 0, 0], powers["phi"][:, 0, 0], powers["gamma"]
    for power, field in zip(found, expected, strict=True):
        np.testing.assert_allclose(power, np.abs(field) ** 2, rtol=1e-12)
