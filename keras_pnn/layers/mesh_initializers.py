"""Initialize the phases of an MZI mesh."""

import random

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.physics import decompose
from keras_pnn.physics.mesh import cell_mask


class MeshInitializer:
    """Base of initializers: `initializer(modes, arrangement)` returns `MeshPhases`.

    Args:
        seed: an integer, or `None` for a random one, which
            `keras.utils.set_random_seed` fixes. One seed always gives the same phases.

    Example:

    >>> phases = pnn.layers.mesh_initializers.Bar(seed=0)(4, "clements")
    >>> phases.theta.shape
    (4, 2)
    """

    def __init__(self, seed: int | None = None):
        self._given = seed
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, modes: int, arrangement: str) -> decompose.MeshPhases:
        raise NotImplementedError

    def get_config(self) -> dict:
        return {"seed": self._given}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Haar(MeshInitializer):
    """Draws the phases of a Haar-random unitary: `physics.decompose.haar_phases`.

    Args:
        seed: see `MeshInitializer`.

    Example:

    >>> mesh = pnn.layers.MZIMesh(4, phase_initializer=Haar(seed=0))
    """

    def __call__(self, modes, arrangement):
        return decompose.haar_phases(modes, self.seed, arrangement)


@keras.saving.register_keras_serializable(package="keras_pnn")
class UniformPhases(MeshInitializer):
    """Draws all phases uniformly: theta in [0, π], phi and gamma in [−π, π].

    The unitary is not Haar-random: light stays near the mode that it enters.

    Args:
        seed: see `MeshInitializer`.

    Example:

    >>> mesh = pnn.layers.MZIMesh(4, phase_initializer=UniformPhases(seed=0))
    """

    def __call__(self, modes, arrangement):
        generator = np.random.default_rng(self.seed)
        exists = cell_mask(modes, arrangement)
        theta = exists * self._theta(generator, exists.shape)
        phi = exists * generator.uniform(-np.pi, np.pi, exists.shape)
        gamma = generator.uniform(-np.pi, np.pi, modes)
        return decompose.MeshPhases(theta, phi, gamma, arrangement)

    def _theta(self, generator, shape):
        return generator.uniform(0, np.pi, shape)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Cross(UniformPhases):
    """Draws theta near 0: each cell swaps its modes, and the mesh mirrors them.

    Args:
        spread: standard deviation of theta, in rad.
        seed: see `MeshInitializer`.

    Raises:
        ValueError: If `spread` is negative or not finite.

    Example:

    >>> mesh = pnn.layers.MZIMesh(4, phase_initializer=Cross(spread=0.1, seed=0))
    """

    centre = 0.0

    def __init__(self, spread: float = 0.05, seed: int | None = None):
        super().__init__(seed)
        self.spread = _checks.real("spread", spread, low=0)

    def _theta(self, generator, shape):
        return self.centre + self.spread * generator.standard_normal(shape)

    def get_config(self) -> dict:
        return {"spread": self.spread, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_pnn")
class Bar(Cross):
    """Draws theta near π: light stays in its mode.

    Args:
        spread: standard deviation of theta, in rad.
        seed: see `MeshInitializer`.

    Example:

    >>> mesh = pnn.layers.MZIMesh(4, phase_initializer=Bar(spread=0.1, seed=0))
    """

    centre = np.pi


_NAMES = {"haar": Haar, "uniform": UniformPhases, "cross": Cross, "bar": Bar}


def get(identifier) -> MeshInitializer:
    """Returns a mesh initializer from a name, a configuration or an object.

    Args:
        identifier: `"haar"`, `"uniform"`, `"cross"`, `"bar"`, the configuration of an
            initializer, or a `MeshInitializer`.

    Returns:
        A `MeshInitializer`.

    Raises:
        ValueError: If `identifier` is anything else.

    Example:

    >>> type(get("cross")).__name__
    'Cross'
    """
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, MeshInitializer):
        expected = f"one of {sorted(_NAMES)} or a `MeshInitializer`"
        raise _checks.error("phase_initializer", expected, repr(identifier))
    return identifier
