"""Fitting a model's imperfections to what a device measures: its digital twin."""

import copy
import dataclasses
import functools
import time
from collections.abc import Iterable

import keras
import numpy as np

from keras_pnn.devices.process import count, number, short
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.hardware import readings as _readings
from keras_pnn.hardware.calibration import fitting as _fitting
from keras_pnn.layers.context import measured_by
from keras_pnn.layers.lookup import architecture, find, physical_layers, quantities
from keras_pnn.layers.quantity import Quantity

_PARTS = ("fit_before", "fit_after", "held_out_before", "held_out_after")


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` found, and how.

    A residual is √(Σ|model − device|² / Σ|device|²) over the readings of a layer.

    Args:
        device: the digital twin, a `SimulatedDevice` with the deviations that were
            fitted.
        residuals: layer → `fit_before`, `fit_after` (the readings that were fitted),
            `held_out_before` and `held_out_after` (the others). Before: with the
            imperfections that the model had.
        imperfections: what was fitted → `unit`, `prior` (standard deviation),
            `unknowns` (how many numbers), `at_limit` (how many of them went as far as
            they may, 10 standard deviations) and `rms` (of the deviations found).
        samples: layer → inputs that were measured at each setting of the controls.
        settings: settings of the controls, the present ones included.
        settings_held_out: how many of these were held out.
        holdout: as given.
        noise: as given.
        iterations: of the search, for all layers together.
        converged: whether the search ended by its tolerance everywhere.
        tolerance: as given.
        seed: as given.
        seconds: how long it took, measurements included.
    """

    device: SimulatedDevice
    residuals: dict[str, dict[str, float]]
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

    def to_dict(self) -> dict:
        """Returns everything but the device, ready for JSON."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "device"
        }
        return copy.deepcopy(values)

    def table(self) -> str:
        """Returns residuals and imperfections as tables of text."""
        width = max(len(n) for n in ("", *self.residuals, *self.imperfections))
        lines = [
            f"{'':{width}} {'fitted':^21} {'held out':^21}",
            f"{'residual':{width}}" + f" {'before':>10} {'after':>10}" * 2,
        ]
        for name, values in self.residuals.items():
            cells = " ".join(f"{values[part]:>10.2e}" for part in _PARTS)
            lines.append(f"{name:{width}} {cells}")
        lines.append(
            f"{'deviation':{width}} {'rms':>10} {'prior':>10} {'unit':>10} "
            f"{'unknowns':>10} {'at limit':>10}"
        )
        for name, row in self.imperfections.items():
            lines.append(
                f"{name:{width}} {row['rms']:>10.4g} {row['prior']:>10.4g} "
                f"{row['unit']:>10} {row['unknowns']:>10} {row['at_limit']:>10}"
            )
        samples = ", ".join(str(n) for n in dict.fromkeys(self.samples.values()))
        lines.append(
            f"{self.settings} settings ({self.settings_held_out} held out) of "
            f"{samples} samples ({self.holdout:.0%} held out), noise {self.noise:g}, "
            f"{self.iterations} iterations, "
            f"{'converged' if self.converged else 'not converged'}, "
            f"seed {self.seed}, {self.seconds:.1f} s"
        )
        return "\n".join(lines)

    def __str__(self):
        return self.table()


def calibrate(
    model: keras.Model,
    device,
    inputs,
    imperfections=None,
    settings: int = 8,
    spread: dict[str, float] | None = None,
    probes: int | None = None,
    holdout: float = 0.25,
    prior: dict[str, float] | None = None,
    noise: float = 1e-3,
    iterations: int = 2000,
    tolerance: float = 1e-9,
    seed: int = 0,
    verbose: int | str = 1,
) -> Calibration:
    """Fits the imperfections of a model to a device's measurements.

    The device first runs the model over `inputs`, layer by layer, which gives the
    measured inputs of each physical layer. Each layer is then measured on these and on
    random probes, at the present controls and at random ones, since one setting does
    not tell a splitter from a phase, or a shifted ring from a wide one. The most
    probable imperfections z, in units of their prior's standard deviation, minimise

        ½ Σ |model(z) − device|² / (noise · rms of the layer's readings)² + ½ ‖z‖²

    by L-BFGS with the model's gradient, in float64 where the layer's `forward` allows.
    What no reading depends on stays at its nominal value. Layers are fitted one by one,
    except where they share an imperfection of the chip, such as its temperature. The
    model is left as it was.

    The search starts from the model's present imperfections, and is local: phases that
    may be anywhere in [0, 2π) need a start, and rings that are shifted by more than
    their half-width may need more settings, such as 32. Where it ends far from the
    readings, it is repeated with readings that count little at first, and the better
    end is taken; a residual that stays large says that neither is the answer. It goes
    no further than 10 standard deviations of the prior (`at_limit` counts what rests
    there), from a start beyond them too, and losses in dB stay at 0 or above.

    Random controls are, if `spread` does not say: for rings, those that take them
    through their resonance; between the limits of a `ControlRange`; any phase for
    controls in rad; else the present value plus or minus the rms of all. The
    constraint of the variable is applied to them.

    Args:
        model: a built model with physical layers, wrapped or not.
        device: a `HardwareDevice`, a `SimulatedDevice`, or an object with
            `measure(layer, inputs, controls)` on eager tensors. Layers that a device
            leaves to the model (`HardwareDevice(layers=...)`, or a `measure` that
            returns `None`) are not fitted.
        inputs: inputs of the model, an array or a structure of arrays.
        imperfections: names, as in `find_imperfections`: `"resonance_shift"` in all
            layers or `"mrr_bank_1/resonance_shift"` in one. Default: all.
        settings: settings of the controls, at least 2, the present one among them.
            Each costs a layer one configuration and one measurement of all samples.
        spread: control → largest random step from its present value, in its unit;
            names as in `imperfections`. 0 leaves a control alone.
        probes: random inputs of each layer, within the range of its own inputs.
            Default: as many as its own.
        holdout: share of settings, and of samples at the other settings, that is
            measured but not fitted; above 0 and below 1.
        prior: imperfection → standard deviation in its unit, names as in
            `imperfections`; those of what is not fitted are not used. Default: by
            unit, 0.1 rad, nm and dB, 2 K, 1 degree, 1 px, and 0.05 for pure numbers.
        noise: standard deviation of a reading's error, relative to the layer's rms
            reading. A larger one trusts the prior more.
        iterations: the most that the search takes, for each layer.
        tolerance: the search ends where a step reduces the sum by less than this
            share of it.
        seed: of random controls, probes and what is held out.
        verbose: 0 is silent, 1 or `"auto"` shows progress bars.

    Returns:
        A `Calibration`, whose `device` is the digital twin.

    Raises:
        ValueError: an argument is not as described, the device names a layer that the
            model lacks, nothing is left to fit, or a reading has another shape, is
            complex where the layer is real or real where it is complex, or is not
            finite.
        DeviceError: a `HardwareDevice` failed for good.

    Example:

    ```python
    twin = pnn.calibrate(model, bench, x_train[:64])
    print(twin)
    sat = pnn.SATModel(model, rho=0.3, device=twin.device)
    pnn.devices.DeviceSet([twin.device]).save("chip.npz")
    ```

    Reference:

    - Nocedal, Wright, Numerical Optimization (2006), chapters 7 and 10.
    """
    started = time.perf_counter()
    settings, seed = count("settings", settings), count("seed", seed)
    if settings < 2:
        raise ValueError(
            "`settings` must be at least 2: at one setting of the controls many "
            f"imperfections look alike. Received: settings={settings}"
        )
    holdout = number("holdout", holdout, above=0)
    if holdout >= 1:
        raise ValueError(f"`holdout` must be below 1. Received: holdout={holdout}")
    noise = number("noise", noise, above=0)
    tolerance = number("tolerance", tolerance, minimum=0)
    if count("iterations", iterations) < 1:
        raise ValueError("`iterations` must be at least 1. Received: iterations=0")
    if probes is not None:
        probes = count("probes", probes)
    search = functools.partial(
        _fitting.search, iterations=iterations, tolerance=tolerance, verbose=verbose
    )
    inputs = _checked_inputs(inputs)
    wanted = _wanted(model, imperfections)
    prior = _numbers(model, "prior", prior, "imperfections", above=0)
    spread = _numbers(model, "spread", spread, "controls", minimum=0)
    read = _readings.reader(device, model)
    with _fitting.unchanged(model):
        recorder = _readings.Recorder(read)
        with measured_by(recorder):
            model(inputs, training=False)
        wanted = [t for t in wanted if t.layer in recorder]
        if not wanted:
            raise ValueError(
                "The device must measure a layer that has an imperfection to fit. "
                "Received: a device that leaves all of them to the model"
            )
        unknowns = _fitting.unknowns_of(wanted, prior, quantities(model))
        layers = [
            (layer, np.random.default_rng([seed, position]))
            for position, layer in enumerate(physical_layers(model))
            if any(layer is t.layer for t in wanted)
        ]
        plans = [
            _plan(layer, *recorder.seen(layer), settings, spread, probes, rng)
            for layer, rng in layers
        ]
        bar = _fitting.progress_bar(settings * len(plans), "setting", verbose)
        measured = []
        for (layer, rng), (samples, controls, output) in zip(
            layers, plans, strict=True
        ):
            outputs = []
            for reading in _readings.measure(layer, samples, controls, output, read):
                outputs.append(reading)
                bar.add(1)
            fit = _readings.split(settings, len(samples), holdout, rng)
            measured.append(
                _readings.Readings(layer, samples, controls, np.stack(outputs), fit)
            )
        fitted = _fitted(model, measured, unknowns, noise, search)
    return Calibration(
        **fitted,
        samples={m.layer.name: len(m.inputs) for m in measured},
        settings=settings,
        settings_held_out=_readings.share(holdout, settings),
        holdout=holdout,
        noise=noise,
        tolerance=tolerance,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _plan(layer, own, output, settings: int, spread: dict, probes, rng) -> tuple:
    """What a layer is measured on, at which controls, and what an output is like."""
    extra = len(own) if probes is None else probes
    samples = np.concatenate([own, _readings.probes_like(own, extra, rng)])
    return samples, _readings.settings_of(layer, settings, spread, rng), output


def _fitted(model, measured, unknowns, noise: float, search) -> dict:
    """Device, residuals, imperfections, iterations, and whether they converged."""
    residuals, deviations, summaries = {}, {}, {}
    iterations, converged = 0, True
    for group, mine in _fitting.groups_of(measured, unknowns):
        with _fitting.in_float64(group):
            problem = _fitting.Problem(group, mine, noise)
            before = problem.residuals(problem.start)
            z, steps, ended = search(problem)
            after = problem.residuals(z)
        iterations, converged = iterations + steps, converged and ended
        for name in before:
            residuals[name] = {
                "fit_before": before[name]["fit"],
                "fit_after": after[name]["fit"],
                "held_out_before": before[name]["held_out"],
                "held_out_after": after[name]["held_out"],
            }
        for unknown, part in zip(mine, problem.split(z), strict=True):
            deviations.update(unknown.deviations(part))
            summaries[unknown.label] = unknown.summary(part)
    # In the model's order, not in that of the groups.
    keys = [(t.name, t.index) for t in quantities(model)]
    deviations = {key: deviations[key] for key in keys if key in deviations}
    shapes = architecture(model, {name for name, _ in deviations})
    return {
        "device": SimulatedDevice(deviations, shapes, "calibrated"),
        "residuals": {m.layer.name: residuals[m.layer.name] for m in measured},
        "imperfections": {u.label: summaries[u.label] for u in unknowns},
        "iterations": iterations,
        "converged": converged,
    }


# What the arguments mean.


def _checked_inputs(inputs):
    if inputs is None:
        raise ValueError("`inputs` must be arrays. Received: None")
    inputs = keras.tree.map_structure(np.asarray, inputs)
    arrays = keras.tree.flatten(inputs)
    lengths = {len(a) if a.ndim else 0 for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`inputs` must have one length, at least 1. "
            f"Received: lengths {sorted(lengths)}"
        )
    if not all(np.isfinite(a).all() for a in arrays if a.dtype.kind in "fc"):
        raise ValueError("`inputs` must be finite. Received: NaN or infinity")
    return inputs


def _wanted(model, names) -> list[Quantity]:
    """The imperfections that names address, of layers with a name of their own."""
    found = [t for t in quantities(model) if t.nominal is not None]
    if names is not None:
        given, names = names, [names] if isinstance(names, str) else names
        names = list(names) if isinstance(names, Iterable) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(
                "`imperfections` must be a name or several names. "
                f"Received: {short(given)}"
            )
        chosen = {id(q.variable) for name in names for q in find(model, name)}
        found = [t for t in found if id(t.variable) in chosen]
    if not found:
        raise ValueError(
            "There must be an imperfection to fit, in a physical layer that is built. "
            f"Received: model '{model.name}', imperfections={names}"
        )
    layers = [la.name for la in physical_layers(model)]
    twice = sorted({name for name in layers if layers.count(name) > 1})
    if twice:
        raise ValueError(
            "The physical layers of a model that is calibrated must have names of "
            f"their own. Received: {', '.join(twice)} more than once"
        )
    return found


def _numbers(model, argument: str, values, kind: str, **limits) -> dict[str, float]:
    """The checked numbers of `prior` or `spread`."""
    if not isinstance(values, dict | None):
        raise ValueError(
            f"`{argument}` must be a dict of numbers. Received: {short(values)}"
        )
    known = dict.fromkeys(
        name
        for la in physical_layers(model)
        for own in getattr(la, kind)
        for name in (own, f"{la.name}/{own}")
    )
    for name in values or {}:
        if name not in known:
            raise ValueError(
                f"`{argument}` must name {kind} of the model: {', '.join(known)}. "
                f"Received: {name!r}"
            )
    return {
        name: number(f"{argument}[{name!r}]", value, **limits)
        for name, value in (values or {}).items()
    }
