"""Every figure of `hardware_cost` is computed again here, by hand."""

import json
import math

import keras
import models
import numpy as np
import pytest

import keras_pnn as pnn

# Of the library "silicon", as it names its sources.
CLOCK = 5.0  # GHz
SETTLING = 8 * math.log(2) / (2 * math.pi * 0.13)  # µs, 8 bits at 130 kHz
MODULATOR = {"ring": 1.2 + 42e-3 * CLOCK, "mzi": 450e-3 * CLOCK}  # mW
DAC, ADC = 50.0 * CLOCK / 14, 14.8 * CLOCK / 10  # mW, 8 bits
FLOOR = 10**-2.5  # mW
SHOT = 12 * 4**8 * 1.602176634e-19 * CLOCK * 1e9 * 1e3  # mW at 1 A/W
EFFICIENCY = 0.2
AREA = {"ring": 40 * 40, "ring_modulator": 9.66**2, "mzi_modulator": 260 * 20}
AREA |= {"cell": 180 * 100, "splitter": 1.8 * 1.3, "laser": 400 * 300}
AREA |= {"diode": 10 * 4, "amplifier": 50, "dac": 11000, "adc": 2850}  # µm²


def area(**counts):
    return 1e-6 * sum(n * AREA[name] for name, n in counts.items())


def close(row, **expected):
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6), name


def cost_of(shape, *layers, **options):
    """The cost of a sequence of layers."""
    model = keras.Sequential([keras.Input(shape), *layers])
    return pnn.hardware_cost(model, **options)


def lenet5(**options):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((28, 28, 1))
    x = pnn.layers.MRRConv2D(6, 5, padding="same", name="conv_1", **options)(x)
    x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(x))
    x = pnn.layers.MRRConv2D(16, 5, name="conv_2", **options)(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(keras.layers.ReLU()(x)))
    for i, units in enumerate((120, 84, 10)):
        x = pnn.layers.MRRBank(units, name=f"dense_{i}", **options)(x)
    return keras.Model(inputs, x)


# Name: places, inputs and outputs of the matrix, passes on a bank of 12 × 12.
LENET5 = {
    "conv_1": (784, 25, 6, 3),
    "conv_2": (100, 150, 16, 26),
    "dense_0": (1, 400, 120, 340),
    "dense_1": (1, 120, 84, 70),
    "dense_2": (1, 84, 10, 7),
}


def test_lenet5_on_rings():
    tuning = pnn.HeaterTuning(max_current=4.0)
    model = lenet5(tuning=tuning, bank_size=(12, 12))
    cost = pnn.hardware_cost(model)
    loss = 0.95 + 0.95 + 11 * 0.1 + 11 * 0.1 + 4 * 0.1  # dB
    through = 10 ** (loss / 10) / EFFICIENCY
    for row, (name, (places, n_in, n_out, passes)) in zip(
        cost.layers, LENET5.items(), strict=True
    ):
        layer = model.get_layer(name)
        assert row["name"] == name and layer.passes == passes
        current = np.asarray(layer.controls["control"], "float64")
        heaters = np.sum(current**2 * 0.375) / passes
        lasers = {"loss": 144 * FLOOR * through, "shot": 12 * SHOT * through}
        others = 12 * MODULATOR["ring"], 24 * 1.1 + 12 * 3.0, 12 * DAC + 12 * ADC + 144
        power = heaters + max(lasers.values()) + sum(others)
        latency = passes * (places / 5000 + SETTLING)
        close(
            row,
            multiplications=places * n_in * n_out,
            heaters=144,
            heater_mW=heaters,
            heater_worst_mW=144 * 16 * 0.375,
            modulators=12,
            modulator_mW=others[0],
            lasers=12,
            laser_loss_mW=lasers["loss"],
            laser_shot_noise_mW=lasers["shot"],
            photodiodes=24,
            detector_mW=others[1],
            converters=24,
            converter_mW=others[2],
            power_mW=power,
            area_mm2=area(ring=144, ring_modulator=12, splitter=11, laser=12)
            + area(diode=24, amplifier=12, dac=12, adc=12),
            latency_us=latency,
            energy_nJ=power * latency,
            multiplication_pJ=1e3 * power * latency / (places * n_in * n_out),
        )
    for name in ("power_mW", "area_mm2", "latency_us", "energy_nJ", "heaters"):
        close(cost.total, **{name: sum(row[name] for row in cost.layers)})
    energy = 1e3 * cost.total["energy_nJ"]
    close(cost.total, multiplications=416520, multiplication_pJ=energy / 416520)
    assert cost.left_out == []


def test_controls_in_nm_and_without_a_limit():
    model = models.bank(6, 4)
    control = np.asarray(model.layers[-1].controls["control"], "float64")
    (row,) = pnn.hardware_cost(model).layers
    # One pass: its heaters are set already.
    close(row, heater_mW=control.sum() / 0.53, latency_us=1 / 5000)
    close(row, heater_worst_mW=24 * 4.5 / 0.53)


def test_a_single_detector_and_a_converter_of_its_own():
    tuning = pnn.HeaterTuning(port="through")
    (row,) = pnn.hardware_cost(models.bank(6, 4, tuning=tuning, adc_bits=6)).layers
    close(row, photodiodes=4, detector_mW=4 * (1.1 + 3))
    close(row, converter_mW=6 * DAC + 4 * ADC * 6 / 8 + 24)


def test_the_hybrid_of_64_modes():
    layer = pnn.layers.MZIMesh(64, name="mesh")
    detector = pnn.layers.Photodetector(normalize="l2", ports=10, name="ports")
    digital = keras.layers.Dense(64)
    model = keras.Sequential([keras.Input((120,)), digital, layer, detector])
    phases, rng = 0.0, np.random.default_rng(0)
    for name, variable in layer.controls.items():
        value = rng.uniform(0.1, 6.2, variable.shape) * layer.quantity(name).exists
        variable.assign(value)
        phases += np.asarray(variable, "float64").sum()
    cost = pnn.hardware_cost(pnn.SATModel(model, rho=0.1))
    mesh, ports = cost.layers
    heaters = 24.77 * phases / math.pi
    assert mesh["name"] == "mesh" and ports["name"] == "ports"
    power = heaters + 64 * MODULATOR["mzi"] + 64 * DAC + 4096
    close(
        mesh,
        multiplications=4096,
        heaters=2 * 2016 + 64,
        heater_mW=heaters,
        heater_worst_mW=4096 * 2 * 24.77,
        modulators=64,
        modulator_mW=64 * MODULATOR["mzi"],
        lasers=0,
        converter_mW=64 * DAC + 4096,
        power_mW=power,
        area_mm2=area(cell=2016, mzi_modulator=64, splitter=63, laser=1, dac=64),
        latency_us=1 / 5000,
        energy_nJ=power / 5000,
    )
    loss = 1.2 + 6 * 0.1 + 64 * 0.99
    through = 64 * 10 ** (loss / 10) / EFFICIENCY
    power = through * SHOT + 64 * (1.1 + 3 + ADC)
    close(
        ports,
        lasers=1,
        laser_loss_mW=through * FLOOR,
        laser_shot_noise_mW=through * SHOT,
        # All ports, for the norm.
        photodiodes=64,
        detector_mW=64 * (1.1 + 3),
        converter_mW=64 * ADC,
        power_mW=power,
        area_mm2=area(diode=64, amplifier=64, adc=64),
        energy_nJ=power / 5000,
    )
    energy = 1e3 * cost.total["energy_nJ"]
    close(cost.total, latency_us=1 / 5000, multiplication_pJ=energy / 4096)


def test_phases_within_a_turn():
    model = models.mesh()
    layer = model.layers[1]
    layer.program(np.eye(4))
    for name in ("phi", "gamma"):
        layer.controls[name].assign(np.full(layer.controls[name].shape, 0.5))
    before = pnn.hardware_cost(model).total["heater_mW"]
    # Six cells in the bar state, six phases and four at the inputs.
    close({"sum": before}, sum=24.77 * (6 + 10 * 0.5 / math.pi))
    layer.controls["phi"].assign(layer.controls["phi"] + 2 * math.pi)
    close(pnn.hardware_cost(model).total, heater_mW=before)


def test_phases_below_zero_cost_at_most_a_turn():
    mesh = pnn.layers.MZIMesh(2, dac=pnn.layers.DAC(8, -math.pi, math.pi))
    mesh.build((None, 2))
    for variable in mesh.controls.values():
        variable.assign(np.full(variable.shape, -0.1))
    (row, _) = cost_of((2,), mesh, pnn.layers.Photodetector()).layers
    assert row["heaters"] == 4
    assert row["heater_mW"] == pytest.approx(4 * 24.77 * (2 - 0.1 / math.pi), rel=0.01)
    assert row["heater_worst_mW"] == pytest.approx(4 * 24.77 * 2)


def test_losses_of_the_design_add_up_along_the_light():
    meshes = [pnn.layers.MZIMesh(4, loss_db=0.25) for _ in range(2)]
    cost = cost_of((4,), *meshes, pnn.layers.BalancedDetector())
    first, second, pairs = cost.layers
    loss = 1.2 + 2 * 0.1 + 8 * 0.25
    close(pairs, laser_loss_mW=4 * FLOOR * 10 ** (loss / 10) / EFFICIENCY)
    close(pairs, photodiodes=4, converters=2, detector_mW=4 * 1.1 + 2 * 3)
    assert first["modulators"] == 4 and second["modulators"] == 0
    close(cost.total, latency_us=1 / 5000, multiplications=32)


def test_two_meshes_and_attenuators():
    layer = pnn.layers.MZIDense(4)
    model = keras.Sequential([keras.Input((6,)), layer, pnn.layers.Photodetector()])
    layer.attenuation.assign([1.0, 0.5, 0.0, 1.0])
    row, ports = pnn.hardware_cost(model).layers
    close(
        row,
        multiplications=24,
        heaters=2 * 21 + 10 + 4,
        heater_worst_mW=24.77 * (2 * (2 * 21 + 10) + 4),
        area_mm2=area(cell=15 + 4 + 6, mzi_modulator=6, splitter=5, laser=1, dac=6),
    )
    loss = 1.2 + 3 * 0.1 + (6 + 1 + 4) * 0.99
    close(ports, laser_loss_mW=6 * FLOOR * 10 ** (loss / 10) / EFFICIENCY)
    layer.attenuation.assign([1.0, 0.5, 1.0, 1.0])
    warmer, _ = pnn.hardware_cost(model).layers
    close(warmer, heater_mW=row["heater_mW"] + 24.77)


def test_the_baselines_of_a_published_simulator():
    """Lightening-Transformer's formulas, 12 × 12, 8 bits, 5 GHz, by its own files.

    It has one light source for all channels, of the sensitivity times 2^bits, and
    drives every ring and interferometer at the full rate in place of by heaters.
    """
    close(
        pnn.hardware_cost(models.bank(12, 12)).total,
        modulator_mW=16.92,
        laser_loss_mW=136.896144 / 2**8 * 12,
        # 2,785.714 mW there, for 156 converters in place of 12.
        converter_mW=2785.714286 * 12 / 156 + 88.8 + 144,
        # Each row has two photodiodes here.
        detector_mW=49.2 + 12 * 1.1,
    )
    close(
        cost_of((12,), pnn.layers.MZIDense(12), pnn.layers.Photodetector()).total,
        modulator_mW=27.0,
        # And four stages of splitters.
        laser_loss_mW=19115.744437 / 2**8 * 10**0.04,
        detector_mW=49.2,
        converter_mW=12 * 2571.428571 / 144 + 88.8 + 2 * 132 + 24 + 12,
    )


def test_the_devices_of_another_published_simulator():
    """SimPhony's log of its example, at 4 bits and 5 GHz, with the same devices.

    Its converters follow 2^bits / (bits + 1); light is for one photodiode behind
    6.22 dB, times 2^bits and 1 / (1 − 0.1), the extinction of its modulators.
    """
    laser = 1.1771924757285903 / 2**4 * (1 - 0.1)
    close(
        pnn.hardware_cost(models.bank(12, 12), bits=4).total,
        converter_mW=12 * (2.0089285714 * 5 / 4 * 8 / 9) + 12 * 3.7 + 144,
        detector_mW=24 * 1.1 + 12 * 3,
        laser_loss_mW=144 * laser * 10 ** ((4.5 - 6.22) / 10),
    )
    mesh = pnn.layers.MZIMesh(12), pnn.layers.Photodetector()
    close(cost_of((12,), *mesh, bits=4).layers[0], modulator_mW=12 * 2.25)


@pytest.mark.parametrize("bits", [6, 12])
def test_the_reference_of_homodyne_detectors(bits):
    mesh = pnn.layers.MZIMesh(6, loss_db=0.5)
    _, row = cost_of((6,), mesh, pnn.layers.HomodyneDetector(), bits=bits).layers
    # Behind modulators, three stages of splitters, six cells and the last splitter;
    # the reference behind three stages and the last splitter.
    through = 10 ** ((1.2 + 0.3 + 6 * 0.5 + 0.1) / 10) / EFFICIENCY
    signal = SHOT * 4.0**bits / 4**8 / 8
    reference = {6: 3.15, 12: signal}[bits] * 10**0.04 / EFFICIENCY
    close(
        row,
        lasers=1,
        photodiodes=12,
        laser_loss_mW=6 * (FLOOR * through + reference),
        laser_shot_noise_mW=6 * (signal * through + reference),
        area_mm2=area(diode=12, amplifier=6, adc=6, splitter=11),
    )
    # Noise of signal and reference, and of rounding, in electrons.
    electrons = 12 * 4**bits / 8
    step = 4 * electrons / 2**bits
    assert 2 * electrons == pytest.approx(step**2 / 12)


def test_noise_below_zero_makes_no_second_photodiode():
    control = np.linspace(0, 1, 41)
    weight = (models.dip(control) + 1) / 2 - 0.004
    tuning = pnn.MeasuredTuning(control, weight, "nm")
    for one in (tuning, pnn.RingTunings([tuning])):
        assert one.weight_range[0] < 0
        (row,) = pnn.hardware_cost(models.bank(6, 4, tuning=one)).layers
        assert row["photodiodes"] == 4


def test_masks():
    (row,) = cost_of((28, 28), pnn.layers.MaskedSLM(144)).layers
    light = 12 * 1.602176634e-19 * 60 * 1e3 / 0.3 * 10**0.3 / EFFICIENCY
    close(
        row,
        multiplications=144 * 784,
        modulator_mW=12000,
        detector_mW=5000,
        laser_loss_mW=light * math.sqrt(12) * 256 * 2,
        laser_shot_noise_mW=light * 12 * 4**8,
        area_mm2=96 * 240 * 64e-6,
        latency_us=13e6 / 60,
    )


def test_a_layer_used_twice_is_built_once():
    layer = pnn.layers.MRRBank(4)
    inputs = keras.Input((4,))
    once = pnn.hardware_cost(keras.Model(inputs, layer(inputs))).total
    twice = pnn.hardware_cost(keras.Model(inputs, layer(layer(inputs)))).total
    for name in ("power_mW", "area_mm2", "multiplication_pJ"):
        close(twice, **{name: once[name]})
    for name in ("latency_us", "energy_nJ", "multiplications"):
        close(twice, **{name: 2 * once[name]})


class Filter(pnn.layers.PhysicalLayer):
    def forward(self, inputs, controls, imperfections):
        return inputs


def test_what_is_shown_and_what_is_left_out():
    cost = cost_of((4,), pnn.layers.MRRBank(3, name="bank"), Filter(name="own"))
    assert cost.left_out == ["own"]
    for words in ("bank", "all (mW)", "not included: own", "precision: 8 bits"):
        assert words in str(cost)
    assert "<table>" in cost._repr_html_()
    again = json.loads(json.dumps(cost.to_dict()))
    assert again["figures"]["ring.loss"]["unit"] == "dB"
    assert again["total"] == cost.total
    for name, figure in cost.figures.items():
        assert figure.unit and len(figure.source) > 8, name


OWN = """
photodiode:
  power: {value: 2, unit: uW, source: ours}
cell:
  length: {value: 0.1, unit: mm, source: ours}
amplifier:
  area: {value: 1e-4, unit: mm2, source: ours}
"""


def test_figures_of_your_own(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    cost = pnn.hardware_cost(models.bank(6, 4), tmp_path / "own.yaml")
    close(cost.total, detector_mW=8 * 0.002 + 4 * 3.0)
    values = {name: figure.value for name, figure in cost.figures.items()}
    close(values, **{"cell.length": 100, "amplifier.area": 100, "ring.loss": 0.95})
    assert cost.figures["cell.length"].source == "ours"


@pytest.mark.parametrize(
    "text, message",
    [
        ("photodiode: {power: {value: 2, unit: mW}}", "value, unit and source"),
        ("photodiode: {power: {value: 2, unit: mW, source: ''}}", "not empty"),
        ("photodiode: {power: {value: 2, unit: '', source: x}}", "not empty"),
        ("photodiode: {power: {value: 2, unit: um, source: x}}", "converts to mW"),
        ("photodiode: {power: {value: -2, unit: mW, source: x}}", "≥ 0"),
        ("clock: {rate: {value: 0, unit: GHz, source: x}}", "> 0"),
        ("photodiode: {power: {value: two, unit: mW, source: x}}", "Received: ?.?two"),
        ("laser: {wall_plug_efficiency: {value: 2, unit: '1', source: x}}", "≤ 1"),
        ("photodiode: {price: {value: 2, unit: mW, source: x}}", "expected one of"),
        ("photodiode: 2", "figures"),
        ("- photodiode", "devices"),
        ("a: [", "YAML"),
    ],
)
def test_libraries_that_do_not_fit(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml.*{message}"):
        pnn.hardware_cost(models.bank(), path)


def test_models_that_have_no_cost():
    digital = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    unbuilt = keras.Sequential([pnn.layers.MRRBank(3)])

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    subclassed = Subclassed()
    subclassed(np.ones((1, 4)))
    for model in (digital, unbuilt, subclassed, None):
        with pytest.raises(ValueError, match="Received"):
            pnn.hardware_cost(model)
    with pytest.raises(ValueError, match="bits"):
        pnn.hardware_cost(models.bank(), bits=0)
    with pytest.raises(ValueError, match=r"library.*Received: None"):
        pnn.hardware_cost(models.bank(), None)


def test_planes_of_light():
    """Three modulators, ten readings' worth of light at the slower rate."""
    model = models.planes(nonlinearity=pnn.layers.Threshold)
    cost = pnn.hardware_cost(pnn.SATModel(model, rho=0.1), bits=6)
    encode, *masks, camera = cost.layers
    field = np.ones((1, 6, 6), "float32")
    fields = []
    for layer in model.layers:
        fields.append(np.asarray(field))
        field = layer(field)
    light = np.abs(fields[-1]) ** 2
    regions = (3, 3), (3, 9), (9, 6)
    caught = sum(light[0, y : y + 4, x : x + 4].sum() for y, x in regions)
    share = caught / 64
    assert 0.05 < share < 0.9
    frame = 1e6 / 60
    slm = {"modulators": 1, "modulator_mW": 10000, "power_mW": 10000}
    slm |= {"energy_nJ": 10000 * frame, "latency_us": 0, "lasers": 0}
    close(encode, multiplications=0, area_mm2=8 * 8 * 64e-6, **slm)
    assert [row["name"] for row in masks] == [
        la.name for la in model.layers if isinstance(la, pnn.layers.PhaseMask)
    ]
    for row in masks:
        close(row, multiplications=256, area_mm2=16 * 16 * 64e-6, **slm)
    electron = 1.602176634e-19 * 60 * 1e3 / 0.3
    laser = 3 * electron * 10 ** (3 * 0.3) / share / EFFICIENCY
    close(
        camera,
        lasers=1,
        photodiodes=3,
        detector_mW=5000,
        laser_loss_mW=laser * math.sqrt(12) * 2**6 * 2,
        laser_shot_noise_mW=laser * 12 * 4**6,
        latency_us=frame,
        area_mm2=0,
    )
    lasers = max(camera["laser_loss_mW"], camera["laser_shot_noise_mW"])
    close(cost.total, power_mW=35000 + lasers, latency_us=frame, multiplications=512)
    close(cost.total, energy_nJ=(35000 + lasers) * frame)
    # Nonlinearities have no price, and are named.
    kind = pnn.layers.Threshold
    thresholds = [la.name for la in model.layers if isinstance(la, kind)]
    assert cost.left_out == thresholds
    assert f"not included: {thresholds[0]}, {thresholds[1]}" in str(cost)


def test_passive_planes_and_several_panels(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "slm: {rows: {value: 10, unit: '1', source: ours},"
        " columns: {value: 16, unit: '1', source: ours}}"
    )
    planes = [
        pnn.layers.Encode("phase"),
        pnn.layers.Aperture(20e-6),
        pnn.layers.AmplitudeMask(),
        pnn.layers.Lens(1e-3),
        pnn.layers.DetectorArray([(0, 0, 8, 16)]),
    ]
    cost = cost_of((16, 16), *planes, library=tmp_path / "own.yaml")
    encode, mask, camera = cost.layers
    for row in (encode, mask):
        close(row, modulators=2, modulator_mW=20000)
    opening = np.real(pnn.physics.propagation.aperture((16, 16), 20e-6, 2e-6))
    share = opening[:8].sum() / 256
    electron = 1.602176634e-19 * 60 * 1e3 / 0.3
    laser = electron * 10 ** (2 * 0.3) / share / EFFICIENCY
    close(camera, laser_shot_noise_mW=laser * 12 * 4**8)
    assert cost.left_out == []
