"""Where the cells of a mesh sit, and how they are grouped into tiles."""

import dataclasses
import functools

import numpy as np

ARRANGEMENTS = ("clements", "reck")


def check_modes(modes, name: str = "modes") -> int:
    """Returns `modes` as an int, if it is a whole number of 2 or more.

    Args:
        modes: what was given.
        name: the argument, for the message.

    Raises:
        ValueError: it is no such number.
    """
    whole = isinstance(modes, (int, np.integer)) and not isinstance(modes, bool)
    if not whole or modes < 2:
        raise ValueError(
            f"`{name}` must be a whole number of modes >= 2. Received: {modes!r}"
        )
    return int(modes)


def cell_mask(modes: int, arrangement: str = "clements") -> np.ndarray:
    """Which places of the brick pattern hold a cell.

    Slot j of an even column couples the modes (2j, 2j + 1), slot j of an odd column
    the modes (2j + 1, 2j + 2). The rectangle has `modes` columns. The triangle has
    `2 * modes - 3`, and couples the modes (m, m + 1) in the columns m, m + 2, …,
    2 modes - 4 - m.

    Args:
        modes: Integer of 2 or more.
        arrangement: `"clements"`, the rectangle, or `"reck"`, the triangle.

    Returns:
        Boolean array of shape (columns, modes // 2), not writeable: `False` where
        the modes pass straight.

    Raises:
        ValueError: If `modes` or `arrangement` is none of these.

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    - Reck et al., Phys. Rev. Lett. 73:58 (1994).
    """
    modes = check_modes(modes)
    if not isinstance(arrangement, str) or arrangement not in ARRANGEMENTS:
        raise ValueError(
            f"`arrangement` must be one of {ARRANGEMENTS}. Received: {arrangement!r}"
        )
    return _cell_mask(modes, arrangement)


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


@dataclasses.dataclass(frozen=True, eq=False)
class Followers:
    """Which cells the light of each cell meets next.

    Slots are numbered column by column. The number after the last stands for none.

    Args:
        top: for each slot the next cell on the mode of its upper output.
        bottom: tuple of arrays, for each slot and the number after the last: the
            1st, 2nd, 4th, … cell on the way that leaves every cell by its lower
            output. Ways have ended by the last.
        first: for each mode the first cell that it meets.
    """

    top: np.ndarray
    bottom: tuple[np.ndarray, ...]
    first: np.ndarray


@functools.lru_cache
def followers(modes: int, arrangement: str = "clements") -> Followers:
    """Returns the cells that follow each cell; arguments as in `cell_mask`."""
    mask = cell_mask(modes, arrangement)
    columns, none = len(mask), mask.size
    number = np.arange(none).reshape(mask.shape)
    top, bottom = np.full(none + 1, none), np.full(none + 1, none)
    ahead = np.full(modes, none)
    for column in reversed(range(columns)):
        cells = number[column, mask[column]]
        upper = 2 * np.flatnonzero(mask[column]) + column % 2
        top[cells], bottom[cells] = ahead[upper], ahead[upper + 1]
        ahead[upper] = ahead[upper + 1] = cells
    powers = []
    while (bottom < none).any():
        powers.append(bottom.astype("int32"))
        bottom = bottom[bottom]
    return Followers(top[:none].astype("int32"), tuple(powers), ahead.astype("int32"))


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
    """How the cells of a lattice combine into square tiles.

    The modes are bent to a ring, on which the brick pattern has no ends: the pair
    that closes the ring passes straight. A tile of side s takes s by s cells, set on
    edge, and acts on 2 s neighbouring modes. Tiles form a brick pattern again, of
    half-blocks of s modes in place of modes, so that four of them make one of the
    next size: A, then B and C beside each other, then D.

    Args:
        modes: modes with padding, a multiple of `2 * side`.
        side: side of a tile in cells, a power of two.
        stages: columns of the pattern of tiles.
        blocks: tiles in each of them.
        sources: for each leaf of each tile the slot of its cell, or the number of
            slots where it holds none. The leaves are ordered by their place in the
            tile of two, of four, …, then by tile.
        places: for each slot the leaf that its cell fills, or the number of leaves
            where it holds none.
        straight: for each leaf 1 where two modes pass straight inside the mesh, else
            0.
        beyond: for each leaf 1 where it lies before or behind the mesh, else 0.
    """

    modes: int
    side: int
    stages: int
    blocks: int
    sources: np.ndarray
    places: np.ndarray
    straight: np.ndarray
    beyond: np.ndarray


_BEYOND, _STRAIGHT = -1, -2


@functools.lru_cache
def tiling(modes: int, arrangement: str, side: int) -> Tiling:
    """Returns the tiles of a mesh, of a given side; see `cell_mask` for the rest."""
    mask = _cell_mask(modes, arrangement)
    columns, own = mask.shape
    padded = -(-modes // (2 * side)) * 2 * side
    leaves = np.full((columns, padded // 2, 1), _STRAIGHT)
    slots = np.arange(mask.size).reshape(mask.shape)
    leaves[:, :own, 0] = np.where(mask, slots, _STRAIGHT)
    size = 1
    while size < side:
        leaves, size = _doubled(leaves), 2 * size
    stages, blocks = leaves.shape[:2]
    levels = side.bit_length() - 1
    leaves = leaves.reshape(stages * blocks, *[4] * levels).T.reshape(-1)
    places = np.full(mask.size, leaves.size, "int32")
    filled = np.flatnonzero(leaves >= 0)
    places[leaves[filled]] = filled
    return Tiling(
        modes=padded,
        side=side,
        stages=stages,
        blocks=blocks,
        sources=np.where(leaves < 0, mask.size, leaves).astype("int32"),
        places=places,
        straight=(leaves == _STRAIGHT).astype("float32"),
        beyond=(leaves == _BEYOND).astype("float32"),
    )


def _doubled(leaves: np.ndarray) -> np.ndarray:
    """(stages, blocks, n) → tiles of twice the side, (…, blocks / 2, 4 n).

    The new stage t has B and C in the old stage 2 t, A in the one before and D in the
    one behind. Odd stages begin one half-block further on, before and after.
    """
    old, blocks, inside = leaves.shape
    stages = old // 2 + 1
    empty = np.full((2 * stages + 1 - old, blocks, inside), _BEYOND)
    padded = np.concatenate([empty[:1], leaves, empty[1:]])
    before, middle, behind = padded[0::2], padded[1::2], padded[2::2]
    tiles = []
    for t in range(stages):
        odd = t % 2
        pairs = np.roll(middle[t], -odd, axis=0)
        parts = [before[t][odd::2], pairs[0::2], pairs[1::2], behind[t][odd::2]]
        tiles.append(np.stack(parts, 1).reshape(blocks // 2, 4 * inside))
    return np.stack(tiles)
