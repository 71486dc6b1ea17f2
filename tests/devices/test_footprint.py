"""Which outputs differ between devices, and the memory that is counted for them."""

import keras
import numpy as np

import keras_pnn as pnn
from keras_pnn.devices.footprint import footprint


def hybrid():
    """A digital front end with normalisation, then a mesh."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    x = pnn.layers.Photodetector(name="power")(pnn.layers.MZIMesh(4, name="mesh")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="last")(x))


def test_memory_counts_what_differs_between_devices():
    model = hybrid()
    mesh = model.get_layer("mesh")
    # Bytes of a sample: the mesh's complex fields, their powers, three outputs.
    stacked = 4 * 8 + 4 * 4 + 3 * 4
    # Convolution, normalisation, ReLU and Flatten; Dense. Its input counts for none.
    shared = 4 * 6 * 6 * 3 * 4 + 4 * 4
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, model(inputs))
    sequence = keras.Sequential([keras.Input((8, 8, 1)), nested])
    for whole in (model, pnn.SATModel(model), nested, sequence):
        found = footprint(whole, [mesh.imperfections["theta_error"]])
        assert (found.shared, found.stacked) == (shared, stacked)
        names = ("conv", "mesh", "power", "last")
        differ = [found.differs(model.get_layer(n)) for n in names]
        assert differ == [False, True, True, True]
    everything = footprint(model, [model.get_layer("conv").kernel])
    assert (everything.shared, everything.stacked) == (0, shared + stacked)
    last = footprint(model, [model.get_layer("last").kernel])
    assert (last.shared, last.stacked) == (shared + stacked - 12, 12)
    assert last.weights < found.weights
    each = 10 * stacked + found.weights
    # Half of a small limit is kept for compiling, a tenth for what is not counted.
    assert found.devices(10, (10 * shared + 7.5 * each) / 0.4) == 7
    assert found.devices(10, 1.0) == 1


def test_memory_of_a_model_without_nodes_counts_every_layer():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.model = hybrid()
            self.bank = pnn.layers.MRRBank(3)

        def call(self, inputs):
            return self.bank(self.model(inputs))

    model = Plain()
    model(np.zeros((1, 8, 8, 1), "float32"))
    found = footprint(model, [model.bank.imperfections["temperature"]])
    assert found.differs(model.model.get_layer("conv"))
    assert found.shared == 0 and found.stacked > 4 * 6 * 6 * 3 * 4

    class Other(keras.Model):
        def call(self, inputs):
            return super().call(super().call(inputs))

    inner = hybrid()
    other = Other(inner.inputs, inner.outputs)
    found = footprint(other, [inner.get_layer("mesh").controls["theta"]])
    assert found.differs(inner.get_layer("conv"))


def test_patches_of_inputs_that_differ_are_counted():
    inputs = keras.Input((6, 6, 2))
    first = pnn.layers.MRRConv2D(3, 3, padding="same")
    second = pnn.layers.MRRConv2D(4, 3)
    model = keras.Model(inputs, second(first(inputs)))
    outputs = 4 * (36 * 3), 4 * (16 * 4)
    patches = 4 * 36 * 9 * 2, 4 * 16 * 9 * 3
    found = footprint(model, [first.imperfections["resonance_shift"]])
    assert found.shared == patches[0]
    assert found.stacked == outputs[0] + outputs[1] + patches[1]
    found = footprint(model, [second.imperfections["resonance_shift"]])
    assert found.shared == outputs[0] + patches[0] + patches[1]
    assert found.stacked == outputs[1]
