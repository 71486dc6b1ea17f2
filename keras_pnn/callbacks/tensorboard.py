"""Write summaries that TensorBoard reads, without the TensorBoard package."""

import math
import os

import tensorflow as tf


class Summaries:
    """Writes summaries to a folder, as a context manager.

    TensorFlow's `tf.summary.scalar` needs the TensorBoard package. Here each summary
    names TensorBoard's plugin itself.
    """

    def __init__(self, log_dir: str | os.PathLike):
        self._log_dir = os.fspath(log_dir)

    def __enter__(self):
        # Outside any graph or strategy around `fit`.
        with tf.init_scope():
            self._writer = tf.summary.create_file_writer(self._log_dir)
        return self

    def __exit__(self, *error):
        self._writer.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers by name; NaN, for what was not measured, is left out."""
        for name, value in values.items():
            if not math.isnan(value):
                self._write(name, tf.constant(value, tf.float32), step, "scalars")

    def image(self, step: int, name: str, png: bytes, width: int, height: int) -> None:
        """Writes one picture, given as a PNG file's content."""
        content = tf.constant([str(width).encode(), str(height).encode(), png])
        self._write(name, content, step, "images")

    def _write(self, name, tensor, step, plugin):
        kind = tf.compat.v1.SummaryMetadata
        metadata = kind(plugin_data=kind.PluginData(plugin_name=plugin))
        with tf.init_scope(), self._writer.as_default(step=int(step)):
            tf.summary.write(name, tensor, metadata=metadata)
