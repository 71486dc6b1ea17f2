"""Price the layers of a model by the devices that they need."""

import collections
import functools
import math

import numpy as np

from keras_pnn.layers.detector_array import DetectorArray
from keras_pnn.layers.detectors import (
    BalancedDetector,
    HomodyneDetector,
    Photodetector,
)
from keras_pnn.layers.diffraction import Aperture, Encode, FreeSpace, Lens
from keras_pnn.layers.diffraction_masks import AmplitudeMask, PhaseMask
from keras_pnn.layers.fields import Use
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.layers.mrr import MRRConv2D
from keras_pnn.layers.mzi import MZIMesh
from keras_pnn.layers.mzi_dense import Attenuators, MZIDense
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.layers.slm import MaskedSLM
from keras_pnn.physics.tuning.signed import has_negative

_CHARGE = 1.602176634e-19  # C
# Costs of each layer that are summed over the model.
SUMS = (
    "multiplications",
    "heaters",
    "heater_mW",
    "heater_worst_mW",
    "modulators",
    "modulator_mW",
    "lasers",
    "laser_loss_mW",
    "laser_shot_noise_mW",
    "photodiodes",
    "detector_mW",
    "converters",
    "converter_mW",
    "power_mW",
    "area_mm2",
    "latency_us",
    "energy_nJ",
)


class Prices:
    """Adds up the costs of layers, use by use.

    `caught` maps the id of a `DetectorArray` to its share of the encoded light.
    """

    def __init__(self, values: dict[str, float], bits: int, caught: dict[int, float]):
        self.values, self.bits, self._caught = values, bits, caught
        self.rows: dict[int, dict] = {}
        # Ids of the layers whose costs are known.
        self.priced: set[int] = set()
        # Id of a mesh → (modes where light is modulated, loss up to its outputs in dB).
        self._light: dict[int, tuple[int, float]] = {}
        # Modulators that the light has passed, from the encoded image on.
        self._passed = 0
        # Frame time in planes of light in µs: the slower of modulator and camera.
        self._frame = 1e6 / min(values["slm.rate"], values["camera.rate"])
        self._electrons = 12 * 4.0**bits
        # The time in µs in which a heater of a bandwidth settles.
        bandwidth = values["heater.bandwidth"]
        self._settling = 1e3 * bits * math.log(2) / (2 * math.pi * bandwidth)

    def add(self, use: Use) -> None:
        """Adds one use of a layer; further uses add only multiplications and time."""
        layer = use.layer
        row = self._row(layer, use)
        if row is None:
            return
        self.priced |= {id(layer), *map(id, physical_layers(layer))}
        if id(layer) in self.rows:
            for key in ("multiplications", "latency_us", "busy_us"):
                self.rows[id(layer)][key] += row.get(key, 0)
        elif row:
            zeros = dict.fromkeys([*SUMS, "busy_us"], 0)
            self.rows[id(layer)] = {"name": layer.name, **zeros, **row}

    @functools.singledispatchmethod
    def _row(self, layer, use: Use) -> dict | None:
        """Returns the costs of a layer, keyed as `SUMS`; `None` if it has no price."""
        return None

    @_row.register
    def _passive(self, layer: FreeSpace | Lens | Aperture, use: Use) -> dict:
        # Its loss is part of the share of light that reaches the detectors.
        return {}

    @_row.register
    def _bank(self, layer: RingLayer, use: Use) -> dict:
        v = self.values
        rows, columns, passes = layer.rows, layer.columns, layer.passes
        places = _product(layer.compute_output_shape(use.shape)[1:]) // layer.outputs
        # The groups of a convolution have separate inputs, one after another.
        groups = layer.groups if isinstance(layer, MRRConv2D) else 1
        time = passes * places * groups * 1e-3 / v["clock.rate"]
        time += passes * self._settling if passes > 1 else 0.0
        loss = v["ring_modulator.loss"] + v["ring.loss"]
        loss += (columns - 1) * v["ring_modulator.passing_loss"]
        loss += (columns - 1) * v["ring.passing_loss"]
        port = getattr(layer.tuning, "port", None)
        balanced = has_negative(layer.tuning) if port is None else port == "balanced"
        controls, imperfections = layer.current_values()
        held = layer.held(layer.as_set(controls), imperfections)
        # Signed weights 2 T − 1 need a reference row without rings. The difference has
        # 5 times the noise variance and twice the range: 5/4 of the electrons.
        noise, reference = (1.25, 1) if layer.signed else (1.0, 0)
        rings, rows = rows * columns, rows + reference
        loss += v["splitter.loss"] * math.ceil(math.log2(rows))
        devices = self._devices(
            heaters=rings,
            adc_bits=layer.adc_bits,
            ring=rings,
            ring_modulator=columns,
            splitter=rows - 1,
            laser=columns,
            photodiode=rows * (2 if balanced else 1),
            amplifier=rows,
            dac=columns,
            adc=rows,
        )
        return {
            **devices,
            **self._lasers(columns, rows * columns, noise * rows, loss),
            "multiplications": places * layer.fan_in * layer.outputs,
            "heater_mW": self._ring_power(layer, held["control"]) / passes,
            "heater_worst_mW": rings * self._highest_ring_power(layer),
            "latency_us": time,
            "busy_us": time,
        }

    def _ring_power(self, layer: RingLayer, control) -> float:
        """Returns the power of all heaters of a bank in mW, all passes added."""
        power = layer.tuning.heater_power(control)
        if power is None:
            shift = layer.tuning.heater_shift(control)
            power = np.asarray(shift, "float64") / self.values["heater.efficiency"]
        return float(np.sum(np.asarray(power, "float64")))

    def _highest_ring_power(self, layer: RingLayer) -> float:
        limit = layer.control_limits[1]
        if math.isinf(limit):
            shift = self.values["ring.free_spectral_range"]
            return shift / self.values["heater.efficiency"]
        control = np.full(layer.controls["control"].shape, limit)
        return self._ring_power(layer, control) / control.size

    @_row.register
    def _mesh(self, layer: MZIMesh | MZIDense | Attenuators, use: Use) -> dict:
        v, modes = self.values, int(use.shape[-1])
        phases, worst, cells, loss = [], 0.0, 0, 0.0
        for part in physical_layers(layer):
            if isinstance(part, MZIMesh):
                found = _phases(part)
                highest = getattr(part.dac, "high", 2 * math.pi)
                if getattr(part.dac, "low", 0.0) < 0:
                    # A heater sets a phase below 0 one turn higher.
                    highest = max(highest, 2 * math.pi)
                cells += int(part.quantity("theta").exists.sum())
                loss += self._mesh_loss(part)
            else:
                amplitude = np.asarray(part.controls["attenuation"], "float64")
                found, highest = [2 * np.arcsin(np.clip(amplitude, 0, 1))], math.pi
                cells += amplitude.size
                loss += v["cell.loss"]
            phases += found
            worst += highest * sum(phase.size for phase in found)
        heaters = sum(phase.size for phase in phases)
        before = (modes, self._modulation_loss(modes))
        modulated = use.source is None
        if not modulated:
            before = self._light.get(id(use.source), before)
        self._light[id(layer)] = before[0], before[1] + loss
        places = _product(use.shape[1:-1])
        time = places * 1e-3 / v["clock.rate"]
        devices = {"cell": cells}
        if modulated:
            devices |= {"mzi_modulator": modes, "splitter": modes - 1}
            devices |= {"laser": 1, "dac": modes}
        attenuators = isinstance(layer, Attenuators)
        per_pi = v["heater.power_per_pi"] / math.pi
        return {
            **self._devices(heaters=heaters, **devices),
            "multiplications": 0 if attenuators else places * modes * layer.units,
            "heater_mW": sum(float(np.sum(phase)) for phase in phases) * per_pi,
            "heater_worst_mW": worst * per_pi,
            "latency_us": time if modulated else 0,
            "busy_us": time,
        }

    def _modulation_loss(self, modes: int) -> float:
        splitting = self.values["splitter.loss"] * math.ceil(math.log2(modes))
        return self.values["mzi_modulator.loss"] + splitting

    def _mesh_loss(self, mesh: MZIMesh) -> float:
        """Returns the loss of the longest path in dB."""
        if np.any(mesh.loss_db):
            exists = mesh.quantity("theta").exists
            losses = np.where(exists, mesh.loss_db, 0.0)
            return float(losses.max(axis=1).sum())
        return mesh.controls["theta"].shape[0] * self.values["cell.loss"]

    @_row.register
    def _detector(
        self, layer: Photodetector | BalancedDetector | HomodyneDetector, use: Use
    ) -> dict:
        v, modes = self.values, int(use.shape[-1])
        outputs = layer.compute_output_shape(use.shape)[-1]
        homodyne = isinstance(layer, HomodyneDetector)
        if homodyne or isinstance(layer, BalancedDetector):
            diodes, amplifiers = 2 * outputs, outputs
        else:
            # `normalize` also needs the power at the other ports.
            diodes = amplifiers = modes if layer.normalize else outputs
        spread, loss = self._light.get(id(use.source), (0, 0.0))
        lasers = {}
        if spread and homodyne:
            # Readings are signed differences: with n electrons of the signal and n of
            # the reference, their noise variance is 2n and their range 4n.
            lasers = self._lasers(1, spread, spread / 8, loss + v["splitter.loss"])
            reference = max(v["homodyne.reference"], self._reading / 8)
            stages = 1 + math.ceil(math.log2(outputs))
            reference *= outputs * self._electrical(stages * v["splitter.loss"])
            for name in ("laser_loss_mW", "laser_shot_noise_mW"):
                lasers[name] += reference
        elif spread:
            lasers = self._lasers(1, spread, spread, loss)
        devices = self._devices(
            photodiode=diodes,
            amplifier=amplifiers,
            adc=amplifiers,
            splitter=2 * outputs - 1 if spread and homodyne else 0,
        )
        time = _product(use.shape[1:-1]) * 1e-3 / v["clock.rate"]
        return {**devices, **lasers, "busy_us": time}

    @_row.register
    def _masks(self, layer: MaskedSLM, use: Use) -> dict:
        v = self.values
        frames, height, width = layer.frame_shape
        rate = min(v["display.rate"], v["slm.rate"], v["camera.rate"])
        time = 1e6 * (frames + 1) / rate
        panels = self._panels(height, width)
        pixels = math.prod(layer.controls["mask"].shape[1:])
        return {
            **panels,
            **self._camera(math.prod(layer.grid), rate, v["slm.loss"]),
            "multiplications": layer.units * pixels,
            "modulators": 1 + panels["modulators"],
            "modulator_mW": v["display.power"] + panels["modulator_mW"],
            "latency_us": time,
            "busy_us": time,
        }

    @_row.register
    def _modulated_plane(
        self, layer: Encode | PhaseMask | AmplitudeMask, use: Use
    ) -> dict:
        height, width = layer.compute_output_shape(use.shape)[1:]
        self._passed += 1
        multiplications = height * width
        if isinstance(layer, Encode):
            self._passed, multiplications = 1, 0
            # Dark pixels around an image need no modulator.
            height, width = height - 2 * layer.padding, width - 2 * layer.padding
        panels, time = self._panels(height, width), self._frame
        return {**panels, "multiplications": multiplications, "busy_us": time}

    @_row.register
    def _camera_plane(self, layer: DetectorArray, use: Use) -> dict:
        readings = layer.compute_output_shape(use.shape)[1]
        share = self._caught[id(layer)]
        loss = -10 * math.log10(share) if share > 0 else math.inf
        loss += self._passed * self.values["slm.loss"]
        camera, time = self._camera(readings, 1e6 / self._frame, loss), self._frame
        return {**camera, "latency_us": time, "busy_us": time}

    def _panels(self, height: int, width: int) -> dict:
        """Returns number, power and area of the modulators for a frame."""
        v = self.values
        count = math.ceil(height / v["slm.rows"]) * math.ceil(width / v["slm.columns"])
        return {
            "modulators": count,
            "modulator_mW": count * v["slm.power"],
            "area_mm2": 1e-6 * height * width * v["slm.pitch"] ** 2,
        }

    def _camera(self, readings: int, rate: float, loss: float) -> dict:
        """Returns a camera and its laser; `rate` is the frame rate in Hz."""
        v = self.values
        # Light for one electron per exposure in each reading, in mW.
        light = 1e3 * readings * _CHARGE * rate / v["camera.responsivity"]
        light *= 10 ** (loss / 10) / v["laser.wall_plug_efficiency"]
        floor = math.sqrt(12) * 2**self.bits * v["camera.read_noise"]
        return {
            "lasers": 1,
            "laser_loss_mW": floor * light,
            "laser_shot_noise_mW": self._electrons * light,
            "photodiodes": readings,
            "detector_mW": v["camera.power"],
        }

    def _devices(
        self, heaters: int = 0, adc_bits: int | None = None, **counts: int
    ) -> dict:
        """Returns numbers, power and area of the devices on a chip.

        The power of a DAC grows as 2^bits / bits (capacitors), that of an ADC
        in proportion to the bits (successive approximation).
        """
        v, bits, clock = self.values, self.bits, self.values["clock.rate"]
        n = collections.Counter(counts)
        kinds = ("ring_modulator", "mzi_modulator")
        # fJ · GHz is µW.
        modulators = {
            kind: v[f"{kind}.power"] + 1e-3 * v[f"{kind}.energy"] * clock
            for kind in kinds
        }
        readout = n["photodiode"] * v["photodiode.power"]
        readout += n["amplifier"] * v["amplifier.power"]
        scale = (2.0**bits / bits) / (2.0 ** v["dac.bits"] / v["dac.bits"])
        dacs = n["dac"] * v["dac.power"] * scale * clock / v["dac.rate"]
        scale = (bits if adc_bits is None else adc_bits) / v["adc.bits"]
        adcs = n["adc"] * v["adc.power"] * scale * clock / v["adc.rate"]

        def area(kind):
            whole = v.get(f"{kind}.area")
            return v[f"{kind}.length"] * v[f"{kind}.width"] if whole is None else whole

        return {
            "heaters": heaters,
            "modulators": sum(n[kind] for kind in kinds),
            "modulator_mW": sum(n[k] * power for k, power in modulators.items()),
            "photodiodes": n["photodiode"],
            "detector_mW": readout,
            "converters": n["dac"] + n["adc"],
            "converter_mW": dacs + adcs + heaters * v["heater.driver_power"],
            "area_mm2": 1e-6 * sum(count * area(kind) for kind, count in n.items()),
        }

    def _lasers(self, count: int, floors: int, readings: float, loss: float) -> dict:
        """Returns lasers for `floors` photodiodes at their sensitivity, or readings."""
        floor = 10 ** (self.values["photodiode.sensitivity"] / 10)
        through = self._electrical(loss)
        return {
            "lasers": count,
            "laser_loss_mW": floors * floor * through,
            "laser_shot_noise_mW": readings * self._reading * through,
        }

    def _electrical(self, loss: float) -> float:
        """Returns electrical laser power per optical power after a loss in dB."""
        return 10 ** (loss / 10) / self.values["laser.wall_plug_efficiency"]

    @property
    def _reading(self) -> float:
        """The light that a reading needs because of shot noise, in mW."""
        v = self.values
        current = self._electrons * _CHARGE * 1e9 * v["clock.rate"]
        return 1e3 * current / v["photodiode.responsivity"]


def _phases(mesh: MZIMesh) -> list[np.ndarray]:
    """Returns the phases of a mesh's cells and inputs, within one turn."""
    controls, imperfections = mesh.current_values()
    turned = mesh.as_set(controls) if mesh.dac else mesh.within_turn(controls)
    return [
        np.asarray(phase, "float64")[mesh.quantity(name).exists] % (2 * math.pi)
        for name, phase in mesh.held(turned, imperfections).items()
    ]


def _product(sizes) -> int:
    """Returns the product of sizes; unknown sizes count as 1."""
    return math.prod(size or 1 for size in sizes)
