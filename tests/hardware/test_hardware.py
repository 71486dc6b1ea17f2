"""Devices on the bench: what they are sent, what may come back, what fails."""

import concurrent.futures
import gc
import signal
import threading
import time
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import Bench, banks, compiled, ring_chip

import keras_pnn as pnn
from keras_pnn.hardware import acquisition
from keras_pnn.hardware.device import raising

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")


class Gain(pnn.layers.PhysicalLayer):
    """outputs = gain · inputs, so that a device is one line of NumPy."""

    def build(self, input_shape):
        self.add_control("gain", input_shape[-1:], unit="", initializer="ones")
        self.add_imperfection("offset", input_shape[-1:], unit="")

    def forward(self, inputs, controls, imperfections):
        gain = tf.cast(controls["gain"] + imperfections["offset"], inputs.dtype)
        return inputs * gain


class Amplifier(pnn.HardwareDevice):
    """A `Gain` on the bench, 10 % too strong, which does what `faults` says.

    Args:
        faults: number of the call, from 1, → a function of the right result.
    """

    def __init__(self, faults=None, **kwargs):
        super().__init__(**{"backoff": 0.0, **kwargs})
        self.faults = faults or {}
        self.sizes, self.set, self.recovered = [], [], 0

    def configure(self, layer, controls):
        self.set.append(controls["gain"].tolist())

    def recover(self):
        self.recovered += 1

    def measure(self, layer, inputs, controls):
        call = len(self.sizes) + 1
        self.sizes.append(len(inputs))
        right = inputs * controls["gain"] * 1.1
        return self.faults.get(call, lambda right: right)(right)


def gain(name="gain"):
    layer = Gain(name=name)
    layer.build((None, 3))
    return layer


def controls(value=2.0):
    return {"gain": np.full(3, value, "float32")}


RIGHT = X * 2 * 1.1  # of an amplifier with these controls


def measure(device, value=2.0):
    return device.acquire(gain(), X, controls(value))


def raises(error):
    def fault(right):
        raise error

    return fault


def network():
    return compiled(banks(sizes=(3, 5, 4)), "sgd", "mse")


def bench_of(model, **kwargs):
    chip = ring_chip(model)
    return chip, Bench(chip, **kwargs)


def amplified(dtype=None):
    model = keras.Sequential([keras.Input((3,)), Gain(name="gain", dtype=dtype)])
    model.compile("sgd", "mse")
    return model


def check_gain(model, factor):
    np.testing.assert_allclose(model.predict(X, verbose=0), X * factor, rtol=1e-6)


def refuses(error, match, device, model):
    """Checks that a device cannot be installed."""
    with pytest.raises(error, match=match), device.installed(model):
        raise AssertionError


@pytest.fixture
def hangs():
    """A fault that hangs until the test has ended, and leaves no thread behind."""
    release = threading.Event()

    def hang(right):
        release.wait(60)
        return right * 1e6

    before = set(threading.enumerate())
    yield hang
    release.set()
    left = set(threading.enumerate()) - before
    for _ in range(200):
        # A device that failed is in a cycle with its error.
        gc.collect()
        for thread in left:
            thread.join(0.1)
        left = {thread for thread in left if thread.is_alive()}
        if not left:
            break
    assert not left


@pytest.fixture
def sleeps(monkeypatch):
    """The seconds of each wait, which does not take place."""
    waits = []
    stub = types.SimpleNamespace(sleep=waits.append, perf_counter=lambda: 0.0)
    stub.monotonic = time.monotonic
    monkeypatch.setattr(acquisition, "time", stub)
    return waits


def test_installed_equals_a_simulated_device():
    model = network()
    chip, bench = bench_of(model, max_batch=4)
    ideal, ideal_loss = model(X).numpy(), model.evaluate(X, Y, verbose=0)
    traced = model.test_function
    with chip.installed(model):
        expected = model(X).numpy()
        loss = model.evaluate(X, Y, verbose=0)
    assert np.abs(expected - ideal).max() > 1e-3
    with bench.installed(model) as entered:
        assert entered is bench
        np.testing.assert_allclose(model(X), expected, atol=1e-6)
        np.testing.assert_allclose(model.predict(X, verbose=0), expected, atol=1e-6)
        np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), loss, rtol=1e-6)
    assert bench.calls == 3 * 2 * 2
    assert model.test_function is traced
    assert model.predict_function is None
    np.testing.assert_array_equal(model(X), ideal)
    assert model.evaluate(X, Y, verbose=0) == ideal_loss
    np.testing.assert_allclose(model.predict(X, verbose=0), ideal, atol=1e-6)
    assert bench.calls == 3 * 2 * 2


def wrapped(kind):
    """A compiled model, and a compiled wrapper around it."""
    model = amplified()
    wrapper = pnn.SATModel(model)
    if kind == "own device":
        wrapper = pnn.PATModel(model, device=Amplifier())
    wrapper.compile("sgd", "mse")
    return model, wrapper


def test_installed_in_a_wrapper_holds_for_the_model_inside():
    model, wrapper = wrapped("plain")
    with Amplifier().installed(wrapper):
        for each in (wrapper, model):
            check_gain(each, 1.1)
    check_gain(model, 1)


@pytest.mark.parametrize(("kind", "traced"), [("plain", True), ("own device", False)])
def test_installed_in_the_model_inside_holds_for_its_wrapper(kind, traced):
    model, wrapper = wrapped(kind)
    if traced:
        check_gain(wrapper, 1)
    before, device = wrapper.predict_function, Amplifier()
    with device.installed(model):
        check_gain(wrapper, 1.1)
        wrapper.evaluate(X, X, verbose=0)
        wrapper.fit(X, X, verbose=0)
    calls = device.calls
    assert calls >= 2 and wrapper.predict_function is before
    assert wrapper.test_function is None and wrapper.train_function is None
    assert float(wrapper.evaluate(X, model(X), verbose=0)) < 1e-9
    wrapper.fit(X, X, verbose=0)
    assert device.calls == calls


def test_a_trainer_with_this_device_measures_after_a_block_of_another_model():
    device = Amplifier()
    wrapper = pnn.PATModel(amplified(), device=device)
    wrapper.compile("sgd", "mse")
    with device.installed(amplified()):
        wrapper.fit(X, X, verbose=0)
    calls = device.calls
    wrapper.fit(X, X, verbose=0)
    assert device.calls > calls


def test_wrappers_are_not_kept():
    model, wrapper = wrapped("plain")
    gone = weakref.ref(wrapper)
    del wrapper
    gc.collect()
    assert gone() is None
    with Amplifier().installed(model):
        model(X)


def test_what_is_traced_inside_does_not_measure_afterwards():
    model, device = amplified(), Amplifier()
    outer = keras.Sequential([keras.Input((3,)), model])
    with device.installed(model):
        check_gain(outer, 1.1)
        with Amplifier().installed(model):
            pass
        outer.predict(X, verbose=0)
    assert device.calls == 2
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match=r"in this block alone.*'gain'"):
            outer.predict(X, verbose=0)
        # Nor in another block.
        with pytest.raises(tf.errors.OpError), device.installed(model):
            outer.predict(X, verbose=0)
    assert device.calls == 2


def test_installed_within_installed():
    model = amplified()
    weak, strong = Amplifier(), Amplifier({k: lambda r: r * 2 for k in range(1, 9)})
    with weak.installed(model):
        model.predict(X, verbose=0)
        with strong.installed(model):
            check_gain(model, 2.2)
        check_gain(model, 1.1)
    assert (weak.calls, strong.calls) == (2, 1)


def test_training_on_a_device_takes_the_gradient_of_the_model():
    model = amplified()
    (variable,) = model.trainable_variables
    with Amplifier().installed(model), tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X) ** 2)
    measured = X.astype("float64") * 1.1
    np.testing.assert_allclose(loss, (measured**2).sum(), rtol=1e-6)
    expected = (2 * measured * X).sum(0)
    np.testing.assert_allclose(tape.gradient(loss, variable.value), expected, rtol=1e-5)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    with Amplifier().installed(model):
        model.fit(X, X, batch_size=6, verbose=0)
    step = 0.01 * (2 * (measured - X) * X).sum(0) / X.size
    np.testing.assert_allclose(variable.numpy(), 1 - step, rtol=1e-6)
    assert model.train_function is None


def test_layers_that_are_not_on_the_device_are_the_models():
    model = network()
    chip, bench = bench_of(model, layers=["second"])
    first, second = model.layers[1:]
    with bench.installed(model):
        actual = model.predict(X, verbose=0)
    assert bench.calls == 1
    now = {n: v.numpy() for n, v in second.controls.items()}
    expected = chip.measure(second, first(X), now)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    unknown = Amplifier(layers=["second", "third"])
    refuses(ValueError, r"first, second\. Received: third", unknown, model)
    digital = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has none"):
        Amplifier().attach(digital)


@pytest.mark.parametrize(
    "bad",
    [
        *({"layers": v} for v in ("gain", [], ["gain"] * 2, ["gain", 3], [""], 3)),
        {"max_batch": 0},
        {"repeats": 0},
        {"settle": -1.0},
        {"timeout": 0.0},
        {"retries": -1},
        {"backoff": -0.1},
    ],
)
def test_bad_arguments(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=rf"`{name}` must .*Received: "):
        Amplifier(**bad)


def test_chunks_and_counter():
    device = Amplifier(max_batch=4)
    outputs = measure(device)
    assert (device.sizes, device.calls) == ([4, 2], 2)
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs, RIGHT.astype("float32"))
    whole = Amplifier(max_batch=6)
    measure(whole)
    assert whole.sizes == [6]


def test_repeats_are_averaged_in_double_precision():
    readings, buffer = (1.0, 1e8, -1e8), np.zeros((6, 3))

    def reading(value):
        # Always the same array, as drivers with a buffer return it.
        buffer[:] = value
        return buffer

    faults = {i: lambda _, v=v: reading(v) for i, v in enumerate(readings, 1)}
    outputs = measure(Amplifier(faults, repeats=3))
    np.testing.assert_allclose(outputs, np.full((6, 3), 1 / 3), rtol=1e-6)
    # Each chunk has all its readings.
    device = Amplifier(max_batch=4, repeats=3)
    measure(device)
    assert device.sizes == [4, 4, 4, 2, 2, 2]


def test_a_complex_layer():
    layer = pnn.layers.MZIMesh(4, name="mesh")
    model = keras.Sequential([keras.Input((4,), dtype="complex64"), layer])
    (chip,) = pnn.Variation(theta_error=0.1).sample(model, 1)
    bench = Bench(chip.attach(model), repeats=2)
    fields = (np.ones((2, 4)) + 1j * np.arange(4)).astype("complex64")
    now = {n: v.numpy() for n, v in layer.controls.items()}
    outputs = bench.acquire(layer, fields, now)
    assert outputs.dtype == np.complex64
    with chip.installed(model):
        np.testing.assert_allclose(outputs, layer(fields), atol=1e-5)
    with bench.installed(model):
        np.testing.assert_allclose(model(fields), outputs, atol=1e-6)
    real = Amplifier({1: lambda _: np.ones((2, 4))})
    real.configure = lambda layer, controls: None
    with pytest.raises(pnn.DeviceError, match=r"complex numbers .*float64"):
        real.acquire(layer, fields, {"gain": np.float32(1)})


def test_bfloat16_is_float32_for_the_lab():
    seen = []
    device = Amplifier({1: lambda right: (seen.append(right.dtype), right)[1]})
    model = amplified("bfloat16")
    with device.installed(model):
        outputs = model(X)
    assert outputs.dtype == tf.bfloat16
    assert seen == [np.float32]
    np.testing.assert_allclose(tf.cast(outputs, "float32"), X * 1.1, rtol=2e-2)


def test_configure_is_called_where_controls_differ(sleeps):
    fails_once = {4: raises(OSError("refused"))}
    device = Amplifier(fails_once, settle=0.25, backoff=2.0, max_batch=4)
    layer = gain()
    for value in (2.0, 2.0, 3.0, 2.0):
        device.acquire(layer, X, controls(value))
    # The second 2.0 fails in its second chunk, and is set again after `recover`.
    assert [s[0] for s in device.set] == [2.0, 2.0, 3.0, 2.0]
    assert device.recovered == 1
    assert [s for s in sleeps if s] == [0.25, 2.0, 0.25, 0.25, 0.25]
    device.acquire(gain("other"), X, controls(2.0))
    device.acquire(layer, X, controls(2.0))
    assert len(device.set) == 5


def test_a_failed_configure_is_repeated(sleeps):
    class Stubborn(Amplifier):
        def configure(self, layer, controls):
            super().configure(layer, controls)
            if len(self.set) < 3:
                raise OSError("no answer")

    device = Stubborn(settle=0.25, backoff=1.0)
    measure(device)
    assert (len(device.set), device.failures, device.calls) == (3, 2, 1)
    assert sleeps == [1.0, 2.0, 0.25]


def test_backoff_doubles_up_to_a_minute(sleeps):
    device = Amplifier({k: raises(OSError()) for k in range(1, 2000)}, retries=1200)
    device.backoff = 0.5
    with pytest.raises(pnn.DeviceError):
        measure(device)
    waits = [s for s in sleeps if s]
    assert waits[:9] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert len(waits) == 1200


@pytest.mark.parametrize(
    "fault",
    [
        raises(OSError("refused")),
        raises(TimeoutError("the lab's own")),
        lambda right: np.where(right == right[0, 0], np.nan, right),
        lambda right: right + np.inf,
        lambda right: right * np.float64(1e300),
    ],
)
def test_a_failed_call_is_repeated(fault):
    device = Amplifier({2: fault, 3: fault}, max_batch=4)
    np.testing.assert_array_equal(measure(device), measure(Amplifier()))
    assert (device.calls, device.failures, device.recovered) == (4, 2, 2)
    assert device.sizes == [4, 2, 2, 2]
    assert device.failure is None


def test_a_device_that_fails_for_good():
    errors = [OSError(f"refused {k}") for k in range(5)]
    faults = {k + 2: raises(error) for k, error in enumerate(errors)}
    device = Amplifier(faults, max_batch=4, retries=2)
    message = r"layer 'gain', in measurement 4: OSError: refused 2"
    with pytest.raises(pnn.DeviceError, match=message) as caught:
        measure(device)
    error = caught.value
    assert (error.layer, error.call, error.cause) == ("gain", 4, errors[2])
    assert error.__cause__ is errors[2]
    assert device.failure is error
    assert (device.calls, device.failures) == (4, 3)
    nan = Amplifier({1: lambda right: right * np.nan}, retries=0)
    with pytest.raises(pnn.DeviceError, match=r"finite float32.*18 of 18"):
        measure(nan)
    # A masked element is not a reading.
    masked = np.ma.masked_array(X, np.eye(*X.shape) == 1)
    with pytest.raises(pnn.DeviceError, match="NaN or infinity in 3"):
        measure(Amplifier({1: lambda right: masked}, retries=0))
    assert "unknown" in str(pnn.DeviceError("gain", 1))


def test_a_hanging_call_is_given_up_and_its_late_result_dropped():
    release, late = threading.Event(), threading.Event()

    def hang(right):
        release.wait(60)
        late.set()
        return right * 1e6

    def after_it(right):
        release.set()
        assert late.wait(60)
        return right

    device = Amplifier({1: hang, 2: after_it}, timeout=0.5)
    for _ in range(2):
        np.testing.assert_allclose(measure(device), RIGHT, rtol=1e-6)
    assert (device.calls, device.failures, device.recovered) == (3, 1, 1)
    assert len(device.set) == 2


def test_a_device_that_hangs_for_good(hangs):
    device = Amplifier({1: hangs, 2: hangs}, timeout=0.2, retries=1)
    message = r"TimeoutError: `measure` must return within 0.2 s"
    with pytest.raises(pnn.DeviceError, match=message):
        measure(device)

    class Mute(Amplifier):
        def recover(self):
            hangs(0.0)

    mute = Mute({1: raises(OSError())}, timeout=0.2, retries=1)
    with pytest.raises(pnn.DeviceError, match=r"`recover` must return within"):
        measure(mute)


def test_recover_comes_before_the_first_call_after_one_that_was_given_up(hangs):
    device = Amplifier({1: hangs}, timeout=0.2, retries=0)
    with pytest.raises(pnn.DeviceError):
        measure(device)
    for _ in range(2):
        measure(device)
        assert device.recovered == 1


@pytest.mark.parametrize(
    ("result", "received"),
    [
        (lambda right: right[:-1], r"shape \(6, 3\)\. Received: shape \(5, 3\)"),
        (lambda right: right.T, r"Received: shape \(3, 6\)"),
        (lambda right: right.astype("int32"), "real.* Received: dtype int32"),
        (lambda right: right > 0, "Received: dtype bool"),
        (lambda right: right.astype(object), "Received: dtype object"),
        (lambda right: right + 0j, "Received: dtype complex"),
        (lambda right: right.astype(str), "Received: dtype <U"),
        (lambda right: None, "Received: None"),
        (lambda right: [[1.0], [1.0, 2.0]], "ValueError"),
        (raises(NotImplementedError("soon")), "NotImplementedError: soon"),
    ],
)
def test_a_programming_error_is_not_repeated(result, received):
    device = Amplifier({1: result})
    with pytest.raises(pnn.DeviceError, match=received) as caught:
        measure(device)
    assert (device.calls, caught.value.call, device.recovered) == (1, 1, 0)
    assert device.failures == 1
    with pytest.raises(pnn.DeviceError, match=r"HardwareDevice must override `measure"):
        measure(pnn.HardwareDevice())


@pytest.mark.parametrize("convert", [np.float16, np.ndarray.tolist, tf.constant])
def test_what_numpy_makes_an_array_of_is_taken(convert):
    outputs = measure(Amplifier({1: convert}))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, RIGHT, rtol=2e-3)


def test_what_the_lab_does_to_its_arrays_stays_there():
    class Careless(Amplifier):
        def configure(self, layer, controls):
            super().configure(layer, controls)
            controls["gain"] *= 0
            controls.clear()

        def measure(self, layer, inputs, controls):
            outputs = super().measure(layer, inputs, controls)
            inputs *= 0
            controls["gain"] *= 0
            return outputs

    device, inputs, set_to = Careless(max_batch=2, repeats=2), X.copy(), controls()
    for _ in range(2):
        outputs = device.acquire(gain(), inputs, set_to)
        np.testing.assert_allclose(outputs, RIGHT, rtol=1e-6)
    np.testing.assert_array_equal(inputs, X)
    np.testing.assert_array_equal(set_to["gain"], controls()["gain"])
    assert len(device.set) == 1


@pytest.mark.parametrize(
    ("inputs", "value", "message"),
    [
        (X[:0], 2.0, r"`inputs` .*one sample.*\(0, 3\)"),
        (X * np.nan, 2.0, r"`inputs` must be finite, .*'gain'\..*18 of 18"),
        (X, np.inf, r"`controls\['gain'\]` .*layer 'gain'"),
        (X.astype(str), 2.0, r"`inputs` must be an array .*layer 'gain'"),
    ],
)
def test_only_finite_numbers_are_sent(inputs, value, message):
    device = Amplifier()
    with pytest.raises(ValueError, match=message):
        device.acquire(gain(), inputs, controls(value))
    assert device.calls == 0 and device.set == []


def test_the_lab_is_called_in_one_thread_which_ends_with_the_device():
    threads = set()

    class Watching(Amplifier):
        def configure(self, layer, controls):
            threads.add(threading.current_thread())

        def measure(self, layer, inputs, controls):
            threads.add(threading.current_thread())
            return super().measure(layer, inputs, controls)

    device = Watching()
    for value in (1.0, 2.0):
        measure(device, value)
    model = amplified()
    with device.installed(model):
        model.predict(X, batch_size=2, verbose=0)
    assert len(device.sizes) == 5
    (thread,) = threads
    assert thread is not threading.main_thread() and thread.daemon
    del device, model
    keras.backend.clear_session()
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_the_names_of_a_subclass_are_its_own():
    class Lab(Amplifier):
        def __init__(self):
            super().__init__()
            names = "lock log worker device configured raised layer wait run attempt"
            for name in names.split():
                setattr(self, f"_{name}", "the lab's")

    model = amplified()
    with Lab().installed(model):
        check_gain(model, 1.1)


def test_measure_must_not_call_acquire():
    class Nested(Amplifier):
        def measure(self, layer, inputs, controls):
            return self.acquire(layer, inputs, controls)

    with pytest.raises(pnn.DeviceError, match="must not call `acquire`"):
        measure(Nested(retries=0))


def test_measurements_exclude_each_other():
    class Slow(Amplifier):
        def measure(self, layer, inputs, controls):
            # Time for another thread to configure the device for its own controls.
            threading.Event().wait(0.02)
            return inputs * np.float32(self.set[-1])

    device = Slow()

    def acquire(value):
        return device.acquire(gain(), X, controls(value), X.shape, "float32")

    values = (1.0, 2.0, 3.0)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for value, found in zip(values, pool.map(acquire, values), strict=True):
            np.testing.assert_array_equal(found, X * np.float32(value))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_labs_code_passes_through(error):
    device, model = Amplifier({1: raises(error()), 3: raises(error())}), amplified()
    with pytest.raises(error):
        measure(device)
    assert (device.calls, device.failures) == (1, 0)
    measure(device)
    # It has been set anew: what happened in between is not known.
    assert len(device.set) == 2
    with pytest.raises(error), device.installed(model):
        model.predict(X, verbose=0)
    assert device.calls == 3


def test_an_interrupt_from_the_keyboard_does_not_wait_for_a_hanging_call(hangs):
    def interrupted(right):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return hangs(right)

    device = Amplifier({1: interrupted}, timeout=None)
    # A run in the background ignores interrupts from the keyboard.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(device)
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_allclose(measure(device), RIGHT, rtol=1e-6)


@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_no_wait_is_deaf_to_the_keyboard_for_long(monkeypatch, timeout):
    # A signal between two instructions, just before a wait, does not end the wait.
    waits, wait = [], concurrent.futures.wait

    def noted(futures, seconds):
        waits.append(seconds)
        return wait(futures, seconds)

    monkeypatch.setattr(concurrent.futures, "wait", noted)
    device = Amplifier({1: lambda right: threading.Event().wait(0.1) or right})
    device.timeout = timeout
    measure(device)
    assert waits and max(waits) <= 0.5


@pytest.mark.parametrize("eager", [False, True])
def test_a_failure_within_a_model_comes_out_as_it_is(eager):
    cause = OSError("refused")
    device = Amplifier({k: raises(cause) for k in range(2, 9)}, retries=1)
    model = amplified()
    model.predict(X, verbose=0)
    traced = model.predict_function
    run = model if eager else (lambda x: model.predict(x, verbose=0, batch_size=3))
    fails = pytest.raises(pnn.DeviceError, match="'gain'")
    with fails as caught, device.installed(model):
        run(X)
        run(X)
    assert caught.value is device.failure
    assert (caught.value.cause, caught.value.__cause__) == (cause, cause)
    assert caught.value.call == 3
    # The model is as before.
    assert model.predict_function is traced
    np.testing.assert_allclose(model(X), X)
    empty = pytest.raises(ValueError, match="`inputs` must be at least one sample")
    with empty, device.installed(model):
        tf.function(model)(X[:0])


def test_raising_lets_other_errors_pass():
    device = Amplifier({1: raises(OSError())}, retries=0)
    model = amplified()
    bad = tf.function(lambda: tf.debugging.assert_equal(tf.constant(1), tf.constant(2)))
    with pytest.raises(tf.errors.InvalidArgumentError), raising(device):
        bad()
    with pytest.raises(KeyError), device.installed(model):
        try:
            model.predict(X, verbose=0)
        except tf.errors.OpError:
            raise KeyError("the user's") from None
    assert device.failure is not None
    with pytest.raises(tf.errors.InvalidArgumentError), device.installed(model):
        bad()
    # Overcome within the block: the device's failure is not blamed for another one.
    refusing = Amplifier({1: raises(OSError()), 3: raises(OSError())}, retries=0)
    with pytest.raises(tf.errors.InvalidArgumentError), refusing.installed(model):
        for failure in (True, False, True):
            if failure:
                with pytest.raises(tf.errors.OpError):
                    model.predict(X, verbose=0)
            else:
                model.predict(X, verbose=0)
            assert isinstance(refusing.failure, pnn.DeviceError) is failure
        bad()
    for other in (None, object()):
        with pytest.raises(KeyError), raising(other):
            raise KeyError("body")


def test_raising_finds_an_error_of_a_graph_behind_another():
    device = Amplifier({1: raises(OSError("refused"))}, retries=0)
    model = amplified()
    with pytest.raises(pnn.DeviceError, match="refused"), device.installed(model):
        try:
            model.predict(X, verbose=0)
        except tf.errors.OpError as error:
            raise RuntimeError("the loop stopped") from error


def test_xla_and_replicas_are_refused(monkeypatch):
    model = amplified()
    model.compile("sgd", "mse", jit_compile=True)
    traced = model.test_function = object()
    compiled_so = "Received: jit_compile=True"
    refuses(ValueError, compiled_so, Amplifier(), model)
    outer = keras.Sequential([keras.Input((3,)), model])
    outer.compile("sgd", "mse", jit_compile=False)
    refuses(ValueError, compiled_so, Amplifier(), outer)
    assert model.test_function is traced
    model.compile("sgd", "mse", jit_compile=False)
    wrapper = pnn.SATModel(model)
    wrapper.compile("sgd", "mse", jit_compile=True)
    refuses(ValueError, compiled_so, Amplifier(), model)
    two = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(keras.Model, "distribute_strategy", two)
    refuses(ValueError, "a strategy with 2 replicas", Amplifier(), model)


def test_a_subclass_without_super_init():
    class Forgetful(pnn.HardwareDevice):
        def __init__(self):
            self.chip = None

    device, model = Forgetful(), amplified()
    message = r"`Forgetful\.__init__` must call `super\(\)\.__init__\(\)`"
    with pytest.raises(RuntimeError, match=message):
        measure(device)
    refuses(RuntimeError, message, device, model)
    with pytest.raises(RuntimeError, match=message):
        device.measure_in_graph(model.layers[0], X, controls(), tf.constant(X))
