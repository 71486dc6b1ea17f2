"""What all tests share."""

import gc

import keras
import numpy as np
import pytest


def pytest_collection_finish():
    # What is imported stays: the collector need not walk over it again and again.
    gc.collect()
    gc.freeze()


def _seed():
    keras.utils.set_random_seed(0)


# Initial weights are then the same in every run, in whatever order or process: a test
# passes always or never.
seeded_module = pytest.fixture(_seed, scope="module", autouse=True)
seeded_test = pytest.fixture(_seed, autouse=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
