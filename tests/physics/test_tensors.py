import numpy as np
import pytest
import tensorflow as tf

from keras_pnn.physics import _tensors


@pytest.mark.parametrize(
    "value, dtype",
    [
        (0.1, "float32"),
        (np.ones(2), "float64"),
        (np.ones(2, int), "float32"),
        (np.float64(1.0), "float64"),
        (tf.ones(2), "float32"),
        (tf.ones(2, "float16"), "float32"),
    ],
)
def test_python_numbers_adopt_the_dtype_of_arrays(value, dtype):
    assert [t.dtype for t in _tensors.as_tensors(value, 0.5)] == [dtype, dtype]


def test_the_widest_array_decides():
    narrow, scalar = np.ones(2, "float32"), np.float64(1.0)
    assert _tensors.as_tensors(narrow, scalar)[1].dtype == "float32"
    assert _tensors.as_tensors(narrow, np.ones(2))[0].dtype == "float64"
    with pytest.raises(ValueError, match="complex128"):
        _tensors.as_tensors(narrow, np.array([1j]))
