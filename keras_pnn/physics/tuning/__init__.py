"""Compute the weight of a microring from its control, and back."""

import keras

from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.heater import HeaterTuning
from keras_pnn.physics.tuning.lorentzian import LorentzianTuning
from keras_pnn.physics.tuning.measured import MeasuredTuning
from keras_pnn.physics.tuning.per_ring import RingTunings
from keras_pnn.physics.tuning.resonance_fit import TuningFit

__all__ = [
    "HeaterTuning",
    "LorentzianTuning",
    "MeasuredTuning",
    "RingTunings",
    "Tuning",
    "TuningFit",
    "get",
]


def get(identifier=None) -> Tuning:
    """Returns a tuning.

    Args:
        identifier: `None` (a `LorentzianTuning()`), a `Tuning`, its config dict from
            `keras.saving.serialize_keras_object`, or a name: `"lorentzian"`,
            `"heater"`, or the class name of one of these two.

    Returns:
        A `Tuning`.

    Raises:
        ValueError: If `identifier` is anything else.

    Example:

    >>> get("heater").unit
    'mA'
    """
    names = {"lorentzian": LorentzianTuning, "heater": HeaterTuning}
    names |= {kind.__name__.lower(): kind for kind in list(names.values())}
    if identifier is None:
        return LorentzianTuning()
    if isinstance(identifier, str) and identifier.lower() in names:
        return names[identifier.lower()]()
    if isinstance(identifier, dict) and "class_name" in identifier:
        kinds = (LorentzianTuning, HeaterTuning, MeasuredTuning, RingTunings)
        identifier = keras.saving.deserialize_keras_object(
            identifier, custom_objects={kind.__name__: kind for kind in kinds}
        )
    if isinstance(identifier, Tuning):
        return identifier
    raise ValueError(
        "Argument `tuning` must be None, a Tuning, its config dict, 'lorentzian' or "
        f"'heater'. Received: {identifier!r}"
    )
