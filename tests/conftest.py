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
    tf.random.set_seed = functools.lru_cache(maxsize=1)(tf.random.set_seed)


def pytest_collectstart():
    _prepare()


def pytest_collection_finish():
    # What is imported stays: the collector need not walk over it again and again.
    gc.collect()
    gc.freeze()


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
