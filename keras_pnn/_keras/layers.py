"""Find the layers inside a model, and the variables and states that they hold."""

import keras
from keras.src.random.seed_generator import global_seed_generator


def flat_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers in a model, without the models among them, once each.

    Layers come in the order in which they were attached, depth first, so that a
    wrapper and its inner model give the same list.
    """
    return [la for la in parts(model) if not isinstance(la, keras.Model)]


def parts(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a model and all models and layers inside, once each, depth first."""
    found: dict[int, keras.layers.Layer] = {}

    def walk(layer):
        if id(layer) not in found:
            found[id(layer)] = layer
            for inner in layer._layers:
                walk(inner)

    walk(model)
    return list(found.values())


def is_built(model: keras.layers.Layer) -> bool:
    """Tells whether a layer and all layers inside have their variables."""
    return all(layer.built for layer in parts(model))


def outputs_of(model: keras.Model, x):
    """Returns the symbolic outputs for a batch of inputs, and builds unbuilt layers.

    Only the shapes and dtypes of `x` are used.
    """
    symbols = [
        None if t is None else keras.KerasTensor(t.shape, t.dtype)
        for t in keras.tree.flatten(x)
    ]
    return model(keras.tree.pack_sequence_as(x, symbols))


def own_trainable(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the trainable variables that the layer itself holds."""
    return list(layer._trainable_variables)


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables that the layer itself holds, trainable ones first."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def seed_states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the states of the random generators of all layers."""
    return [
        generator.state
        for layer in parts(model)
        for generator in getattr(layer, "_seed_generators", ())
    ]


def global_seed_state() -> keras.Variable:
    """Returns the state of Keras' global generator, for layers without their own."""
    return global_seed_generator().state


def recurrent_states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the states that RNNs carry between batches, which Keras does not save."""
    return [
        state
        for layer in parts(model)
        for state in keras.tree.flatten(getattr(layer, "states", None))
        if isinstance(state, keras.Variable)
    ]
