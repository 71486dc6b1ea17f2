"""Price the layers of a model by the devices that they are built of."""

import math

import keras
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
# Of each layer, and added up.
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
    """The costs of layers, added use by use.

    `caught` maps the id of a `DetectorArray` to the share of the encoded light that it
    gets.
    """

    def __init__(self, values: dict[str, float], bits: int, caught: dict[int, float]):
        self.values, self.bits, self._caught = values, bits, caught
        self.rows: dict[int, dict] = {}
        self.parts: list[keras.layers.Layer] = []
        # Layer of fields → (modes where light is modulated, loss up to here in dB).
        self._light: dict[int, tuple[int, float]] = {}
        # Modulators on the way of light since it was encoded.
        self._passed = 0
        # In planes of light a frame of the slower one of modulator and camera, in µs.
        self._frame = 1e6 / min(values["slm.rate"], values["camera.rate"])
        self._electrons = 12 * 4.0**bits
        # The time in µs in which a heater of a bandwidth settles.
        bandwidth = values["heater.bandwidth"]
        self._settling = 1e3 * bits * math.log(2) / (2 * math.pi * bandwidth)

    def add(self, use: Use) -> None:
        """Adds one use of a layer; a second use takes time alone."""
        layer, first = use.layer, id(use.layer) not in self.rows
        if isinstance(layer, RingLayer):
            row = self._bank(use)
        elif isinstance(layer, MZIMesh | MZIDense | Attenuators):
            row = self._mesh(use)
        elif isinstance(layer, Photodetector | BalancedDetector | HomodyneDetector):
            row = self._detector(use)
        elif isinstance(layer, MaskedSLM):
            row = self._masks(use)
        elif isinstance(layer, Encode | PhaseMask | AmplitudeMask):
            row = self._modulated_plane(use)
        elif isinstance(layer, DetectorArray):
            row = self._camera_plane(use)
        elif isinstance(layer, FreeSpace | Lens | Aperture):
            # Passive, with what it loses in the share that reaches the detectors.
            self.parts.append(layer)
            return
        else:
            return
        if first:
            self.parts += [layer, *physical_layers(layer)]
            zeros = dict.fromkeys([*SUMS, "busy_us"], 0)
            self.rows[id(layer)] = {"name": layer.name, **zeros, **row}
        else:
            for key in ("multiplications", "latency_us", "busy_us"):
                self.rows[id(layer)][key] += row.get(key, 0)

    def _bank(self, use: Use) -> dict:
        layer, v = use.layer, self.values
        rows, columns, passes = layer.rows, layer.columns, layer.passes
        shape = layer.compute_output_shape(use.shape)[1:]
        places = _product(shape) // layer.outputs
        # Groups of a convolution have inputs of their own, one after the other.
        groups = layer.groups if isinstance(layer, MRRConv2D) else 1
        time = passes * places * groups * 1e-3 / v["clock.rate"]
        time += passes * self._settling if passes > 1 else 0.0
        loss = v["ring_modulator.loss"] + v["ring.loss"]
        loss += (columns - 1) * v["ring_modulator.passing_loss"]
        loss += (columns - 1) * v["ring.passing_loss"]
        tuning = layer.tuning
        port = getattr(tuning, "port", None)
        balanced = has_negative(tuning) if port is None else port == "balanced"
        controls, imperfections = layer.current_values()
        held = layer.held(layer.as_set(controls), imperfections)
        power = self._ring_power(layer, held["control"])
        # A row without rings for the reference of signed weights, whose noise adds to
        # twice that of a reading of twice the range: 5/4 of the electrons.
        noise, reference = (1.25, 1) if layer.signed else (1.0, 0)
        rings, rows = rows * columns, rows + reference
        diodes = rows * (2 if balanced else 1)
        loss += v["splitter.loss"] * math.ceil(math.log2(rows))
        return {
            "multiplications": places * layer.fan_in * layer.outputs,
            "heaters": rings,
            "heater_mW": power / passes,
            "heater_worst_mW": rings * self._highest_ring_power(layer),
            **self._modulators("ring_modulator", columns),
            **self._lasers(columns, rows * columns, noise * rows, loss),
            **self._readout(diodes, rows),
            "converters": columns + rows,
            "converter_mW": self._dacs(columns)
            + self._adcs(rows, layer.adc_bits)
            + rings * v["heater.driver_power"],
            "area_mm2": self._area(
                ring=rings,
                ring_modulator=columns,
                splitter=rows - 1,
                laser=columns,
                photodiode=diodes,
                amplifier=rows,
                dac=columns,
                adc=rows,
            ),
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

    def _mesh(self, use: Use) -> dict:
        layer, v = use.layer, self.values
        modes = int(use.shape[-1])
        # Whole phases, numbers of heaters and cells, losses of the parts.
        phases, heaters, cells, loss = 0.0, 0, 0, 0.0
        worst = 0.0
        for part in physical_layers(layer):
            if isinstance(part, MZIMesh):
                controls, imperfections = part.current_values()
                turned = part.as_set(controls) if part.dac else None
                turned = turned or part.within_turn(controls)
                turned = part.held(turned, imperfections)
                highest = getattr(part.dac, "high", 2 * math.pi)
                if getattr(part.dac, "low", 0.0) < 0:
                    # A heater sets a phase below 0 as one of the turn above.
                    highest = max(highest, 2 * math.pi)
                for name, phase in turned.items():
                    exists = part.quantity(name).exists
                    found = np.asarray(phase, "float64")[exists]
                    phases += float(np.sum(found % (2 * math.pi)))
                    heaters += found.size
                    worst += found.size * highest
                cells += int(part.quantity("theta").exists.sum())
                loss += self._mesh_loss(part)
            else:
                amplitude = np.asarray(part.controls["attenuation"], "float64")
                angles = 2 * np.arcsin(np.clip(amplitude, 0, 1))
                phases += float(angles.sum())
                heaters += amplitude.size
                worst += amplitude.size * math.pi
                cells += amplitude.size
                loss += v["cell.loss"]
        modulated = use.source is None
        before = (modes, self._modulation_loss(modes))
        if not modulated:
            before = self._light.get(id(use.source), before)
        self._light[id(layer)] = before[0], before[1] + loss
        places = _product(use.shape[1:-1])
        time = places * 1e-3 / v["clock.rate"]
        attenuators = isinstance(layer, Attenuators)
        per_pi = v["heater.power_per_pi"] / math.pi
        row = {
            "multiplications": 0 if attenuators else places * modes * layer.units,
            "heaters": heaters,
            "heater_mW": phases * per_pi,
            "heater_worst_mW": worst * per_pi,
            "converter_mW": heaters * v["heater.driver_power"],
            "area_mm2": self._area(cell=cells),
            "busy_us": time,
        }
        if modulated:
            row |= self._modulators("mzi_modulator", modes)
            row |= {"converters": modes, "latency_us": time}
            row["converter_mW"] += self._dacs(modes)
            row["area_mm2"] += self._area(
                mzi_modulator=modes, splitter=modes - 1, laser=1, dac=modes
            )
        return row

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

    def _detector(self, use: Use) -> dict:
        layer, v = use.layer, self.values
        modes = int(use.shape[-1])
        outputs = layer.compute_output_shape(use.shape)[-1]
        if isinstance(layer, BalancedDetector | HomodyneDetector):
            diodes, amplifiers = 2 * outputs, outputs
        else:
            # The norm needs the ports that are not read, too.
            diodes = amplifiers = modes if layer.normalize else outputs
        row = {
            **self._readout(diodes, amplifiers),
            "converters": amplifiers,
            "converter_mW": self._adcs(amplifiers, None),
            "area_mm2": self._area(
                photodiode=diodes, amplifier=amplifiers, adc=amplifiers
            ),
            "busy_us": _product(use.shape[1:-1]) * 1e-3 / v["clock.rate"],
        }
        if id(use.source) not in self._light:
            return row
        spread, loss = self._light[id(use.source)]
        if not isinstance(layer, HomodyneDetector):
            return row | self._lasers(1, spread, spread, loss)
        # Differences of both signs: readings have noise 2n and the range 4n, with n
        # electrons of the signal and as many of the reference.
        lasers = self._lasers(1, spread, spread / 8, loss + v["splitter.loss"])
        reference = max(v["homodyne.reference"], self._reading / 8)
        stages = 1 + math.ceil(math.log2(outputs))
        reference *= outputs * self._electrical(stages * v["splitter.loss"])
        for name in ("laser_loss_mW", "laser_shot_noise_mW"):
            lasers[name] += reference
        row["area_mm2"] += self._area(splitter=2 * outputs - 1)
        return row | lasers

    def _masks(self, use: Use) -> dict:
        layer, v = use.layer, self.values
        frames, height, width = layer.frame_shape
        rate = min(v["display.rate"], v["slm.rate"], v["camera.rate"])
        time = 1e6 * (frames + 1) / rate
        panels, power, area = self._panels(height, width)
        pixels = math.prod(layer.controls["mask"].shape[1:])
        return {
            "multiplications": layer.units * pixels,
            "modulators": 1 + panels,
            "modulator_mW": v["display.power"] + power,
            **self._camera(math.prod(layer.grid), rate, v["slm.loss"]),
            "area_mm2": area,
            "latency_us": time,
            "busy_us": time,
        }

    def _modulated_plane(self, use: Use) -> dict:
        layer = use.layer
        height, width = layer.compute_output_shape(use.shape)[1:]
        self._passed += 1
        if isinstance(layer, Encode):
            self._passed = 1
            # Dark pixels around an image need no modulator.
            height, width = height - 2 * layer.padding, width - 2 * layer.padding
        panels, power, area = self._panels(height, width)
        return {
            "multiplications": 0 if isinstance(layer, Encode) else height * width,
            "modulators": panels,
            "modulator_mW": power,
            "area_mm2": area,
            "busy_us": self._frame,
        }

    def _camera_plane(self, use: Use) -> dict:
        layer = use.layer
        readings = layer.compute_output_shape(use.shape)[1]
        share = self._caught[id(layer)]
        loss = -10 * math.log10(share) if share > 0 else math.inf
        loss += self._passed * self.values["slm.loss"]
        return {
            **self._camera(readings, 1e6 / self._frame, loss),
            "latency_us": self._frame,
            "busy_us": self._frame,
        }

    def _panels(self, height: int, width: int) -> tuple[int, float, float]:
        """Returns number, power in mW and area in mm² of modulators for a frame."""
        v = self.values
        count = math.ceil(height / v["slm.rows"]) * math.ceil(width / v["slm.columns"])
        area = 1e-6 * height * width * v["slm.pitch"] ** 2
        return count, count * v["slm.power"], area

    def _camera(self, readings: int, rate: float, loss: float) -> dict:
        """Returns a camera and its laser, for readings of a frame, rate in Hz."""
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

    def _modulators(self, kind: str, count: int) -> dict:
        v = self.values
        # fJ · GHz is µW.
        power = v[f"{kind}.power"] + 1e-3 * v[f"{kind}.energy"] * v["clock.rate"]
        return {"modulators": count, "modulator_mW": count * power}

    def _lasers(self, count: int, floors: int, readings: float, loss: float) -> dict:
        """Returns lasers for a number of photodiodes at their floor, or of readings."""
        floor = 10 ** (self.values["photodiode.sensitivity"] / 10)
        through = self._electrical(loss)
        return {
            "lasers": count,
            "laser_loss_mW": floors * floor * through,
            "laser_shot_noise_mW": readings * self._reading * through,
        }

    def _electrical(self, loss: float) -> float:
        """Returns the laser's electrical power over its light behind a loss in dB."""
        return 10 ** (loss / 10) / self.values["laser.wall_plug_efficiency"]

    @property
    def _reading(self) -> float:
        """The light of a reading that shot noise allows, in mW."""
        v = self.values
        current = self._electrons * _CHARGE * 1e9 * v["clock.rate"]
        return 1e3 * current / v["photodiode.responsivity"]

    def _readout(self, diodes: int, amplifiers: int) -> dict:
        power = diodes * self.values["photodiode.power"]
        power += amplifiers * self.values["amplifier.power"]
        return {"photodiodes": diodes, "detector_mW": power}

    def _dacs(self, count: int) -> float:
        """Returns the power in mW; it grows as 2^bits / bits (capacitors)."""
        v, bits, own = self.values, self.bits, self.values["dac.bits"]
        scale = (2.0**bits / bits) / (2.0**own / own)
        return count * v["dac.power"] * scale * v["clock.rate"] / v["dac.rate"]

    def _adcs(self, count: int, bits: int | None) -> float:
        """Returns the power in mW; it grows as the bits (successive approximation)."""
        v, bits = self.values, self.bits if bits is None else bits
        scale = bits / v["adc.bits"]
        return count * v["adc.power"] * scale * v["clock.rate"] / v["adc.rate"]

    def _area(self, **counts: int) -> float:
        """Returns the area of devices in mm²."""
        v = self.values

        def one(kind):
            whole = v.get(f"{kind}.area")
            return v[f"{kind}.length"] * v[f"{kind}.width"] if whole is None else whole

        return 1e-6 * sum(count * one(kind) for kind, count in counts.items())


def _product(sizes) -> int:
    """Returns the product of sizes, of which one that is unknown counts as 1."""
    return math.prod(size or 1 for size in sizes)
