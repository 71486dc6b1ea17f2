"""Search for the phases of a mesh that give a matrix, if some shifters are stuck."""

import numpy as np
import tensorflow as tf

from keras_pnn.physics import mesh

_PHASES = ("theta", "phi", "gamma")
# Highest number of steps, and the relative reduction at which the search ends.
_STEPS, _END = 500, 1e-9


def phases_around_stuck(layer, unitary: np.ndarray, stuck: dict, errors: dict) -> dict:
    """Searches for the phases, in rad, that bring a mesh nearest to a matrix.

    Uses L-BFGS from the present phases, in float64, without losses and converter.
    `stuck` maps each control to its `<name>_stuck`; `errors` holds the known errors.
    """
    from scipy import optimize

    start = {n: np.asarray(layer.controls[n], "float64") for n in _PHASES}
    free, known = {}, {}
    for n in _PHASES:
        is_stuck = stuck[n][..., 0] > 0.5
        free[n] = layer.quantity(n).exists & ~is_stuck
        known[n] = np.where(is_stuck, stuck[n][..., 1], start[n])
    slots = {n: np.argwhere(free[n]) for n in _PHASES}
    sizes = [len(slots[n]) for n in _PHASES]

    def phases(values):
        parts = dict(zip(_PHASES, tf.split(values, sizes), strict=True))
        return {
            n: tf.tensor_scatter_nd_update(known[n], slots[n], parts[n])
            for n in _PHASES
        }

    def square(values):
        found = mesh.transfer_matrix(
            **phases(values),
            **errors,
            arrangement=layer.arrangement,
            crosstalk=layer.crosstalk,
        )
        return tf.reduce_sum(tf.abs(found - unitary) ** 2) / len(unitary)

    @tf.function(autograph=False)
    def slope(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = square(values)
        return loss, tape.gradient(loss, values)

    result = optimize.minimize(
        lambda z: tuple(a.numpy() for a in slope(tf.constant(z))),
        np.concatenate([start[n][free[n]] for n in _PHASES]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": _END, "maxcor": 20},
    )
    found = phases(tf.constant(result.x))
    return {n: found[n].numpy() for n in _PHASES}
