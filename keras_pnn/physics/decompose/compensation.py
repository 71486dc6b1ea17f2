"""Compensate the thermal crosstalk between the phase shifters of a mesh."""

import numpy as np

from keras_pnn import _checks
from keras_pnn.physics import mesh
from keras_pnn.physics.decompose.mesh_phases import MeshPhases

# Rounds in which phases move by whole turns: first all at once, then one in each
# round. A few rounds suffice for weak crosstalk.
_ROUNDS, _SINGLE_ROUNDS = 20, 200


def compensated(phases: MeshPhases, crosstalk, low: float | None = None) -> MeshPhases:
    """Solves for the phases to set so that crosstalk turns them into given ones.

    A shifter heats its neighbours in proportion to the phase that is set, so that one
    more turn changes the mesh. With `low`, turns are added to the acquired phases,
    and their signs compensated as in `mesh.wrapped`, until the phases to set lie in
    [low, low + 2π).

    A few phases may stay out of reach: with mutual heating, a setting slightly above
    `low` and one slightly below a turn more leave a gap between them. Such phases are
    set to the nearer end of the range. With n shifters and a crosstalk of ε to each of
    a few neighbours these are about n ε² phases, each off by the order of ε² rad.

    Args:
        phases: `MeshPhases` that the light shall acquire.
        crosstalk: Array of shape (2 n, 2 n), n the number of slots: the acquired
            phases for those that are set, first θ, then φ, column by column. Rows and
            columns of slots without a cell are ignored.
        low: `None`, or the lowest phase to set, in rad: all shall lie within the
            turn that starts there.

    Returns:
        `MeshPhases` to set.

    Raises:
        ValueError: If `crosstalk` has another shape, is not finite, or is singular.

    Example:

    >>> bar = MeshPhases([[np.pi], [0]], np.zeros((2, 1)), [0, 0])
    >>> compensated(bar, 1.1 * np.eye(4)).theta.round(4)
    array([[2.856],
           [0.   ]])
    """
    modes, arrangement = phases.gamma.size, phases.arrangement
    mask = mesh.cell_mask(modes, arrangement)
    crosstalk = _checks.array("crosstalk", crosstalk)
    if crosstalk.shape != (2 * mask.size, 2 * mask.size):
        expected = f"of shape {(2 * mask.size, 2 * mask.size)}"
        raise _checks.error("crosstalk", expected, f"shape {crosstalk.shape}")
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
    # The shift of a setting by one turn of its acquired phase, in turns.
    step = np.maximum(np.diag(inverse), 0.1)
    # Half of the gap between neighbouring turns goes to each of them; the last term
    # keeps phases that are 0 but for rounding.
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
            # Neighbours that move at once may push each other back forever.
            outside = np.arange(wanted.size) == np.argmax(excess)
        turns -= np.where(outside, np.floor((to_set + margin) / (2 * np.pi * step)), 0)
    to_set, of_gamma = best
    to_set = np.clip(to_set, 0, np.nextafter(2 * np.pi, 0))
    gamma = np.mod(phases.gamma + np.pi * of_gamma - low, 2 * np.pi)
    gamma = np.where(gamma < 2 * np.pi, gamma, 0)
    return MeshPhases(*spread(to_set + low), gamma + low, arrangement)
