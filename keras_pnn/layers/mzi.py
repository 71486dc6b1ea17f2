"""Multiply fields by a unitary matrix, with a mesh of Mach–Zehnder interferometers.

To add an imperfection of the mesh:

1. Declare it in `MZIMesh.build`. Devices, drift, sweeps and `MZIDense`, which holds two
   meshes, then know it, and `_settings` passes it on. `check_given` limits its values.
2. Make it a keyword of `transfer_matrix`, which passes it on, and of `acquired`, both
   in `physics/mesh/transfer.py`. In `acquired`, check it, compare its shape and add it
   to the phases; the matrix and the monitors of `pnn.Adjoint` use the result.
3. If it changes the cells: return it from `acquired`, and use it in
   `physics.interferometer.entries` and in `physics/mesh/monitors.py`.
4. Add it to `_known_errors`, for the distances that `wrap` and `correct` return, and to
   `decompose.correct` in `physics/decompose/correction.py`, which compensates it.
5. Add it to the names in `layers/belonging.py`, for the error if a layer is given it,
   and to the references in `tests/physics/mesh_product.py` and
   `tests/layers/mesh_columns.py`.
"""

from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _warnings
from keras_pnn.layers import mesh_initializers
from keras_pnn.layers.fields import FieldOutputs
from keras_pnn.layers.limits import DAC, get_dac
from keras_pnn.layers.mesh_program import phases_around_stuck
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics import decompose, interferometer, mesh
from keras_pnn.physics.mesh.monitors import monitored

_PHASES = ("theta", "phi", "gamma")


def _angle(imbalance):
    # A Gaussian draw may leave the range of a splitter.
    return interferometer.angle_from_imbalance(tf.clip_by_value(imbalance, -1.0, 1.0))


def as_matrix(name: str, value, shape: tuple[int, int]) -> np.ndarray:
    """Returns a real or complex matrix of a given shape as complex128."""
    try:
        found = np.asarray(value)
    except ValueError:
        found = np.array(None)
    if found.shape != shape or found.dtype.kind not in "fiuc":
        received = f"shape {found.shape}, dtype {found.dtype}"
        raise _checks.error(name, f"a matrix of shape {shape}", received)
    return found.astype("complex128")


def relative_distance(reached: np.ndarray, target: np.ndarray) -> float:
    """Returns ‖reached − target‖_F / ‖target‖_F; a unitary's norm is √units."""
    # In units of the largest element, as squares of 1e200 overflow.
    scale = np.abs(target).max() or 1.0
    apart = np.linalg.norm((reached - target) / scale)
    return float(apart and apart / np.linalg.norm(target / scale))


@keras.saving.register_keras_serializable(package="keras_pnn")
class MZIMesh(FieldOutputs, PhysicalLayer):
    """A unitary matrix as a mesh of Mach–Zehnder interferometers.

    outputs = U(theta, phi, gamma) · inputs, for complex fields. See
    `keras_pnn.physics.mesh` for the equations and the order of the parts.

    Controls: `theta` and `phi` in rad, (columns, modes // 2), and `gamma` in rad,
    (modes,). Imperfections: `theta_error` and `phi_error` in rad, in the shape of the
    phases; `splitter_error` in rad, (columns, modes // 2, 2), in the order in which
    light meets the two splitters; `loss_db`, in the shape of the phases; and
    `theta_stuck`, `phi_stuck`, `gamma_stuck`, phases that cannot be set, see
    `pnn.Stuck`. The power imbalance `splitter_imbalance` is an alias of
    `splitter_error`; draws of it are clipped to [−1, 1]. Values in slots without a cell
    are ignored. They stay at 0, unless a constraint, which acts on all slots, changes
    them.

    Phases have no scale: adding 2π to `phi` or `gamma` changes nothing, and adding 2π
    to `theta` flips the sign of a cell, which `phi` and `gamma` can compensate (see
    `wrap`). Use `SAM` for phases, since the ascent of `ASAM` is proportional to them.

    Args:
        units: number of modes, at inputs and at outputs, 2 or more.
        arrangement: `"clements"`, a rectangle of `units` columns, or `"reck"`, a
            triangle of `2 * units - 3`.
        phase_initializer: `"haar"`, `"uniform"`, `"cross"`, `"bar"`, or an object
            from `keras_pnn.layers.mesh_initializers`.
        phase_regularizer: Keras regularizer of `theta` and `phi`.
        phase_constraint: Keras constraint of `theta` and `phi`.
        loss_db: insertion loss of the cells of the design, in dB. A number is the
            nominal value of the imperfection. An array in the shape of the phases is
            the loss of each cell; the imperfection is then nominally 0 and is added
            to it. A cell's total loss is clipped at 0.
        straight_loss_db: loss of a mode that passes a column without a cell, in dB.
        crosstalk: `None`, or a real matrix from phases that are set to phases that
            light acquires, see `physics.mesh.transfer_matrix`.
        dac: `None`, or a `DAC` for the phases of all shifters. Phases outside its range
            are first wrapped to [low, low + 2π), which leaves the matrix unchanged
            without crosstalk (see `physics.mesh.wrapped`). With crosstalk the matrix
            jumps where a phase passes a whole turn, as on the chip. A range shorter
            than a turn clips phases: no gradient passes there, and `program` warns.

    Input shape: `(..., units)`, complex, or real of any float dtype.

    Output shape: `(..., units)`, complex64; complex128 with the policy `"float64"`.

    Put a `Photodetector` behind the last mesh: layers and losses of Keras are made for
    real numbers, and drop the imaginary part of fields or fail. Keras casts the outputs
    to the dtype of the loss, so your own loss for fields needs `dtype="complex64"`.

    Raises:
        ValueError: If an argument is out of range, or the inputs do not have `units`
            modes; in training, if the fields reach a layer of Keras with weights, or a
            loss for real numbers.

    Example:

    >>> fields = keras.Input((64,))
    >>> outputs = pnn.layers.MZIMesh(64)(fields)
    >>> powers = pnn.layers.Photodetector()(outputs)

    Reference:

    - Clements et al., Optica 3:1460 (2016).
    - Reck et al., Phys. Rev. Lett. 73:58 (1994).
    """

    aliases: ClassVar = {"splitter_imbalance": ("splitter_error", _angle)}

    def __init__(
        self,
        units: int,
        arrangement: str = "clements",
        phase_initializer: str | keras.initializers.Initializer = "haar",
        phase_regularizer: str | keras.regularizers.Regularizer | None = None,
        phase_constraint: str | keras.constraints.Constraint | None = None,
        loss_db: float | np.ndarray = 0.0,
        straight_loss_db: float = 0.0,
        crosstalk: np.ndarray | None = None,
        dac: DAC | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _checks.integer("units", units, low=2)
        self._exists = mesh.cell_mask(self.units, arrangement)
        self.arrangement = arrangement
        self.phase_initializer = mesh_initializers.get(phase_initializer)
        self.phase_regularizer = keras.regularizers.get(phase_regularizer)
        self.phase_constraint = keras.constraints.get(phase_constraint)
        losses = _checks.array("loss_db", loss_db, self._exists.shape, low=0)
        self.loss_db = losses if np.ndim(loss_db) else float(loss_db)
        self.straight_loss_db = _checks.real(
            "straight_loss_db", straight_loss_db, low=0
        )
        shape = (2 * self._exists.size,) * 2
        self.crosstalk = _checks.optional(
            _checks.array, "crosstalk", crosstalk, shape, broadcast=False
        )
        self.dac = get_dac(dac)
        # Lowest phase after wrapping, and highest that is not wrapped.
        self._range = (0.0, None)
        if isinstance(self.dac, DAC):
            self._range = (self.dac.low, self.dac.high)

    def build(self, input_shape) -> None:
        self._check_inputs(input_shape)
        exists, shape = self._exists, self._exists.shape
        with tf.init_scope():
            start = self.phase_initializer(self.units, self.arrangement)
        for name in ("theta", "phi"):
            self.add_control(
                name,
                shape,
                unit="rad",
                initializer=keras.initializers.Constant(getattr(start, name)),
                regularizer=self.phase_regularizer,
                constraint=self.phase_constraint,
                mask=exists,
            )
        gamma = keras.initializers.Constant(start.gamma)
        self.add_control("gamma", (self.units,), unit="rad", initializer=gamma)
        self.add_imperfection("theta_error", shape, unit="rad", mask=exists)
        self.add_imperfection("phi_error", shape, unit="rad", mask=exists)
        both, cells = (*shape, 2), exists[..., None]
        self.add_imperfection("splitter_error", both, unit="rad", mask=cells)
        # Nominal values are numbers, which devices and reports print and compare.
        nominal = 0.0 if isinstance(self.loss_db, np.ndarray) else self.loss_db
        self.add_imperfection("loss_db", shape, unit="dB", nominal=nominal, mask=exists)
        for name in _PHASES:
            self.add_stuck(name)

    def compute_output_shape(self, input_shape) -> tuple:
        self._check_inputs(input_shape)
        return super().compute_output_shape(input_shape)

    def _check_inputs(self, shape) -> None:
        if len(shape) < 2 or shape[-1] != self.units:
            raise ValueError(
                f"The inputs must be fields of {self.units} modes, of shape (batch, "
                f"..., {self.units}). Received: shape {tuple(shape)}"
            )

    def _settings(self, controls: dict, imperfections: dict) -> dict:
        """Returns the arguments of `mesh.propagate` and `mesh.transfer_matrix`."""
        phases = self.held(self.as_set(controls), imperfections)
        loss_db = imperfections["loss_db"]
        if isinstance(self.loss_db, np.ndarray):
            loss_db = loss_db + tf.constant(self.loss_db, loss_db.dtype)
        crosstalk = self.crosstalk
        if crosstalk is not None:
            wide = controls["theta"].dtype == tf.float64
            crosstalk = crosstalk.astype("float64" if wide else "float32")
            # Slots without a shifter heat no others.
            for name in ("theta", "phi"):
                phases[name] *= tf.cast(self._exists, phases[name].dtype)
        return {
            **phases,
            **{n: v for n, v in imperfections.items() if not self.quantity(n).holds},
            "arrangement": self.arrangement,
            "loss_db": tf.maximum(loss_db, 0.0),
            "straight_loss_db": self.straight_loss_db,
            "crosstalk": crosstalk,
        }

    def as_set(self, controls: dict) -> dict:
        if self.dac is None:
            return dict(controls)
        return {n: self.dac(phase) for n, phase in self.within_turn(controls).items()}

    def within_turn(self, controls: dict) -> dict:
        """Returns phases wrapped to the converter's turn, or to [0, 2π) without one."""
        phases = (controls[name] for name in _PHASES)
        within = mesh.wrapped(*phases, self.arrangement, *self._range)
        return dict(zip(_PHASES, within, strict=True))

    def check_given(self, name: str, value: np.ndarray) -> None:
        if name == "splitter_imbalance" and not (np.abs(value) <= 1).all():
            worst = float(value.flat[np.argmax(np.abs(value))])
            raise _checks.error(name, "in [-1, 1]", f"{worst:g}")
        if name == "loss_db":
            if isinstance(self.loss_db, np.ndarray):
                value = value + self.loss_db
            least = value[self._exists].min()
            # A sweep that removes the design's loss leaves 0 up to rounding.
            if not least >= -1e-12:
                expected = "≥ 0 dB in each cell, with the loss of the design added"
                raise _checks.error(name, expected, f"{least:g}")

    def forward(self, inputs, controls, imperfections):
        self._check_inputs(inputs.shape)
        return mesh.propagate(inputs, **self._settings(controls, imperfections))

    def monitor(
        self, fields, controls: dict, imperfections: dict, backwards: bool = False
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Sends fields through the mesh and monitors them at the phase shifters.

        Args:
            fields: complex tensor of shape (batch, units), at the inputs, or at the
                outputs if `backwards`.
            controls, imperfections: as in `forward`.
            backwards: whether light runs from the outputs to the inputs.

        Returns:
            A dictionary from controls to the intensities at their shifters, and the
            fields at the far end. `gamma` has the shape (batch, units), `phi` (batch,
            columns, cells), and `theta` a further last axis for upper and lower arm.
        """
        settings = self._settings(controls, imperfections)
        return monitored(fields, **settings, backwards=backwards)

    def program(self, unitary: np.ndarray) -> float:
        """Sets the phases for a unitary matrix on the ideal mesh.

        Crosstalk between the phase shifters is compensated: without a `dac` by phases
        of any size; with one by phases in its turn, which may leave a small distance,
        see `physics.decompose.compensated`. If phases are known to be stuck (the
        present `theta_stuck`, `phi_stuck`, `gamma_stuck`), a search over all others,
        starting from these phases, looks for the nearest matrix.

        Args:
            unitary: complex or real matrix of shape (units, units).

        Returns:
            The distance left, ‖U − Û‖_F / √units, with Û the matrix of the ideal mesh,
            without losses, at the stored phases as the `dac` sets them, including
            those that are stuck.

        Raises:
            ValueError: If the shape differs, or the matrix is not unitary.

        Warns:
            UserWarning: If phases lie beyond a `dac` whose range is shorter than a
                turn.
        """
        unitary = as_matrix("unitary", unitary, (self.units, self.units))
        return self._reach(unitary, decompose.phases(unitary, self.arrangement), {})

    def correct(self, unitary: np.ndarray) -> float:
        """Sets the phases for a unitary matrix, correcting present imperfections.

        Errors are corrected cell by cell, see `physics.decompose.correct`. Stuck phases
        are treated as in `program`.

        Args:
            unitary: complex or real matrix of shape (units, units).

        Returns:
            The distance left, ‖U − Û‖_F / √units, with Û the matrix of the imperfect
            mesh, without losses, at the stored phases as the `dac` sets them.

        Raises:
            ValueError: If the shape differs, or the matrix is not unitary.

        Warns:
            UserWarning: As `program` does.
        """
        unitary = as_matrix("unitary", unitary, (self.units, self.units))
        check_built(self)
        known = self._known_errors()
        result = decompose.correct(unitary, **known, arrangement=self.arrangement)
        return self._reach(unitary, result.phases, known)

    def _reach(
        self, unitary: np.ndarray, phases: decompose.MeshPhases, errors: dict
    ) -> float:
        """Sets phases for a matrix, around stuck ones; returns the distance left."""
        self._assign(phases)
        stuck = {n: np.asarray(self.imperfections[f"{n}_stuck"]) for n in _PHASES}
        if any((s[..., 0] > 0.5).any() for s in stuck.values()):
            self._store(**phases_around_stuck(self, unitary, stuck, errors))
        self._warn_of_clipping()
        return relative_distance(self.lossless_matrix(**errors), unitary)

    def stuck_range(self, name: str) -> tuple[float, float]:
        """Returns the phases at which a shifter may be stuck: one turn."""
        return self._range[0], self._range[0] + 2 * np.pi

    def _known_errors(self) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(self.imperfections[name], "float64")
            for name in ("theta_error", "phi_error", "splitter_error")
        }

    def lossless_matrix(self, **errors) -> np.ndarray:
        """Returns the matrix without losses, at the phases as set, in complex128.

        Args:
            **errors: `theta_error`, `phi_error`, `splitter_error`; by default 0.
        """
        settings = self._settings(*self.current_values())
        phases = {n: np.asarray(settings[n], "float64") for n in self.controls}
        return mesh.transfer_matrix(
            **phases, **errors, arrangement=self.arrangement, crosstalk=self.crosstalk
        ).numpy()

    def _warn_of_clipping(self) -> None:
        """Warns if the phases to set lie beyond a converter of less than a turn."""
        if not isinstance(self.dac, DAC):
            return
        within, limit = self.within_turn(self.current_values()[0]), self.dac.high
        # Phases less than a step above the last code count as rounded, not clipped.
        limit += (limit - self.dac.low) / (2**self.dac.bits - 1)
        beyond = sum(
            np.sum(np.asarray(phase)[self.quantity(name).exists] > limit)
            for name, phase in within.items()
        )
        if beyond:
            _warnings.warn(
                f"{beyond} phases of layer '{self.name}' are clipped, since its `dac` "
                f"covers [{self.dac.low:g}, {self.dac.high:g}] rad, less than a turn. "
                "Give it a range of 2π, or check the distance that is returned."
            )

    def wrap(self) -> float:
        """Wraps all phases to one turn, the range of heaters, for the same matrix.

        The turn is [0, 2π), or starts at the low end of the `dac`. The matrix stays the
        same to rounding for all imperfections; see `physics.mesh.wrapped`.

        With crosstalk, the phases that light acquires stay the same up to whole turns.
        A few phases may be out of reach and slightly off, see
        `physics.decompose.compensated`. With crosstalk and a `dac`, the stored phases
        are wrapped as the `dac` does, and what it sets stays the same.

        Returns:
            How far the matrix has moved, ‖U − Û‖_F / √units, at the present errors and
            without losses: 0 up to rounding, or what phases out of reach leave.

        Raises:
            ValueError: If the layer is not built, or a phase is NaN or infinite.
        """
        check_built(self)
        known = self._known_errors()
        before = self.lossless_matrix(**known)
        if self.crosstalk is None or self.dac is not None:
            self._store(**self.within_turn(self.controls))
        else:
            now = {n: np.asarray(v, "float64") for n, v in self.controls.items()}
            both = self._exists * np.stack([now["theta"], now["phi"]])
            produced = (self.crosstalk @ both.ravel()).reshape(both.shape)
            phases = decompose.MeshPhases(*produced, now["gamma"], self.arrangement)
            self._assign(phases, within_turn=True)
        return relative_distance(self.lossless_matrix(**known), before)

    def _assign(self, phases: decompose.MeshPhases, within_turn: bool = False) -> None:
        """Sets the phases at which light acquires the given ones, with crosstalk."""
        check_built(self)
        if self.crosstalk is not None:
            # A `dac` sets phases in one turn only, and with crosstalk turns matter.
            within_turn = within_turn or self.dac is not None
            low = self._range[0] if within_turn else None
            phases = decompose.compensated(phases, self.crosstalk, low)
        self._store(phases.theta, phases.phi, phases.gamma)

    def _store(self, theta, phi, gamma) -> None:
        """Stores phases; rounding does not carry any of them up to a whole turn."""
        top = self._range[0] + 2 * np.pi
        for name, value in zip(_PHASES, (theta, phi, gamma), strict=True):
            variable = self.controls[name]
            kind = tf.as_dtype(variable.dtype).as_numpy_dtype
            exact = np.asarray(value, "float64")
            rounded = exact.astype(kind)
            up = (exact < top) & (rounded.astype("float64") >= top)
            below = np.nextafter(kind(top), kind(self._range[0]))
            variable.assign(np.where(up, below, rounded))

    def transfer_matrix(self) -> tf.Tensor:
        """Returns the matrix (units, units), with the present imperfections."""
        return mesh.transfer_matrix(**self._settings(*self.current_values()))

    def position(self, name, index):
        if name == "gamma":
            return "", index[0], ""
        column, cell = index
        return "", 2 * cell + column % 2, column
