"""Find second derivatives that TensorFlow drops, and the layers that lose them."""

import contextlib

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.context import Overrides

# What may be missing of a gradient's derivative by its upstream factor, of 1, where
# rounding is that of single precision and of half precision.
_LOST = 0.01
_LOST_IN_HALF = 0.2

# A relative difference of a product from differences of gradients at which layers are
# looked at one by one, and the share of a layer's entries that must differ.
_APART = 0.1
_MOST = 0.5


def check_second_derivatives(graphs, batch: tuple) -> None:
    """Checks a Hessian-vector product against what gradients say.

    At a random point near the model's variables, and for a random direction v, on one
    batch:

    - A gradient is linear in the factor with which the loss enters backpropagation,
      so that its derivative by this factor, at 1, is the gradient itself. This is
      exact but for rounding, with kinks and noise too, and fails where an operation
      has no derivative of its gradient by the upstream gradient.
    - Hv is compared with a difference of two gradients. Kinks, as of ReLU, change
      gradients and not Hv. Therefore where both differ, each layer is compared by
      itself, entry by entry: a kink shows in few entries.

    Args:
        graphs: the `LossGraphs`.
        batch: a batch (x, y, sample_weight) of tensors.

    Raises:
        ValueError: If a second derivative is lost. The message names the layers.
    """
    model, variables, training = graphs.model, graphs.variables, graphs.training
    epsilon = max(map(_rounding, [*variables, *_keras.flat_layers(model)]))
    rng = np.random.default_rng(0)

    def near(width):
        """Draws a vector as long in each variable as the variable's values."""
        norms = [np.linalg.norm(v.numpy().astype("float64")) for v in variables]
        parts = [rng.standard_normal(tuple(v.shape)) for v in variables]
        sizes = [np.sqrt(part.size) for part in parts]
        scales = [width * (n or s) / s for n, s in zip(norms, sizes, strict=True)]
        pairs = zip(parts, scales, strict=True)
        return np.concatenate([np.ravel(part * scale) for part, scale in pairs])

    cuts = np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1]
    point, direction = near(0.1), near(1.0)
    step = epsilon ** (1 / 3)
    try:
        _, product, gradient, _ = graphs.product(direction, point, *batch)
    except LookupError as error:
        raise _lost(model, batch[0], training, str(error)) from error
    gradient, product = gradient.numpy(), product.numpy()
    blocks = [part for part in np.split(gradient, cuts) if part.any()]
    if not (blocks and np.isfinite(gradient).all() and np.isfinite(product).all()):
        # The product itself says so.
        return
    unit = np.concatenate(
        [part / (part @ part or 1.0) for part in np.split(gradient, cuts)]
    )
    *_, linear = graphs.product(unit, point, *batch)
    graphs.measured = {"linear": float(linear) - len(blocks), "blocks": len(blocks)}
    allowed = _LOST if epsilon < 1e-4 else _LOST_IN_HALF
    if abs(float(linear) - len(blocks)) > allowed * max(1, len(blocks) ** 0.5):
        raise _lost(model, batch[0], training, "derivatives that are 0")
    ends = [
        graphs.product(direction, point + sign * step * direction, *batch)[2].numpy()
        for sign in (1, -1)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    apart = []
    for d, p, g in zip(
        *(np.split(array, cuts) for array in (difference, product, gradient)),
        strict=True,
    ):
        norms = [np.linalg.norm(array) for array in (d, p, g)]
        scale = norms[0] + norms[1] + 20 * epsilon * norms[2] / step
        apart.append(np.linalg.norm(d - p) / scale if scale > 0 else 0.0)
    graphs.measured["apart"] = max(apart)
    if max(apart) > _APART:
        names = _layers_that_lose(model, batch[0], training)
        if names:
            raise _error(names, "a product that differs from differences of gradients")


def _lost(model, x, training, received) -> ValueError:
    return _error(_layers_that_lose(model, x, training), received)


def _error(names, received) -> ValueError:
    where = " and ".join(f"`{name}`" for name in names)
    where = f"layer {where}" if names else "the model's own `call` or its loss"
    return ValueError(
        f"The Hessian needs the second derivatives of {where}, which TensorFlow "
        f"drops. Received: {received}. Use operations whose gradients have "
        "derivatives there, or choose `variables` behind it only"
    )


def _rounding(owner) -> float:
    """Returns the rounding of a variable, or of what a layer computes in."""
    dtype = tf.as_dtype(getattr(owner, "compute_dtype", None) or owner.dtype)
    return float(ml_dtypes.finfo(dtype.as_numpy_dtype).eps) if dtype.is_floating else 0.0


# Single layers.


def _layers_that_lose(model, x, training) -> list[str]:
    """Returns the names of layers whose second derivatives are lost."""
    calls = _calls(model, x, training)
    return [layer.name for layer, *call in calls if _loses(layer, *call)]


def _calls(model, x, training) -> list[tuple]:
    """Runs a model; returns each layer, and the arguments of its first call."""
    found = {}

    def recorded(layer, call):
        def run(*args, **kwargs):
            found.setdefault(id(layer), (layer, args, kwargs))
            return call(*args, **kwargs)

        return run

    with contextlib.ExitStack() as stack:
        stack.enter_context(Overrides().scope(model))
        for layer in _keras.flat_layers(model):
            replaced = _keras.replaced_call(layer, recorded(layer, layer.call))
            stack.enter_context(replaced)
        model(x, training=training)
    return list(found.values())


def _loses(layer, args, kwargs) -> bool:
    """Tells whether second derivatives of a layer are lost in a graph.

    They are those of ½y² + ry, with fixed random r, by inputs and own variables.
    """
    tensors = [a for a in keras.tree.flatten((args, kwargs)) if _is_real(a)]
    variables = _keras.own_trainable(layer)
    starts = [*tensors, *map(tf.convert_to_tensor, variables)]
    if not starts:
        return False
    rng = np.random.default_rng(0)
    epsilon = max(_rounding(layer), *map(_rounding, starts))
    step = epsilon ** (1 / 3)
    directions = []
    for start in starts:
        size = float(tf.sqrt(tf.reduce_mean(tf.cast(start, tf.float64) ** 2))) or 1.0
        draw = size * rng.standard_normal(start.shape)
        directions.append(tf.cast(draw, start.dtype))

    @tf.function(autograph=False)
    def derivatives(moved, vectors):
        with tf.GradientTape() as outer:
            outer.watch(moved)
            with tf.GradientTape() as inner:
                inner.watch(moved)
                values = iter(moved)
                given = keras.tree.map_structure(
                    lambda a: next(values) if _is_real(a) else a, (args, kwargs)
                )
                own = Overrides(zip(variables, values, strict=True))
                with own.scope(layer, False), _keras.twice_differentiable():
                    outputs = layer(*given[0], **given[1])
                loss = tf.zeros((), tf.float64)
                for y in filter(_is_real, keras.tree.flatten(outputs)):
                    y = tf.cast(y, tf.float64)
                    r = tf.random.stateless_normal(tf.shape(y), (1, 2), tf.float64)
                    loss += tf.reduce_sum(y**2 / 2 + r * y)
            gradients = inner.gradient(
                loss, moved, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        products = outer.gradient(
            gradients,
            moved,
            output_gradients=vectors,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return gradients, products

    try:
        gradients, products = derivatives(starts, directions)
    except LookupError:
        return True
    ends = [
        derivatives(
            [
                s + tf.cast(sign * step, s.dtype) * d
                for s, d in zip(starts, directions, strict=True)
            ],
            directions,
        )[0]
        for sign in (1, -1)
    ]
    for g, p, *both in zip(gradients, products, *ends, strict=True):
        g, p, up, down = (np.ravel(tf.cast(a, tf.float64)) for a in (g, p, *both))
        difference = (up - down) / (2 * step)
        floor = 20 * epsilon * np.abs(g).max() / step + 1e-3 * np.abs(difference).max()
        # Where gradients are constant, as of rounding, nothing is lost.
        told = np.abs(difference) > floor
        apart = np.abs(difference - p) > 0.25 * np.abs(difference) + floor
        if told.any() and apart[told].mean() > _MOST:
            return True
    return False


def _is_real(value) -> bool:
    return tf.is_tensor(value) and value.dtype.is_floating
