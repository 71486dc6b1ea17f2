"""Fit a model's imperfections to a device's measurements: its digital twin."""

import time
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.devices.simulated import SimulatedDevice
from keras_pnn.hardware.calibration.fitting import Problem, in_float64, search
from keras_pnn.hardware.calibration.measurement import (
    Recorder,
    probes_like,
    settings_of,
    share,
    split,
)
from keras_pnn.hardware.calibration.result import Calibration
from keras_pnn.hardware.calibration.unknowns import gather, groups_of
from keras_pnn.layers.context import measured_by, restoring
from keras_pnn.layers.lookup import architecture, find, physical_layers, quantities
from keras_pnn.layers.quantity import Quantity


def calibrate(
    model: keras.Model,
    device,
    inputs,
    imperfections: Sequence[str] | None = None,
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
    """Fits a model's imperfections to a device's measurements.

    The device first runs the model over `inputs`, which gives the measured inputs of
    each physical layer. Each layer is then measured on these and on random probes, at
    the present controls and at random ones: one setting cannot distinguish a splitter
    error from a phase error, or a shifted ring from a wide one. The most probable
    imperfections z, in units of their prior's standard deviation, minimise

        ½ Σ |model(z) − device|² / (noise · rms of the layer's readings)² + ½ ‖z‖²

    by L-BFGS with the model's gradient, in float64 where the layer's `forward` allows.
    Imperfections that no reading depends on stay nominal. Layers are fitted one by one,
    except where they share an imperfection, such as the chip's temperature. The model
    is not changed.

    The search is local, and starts from the model's present imperfections: phases that
    may be anywhere in [0, 2π) need a good start, and rings shifted by more than their
    half-width may need more settings, such as 32. If it ends far from the readings, it
    is repeated with a low initial weight of the readings, and the better result is
    kept. It stays within 10 standard deviations of the prior from nominal, or from a
    start beyond that. Losses in dB stay at 0 or above.

    A stuck control is not fitted: it leaves a residual at its output; see
    `Calibration.suspects`.

    Without `spread`, random controls take rings through their resonance, fill the
    limits of a `ControlRange`, are any phase for controls in rad, and otherwise are the
    present value plus or minus the rms of all values. The variable's constraint is
    applied.

    Args:
        model: a built model with physical layers, wrapped or not.
        device: a `HardwareDevice`, a `SimulatedDevice`, or an object with
            `measure(layer, inputs, controls)` on eager tensors. Layers that a device
            leaves to the model (`HardwareDevice(layers=...)`, or a `measure` that
            returns `None`) are not fitted.
        inputs: inputs of the model, an array or a structure of arrays.
        imperfections: names, `"resonance_shift"` in all layers or
            `"mrr_bank_1/resonance_shift"` in one. Default: all.
        settings: settings of the controls, at least 2, the present one among them.
            Each costs one configuration and one measurement of all samples per layer.
        spread: control → largest random step from its present value, in its unit;
            names as in `imperfections`. 0 leaves a control unchanged.
        probes: random inputs of each layer, within the range of its own inputs.
            Default: as many as its own.
        holdout: share of settings, and of samples at the other settings, that is
            measured but not fitted; above 0 and below 1.
        prior: imperfection → standard deviation in its unit, names as in
            `imperfections`; others are ignored. Default by unit: 0.1 rad, nm or dB,
            2 K, 1 degree, 1 px, 1 mrad, 10 µm, and 0.05 for pure numbers.
        noise: standard deviation of a reading's error, relative to the layer's rms
            reading. A larger value gives the prior more weight.
        iterations: largest number of iterations of the search, for each layer.
        tolerance: the search ends when a step reduces the sum by less than this
            share of it.
        seed: seed of random controls, probes and held-out readings.
        verbose: 0 is silent, 1 or `"auto"` shows progress bars.

    Returns:
        A `Calibration`, whose `device` is the digital twin.

    Raises:
        ValueError: If an argument is not as described, the device names a layer that
            the model lacks, nothing is left to fit, or a reading has another shape, is
            complex where the layer is real or real where it is complex, or is not
            finite.
        DeviceError: If a measurement fails despite retries, or cannot be retried.

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
    # At a single setting of the controls, many imperfections look alike.
    settings = _checks.integer("settings", settings, low=2)
    seed = _checks.integer("seed", seed, low=0)
    holdout = _checks.real("holdout", holdout, above=0, below=1)
    noise = _checks.real("noise", noise, above=0)
    tolerance = _checks.real("tolerance", tolerance, low=0)
    iterations = _checks.integer("iterations", iterations, low=1)
    probes = _checks.optional(_checks.integer, "probes", probes, low=0)
    inputs = keras.tree.map_structure(np.asarray, inputs)
    lengths = {len(a) if a.ndim else 0 for a in keras.tree.flatten(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        expected = "arrays of one length, at least 1"
        raise _checks.error("inputs", expected, f"lengths {sorted(lengths)}")
    _checks.finite("inputs", inputs)
    wanted = _wanted(model, imperfections)
    prior = _numbers(model, "prior", prior, "imperfections", above=0)
    spread = _numbers(model, "spread", spread, "controls", low=0)
    verbose = 0 if verbose == 0 else 1
    recorder = Recorder(device, model)
    with restoring(model.variables):
        with measured_by(recorder):
            model(inputs, training=False)
        wanted = [q for q in wanted if q.layer in recorder]
        if not wanted:
            raise ValueError(
                "The device must measure a layer that has an imperfection to fit. "
                "Received: a device that leaves all of them to the model"
            )
        unknowns = gather(wanted, prior, quantities(model))
        plans = []
        for position, layer in enumerate(physical_layers(model)):
            if any(layer is q.layer for q in wanted):
                rng = np.random.default_rng([seed, position])
                own = recorder.inputs(layer)
                extra = len(own) if probes is None else probes
                samples = np.concatenate([own, probes_like(own, extra, rng)])
                controls = settings_of(layer, settings, spread, rng)
                fit = split(settings, len(samples), holdout, rng)
                plans.append((layer, samples, controls, fit))
        total = settings * len(plans)
        bar = keras.utils.Progbar(total, verbose=verbose, unit_name="setting")
        measured = [recorder.readings(*plan, bar) for plan in plans]
        # In the model's order, which may differ from that of the groups.
        residuals = dict.fromkeys(m.layer.name for m in measured)
        outputs = residuals.copy()
        deviations = dict.fromkeys((q.name, q.index) for q in wanted)
        summaries = dict.fromkeys(u.label for u in unknowns)
        steps, converged = 0, True
        for group, mine in groups_of(measured, unknowns):
            with in_float64(group):
                problem = Problem(group, mine, noise)
                z, taken, ended = search(problem, iterations, tolerance, verbose)
                for part in problem.parts:
                    fit_before, others_before, _ = part.residuals(problem.start)
                    fit_after, others_after, by_output = part.residuals(z)
                    residuals[part.name] = {
                        "fit_before": fit_before,
                        "fit_after": fit_after,
                        "held_out_before": others_before,
                        "held_out_after": others_after,
                    }
                    outputs[part.name] = by_output.tolist()
            steps, converged = steps + taken, converged and ended
            for unknown, found in zip(mine, problem.split(z), strict=True):
                deviations.update(unknown.deviations(found))
                summaries[unknown.label] = unknown.summary(found)
    shapes = architecture(model, {name for name, _ in deviations})
    return Calibration(
        device=SimulatedDevice(deviations, shapes, "calibrated"),
        residuals=residuals,
        outputs=outputs,
        imperfections=summaries,
        samples={m.layer.name: len(m.inputs) for m in measured},
        settings=settings,
        settings_held_out=share(holdout, settings),
        holdout=holdout,
        noise=noise,
        iterations=steps,
        converged=converged,
        tolerance=tolerance,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _wanted(model, names) -> list[Quantity]:
    """Returns the imperfections with given names; layers must have unique names."""
    found = [q for q in quantities(model) if q.nominal is not None and not q.holds]
    if names is not None:
        several = [names] if isinstance(names, str) else names
        several = list(several) if isinstance(several, Iterable) else [None]
        if not all(isinstance(name, str) for name in several):
            expected = "a name or several names"
            raise _checks.error("imperfections", expected, _checks.short(names))
        chosen = {id(q.variable) for name in several for q in find(model, name)}
        found = [q for q in found if id(q.variable) in chosen]
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
    """Checks `prior` or `spread`: numbers by the names of imperfections or controls."""
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise _checks.error(argument, "a dict of numbers", _checks.short(values))
    layers = physical_layers(model)
    owned = [(own, f"{la.name}/{own}") for la in layers for own in getattr(la, kind)]
    known = dict.fromkeys(name for names in owned for name in names)
    for name in values:
        if name not in known:
            expected = f"a dict of {kind} of the model: {', '.join(known)}"
            raise _checks.error(argument, expected, repr(name))
    return {
        name: _checks.real(f"{argument}[{name!r}]", value, **limits)
        for name, value in values.items()
    }
