"""Correct the phases of a mesh for known errors and for thermal crosstalk."""

import dataclasses
import math

import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Brief
from keras_pnn.physics import interferometer, mesh
from keras_pnn.physics.decompose.mesh_phases import MeshPhases, wrap
from keras_pnn.physics.decompose.nulling import phases

# Rounds that move phases by whole turns: first all phases at once, then one phase per
# round. A few rounds suffice for weak crosstalk.
_ROUNDS, _SINGLE_ROUNDS = 20, 200


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Correction(Brief):
    """Phases that correct a chip's known errors.

    Args:
        phases: `MeshPhases` to program.
        error: Float. The remaining error ‖U − Û‖_F / √N, with Û the matrix of the
            imperfect mesh at these phases.

    Example:

    >>> zero = np.zeros((4, 2))
    >>> found = decompose.correct(np.eye(4), zero, zero, np.zeros((4, 2, 2)))
    >>> found.error < 1e-6
    True
    """

    phases: MeshPhases
    error: float


def correct(
    unitary: np.ndarray,
    theta_error: np.ndarray | float,
    phi_error: np.ndarray | float,
    splitter_error: np.ndarray | float,
    arrangement: str = "clements",
) -> Correction:
    """Decomposes a unitary for a mesh with known errors, cell by cell.

    With splitters at the angles π/4 + ε₁ and π/4 + ε₂, the bar power of a cell,
    sin² θ/2, is limited to [sin²(ε₁ + ε₂), cos²(ε₁ − ε₂)]. Each cell is programmed to
    the power of the exact decomposition, or to the nearest within its limits. If every
    power is within its limits, the imperfect mesh equals the unitary to rounding. Phase
    errors do not narrow the limits.

    A large Haar-random unitary needs many cells close to the cross state, some of them
    beyond the limits. The remaining error then falls with the square of the splitter
    errors; without correction it falls in proportion to them.

    Args:
        unitary: As in `phases`.
        theta_error: Array that broadcasts to (columns, modes // 2), in rad: added to θ.
        phi_error: As `theta_error`, added to φ.
        splitter_error: Array that broadcasts to (columns, modes // 2, 2): the angles
            ε in rad, the splitter at the input first. For a power imbalance e,
            ε = −arcsin(e) / 2. Errors at slots without a cell are ignored.
        arrangement: `"clements"` or `"reck"`.

    Returns:
        A `Correction`. θ lies in [0, π] with the errors added, φ and γ in (−π, π].

    Raises:
        ValueError: As `phases`, or if an error does not broadcast or is not finite.

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
    theta_error = _broadcast("theta_error", theta_error, shape)
    phi_error = _broadcast("phi_error", phi_error, shape)
    splitters = _broadcast("splitter_error", splitter_error, (*shape, 2))
    theta = _reachable_theta(ideal.theta, splitters)
    # Two elements determine a cell: S22 = conj(S11), S21 = −conj(S12).
    cells = interferometer.transfer_matrix(theta, 0.0, splitters).numpy()
    alpha, beta = np.angle(cells[..., 0, 0]), np.angle(cells[..., 0, 1])
    phi, gamma = np.zeros(shape), np.zeros(ideal.gamma.size)
    mask = mesh.cell_mask(gamma.size, arrangement)
    # From output to input, `gamma` collects the phases in front of each column.
    for column in reversed(range(shape[0])):
        slots = np.flatnonzero(mask[column])
        top = 2 * slots + column % 2
        a, b = alpha[column, slots], beta[column, slots]
        upper, lower = gamma[top], gamma[top + 1]
        phi[column, slots] = ideal.phi[column, slots] + upper - lower + np.pi - a - b
        gamma[top], gamma[top + 1] = lower + b - np.pi / 2, lower + a - np.pi / 2
    programmed = MeshPhases(
        theta - theta_error,
        wrap(phi - phi_error),
        wrap(gamma + ideal.gamma),
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


def _reachable_theta(theta, splitters):
    """Returns the θ at which imperfect cells have the powers nearest to ideal ones."""
    half = theta / 2
    total = splitters[..., 0] + splitters[..., 1]
    difference = splitters[..., 0] - splitters[..., 1]
    # sin² a − sin² b and cos² a − sin² b as products, free of cancellation. Their sum
    # is the width of the limits, negative if the angle of one splitter is beyond π/2.
    width = np.cos(2 * splitters[..., 0]) * np.cos(2 * splitters[..., 1])
    above = np.sin(half + total) * np.sin(half - total) * np.sign(width)
    below = np.cos(half + difference) * np.cos(half - difference) * np.sign(width)
    return 2 * np.arctan2(np.sqrt(np.maximum(above, 0)), np.sqrt(np.maximum(below, 0)))


def _broadcast(name, value, shape):
    """Returns the value as a finite float64 array of this shape."""
    array = _checks.array(name, value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        expected = f"an array that broadcasts to the shape {shape}"
        raise _checks.error(name, expected, f"shape {array.shape}") from None


def compensated(phases: MeshPhases, crosstalk, low: float | None = None) -> MeshPhases:
    """Solves for the phases to set so that, with crosstalk, light acquires given ones.

    With `low`, whole turns are added to the acquired phases, their signs compensated as
    in `mesh.wrapped`, until the phases to set lie in [low, low + 2π).

    A few phases may stay out of reach: with mutual heating, settings in [low, low + 2π)
    may cover slightly less than one turn of the acquired phase. Such phases are set to
    the nearer end of the range. With n shifters and a crosstalk of ε to each of a few
    neighbours, this affects about n ε² phases, each by about ε² rad.

    Args:
        phases: `MeshPhases` that the light is to acquire.
        crosstalk: Array of shape (2 n, 2 n), n the number of slots. Maps the phases
            that are set to those acquired, first θ, then φ, column by column. Rows and
            columns of slots without a cell are ignored.
        low: `None`, or the lowest phase to set, in rad, at the start of the turn.

    Returns:
        `MeshPhases` to set.

    Raises:
        ValueError: If `crosstalk` has another shape, is not finite, or is singular, or
            `low` is not finite.

    Example:

    >>> bar = MeshPhases([[np.pi], [0]], np.zeros((2, 1)), [0, 0])
    >>> compensated(bar, 1.1 * np.eye(4)).theta.round(4)
    array([[2.856],
           [0.   ]])
    """
    low = _checks.optional(_checks.real, "low", low)
    modes, arrangement = phases.gamma.size, phases.arrangement
    mask = mesh.cell_mask(modes, arrangement)
    shape = (2 * mask.size, 2 * mask.size)
    crosstalk = _checks.array("crosstalk", crosstalk, shape, broadcast=False)
    cells = np.stack([mask, mask])
    among = crosstalk[np.ix_(cells.ravel(), cells.ravel())]

    def spread(values):
        both = np.zeros(cells.shape)
        both[cells] = values
        return both

    wanted = np.stack([phases.theta, phases.phi])[cells]
    try:
        if low is None:
            to_set = np.linalg.solve(among, wanted)
            return MeshPhases(*spread(to_set), phases.gamma, arrangement)
        inverse = np.linalg.inv(among)
    except np.linalg.LinAlgError:
        expected = "an invertible matrix"
        raise _checks.error("crosstalk", expected, "a singular one") from None
    # How far a setting moves for one turn of its acquired phase, in turns.
    step = np.maximum(np.diag(inverse), 0.1)
    # Each of two neighbouring turns covers half of the gap between them; the last term
    # accepts phases that are out of range by rounding only.
    margin = np.maximum(0, np.pi * (step - 1)) + 1e-12
    turns = np.zeros(wanted.size)
    best, least = None, np.inf
    for count in range(_ROUNDS + _SINGLE_ROUNDS):
        of_phi, of_gamma = mesh.half_turns(spread(turns)[0], modes, arrangement)
        halves = np.stack([np.zeros(mask.shape), of_phi])[cells]
        to_set = inverse @ (wanted + np.pi * (2 * turns + halves)) - low
        beyond = np.linalg.norm(to_set - np.clip(to_set, 0, 2 * np.pi))
        if beyond < least:
            best, least = (to_set, of_gamma.numpy()), beyond
        excess = np.maximum(-to_set, to_set - 2 * np.pi) - margin
        outside = excess > 0
        if not outside.any():
            break
        if count >= _ROUNDS:
            # Neighbours that move together may push each other back forever.
            outside = np.arange(wanted.size) == np.argmax(excess)
        turns -= np.where(outside, np.floor((to_set + margin) / (2 * np.pi * step)), 0)
    to_set, of_gamma = best
    to_set = np.clip(to_set, 0, np.nextafter(2 * np.pi, 0))
    gamma = np.mod(phases.gamma + np.pi * of_gamma - low, 2 * np.pi)
    gamma = np.where(gamma < 2 * np.pi, gamma, 0)
    return MeshPhases(*spread(to_set + low), gamma + low, arrangement)
