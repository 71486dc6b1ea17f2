"""Phases of a mesh of Mach–Zehnder cells from a unitary matrix, in NumPy float64."""

import cmath
import dataclasses
import math
import reprlib

import numpy as np

from keras_pnn.physics import interferometer, mesh
from keras_pnn.physics.mesh.lattice import cell_mask, check_modes

# Wide enough for a unitary that was computed in single precision.
_TOLERANCE = 1e-5

# Rounds in which phases find their turns, all at once and then one in each. A few are
# enough for weak crosstalk.
_ROUNDS, _SINGLE_ROUNDS = 20, 200


@dataclasses.dataclass(frozen=True, eq=False)
class MeshPhases:
    """The phases of a mesh, in rad.

    Light meets the phases γ on all modes, then column 0, column 1, …:
    `U = C[K-1] ⋯ C[0] diag(exp(iγ))`. A cell on the modes (m, m + 1) is

        T = i [[e^{iφ} sin θ/2, e^{iφ} cos θ/2], [cos θ/2, −sin θ/2]]

    so that θ = π is the bar state, θ = 0 the cross state, and φ sits at the upper
    output. Slot j of an even column couples the modes (2j, 2j + 1), slot j of an odd
    column the modes (2j + 1, 2j + 2). Slots without a cell hold 0: what is given
    there is dropped.

    Args:
        theta: Array of shape (columns, modes // 2).
        phi: Array of shape (columns, modes // 2).
        gamma: Array of shape (modes,).
        arrangement: `"clements"`, the rectangle of `modes` columns, or `"reck"`, the
            triangle of `2 * modes - 3`.

    Raises:
        ValueError: If a shape does not fit `gamma` and `arrangement`, or a value is
            not a finite real number.

    Example:

    >>> bar = MeshPhases(theta=[[np.pi], [0]], phi=np.zeros((2, 1)), gamma=[0, 0])
    >>> bar.theta.shape
    (2, 1)
    """

    theta: np.ndarray
    phi: np.ndarray
    gamma: np.ndarray
    arrangement: str = "clements"

    def __post_init__(self):
        gamma = _finite("gamma", self.gamma)
        if gamma.ndim != 1:
            raise ValueError(
                f"`gamma` must have the shape (modes,). Received: shape {gamma.shape}"
            )
        mask = cell_mask(gamma.size, self.arrangement)
        object.__setattr__(self, "gamma", gamma)
        for name in ("theta", "phi"):
            value = _finite(name, getattr(self, name))
            if value.shape != mask.shape:
                raise ValueError(
                    f"`{name}` must have the shape {mask.shape} for {gamma.size} modes "
                    f"of arrangement {self.arrangement!r}. "
                    f"Received: shape {value.shape}"
                )
            object.__setattr__(self, name, np.where(mask, value, 0.0))

    def to_dict(self) -> dict:
        """Returns the arguments as lists, ready for JSON."""
        return {
            "theta": self.theta.tolist(),
            "phi": self.phi.tolist(),
            "gamma": self.gamma.tolist(),
            "arrangement": self.arrangement,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """Phases that make up for a chip's known errors.

    Args:
        phases: `MeshPhases` to program.
        error: Float, what is left: ‖U − Û‖_F / √N, with Û the matrix of the
            imperfect mesh at these phases.
    """

    phases: MeshPhases
    error: float


def phases(unitary, arrangement="clements") -> MeshPhases:
    """The phases at which a mesh without errors is the given unitary.

    The rectangle nulls the matrix below its diagonal, from the right by cells near
    the input and from the left by cells near the output, and then moves the diagonal
    left in the middle to the input. The triangle nulls above the diagonal from
    the left alone. A cell that both of its elements leave free is put in the bar
    state, so that the identity is the mesh of bar cells. The product of the cells
    equals the unitary to rounding.

    Args:
        unitary: Array of shape (N, N), N of 2 or more, unitary within 1e-5 (largest
            element of U†U − 1).
        arrangement: `"clements"` or `"reck"`.

    Returns:
        `MeshPhases`, with θ in [0, π], φ and γ in (−π, π].

    Raises:
        ValueError: If `unitary` is not a finite, square, unitary matrix of 2 modes
            or more, or `arrangement` is unknown.

    Example:

    >>> swap = phases([[0, 1], [1, 0]])
    >>> swap.theta
    array([[0.],
           [0.]])

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    - Reck et al., Phys. Rev. Lett. 73:58 (1994).
    """
    matrix = _unitary(unitary)
    shape = cell_mask(len(matrix), arrangement).shape
    theta, phi = np.zeros(shape), np.zeros(shape)
    null = _null_rectangle if arrangement == "clements" else _null_triangle
    gamma = null(matrix, theta, phi)
    return MeshPhases(theta, _wrap(phi), _wrap(gamma), arrangement)


def haar_phases(n, seed=0, arrangement="clements") -> MeshPhases:
    """The phases of a unitary drawn from the Haar measure, without the matrix.

    φ and γ are uniform, and all phases are independent. The power that a cell
    crosses over, cos² θ/2, is Beta(α, 1) distributed: it is U^{1/α}, U uniform. In
    the rectangle α = I + O − N − 1, where I inputs of the mesh lead to the cell and O
    outputs are reached from it: 1 at the corners, about N in the middle. In the
    triangle α = m + 1 for a cell on the modes (m, m + 1), in every column. A uniform
    θ is not Haar.

    Args:
        n: Integer of 2 or more, the number of modes N.
        seed: Non-negative integer. The result is a pure function of the arguments.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        `MeshPhases`, with θ in [0, π], φ and γ in (−π, π].

    Raises:
        ValueError: If an argument is none of these.

    Example:

    >>> haar_phases(4, seed=1).theta.shape
    (4, 2)

    Reference:

    - Russell et al., New J. Phys. 19:033007 (2017).
    - Pai et al., Phys. Rev. Applied 11:064044 (2019), for α by inputs and outputs.
    """
    n = check_modes(n, "n")
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or seed < 0:
        raise ValueError(f"`seed` must be a non-negative integer. Received: {seed!r}")
    mask = cell_mask(n, arrangement)
    rng = np.random.default_rng(int(seed))
    # −log U is exponential; expm1 keeps the bar power 1 − U^{1/α} accurate.
    exponent = rng.standard_exponential(mask.shape) / _haar_index(n, arrangement)
    theta = 2 * np.arctan2(np.sqrt(-np.expm1(-exponent)), np.exp(-exponent / 2))
    phi = np.pi * (1 - 2 * rng.random(mask.shape))
    gamma = np.pi * (1 - 2 * rng.random(n))
    return MeshPhases(theta, phi, gamma, arrangement)


def correct(
    unitary, theta_error, phi_error, splitter_error, arrangement="clements"
) -> Correction:
    """The phases that bring a mesh with known errors closest to a unitary, by cell.

    With splitters at the angles π/4 + ε₁ and π/4 + ε₂, the bar power of a cell,
    sin² θ/2, stays between sin²(ε₁ + ε₂) and cos²(ε₁ − ε₂). Each cell is programmed to
    the power of the exact decomposition, or to the nearest that it reaches, and the
    phases that it adds at its ports are made up for by its own φ, by the cells before
    it and at last by γ. Where every power is within reach, the imperfect mesh is the
    unitary to rounding; phase errors alone never take a power out of reach.

    A large Haar-random unitary needs many cells close to the cross state. Some of them
    are then out of reach, and the error left falls with the square of the splitter
    errors, where without correction it falls in proportion.

    Args:
        unitary: As in `phases`.
        theta_error: Array that broadcasts to (columns, modes // 2), in rad, added
            by the chip to θ.
        phi_error: As `theta_error`, added to φ.
        splitter_error: Array that broadcasts to (columns, modes // 2, 2): the angles
            ε in rad, the splitter that light meets first, then the second. A power
            imbalance e is ε = −arcsin(e) / 2. Errors at slots without a cell are
            ignored.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        A `Correction`. θ lies in [0, π] with the errors added, φ and γ in (−π, π].

    Raises:
        ValueError: As `phases`, and if an error does not broadcast or is not a finite
            real number.

    Example:

    >>> fourier = np.fft.fft(np.eye(4), norm="ortho")
    >>> chip = {"theta_error": 0.1, "phi_error": -0.2, "splitter_error": 0.0}
    >>> correct(fourier, **chip).error < 1e-14
    True

    Reference:

    - Bandyopadhyay et al., Optica 8:1247 (2021).
    """
    ideal = phases(unitary, arrangement)
    shape = ideal.theta.shape
    theta_error = _spread("theta_error", theta_error, shape)
    phi_error = _spread("phi_error", phi_error, shape)
    splitters = _spread("splitter_error", splitter_error, (*shape, 2))
    theta = _reachable_theta(ideal.theta, splitters)
    # The rest of a cell follows: S22 = conj(S11), S21 = −conj(S12).
    cells = interferometer.transfer_matrix(theta, 0.0, splitters).numpy()
    alpha, beta = np.angle(cells[..., 0, 0]), np.angle(cells[..., 0, 1])
    phi, gamma = np.zeros(shape), np.zeros(ideal.gamma.size)
    # `gamma` is what stands in front of the columns already passed, from the output.
    for column in reversed(range(shape[0])):
        slots, top = _cells(column, gamma.size, arrangement)
        a, b = alpha[column, slots], beta[column, slots]
        upper, lower = gamma[top], gamma[top + 1]
        phi[column, slots] = ideal.phi[column, slots] + upper - lower + np.pi - a - b
        gamma[top], gamma[top + 1] = lower + b - np.pi / 2, lower + a - np.pi / 2
    programmed = MeshPhases(
        theta - theta_error,
        _wrap(phi - phi_error),
        _wrap(gamma + ideal.gamma),
        arrangement,
    )
    rebuilt = mesh.transfer_matrix(
        programmed.theta,
        programmed.phi,
        programmed.gamma,
        arrangement,
        theta_error=theta_error,
        phi_error=phi_error,
        splitter_error=splitters,
    )
    distance = np.linalg.norm(rebuilt - np.asarray(unitary, "complex128"))
    return Correction(programmed, float(distance / math.sqrt(gamma.size)))


def compensated(phases: MeshPhases, crosstalk, within_turn: bool = False) -> MeshPhases:
    """The phases to set so that shifters that warm each other give the phases.

    A shifter warms its neighbours by the phase that is set, so that a whole turn more
    on one is not the same mesh. Within a turn, whole turns are added to what the
    shifters give, and the signs that they leave over are made up for as in
    `mesh.wrapped`, until what must be set lies in [0, 2π).

    A few phases may stay out of reach: those that a shifter gives neither at 0 nor,
    since it warms its neighbours and they warm it in return, a little below 2π. They
    are set to the nearer end of the range. With n shifters and a crosstalk of ε to
    each of a few neighbours this concerns about n ε² of them, and each then misses its
    phase by the order of ε² rad.

    Args:
        phases: `MeshPhases`, what the shifters are to give.
        crosstalk: Array of shape (2 n, 2 n), n the number of slots: what the shifters
            give for what is set, first θ, then φ, column by column. Slots without a
            cell have no shifter.
        within_turn: Boolean. Whether all phases that are set lie in [0, 2π).

    Returns:
        `MeshPhases`, what is to be set.

    Raises:
        ValueError: If `crosstalk` has another shape, is not finite, or has no inverse.

    Example:

    >>> bar = MeshPhases([[np.pi], [0]], np.zeros((2, 1)), [0, 0])
    >>> compensated(bar, 1.1 * np.eye(4)).theta.round(4)
    array([[2.856],
           [0.   ]])
    """
    modes, arrangement = phases.gamma.size, phases.arrangement
    mask = cell_mask(modes, arrangement)
    crosstalk = _finite("crosstalk", crosstalk, unit="")
    if crosstalk.shape != (2 * mask.size, 2 * mask.size):
        raise ValueError(
            f"`crosstalk` must have the shape {(2 * mask.size, 2 * mask.size)}. "
            f"Received: shape {crosstalk.shape}"
        )
    there = np.flatnonzero(np.stack([mask, mask]))
    among = crosstalk[np.ix_(there, there)]

    def spread(values):
        both = np.zeros(2 * mask.size)
        both[there] = values
        return both.reshape(2, *mask.shape)

    wanted = np.stack([phases.theta, phases.phi]).ravel()[there]
    try:
        if not within_turn:
            to_set = np.linalg.solve(among, wanted)
            return MeshPhases(*spread(to_set), phases.gamma, arrangement)
        inverse = np.linalg.inv(among)
    except np.linalg.LinAlgError:
        raise ValueError(
            "`crosstalk` must have an inverse. Received: a singular matrix"
        ) from None
    # How far what is set moves for a turn of what is given, in turns.
    step = np.maximum(np.diag(inverse), 0.1)
    # What two neighbouring turns leave out goes to the nearer of them; the last
    # term keeps what is 0 but for rounding.
    margin = np.maximum(0, np.pi * (step - 1)) + 1e-12
    turns = np.zeros(there.size)
    best, least = None, np.inf
    for count in range(_ROUNDS + _SINGLE_ROUNDS):
        of_phi, of_gamma = mesh.half_turns(spread(turns)[0], modes, arrangement)
        halves = np.stack([np.zeros(mask.shape), of_phi]).ravel()[there]
        to_set = inverse @ (wanted + np.pi * (2 * turns + halves))
        beyond = np.linalg.norm(to_set - np.clip(to_set, 0, 2 * np.pi))
        if beyond < least:
            best, least = (to_set, of_gamma.numpy()), beyond
        excess = np.maximum(-to_set, to_set - 2 * np.pi) - margin
        outside = excess > 0
        if not outside.any():
            break
        if count >= _ROUNDS:
            # Neighbours that move at once may push each other back for ever.
            outside = np.arange(there.size) == np.argmax(excess)
        turns -= np.where(outside, np.floor((to_set + margin) / (2 * np.pi * step)), 0)
    to_set, of_gamma = best
    to_set = np.clip(to_set, 0, np.nextafter(2 * np.pi, 0))
    gamma = np.mod(phases.gamma + np.pi * of_gamma, 2 * np.pi)
    return MeshPhases(
        *spread(to_set), np.where(gamma < 2 * np.pi, gamma, 0), arrangement
    )


def _null_rectangle(u, theta, phi):
    """Fills `theta` and `phi`, destroys `u`, returns gamma."""
    n = len(u)
    inner = []
    for diagonal in range(n - 1):
        for j in range(diagonal + 1):
            if diagonal % 2 == 0:
                row, m, column = n - 1 - j, diagonal - j, j
                angle, phase = _null_first(u[row, m], u[row, m + 1])
                # Below `row` both columns hold zeros: they stay exact.
                inverse = _cell(angle, 0, phase).conj().T
                u[: row + 1, m : m + 2] = u[: row + 1, m : m + 2] @ inverse
                u[row, m] = 0
                inner.append((column, m, phase))
            else:
                m, column = n - 2 - diagonal + j, n - 1 - j
                angle, phase = _null_second(u[m, j], u[m + 1, j])
                u[m : m + 2, j:] = _cell(angle, phase).conj().T @ u[m : m + 2, j:]
                u[m + 1, j] = 0
                phi[column, m // 2] = phase
            theta[column, m // 2] = angle
    gamma = np.angle(np.diagonal(u)).tolist()
    # diag(d₁, d₂) S diag(α, 1) = diag(d₁ − d₂, 0) S diag(α + d₂, d₂), as angles.
    for column, m, phase in reversed(inner):
        phi[column, m // 2] = gamma[m] - gamma[m + 1]
        gamma[m] = math.remainder(phase + gamma[m + 1], math.tau)
    return np.array(gamma)


def _null_triangle(u, theta, phi):
    """Fills `theta` and `phi`, destroys `u`, returns gamma."""
    n = len(u)
    for diagonal in range(n - 1):
        j = n - 1 - diagonal
        for m in range(j):
            angle, phase = _null_first(u[m, j], u[m + 1, j])
            u[m : m + 2, : j + 1] = _cell(angle, phase).conj().T @ u[m : m + 2, : j + 1]
            u[m, j] = 0
            column = 2 * (n - 2 - diagonal) - m
            theta[column, m // 2], phi[column, m // 2] = angle, phase
    return np.angle(np.diagonal(u))


def _null_first(first, second):
    """(θ, φ) of the cell whose inverse leaves nothing of `first`."""
    if first == 0 or second == 0:
        return (math.pi if first == 0 else 0.0), 0.0
    angle = 2 * math.atan2(abs(second), abs(first))
    return angle, cmath.phase(first) - cmath.phase(second) + math.pi


def _null_second(first, second):
    """(θ, φ) of the cell whose inverse leaves nothing of `second`."""
    if first == 0 or second == 0:
        return (math.pi if second == 0 else 0.0), 0.0
    angle = 2 * math.atan2(abs(first), abs(second))
    return angle, cmath.phase(first) - cmath.phase(second)


def _cell(theta, output_phase, input_phase=0.0):
    """One cell without errors, with a phase at the upper output and upper input."""
    sin, cos = math.sin(theta / 2), math.cos(theta / 2)
    out, into = cmath.exp(1j * output_phase), cmath.exp(1j * input_phase)
    return np.array(
        [[1j * out * sin * into, 1j * out * cos], [1j * cos * into, -1j * sin]]
    )


def _reachable_theta(theta, splitters):
    """The θ at which an imperfect cell comes closest to the powers of an ideal one."""
    half = theta / 2
    total = splitters[..., 0] + splitters[..., 1]
    difference = splitters[..., 0] - splitters[..., 1]
    # sin² a − sin² b and cos² a − sin² b as products, free of cancellation. Their sum
    # is the width of the range, negative once one splitter's angle has passed π/2.
    width = np.cos(2 * splitters[..., 0]) * np.cos(2 * splitters[..., 1])
    above = np.sin(half + total) * np.sin(half - total) * np.sign(width)
    below = np.cos(half + difference) * np.cos(half - difference) * np.sign(width)
    return 2 * np.arctan2(np.sqrt(np.maximum(above, 0)), np.sqrt(np.maximum(below, 0)))


def _cells(column, n, arrangement):
    """(slots, upper modes) of the cells in a column."""
    slots = np.flatnonzero(cell_mask(n, arrangement)[column])
    return slots, 2 * slots + column % 2


def _haar_index(n, arrangement):
    """α of each slot, at least 1 where there is no cell."""
    column = np.arange(cell_mask(n, arrangement).shape[0])[:, None]
    top = 2 * np.arange(n // 2)[None, :] + column % 2
    if arrangement == "reck":
        return top + 1

    def reach(columns):
        return np.minimum(n, top + 2 + columns) - np.maximum(0, top - columns)

    return np.maximum(1, reach(column) + reach(n - 1 - column) - n - 1)


def _wrap(angle):
    """Angles in (−π, π]."""
    angle = np.angle(np.exp(1j * angle))
    return np.where(angle > -np.pi, angle, np.pi)


def _unitary(value):
    """A copy of the value as a complex128 matrix, if it is unitary."""
    try:
        matrix = np.array(value, "complex128")
    except (TypeError, ValueError):
        raise ValueError(
            f"`unitary` must be a matrix of numbers. Received: {reprlib.repr(value)}"
        ) from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(
            "`unitary` must be a square matrix of 2 modes or more. "
            f"Received: shape {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(
            "`unitary` must be finite. "
            f"Received: {(~np.isfinite(matrix)).sum()} of {matrix.size} elements "
            "that are NaN or infinite"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(matrix.conj().T @ matrix - np.eye(len(matrix))).max()
    if not distance <= _TOLERANCE:
        raise ValueError(
            f"`unitary` must be unitary within {_TOLERANCE:g}. "
            f"Received: a matrix with max |U†U − 1| = {distance:.3g}"
        )
    return matrix


def _finite(name, value, unit=", in rad"):
    """A copy of the value as a float64 array, if it is real and finite."""
    try:
        array = np.array(value)
    except (TypeError, ValueError):
        array = np.array(None)
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must be real numbers{unit}. Received: {reprlib.repr(value)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` must be finite{unit}. Received: "
            f"{(~np.isfinite(array)).sum()} of {array.size} values that are NaN or "
            "infinite"
        )
    return array.astype("float64")


def _spread(name, value, shape):
    """The value as a finite float64 array of this shape."""
    array = _finite(name, value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"`{name}` must broadcast to the shape {shape}. "
            f"Received: shape {array.shape}"
        ) from None
