"""What all tests share.

The controller of several workers loads this file, too, and needs no TensorFlow, whose
import takes seconds.
"""

import functools
import gc

import numpy as np
import pytest


@functools.cache
def _prepare():
    import tensorflow as tf

    # Networks are tiny, and each core has a worker: more threads wait for each other.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # With each seed that it is given, TensorFlow forgets the kernels of all operations,
    # which takes longer than many a test. Nothing here draws from its own generator.
    tf.random.set_seed(0)
    tf.random.set_seed = lambda seed: None
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    ArrayDataAdapter.get_tf_dataset = _in_order(ArrayDataAdapter.get_tf_dataset)
    tf.data.Dataset.__iter__ = _without_tuning(tf.data.Dataset.__iter__)


def _in_order(get_tf_dataset):
    """Cuts arrays that are not shuffled into the batches that Keras makes of them.

    It traces three functions for each call of `fit` or `evaluate`, which takes longer
    than the eager steps of a small network.
    """
    import tensorflow as tf
    from keras.src import tree
    from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable

    @functools.wraps(get_tf_dataset)
    def batches(self):
        if self._shuffle:
            return get_tf_dataset(self)
        arrays = convert_to_sliceable(self._inputs, target_backend="tensorflow")
        data = tf.data.Dataset.from_tensor_slices(tree.lists_to_tuples(arrays))
        return data.batch(self._batch_size)

    return batches


def _without_tuning(iterate):
    """Leaves out what makes a long series of batches faster.

    The thread that tunes it sleeps for as long as its iterator has lived, up to a
    minute, and the iterator's end waits for that: after a run that failed, and whose
    error was held, tests stood still.
    """
    import tensorflow as tf

    def iterated(self):
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        return iterate(self.with_options(options))

    return iterated


def pytest_collectstart():
    _prepare()


def pytest_collection_finish():
    # What is imported stays: the collector need not walk over it again and again,
    # nor over all that a test has made.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def _seed():
    import keras

    keras.utils.set_random_seed(0)


# Initial weights are then the same in every run, in whatever order or process: a test
# passes always or never.
seeded_module = pytest.fixture(_seed, scope="module", autouse=True)
seeded_test = pytest.fixture(_seed, autouse=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Layers in double precision, and losses, which Keras adds up in `floatx`."""
    import keras
    from models import policy

    with policy("float64"):
        keras.config.set_floatx("float64")
        yield
        keras.config.set_floatx("float32")


@pytest.fixture
def small_error_networks(monkeypatch):
    """Of one scale instead of three: the U-Nets themselves have tests of their own."""
    from keras_pnn.training.dat import error_networks

    monkeypatch.setattr(error_networks, "WIDTHS", (4,))
