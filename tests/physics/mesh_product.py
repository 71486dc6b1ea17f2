"""Multiply a mesh cell by cell in NumPy, as tests of meshes expect it."""

import numpy as np
import pytest

both = pytest.mark.parametrize("arrangement", ["clements", "reck"])


def shape(modes, arrangement="clements"):
    return (modes if arrangement == "clements" else 2 * modes - 3, modes // 2)


def places(modes, arrangement="clements"):
    """(column, slot, upper mode) of all cells, in the order of light."""
    if arrangement == "clements":
        found = [(c, m) for c in range(modes) for m in range(c % 2, modes - 1, 2)]
    else:
        ends = ((m, 2 * modes - 3 - m) for m in range(modes))
        found = sorted((c, first) for first, end in ends for c in range(first, end, 2))
    return [(c, m // 2, m) for c, m in found]


def splitter(error):
    c, s = np.cos(np.pi / 4 + error), np.sin(np.pi / 4 + error)
    return np.moveaxis(np.array([[c, 1j * s], [1j * s, c]]), (0, 1), (-2, -1))


def cell(theta, phi, first=0.0, second=0.0):
    """Splitter, arms, splitter, output phase; elementwise over arrays of angles."""
    arms = np.exp(np.multiply.outer(theta, [0.5j, -0.5j]))
    product = splitter(second) * arms[..., None, :] @ splitter(first)
    return np.exp(np.multiply.outer(phi, [1j, 0]))[..., None] * product


def product(
    theta,
    phi,
    gamma,
    arrangement="clements",
    theta_error=0.0,
    phi_error=0.0,
    splitter_error=0.0,
    loss_db=0.0,
    straight_loss_db=0.0,
):
    """The matrix of a mesh."""
    grid = shape(len(gamma), arrangement)
    splitters = np.broadcast_to(splitter_error, (*grid, 2))
    angles = theta + theta_error, phi + phi_error, splitters[..., 0], splitters[..., 1]
    amplitude = 10 ** (-np.broadcast_to(loss_db, grid) / 20)
    cells = amplitude[..., None, None] * cell(*angles)
    matrix = np.diag(np.exp(1j * np.asarray(gamma)))
    by_column = {column: [] for column in range(grid[0])}
    for column, slot, mode in places(len(gamma), arrangement):
        by_column[column].append((slot, mode))
    for column, found in by_column.items():
        behind = matrix * 10 ** (-straight_loss_db / 20)
        for slot, mode in found:
            pair = slice(mode, mode + 2)
            behind[pair] = cells[column, slot] @ matrix[pair]
        matrix = behind
    return matrix


def errors(modes, arrangement, sigma, seed, draw="normal"):
    rng = np.random.default_rng(seed)
    grid = shape(modes, arrangement)
    ends = (0, sigma) if draw == "normal" else (-sigma, sigma)
    sizes = {"theta_error": grid, "phi_error": grid, "splitter_error": (*grid, 2)}
    return {name: getattr(rng, draw)(*ends, size) for name, size in sizes.items()}


def neighbours(modes, arrangement, strength):
    """Crosstalk that falls off from shifter to shifter."""
    index = np.arange(2 * np.prod(shape(modes, arrangement)))
    apart = np.abs(np.subtract.outer(index, index))
    return np.where(apart == 0, 1.0, strength * np.exp(-1.0 * apart))
