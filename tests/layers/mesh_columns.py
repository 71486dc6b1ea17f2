"""A mesh as a product of columns in NumPy, and what tests of meshes share."""

import numpy as np
import tensorflow as tf
from mesh_product import product

from keras_pnn.layers import MZIMesh
from keras_pnn.physics.mesh import cell_mask

ARRANGEMENTS = ("clements", "reck")


def unitary(n, seed=0):
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(2, n, n))
    q, r = np.linalg.qr(normal[0] + 1j * normal[1])
    return q * (np.diag(r) / np.abs(np.diag(r)))


def distance(layer, target):
    """How far the matrix of a layer is from another, ‖U − Û‖ / √units."""
    reached = np.asarray(layer.transfer_matrix())
    return np.linalg.norm(reached - target) / np.sqrt(len(target))


def within_a_turn(theta, phi, gamma, exists, low=0.0):
    """The phases in [low, low + 2π) of the same mesh, cell by cell from the output.

    `sign` is what is still to be multiplied to each mode behind the cell.
    """
    sign = np.ones(len(gamma))
    more = np.zeros(phi.shape)
    for k, j in sorted(np.argwhere(exists).tolist(), reverse=True):
        m = 2 * j + k % 2
        more[k, j] = np.pi * (sign[m] != sign[m + 1])
        turns = np.floor((theta[k, j] - low) / (2 * np.pi))
        sign[m] = sign[m + 1] = sign[m + 1] * (-1) ** turns
    raised = theta, phi + more, gamma + np.pi * (sign < 0)
    return [low + np.mod(phase - low, 2 * np.pi) for phase in raised]


# All imperfections of a mesh but for phases that are stuck.
ERRORS = ("theta_error", "phi_error", "splitter_error", "loss_db")


def as_set(layer, dac):
    """Control → phases that a converter sets, from the layer's present controls."""
    names = ("theta", "phi", "gamma")
    phases = [np.asarray(layer.controls[n], "float64") for n in names]
    exists = cell_mask(layer.units, layer.arrangement)
    within = within_a_turn(*phases, exists, layer.dac.low)
    return {n: dac(v) for n, v in zip(names, within, strict=True)}


def reference(layer, straight_db=0.0, crosstalk=None, dac=None):
    """The matrix of a mesh with its present variables, column by column."""
    c = {n: np.asarray(v, "float64") for n, v in layer.controls.items()}
    if dac is not None:
        c = as_set(layer, dac)
    e = {n: np.asarray(layer.imperfections[n], "float64") for n in ERRORS}
    exists = cell_mask(layer.units, layer.arrangement)
    theta, phi = exists * c["theta"], exists * c["phi"]
    if crosstalk is not None:
        both = crosstalk @ np.concatenate([theta.ravel(), phi.ravel()])
        theta, phi = both.reshape(2, *exists.shape)
    return product(
        theta,
        phi,
        c["gamma"],
        layer.arrangement,
        **{**e, "loss_db": np.maximum(e["loss_db"], 0)},
        straight_loss_db=straight_db,
    )


def built(*args, dtype="float64", **kwargs):
    layer = MZIMesh(*args, dtype=dtype, **kwargs)
    layer.build((None, layer.units))
    return layer


def imperfect(layer, rng):
    """Sets every imperfection, in slots without a cell too, which must not matter."""
    for name in ERRORS:
        variable = layer.imperfections[name]
        low, high = (0.0, 0.5) if name == "loss_db" else (-0.4, 0.4)
        variable.assign(rng.uniform(low, high, variable.shape))
    return layer


def fields(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def quantised(phase, bits=12, low=0.5, high=6.0):
    phase = np.clip(phase, low, high)
    step = (high - low) / (2**bits - 1)
    return low + step * np.round((phase - low) / step)


def objective(layer, x):
    """A real number that depends on every output's amplitude and phase."""
    mixture = tf.constant(fields(np.random.default_rng(7), layer.units), "complex128")
    outputs = layer(x)
    both = outputs * mixture + outputs[..., ::-1]
    weights = tf.constant(np.arange(1.0, layer.units + 1))
    return tf.reduce_sum(weights * tf.abs(both) ** 2)


def gradient_of(layer, x, which="controls"):
    variables = getattr(layer, which)
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in variables.values()])
        loss = objective(layer, x)
    gradients = tape.gradient(loss, [v.value for v in variables.values()])
    return {n: g.numpy() for n, g in zip(variables, gradients, strict=True)}
