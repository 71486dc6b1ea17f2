"""Give each ring of a bank its own tuning curve."""

import os
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors
from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.measured import MeasuredTuning
from keras_pnn.physics.tuning.points import read_curves


@keras.saving.register_keras_serializable(package="keras_pnn")
class RingTunings(Tuning):
    """Tuning curves that differ from ring to ring.

    A weight-bank layer places them: with curves in rows and columns, ring (r, c) of the
    bank has curve (r mod rows, c mod columns); with a list, rings take the curves in
    turn, row by row. The layer raises an error for more curves than rings; give it a
    `bank_size` if the chip has more rings than the layer's matrix. All rings share one
    range of controls, which every curve covers.

    Args:
        tunings: Sequence of `MeasuredTuning`, `HeaterTuning` or `LorentzianTuning`
            with controls in one unit; or rows of them, all of one length.

    Attributes:
        tunings: Object array of the tunings, with one axis or two.

    Raises:
        ValueError: If there is no tuning, rows differ in length, units differ, or the
            ranges of controls do not overlap.

    Example:

    >>> rings = [pnn.HeaterTuning(offset=offset) for offset in (-0.3, -0.25, -0.4)]
    >>> bank = pnn.layers.MRRBank(3, tuning=pnn.RingTunings(rings))

    Reference:

    - Xu et al., arXiv:2411.12352: rings of one chip differ.
    """

    def __init__(self, tunings: Sequence):
        self.tunings = _as_array(tunings)
        flat = self.tunings.ravel()
        self.unit = flat[0].unit
        units = {tuning.unit for tuning in flat}
        if len(units) > 1:
            raise _checks.error("tunings", "in one unit", sorted(units))
        self._index = np.arange(flat.size).reshape(self.tunings.shape)
        low, high = self.control_range
        if not low < high:
            ranges = [list(tuning.control_range) for tuning in flat]
            expected = "with ranges of controls that overlap"
            raise _checks.error("tunings", expected, ranges)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike | Sequence,
        shape: tuple[int, int] | None = None,
        **options,
    ) -> "RingTunings":
        """Reads one measured curve for each ring.

        Args:
            path: A table with a column of controls and a column for each ring, in
                the format of `MeasuredTuning.from_csv`, except that a ring's column may
                have any name that does not end in a unit (`ring_a`, not `ring_A`); or a
                list of files, one for each ring.
            shape: Rows and columns of the rings on the bank. Default: a flat list.
            **options: The other arguments of `MeasuredTuning`, such as `efficiency`.

        Returns:
            A `RingTunings`.

        Raises:
            ValueError: As `MeasuredTuning.from_csv`, or if `shape` does not have one
                place for each ring. The message names the file.
            OSError: If a file cannot be read.

        Example:

        >>> two = pnn.RingTunings.from_csv(["ring.csv", "ring.csv"])
        """
        if isinstance(path, str | os.PathLike):
            curves = [MeasuredTuning(*curve, **options) for curve in read_curves(path)]
        else:
            curves = [MeasuredTuning.from_csv(one, **options) for one in path]
        if shape is None:
            return cls(curves)
        shape = _checks.pair("shape", shape, low=1)
        if len(curves) != shape[0] * shape[1]:
            received = f"{len(curves)} rings"
            raise _checks.error("shape", f"that of the rings of {path}", received)
        return cls(np.array(curves, object).reshape(shape))

    def placed(self, row: np.ndarray, column: np.ndarray, width: int) -> "RingTunings":
        found = type(self)(self.tunings)
        if self.tunings.ndim == 2:
            rows, columns = self.tunings.shape
            found._index = (row % rows) * columns + column % columns
        else:
            found._index = (row * width + column) % self.tunings.size
        return found

    def by_ring(self) -> list[tuple[Tuning, np.ndarray]]:
        """Returns each tuning, with a boolean array of the controls it applies to."""
        flat = self.tunings.ravel()
        return [(flat[i], self._index == i) for i in np.unique(self._index)]

    @property
    def control_range(self):
        """Lowest and highest control that every ring allows, in `unit`."""
        lows, highs = self._ends("control_range")
        return max(lows), min(highs)

    @property
    def training_range(self):
        """Lowest and highest control that layers train all rings within."""
        lows, highs = self._ends("training_range")
        return max(lows), min(highs)

    @property
    def weight_range(self):
        """Lowest and highest weight of any ring."""
        lows, highs = self._ends("weight_range")
        return min(lows), max(highs)

    def heater_shift(self, control: TensorLike):
        return self._tensors("heater_shift", control)

    def detuning(self, control: TensorLike):
        return self._tensors("detuning", control)

    def heater_power(self, control: TensorLike):
        """See `Tuning.heater_power`; `None` if a ring's tuning has no heater."""
        if any(t.heater_power(0.0) is None for t in self.tunings.ravel()):
            return None
        return self._tensors("heater_power", control)

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        return self._tensors("weight", control, shift, half_width_error)

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`; a ring's control may leave the common range."""
        return self._arrays("control", weight)

    def clip(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.clip`; clips to the range of each ring."""
        return self._arrays("clip", weight)

    def get_config(self) -> dict:
        rows = self.tunings.tolist()
        return {"tunings": keras.saving.serialize_keras_object(rows)}

    def __repr__(self):
        shape = " × ".join(map(str, self.tunings.shape))
        return f"RingTunings({shape}, {self.tunings.ravel()[0]!r}, …)"

    def _ends(self, name: str):
        """Returns the low and the high ends of one range of all rings."""
        return zip(*(getattr(t, name) for t in self.tunings.ravel()), strict=True)

    def _tensors(self, method: str, *arguments):
        """Calls a method of each tuning on the elements of its rings."""
        index = self._index.ravel()
        order = np.argsort(index, kind="stable")
        used, sizes = np.unique(index, return_counts=True)
        parts = [
            tf.split(tf.gather(tf.reshape(self._filled(a), [-1]), order), sizes)
            for a in as_tensors(*arguments)
        ]
        flat = self.tunings.ravel()
        found = [
            getattr(flat[i], method)(*own) for i, *own in zip(used, *parts, strict=True)
        ]
        results = tf.gather(tf.concat(found, axis=0), np.argsort(order))
        return tf.reshape(results, self._index.shape)

    def _arrays(self, method: str, values) -> np.ndarray:
        values = np.broadcast_to(self._known(values), self._index.shape)
        found = np.empty(self._index.shape)
        for tuning, here in self.by_ring():
            found[here] = getattr(tuning, method)(values[here])
        return found

    def _filled(self, tensor):
        """Broadcasts a tensor to one value for each ring."""
        try:
            return tf.broadcast_to(tensor, self._index.shape)
        except (ValueError, tf.errors.InvalidArgumentError):
            raise ValueError(
                "Controls must have one value for each ring, of shape "
                f"{self._index.shape}. Received: shape {tuple(tensor.shape)}"
            ) from None


def _as_array(tunings) -> np.ndarray:
    """Returns tunings, or rows of them, as an object array of one or two axes."""
    # Rows that differ in length stay lists.
    found = np.array(list(tunings) if np.iterable(tunings) else [], object)

    def single(one):
        return isinstance(one, Tuning) and not isinstance(one, RingTunings)

    if not found.size or found.ndim > 2 or not all(map(single, found.flat)):
        expected = "tunings, at least one, or rows of them, all of one length"
        raise _checks.error("tunings", expected, _checks.short(tunings))
    return found
