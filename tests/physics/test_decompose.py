"""Decompositions, against meshes that are multiplied cell by cell."""

import dataclasses
import doctest
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_pnn.physics import decompose, mesh
from keras_pnn.physics.decompose import MeshPhases, correct, haar_phases, phases

both = pytest.mark.parametrize("arrangement", ["clements", "reck"])


def places(n, arrangement):
    """(column, slot, upper mode) of all cells, in the order of light."""
    if arrangement == "clements":
        found = [(c, m) for c in range(n) for m in range(c % 2, n - 1, 2)]
    else:
        found = sorted((c, m) for m in range(n) for c in range(m, 2 * n - 3 - m, 2))
    return [(c, m // 2, m) for c, m in found]


def shape(n, arrangement):
    return (n if arrangement == "clements" else 2 * n - 3, n // 2)


def printed_cell(theta, phi, left=0.0, right=0.0):
    """The cell as it is written with the power imbalances of its splitters."""
    p, q = np.exp(0.5j * theta), np.exp(-0.5j * theta)
    ll, lr = np.sqrt((1 - left) * (1 - right)), np.sqrt((1 - left) * (1 + right))
    rl, rr = np.sqrt((1 + left) * (1 - right)), np.sqrt((1 + left) * (1 + right))
    s = [
        [rr * p - ll * q, 1j * (lr * p + rl * q)],
        [1j * (rl * p + lr * q), rr * q - ll * p],
    ]
    return np.diag([np.exp(1j * phi), 1]) @ np.array(s) / 2


def splitter(epsilon):
    c, s = np.cos(np.pi / 4 + epsilon), np.sin(np.pi / 4 + epsilon)
    return np.moveaxis(np.array([[c, 1j * s], [1j * s, c]]), (0, 1), (-2, -1))


def built_cell(theta, phi, first, second):
    """The cell from its parts, elementwise over arrays: angles, not imbalances."""
    arms = np.exp(np.multiply.outer(theta, [0.5j, -0.5j]))
    product = splitter(second) * arms[..., None, :] @ splitter(first)
    return np.exp(np.multiply.outer(phi, [1j, 0]))[..., None] * product


def rebuild(mesh, theta_error=0.0, phi_error=0.0, splitter_error=0.0):
    n = len(mesh.gamma)
    epsilon = np.broadcast_to(splitter_error, (*shape(n, mesh.arrangement), 2))
    theta, phi = mesh.theta + theta_error, mesh.phi + phi_error
    cells = built_cell(theta, phi, epsilon[..., 0], epsilon[..., 1])
    matrix = np.diag(np.exp(1j * mesh.gamma))
    for c, j, m in places(n, mesh.arrangement):
        matrix[m : m + 2] = cells[c, j] @ matrix[m : m + 2]
    return matrix


def distance(a, b):
    return np.linalg.norm(a - b) / np.sqrt(len(a))


def assert_rebuilds(unitary, arrangement):
    mesh = phases(unitary, arrangement)
    n = len(unitary)
    assert mesh.arrangement == arrangement
    assert mesh.theta.shape == mesh.phi.shape == shape(n, arrangement)
    assert mesh.gamma.shape == (n,)
    assert (mesh.theta >= 0).all()
    assert (mesh.theta <= np.pi).all()
    for angle in (mesh.phi, mesh.gamma):
        assert angle.dtype == "float64"
        assert (angle > -np.pi).all()
        assert (angle <= np.pi).all()
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


def errors(n, arrangement, sigma, seed, draw="normal"):
    rng = np.random.default_rng(seed)
    grid = shape(n, arrangement)
    ends = (0, sigma) if draw == "normal" else (-sigma, sigma)
    sizes = {"theta_error": grid, "phi_error": grid, "splitter_error": (*grid, 2)}
    return {name: getattr(rng, draw)(*ends, size) for name, size in sizes.items()}


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


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi, 4.0])
@pytest.mark.parametrize("first", [0.0, 0.2, -0.4])
@pytest.mark.parametrize("second", [0.0, -0.1, 0.3])
def test_a_cell_is_two_splitters_around_a_differential_phase(theta, first, second):
    printed = printed_cell(theta, 0.3, -np.sin(2 * first), -np.sin(2 * second))
    built = built_cell(theta, 0.3, first, second)
    np.testing.assert_allclose(built, printed, atol=1e-15)


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi])
def test_without_errors_a_cell_has_the_bloch_form(theta):
    sin, cos, phase = np.sin(theta / 2), np.cos(theta / 2), np.exp(0.3j)
    bloch = 1j * np.array([[phase * sin, phase * cos], [cos, -sin]])
    np.testing.assert_allclose(printed_cell(theta, 0.3), bloch, atol=1e-15)
    np.testing.assert_allclose(built_cell(theta, 0.3, 0.0, 0.0), bloch, atol=1e-15)


@both
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("name", NAMED)
def test_named_matrices(name, n, arrangement):
    assert_rebuilds(NAMED[name](n), arrangement)


@both
def test_the_identity_is_all_bars(arrangement):
    mesh = phases(np.eye(6), arrangement)
    for c, j, _ in places(6, arrangement):
        assert mesh.theta[c, j] == np.pi


@both
def test_one_hundred_haar_matrices(arrangement):
    for seed in range(100):
        assert_rebuilds(haar(2 + seed * 62 // 99, seed), arrangement)


@both
def test_256_modes(arrangement):
    assert_rebuilds(haar(256, 0), arrangement)


@both
@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_phases_come_back(n, arrangement):
    mesh = generic(n, arrangement, seed=n)
    again = phases(rebuild(mesh), arrangement)
    for name in ("theta", "phi", "gamma"):
        np.testing.assert_allclose(
            getattr(again, name), getattr(mesh, name), atol=1e-10
        )


@both
@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**31 - 1))
def test_any_unitary_round_trip(arrangement, n, seed):
    assert_rebuilds(haar(n, seed), arrangement)


@both
@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(2, 9))
def test_any_sparse_unitary_round_trip(arrangement, data, n):
    order = data.draw(st.permutations(range(n)))
    angles = data.draw(st.lists(st.floats(-4, 4), min_size=n, max_size=n))
    first = data.draw(st.integers(0, n - 2))
    matrix = np.eye(n, dtype="complex128")
    matrix[first : first + 2, first : first + 2] = printed_cell(angles[0], angles[1])
    assert_rebuilds((matrix * np.exp(1j * np.array(angles)))[order], arrangement)


@both
@pytest.mark.parametrize("size", [1e-300, 1e-17, 1e-9])
def test_elements_close_to_zero(size, arrangement):
    small = 1j * np.array([[1, size], [size, -1]]) * np.exp([[0.3j], [0]])
    matrix = np.kron(np.eye(3), small)
    assert_rebuilds(matrix, arrangement)
    assert_rebuilds(matrix[[5, 0, 2, 1, 4, 3]], arrangement)


def test_a_unitary_of_single_precision():
    unitary = haar(64, 0).astype("complex64")
    assert distance(rebuild(phases(unitary)), unitary) < 1e-5


def test_the_argument_is_left_alone():
    unitary = haar(5, 0)
    before = unitary.copy()
    phases(unitary)
    np.testing.assert_array_equal(unitary, before)


@both
@pytest.mark.parametrize("n", [2, 4, 5])
def test_haar_phases_have_the_law_of_decomposed_haar_matrices(n, arrangement):
    drawn = [haar_phases(n, seed, arrangement) for seed in range(1500)]
    found = [
        phases(matrix, arrangement)
        for matrix in stats.unitary_group.rvs(n, 1500, random_state=n)
    ]
    cells = places(n, arrangement)
    for name in ("theta", "phi"):
        for c, j, _ in cells:
            a, b = ([getattr(x, name)[c, j] for x in xs] for xs in (drawn, found))
            assert stats.ks_2samp(a, b).pvalue > 1e-3 / len(cells), (name, c, j)
    for i in range(n):
        for samples in (drawn, found):
            gamma = [x.gamma[i] / (2 * np.pi) + 0.5 for x in samples]
            assert stats.kstest(gamma, "uniform").pvalue > 1e-4


def within_four_errors(samples, expected):
    samples = np.asarray(samples)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    return (np.abs(samples.mean(axis=0) - expected) < 4 * error).all()


@both
@pytest.mark.parametrize("n", [3, 6])
def test_haar_moments(n, arrangement):
    matrices = [rebuild(haar_phases(n, s, arrangement)) for s in range(2000)]
    power = np.abs(matrices) ** 2
    assert within_four_errors(power, 1 / n)
    assert within_four_errors(power**2, 2 / (n * (n + 1)))
    trace = np.trace(matrices, axis1=1, axis2=2)
    assert within_four_errors(np.abs(trace) ** 2, 1)


@both
def test_haar_phases_are_a_function_of_the_seed(arrangement):
    first, again, other = (haar_phases(7, seed, arrangement) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert first.to_dict() != other.to_dict()


@both
def test_haar_phases_of_a_large_mesh(arrangement):
    mesh = haar_phases(1024, 0, arrangement)
    assert mesh.theta.shape == shape(1024, arrangement)
    assert (mesh.theta >= 0).all()
    assert (mesh.theta <= np.pi).all()


@both
@pytest.mark.parametrize("n", [2, 3, 4, 7, 16])
def test_errors_within_reach_are_corrected_exactly(n, arrangement):
    unitary = rebuild(generic(n, arrangement, seed=n))
    chip = errors(n, arrangement, 0.14, seed=1, draw="uniform")
    corrected = correct(unitary, **chip, arrangement=arrangement)
    assert corrected.error < 1e-12
    rebuilt = rebuild(corrected.phases, **chip)
    np.testing.assert_allclose(rebuilt, unitary, rtol=0, atol=1e-12)
    assert distance(rebuild(phases(unitary, arrangement), **chip), unitary) > 0.01


@both
def test_phase_errors_alone_are_always_corrected(arrangement):
    chip = {**errors(9, arrangement, 2.0, seed=0), "splitter_error": 0.0}
    for unitary in (np.eye(9), np.eye(9)[::-1], haar(9, 0)):
        corrected = correct(unitary, **chip, arrangement=arrangement)
        assert distance(rebuild(corrected.phases, **chip), unitary) < 1e-12


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
    for angle in (corrected.phases.phi, corrected.phases.gamma):
        assert (angle > -np.pi).all()
        assert (angle <= np.pi).all()


@both
def test_the_error_left_falls_faster_than_the_errors(arrangement):
    unitary = haar(32, 0)
    left, raw = [], []
    for sigma in (0.05, 0.005):
        chips = [errors(32, arrangement, sigma, seed) for seed in range(6)]
        left.append(
            np.mean(
                [correct(unitary, **c, arrangement=arrangement).error for c in chips]
            )
        )
        mesh = phases(unitary, arrangement)
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
    for scale in np.repeat([1e-3, 0.1, 3.0], 100):
        moved = MeshPhases(
            best.theta + rng.normal(0, scale, (1, 1)),
            best.phi + rng.normal(0, scale, (1, 1)),
            best.gamma + rng.normal(0, scale, 2),
            "reck",
        )
        assert distance(rebuild(moved, 0.3, -0.2, epsilon), target) > corrected.error


@pytest.mark.parametrize("epsilon", [np.pi / 4, [np.pi / 4, -np.pi / 4], 1.2, 7.0])
def test_splitters_far_from_half(epsilon):
    corrected = correct(haar(4, 0), 0.0, 0.0, epsilon)
    left = distance(rebuild(corrected.phases, splitter_error=epsilon), haar(4, 0))
    np.testing.assert_allclose(corrected.error, left, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [[1.2, 0.1], [-0.1, 1.2], [1.3, 1.2], [0.1, 4.3]])
def test_far_splitters_still_reach_an_even_split(epsilon):
    unitary = printed_cell(np.pi / 2, 0.3)
    assert correct(unitary, 0.0, 0.0, epsilon, "reck").error < 1e-12


@both
def test_without_errors_the_correction_is_the_decomposition(arrangement):
    unitary = haar(6, 0)
    corrected = correct(unitary, 0, 0, 0, arrangement)
    expected = phases(unitary, arrangement)
    for name in ("theta", "phi", "gamma"):
        np.testing.assert_allclose(
            getattr(corrected.phases, name), getattr(expected, name), atol=1e-12
        )
    assert corrected.error < 1e-14


def test_errors_broadcast():
    unitary, grid = haar(5, 0), shape(5, "clements")
    one = correct(unitary, 0.1, np.full(2, 0.2), [0.01, 0.02])
    full = correct(
        unitary,
        np.full(grid, 0.1),
        np.full(grid, 0.2),
        np.broadcast_to([0.01, 0.02], (*grid, 2)),
    )
    assert one.phases.to_dict() == full.phases.to_dict()
    assert one.error == full.error


def test_mesh_phases_survive_json_and_drop_what_no_cell_holds():
    mesh = MeshPhases(np.ones((4, 2)), np.ones((4, 2)), np.zeros(4))
    assert mesh.theta.tolist() == mesh.phi.tolist() == [[1, 1], [1, 0]] * 2
    again = MeshPhases(**json.loads(json.dumps(mesh.to_dict())))
    assert again.to_dict() == mesh.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mesh.theta = 0


HUGE = np.diag([1e200, 1.0])
WITH_NAN = np.array([[np.nan, 0], [0, 1]])


@pytest.mark.parametrize("call", [phases, lambda u: correct(u, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize(
    ("unitary", "message"),
    [
        (np.ones((2, 3)), r"square matrix .* Received: shape \(2, 3\)"),
        (np.ones((1, 1)), r"2 modes or more. Received: shape \(1, 1\)"),
        (np.ones(4), r"Received: shape \(4,\)"),
        (np.zeros((0, 0)), r"Received: shape \(0, 0\)"),
        (WITH_NAN, "must be finite. Received: 1 of 4 elements"),
        (np.full((2, 2), np.inf), "must be finite. Received: 4 of 4 elements"),
        (2 * np.eye(3), r"within 1e-05. Received: .* max \|U†U − 1\| = 3$"),
        (np.eye(3) * (1 + 1e-4), r"Received: .* = 0.0002$"),
        (np.zeros((2, 2)), r"Received: .* = 1$"),
        (HUGE, r"Received: .* = inf$"),
        ([["a", "b"]], "matrix of numbers. Received: .*'a'"),
        (None, "matrix of numbers|must be a square"),
    ],
)
def test_matrices_that_are_no_unitary(call, unitary, message):
    with pytest.raises(ValueError, match=message):
        call(unitary)


@pytest.mark.parametrize(
    "call",
    [
        lambda a: phases(np.eye(3), a),
        lambda a: haar_phases(3, 0, a),
        lambda a: correct(np.eye(3), 0, 0, 0, a),
        lambda a: MeshPhases(np.ones((3, 1)), np.ones((3, 1)), np.ones(3), a),
    ],
)
def test_unknown_arrangement(call):
    with pytest.raises(ValueError, match=r"must be one of .* Received: 'square'"):
        call("square")
    with pytest.raises(ValueError, match=r"must be one of .* Received: \['x'\]"):
        call(["x"])


@pytest.mark.parametrize("n", [1, 0, -2, 2.0, True, None])
def test_haar_phases_refuses_modes(n):
    with pytest.raises(ValueError, match=f"`n` must.*modes >= 2. Received: {n!r}"):
        haar_phases(n)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_haar_phases_refuses_seeds(seed):
    with pytest.raises(ValueError, match=f"non-negative integer. Received: {seed!r}"):
        haar_phases(4, seed)


@pytest.mark.parametrize("name", ["theta_error", "phi_error", "splitter_error"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 3)), r"broadcast to the shape .* Received: shape \(3, 3\)"),
        (np.zeros((9, 4, 2, 2)), r"Received: shape \(9, 4, 2, 2\)"),
        (np.nan, "must be finite.* Received: 1 of 1 values"),
        ([np.inf, 0.0], "must be finite.* Received: 1 of 2 values"),
        (1j, "must be real numbers.* Received: 1j"),
        ("0.1", "must be real numbers.* Received: '0.1'"),
        ([[0.1], [0.1, 0.2]], r"must be real numbers.* Received: \[\[0.1\]"),
    ],
)
def test_correct_refuses_errors(name, value, message):
    chip = {"theta_error": 0.0, "phi_error": 0.0, "splitter_error": 0.0, name: value}
    with pytest.raises(ValueError, match=f"`{name}` {message}|`{name}` .*{message}"):
        correct(np.eye(4), **chip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": np.zeros((3, 2))}, r"`theta` must have the shape \(4, 2\) for 4"),
        ({"phi": 0.0}, r"`phi` must have the shape .* Received: shape \(\)"),
        ({"gamma": np.zeros((2, 2))}, r"`gamma` .* Received: shape \(2, 2\)"),
        ({"gamma": [0.0]}, "Received: 1"),
        ({"gamma": np.zeros(5)}, r"`theta` must have the shape \(5, 2\) for 5"),
        ({"arrangement": "reck"}, r"`theta` must have the shape \(5, 2\) for 4"),
        ({"phi": np.full((4, 2), np.nan)}, "`phi` must be finite"),
    ],
)
def test_mesh_phases_refuses(change, message):
    given = {"theta": np.zeros((4, 2)), "phi": np.zeros((4, 2)), "gamma": np.zeros(4)}
    with pytest.raises(ValueError, match=message):
        MeshPhases(**{**given, **change})


# --- What must be set where shifters warm each other.


def neighbours(modes, arrangement, strength):
    """Crosstalk that falls off from shifter to shifter."""
    index = np.arange(2 * mesh.cell_mask(modes, arrangement).size)
    apart = np.abs(np.subtract.outer(index, index))
    return np.where(apart == 0, 1.0, strength * np.exp(-1.0 * apart))


def given_matrix(to_set, crosstalk):
    """The matrix at the phases that shifters give for what is set."""
    mask = mesh.cell_mask(to_set.gamma.size, to_set.arrangement)
    both = crosstalk @ np.concatenate([to_set.theta.ravel(), to_set.phi.ravel()])
    theta, phi = both.reshape(2, *mask.shape)
    return mesh.transfer_matrix(theta, phi, to_set.gamma, to_set.arrangement).numpy()


@pytest.mark.parametrize("within_turn", [False, True])
@pytest.mark.parametrize("modes", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("arrangement", ["clements", "reck"])
def test_what_is_set_gives_the_phases(modes, arrangement, within_turn):
    crosstalk = neighbours(modes, arrangement, 0.03)
    for seed in range(3):
        wanted = decompose.haar_phases(modes, seed, arrangement)
        to_set = decompose.compensated(wanted, crosstalk, within_turn)
        u = mesh.transfer_matrix(wanted.theta, wanted.phi, wanted.gamma, arrangement)
        # Of the 480 phases of 16 modes one may be out of reach.
        accuracy = 1e-3 if within_turn and modes == 16 else 1e-12
        np.testing.assert_allclose(given_matrix(to_set, crosstalk), u, atol=accuracy)
        for phase in (to_set.theta, to_set.phi, to_set.gamma):
            inside = (phase >= 0) & (phase < 2 * np.pi)
            assert inside.all() or not within_turn
        empty = ~mesh.cell_mask(modes, arrangement)
        assert not to_set.theta[empty].any() and not to_set.phi[empty].any()


@pytest.mark.parametrize("seed", [1, 2, 13])
def test_crosstalk_among_all_shifters_settles(seed):
    """All phases at once would run in circles here."""
    size = 2 * mesh.cell_mask(6).size
    crosstalk = np.eye(size) + np.random.default_rng(0).uniform(0, 0.02, (size, size))
    wanted = decompose.haar_phases(6, seed)
    to_set = decompose.compensated(wanted, crosstalk, within_turn=True)
    u = mesh.transfer_matrix(wanted.theta, wanted.phi, wanted.gamma)
    np.testing.assert_allclose(given_matrix(to_set, crosstalk), u, atol=1e-12)


def test_a_phase_out_of_reach_goes_to_the_nearer_end():
    """Two shifters that give a fifth of their phase to each other.

    What is set for (θ, φ) is (θ − 0.2 φ, φ − 0.2 θ)/0.96. For φ = 0.2 that is −0.04 of
    φ, or with a turn more 6.50, above 2π by 0.22: 0 is nearer.
    """
    crosstalk = np.eye(4)
    crosstalk[0, 2] = crosstalk[2, 0] = 0.2
    wanted = decompose.MeshPhases([[1.2], [0]], [[0.2], [0]], [0, 0])
    to_set = decompose.compensated(wanted, crosstalk, within_turn=True)
    assert to_set.phi[0, 0] == 0
    np.testing.assert_allclose(to_set.theta[0, 0], (1.2 - 0.04) / 0.96, atol=1e-12)
    none = decompose.MeshPhases(np.zeros((2, 1)), np.zeros((2, 1)), [0, 0])
    for phase in ("theta", "phi", "gamma"):
        to_set = decompose.compensated(none, crosstalk, within_turn=True)
        assert not getattr(to_set, phase).any()


@pytest.mark.parametrize(
    "crosstalk, message",
    [
        (np.eye(3), r"`crosstalk` must have the shape \(16, 16\).*Received: shape"),
        (np.full((16, 16), np.nan), "`crosstalk` must be finite.*Received"),
        (np.eye(16) * 1j, "`crosstalk` must be real numbers.*Received"),
        (np.ones((16, 16)), "`crosstalk` must have an inverse.*Received"),
    ],
    ids=["shape", "NaN", "complex", "singular"],
)
@pytest.mark.parametrize("within_turn", [False, True])
def test_crosstalk_that_cannot_be_made_up_for(crosstalk, message, within_turn):
    with pytest.raises(ValueError, match=message):
        decompose.compensated(decompose.haar_phases(4), crosstalk, within_turn)


@pytest.mark.parametrize("function", [decompose.compensated, correct, phases])
def test_examples_run(function):
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(function, globs=dict(vars(decompose)))
    assert doctest.DocTestRunner().run(example).failed == 0
