"""Where the phases of an MZI mesh start."""

import random

import keras
import numpy as np

from keras_pnn._checks import as_real
from keras_pnn.physics import decompose
from keras_pnn.physics.mesh import cell_mask


class MeshInitializer:
    """The base of all: `initializer(modes, arrangement)` returns `MeshPhases`.

    Args:
        seed: an integer, or `None` for one that follows
            `keras.utils.set_random_seed`. A seed always gives the same phases.
    """

    def __init__(self, seed: int | None = None):
        self._given = seed
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, modes: int, arrangement: str) -> decompose.MeshPhases:
        raise NotImplementedError

    def get_config(self):
        return {"seed": self._given}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _uniform(self, shape, generator):
        return generator.uniform(-np.pi, np.pi, shape)


@keras.saving.register_keras_serializable(package="keras_pnn")
class Haar(MeshInitializer):
    """Phases of a Haar-random unitary, see `physics.decompose.haar_phases`."""

    def __call__(self, modes, arrangement):
        return decompose.haar_phases(modes, self.seed, arrangement)


@keras.saving.register_keras_serializable(package="keras_pnn")
class UniformPhases(MeshInitializer):
    """All phases uniform: theta in [0, π], phi and gamma in [−π, π].

    The unitary is not Haar-random: light stays close to where it enters.
    """

    def __call__(self, modes, arrangement):
        generator = np.random.default_rng(self.seed)
        exists = cell_mask(modes, arrangement)
        theta = exists * generator.uniform(0, np.pi, exists.shape)
        phi = exists * self._uniform(exists.shape, generator)
        gamma = self._uniform(modes, generator)
        return decompose.MeshPhases(theta, phi, gamma, arrangement)


class _Around(MeshInitializer):
    """theta around one value; phi and gamma uniform.

    Args:
        spread: standard deviation of theta, in rad.
        seed: see `MeshInitializer`.

    Raises:
        ValueError: `spread` is negative or not finite.
    """

    centre: float

    def __init__(self, spread: float = 0.05, seed: int | None = None):
        super().__init__(seed)
        if not 0 <= as_real(spread) < np.inf:
            raise ValueError(
                "`spread` must be a finite number >= 0, in rad. "
                f"Received: spread={spread!r}"
            )
        self.spread = float(spread)

    def __call__(self, modes, arrangement):
        generator = np.random.default_rng(self.seed)
        exists = cell_mask(modes, arrangement)
        theta = self.centre + self.spread * generator.standard_normal(exists.shape)
        phi = exists * self._uniform(exists.shape, generator)
        gamma = self._uniform(modes, generator)
        return decompose.MeshPhases(exists * theta, phi, gamma, arrangement)

    def get_config(self):
        return {"spread": self.spread, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_pnn")
class Cross(_Around):
    """theta near 0: each cell swaps its modes, and the mesh mirrors them.

    Args:
        spread: standard deviation of theta, in rad.
        seed: see `MeshInitializer`.
    """

    centre = 0.0


@keras.saving.register_keras_serializable(package="keras_pnn")
class Bar(_Around):
    """theta near π: light stays in its mode.

    Args:
        spread: standard deviation of theta, in rad.
        seed: see `MeshInitializer`.
    """

    centre = np.pi


_NAMES = {"haar": Haar, "uniform": UniformPhases, "cross": Cross, "bar": Bar}


def get(identifier) -> MeshInitializer:
    """Returns the initializer of a name, a configuration or an object.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, MeshInitializer):
        raise ValueError(
            f"A mesh starts from one of {sorted(_NAMES)} or a `MeshInitializer`. "
            f"Received: {identifier!r}"
        )
    return identifier
