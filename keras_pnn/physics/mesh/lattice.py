"""Place the cells of a mesh on its columns and modes."""

import functools

import numpy as np

from keras_pnn import _checks

ARRANGEMENTS = ("clements", "reck")


def cell_mask(modes: int, arrangement: str = "clements") -> np.ndarray:
    """Returns which slots of the brick pattern hold a cell.

    Slot j of an even column couples the modes (2j, 2j + 1), slot j of an odd column
    the modes (2j + 1, 2j + 2). The rectangle has `modes` columns. The triangle has
    `2 * modes - 3`, and couples the modes (m, m + 1) in the columns m, m + 2, …,
    2 modes - 4 - m.

    Args:
        modes: Integer of 2 or more.
        arrangement: `"clements"`, the rectangle, or `"reck"`, the triangle.

    Returns:
        Read-only boolean array of shape (columns, modes // 2): `False` where the modes
        pass straight.

    Raises:
        ValueError: If `modes` is not an integer of 2 or more, or `arrangement` is
            unknown.

    Example:

    >>> cell_mask(4).astype(int).tolist()
    [[1, 1], [1, 0], [1, 1], [1, 0]]

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    - Reck et al., Phys. Rev. Lett. 73:58 (1994).
    """
    modes = _checks.integer("modes", modes, 2)
    return _cell_mask(modes, _checks.choice("arrangement", arrangement, ARRANGEMENTS))


@functools.lru_cache
def _cell_mask(modes: int, arrangement: str) -> np.ndarray:
    columns = modes if arrangement == "clements" else 2 * modes - 3
    column = np.arange(columns)[:, None]
    top = 2 * np.arange(modes // 2)[None, :] + column % 2
    mask = np.broadcast_to(top + 1 < modes, (columns, modes // 2)).copy()
    if arrangement == "reck":
        mask &= (top <= column) & (column <= 2 * modes - 4 - top)
    mask.flags.writeable = False
    return mask
