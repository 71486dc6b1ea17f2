"""The mesh against a product of cells, written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_columns import within_a_turn
from mesh_product import both, product

from keras_pnn.physics import decompose, mesh

jitted = pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])


def draw(modes, arrangement="clements", seed=0):
    generator = np.random.default_rng(seed)
    mask = mesh.cell_mask(modes, arrangement)
    theta, phi = generator.uniform(-4, 4, (2, *mask.shape))
    return theta, phi, generator.uniform(-4, 4, modes), mask, generator


def parameters(modes, arrangement="clements", seed=0):
    theta, phi, gamma, mask, generator = draw(modes, arrangement, seed)
    return {
        "theta": theta,
        "phi": phi,
        "gamma": gamma,
        "theta_error": 0.1 * generator.normal(size=mask.shape),
        "phi_error": 0.1 * generator.normal(size=mask.shape),
        "splitter_error": 0.1 * generator.normal(size=(*mask.shape, 2)),
        "loss_db": generator.uniform(0.1, 0.5, mask.shape),
        "straight_loss_db": np.float64(0.2),
    }


@both
@pytest.mark.parametrize("modes", [2, 3, 4, 7, 8, 15, 16, 17, 33, 64])
def test_matrix_is_the_product_of_the_cells(modes, arrangement):
    """Values in slots without a cell are ignored."""
    values = parameters(modes, arrangement)
    expected = product(arrangement=arrangement, **values)
    assert mesh.cell_mask(modes, arrangement).sum() == modes * (modes - 1) // 2
    matrix = mesh.transfer_matrix(arrangement=arrangement, **values)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    # Batches smaller than the mesh go through the blocks, larger meet the matrix.
    for batch in (1, modes + 1):
        x = np.random.default_rng(1).normal(size=(batch, modes)) + 1j
        behind = mesh.propagate(x, arrangement=arrangement, **values)
        np.testing.assert_allclose(behind, x @ expected.T, atol=1e-11)


@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)], ids=str
)
def test_unitarity(dtype, tolerance):
    theta, phi, gamma, mask, generator = draw(64)
    phases = [v.astype(dtype) for v in (theta, phi, gamma)]
    errors = generator.normal(size=(*mask.shape, 2)).astype(dtype)
    for splitter_error in (0.0, errors):
        u = mesh.transfer_matrix(*phases, splitter_error=splitter_error).numpy()
        assert np.abs(u @ u.conj().T - np.eye(64)).max() < tolerance


def test_crosstalk_spreads_phases():
    theta, phi, gamma, mask, generator = draw(4)
    matrix = np.eye(16) + 0.1 * generator.normal(size=(16, 16))
    u = mesh.transfer_matrix(theta, phi, gamma, crosstalk=matrix)
    heated = matrix @ np.concatenate([theta.ravel(), phi.ravel()])
    expected = mesh.transfer_matrix(*heated.reshape(2, *mask.shape), gamma)
    np.testing.assert_allclose(u, expected, atol=1e-14)
    # The widest dtype is that of the crosstalk.
    phases = np.float32(theta), np.float32(phi), np.float32(gamma)
    u = mesh.transfer_matrix(*phases, crosstalk=matrix)
    assert u.dtype == "complex128"
    np.testing.assert_allclose(u, expected, atol=1e-5)


# --- Devices.


@pytest.mark.parametrize("devices", [(5,), (2, 3)])
@pytest.mark.parametrize("own", ["gamma", "theta", "splitter_error", "loss_db"])
def test_any_argument_may_differ_between_devices(own, devices):
    values = parameters(6)
    generator = np.random.default_rng(10)
    values[own] = generator.uniform(0.1, 2, (*devices, *values[own].shape))
    u = mesh.transfer_matrix(**values)
    assert u.shape == (*devices, 6, 6)
    for i in np.ndindex(devices):
        expected = product(**{**values, own: values[own][i]})
        np.testing.assert_allclose(u[i], expected, atol=1e-13)
    for batch in (3, 30):
        common = generator.normal(size=(batch, 6))
        y = mesh.propagate(common, **values)
        expected = np.einsum("...ij,cj->...ci", u, common)
        np.testing.assert_allclose(y, expected, atol=1e-12)
        each = generator.normal(size=(*devices, batch, 6))
        y = mesh.propagate(each, **values)
        expected = np.einsum("...ij,...cj->...ci", u, each)
        np.testing.assert_allclose(y, expected, atol=1e-12)


def test_gamma_of_devices_broadcasts_to_those_of_the_phases():
    values = parameters(5)
    generator = np.random.default_rng(11)
    values["gamma"] = generator.normal(size=(3, 1, 5))
    values["phi"] = generator.normal(size=(2, 5, 2))
    spec = tf.TensorSpec((None, 1, 5), tf.float64)

    @tf.function(input_signature=[spec])
    def matrices(gamma):
        return mesh.transfer_matrix(**{**values, "gamma": gamma})

    for u in (mesh.transfer_matrix(**values), matrices(values["gamma"])):
        assert u.shape == (3, 2, 5, 5)
        for i, j in np.ndindex(3, 2):
            own = {"gamma": values["gamma"][i, 0], "phi": values["phi"][j]}
            expected = product(**{**values, **own})
            np.testing.assert_allclose(u[i, j], expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 2), (6, 1), (1, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("own", ["theta", "gamma"])
def test_fields_of_other_devices_are_refused(shape, own):
    """Also where there are as many of them."""
    values = parameters(6)
    values[own] = np.zeros((2, 3, *values[own].shape))
    with pytest.raises(ValueError, match=r"`x` must.*\(\*devices.*\(2, 3\)"):
        mesh.propagate(np.ones((*shape, 4, 6)), **values)
    with pytest.raises(ValueError, match=r"`x` must.*Received: shape \(2, 4, 6\)"):
        mesh.propagate(np.ones((2, 4, 6)), **values)


@jitted
@pytest.mark.parametrize("modes", [6, 80])
def test_unknown_batch_size_and_further_axes(modes, jit):
    theta, phi, gamma, _, generator = draw(modes)
    expected = product(theta, phi, gamma)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, modes), tf.float64)],
        jit_compile=jit,
    )
    def behind(x):
        return mesh.propagate(x, theta, phi, gamma)

    for lead in ((2, 3), (20, 5)):
        x = generator.normal(size=(*lead, modes))
        np.testing.assert_allclose(behind(x), x @ expected.T, atol=1e-12)


# --- Derivatives.


def objective(x, weights, arrangement, **values):
    y = mesh.propagate(x, arrangement=arrangement, **values)
    return tf.reduce_sum(weights * (tf.math.real(y) ** 2 + tf.math.imag(y)))


@pytest.mark.parametrize(
    "modes, batch, arrangement", [(4, 2, "clements"), (4, 5, "reck")]
)
def test_gradients_of_fields_and_parameters(modes, batch, arrangement):
    values = parameters(modes, arrangement)
    x, weights = np.random.default_rng(2).normal(size=(2, batch, modes))
    values = {"x": x, **values}

    def f(*tensors):
        named = dict(zip(values, tensors, strict=True))
        return objective(weights=weights, arrangement=arrangement, **named)

    exact, numeric = tf.test.compute_gradient(
        f, [tf.constant(v) for v in values.values()], delta=1e-5
    )
    for name, a, b in zip(values, exact, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
        assert np.abs(a).max() > 1e-3, name


@pytest.mark.parametrize("modes, jit", [(17, False), (5, True)], ids=["graph", "xla"])
def test_hessian_vector_product(modes, jit):
    values = parameters(modes)
    generator = np.random.default_rng(4)
    x, weights = generator.normal(size=(2, 3, modes))
    point = [tf.constant(v) for v in values.values()]
    direction = [tf.constant(generator.normal(size=v.shape)) for v in values.values()]

    @tf.function(jit_compile=jit)
    def gradient(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            named = dict(zip(values, tensors, strict=True))
            loss = objective(x, weights, "clements", **named)
        return tape.gradient(loss, tensors)

    @tf.function(jit_compile=jit)
    def hessian_product(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            pairs = zip(gradient(*tensors), direction, strict=True)
            along = tf.add_n([tf.reduce_sum(g * d) for g, d in pairs])
        return tape.gradient(along, tensors)

    step = 1e-5
    ahead = gradient(*[p + step * d for p, d in zip(point, direction, strict=True)])
    back = gradient(*[p - step * d for p, d in zip(point, direction, strict=True)])
    found = hessian_product(*point)
    for name, h, a, b in zip(values, found, ahead, back, strict=True):
        np.testing.assert_allclose(h, (a - b) / (2 * step), atol=1e-5, err_msg=name)


def test_gradients_inside_a_map_over_devices():
    values = parameters(10)
    generator = np.random.default_rng(5)
    x, weights = generator.normal(size=(2, 3, 10))
    errors = generator.normal(size=(4, *values["splitter_error"].shape))
    theta = tf.constant(values["theta"])

    def gradient(error):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            named = {**values, "theta": theta, "splitter_error": error}
            loss = objective(x, weights, "clements", **named)
        return tape.gradient(loss, theta)

    mapped = tf.vectorized_map(
        gradient, tf.constant(errors), fallback_to_while_loop=False
    )
    np.testing.assert_allclose(mapped, [gradient(e) for e in errors], atol=1e-12)


# --- Laws.


@pytest.mark.parametrize(
    "modes, splitter, phase, sigma",
    [(16, 1, 0, 0.1), (16, 0, 1, 0.1), (16, 1, 1, 0.02), (64, 1, 1, 0.1)],
)
def test_laws_of_random_errors(modes, splitter, phase, sigma):
    """Mean distance and fidelity of 200 chips, see the closed forms below.

    With k = (N − 1)(2 σ_a² + 0.75 σ_p²): ‖U − Û‖²/N = 2 (1 − e^{−k/2}), and
    |tr U†Û|²/N² = e^{−k'} with k' = k − σ_p² (N − 1)/(2 N).
    """
    generator = np.random.default_rng(6)
    mask = mesh.cell_mask(modes)
    haar = decompose.haar_phases(modes, seed=0)
    phases = [np.float32(v) for v in (haar.theta, haar.phi, haar.gamma)]
    chips = 200

    def noise(size, on):
        return (on * sigma * generator.normal(size=(chips, *size))).astype("float32")

    ideal = mesh.transfer_matrix(*phases).numpy()
    real = mesh.transfer_matrix(
        *phases,
        theta_error=noise(mask.shape, phase),
        phi_error=noise(mask.shape, phase),
        splitter_error=noise((*mask.shape, 2), splitter),
    ).numpy()
    k = (modes - 1) * sigma**2 * (2 * splitter + 0.75 * phase)
    distance = np.sum(np.abs(real - ideal) ** 2, (1, 2)) / modes
    trace = np.einsum("ij,dij->d", ideal.conj(), real)
    fidelity = np.abs(trace) ** 2 / modes**2
    unseen = sigma**2 * phase * (modes - 1) / (2 * modes)
    for values, law in (
        (distance, 2 * (1 - np.exp(-k / 2))),
        (fidelity, np.exp(-(k - unseen))),
    ):
        error = values.std(ddof=1) / np.sqrt(chips)
        assert abs(values.mean() - law) < 4 * error


@pytest.mark.parametrize(
    "change, message",
    [
        ({"theta": np.zeros((4, 3))}, r"theta of shape \(4, 3\)"),
        ({"theta": np.zeros((1, 0)), "phi": np.zeros((1, 0))}, "2 or more"),
        ({"phi": np.zeros((4, 1))}, r"phi of shape \(4, 1\)"),
        ({"gamma": np.zeros(3)}, "each of the 4 modes"),
        ({"theta": np.full((4, 2), np.nan)}, "`theta` must be finite"),
        ({"theta_error": np.nan}, "`theta_error` must be finite"),
        ({"splitter_error": np.zeros((4, 3, 2))}, "fit the"),
        ({"splitter_error": np.zeros((4, 2, 3))}, "last axis of `splitter_error`"),
        ({"loss_db": -1.0}, "`loss_db` must be finite and ≥ 0"),
        ({"straight_loss_db": -1.0}, "`straight_loss_db` must be finite and ≥ 0"),
        ({"straight_loss_db": np.zeros(3)}, r"`straight_loss_db` must.*shape \(3,\)"),
        ({"crosstalk": np.zeros((2, 16, 16))}, r"\(16, 16\).*shape \(2, 16, 16\)"),
        (
            {"gamma": np.zeros((2, 4)), "loss_db": np.zeros((3, 4, 2))},
            r"`gamma` as well.*Received.*gamma of shape \(2, 4\)",
        ),
        ({"arrangement": ["clements"]}, "`arrangement` must be one of.*Received"),
        ({"x": np.zeros((3, 5))}, "`x` must have the shape"),
    ],
)
def test_bad_input(change, message):
    phases = {"theta": np.zeros((4, 2)), "phi": np.zeros((4, 2)), "gamma": np.zeros(4)}
    with pytest.raises(ValueError, match=message):
        mesh.propagate(**{"x": np.zeros((3, 4)), **phases, **change})


# --- Phases within a turn.

TURN = {"float32": np.float32(2 * np.pi), "float64": 2 * np.pi}


@both
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 20), st.integers(0, 99))
def test_wrapped_phases_are_those_of_signs_carried_to_the_input(
    arrangement, modes, seed
):
    values = parameters(modes, arrangement, seed)
    phases = [5 * values.pop(name) for name in ("theta", "phi", "gamma")]
    mask = mesh.cell_mask(modes, arrangement)
    within = mesh.wrapped(*phases, arrangement)
    expected = within_a_turn(*phases, mask)
    for one, other, exists in zip(within, expected, (mask, mask, True), strict=True):
        assert (one.numpy() >= 0).all() and (one.numpy() < 2 * np.pi).all()
        apart = np.where(exists, one - other, 0)
        np.testing.assert_allclose(np.exp(1j * apart), 1, atol=1e-12)
    np.testing.assert_allclose(
        mesh.transfer_matrix(*within, arrangement, **values),
        mesh.transfer_matrix(*phases, arrangement, **values),
        atol=1e-12,
    )


@jitted
@pytest.mark.parametrize("dtype", TURN)
def test_no_phase_is_rounded_to_a_whole_turn(dtype, jit):
    """The next number below 0, and its neighbours at every turn."""
    turns = TURN[dtype] * np.arange(-2, 3, dtype=dtype)
    edges = [np.nextafter(turns, turns - 1), turns, np.nextafter(turns, turns + 1)]
    values = np.concatenate([*edges, [-1e-30, 1e-30, -1e-9]]).astype(dtype)
    # Subnormal numbers are 0 to compiled code.
    values[np.abs(values) < np.finfo(dtype).tiny] = 0
    theta = np.zeros((18, 9), dtype)
    theta.flat[:18] = values
    phases = theta, theta[::-1].copy(), values
    within = tf.function(mesh.wrapped, jit_compile=jit)(*phases)
    for value in within:
        assert value.dtype == dtype
        assert (value.numpy() >= 0).all() and (value.numpy() < TURN[dtype]).all()
    tolerance = 1e-12 if dtype == "float64" else 3e-6
    np.testing.assert_allclose(
        mesh.transfer_matrix(*within), mesh.transfer_matrix(*phases), atol=tolerance
    )


def test_wrapped_phases_of_devices_in_a_map_and_their_gradients():
    generator = np.random.default_rng(8)
    theta, phi = 9 * generator.normal(size=(2, 3, *mesh.cell_mask(7).shape))
    gamma = 9 * generator.normal(size=7)
    together = mesh.wrapped(theta, phi, gamma)
    mapped = tf.vectorized_map(
        lambda v: mesh.wrapped(*v, gamma),
        (tf.constant(theta), tf.constant(phi)),
        fallback_to_while_loop=False,
    )
    for i in range(3):
        alone = mesh.wrapped(theta[i], phi[i], gamma)
        for one, all_at_once, in_a_map in zip(alone, together, mapped, strict=True):
            np.testing.assert_array_equal(all_at_once[i], one)
            np.testing.assert_array_equal(in_a_map[i], one)
    variables = [tf.constant(v) for v in (theta[0], phi[0], gamma)]
    weights = [generator.normal(size=v.shape) for v in variables]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        within = mesh.wrapped(*variables)
        along = [tf.reduce_sum(w * v) for w, v in zip(weights, within, strict=True)]
        loss = tf.add_n(along)
    for gradient, weight in zip(tape.gradient(loss, variables), weights, strict=True):
        np.testing.assert_array_equal(gradient, weight)


def test_wrapped_refuses_phases_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`phi` must be finite.*Received"):
        mesh.wrapped(np.zeros((4, 2)), np.full((4, 2), np.inf))
    with pytest.raises(ValueError, match="theta of shape"):
        mesh.wrapped(np.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"leading axes.*Received: \[\(2,\), \(3,\)"):
        mesh.wrapped(np.zeros((2, 4, 2)), np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match=r"`high`.*> 1\. Received: 0"):
        mesh.wrapped(np.zeros((4, 2)), np.zeros((4, 2)), low=1.0, high=0.0)
    with pytest.raises(ValueError, match=r"`low`.*Received: nan"):
        mesh.wrapped(np.zeros((4, 2)), np.zeros((4, 2)), low=np.nan)
