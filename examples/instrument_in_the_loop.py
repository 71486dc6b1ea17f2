"""Trains a microring weight bank through laboratory instruments that speak SCPI.

The controls are first found on the computer, for the bank as it was designed. The bank
on the bench gets them, and is trained in the loop from there: its detectors give the
outputs, the model of the bank gives the gradients. PAT takes one measurement for a
step, SAT online two, the second where the loss is worst nearby.

Without --config, a simulated instrument stands in: a process of its own, reached over
TCP, whose rings are off by amounts that nobody else knows and which refuses some of the
commands.

    python examples/instrument_in_the_loop.py
    python examples/instrument_in_the_loop.py --quick               # to see it run
    python examples/instrument_in_the_loop.py --config my_bench.toml
"""

import argparse
import contextlib
import pathlib
import tomllib

import keras
import numpy as np

import keras_pnn as pnn
from keras_pnn.hardware.instrument import simulator

BENCH = pathlib.Path(__file__).resolve().parent / "instrument.toml"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=pathlib.Path, help="a bench, as a TOML file")
    parser.add_argument("--epochs", type=int, default=20, help="through the bench")
    parser.add_argument("--shift", type=float, default=0.04, help="std in nm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small part of it all")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


@contextlib.contextmanager
def configuration(args):
    """Yields the configuration of the bench that is asked for."""
    table = tomllib.loads((args.config or BENCH).read_text("utf-8"))
    if args.config is not None:
        yield table
        return
    options = {"shift": args.shift, "seed": args.seed, "refuse": 0.001, "noise": 1e-6}
    with simulator.running(**options) as port:
        table["instruments"]["bench"]["resource"] = simulator.resource(port)
        yield table


def irises(seed: int):
    """Three kinds of iris; 50 flowers for testing.

    The inputs are powers from 0 to 1 mW: three features, and a channel that is always
    lit, which takes the place of a bias.
    """
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x[:, 0] = 1.0
    low, high = np.append(0.0, x[:, 1:].min(axis=0)), x.max(axis=0)
    x = ((x - low) / (high - low)).astype("float32")[order]
    y = y[order]
    return (x[50:], y[50:]), (x[:50], y[:50])


def network() -> keras.Model:
    """A 4 x 4 bank; each kind has a detector, and the fourth stays without one."""
    inputs = keras.Input((4,))
    tuning = pnn.HeaterTuning(max_current=3.0)
    bank = pnn.layers.MRRBank(4, use_bias=False, tuning=tuning, name="bank")
    return keras.Model(inputs, keras.layers.Rescaling(10.0)(bank(inputs)))


def compiled(model: keras.Model, rate: float) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def measured(model: keras.Model, device, test) -> float:
    """The accuracy with the bank on the bench, in percent."""
    with device.installed(model):
        return 100 * model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]


def state_folder(name: str, args) -> pathlib.Path:
    """Where an interrupted run is kept; a run with another setting has another one."""
    bench = f"shift{args.shift:g}" if args.config is None else args.config.stem
    setting = f"{bench}_{args.epochs}epochs_seed{args.seed}"
    if args.quick:
        setting += "_quick"
    return args.out / f"instrument_{name}_{setting}"


def online(name: str, model: keras.Model, device, train, args) -> None:
    """Trains through the bench. A run that was interrupted goes on where it was."""
    if name == "PAT":
        trainer = pnn.PATModel(model, device=device)
    else:
        trainer = pnn.SATModel(model, rho=0.02, device=device)
    batches = pnn.datasets.Batches(*train, batch_size=20, seed=args.seed)
    compiled(trainer, 0.01).fit(
        batches,
        epochs=args.epochs,
        callbacks=[pnn.callbacks.Checkpoint(state_folder(name, args), every=5)],
    )


def main() -> None:
    args = arguments()
    if args.quick:
        args.epochs = 3
    train, test = irises(args.seed)
    keras.utils.set_random_seed(args.seed)
    model = compiled(network(), 0.03)
    print("On the computer")
    model.fit(*train, batch_size=20, epochs=20 if args.quick else 60, verbose=0)
    found = model.get_weights()
    rows = {"as designed": 100 * model.evaluate(*test, verbose=0)[1]}
    with configuration(args) as table, pnn.InstrumentDevice(table) as device:
        rows["on the bench"] = measured(model, device, test)
        for name in ("PAT", "SAT"):
            print(f"\n{name} through the bench")
            model.set_weights(found)
            online(name, model, device, train, args)
            rows[f"on the bench, after {name}"] = measured(model, device, test)
        print(f"\n{device.calls} calls, {device.failures} failed and were repeated")
    print("accuracy on test flowers (%)")
    for name, accuracy in rows.items():
        print(f"  {name:<28}{accuracy:6.1f}")


if __name__ == "__main__":
    main()
