"""Hold the masks of a diffractive network, and the light of a few samples."""

import dataclasses

import keras
import numpy as np

from keras_pnn import _keras
from keras_pnn._display import Brief
from keras_pnn.layers import AmplitudeMask, DetectorArray, Lens, PhaseMask
from keras_pnn.layers.light import light_path, on_detectors


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LightPath(Brief):
    """The masks of a diffractive network, and the light of a few samples through it.

    Args:
        phases: name of a `PhaseMask` → (height, width), in rad from 0 to 2π.
        amplitudes: name of an `AmplitudeMask` → (height, width), from 0 to 1.
        light: name of a layer → (samples, height, width), the intensity behind it.
            Lenses and phase masks, which do not change it, are left out; repeated
            names get a number.
        regions: (y, x, height, width) in pixels of each detector on the last plane.
        shares: name → power behind the layer relative to the first one, averaged over
            samples; for a `DetectorArray`, the power on the detectors.

    Example:

    >>> optics = pnn.layers.diffractive(masks=2)
    >>> optics.build((None, 28, 28))
    >>> path = LightPath.of(optics, np.ones((2, 28, 28), "float32"))
    >>> len(path.phases), len(path.light)
    (2, 4)
    """

    phases: dict[str, np.ndarray]
    amplitudes: dict[str, np.ndarray]
    light: dict[str, np.ndarray]
    regions: tuple[tuple[int, int, int, int], ...]
    shares: dict[str, float]

    @classmethod
    def of(cls, model: keras.Model, samples) -> "LightPath | None":
        """Follows samples through a model with its present imperfections.

        Args:
            model: a built model, wrapped or not.
            samples: a few inputs of the model.

        Returns:
            A `LightPath`, or `None` for a model without planes of light.
        """
        masks = {PhaseMask: {}, AmplitudeMask: {}}
        for layer in _keras.flat_layers(model):
            if type(layer) in masks:
                (shown,) = layer.as_set(layer.current_values()[0]).values()
                masks[type(layer)][layer.name] = np.asarray(shown)
        light, shares, regions, first = {}, {}, (), None
        for layer, seen in light_path(model, samples):
            if isinstance(layer, PhaseMask | Lens):
                continue
            name, again = layer.name, 2
            while name in shares:
                name, again = f"{layer.name} ({again})", again + 1
            power = seen.sum((1, 2))
            first = power if first is None else first
            if isinstance(layer, DetectorArray):
                power, regions = on_detectors(layer, seen), layer.placed(seen.shape[1:])
            else:
                light[name] = seen
            shares[name] = float(np.mean(power / np.where(first > 0, first, 1)))
        if not light:
            return None
        phases = {n: phase % (2 * np.pi) for n, phase in masks[PhaseMask].items()}
        return cls(phases, masks[AmplitudeMask], light, regions, shares)

    def to_dict(self) -> dict:
        """Returns the shares and detectors, without the pictures."""
        return {"shares": self.shares, "regions": self.regions}
