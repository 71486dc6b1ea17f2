"""Search for the hyperparameters that give the worst chips the best accuracy.

Optuna varies the radius of SAT and the learning rate. It maximises
`val_accuracy_p05`, the accuracy that 19 of 20 chips reach, not the nominal accuracy.

    pip install "keras-pnn[examples]"
    python examples/hyperparameters.py            # 20 trials: a minute or two
    python examples/hyperparameters.py --quick    # 4 short trials; rough figures
"""

import argparse
import sys

import keras
from keras import layers

import keras_pnn as pnn

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer trials and epochs")
parser.add_argument("--trials", type=int, help="how many, in place of 20 or 4")
args = parser.parse_args()
try:
    import optuna
except ImportError:
    sys.exit('Skipped: Optuna is missing. Install it with "keras-pnn[examples]".')

trials, epochs = (4, 6) if args.quick else (20, 20)
data = pnn.datasets.load("digits", verbose=False)
batches = pnn.datasets.Batches(data.x_train, data.y_train, batch_size=64, seed=0)
chips = pnn.Variation(resonance_shift=0.05)  # nm
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
# An untrained network does not learn on such chips: shifts grow over half the steps.
ramp = epochs * len(batches) // 2
model = pnn.SATModel(network, rho=0.1, variation=chips, warmup=ramp)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
model.optimizer.build(model.trainable_variables)
# One model serves all trials and is reset for each: a new model would be traced again,
# and TensorFlow frees the graphs of discarded models only in part.
variables = [*model.variables, *model.optimizer.variables]
start = [variable.numpy() for variable in variables]


def objective(trial) -> float:
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    model.rho = trial.suggest_float("rho", 0.01, 0.5, log=True)
    model.optimizer.learning_rate = trial.suggest_float("rate", 1e-3, 0.03, log=True)
    report = pnn.callbacks.RobustnessReport(
        data.x_test, data.y_test, variation=chips, n=40, spec=0.9, every=epochs
    )
    fit = model.fit(batches, epochs=epochs, verbose=0, callbacks=[report])
    return fit.history["val_accuracy_p05"][-1]


def show(study, trial):
    found = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items())
    print(f"{trial.number:2}: {found}: {100 * trial.value:.1f} %", flush=True)


optuna.logging.set_verbosity(optuna.logging.WARNING)
sampler = optuna.samplers.TPESampler(seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, args.trials or trials, callbacks=[show])
best = ", ".join(f"{name} {value:.3g}" for name, value in study.best_params.items())
print(f"Best: {best}: {100 * study.best_value:.1f} %")
