"""Define the fields that all results of curvature share."""

import dataclasses

import numpy as np

from keras_pnn._display import Shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LossResult(Shown):
    """Base of the results on a loss as a function of a model's variables.

    Args:
        variables: the paths of the variables.
        parameters: number of their elements.
        samples: the number of samples of the data.
        batch_size: samples per batch; `None` if a data set made the batches.
        batch_norm: `"frozen"` or `"batch"`.
        seed: seed of the random vectors.
    """

    variables: tuple[str, ...]
    parameters: int
    samples: int
    batch_size: int | None
    batch_norm: str
    seed: int

    # Fields in the variables' shapes, too long for `to_dict`.
    _long = ()

    def to_dict(self) -> dict:
        """Returns the fields without vectors in the variables' shapes, for JSON."""
        values = {}
        for field in dataclasses.fields(self):
            if field.name not in self._long:
                value = getattr(self, field.name)
                value = value.tolist() if isinstance(value, np.ndarray) else value
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    def _shown_names(self):
        # The common fields come last.
        names = super()._shown_names()
        common = [field.name for field in dataclasses.fields(LossResult)]
        hidden = {*common, *self._long}
        return [n for n in names if n not in hidden] + ["parameters", "samples"]

    def _made(self) -> str:
        return (
            f"{self.parameters} parameters, {self.samples} samples, batch norm "
            f"{self.batch_norm}, seed {self.seed}"
        )
