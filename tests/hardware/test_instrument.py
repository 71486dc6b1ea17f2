"""A real TCP connection to a simulated bench."""

import argparse
import concurrent.futures
import contextlib
import copy
import importlib
import socket
import socketserver
import sys
import threading
import time

import keras
import numpy as np
import pytest
from scpi_bench import BENCH, EXAMPLE, configuration, network

import keras_pnn as pnn
from keras_pnn.hardware import InstrumentDevice, InstrumentError
from keras_pnn.hardware.instrument import scpi, simulator
from keras_pnn.layers.mzi_dense import Attenuators

BANK = ("layers", "bank")
CONTROL = (*BANK, "controls", "control")
INPUTS, OUTPUTS = (*BANK, "inputs"), (*BANK, "outputs")

X = np.random.default_rng(0).random((5, 4)).astype("float32")


@pytest.fixture(scope="module")
def port():
    """Of a bench in a process of its own, as a user's."""
    with simulator.running() as port:
        yield port


@contextlib.contextmanager
def served(handler=simulator.Connection, **options):
    """`simulator.running` in a thread, without a process to start."""
    given = {**vars(simulator.arguments([])), **options}
    with simulator.Server(("127.0.0.1", 0), handler) as server:
        server.bank = simulator.Bank(argparse.Namespace(**given))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def broken(*path, **change):
    return configuration(1, path, **change)


def expected(model, x=X, seed=0, std=0.03, drift=0.0):
    """What the bench must give, without a layer and without TensorFlow."""
    control = model.get_layer("bank").controls["control"].numpy().astype("float64")
    shifts = simulator.resonance_shifts(seed, *control.shape, std) + drift
    milli = 0.001
    return np.array(
        [
            1250 * simulator.photocurrents(milli * control, milli * row, shifts)
            for row in x.astype("float64")
        ]
    )


def acquire(device, model, x=X):
    layer = model.get_layer("bank")
    controls = {n: v.numpy() for n, v in layer.controls.items()}
    return device.acquire(layer, x, controls)


def measured(table, model, x=X, **options):
    """The readings of a device that is opened and closed for them."""
    with InstrumentDevice(table, **options) as device:
        return acquire(device, model, x)


def raw(port, *commands):
    """Talks to a server without PyVISA."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        file = connection.makefile("rw", encoding="ascii", newline="\n")
        answers = []
        for command in commands:
            file.write(command + "\n")
            file.flush()
            if "?" in command:
                answers.append(file.readline().strip())
    return answers


def asked(port, query):
    """The numbers in the answer to a query."""
    (answer,) = raw(port, query)
    return [float(v) for v in answer.split(",")]


def counts(port):
    """[settings, readings, connections] of a server."""
    return asked(port, "SIM:COUNT?")


def currents(port):
    return asked(port, "SOUR:CURR? (@1:16)")


def check(measured, right, atol=1e-7):
    np.testing.assert_allclose(measured, right, rtol=1e-6, atol=atol)


def interrupting(seconds):
    """`concurrent.futures.wait`, with a Ctrl-C after some seconds."""

    def wait(futures, timeout):
        time.sleep(seconds)
        raise KeyboardInterrupt

    return wait


def test_readings_are_those_of_the_bench(port, tmp_path):
    model = network()
    control = model.get_layer("bank").controls["control"].numpy().astype("float64")
    with InstrumentDevice(configuration(port), log=tmp_path / "bench.log") as device:
        first = acquire(device, model)
        set_to, powers = currents(port), asked(port, "SOUR:POW? (@1:4)")
        again = acquire(device, model)
        with device.installed(model):
            called = model(X).numpy()
            predicted = model.predict(X, verbose=0)
    check(first, expected(model))
    replayed = acquire(pnn.RecordedDevice(tmp_path / "bench.log"), model)
    for other in (again, called, predicted, replayed):
        np.testing.assert_array_equal(other, first)
    # The hidden imperfections are seen, and gone with the device.
    assert np.abs(first - model(X).numpy()).max() > 0.05
    # Numbers arrive to the last bit.
    assert set_to == (0.001 * control.ravel()).tolist()
    assert powers == (0.001 * X[-1].astype("float64")).tolist()


@pytest.mark.parametrize("pipeline", [True, False])
def test_one_command_for_each_channel(port, pipeline):
    model, table = network(), configuration(port, pipeline=pipeline)
    parts = table["layers"]["bank"]
    parts["controls"]["control"]["command"] = "SOUR{channel}:CURR {value}"
    parts["inputs"]["command"] = "SOUR{channel}:POW {value}"
    # Listed backwards: the order of the channels is that of the elements.
    parts["outputs"] |= {"command": "READ{channel}?", "channels": [4, 3, 2, 1]}
    check(measured(table, model, X[:2]), expected(model, X[:2])[:, ::-1])


def test_source_and_meter_apart(port):
    model = network()
    trigger = ["SIM:DRIFT 0.0", "*OPC?"]
    other = {"instrument": "meter", "trigger": trigger, "delay": 0.001, "offset": 7.0}
    table = configuration(port, OUTPUTS, **other)
    table["instruments"]["meter"] = table["instruments"]["bench"] | {"pipeline": False}
    connections = counts(port)[2]
    check(measured(table, model), 7 + expected(model), atol=1e-6)
    assert counts(port)[2] - connections == 2 + 1


def test_leading_axes_and_chunks(port):
    model = network()
    x = np.concatenate([X, X[:1]]).reshape(2, 3, 4)
    with InstrumentDevice(configuration(port), max_batch=1) as device:
        check(acquire(device, model, x), [expected(model, rows) for rows in x])
    assert device.calls == 2


def test_controls_are_set_when_they_change(port):
    model, other = network(), network(seed=4)
    with InstrumentDevice(configuration(port)) as device:
        before = counts(port)[0]
        acquire(device, model)
        acquire(device, model)
        assert counts(port)[0] - before == 1 + 2 * len(X)
        check(acquire(device, other), expected(other))


def test_a_mesh_has_channels_for_the_cells_that_exist(port):
    """Of 4 modes, 6 cells exist in arrays of 8."""
    mesh = pnn.layers.MZIMesh(4, name="mesh")
    mesh.build((None, 4))
    exists = np.broadcast_to(mesh.quantity("theta").mask, (4, 2))
    assert exists.sum() == 6
    theta = np.arange(8.0).reshape(4, 2) / 1000
    table = configuration(port, ("device",), retries=0)
    parts = table["layers"].pop("bank")
    control = parts["controls"].pop("control") | {"channels": "1:6", "scale": 1.0}
    parts["controls"]["theta"] = control
    table["layers"]["mesh"] = parts
    with InstrumentDevice(table) as device:
        device.configure(mesh, {"theta": theta})
        assert currents(port)[:6] == theta[exists].tolist()


@pytest.mark.parametrize(
    "part,value",
    [("control", 2.51), ("control", -0.001), ("inputs", 1.1), ("inputs", -0.1)],
)
def test_nothing_is_sent_beyond_the_limits(port, part, value):
    model, x = network(), X.copy()
    if part == "inputs":
        x[-1, 2] = value
    else:
        control = model.get_layer("bank").controls["control"]
        control.assign(np.where(np.eye(4) == 1, value, control))
    with InstrumentDevice(configuration(port, CONTROL, maximum=2.5)) as device:
        before = counts(port)
        message = rf"{part}.*nothing was sent.*{value}"
        with pytest.raises(pnn.DeviceError, match=message):
            acquire(device, model, x)
        after = counts(port)
    # Nothing was set or read, and no call was repeated: one connection asks.
    assert after[:2] == before[:2] and device.calls == 0
    with pytest.raises(pnn.DeviceError, match="'bank'"), device.installed(model):
        model.predict(x, verbose=0)
    assert counts(port)[:2] == before[:2]


def test_beyond_the_limits_the_limit_is_sent_where_asked_for(port):
    diagonal = np.eye(4)
    table = configuration(port, CONTROL, beyond="clip", maximum=2.5)
    with InstrumentDevice(table) as device:
        acquire(device, network(currents=np.where(diagonal, 9.0, -1.0)))
        assert currents(port) == (0.0025 * diagonal).ravel().tolist()
        with pytest.raises(pnn.DeviceError, match=r"Received: inf"):
            acquire(device, network(currents=np.inf))


def test_a_limit_that_float32_has_rounded_up_is_within(port):
    assert float(np.float32(2.4)) > 2.4
    with InstrumentDevice(configuration(port, CONTROL, maximum=2.4)) as device:
        acquire(device, network(currents=2.4))
        assert currents(port) == 16 * [0.001 * 2.4]


@pytest.fixture(scope="module")
def undisturbed():
    """A model, and its readings from a noisy bench without faults."""
    model = network()
    with served(noise=1e-5) as port:
        return model, measured(configuration(port), model)


@pytest.mark.parametrize("pipeline", [True, False])
@pytest.mark.parametrize(
    "fault", ["refuse", "hang", "close", "garbage", "half", "twice", "empty"]
)
def test_faults_are_survived(fault, pipeline, undisturbed):
    model, without = undisturbed
    # What is late on a busy machine is one more fault that must not matter.
    patience = 0.3 if fault in ("hang", "close", "half") else 10.0
    # With *RST, a connection that is opened again meets a bank at zero current.
    changes = {"pipeline": pipeline, "setup": ["*RST", "*CLS"], "timeout": patience}
    with (
        served(**{f"{fault}_at": (2, 4)}, noise=1e-5) as port,
        InstrumentDevice(configuration(port, **changes)) as device,
    ):
        found = acquire(device, model)
    assert device.failures >= 2 and device.calls >= 3
    if patience == 10.0:
        assert device.failures == 2 and device.calls == 3
    np.testing.assert_array_equal(found, without)
    assert 1e-4 < np.abs(found - expected(model)).max() < 0.1


def each_detector(port, **instrument):
    """One query for each detector, so that any number fits any query."""
    table = configuration(port, **instrument)
    table["layers"]["bank"]["outputs"]["command"] = "READ{channel}?"
    return table


# What tells the answers apart: the query for errors, the identity, or silence alone.
KNOWN = {
    "errors": {},
    "identity": {"errors": ""},
    "silence": {"errors": "", "identity": ""},
}


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize(
    ("acknowledge", "pipeline"), [("0", True), ("1", False), ("OK", True), ("", False)]
)
def test_acknowledgements_are_not_taken_for_readings(acknowledge, known, pipeline):
    model = network()
    with served(acknowledge=acknowledge) as port:
        table = each_detector(port, pipeline=pipeline, **KNOWN[known])
        # Without setup commands, the currents are the first commands.
        for setup in ([], ["*CLS"]):
            table["instruments"]["bench"]["setup"] = setup
            device = InstrumentDevice(table, retries=0)
            with pytest.raises(pnn.DeviceError, match=r"bench.*answers_per_command"):
                acquire(device, model)
        table["instruments"]["bench"]["answers_per_command"] = 1
        check(measured(table, model, retries=0), expected(model))


def test_acknowledgements_that_do_not_come_are_missed(port):
    table = configuration(port, answers_per_command=1, timeout=0.3)
    with pytest.raises(InstrumentError, match=r"\*CLS.*1 to each.*answers_per_command"):
        InstrumentDevice(table).open()


def test_answers_out_of_step_are_found_however_slow_they_are():
    """The client never waits for what is left over, nor sees it come."""
    with served(acknowledge="0", latency=0.1) as port:
        device = InstrumentDevice(each_detector(port, errors=""), retries=0)
        with pytest.raises(pnn.DeviceError, match="`answers_per_command`"):
            acquire(device, network(), X[:1])


@pytest.mark.parametrize("known", KNOWN)
def test_a_refusal_is_seen_in_an_acknowledgement(known):
    model = network(currents=20.0)
    with served(acknowledge="OK") as port:
        table = each_detector(port, answers_per_command=1, **KNOWN[known])
        table["layers"]["bank"]["controls"]["control"] |= {"maximum": 50.0}
        words = "-222" if known == "errors" else "`acknowledgement`.*'ERR'"
        device = InstrumentDevice(table, retries=0)
        with pytest.raises(pnn.DeviceError, match=words):
            acquire(device, model)
        table["instruments"]["bench"]["acknowledgement"] = "O[A-Z]|ERR"
        if known != "errors":
            acquire(InstrumentDevice(table, retries=0), model)


@pytest.mark.parametrize("fault", ["twice", "empty"])
def test_a_line_too_many_is_found_in_silence_alone(fault):
    model = network()
    with (
        served(**{f"{fault}_at": (2, 5)}) as port,
        InstrumentDevice(configuration(port, **KNOWN["silence"])) as device,
    ):
        check(acquire(device, model), expected(model))
    assert device.failures == 2


class SerialLine(socketserver.StreamRequestHandler):
    """A serial line behind a server: answers go to whoever is connected by then."""

    line = threading.Lock()

    def handle(self):
        server, bank = self.server, self.server.bank
        server.client = self.wfile
        self.wfile.write(bank.options.greeting)
        for line in self.rfile:
            with self.line:
                text = line.decode("ascii")
                answer = bank.answer(text)
                if text.startswith("READ"):
                    bank.readings += 1
                    time.sleep(0.6 if bank.readings == bank.options.late else 0.0)
                if answer is not None:
                    server.client.write(answer.encode("ascii") + b"\n")


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize(("late", "greeting"), [(2, b""), (0, b"Ready\r\nUser 7\r\n")])
def test_what_comes_before_the_first_command_is_no_answer(late, greeting, known):
    model = network()
    with served(SerialLine, late=late, greeting=greeting) as port:
        table = configuration(port, timeout=0.3, **KNOWN[known])
        with InstrumentDevice(table) as device:
            found = acquire(device, model)
        assert bool(device.failures) == bool(late)
    check(found, expected(model))


def test_a_refusal_is_named(port):
    table = configuration(port, CONTROL, maximum=50.0)
    device = InstrumentDevice(table, retries=1)
    with pytest.raises(pnn.DeviceError) as caught, device:
        acquire(device, network(currents=20.0))
    assert caught.value.layer == "bank" and device.failures == 2
    assert isinstance(caught.value.cause, InstrumentError)
    for part in ("'bench'", "SOUR:CURR", "-222", "out of range"):
        assert part in str(caught.value)
    table["layers"]["bank"]["inputs"]["command"] = "SOUR:POWR {values}"
    with pytest.raises(pnn.DeviceError, match="-113"):
        measured(table, network(), retries=0)


def test_a_bench_that_is_dead_ends_it():
    with served(dead_after=3) as port:
        device = InstrumentDevice(configuration(port, timeout=0.2), retries=2)
        with pytest.raises(pnn.DeviceError, match="'bank'") as caught, device:
            acquire(device, network())
    assert "When it was closed" in caught.value.__notes__[0]
    # The call that hangs, and two that do not come as far as a call.
    assert device.calls <= caught.value.call <= 3 and device.failures == 3
    assert isinstance(caught.value.cause, InstrumentError)
    for part in ("*IDN?", simulator.resource(port)):
        assert part in str(caught.value)


def test_the_instrument_disappears_and_comes_back():
    model = network()
    with simulator.running() as port:
        device = InstrumentDevice(configuration(port, timeout=0.5), retries=0)
        first = acquire(device, model)
    with pytest.raises(pnn.DeviceError, match="bench"):
        acquire(device, model)
    with simulator.running(port=port):
        np.testing.assert_array_equal(acquire(device, model), first)
    # The shutdown commands do not reach it, which is said once.
    with pytest.raises(InstrumentError, match="'bench'"):
        device.close()
    device.close()


def test_drift_is_seen():
    model = network()
    with served(drift=0.001) as port, InstrumentDevice(configuration(port)) as device:
        one, two = acquire(device, model), acquire(device, model)
    check(two[-1], expected(model, X[-1:], drift=0.001 * 2 * len(X))[0])
    assert np.abs(one - two).max() > 1e-3


def test_no_current_is_left_on(port):
    model = network()
    with InstrumentDevice(configuration(port)) as device:
        first = acquire(device, model)
        assert currents(port)[-1] > 0
        device.recover()
    assert not any(currents(port))
    # A device that was closed can be used again, and sets its controls again.
    np.testing.assert_array_equal(acquire(device, model), first)
    device.close()


def test_a_call_that_was_given_up_does_not_go_on(monkeypatch):
    """The answer that it waits for comes when another call uses the instrument."""
    monkeypatch.setattr(simulator, "SLOW", 1.0)
    model = network()
    with (
        served(slow_at=(2,)) as port,
        InstrumentDevice(configuration(port), timeout=0.5) as device,
    ):
        check(acquire(device, model), expected(model))
        assert device.failures >= 1
        before = counts(port)[:2]
        time.sleep(simulator.SLOW)
        assert counts(port)[:2] == before


@pytest.mark.parametrize("errors", ["SYST:ERR?", ""])
def test_after_an_interrupt_the_old_call_has_no_say(monkeypatch, errors):
    """It still asks and listens while the next call does."""
    model = network()
    x = np.random.default_rng(1).random((20, 4)).astype("float32")
    with (
        served(latency=0.02) as port,
        InstrumentDevice(configuration(port, errors=errors)) as device,
    ):

        def interrupted():
            with monkeypatch.context() as patch:
                patch.setattr(concurrent.futures, "wait", interrupting(0.1))
                with pytest.raises(KeyboardInterrupt):
                    acquire(device, model, x)

        for _ in range(2):
            interrupted()
            check(acquire(device, model), expected(model))
        assert device.failures == 0
        interrupted()
        device.close()
        assert not any(currents(port))


def test_a_number_may_have_a_format(port):
    table = configuration(port, INPUTS, command="SOUR{channel}:POW {value:.5f}")
    with InstrumentDevice(table) as device:
        acquire(device, network())
        rounded = [float(f"{0.001 * v:.5f}") for v in X[-1].astype("float64")]
        assert asked(port, "SOUR:POW? (@1:4)") == rounded


def test_shutdown_is_sent_whatever_a_subclass_does_to_recover():
    class Strict(InstrumentDevice):
        def recover(self):
            super().recover()
            raise InstrumentError("no")

    with served(hang_at=(0,)) as port:
        device = Strict(configuration(port), timeout=0.5, retries=0)
        with pytest.raises(pnn.DeviceError) as caught, device:
            try:
                acquire(device, network())
            finally:
                assert all(currents(port))
                device.timeout = 30.0
        assert not any(currents(port))
    assert not hasattr(caught.value, "__notes__")


def test_setup_comes_first_where_it_clears_the_queue(port, monkeypatch):
    sent = []
    ask = scpi.Session._ask

    def noted(self, commands):
        sent.extend(commands)
        return ask(self, commands)

    monkeypatch.setattr(scpi.Session, "_ask", noted)
    table = configuration(port, identity="", setup=["*OPC?", "*CLS"])
    InstrumentDevice(table).open()
    assert sent[:2] == ["*OPC?", "*CLS"]


def test_old_errors_of_an_instrument_are_not_ours():
    with served() as port:
        # The answer comes when all of them have been read.
        raw(port, *["FOO"] * 8, "*OPC?")
        measured(configuration(port, setup=["*RST"]), network(), retries=0)


def test_what_was_opened_is_closed_where_another_cannot_be():
    with served() as port:
        table = configuration(port, setup=["SOUR:CURR (@1:16)" + 16 * ",0.002"])
        other = {**table["instruments"]["bench"], "resource": simulator.resource(1)}
        table["instruments"]["meter"] = {**other, "timeout": 0.2}
        table["layers"]["bank"]["outputs"]["instrument"] = "meter"
        with pytest.raises(InstrumentError, match="'meter'"), InstrumentDevice(table):
            pass
        assert not any(currents(port))


@pytest.mark.parametrize("problem", [KeyboardInterrupt, InstrumentError])
def test_whatever_keeps_one_from_its_shutdown_the_others_get_theirs(
    port, monkeypatch, problem
):
    table = configuration(port)
    meter = {**table["instruments"]["bench"], "shutdown": ["NO"]}
    instruments = {"first": meter, **table["instruments"], "last": meter}
    device = InstrumentDevice({**table, "instruments": instruments})
    acquire(device, network())
    for name in ("first", "last"):
        device._sessions[name].open()
    assert any(currents(port))
    exchange = scpi.Session.exchange

    def failing(session, commands):
        if tuple(commands) == ("NO",):
            raise problem
        return exchange(session, commands)

    monkeypatch.setattr(scpi.Session, "exchange", failing)
    with pytest.raises(problem):
        device.close()
    assert not any(currents(port))


@pytest.mark.parametrize(
    "name",
    ["TCPIP0::127.0.0.1::1::SOCKET", "nonsense", "TCPIP0::no.such.invalid::5::SOCKET"],
)
def test_no_such_resource(name):
    table = configuration(resource=name)
    with pytest.raises(InstrumentError, match=f"'bench'.*{name}.*cannot be opened|IDN"):
        InstrumentDevice(table).open()
    with pytest.raises(pnn.DeviceError, match=name):
        acquire(InstrumentDevice(table, retries=1), network())


def test_another_instrument_is_refused(port):
    table = configuration(port, identity="Keithley")
    with pytest.raises(InstrumentError, match=r"Keithley.*Weight bank"):
        InstrumentDevice(table).open()


def one(kind, *args, after=None, shape=(4,), **kwargs):
    """A model of one physical layer, perhaps after another layer."""
    inputs = keras.Input(shape)
    before = inputs if after is None else after(inputs)
    return keras.Model(inputs, kind(*args, name="bank", **kwargs)(before))


def heated(**kwargs):
    return one(pnn.layers.MRRBank, 4, tuning="heater", **kwargs)


def channels(**numbers):
    """A configuration whose controls have these channels."""
    control = configuration()["layers"]["bank"]["controls"]["control"]
    controls = {name: control | {"channels": text} for name, text in numbers.items()}
    return broken(*BANK, controls=controls)


class Gain(pnn.layers.PhysicalLayer):
    """A layer of real vectors whose gain no instrument sets."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape):
        self.add_control("control", (16,), unit="mA")
        self.gain = self.add_weight(name="gain", shape=())

    def forward(self, inputs, controls, imperfections):
        return keras.ops.real(inputs) * self.gain


@pytest.mark.parametrize(
    ("table", "model", "words"),
    [
        (broken(*CONTROL, channels="1:15"), network, "16, the number of"),
        (broken(*INPUTS, channels="1:5"), network, "4, the number of inputs"),
        (broken(*OUTPUTS, channels=[1]), network, "4, the number of outputs"),
        (channels(heat="1:16"), network, "name the controls .*Received: heat"),
        (broken(), lambda: heated(use_bias=True), "no bias and no activation"),
        (
            broken(),
            lambda: heated(use_bias=False, activation="relu"),
            "no bias and no activation.*activation=relu",
        ),
        (
            broken(),
            # Its kernel has as many elements as there are channels.
            lambda: one(pnn.layers.MRRConv2D, 4, 1, shape=(4, 4, 4), tuning="heater"),
            r"'bank'.*patches.*Received: MRRConv2D.*\(4,\)",
        ),
        (
            broken(),
            # Each row would be taken for a sample.
            lambda: one(pnn.layers.MaskedSLM, 4, shape=(4, 4)),
            r"'bank'.*Received: MaskedSLM.*\(4,\) for.*\(4, 4\)",
        ),
        (broken(), lambda: one(Gain), "'bank'.*weights gain"),
        (
            broken(),
            lambda: one(Gain, after=pnn.layers.MZIMesh(4)),
            "'bank'.*Received: Gain with inputs of dtype complex64",
        ),
        (
            channels(theta="1:6", phi="7:12", gamma="13:16"),
            lambda: one(pnn.layers.MZIMesh, 4),
            "'bank'.*detectors.*`HardwareDevice`.*MZIMesh with outputs of.*complex64",
        ),
        (
            channels(attenuation="1:4", gain="5"),
            lambda: one(Attenuators, 4),
            "'bank'.*Attenuators with outputs of dtype complex64",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(table, model, words):
    device, model = InstrumentDevice(table), model()
    with pytest.raises(ValueError, match=words), device.installed(model):
        pass
    # Where nothing attaches the device, nothing is sent either.
    with pytest.raises(pnn.DeviceError, match=words):
        acquire(device, model)


def test_another_layer_is_refused(port):
    model, table = network(), configuration(port)
    table["layers"]["hidden"] = table["layers"].pop("bank")
    with pytest.raises(ValueError, match=r"bank.*Received: hidden"):
        InstrumentDevice(table).attach(model)
    with pytest.raises(pnn.DeviceError, match="Received: layer 'bank'"):
        acquire(InstrumentDevice(table), model)
    # Light has powers, and no phases here.
    with pytest.raises(pnn.DeviceError, match=r"must be real.*complex64"):
        acquire(InstrumentDevice(configuration(port)), model, X.astype("complex64"))


@pytest.mark.parametrize(
    ("table", "place", "words"),
    [
        (broken(instruments=None), "instruments", "required"),
        (broken(layers={}), "layers", "at least 1"),
        (broken(extra=1), "extra", "not permitted"),
        ([], "configuration", "dictionary"),
        (broken(*BENCH, resource=None), "instruments.bench.resource", "required"),
        (broken(*BENCH, resource=7), "instruments.bench.resource", "string.*: 7"),
        (broken(*BENCH, timeout=0), "instruments.bench.timeout", "greater than 0"),
        (broken(*BENCH, pipeline=1), "instruments.bench.pipeline", "boolean"),
        (broken(*BENCH, setup=[1]), "instruments.bench.setup.0", "string"),
        (broken(*BENCH, errors="ERR"), "instruments.bench.errors", "be a query"),
        (broken(*BENCH, answers_per_command=-1), "answers_per_command", "equal to 0"),
        (broken(*BENCH, answers_per_command=1.5), "answers_per_command", "integer"),
        (broken(*BENCH, acknowledgement="OK"), "bench.acknowledgement", "must go with"),
        (
            broken(*BENCH, answers_per_command=1, acknowledgement="OK("),
            "bench.acknowledgement",
            "a regular expression",
        ),
        (broken(*BENCH, options=5), "instruments.bench.options", "dictionary"),
        (broken(*BENCH, options={"timeout": 5}), "bench.options", "apart from"),
        (broken("device", layers=["a"]), "device", "keys among .*: layers"),
        (broken("device", retrys=1), "device", "keys among .*: retrys"),
        (broken("device", retries=-1), "retries", "≥ 0"),
        (broken(*BANK, inputs=None), "layers.bank.inputs", "required"),
        (broken(*BANK, controls={}), "layers.bank.controls", "at least 1"),
        (broken(*CONTROL, maximum=None), "control.maximum", "required"),
        (broken(*CONTROL, maximum=0.0), "control.maximum", "above the minimum"),
        (broken(*CONTROL, maximum=float("inf")), "control.maximum", "finite.*: inf"),
        (broken(*CONTROL, instrument="meter"), "control.instrument", "'bench'.*meter"),
        (broken(*CONTROL, instrument=["bench"]), "control.instrument", "string"),
        (broken(*CONTROL, command="CURR {value}"), "control.command", "must hold"),
        (broken(*CONTROL, command="{values},{other}"), "control.command", "must hold"),
        (broken(*CONTROL, command="CURR {values"), "control.command", "a template"),
        (broken(*CONTROL, command="{values:.6f}"), "control.command", "numbers fit"),
        (broken(*CONTROL, command="{channel:.x} {value}"), "command", "numbers fit"),
        (broken(*CONTROL, beyond="stop"), "control.beyond", "'refuse' or 'clip'"),
        (broken(*CONTROL, scale="0.001"), "control.scale", "number.*: '0.001'"),
        (broken(*CONTROL, channels="1:3,3"), "control.channels", "different whole"),
        (broken(*CONTROL, channels="1:3,7:5"), "control.channels", "different whole"),
        (broken(*CONTROL, channels=[]), "control.channels", "different whole"),
        (broken(*INPUTS, channels="one"), "inputs.channels", "different whole.*'one'"),
        (broken(*INPUTS, scale=0.0), "inputs.scale", "must not be 0"),
        (broken(*OUTPUTS, command="READ (@{channels})"), "outputs.command", "a query"),
        (broken(*OUTPUTS, delay=-1), "outputs.delay", "greater than or equal to 0"),
        # A format must not round a limit away.
        (
            broken(*INPUTS, command="SOUR{channel}:POW {value:.3f}", maximum=12.6),
            "inputs.command",
            r"'0\.013' for 12\.6",
        ),
        (
            broken(*INPUTS, command="SOUR{channel}:POW {value:.3f}", minimum=0.4),
            "inputs.command",
            r"'0\.000' for 0\.4",
        ),
        # Nor one setting of a control into another.
        (
            broken(*CONTROL, command="SOUR{channel}:CURR {value:.3f}"),
            "control.command",
            r"8 settings from 0 to .*'\.3f' writes \d",
        ),
        (
            broken(*INPUTS, command="SOUR:CURR (@{channels}),{values}"),
            "layers.bank.inputs.channels",
            "channels of its own",
        ),
    ],
)
def test_wrong_configurations(table, place, words):
    message = rf"(?s)Argument `[\w.]*{place}`.*{words}"
    with pytest.raises(ValueError, match=message) as caught:
        InstrumentDevice(table)
    assert "Received: " in str(caught.value)


def test_all_mistakes_are_told_at_once():
    table = broken(*CONTROL, maximum=None)
    table["instruments"]["bench"]["pipeline"] = "yes"
    with pytest.raises(ValueError, match=r"(?s)bench\.pipeline.*control\.maximum"):
        InstrumentDevice(table)


def test_numbers_of_numpy_and_one_command_are_taken():
    table = broken(*CONTROL, maximum=np.float32(2.5), channels=np.arange(16).tolist())
    table["instruments"]["bench"]["setup"] = "*RST"
    before = copy.deepcopy(table)
    bench = InstrumentDevice(table).bench
    assert table == before
    assert bench.instruments["bench"].setup == ("*RST",)
    assert bench.layers["bank"].controls["control"].maximum == 2.5


def test_from_toml(tmp_path):
    device = InstrumentDevice.from_toml(EXAMPLE, retries=1)
    assert device.retries == 1 and device.max_batch == 64
    assert device.layers == ("bank",)
    path = tmp_path / "bad.toml"
    for content in (b"resource = ", b"[device]\n# \xb5A\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"TOML.*bad\.toml"):
            InstrumentDevice.from_toml(path)
    with pytest.raises(FileNotFoundError):
        InstrumentDevice.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize("package", ["pyvisa", "pydantic"])
def test_without_a_package_of_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    wiring = "keras_pnn.hardware.instrument.wiring"
    monkeypatch.delitem(sys.modules, wiring, raising=False)
    with pytest.raises(ImportError, match=rf"(?i){package}.*keras-pnn\[instruments\]"):
        InstrumentDevice(configuration()).open()


def test_the_package_is_imported_without_the_extra(monkeypatch):
    monkeypatch.setattr(pnn, "hardware", pnn.hardware)
    for package in ("pyvisa", "pydantic"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in [n for n in sys.modules if n.startswith("keras_pnn.hardware")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("keras_pnn.hardware.instrument")


@pytest.mark.parametrize("word", ["9.91e37", "-9.9E37", "inf", "nan", "1.0,x", ""])
def test_readings_that_are_not_numbers(word):
    assert scpi.parse_readings(["1.0, -2e-3", "3"]) == [1.0, -0.002, 3.0]
    with pytest.raises(InstrumentError, match="must be numbers"):
        scpi.parse_readings(["1.0", word])


def test_two_layers_must_not_set_the_same_channels():
    table = configuration()
    table["layers"]["other"] = table["layers"]["bank"]
    with pytest.raises(ValueError, match=r"layers\.other\.controls\.control.*its own"):
        InstrumentDevice(table)
    # Others for the controls; inputs and detectors are set and read anew each time.
    controls = table["layers"]["bank"]["controls"]["control"]
    other = {"control": {**controls, "channels": "17:32"}}
    table["layers"]["other"] = {**table["layers"]["bank"], "controls": other}
    InstrumentDevice(table)
