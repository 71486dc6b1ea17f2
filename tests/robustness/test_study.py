"""A study's figures against one device after the other, put together by hand."""

import json

import keras
import numpy as np
import pytest

import keras_pnn as pnn
from keras_pnn.robustness.results import Kind
from keras_pnn.robustness.study import joint

VARIATION = pnn.Variation(resonance_shift=0.03)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def report(model, data, quiet):
    arguments = {**quiet, "worst_case": True}
    return pnn.robustness_report(
        model,
        *data,
        variation=VARIATION,
        n=3,
        sweeps={
            "temperature": [-1.0, 0.0, 1.5],
            "one/temperature": [2.0],
            "variation": [0.0, 2.0],
            "std:resonance_shift": [0.0, 0.05],
        },
        grid={"temperature": [0.0, 1.0], "half_width_error": [-0.1, 0.0, 0.2]},
        spec=0.91,
        name="plain",
        **arguments,
    )


@pytest.fixture(scope="module")
def found(report):
    return report.models["plain"]


@pytest.fixture(scope="module")
def chips(model):
    return [chip.deviations for chip in VARIATION.sample(model, 3, seed=0)]


@pytest.fixture(scope="module")
def measured(model, data):
    """Loss and metrics on a device that is put together by hand."""

    def evaluate(deviations):
        with pnn.SimulatedDevice(deviations).installed(model):
            return model.evaluate(*data, verbose=0, return_dict=True)

    return evaluate


def close(expected):
    return pytest.approx(expected, rel=1e-5)


def warm(one, two=None):
    two = one if two is None else two
    return {("temperature", 0): np.float32(one), ("temperature", 1): np.float32(two)}


def test_nominal_and_devices_are_those_of_evaluate(found, chips, measured):
    assert found.nominal == close(measured({}))
    for index, chip in enumerate(chips):
        for name, value in measured(chip).items():
            assert found.devices[name][index] == close(value)


def test_a_sweep_adds_to_each_device(found, chips, measured):
    scan = found.sweeps["temperature"]
    assert scan.axes[0].unit == "K"
    for place, kelvin in ((0, -1.0), (2, 1.5)):
        assert scan.design["loss"][place] == close(measured(warm(kelvin))["loss"])
        expected = measured({**chips[2], **warm(kelvin)})["loss"]
        assert scan.devices["loss"][2, place] == close(expected)
    # A sweep of one layer leaves the other.
    scan = found.sweeps["one/temperature"]
    assert scan.design["loss"][0] == close(measured(warm(2, 0))["loss"])


def test_factors_and_spreads_are_of_the_same_draws(found, chips, measured):
    factor, spread = (found.sweeps[n] for n in ("variation", "std:resonance_shift"))
    assert factor.design is spread.design is None
    for scan, times in ((factor, 2.0), (spread, 0.05 / 0.03)):
        wanted = {k: np.float32(times) * v for k, v in chips[1].items()}
        assert scan.devices["loss"][1, 1] == pytest.approx(
            measured(wanted)["loss"], rel=1e-4
        )
        assert scan.devices["loss"][:, 0] == close(found.nominal["loss"])


def test_a_grid_has_all_combinations(found, chips, measured):
    grid = found.grid
    assert grid.design["accuracy"].shape == (2, 3)
    assert grid.devices["accuracy"].shape == (3, 2, 3)
    wider = {
        ("half_width_error", 0): np.full((6, 5), 0.2, "float32"),
        ("half_width_error", 1): np.full((5, 3), 0.2, "float32"),
    }
    expected = measured({**chips[2], **warm(1), **wider})
    assert grid.devices["loss"][2, 1, 2] == close(expected["loss"])


def test_sensitivity_is_that_of_one_imperfection_of_one_layer(found, chips, measured):
    part = found.sensitivity
    assert part.layers == ("one", "two") and part.devices == 3
    assert part.kinds == (
        Kind("resonance_shift"),
        Kind("temperature", "-1"),
        Kind("temperature", "1.5"),
        Kind("temperature", "2"),
    )
    # The last end is that of the sweep of one layer.
    assert np.isnan(part.metrics["loss"][1, 3])
    assert part.metrics["loss"][0, 3] == close(measured(warm(2, 0))["loss"])
    assert part.metrics["loss"][1, 2] == close(measured(warm(0, 1.5))["loss"])
    key = "resonance_shift", 1
    alone = [
        measured({key: c[key], (key[0], 0): 0 * c[key[0], 0]})["loss"] for c in chips
    ]
    assert part.metrics["loss"][1, 0] == close(np.mean(alone))


def test_the_worst_case_is_searched_in_the_radius_of_the_devices(
    found, chips, measured
):
    worst = found.worst
    elements = np.concatenate([np.ravel(a) for c in chips for a in c.values()])
    rms = np.sqrt(np.mean(elements**2))
    # The first step of a temperature in all layers is 1, in one of them 2.
    assert worst.radius == {
        "resonance_shift": pytest.approx(rms),
        "one/temperature": 2.0,
        "two/temperature": 1.0,
        "half_width_error": 0.1,
    }
    assert worst.metrics["loss"] > found.devices["loss"].max()
    assert worst.metrics == close(measured(worst.device.deviations))


def test_a_report_says_how_it_was_made(report, model):
    setting = report.setting
    assert setting["shape of x"] == "(60, 6)" and setting["shape of y"] == "(60,)"
    assert setting["search for the worst case"] == "3 starts × 20 steps"
    expected = {"devices": 3, "samples": 60, "mode": "max", "specification": 0.91}
    expected |= {"batch normalisation": "frozen", "devices in sweeps": 3}
    expected |= {"metric": "accuracy"}
    assert {key: setting[key] for key in expected} == expected
    json.dumps(report.to_dict(), allow_nan=False)
    for layer in model.layers[1:]:
        for variable in layer.imperfections.values():
            assert not np.any(np.array(variable))


def test_a_setting_of_several_models_says_where_they_differ():
    one = {"seed": 0, "points": 5, "calibration samples": 9}
    other = {"seed": 0, "points": 7}
    assert joint({"a": one}) == one
    assert joint({"a": one, "b": other}) == {
        "seed": 0,
        "points per model": {"a": 5, "b": 7},
        "calibration samples per model": {"a": 9, "b": None},
    }


def test_models_are_compared_on_the_same_devices(model, network, data, quiet):
    models = {"plain": model, "untrained": network(1)}
    chips = VARIATION.sample(model, 2, seed=5)
    found = pnn.robustness_report(
        model,
        *data,
        devices=iter(chips),
        compare={"untrained": models["untrained"]},
        trained_on=dict(zip(models, chips, strict=True)),
        name="plain",
        sensitivity=False,
        metric="loss",
        spec=0.0,
        **quiet,
    )
    assert list(found.models) == list(models) and found.mode == "min"
    assert found.transfer.models == found.transfer.devices == tuple(models)
    for row, (name, one) in enumerate(models.items()):
        expected = pnn.evaluate_devices(one, *data, chips, verbose=0)["loss"]
        assert found.models[name].devices["loss"] == close(expected)
        assert found.transfer.metrics["loss"][row] == close(expected)
        assert found.yield_of(name).passed == 0


def test_a_device_at_the_specification_keeps_it(model, data, quiet):
    # 19 of 20 in float32 is less than 0.95.
    x = data[0][:20]
    right = model.predict(x, verbose=0).argmax(1)
    labels = np.where(np.arange(20) == 7, (right + 1) % 3, right)
    sweeps = {"temperature": [0.0]}
    variation = pnn.Variation(resonance_shift=1e-9)
    report = pnn.robustness_report(
        model, x, labels, variation, n=1, sweeps=sweeps, sensitivity=False, **quiet
    )
    found = report.models[model.name]
    assert found.nominal["accuracy"] < report.spec == 0.95
    assert report.yield_of(model.name).passed == 1
    assert found.sweeps["temperature"].tolerance("accuracy", 0.95, "max") == (0, 0)


def test_statistics_of_a_batch_that_are_reestimated(network, data, quiet):
    x, y = data
    model = network(extra=(keras.layers.BatchNormalization(),))
    arguments = {"batch_norm": "reestimated", "calibration": x[:7], "spec": 0.5}
    sweeps = {"temperature": [1.0]}
    report = pnn.robustness_report(model, x, y, sweeps=sweeps, **arguments, **quiet)
    assert report.setting["calibration samples"] == 7
    assert report.setting["batch normalisation"] == "reestimated"
    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    assert report.models[model.name].nominal["loss"] != close(plain["loss"])


# Where the model ends.


def measured_curve():
    """A model of rings whose curve was measured over 4 nm."""
    control = np.linspace(0, 4, 80)
    weight = 1 - 2 / (1 + ((control - 2) / 0.5) ** 2)
    tuning = pnn.MeasuredTuning(control, weight, "nm")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, pnn.layers.MRRBank(3, tuning=tuning)(inputs))
    model.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    return model


def test_a_scan_that_leaves_the_model(data, unmeasured, quiet):
    scans = {
        "sweeps": {"temperature": [-60.0, 0.0, 1.0]},
        "grid": {"temperature": [0.0, 60.0], "half_width_error": [0.0, 0.1]},
    }
    for argument, scan in scans.items():
        asked = {argument: scan, "spec": 0.1, **quiet}
        with pytest.raises(ValueError, match=f"`{argument}` must stay where.*60"):
            pnn.robustness_report(measured_curve(), *data, **asked)


@pytest.mark.filterwarnings("ignore:1 of 3 devices give NaN")
def test_a_device_whose_outputs_are_nan_has_no_accuracy(data, quiet):
    model = measured_curve()
    there = pnn.devices.sweep(model, "temperature", [0.0, 60.0])
    arguments = {"spec": 0.0, "sensitivity": False, **quiet}
    report = pnn.robustness_report(model, *data, devices=there, **arguments)
    accuracy = report.models[model.name].devices["accuracy"]
    assert np.isfinite(accuracy).tolist() == [True, False]
    assert report.yield_of(model.name).passed == 1


def test_what_does_not_exist_is_refused(model, data, unmeasured, quiet):
    with pytest.raises(ValueError, match=r"At OnScan.*half_width_error.*above"):
        pnn.robustness_report(
            model,
            *data,
            variation=pnn.Variation(half_width_error=0.2),
            n=2,
            sweeps={"half_width_error": [-0.99, 0.0]},
            **quiet,
        )


def test_two_layers_of_one_name_are_two_rows_and_a_point_may_be_a_matrix(quiet):
    def part():
        bank = pnn.layers.MRRBank(2, name="bank")
        return keras.Sequential([keras.Input((2,)), bank])

    model = keras.Sequential([keras.Input((2,)), part(), part()])
    model.compile("sgd", "mse")
    x = np.eye(2, dtype="float32")
    sweeps = {"resonance_shift": [np.zeros((2, 2)), [[0.1, 0.0], [0.0, 0.2]]]}
    report = pnn.robustness_report(
        model, x, x, VARIATION, n=2, sweeps=sweeps, spec=0.1, **quiet
    )
    found = report.models[model.name].sensitivity
    assert found.layers == ("bank (1)", "bank (2)")
    assert list(map(str, found.kinds))[1:] == ["resonance_shift = (0.1, 0, 0, 0.2)"]
    assert np.isfinite(found.metrics["loss"]).all()


def test_a_device_beside_the_same_device_with_more_off(model, data, quiet):
    chip = pnn.Variation(resonance_shift=0.02).sample(model, 1)[0]
    warm = pnn.devices.sweep(model, "temperature", [0.5])[0]
    options = {**quiet, "sensitivity": False}
    both = pnn.robustness_report(model, *data, devices=[chip, chip + warm], **options)
    found = both.models[model.name].devices["loss"]
    for device, loss in zip((chip, chip + warm), found, strict=True):
        with device.installed(model):
            expected = model.evaluate(*data, verbose=0)[0]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
