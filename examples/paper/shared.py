"""Share networks, data and kept runs among the campaigns.

A kept run is not repeated; an interrupted run resumes.
"""

import json
import os
import pathlib
import time

import keras
import numpy as np
from keras import layers

import keras_pnn as pnn


def lenet5(
    normalization: str = "batch", digital: bool = False, seed: int = 0, **bank
) -> keras.Model:
    """Returns LeNet-5 with normalisation, its five weight tensors on microring banks.

    Args:
        normalization: "batch", as in the paper; or "sample", which subtracts the mean
            over the channels (uniform heating adds the same to each channel), and
            scales by the sample's own spread.
        digital: Dense and Conv2D in place of the banks, weights within ±0.999.
        seed: seed of the initial weights.
        **bank: arguments of the banks.
    """
    keras.utils.set_random_seed(seed)
    if digital:
        limit = {"kernel_constraint": pnn.layers.ControlRange(-0.999, 0.999)}
        conv, dense = layers.Conv2D, layers.Dense
    else:
        limit, conv, dense = bank, pnn.layers.MRRConv2D, pnn.layers.MRRBank

    def normalized(x):
        if normalization == "batch":
            return layers.ReLU()(layers.BatchNormalization()(x))
        x = x - keras.ops.mean(x, axis=-1, keepdims=True)
        return layers.ReLU()(layers.GroupNormalization(groups=1)(x))

    inputs = keras.Input((28, 28, 1))
    x = normalized(conv(6, 5, padding="same", **limit)(inputs))
    x = layers.MaxPooling2D()(x)
    x = normalized(conv(16, 5, **limit)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = normalized(dense(120, **limit)(x))
    x = normalized(dense(84, **limit)(x))
    return keras.Model(inputs, dense(10, **limit)(x), name="lenet5")


def as_in_pytorch(model: keras.Model, seed: int) -> keras.Model:
    """Sets initial weights and batch normalisation as in the authors' PyTorch.

    In layers with a bias (digital, microring and mask layers), weights and biases are
    drawn uniformly within ±1/√fan_in. Batch normalisation gets the momentum 0.9 in
    Keras' convention, and epsilon 1e-5.
    """
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum, layer.epsilon = 0.9, 1e-5
        if getattr(layer, "bias", None) is None:
            continue
        physical = isinstance(layer, pnn.layers.PhysicalLayer)
        weights = layer.controls.values() if physical else [layer.kernel]
        (shape,) = (v.shape for v in weights)
        if isinstance(layer, pnn.layers.MaskedSLM):
            shape = np.prod(shape[1:]), shape[0]
        limit = np.prod(shape[:-1]) ** -0.5
        # `program` sets the controls of rings and masks for weights.
        assign = layer.program if physical else layer.kernel.assign
        assign(generator.uniform(-limit, limit, shape))
        layer.bias.assign(generator.uniform(-limit, limit, layer.bias.shape))
    return model


def hybrid(
    start="cross",
    ports=10,
    clip: float | None = None,
    seed: int = 0,
    scale: float = 1.0,
    **mesh,
) -> keras.Model:
    """Returns a digital LeNet front end, a mesh of 64 modes, and photodiodes.

    The 64 features enter the mesh as real amplitudes. The intensities of all ports
    are normalised to a Euclidean length of 1. Those of `ports` are the logits, so
    that the cross-entropy cannot fall below 1.4612.

    Args:
        start: initializer of the phases, see `MZIMesh`.
        ports: the output ports, see `Photodetector`.
        clip: the largest digital weight, `None` for no limit.
        seed: seed of the initial weights.
        scale: factor of the logits.
        **mesh: further arguments of `MZIMesh`.
    """
    keras.utils.set_random_seed(seed)
    limits = {}
    if clip is not None:
        limit = pnn.layers.ControlRange(-clip, clip)
        limits = {"kernel_constraint": limit}
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters, padding in ((6, "same"), (16, "valid")):
        x = layers.Conv2D(filters, 5, padding=padding, **limits)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Dense(120, **limits)(layers.Flatten()(x))
    x = layers.Dense(64, **limits)(layers.BatchNormalization()(x))
    field = pnn.layers.MZIMesh(64, phase_initializer=start, **mesh)(x)
    outputs = pnn.layers.Photodetector(normalize="l2", ports=ports)(field)
    if scale != 1:
        outputs = layers.Rescaling(scale)(outputs)
    return keras.Model(inputs, outputs, name="hybrid")


def free_space(seed: int = 0, fill: bool = False, **slm) -> keras.Model:
    """Returns a free-space network 784–144–10 of masks, with a digital sigmoid.

    Args:
        seed: seed of the initial masks.
        fill: whether the masks of the second layer, 12 × 12, are magnified to fill
            the modulator (a frame of 96 × 224 pixels in place of 48 × 112), so that
            a shift of one SLM pixel is a smaller part of a mask pixel.
        **slm: further arguments of both `MaskedSLM` layers.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((28, 28, 1))
    hidden = pnn.layers.MaskedSLM(144, activation="sigmoid", name="slm_1", **slm)
    if fill:
        slm = {**slm, "pixel_repeat": (2, 4)}
    outputs = pnn.layers.MaskedSLM(10, name="slm_2", **slm)(hidden(inputs))
    return keras.Model(inputs, outputs, name="free_space")


def random_misalignment() -> pnn.Variation:
    """Returns offsets of each layer's frame: degrees, pixels, relative scale."""
    from tensorflow_probability import distributions as tfd

    return pnn.Variation(
        rotation=tfd.Uniform(-1.5, 1.5),
        shift=tfd.Uniform(-1.5, 1.5),
        scale=tfd.Uniform(-0.045, 0.065),
    )


def standardized(images: np.ndarray) -> np.ndarray:
    """Standardises pixels by MNIST's mean and standard deviation."""
    return (images - 0.1307) / 0.3081


def few(data, train: int = 1000, test: int = 200):
    """Returns the first images, for `--quick`, which only shows that a script runs."""
    print(
        f"--quick: {train} training images and few epochs, a minute or two. "
        "The figures mean nothing."
    )
    return data.head(train, test)


def compiled(model: keras.Model, optimizer="adam", jit: bool = False) -> keras.Model:
    """Compiles for logits; XLA on CPU can take twice as long for convolutions."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit)
    return model


def kept(path: pathlib.Path, **setting) -> bool:
    """Returns whether a run is kept; exits if it is kept with another setting."""
    if not path.exists():
        return False
    run = json.loads(path.read_text("utf-8"))
    other = {k: run.get(k) for k, v in setting.items() if run.get(k) != v}
    if other:
        raise SystemExit(
            f"{path} was made with {other}, not with "
            f"{ {k: setting[k] for k in other} }: move it, or choose another --out"
        )
    return True


def keep(path: pathlib.Path, run: dict) -> None:
    """Writes a run atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(run), "utf-8")
    os.replace(part, path)


def unfinished(folder: pathlib.Path, name: str, *setting) -> pathlib.Path:
    """Returns the folder of an unfinished run, which only the same setting resumes."""
    return folder / "_".join(["unfinished", name, *map(str, setting)])


def stepping(model: keras.Model, x, y):
    """Returns a function that takes a training step on a batch."""
    ascent = getattr(model, "ascent", None)
    if not isinstance(ascent, pnn.SAF):
        return lambda: model.train_on_batch(x, y)
    # `fit` would call these with the order of samples, the epoch, and each batch.
    callbacks = ascent.callbacks(lambda: None, pnn.datasets.Batches(x, y, len(x)))
    for callback in callbacks:
        callback.on_epoch_begin(1)

    def step():
        for callback in callbacks:
            callback.on_train_batch_begin(0)
        # Skips the check that the data are `Batches`.
        keras.Model.train_on_batch(model, x, y)

    return step


def step_times(
    models: dict[str, keras.Model], x, y, rounds: int
) -> dict[str, np.ndarray]:
    """Times steps of several models in turn, without the first ones, which compile.

    A round is five steps of each model, so that LookSAM(5) has one full step in it.

    Returns:
        name → (rounds, 2): seconds of a step by the clock and by the processor; the
        latter are valid under other load.
    """
    steps = {name: stepping(model, x, y) for name, model in models.items()}
    found = {name: [] for name in models}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            start = np.array([time.perf_counter(), time.process_time()])
            for _ in range(5):
                step()
            end = np.array([time.perf_counter(), time.process_time()])
            found[name].append((end - start) / 5)
    return {name: np.array(times[1:]) for name, times in found.items()}


def fit(model, batches, epochs: int, first_epoch: int = 0, callbacks=()) -> None:
    """Trains on the batches in the order that they define for each epoch."""
    model.fit(
        batches,
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,
        verbose=2,
        callbacks=[pnn.callbacks.BatchOrder(batches), *callbacks],
    )
