"""Explain where an argument belongs if it was passed to the wrong place."""

import inspect

from keras_pnn.layers.limits import DAC
from keras_pnn.physics import tuning

_TUNINGS = (
    tuning.LorentzianTuning,
    tuning.HeaterTuning,
    tuning.MeasuredTuning,
    tuning.RingTunings,
)
# Listed here, since layers declare them in `build`, after arguments are checked.
_IMPERFECTIONS = (
    "resonance_shift",
    "half_width_error",
    "temperature",
    "reference_error",
    "theta_error",
    "phi_error",
    "splitter_error",
    "splitter_imbalance",
    "rotation",
    "shift",
    "scale",
    "tilt",
    "dead_pixels",
    "phase_gain",
    "phase_offset",
    "wavelength_shift",
    "distance_error",
    "decenter",
    "defocus",
    "astigmatism",
)


def place_of(name: str) -> str:
    """Returns where an argument of the design belongs, or `""` if it is unknown."""
    kinds = [k.__name__ for k in _TUNINGS if name in inspect.signature(k).parameters]
    if kinds:
        return (
            f"`{name}` is an argument of {' and '.join(kinds)}: give it there, as in "
            f"`MRRBank(10, tuning=pnn.{kinds[0]}({name}=…))`. "
        )
    if name in inspect.signature(DAC).parameters:
        return f"`{name}` is an argument of `pnn.layers.DAC`: `dac=pnn.layers.DAC(…)`. "
    return ""


def refuse_elsewhere(kind: type, unknown: dict) -> None:
    """Refuses unknown arguments that belong elsewhere; others are left to Keras."""
    for name, value in unknown.items():
        place = place_of(name)
        if name in _IMPERFECTIONS:
            place = (
                f"`{name}` is an imperfection, of a device and not of the design: draw "
                f"it with `pnn.Variation({name}=…)` or use `pnn.devices.sweep`. "
            )
        if place:
            raise ValueError(
                f"`{kind.__name__}` has no argument `{name}`. {place}"
                f"Received: {name}={value!r}"
            )
