"""Gather the imperfections that a calibration fits, with their priors and bounds."""

import dataclasses

import numpy as np

from keras_pnn.hardware.calibration.measurement import Readings, of_layer
from keras_pnn.layers.quantity import Quantity

# A usual size of each kind of imperfection, by its unit.
_PRIORS = {"rad": 0.1, "nm": 0.1, "K": 2.0, "dB": 0.1, "deg": 1.0, "px": 1.0, "": 0.05}
_PRIORS |= {"mrad": 1.0, "µm": 10.0}
# Limit of the search around nominal, in standard deviations. Without a limit, the
# search may find a mirror image, such as a negative half-width.
_FARTHEST = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Unknown:
    """One fitted imperfection: of one layer, or of all layers that share it."""

    quantities: tuple[Quantity, ...]  # one for each layer that has it
    std: float  # of the prior

    @property
    def label(self) -> str:
        """The name of the unknown in tables."""
        first = self.quantities[0]
        return first.name if first.shared else first.path

    def start(self) -> np.ndarray:
        """Returns the present deviations, in units of the prior."""
        first = self.quantities[0]
        return first.present[first.exists] / self.std

    def bounds(self) -> np.ndarray:
        """Returns the lowest and highest scaled deviations, (2, slots)."""
        first, (low, high) = self.quantities[0], self._reach()
        # Just inside, where float32 can still tell a value from the bound.
        room = [0.999 * end / self.std for end in first.room]
        low, high = np.maximum(low, room[0]), np.minimum(high, room[1])
        if first.unit == "dB" and "loss" in first.name:
            # A mesh treats a negative loss as 0, where the search would see no slope.
            low = np.maximum(low, -first.nominal / self.std)
        return np.stack([low, high])

    def _reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the search limits, around nominal and around a farther start."""
        start = self.start()
        far = np.where(np.abs(start) > _FARTHEST, start, 0.0)
        return np.minimum(far, 0.0) - _FARTHEST, np.maximum(far, 0.0) + _FARTHEST

    def deviations(self, part: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        """Returns deviations in the form that `SimulatedDevice` takes."""
        found = {}
        for quantity in self.quantities:
            deviation = np.zeros(quantity.exists.shape, quantity.variable.dtype)
            deviation[quantity.exists] = self.std * part
            found[quantity.name, quantity.index] = deviation
        return found

    def summary(self, part: np.ndarray) -> dict:
        """Returns a row of `Calibration.imperfections`."""
        low, high = self._reach()
        room = 1e-3 * _FARTHEST
        at_limit = (part <= low + room) | (part >= high - room)
        rms = float(np.sqrt(np.mean(np.square(self.std * part)))) if part.size else 0.0
        return {
            "unit": self.quantities[0].unit,
            "prior": self.std,
            "unknowns": int(part.size),
            "at_limit": int(np.count_nonzero(at_limit)),
            "rms": rms,
        }


def gather(
    found: list[Quantity], prior: dict[str, float], every: list[Quantity]
) -> list[Unknown]:
    """Gathers imperfections into unknowns, with one unknown for a shared imperfection.

    The prior of a shared imperfection may name any layer in `every` that shares it.
    """
    together: dict[tuple, list[Quantity]] = {}
    for quantity in found:
        key = (quantity.name, None if quantity.shared else quantity.index)
        together.setdefault(key, []).append(quantity)
    unknowns = []
    for same in together.values():
        first = same[0]
        sharing = [q for q in every if first.shared and q.name == first.name] or same
        given = {of_layer(prior, q.layer, q.name) for q in sharing} - {None}
        if len(given) > 1:
            raise ValueError(
                f"`prior` must give one number for '{first.name}', which the layers "
                f"share. Received: {', '.join(f'{std:g}' for std in sorted(given))}"
            )
        if not given and first.unit not in _PRIORS:
            raise ValueError(
                "`prior` must give a standard deviation for an imperfection whose unit "
                f"is not one of {', '.join(u for u in _PRIORS if u)}. "
                f"Received: no prior for '{first.path}' in {first.unit}"
            )
        std = given.pop() if given else _PRIORS[first.unit]
        unknowns.append(Unknown(tuple(same), std))
    return unknowns


def groups_of(measured, unknowns) -> list[tuple[list[Readings], list[Unknown]]]:
    """Returns groups of layers that share unknowns, with all unknowns of each group."""
    groups: list[tuple[list[Readings], list[Unknown]]] = []
    for m in measured:
        mine = [u for u in unknowns if any(q.layer is m.layer for q in u.quantities)]
        linked = [g for g in groups if any(u in g[1] for u in mine)]
        groups = [g for g in groups if g not in linked]
        layers = [*(la for g in linked for la in g[0]), m]
        shared = [*(u for g in linked for u in g[1]), *mine]
        groups.append((layers, list(dict.fromkeys(shared))))
    return groups
