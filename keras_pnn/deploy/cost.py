"""Add up power, area, latency and energy of the hardware that a model needs."""

import dataclasses
import os

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn._display import Shown, Table
from keras_pnn.deploy.device_library import Figure, read_library
from keras_pnn.deploy.prices import SUMS, Prices
from keras_pnn.layers.detector_array import DetectorArray
from keras_pnn.layers.diffraction import Encode
from keras_pnn.layers.fields import PlaneOutputs, uses_of
from keras_pnn.layers.light import light_path, on_detectors
from keras_pnn.layers.physical import PhysicalLayer

_SHOWN = {
    "multiplications": "multiplications",
    "heater_mW": "heaters (mW)",
    "heater_worst_mW": "at worst",
    "modulator_mW": "modulators",
    "laser_loss_mW": "lasers, loss",
    "laser_shot_noise_mW": "lasers, shot noise",
    "detector_mW": "detectors",
    "converter_mW": "converters",
    "power_mW": "all (mW)",
    "area_mm2": "area (mm²)",
    "latency_us": "latency (µs)",
    "multiplication_pJ": "pJ per multiplication",
}


@dataclasses.dataclass(frozen=True, repr=False)
class HardwareCost(Shown):
    """Power, area, latency and energy of a model's hardware, by layer and in total.

    Args:
        layers: one dictionary for each layer of optics: `name`; `multiplications` for
            one sample; numbers of `heaters`, `modulators`, `lasers`, `photodiodes` and
            fast `converters`; `heater_mW` as the controls are set, and
            `heater_worst_mW`; `modulator_mW`; `laser_loss_mW` and
            `laser_shot_noise_mW`, electrical; `detector_mW`; `converter_mW`;
            `power_mW` in total, with the larger of the two laser powers; `area_mm2`;
            `latency_us` and `energy_nJ` of one sample; `multiplication_pJ`, the energy
            of one multiplication.
        total: the sums, under the same names.
        bits: the requested precision.
        library: name or path of the library.
        figures: name → (value, unit, source), all numbers of the library.
        left_out: names of layers of optics that the figures do not include.

    Example:

    >>> cost = pnn.hardware_cost(model)
    >>> power = cost.total["power_mW"]
    """

    layers: list[dict]
    total: dict
    bits: int
    library: str
    figures: dict[str, Figure]
    left_out: list[str]

    def to_dict(self) -> dict:
        """Returns everything in JSON's types."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        figures = {name: figure._asdict() for name, figure in self.figures.items()}
        return {**fields, "figures": figures}

    def _parts(self):
        rows = [
            (row["name"], *(f"{row[key]:.4g}" for key in _SHOWN))
            for row in [*self.layers, self.total]
        ]
        parts = [Table("", ("layer", *_SHOWN.values()), rows)]
        note = f"devices: {self.library}; precision: {self.bits} bits"
        if self.left_out:
            note += f"; not included: {', '.join(self.left_out)}"
        return [*parts, note]


def hardware_cost(
    model: keras.Model, library: str | os.PathLike = "silicon", bits: int = 8
) -> HardwareCost:
    """Estimates power, area, latency and energy of the hardware of a model.

    - **Heaters**: their power at the present controls, averaged over the passes of a
      tiled matrix; at worst, all at the highest control or, if that has no limit, at a
      shift by a free spectral range. Controls in nm are converted with the library's
      efficiency. Phases are reduced to one turn.
    - **Lasers**: electrical power. With `laser_loss_mW`, each channel of a bank reaches
      each row, and the light of a mesh each photodiode, at the photodiode's
      `sensitivity`, after the splitters, all losses of the path and, in a mesh, the
      spread over all modes. With `laser_shot_noise_mW`, the shot noise of a full-scale
      reading equals the noise of rounding to `bits` bits: 12 · 4^bits electrons.
    - **Converters**: one for each modulator and each output, whose power depends on
      rate and bits, and a slow one for each heater.
    - **Latency**: one reading per clock cycle for each place of a convolution and each
      pass of a bank. A bank with several passes waits at each until its heaters have
      settled to `bits` bits.
    - **Energy**: a layer's power times its latency, as if it were off, or worked on
      other samples, while other layers work.
    - **Masks**: display, modulator and camera, one frame after another, plus a white
      frame as the reference.
    - **Planes of light**: a modulator for the encoded image and for each mask, with as
      many panels as its pixels need, and a camera; each sample takes one frame of the
      slower of the two. Each pixel of a mask multiplies once. The laser compensates the
      loss of each modulator and the light that misses the detectors for a white image
      and the masks as set. Lenses, apertures and free space are passive.
      Nonlinearities are not included, nor optics that scale a panel's pixels to those
      of the design.

    Area is that of the devices, without waveguides and pads. A design's own `loss_db`
    replaces the library's loss of a cell. Digital layers and memory are not included.

    Args:
        model: a built functional or `Sequential` model, or a wrapper around one.
        library: `"silicon"`, or the path of a YAML file of your own:

            ```yaml
            photodiode:
              sensitivity: {value: -22, unit: dBm, source: "our wafer, lot 12"}
            ```

            Figures that it omits are those of `"silicon"`; see `figures` of the
            result.
        bits: the precision of inputs, and of outputs without `adc_bits`, from 1 to 24.

    Returns:
        A `HardwareCost`.

    Raises:
        ValueError: If the model is not built, is subclassed or has no physical layer,
            or the library is not as described.
        ImportError: If PyYAML is missing, the extra `[cost]`.

    Example:

    >>> cost = pnn.hardware_cost(model, bits=6)
    >>> print(cost)

    Reference:

    - Tait et al., Sci. Rep. 7:7430 (2017): banks. Clements et al., Optica 3:1460
      (2016): meshes. The library names the source of each number.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise _checks.error("model", "a built Keras model", repr(model))
    uses = uses_of(model)
    if uses is None:
        raise ValueError(
            "`model` must be functional or Sequential, since the light of a subclassed "
            f"model cannot be followed. Received: {type(model).__name__}"
        )
    bits = _checks.integer("bits", bits, 1, 24)
    figures = read_library(library)
    values = {name: figure.value for name, figure in figures.items()}
    prices = Prices(values, bits, _caught(model))
    for use in uses:
        prices.add(use)
    rows = [_with_sums(row) for row in prices.rows.values()]
    if not rows:
        expected = "a model with layers of rings, meshes or masks"
        raise _checks.error("model", expected, model.name)
    total = {"name": "all", **{key: sum(r[key] for r in rows) for key in SUMS}}
    optics = [
        layer
        for layer in _keras.flat_layers(model)
        if isinstance(layer, PhysicalLayer | PlaneOutputs)
    ]
    left_out = [layer.name for layer in optics if id(layer) not in prices.priced]
    return HardwareCost(
        rows, _per_multiplication(total), bits, os.fspath(library), figures, left_out
    )


def _caught(model: keras.Model) -> dict[int, float]:
    """Returns id of a `DetectorArray` → its share of the light of a white image."""
    if not any(isinstance(la, DetectorArray) for la in _keras.flat_layers(model)):
        return {}
    inputs = _keras.functional(model).input
    white = keras.tree.map_structure(
        lambda t: np.ones([n or 1 for n in t.shape], t.dtype), inputs
    )
    found, encoded = {}, None
    for layer, light in light_path(model, white):
        power = light.sum()
        if encoded is None or isinstance(layer, Encode):
            encoded = power
        if isinstance(layer, DetectorArray):
            caught = on_detectors(layer, light).sum()
            found[id(layer)] = float(caught / encoded) if encoded > 0 else 0.0
    return found


def _with_sums(row: dict) -> dict:
    lasers = max(row["laser_loss_mW"], row["laser_shot_noise_mW"])
    others = ("heater_mW", "modulator_mW", "detector_mW", "converter_mW")
    row["power_mW"] = lasers + sum(row[name] for name in others)
    row["energy_nJ"] = row["power_mW"] * row.pop("busy_us")
    return _per_multiplication(row)


def _per_multiplication(row: dict) -> dict:
    count = row["multiplications"]
    energy = 1e3 * row["energy_nJ"] / count if count else 0.0
    return {**row, "multiplication_pJ": energy}
