"""Search for hyperparameters with which the bad chips are best.

Optuna varies the radius of SAT, the spread of the chips that it trains on and the
learning rate. What a trial is worth is `val_accuracy_p05`, the accuracy that 19 of 20
chips keep, and not the accuracy of the design.

    pip install "keras-pnn[examples]"
    python examples/hyperparameters.py            # 20 trials: about five minutes
    python examples/hyperparameters.py --quick    # 3 trials; rough figures
"""

import argparse
import gc
import sys

import keras
from keras import layers

import keras_pnn as pnn

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer trials and epochs")
parser.add_argument("--trials", type=int, default=None)
args = parser.parse_args()
try:
    import optuna
except ImportError:
    sys.exit('Skipped: Optuna is missing. Install it with "keras-pnn[examples]".')
trials, epochs = (3, 2) if args.quick else (20, 15)
data = pnn.datasets.load("digits", verbose=False)
chips = pnn.Variation(resonance_shift=0.05)  # nm, of the chips that count


def objective(trial) -> float:
    # All that a trial leaves behind is freed here, so that memory stays flat.
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            pnn.layers.MRRBank(32, activation="relu"),
            pnn.layers.MRRBank(10),
        ]
    )
    spread = trial.suggest_float("spread", 0.005, 0.1, log=True)
    model = pnn.SATModel(
        network,
        ascent=pnn.ASAM(rho=trial.suggest_float("rho", 0.02, 2.0, log=True)),
        variation=pnn.Variation(resonance_shift=spread),
    )
    rate = trial.suggest_float("rate", 1e-3, 1e-1, log=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    report = pnn.callbacks.RobustnessReport(
        data.x_test, data.y_test, variation=chips, n=40, spec=0.9, every=epochs
    )
    batches = pnn.datasets.Batches(data.x_train, data.y_train, batch_size=64, seed=0)
    kept = model.fit(batches, epochs=epochs, verbose=0, callbacks=[report])
    return kept.history["val_accuracy_p05"][-1]


def show(study, trial):
    found = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items())
    print(f"{trial.number:2}: {found}: {100 * trial.value:.1f} %", flush=True)


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
)
study.optimize(objective, args.trials or trials, callbacks=[show])
print(f"Best: {study.best_params}, {100 * study.best_value:.1f} %")
