"""Trains a weight bank through an instrument: for tests, some of which kill it.

python tests/hardware/train_through_instrument.py KIND PORT FOLDER OUT [kill]
"""

import os
import pathlib
import sys
import tomllib

import keras
import numpy as np

import keras_pnn as pnn

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "instrument.toml"


def data():
    """Four classes by the largest of four random mixtures."""
    rng = np.random.default_rng(0)
    x = rng.random((20, 4)).astype("float32")
    return x, np.argmax(x @ rng.normal(size=(4, 4)), axis=1)


def bench(port, timeout=10.0):
    """The example's bench at a port."""
    with open(EXAMPLE, "rb") as file:
        table = tomllib.load(file)
    instrument = table["instruments"]["bench"]
    instrument["resource"] = f"TCPIP0::127.0.0.1::{port}::SOCKET"
    instrument["timeout"] = timeout
    table["device"] = {"max_batch": 2, "retries": 6, "backoff": 0.001}
    return pnn.InstrumentDevice(table)


def network():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    tuning = pnn.HeaterTuning(max_current=2.5)
    layer = pnn.layers.MRRBank(4, use_bias=False, tuning=tuning, name="bank")
    return keras.Model(inputs, layer(inputs))


def train(kind, device, *callbacks, epochs=3):
    """Trains a bank and returns its variables and those of the optimizer."""
    model = network()
    if kind == "PAT":
        trainer = pnn.PATModel(model, device=device)
    else:
        trainer = pnn.SATModel(model, rho=0.05, device=device)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(0.05), loss)
    batches = pnn.datasets.Batches(*data(), batch_size=4, seed=3)
    callbacks = [*callbacks, pnn.callbacks.BatchOrder(batches)]
    trainer.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return [v.numpy() for v in [*trainer.weights, *trainer.optimizer.variables]]


class Watch(keras.callbacks.Callback):
    """Prints the epochs, and kills the process in the second one."""

    def __init__(self, kill):
        super().__init__()
        self.kill = kill

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        print("EPOCH", epoch, flush=True)

    def on_train_batch_end(self, batch, logs=None):
        if self.kill and (self.epoch, batch) == (1, 3):
            os.kill(os.getpid(), 9)


def main():
    kind, port, folder, out, *kill = sys.argv[1:]
    keeper = pnn.callbacks.Checkpoint(folder, every=3)
    device = bench(port)
    np.savez(out, *train(kind, device, keeper, Watch(kill)))
    print("CALLS", device.calls)


if __name__ == "__main__":
    main()
