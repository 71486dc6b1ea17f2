"""Try every public name of the installed package: a session from layers to report.

`python tests/smoke.py --apart` also fails if the package comes from this checkout. It
needs none of the extras, and takes about a minute.
"""

import importlib
import inspect
import pathlib
import pkgutil
import sys
import tempfile

import keras
import numpy as np
from models import Bench, banks, compiled, mesh, samples

import keras_pnn


class Noted:
    """The package, which notes the names that are used."""

    def __init__(self):
        self.used = set()

    def __getattr__(self, name):
        self.used.add(name)
        return getattr(keras_pnn, name)


pnn = Noted()


def check_names() -> int:
    """Imports every module, and finds the names that each offers."""
    count = len(keras_pnn.__all__)
    for found in pkgutil.walk_packages(keras_pnn.__path__, "keras_pnn."):
        # The tables of instruments need the extra [instruments].
        if not found.name.endswith("instrument.wiring"):
            module = importlib.import_module(found.name)
            names = getattr(module, "__all__", ())
            assert all(hasattr(module, name) for name in names), found.name
            count += len(names)
    return count


def network(**kwargs):
    """Two microring banks, compiled."""
    return compiled(banks(**kwargs), "adam", metrics=["accuracy"])


def check_layers(folder):
    """Builds every layer, runs it, saves it and loads it."""
    layers = pnn.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.MRRConv2D(3, 3)(inputs)
    x = layers.MZIDense(4)(keras.layers.Flatten()(x))
    x = layers.ADC(8)(layers.ShotNoise(1e4)(layers.Photodetector()(x)))
    x = layers.MZIMesh(4)(layers.Attenuators(4)(x))
    masks = layers.MaskedSLM(2, dac=layers.DAC(8, -1.0, 1.0))(inputs[..., 0])
    outputs = [layers.BalancedDetector()(x), layers.HomodyneDetector()(x), masks]
    images = inputs[..., 0]
    for optics in (
        layers.Encode("intensity", size=8, padding=4),
        layers.Lens(4e-4),
        layers.Aperture(30e-6),
        layers.AmplitudeMask(),
        layers.FreeSpace(1e-4),
        layers.PhaseMask(
            phase_regularizer=layers.PhaseRoughness(0.1),
            phase_constraint=layers.PhaseBlocks(2),
        ),
        layers.Saturable(),
        layers.Threshold(),
        layers.DetectorArray(grid=(2, 1), size=2),
    ):
        images = optics(images)
    outputs.append(images)
    model = keras.Model(inputs, outputs)
    assert len(layers.physical_layers(model)) >= 5
    data = np.random.default_rng(0).random((2, 6, 6, 2), "float32")
    model.save(folder / "layers.keras")
    loaded = keras.models.load_model(folder / "layers.keras")
    assert [o.shape for o in loaded(data)] == [o.shape for o in model(data)]


def check_tunings():
    """Finds the weights of rings by each kind of tuning."""
    control = np.linspace(0, 2, 200)
    curve = 1 - 2 / (1 + ((control - 1) / 0.2) ** 2)
    fitted = pnn.HeaterTuning.fit(control, curve)
    assert isinstance(fitted, pnn.TuningFit)
    tunings = (
        pnn.LorentzianTuning(),
        pnn.HeaterTuning(),
        pnn.MeasuredTuning(control, curve, "nm"),
        pnn.RingTunings([fitted.tuning, pnn.HeaterTuning()]),
    )
    for tuning in tunings:
        assert isinstance(tuning, pnn.Tuning)
        assert np.isfinite(np.asarray(tuning.weight(np.float32([0.3, 0.9])))).all()


def check_training(x, y, chip):
    """Trains by each method, and returns the network that SAT trained."""
    sat = pnn.SATModel(
        network(control_regularizer=pnn.OpticalPruning(1e-3)),
        ascent=pnn.SAM(0.05),
        variation=pnn.Variation(resonance_shift=pnn.Correlated(0.02, 3.0)),
    )
    ascents = [pnn.ASAM(0.5), pnn.ESAM(), pnn.FriendlySAM(), pnn.GSAM(), pnn.LookSAM()]
    ascents += [pnn.MESA(start=0), pnn.SAF(start=0)]
    gradients = [pnn.CentralDifference(), pnn.FeedbackAlignment(), pnn.SPGD()]
    gradients += [pnn.ForwardGradient(), pnn.SPSA()]
    rules = pnn.Autodiff(0.5), pnn.FiniteDifference(0.5, step=0.1)
    trainers = [
        sat,
        *(pnn.SATModel(network(), ascent=ascent) for ascent in ascents),
        *(pnn.SATModel(network(), adversarial={"temperature": r}) for r in rules),
        pnn.SATModel(network(), variation=pnn.Variation(stuck=pnn.Stuck(0.1))),
        *(pnn.SATModel(network(), device=chip, gradient=g) for g in gradients),
        pnn.PATModel(network(), device=chip),
        pnn.DATModel(network(), device=chip, error_networks=1),
    ]
    batches = pnn.datasets.Batches(x, y, batch_size=8)
    for trainer in trainers:
        compiled(trainer, "adam", metrics=["accuracy"])
        history = trainer.fit(batches, verbose=0)
        assert np.isfinite(history.history["loss"]).all(), trainer
    return sat


def check_meshes(x, y):
    """Trains a mesh by the light at its phase shifters, and by shifts."""
    model = mesh()
    chip = pnn.Variation(theta_error=0.1).sample(model, 1)[0]
    # Six thetas, and six phi and four gamma.
    for gradient, settings in ((pnn.Adjoint(), 4), (pnn.ParameterShift(), 45)):
        online = pnn.SATModel(model, ascent=None, device=chip, gradient=gradient)
        compiled(online, "adam")
        online.fit(x, y, verbose=0)
        assert online.measurements == settings * len(x)


def check_local(x, y):
    """Trains two banks, each by a loss of its own."""
    local = pnn.LocalClassifier([pnn.layers.MRRBank(4) for _ in range(2)], classes=3)
    sat = compiled(pnn.SATModel(local, ascent=None, gradient=pnn.PhyLL()))
    assert np.isfinite(sat.fit(x, y, verbose=0).history["loss"]).all()


def check_hardware(model, chip, x, folder):
    """Logs a bench, replays it, and calibrates the model to it."""
    bench = Bench(chip.attach(model), log=folder / "bench.log")
    with bench.installed(model):
        expected = model.predict(x, verbose=0)
    with pnn.RecordedDevice(folder / "bench.log").installed(model):
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    found = pnn.calibrate(model, bench, x[:4], settings=2, iterations=5, verbose=0)
    assert isinstance(found, pnn.Calibration)
    try:
        with Bench(chip, breaks=0).installed(model):
            model.predict(x, verbose=0)
    except pnn.DeviceError:
        pass
    else:
        raise AssertionError("a silent bench passed")
    assert issubclass(pnn.InstrumentDevice, pnn.HardwareDevice)


def check_deployment(folder):
    """Converts a digital network, and carries its controls over a file."""
    inputs = keras.Input((4,))
    found = pnn.convert(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    assert isinstance(found, pnn.Conversion)
    pnn.export_controls(found.model, folder / "controls.csv")
    pnn.load_controls(found.model, folder / "controls.csv")
    try:
        cost = pnn.hardware_cost(found.model)
    except ImportError as error:
        assert "keras-pnn[cost]" in str(error) and pnn.HardwareCost
    else:
        assert isinstance(cost, pnn.HardwareCost) and cost.total["power_mW"] > 0


def check_curvature(model, x, y):
    """Measures eigenvalues, trace, density and landscape."""
    results = {
        pnn.HessianResult: pnn.hessian_eigenvalues(model, x, y, k=1),
        pnn.TraceResult: pnn.hessian_trace(model, x, y, vectors=2),
        pnn.DensityResult: pnn.hessian_density(model, x, y, steps=4, vectors=1),
        pnn.Landscape: pnn.loss_landscape(model, x, y, points=3),
    }
    for kind, result in results.items():
        assert isinstance(result, kind)


def check_report(model, x, y, devices, folder):
    """Measures a report in parts, reads them, and writes each format."""
    study = {
        "devices": list(devices),
        "sweeps": {"temperature": [-1, 0, 1]},
        "hessian": False,
        "landscape": False,
        "worst_case": False,
        "verbose": 0,
    }
    parts = folder / "parts"
    for i in range(2):
        pnn.robustness_rows(model, x, y, cache_dir=parts, part=(i, 2), **study)
    with pnn.robustness.ProcessPool(1, threads=1) as pool:
        # Nothing is left to measure, so that no process is started.
        study |= {"cache_dir": parts, "executor": pool}
        report = pnn.robustness_report(model, x, y, **study)
    assert isinstance(report, pnn.RobustnessResult) and str(report)
    for name in ("report.json", "report.csv"):
        report.save(folder / name)


def check_modules(model, x, y):
    """Uses a name of each module that the steps above leave out."""
    assert pnn.physics.decompose.haar_phases(4, 0).theta.shape == (4, 2)
    warming = pnn.callbacks.DriftInjection(
        "temperature", pnn.drift.Linear(0.1), during="validation"
    )
    model.evaluate(x, y, verbose=0, callbacks=[warming])
    assert len(pnn.devices.sweep(model, "temperature", [0.0, 1.0])) == 2
    for module in ("curvature", "deploy", "hardware", "plotting", "robustness"):
        assert inspect.ismodule(getattr(pnn, module))
    assert pnn.training.SATModel is pnn.SATModel


def main(folder: pathlib.Path):
    x, y = samples(24)
    count = check_names()
    check_layers(folder)
    check_tunings()
    model = network()
    devices = pnn.Variation(resonance_shift=0.02).sample(model, 3, seed=0)
    assert isinstance(devices, pnn.DeviceSet)
    assert isinstance(devices[0], pnn.SimulatedDevice)
    sat = check_training(x, y, devices[0])
    check_meshes(x, y)
    check_local(x, y)
    found = pnn.evaluate_devices(sat, x, y, devices)
    assert isinstance(found, pnn.DeviceEvaluation)
    check_hardware(model, devices[0], x, folder)
    check_deployment(folder)
    check_curvature(model, x, y)
    check_report(model, x, y, devices, folder)
    check_modules(model, x, y)
    left_out = set(keras_pnn.__all__) - pnn.used
    assert not left_out, f"not tried: {sorted(left_out)}"
    print(f"keras_pnn {keras_pnn.__version__}: {count} public names, all found")


if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent.parent
    if "--apart" in sys.argv[1:]:
        place = pathlib.Path(keras_pnn.__file__).resolve()
        assert place.parents[1] != here, f"{place} is the checkout's"
    with tempfile.TemporaryDirectory() as temporary:
        main(pathlib.Path(temporary))
