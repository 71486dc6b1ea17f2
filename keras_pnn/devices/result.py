"""Hold the loss and the metrics of one model on many devices."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class DeviceEvaluation:
    """Loss and metrics of one model on many devices.

    Args:
        values: name → array (devices,), the loss and the metrics; with further axes
            for a metric that is an array itself. All metrics are NaN for a device
            that gives NaN for some sample.
        samples: number of samples that each device was given.
        batch_size: samples at once.
        vectorized: whether the devices ran in one graph.
        batch_norm: statistics of batch normalisation, as in `DeviceEvaluator`.

    Example:

    >>> found = pnn.evaluate_devices(model, x_test, y_test, devices, verbose=0)
    >>> found["accuracy"].shape, found.summary("accuracy")["p05"]
    >>> print(found.table())
    """

    values: dict[str, np.ndarray]
    samples: int
    batch_size: int
    vectorized: bool
    batch_norm: str = "frozen"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __len__(self):
        return len(self.values["loss"])

    def summary(self, name: str) -> dict[str, float]:
        """Returns mean, std, 5th percentile, median, minimum and maximum."""
        v = self.values[name]
        return {
            "mean": float(np.mean(v)),
            "std": float(np.std(v)),
            "p05": float(np.percentile(v, 5)),
            "median": float(np.median(v)),
            "min": float(np.min(v)),
            "max": float(np.max(v)),
        }

    def to_dict(self) -> dict:
        """Returns everything in JSON's types."""
        return {
            **dataclasses.asdict(self),
            "values": {n: v.tolist() for n, v in self.values.items()},
        }

    def table(self) -> str:
        """Returns one line for each metric."""
        columns = ("mean", "std", "p05", "min", "max")
        rows = [f"{'':>16}  " + " ".join(f"{c:>9}" for c in columns)]
        for name in self.values:
            summary = self.summary(name)
            cells = " ".join(f"{summary[c]:9.4f}" for c in columns)
            rows.append(f"{name:>16}  {cells}")
        return "\n".join(rows)
