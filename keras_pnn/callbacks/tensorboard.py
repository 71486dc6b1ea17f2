"""Write summaries that TensorBoard reads, without the TensorBoard package."""

import contextlib
import os
from collections.abc import Callable, Iterator

import tensorflow as tf


@contextlib.contextmanager
def summaries(log_dir: str | os.PathLike) -> Iterator[Callable]:
    """Yields a function that writes a tensor for one of TensorBoard's plugins.

    TensorFlow's `tf.summary.scalar` needs the TensorBoard package. Here each summary
    names TensorBoard's plugin itself.
    """
    # Outside any graph or strategy around `fit`.
    with tf.init_scope():
        writer = tf.summary.create_file_writer(os.fspath(log_dir))

    def write(step: int, name: str, tensor, plugin: str = "scalars") -> None:
        kind = tf.compat.v1.SummaryMetadata
        metadata = kind(plugin_data=kind.PluginData(plugin_name=plugin))
        with tf.init_scope(), writer.as_default(step=step):
            tf.summary.write(name, tensor, metadata=metadata)

    try:
        yield write
    finally:
        writer.close()
