"""Train a microring weight bank through laboratory instruments that speak SCPI.

The controls are first trained on the computer, on the nominal bank. The bank on the
bench starts from them and is trained in the loop: its detectors give the outputs, the
model of the bank gives the gradients. PAT takes one measurement per step, SAT online
two, the second where the loss is worst nearby.

The bench is a simulated instrument: a separate process, reached over TCP, whose rings
have shifts unknown to the model, and which refuses some commands. For your own
instruments, write a file such as instrument.toml, and omit `simulator.running`.

    python examples/instrument_in_the_loop.py            # about a minute
    python examples/instrument_in_the_loop.py --quick    # a quarter of a minute
"""

import argparse
import pathlib
import tomllib

import keras
import numpy as np
from sklearn.datasets import load_iris

import keras_pnn as pnn
from keras_pnn.hardware.instrument import simulator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer epochs on the bench")
quick = parser.parse_args().quick
epochs = 3 if quick else 20
folder = pathlib.Path("results", f"instrument_{epochs}epochs")
bench = tomllib.loads(
    pathlib.Path(__file__).with_name("instrument.toml").read_text("utf-8")
)
# Powers from 0 to 1 mW: three features of a flower, and a channel of constant power in
# place of a bias.
x, y = load_iris(return_X_y=True)
x = ((x - x.min(axis=0)) / np.ptp(x, axis=0)).astype("float32")
x[:, 0] = 1.0
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order], y[order]
train, test = (x[50:], y[50:]), (x[:50], y[:50])
batches = pnn.datasets.Batches(*train, batch_size=20, seed=0)


def compiled(model, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def accuracy():
    return 100 * model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]


# A 4 x 4 bank: each of three kinds of iris has a detector; the fourth has no class.
keras.utils.set_random_seed(0)
tuning = pnn.HeaterTuning(max_current=3.0)  # mA
layers = [pnn.layers.MRRBank(4, use_bias=False, tuning=tuning, name="bank")]
layers += [keras.layers.Rescaling(10.0)]
model = compiled(keras.Sequential([keras.Input((4,)), *layers]), 0.03)
model.fit(*train, batch_size=20, epochs=60, verbose=0)
found = model.get_weights()
print(f"accuracy on test flowers, as designed: {accuracy():.1f} %")
simulated = simulator.running(shift=0.04, refuse=0.001, noise=1e-6)  # nm, –, A
with simulated as port:
    bench["instruments"]["bench"]["resource"] = simulator.resource(port)
    with pnn.InstrumentDevice(bench) as device:
        with device.installed(model):
            print(f"on the bench: {accuracy():.1f} %")
        pat = pnn.PATModel(model, device=device)
        sat = pnn.SATModel(model, rho=0.02, device=device)
        for name, trainer in (("PAT", pat), ("SAT", sat)):
            model.set_weights(found)
            # Resumes an interrupted run.
            state = pnn.callbacks.Checkpoint(folder / name, every=5)
            compiled(trainer, 0.01).fit(batches, epochs=epochs, callbacks=[state])
            with device.installed(model):
                print(f"on the bench, after {name}: {accuracy():.1f} %")
        print(f"{device.calls} calls, {device.failures} failed and were retried")
