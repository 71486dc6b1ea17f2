"""Decompositions, against meshes that are multiplied cell by cell."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_product import both, cell, errors, neighbours, places, product, shape
from scipy import stats

from keras_pnn.physics import mesh
from keras_pnn.physics.decompose import (
    MeshPhases,
    compensated,
    correct,
    haar_phases,
    phases,
)


def rebuild(mesh, **chip):
    return product(mesh.theta, mesh.phi, mesh.gamma, mesh.arrangement, **chip)


def distance(a, b):
    return np.linalg.norm(a - b) / np.sqrt(len(a))


def in_half_open_turn(*angles):
    return all(((-np.pi < a) & (a <= np.pi)).all() for a in angles)


def assert_same_phases(one, other, atol):
    for name in ("theta", "phi", "gamma"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)


def assert_rebuilds(unitary, arrangement):
    mesh = phases(unitary, arrangement)
    n = len(unitary)
    assert mesh.arrangement == arrangement
    assert mesh.theta.shape == mesh.phi.shape == shape(n, arrangement)
    assert mesh.gamma.shape == (n,)
    assert ((mesh.theta >= 0) & (mesh.theta <= np.pi)).all()
    assert mesh.phi.dtype == mesh.gamma.dtype == "float64"
    assert in_half_open_turn(mesh.phi, mesh.gamma)
    straight = np.ones(mesh.theta.shape, bool)
    for c, j, _ in places(n, arrangement):
        straight[c, j] = False
    assert (mesh.theta[straight] == 0).all()
    assert (mesh.phi[straight] == 0).all()
    np.testing.assert_allclose(rebuild(mesh), unitary, rtol=0, atol=1e-12)
    return mesh


def haar(n, seed):
    return stats.unitary_group.rvs(n, random_state=seed)


def generic(n, arrangement, seed):
    """Phases whose cells keep clear of bar and cross."""
    rng = np.random.default_rng(seed)
    grid = shape(n, arrangement)
    theta, phi = rng.uniform(0.6, 2.5, grid), rng.uniform(-3.1, 3.1, grid)
    return MeshPhases(theta, phi, rng.uniform(-3.1, 3.1, n), arrangement)


def block_diagonal(n):
    matrix = np.eye(n, dtype="complex128")
    matrix[: n // 2, : n // 2] = haar(n // 2, 1) if n > 3 else 1j
    matrix[n // 2 :, n // 2 :] = haar(n - n // 2, 2) if n > 2 else -1
    return matrix


NAMED = {
    "identity": np.eye,
    "minus identity": lambda n: -np.eye(n),
    "reversal": lambda n: np.eye(n)[::-1],
    "cycle": lambda n: np.roll(np.eye(n), 1, axis=0),
    "cycle back": lambda n: np.roll(np.eye(n), -1, axis=0),
    "fourier": lambda n: np.fft.fft(np.eye(n), norm="ortho"),
    "block diagonal": block_diagonal,
    "diagonal": lambda n: np.diag(np.exp(1j * np.linspace(-np.pi, np.pi, n))),
}


# --- Exact decomposition.


@both
@pytest.mark.parametrize("name", NAMED)
def test_named_matrices(name, arrangement):
    for n in (2, 3, 4, 5, 8, 9):
        assert_rebuilds(NAMED[name](n), arrangement)


@both
def test_the_identity_is_all_bars(arrangement):
    mesh = phases(np.eye(6), arrangement)
    assert {mesh.theta[c, j] for c, j, _ in places(6, arrangement)} == {np.pi}


@both
def test_haar_matrices(arrangement):
    for seed in range(16):
        assert_rebuilds(haar(2 + 4 * seed, seed), arrangement)
    assert_rebuilds(haar(256, 0), arrangement)


@both
@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_phases_come_back(n, arrangement):
    mesh = generic(n, arrangement, seed=n)
    assert_same_phases(phases(rebuild(mesh), arrangement), mesh, 1e-10)


@both
@pytest.mark.parametrize("size", [1e-300, 1e-17, 1e-9])
def test_elements_close_to_zero(size, arrangement):
    small = 1j * np.array([[1, size], [size, -1]]) * np.exp([[0.3j], [0]])
    matrix = np.kron(np.eye(3), small)
    assert_rebuilds(matrix, arrangement)
    assert_rebuilds(matrix[[5, 0, 2, 1, 4, 3]], arrangement)


def test_a_unitary_of_single_precision_is_left_alone():
    unitary = haar(64, 0).astype("complex64")
    before = unitary.copy()
    assert distance(rebuild(phases(unitary)), unitary) < 1e-5
    np.testing.assert_array_equal(unitary, before)


# --- Haar-random phases.


@both
@pytest.mark.parametrize("n", [2, 5])
def test_haar_phases_have_the_law_of_decomposed_haar_matrices(n, arrangement):
    drawn = [haar_phases(n, seed, arrangement) for seed in range(1500)]
    matrices = stats.unitary_group.rvs(n, 1500, random_state=n)
    found = [phases(matrix, arrangement) for matrix in matrices]
    cells = places(n, arrangement)
    for name in ("theta", "phi"):
        for c, j, _ in cells:
            a, b = ([getattr(x, name)[c, j] for x in xs] for xs in (drawn, found))
            assert stats.ks_2samp(a, b).pvalue > 1e-3 / len(cells), (name, c, j)
    for i in range(n):
        for samples in (drawn, found):
            gamma = [x.gamma[i] / (2 * np.pi) + 0.5 for x in samples]
            assert stats.kstest(gamma, "uniform").pvalue > 1e-4


@both
def test_haar_phases_are_a_function_of_the_seed(arrangement):
    first, again, other = (haar_phases(1024, s, arrangement) for s in (3, 3, 4))
    assert first.theta.shape == shape(1024, arrangement)
    assert ((first.theta >= 0) & (first.theta <= np.pi)).all()
    assert (first.theta == again.theta).all() and (first.phi == again.phi).all()
    assert (first.gamma == again.gamma).all() and (first.gamma != other.gamma).all()


# --- Correction of known errors.


@both
@pytest.mark.parametrize("n", [2, 3, 4, 7, 16])
def test_errors_within_reach_are_corrected_exactly(n, arrangement):
    unitary = rebuild(generic(n, arrangement, seed=n))
    chip = errors(n, arrangement, 0.14, seed=1, draw="uniform")
    assert correct(unitary, **chip, arrangement=arrangement).error < 1e-12
    assert distance(rebuild(phases(unitary, arrangement), **chip), unitary) > 0.01


@both
def test_phase_errors_alone_are_always_corrected(arrangement):
    chip = {**errors(9, arrangement, 2.0, seed=0), "splitter_error": 0.0}
    for unitary in (np.eye(9), np.eye(9)[::-1], haar(9, 0)):
        assert correct(unitary, **chip, arrangement=arrangement).error < 1e-12


@both
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 7),
    seed=st.integers(0, 2**31 - 1),
    sigma=st.floats(0, 2),
)
def test_the_error_left_is_that_of_the_programmed_mesh(arrangement, n, seed, sigma):
    unitary, chip = haar(n, seed), errors(n, arrangement, sigma, seed)
    corrected = correct(unitary, **chip, arrangement=arrangement)
    left = distance(rebuild(corrected.phases, **chip), unitary)
    np.testing.assert_allclose(corrected.error, left, rtol=1e-9, atol=1e-12)
    assert in_half_open_turn(corrected.phases.phi, corrected.phases.gamma)


@both
def test_the_error_left_falls_faster_than_the_errors(arrangement):
    unitary = haar(32, 0)
    mesh = phases(unitary, arrangement)
    left, raw = [], []
    for sigma in (0.05, 0.005):
        chips = [errors(32, arrangement, sigma, seed) for seed in range(6)]
        corrected = [correct(unitary, **c, arrangement=arrangement) for c in chips]
        left.append(np.mean([c.error for c in corrected]))
        raw.append(np.mean([distance(rebuild(mesh, **c), unitary) for c in chips]))
    assert left[0] < raw[0] / 4
    assert left[1] < raw[1] / 20
    assert 8 < raw[0] / raw[1] < 12
    assert left[0] / left[1] > 40


@pytest.mark.parametrize(
    ("target", "epsilon"),
    [
        ([[0, 1], [1, 0]], [0.1, 0.1]),
        ([[0, 1j], [-1, 0]], [0.3, -0.1]),
        ([[1, 0], [0, 1j]], [0.1, -0.1]),
        ([[-1, 0], [0, 1]], [0.05, 0.25]),
    ],
)
def test_a_cell_out_of_reach_comes_as_close_as_it_can(target, epsilon):
    target = np.array(target)
    corrected = correct(target, 0.3, -0.2, epsilon, "reck")
    # The half angle misses by ε₁ + ε₂ at the cross state, by ε₁ − ε₂ at the bar state.
    miss = epsilon[0] + epsilon[1] if target[0, 0] == 0 else epsilon[0] - epsilon[1]
    np.testing.assert_allclose(corrected.error, 2 * np.sin(abs(miss) / 2), rtol=1e-9)
    best, rng = corrected.phases, np.random.default_rng(0)
    chip = {"theta_error": 0.3, "phi_error": -0.2, "splitter_error": epsilon}
    for scale in np.repeat([1e-3, 0.1, 3.0], 100):
        moved = MeshPhases(
            best.theta + rng.normal(0, scale, (1, 1)),
            best.phi + rng.normal(0, scale, (1, 1)),
            best.gamma + rng.normal(0, scale, 2),
            "reck",
        )
        assert distance(rebuild(moved, **chip), target) > corrected.error


@pytest.mark.parametrize("epsilon", [[1.2, 0.1], [-0.1, 1.2], [1.3, 1.2], [0.1, 4.3]])
def test_far_splitters_still_reach_an_even_split(epsilon):
    unitary = cell(np.pi / 2, 0.3)
    assert correct(unitary, 0.0, 0.0, epsilon, "reck").error < 1e-12


def test_errors_broadcast():
    unitary, grid = haar(5, 0), shape(5)
    one = correct(unitary, 0.1, np.full(2, 0.2), [0.01, 0.02])
    splitters = np.broadcast_to([0.01, 0.02], (*grid, 2))
    full = correct(unitary, np.full(grid, 0.1), np.full(grid, 0.2), splitters)
    assert one.phases.to_dict() == full.phases.to_dict()
    assert one.error == full.error


def test_mesh_phases_survive_json_and_drop_values_without_a_cell():
    mesh = MeshPhases(np.ones((4, 2)), np.ones((4, 2)), np.zeros(4))
    assert mesh.theta.tolist() == mesh.phi.tolist() == [[1, 1], [1, 0]] * 2
    again = MeshPhases(**json.loads(json.dumps(mesh.to_dict())))
    assert again.to_dict() == mesh.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mesh.theta = 0


# --- Compensation of thermal crosstalk.


def assert_acquired(to_set, crosstalk, wanted, atol=1e-12):
    """Checks the matrix at the phases acquired for those that are set."""
    both = crosstalk @ np.concatenate([to_set.theta.ravel(), to_set.phi.ravel()])
    theta, phi = both.reshape(2, *to_set.theta.shape)
    found = product(theta, phi, to_set.gamma, to_set.arrangement)
    np.testing.assert_allclose(found, rebuild(wanted), atol=atol)


@pytest.mark.parametrize("low", [None, 0.0, -np.pi])
@pytest.mark.parametrize("modes", [2, 3, 8, 16])
@both
def test_compensated_phases_give_the_matrix(modes, arrangement, low):
    crosstalk = neighbours(modes, arrangement, 0.03)
    for seed in range(3):
        wanted = haar_phases(modes, seed, arrangement)
        to_set = compensated(wanted, crosstalk, low)
        # Of the 480 phases of 16 modes one may be out of reach.
        accuracy = 1e-3 if low is not None and modes == 16 else 1e-12
        assert_acquired(to_set, crosstalk, wanted, accuracy)
        for phase in (to_set.theta, to_set.phi, to_set.gamma):
            if low is not None:
                assert ((phase >= low) & (phase < low + 2 * np.pi)).all()
        empty = ~mesh.cell_mask(modes, arrangement)
        assert not to_set.theta[empty].any() and not to_set.phi[empty].any()


@pytest.mark.parametrize("seed", [1, 2, 13])
def test_crosstalk_among_all_shifters_settles(seed):
    """Moving all phases at once would cycle here."""
    size = 2 * mesh.cell_mask(6).size
    crosstalk = np.eye(size) + np.random.default_rng(0).uniform(0, 0.02, (size, size))
    wanted = haar_phases(6, seed)
    assert_acquired(compensated(wanted, crosstalk, low=0.0), crosstalk, wanted)


def test_a_phase_out_of_reach_goes_to_the_nearer_end():
    """Two shifters that give a fifth of their phase to each other.

    To set for (θ, φ) is (θ − 0.2 φ, φ − 0.2 θ)/0.96. For φ = 0.2 that is −0.04 of φ,
    or with a turn more 6.50, above 2π by 0.22: 0 is nearer.
    """
    crosstalk = np.eye(4)
    crosstalk[0, 2] = crosstalk[2, 0] = 0.2
    wanted = MeshPhases([[1.2], [0]], [[0.2], [0]], [0, 0])
    to_set = compensated(wanted, crosstalk, low=0.0)
    assert to_set.phi[0, 0] == 0
    np.testing.assert_allclose(to_set.theta[0, 0], (1.2 - 0.04) / 0.96, atol=1e-12)
    zero = MeshPhases(np.zeros((2, 1)), np.zeros((2, 1)), [0, 0])
    to_set = compensated(zero, crosstalk, low=0.0)
    assert not any(np.any(v) for v in (to_set.theta, to_set.phi, to_set.gamma))


# --- Arguments.


@pytest.mark.parametrize("call", [phases, lambda u: correct(u, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize(
    ("unitary", "message"),
    [
        (np.ones((2, 3)), r"square matrix .* Received: shape \(2, 3\)"),
        (np.ones((1, 1)), r"2 modes or more. Received: shape \(1, 1\)"),
        (np.ones(4), r"Received: shape \(4,\)"),
        (np.array([[np.nan, 0], [0, 1]]), r"Received: .* = nan$"),
        (2 * np.eye(3), r"within 1e-05. Received: .* max \|U†U − 1\| = 3$"),
        (np.eye(3) * (1 + 1e-4), r"Received: .* = 0.0002$"),
        (np.diag([1e200, 1.0]), r"Received: .* = inf$"),
        ([["a", "b"]], "matrix of numbers. Received: .*'a'"),
    ],
)
def test_matrices_that_are_not_unitary(call, unitary, message):
    with pytest.raises(ValueError, match=message):
        call(unitary)


ZEROS = {"theta": np.zeros((4, 2)), "phi": np.zeros((4, 2)), "gamma": np.zeros(4)}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: phases(np.eye(3), "square"), "`arrangement` .*Received: 'square'"),
        (lambda: haar_phases(3, 0, ["x"]), r"`arrangement` .*Received: \['x'\]"),
        (lambda: haar_phases(1), "`n` must be an integer ≥ 2. Received: 1"),
        (lambda: haar_phases(4, -1), "`seed` must be an integer ≥ 0. Received: -1"),
        (lambda: correct(np.eye(4), np.zeros((3, 3)), 0, 0), r"`theta_error` .*\(4, 2"),
        (lambda: correct(np.eye(4), 0, np.nan, 0), "`phi_error` must be finite"),
        (lambda: correct(np.eye(4), 0, 0, np.zeros((4, 2))[:3]), "`splitter_error`"),
        (lambda: correct(np.eye(4), 0, 0, 1j), "`splitter_error` must be finite num"),
        (lambda: MeshPhases(**{**ZEROS, "theta": np.zeros((3, 2))}), r"`theta`.*\(3, "),
        (lambda: MeshPhases(**{**ZEROS, "phi": 0.0}), r"`phi`.*Received: shape \(\)"),
        (lambda: MeshPhases(**{**ZEROS, "gamma": np.zeros((2, 2))}), "`gamma`.*(2, 2)"),
        (lambda: MeshPhases(**{**ZEROS, "gamma": np.zeros(5)}), r"`theta`.*\(5, 2\)"),
        (lambda: MeshPhases(**ZEROS, arrangement="reck"), r"`theta`.*\(5, 2\)"),
        (lambda: compensated(haar_phases(4), np.eye(3)), r"`crosstalk`.*\(16, 16\)"),
        (lambda: compensated(haar_phases(4), np.eye(16) * 1j), "`crosstalk`.*numbers"),
        (lambda: compensated(haar_phases(4), np.ones((16, 16))), "`crosstalk`.*invert"),
        (
            lambda: compensated(haar_phases(4), np.ones((16, 16)), low=0.0),
            "`crosstalk`.*invert",
        ),
        (lambda: compensated(haar_phases(4), np.eye(16), low=np.nan), "`low`.*finite"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
