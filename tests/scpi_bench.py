"""The bench of the example, simulated: its configuration and its network."""

import pathlib
import tomllib

import keras

import keras_pnn as pnn
from keras_pnn.hardware.instrument import simulator

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "instrument.toml"
BENCH = ("instruments", "bench")


def configuration(port=1, path=BENCH, **change):
    """The example's, for a port, with other entries at a path; `None` removes one."""
    table = tomllib.loads(EXAMPLE.read_text("utf-8"))
    bench = {"resource": simulator.resource(port), "timeout": 10.0}
    table["instruments"]["bench"] |= bench
    table["device"] = {"backoff": 0.0, "retries": 5}
    del table["layers"]["bank"]["controls"]["control"]["beyond"]
    inner = table
    for key in path:
        inner = inner[key]
    inner |= change
    for key in [key for key, value in change.items() if value is None]:
        del inner[key]
    return table


def network(seed=3, units=4, currents=None):
    """A bank of rings, perhaps with other currents in mA."""
    inputs = keras.Input((4,))
    bank = pnn.layers.MRRBank(
        units,
        use_bias=False,
        tuning=pnn.HeaterTuning(max_current=2.5),
        kernel_initializer=keras.initializers.RandomUniform(-0.6, 0.9, seed=seed),
        name="bank",
    )
    model = keras.Model(inputs, bank(inputs))
    if currents is not None:
        control = bank.controls["control"]
        control.assign(keras.ops.broadcast_to(currents, control.shape))
    return model
