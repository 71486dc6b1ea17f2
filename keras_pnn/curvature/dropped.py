"""Find second derivatives that TensorFlow drops, and the layers that lose them."""

import contextlib

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.curvature.graphs import LossGraphs
from keras_pnn.layers.context import Overrides

# How far the derivative of a gradient with respect to its upstream factor may be from
# the gradient, counted in gradients of single variables. Measured: 3e-5 at most over
# the models of `tests/keras_layers_table.py` and ReLU networks up to MobileNetV2 in
# single precision, 0.03 in half precision; 1 for each variable whose derivative is
# lost.
_LOST = 0.01
_LOST_IN_HALF = 0.2

# Rounding above which gradients are too coarse to be subtracted.
_COARSE = 1e-4

# Relative difference between a product and a difference of gradients above which layers
# are checked one by one (measured: 5e-4 at most for smooth models, up to 0.9 with
# ReLU), and the share of a layer's entries that must then differ.
_APART = 0.05
_MOST = 0.5


def check_second_derivatives(graphs: LossGraphs, batch: tuple) -> None:
    """Checks a Hessian-vector product against gradients, at a random point nearby.

    - A gradient is linear in the factor, 1, with which the loss enters
      backpropagation. Its derivative with respect to this factor is the gradient
      itself, up to rounding, even in models with kinks and noise. It is not if an
      operation's gradient has no derivative with respect to the upstream gradient, the
      only kind that TensorFlow is known to drop.
    - A custom layer may also lose the derivative of its gradient with respect to its
      inputs or weights. If there are custom layers, Hv is compared with a difference of
      two gradients. At kinks, as of ReLU, gradients jump and the two differ. Each
      custom layer is then compared separately, entry by entry: a kink changes few.
    """
    layers, variables = _keras.flat_layers(graphs.model), graphs.variables
    epsilon = max(map(rounding, [*variables, *layers]))
    rng = np.random.default_rng(0)
    cuts = np.cumsum(graphs.sizes)[:-1]

    # In units of each variable's root mean square, so that its unit does not matter.
    unit = np.repeat([_size(v) for v in variables], graphs.sizes)

    def derivatives(vector, point):
        """Returns Hv, the gradient g, and the factor's derivative of vᵀg."""
        _, *found = graphs.product(unit * vector, unit * point, *batch)
        product, gradient, linear = (array.numpy() for array in found)
        return unit * product, unit * gradient, float(linear)

    def losing(among):
        return _layers_that_lose(graphs.model, batch[0], graphs.training, among)

    direction, point = rng.standard_normal((2, len(unit)))
    # A nearby point may lie beyond the end of a measured curve.
    for scale in (0.1, 0.0):
        point = scale * point
        try:
            product, gradient, _ = derivatives(direction, point)
        except LookupError as error:
            raise _error(losing(layers), str(error)) from error
        if np.isfinite(gradient).all() and np.isfinite(product).all():
            break
    else:
        # The requested product is not finite either, and raises an error.
        return
    # Anything below this share of the whole may be rounding.
    share = min(100 * epsilon, epsilon**0.5)
    blocks = np.split(gradient, cuts)
    norms = np.array([np.linalg.norm(block) for block in blocks])
    kept = (norms > 0) & (norms >= share * norms.max())
    vector = np.concatenate(
        [
            block / norm**2 if keep else 0 * block
            for block, norm, keep in zip(blocks, norms, kept, strict=True)
        ]
    )
    # Half precision overflows at 65,504.
    most = np.abs(unit * vector).max() or 1.0
    defect = abs(derivatives(vector / most, point)[2] * most - kept.sum())
    if defect > (_LOST if epsilon < _COARSE else _LOST_IN_HALF):
        raise _error(losing(layers), "derivatives that are 0")
    own = [layer for layer in layers if not _is_known(layer)]
    if not own or epsilon > _COARSE:
        return
    step = epsilon ** (1 / 3)
    up, down = (
        derivatives(direction, point + sign * step * direction)[1] for sign in (1, -1)
    )
    difference = (up - down) / (2 * step)
    sizes = np.array(
        [
            [np.linalg.norm(part) for part in np.split(array, cuts)]
            for array in (difference - product, difference, product)
        ]
    )
    least = share * sizes.max() + 20 * epsilon / step * norms.max()
    scale = np.maximum(sizes[1] + sizes[2] + least, np.finfo(float).tiny)
    names = losing(own) if (sizes[0] / scale).max() > _APART else []
    if names:
        raise _error(names, "a product that differs from differences of gradients")


def _is_known(layer) -> bool:
    """Tells whether all functions of a layer are from Keras or this package."""
    if isinstance(layer, keras.layers.Lambda):
        return False
    functions = [type(layer), getattr(layer, "activation", None) or type(layer)]
    modules = [getattr(f, "__module__", None) or type(f).__module__ for f in functions]
    return all(m.startswith(("keras.", "keras_pnn.")) for m in modules)


def _size(value) -> float:
    """Returns the root mean square of a tensor or variable, or 1 if that is 0."""
    square = tf.reduce_mean(tf.cast(tf.convert_to_tensor(value), tf.float64) ** 2)
    return float(square) ** 0.5 or 1.0


def _error(names, received) -> ValueError:
    where = " and ".join(f"`{name}`" for name in names)
    where = f"layer {where}" if names else "the model's own `call` or its loss"
    return ValueError(
        f"The Hessian needs the second derivatives of {where}, which TensorFlow "
        f"drops. Received: {received}. Use operations whose gradients have "
        "derivatives there, or choose `variables` behind it only"
    )


def rounding(owner) -> float:
    """Returns the rounding of a variable's dtype or of a layer's compute dtype."""
    dtype = tf.as_dtype(getattr(owner, "compute_dtype", None) or owner.dtype)
    if not dtype.is_floating:
        return 0.0
    return float(ml_dtypes.finfo(dtype.as_numpy_dtype).eps)


# Single layers.


def _layers_that_lose(model, x, training, layers) -> list[str]:
    """Returns the names of the layers that lose second derivatives.

    Each is checked with the arguments of its first call in a run of the model.
    """
    found = {}

    def recorded(layer, call):
        def run(*args, **kwargs):
            found.setdefault(id(layer), (layer, args, kwargs))
            return call(*args, **kwargs)

        return run

    # Few samples meet few kinks. A model may have a fixed batch size.
    inputs = getattr(model, "inputs", None) or []
    if all(tensor.shape[0] is None for tensor in inputs):
        x = keras.tree.map_structure(lambda a: a if a is None else a[:2], x)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Overrides().scope(model))
        for layer in layers:
            replaced = _keras.replaced_call(layer, recorded(layer, layer.call))
            stack.enter_context(replaced)
        model(x, training=training)
    return [layer.name for layer, *call in found.values() if _loses(layer, *call)]


def _loses(layer, args, kwargs) -> bool:
    """Tells whether second derivatives of ½y² are lost, for a layer's outputs y.

    They are taken with respect to inputs and own variables, in a graph. With ½y²,
    gradients are continuous at a kink at y = 0, as of ReLU.
    """
    variables = _keras.own_trainable(layer)
    tensors = [a for a in keras.tree.flatten((args, kwargs)) if _is_real(a)]
    starts = [*tensors, *map(tf.convert_to_tensor, variables)]
    if not starts:
        return False
    rng = np.random.default_rng(0)
    directions = [
        tf.cast(_size(start) * rng.standard_normal(start.shape), start.dtype)
        for start in starts
    ]
    zero = tf.UnconnectedGradients.ZERO

    @tf.function(autograph=False)
    def derivatives(moved):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(moved)
            with tf.GradientTape() as inner:
                inner.watch(moved)
                values = iter(moved)
                given, named = keras.tree.map_structure(
                    lambda a: next(values) if _is_real(a) else a, (args, kwargs)
                )
                scope = Overrides(zip(variables, values, strict=True)).scope(
                    layer, rematerialize=False
                )
                with scope, _keras.twice_differentiable():
                    outputs = keras.tree.flatten(layer(*given, **named))
                wide = [tf.cast(y, tf.float64) for y in outputs if _is_real(y)]
                loss = tf.add_n([tf.reduce_sum(y**2) / 2 for y in wide] or [0.0])
            factor = tf.ones_like(loss)
            outer.watch(factor)
            gradients = inner.gradient(loss, moved, factor, zero)
        products = outer.gradient(gradients, moved, directions, zero)
        linear = [outer.gradient(g, factor, g, zero) for g in gradients]
        return gradients, products, linear

    try:
        gradients, products, linear = derivatives(starts)
    except LookupError:
        return True
    squares = [tf.reduce_sum(tf.cast(g, tf.float64) ** 2) for g in gradients]
    least = 1e-3 * max(squares)
    if any(
        s > least and abs(float(value / s) - 1) > _LOST_IN_HALF
        for value, s in zip(linear, squares, strict=True)
    ):
        return True
    epsilon = max(rounding(layer), *map(rounding, starts))
    if epsilon > _COARSE:
        return False
    step = epsilon**0.5

    def gradients_at(shift):
        pairs = zip(starts, directions, strict=True)
        return derivatives([s + tf.cast(shift, s.dtype) * d for s, d in pairs])[0]

    up, down = gradients_at(step), gradients_at(-step)
    return any(map(_mostly_apart, gradients, products, up, down, len(up) * [step]))


def _mostly_apart(gradient, product, up, down, step) -> bool:
    """Tells whether most entries of a product differ from the change of gradients."""
    epsilon = rounding(gradient)
    gradient, product, up, down = (
        np.ravel(tf.cast(a, tf.float64)) for a in (gradient, product, up, down)
    )
    difference = (up - down) / (2 * step)
    largest = np.maximum(np.abs(difference), np.abs(product))
    floor = 0.05 * np.median(largest)
    floor += 5 * epsilon / step * np.abs(gradient).max(initial=0)
    changing = largest > floor
    # A constant gradient, as behind a quantiser, has lost no derivative.
    told = np.abs(difference) > floor
    apart = np.abs(difference - product) > 0.15 * np.abs(difference) + floor
    return bool(changing.any()) and (told & apart)[changing].mean() > _MOST


def _is_real(value) -> bool:
    return tf.is_tensor(value) and value.dtype.is_floating
