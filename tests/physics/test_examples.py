"""The examples in the docstrings of all functions of the physics run."""

import doctest

import numpy as np
import pytest
import tensorflow as tf

from keras_pnn import physics

MODULES = [getattr(physics, name) for name in physics.__all__ if name != "tuning"]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.split(".")[-1])
def test_examples_run(module):
    names = {"np": np, "tf": tf, "decompose": physics.decompose, **vars(module)}
    finder = doctest.DocTestFinder(recurse=False)
    for function in {v for v in vars(module).values() if callable(v)}:
        if function.__module__.startswith(module.__name__):
            for example in finder.find(function, function.__name__, globs=names):
                assert doctest.DocTestRunner().run(example).failed == 0
