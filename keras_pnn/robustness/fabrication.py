"""Give the devices of a study their deviations: as given, drawn, or scaled."""

import math

import keras
import numpy as np

from keras_pnn.devices import DeviceSet, Variation
from keras_pnn.devices.variation import WAY_OUT
from keras_pnn.layers.lookup import find
from keras_pnn.robustness.specification import Specification

# (name, index) of a variable → by how much it deviates.
Deviations = dict[tuple[str, int], np.ndarray]


class Fabrication:
    """The devices of a study on one model, given or drawn.

    Args:
        model: a built model.
        specification: gives `devices`, or a `variation` with `n` and `seed`: device i
            of a seed is the same for every spread and every `n`.

    Attributes:
        devices: the devices; empty where the study has none.

    Raises:
        ValueError: If a device comes from another architecture, or a name of the
            variation matches nothing.
    """

    def __init__(self, model: keras.Model, specification: Specification):
        self.model, self.seed = model, specification.seed
        self.variation = specification.variation
        self.devices = DeviceSet(specification.devices or ())
        for device in self.devices:
            device.bind(model)
        if self.variation is not None:
            self.devices = self.variation.sample(model, specification.n, self.seed)

    @property
    def labels(self) -> tuple[str, ...]:
        """The devices' names."""
        return tuple(d.label or f"device {i}" for i, d in enumerate(self.devices))

    def deviations(self, device: int | None, factor: float = 1.0) -> Deviations:
        """Returns what a device deviates by, times a factor.

        Args:
            device: its index; `None` for the design, which deviates in nothing.
            factor: for devices of a variation, one on its spreads.
        """
        if device is None:
            return {}
        own = self.devices[device].deviations
        if factor == 1.0:
            return dict(own)
        if self.variation is None:
            return {k: (factor * v).astype(v.dtype) for k, v in own.items()}
        return self.draw(self.variation.scaled(factor), device)

    def draw(self, variation: Variation, device: int) -> Deviations:
        """Draws the deviations of one device from another variation.

        Raises:
            ValueError: If a draw takes an imperfection to what does not exist.
        """
        drawn = variation.deviations(self.model, (self.seed, device))
        arrays = {(q.name, q.index): d.numpy() for q, d in drawn}
        for quantity, _ in drawn:
            quantity.check(arrays[quantity.name, quantity.index], WAY_OUT)
        return arrays

    def spread(self) -> dict[str, float]:
        """Returns imperfection → root mean square deviation over devices and elements.

        An imperfection in which the devices deviate in some layers only is named for
        each of these, "layer/imperfection".
        """
        keys = self.devices[0].deviations.keys() if self.devices else ()
        names = sorted({name for name, _ in keys})
        found = [q for name in names for q in find(self.model, name, weights=True)]
        found = [q for q in found if q.nominal is not None]
        partial = {q.name for q in found if (q.name, q.index) not in keys}
        squares: dict[str, list[np.ndarray]] = {}
        for quantity in found:
            key = quantity.name, quantity.index
            if key not in keys:
                continue
            name = quantity.path if quantity.name in partial else quantity.name
            squares.setdefault(name, []).extend(
                np.square(device.deviations[key][quantity.exists], dtype="float64")
                for device in self.devices
            )
        joined = {name: np.concatenate(parts) for name, parts in squares.items()}
        return {n: math.sqrt(s.mean()) for n, s in joined.items() if s.any()}
