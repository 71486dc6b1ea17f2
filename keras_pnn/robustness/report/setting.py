"""How a robustness report was made, as it is printed at its end."""

import keras
import numpy as np

from keras_pnn.robustness.inputs import sample_count

# Letters of a hash: enough to tell data sets apart by eye.
_HASH = 12


def data_setting(few, samples: int) -> dict[str, str]:
    """Returns the shapes of the data.

    Args:
        few: the first samples of `(x, y, …)`, arrays or structures of arrays.
        samples: how many samples there are.
    """
    return {
        f"shape of {name}": _shapes(part, samples)
        for name, part in zip("xy", few, strict=False)
    }


def study_setting(study, worst) -> dict:
    """Returns how one model was measured.

    Args:
        study: its `Study`.
        worst: its `WorstCase`, or `None`.
    """
    found = {"SHA-256 of the data": study._data[:_HASH], **study.setting()}
    calibration = study.evaluator._calibration
    if calibration is not None:
        found["calibration samples"] = sample_count(calibration)
    if worst is not None:
        restarts, losses = np.shape(worst.losses)
        found["search for the worst case"] = f"{restarts} starts × {losses - 1} steps"
    return found


def joint(settings: dict[str, dict]) -> dict:
    """Returns one setting for several models.

    Args:
        settings: name of a model → its setting.

    Returns:
        What all models have in common by its name, and what differs as
        `"<name> per model"`: a dictionary of models.
    """
    found = {}
    for key in dict.fromkeys(key for one in settings.values() for key in one):
        values = {label: one.get(key) for label, one in settings.items()}
        first, *others = values.values()
        if all(value == first for value in others):
            found[key] = first
        else:
            found[f"{key} per model"] = values
    return found


def _shapes(part, samples: int) -> str:
    arrays = [a for a in keras.tree.flatten(part) if a is not None]
    return " ".join(str((samples, *np.shape(a)[1:])) for a in arrays) or "none"
