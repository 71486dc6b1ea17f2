"""Hold the results and settings of a calibration."""

import dataclasses

import numpy as np

from keras_pnn._display import Shown, Table
from keras_pnn.devices.simulated import SimulatedDevice

# Factors by which the residual of a suspect exceeds the noise and the median.
_NOISES, _MEDIANS = 3.0, 5.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calibration(Shown):
    """The result of `calibrate`.

    A residual is √(Σ|model − device|² / Σ|device|²) over the readings of a layer.

    Args:
        device: the digital twin, a `SimulatedDevice` with the fitted deviations.
        residuals: layer → `fit_before` and `fit_after` (fitted readings),
            `held_out_before` and `held_out_after` (the other readings), in this order;
            "before" is with the model's imperfections before the fit.
        outputs: layer → the residual of each of its outputs, relative to the mean
            power over all outputs of the layer.
        imperfections: fitted imperfection → `unit`, `prior` (standard deviation),
            `unknowns` (how many numbers), `at_limit` (how many of them reached the
            limit of 10 standard deviations) and `rms` (of the fitted deviations).
        samples: layer → number of inputs measured at each setting of the controls.
        settings: number of settings of the controls, including the present one.
        settings_held_out: how many of these were held out.
        holdout, noise, tolerance, seed: as given.
        iterations: iterations of the search, summed over all layers.
        converged: whether the search reached its tolerance for all layers.
        seconds: duration of the calibration, including measurements.

    Example:

    >>> twin = pnn.calibrate(
    ...     model, bench, x_train[:16], ["resonance_shift"], iterations=20, verbose=0
    ... )
    >>> print(twin.table())
    >>> with twin.device.installed(model):
    ...     model.evaluate(x_test, y_test, verbose=0)
    """

    device: SimulatedDevice
    residuals: dict[str, dict[str, float]]
    outputs: dict[str, list[float]]
    imperfections: dict[str, dict]
    samples: dict[str, int]
    settings: int
    settings_held_out: int
    holdout: float
    noise: float
    iterations: int
    converged: bool
    tolerance: float
    seed: int
    seconds: float

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that were fitted."""
        return tuple(self.residuals)

    @property
    def suspects(self) -> list[tuple[str, int, float]]:
        """Outputs whose readings the fit does not explain: (layer, output, residual).

        Their residual is above 3 times the noise and 5 times the median of the layer's
        outputs; the largest comes first. A control in their row may be stuck; see
        `pnn.Stuck`.
        """
        found = []
        for name, values in self.outputs.items():
            limit = max(_NOISES * self.noise, _MEDIANS * float(np.median(values)))
            found += [(name, i, v) for i, v in enumerate(values) if v > limit]
        return sorted(found, key=lambda suspect: -suspect[2])

    def to_dict(self) -> dict:
        """Returns everything but the device, ready for JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, device=None))
        del values["device"]
        return values

    def _parts(self):
        residuals = [
            (name, *(f"{value:.2e}" for value in values.values()))
            for name, values in self.residuals.items()
        ]
        heads = ("fitted, before", "after", "held out, before", "after")
        deviations = [
            (
                name,
                f"{row['rms']:.4g}",
                f"{row['prior']:.4g}",
                row["unit"],
                str(row["unknowns"]),
                str(row["at_limit"]),
            )
            for name, row in self.imperfections.items()
        ]
        columns = ("deviation", "rms", "prior", "unit", "unknowns", "at limit")
        samples = ", ".join(str(n) for n in dict.fromkeys(self.samples.values()))
        named = [f"{name} output {i} ({v:.2g})" for name, i, v in self.suspects]
        return [
            Table("", ("residual", *heads), residuals),
            Table("", columns, deviations),
            *([f"not explained: {', '.join(named)}"] if named else []),
            f"{self.settings} settings ({self.settings_held_out} held out) of "
            f"{samples} samples ({self.holdout:.0%} held out), noise {self.noise:g}, "
            f"{self.iterations} iterations, "
            f"{'converged' if self.converged else 'not converged'}, "
            f"seed {self.seed}, {self.seconds:.1f} s",
        ]

    def __repr__(self):
        state = "" if self.converged else ", not converged"
        left = (f"{n} {r['held_out_after']:.2g}" for n, r in self.residuals.items())
        return f"<Calibration: held-out residuals {', '.join(left)}{state}>"
