"""The small networks, data and devices that many tests share."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.devices import SimulatedDevice
from keras_pnn.devices.draws import folded

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIT = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}


def samples(n=12, features=4, classes=3):
    """Inputs of both signs, and their classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)).astype("float32")
    return x, rng.integers(0, classes, n)


def powers():
    """Optical powers of four inputs, and one of three classes for each sample."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 1.0, size=(8, 4)).astype("float32")
    return x, rng.integers(0, 3, 8)


def drawn_in_training(variation, model, step=0, seed=0):
    """The device on which `SATModel(variation=..., seed=...)` trains at a step."""
    arrays = variation.drawn(model, folded((seed, step), "training"))
    return SimulatedDevice(arrays)


def banks(*between, sizes=(4, 5, 3), **kwargs):
    """Two microring banks, with layers between them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(sizes[:1])
    bank = pnn.layers.MRRBank(sizes[1], activation="relu", name="first", **kwargs)
    x = bank(inputs)
    for layer in between:
        x = layer(x)
    return keras.Model(inputs, pnn.layers.MRRBank(sizes[2], name="second")(x))


def bank(inputs=2, units=2, **kwargs):
    """One microring bank."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((inputs,))
    return keras.Model(inputs, pnn.layers.MRRBank(units, name="bank", **kwargs)(inputs))


def dip(detuning):
    """The weight of a ring of half-width 0.1 nm that is resonant at 0.4 nm."""
    return 1 - 2 / (1 + ((detuning - 0.4) / 0.1) ** 2)


def measured(unit="mA"):
    """A tuning by a curve of `dip`, over the shift in nm or the current in mA."""
    control = np.linspace(0, 1.0 if unit == "nm" else 2.2, 60)
    shift = control if unit == "nm" else 0.53 * 0.375 * control**2
    return pnn.MeasuredTuning(control, dip(shift), unit)


def meshes(*between):
    """Two meshes of four modes, each before photodetectors, with layers between."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.Photodetector()(pnn.layers.MZIMesh(4)(inputs))
    for layer in between:
        x = layer(x)
    x = pnn.layers.Photodetector(ports=3)(pnn.layers.MZIMesh(4)(x))
    return keras.Model(inputs, x)


def mesh(**kwargs):
    """One mesh of four modes before three photodetectors."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = pnn.layers.MZIMesh(4, **kwargs)(inputs)
    return keras.Model(inputs, pnn.layers.Photodetector(ports=3)(x))


def modulator():
    """Two masks of 3 × 3 on a modulator."""
    layer = pnn.layers.MaskedSLM(2, grid=(1, 2), name="slm")
    return keras.Sequential([keras.Input((3, 3)), layer])


def planes(masks=2, **kwargs):
    """A diffractive network of three classes: images of 6 × 6, a plane of 16 × 16."""
    keras.utils.set_random_seed(0)
    regions = [(3, 3, 4, 4), (3, 9, 4, 4), (9, 6, 4, 4)]
    network = pnn.layers.diffractive(
        masks,
        distance=1e-4,
        size=8,
        margin=4,
        detectors=pnn.layers.DetectorArray(regions),
        **{"padding": 4, **kwargs},
    )
    network.build((None, 6, 6))
    return network


def mesh_chip(scale=0.3, meshes=2):
    """A device for meshes of four modes; with scale=0 one that equals the model."""
    rng = np.random.default_rng(3)
    return pnn.SimulatedDevice(
        {
            (name, i): scale * rng.normal(size=(4, 2)).astype("float32")
            for name in ("theta_error", "phi_error")
            for i in range(meshes)
        }
    )


def ring_chip(model, sigma=0.1):
    """A device of a model of microring banks."""
    (chip,) = pnn.Variation(resonance_shift=sigma).sample(model, 1)
    return chip.attach(model)


class Bench(pnn.HardwareDevice):
    """A simulated chip behind NumPy, which fails from a call on, counted from 1."""

    def __init__(self, simulated, breaks=None, **kwargs):
        super().__init__(**{"backoff": 0.0, "retries": 0, **kwargs})
        self.simulated, self.breaks = simulated, breaks

    def measure(self, layer, inputs, controls):
        if self.breaks is not None and self.calls >= self.breaks:
            raise OSError("no light")
        return self.simulated.measure(layer, tf.constant(inputs), controls).numpy()


class Silent:
    """A device that measures nothing, and has no monitors."""

    def measure(self, layer, inputs, controls):
        return None


def compiled(model, optimizer=None, loss=LOSS, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **kwargs)
    return model


def bits(model):
    """All variables, to be compared bit for bit."""
    return [v.numpy().tobytes() for v in model.variables]


def numbers(variables):
    """The values of variables."""
    return [v.numpy() for v in variables]


def assert_same(one, other, atol=0.0):
    """Compares lists of arrays, variables or tensors."""
    for a, b in zip(one, other, strict=True):
        a, b = (np.array(v).astype("float64") for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def difference_of_gradients(operator, x, y, vector, step):
    """What Keras' gradients change by along a vector, to be compared with Hv."""
    model, training = operator.model, operator.batch_norm == "batch"
    before = [(v, v.numpy()) for v in model.variables]
    gradients = []
    for sign in (1, -1):
        parts = operator.split(sign * step * vector)
        for variable, part in zip(operator.variables, parts, strict=True):
            variable.assign_add(part)
        with tf.GradientTape() as tape:
            outputs = model(x, training=training)
            loss = model.compute_loss(x, y, outputs, training=training)
        found = tape.gradient(
            loss,
            [v.value for v in operator.variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        gradients.append(operator.join(map(tf.convert_to_tensor, found)))
        # Statistics and seeds of dropout too.
        for variable, value in before:
            variable.assign(value)
    return (gradients[0] - gradients[1]) / (2 * step)


def moved(before, after):
    """How far each of some arrays or variables has moved at most."""
    pairs = zip(before, after, strict=True)
    return [np.abs(np.array(a) - np.array(b)).max() for a, b in pairs]


@contextlib.contextmanager
def policy(name):
    """Gives layers that are made inside another dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def run_script(script, *arguments):
    """Runs Python in a process of its own, with this package on its path."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(pnn.__file__)))
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


TWO_DEVICES = """
    import json
    import numpy as np
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    import keras
    import keras_pnn as pnn

    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 16)
"""


def result_on_two_devices(script):
    """Runs a script after `TWO_DEVICES`; returns what it prints behind `RESULT`."""
    run = run_script(TWO_DEVICES + script)
    assert run.returncode == 0, run.stderr[-3000:]
    line = next(t for t in run.stdout.splitlines() if t.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


class Counting(keras.layers.Layer):
    """Counts how often Python runs through it while it is not trained."""

    traces = 0

    def call(self, inputs, training=None):
        self.traces += not training
        return inputs
