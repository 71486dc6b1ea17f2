"""Plot arrays with Matplotlib, which is imported when a plot is made."""

from keras_pnn.plotting.axes import new_figure, save
from keras_pnn.plotting.lines import bands, density, sweep, tuning_curve, yields
from keras_pnn.plotting.maps import heat_map, images, landscapes, matrices
from keras_pnn.plotting.samples import distributions, histograms

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
    "save",
    "sweep",
    "tuning_curve",
    "yields",
]
