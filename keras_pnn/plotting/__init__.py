"""Plot arrays with Matplotlib, which is imported when a plot is made.

Functions draw on `ax`, a Matplotlib axis, by default that of a new figure, and return
the axis. `xlabel`, `ylabel` and `unit` are labels with the unit.
"""

from keras_pnn.plotting.axes import new_figure, save
from keras_pnn.plotting.curves import (
    bands,
    density,
    distributions,
    histograms,
    sweep,
    tuning_curve,
    yields,
)
from keras_pnn.plotting.maps import heat_map, images, landscapes, matrices, planes

__all__ = [
    "bands",
    "density",
    "distributions",
    "heat_map",
    "histograms",
    "images",
    "landscapes",
    "matrices",
    "new_figure",
    "planes",
    "save",
    "sweep",
    "tuning_curve",
    "yields",
]
