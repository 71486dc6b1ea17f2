"""Layers that multiply with a matrix by meshes of Mach–Zehnder interferometers."""

from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers import mesh_initializers
from keras_pnn.layers.bank import whole
from keras_pnn.layers.limits import ControlRange, get_dac
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics import decompose, interferometer, mesh
from keras_pnn.physics._tensors import as_complex


def _angle(imbalance):
    # A Gaussian draw can leave the range that a splitter has.
    return interferometer.angle_from_imbalance(tf.clip_by_value(imbalance, -1.0, 1.0))


def _given(values: np.ndarray):
    """An initializer that returns these values."""
    return lambda shape, dtype=None: tf.convert_to_tensor(values, dtype)


def _array(value) -> np.ndarray:
    """An array, of the dtype object where the value is none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        return np.array(None)


def _loss(name: str, value, shape: tuple[int, int] | None = None) -> float | np.ndarray:
    """A loss that is a number or, where a shape is given, an array of that shape."""
    array = _array(value)
    numbers = array.dtype.kind in "fiu" and array.shape in ((), shape)
    if not (numbers and np.all(np.isfinite(array) & (array >= 0))):
        or_array = "" if shape is None else f", or an array of shape {shape} of such"
        raise ValueError(
            f"`{name}` must be a finite number >= 0, in dB{or_array}. "
            f"Received: {name}={value!r}"
        )
    return array.astype("float64") if array.ndim else float(array)


def _units(value) -> int:
    """The number of modes of a mesh."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _checks.integer("units", value, 2)


def _crosstalk(value, slots: int) -> np.ndarray | None:
    if value is None:
        return None
    matrix, shape = _array(value), (2 * slots, 2 * slots)
    if matrix.shape != shape or matrix.dtype.kind not in "fiu":
        raise ValueError(
            f"`crosstalk` must be real numbers of the shape {shape}. "
            f"Received: shape {matrix.shape}, dtype {matrix.dtype}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(
            "`crosstalk` must be finite. Received: "
            f"{(~np.isfinite(matrix)).sum()} elements that are NaN or infinite"
        )
    return matrix.astype("float64")


def _matrix(name: str, value, shape: tuple[int, int]) -> np.ndarray:
    value = _array(value)
    if value.shape != shape or value.dtype.kind not in "fiuc":
        raise ValueError(
            f"`{name}` must be a matrix of shape {shape}. Received: shape "
            f"{value.shape}, dtype {value.dtype}"
        )
    return value.astype("complex128")


def _fields(layer, inputs) -> keras.KerasTensor:
    """The symbolic outputs: complex, in the precision of the layer."""
    dtype = "complex128" if layer.compute_dtype == "float64" else "complex64"
    return keras.KerasTensor(layer.compute_output_shape(inputs.shape), dtype=dtype)


def _check_inputs(shape, modes: int) -> None:
    if len(shape) < 2 or shape[-1] != modes:
        raise ValueError(
            f"The inputs must be fields of {modes} modes, of shape (batch, ..., "
            f"{modes}). Received: shape {tuple(shape)}"
        )


@keras.saving.register_keras_serializable(package="keras_pnn")
class MZIMesh(PhysicalLayer):
    """A unitary matrix as a mesh of Mach–Zehnder interferometers.

    outputs = U(theta, phi, gamma) · inputs, for complex fields. Equations and the
    order of the parts are in `keras_pnn.physics.mesh`.

    Controls: `theta` and `phi` in rad, (columns, modes // 2), and `gamma` in rad,
    (modes,). Imperfections: `theta_error` and `phi_error` in rad, in the shape of the
    phases; `splitter_error` in rad, (columns, modes // 2, 2), first the splitter that
    light meets first; and `loss_db`, in the shape of the phases. `Variation` takes
    `splitter_imbalance`, a power imbalance, as well; a draw beyond −1 or 1 counts as
    −1 or 1. What is stored in slots that hold no cell is ignored. It starts at 0 and
    stays there, unless a constraint, which acts on all slots, moves it.

    Phases have no scale: 2π more of `phi` or `gamma` changes nothing, and 2π more of
    `theta` the sign of a cell, which `phi` and `gamma` can make up for (see `wrap`).
    But the ascent of `ASAM` is in proportion to the phase. For meshes use `SAM`.

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
            the loss of each cell; the imperfection is then 0 in the design, and what
            it adds to that. Losses of a cell that drop below 0 count as 0.
        straight_loss_db: loss of a mode that passes a column without a cell, in dB.
        crosstalk: what the phase shifters give for the phases that are set, `None`
            or a real matrix of shape (2 n, 2 n), n the number of slots: first `theta`,
            then `phi`, column by column.
        dac: `None`, or a `DAC` of the phases of all shifters, which are brought
            into [0, 2π) first, without a change of the matrix where there is no
            crosstalk, see `physics.mesh.wrapped`. With crosstalk the matrix jumps
            where a phase passes a whole turn, as it does on the chip. Let the range of
            the `dac` be [0, 2π]: beyond its ends no gradient passes.

    Call arguments:
        inputs: real or complex fields. Real inputs may have any float dtype.

    Input shape:
        `(..., units)`.

    Output shape:
        `(..., units)`, complex64; complex128 with the dtype policy `"float64"`.

    Raises:
        ValueError: an argument is out of range, or the inputs do not have `units`
            modes.

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
        phase_initializer="haar",
        phase_regularizer=None,
        phase_constraint=None,
        loss_db: float | np.ndarray = 0.0,
        straight_loss_db: float = 0.0,
        crosstalk=None,
        dac=None,
        **kwargs,
    ):
        # Inputs are cast in `forward`: an amplitude of 7e4 overflows float16.
        super().__init__(autocast=False, **kwargs)
        self.units = _units(units)
        self._exists = mesh.cell_mask(self.units, arrangement)
        self.arrangement = arrangement
        self.phase_initializer = mesh_initializers.get(phase_initializer)
        self.phase_regularizer = keras.regularizers.get(phase_regularizer)
        self.phase_constraint = keras.constraints.get(phase_constraint)
        self.loss_db = _loss("loss_db", loss_db, self._exists.shape)
        self.straight_loss_db = _loss("straight_loss_db", straight_loss_db)
        self.crosstalk = _crosstalk(crosstalk, self._exists.size)
        self.dac = get_dac(dac)

    def build(self, input_shape):
        _check_inputs(input_shape, self.units)
        exists, shape = self._exists, self._exists.shape
        with tf.init_scope():
            start = self.phase_initializer(self.units, self.arrangement)
        for name in ("theta", "phi"):
            self.add_control(
                name,
                shape,
                unit="rad",
                initializer=_given(getattr(start, name)),
                regularizer=self.phase_regularizer,
                constraint=self.phase_constraint,
                mask=exists,
            )
        self.add_control(
            "gamma", (self.units,), unit="rad", initializer=_given(start.gamma)
        )
        self.add_imperfection("theta_error", shape, unit="rad", mask=exists)
        self.add_imperfection("phi_error", shape, unit="rad", mask=exists)
        both = (*shape, 2)
        self.add_imperfection(
            "splitter_error", both, unit="rad", mask=exists[..., None]
        )
        # Neutral values are numbers: devices and reports print and compare them.
        per_cell = isinstance(self.loss_db, np.ndarray)
        nominal = 0.0 if per_cell else self.loss_db
        self.add_imperfection("loss_db", shape, unit="dB", nominal=nominal, mask=exists)

    def compute_output_shape(self, input_shape):
        _check_inputs(input_shape, self.units)
        return (*input_shape[:-1], self.units)

    def compute_output_spec(self, inputs):
        return _fields(self, inputs)

    def _settings(self, controls: dict, imperfections: dict) -> dict:
        """The arguments of `mesh.propagate` and `mesh.transfer_matrix`."""
        phases = self._set(controls)
        loss_db = imperfections["loss_db"]
        if isinstance(self.loss_db, np.ndarray):
            loss_db = loss_db + tf.constant(self.loss_db, loss_db.dtype)
        crosstalk = self.crosstalk
        if crosstalk is not None:
            wide = controls["theta"].dtype == tf.float64
            crosstalk = crosstalk.astype("float64" if wide else "float32")
            # A shifter that does not exist warms no other.
            for name in ("theta", "phi"):
                phases[name] *= tf.cast(self._exists, phases[name].dtype)
        return {
            **phases,
            "arrangement": self.arrangement,
            "theta_error": imperfections["theta_error"],
            "phi_error": imperfections["phi_error"],
            "splitter_error": imperfections["splitter_error"],
            "loss_db": tf.maximum(loss_db, 0.0),
            "straight_loss_db": self.straight_loss_db,
            "crosstalk": crosstalk,
        }

    def _set(self, controls: dict) -> dict:
        """The phases that the drivers set."""
        names = ("theta", "phi", "gamma")
        if self.dac is None:
            return {name: controls[name] for name in names}
        within = mesh.wrapped(*(controls[n] for n in names), self.arrangement)
        return {n: self.dac(phase) for n, phase in zip(names, within, strict=True)}

    def check_given(self, name: str, value: np.ndarray) -> None:
        if name == "splitter_imbalance" and not (np.abs(value) <= 1).all():
            raise ValueError(
                "`splitter_imbalance` must be in [-1, 1]. "
                f"Received: {float(value.flat[np.argmax(np.abs(value))]):g}"
            )
        if name == "loss_db":
            if isinstance(self.loss_db, np.ndarray):
                value = value + self.loss_db
            least = value[self._exists].min()
            # The design's loss, taken away in a sweep, leaves 0 but for rounding.
            if not least >= -1e-12:
                raise ValueError(
                    "`loss_db` of a cell must be >= 0, in dB, with the loss of the "
                    f"design added. Received: {least:g}"
                )

    def forward(self, inputs, controls, imperfections):
        _check_inputs(inputs.shape, self.units)
        return mesh.propagate(inputs, **self._settings(controls, imperfections))

    def program(self, unitary) -> None:
        """Sets the phases to those of a unitary matrix on the ideal mesh.

        Crosstalk between the phase shifters is made up for: by phases of any size
        without a `dac`, and with one by phases in [0, 2π), which may leave a small
        distance; see `physics.decompose.compensated`.

        Args:
            unitary: complex or real matrix of shape (units, units).

        Raises:
            ValueError: the shape differs, or the matrix is not unitary.
        """
        unitary = _matrix("unitary", unitary, (self.units, self.units))
        self._assign(decompose.phases(unitary, self.arrangement))

    def correct(self, unitary) -> float:
        """As `program`, for the present imperfections, where they are known.

        Args:
            unitary: complex or real matrix of shape (units, units).

        Returns:
            What is left: ‖U − Û‖_F / √units, with Û the matrix at the phases as they
            are stored and as the `dac` sets them, without losses.

        Raises:
            ValueError: the shape differs, or the matrix is not unitary.

        Reference:

        - Bandyopadhyay, Hamerly, Englund, Optica 8:1247 (2021).
        """
        unitary = _matrix("unitary", unitary, (self.units, self.units))
        check_built(self)
        known = {
            name: np.asarray(self.imperfections[name], "float64")
            for name in ("theta_error", "phi_error", "splitter_error")
        }
        result = decompose.correct(unitary, **known, arrangement=self.arrangement)
        self._assign(result.phases)
        settings = self._settings(*self.current_values())
        phases = {n: np.asarray(settings[n], "float64") for n in self.controls}
        reached = mesh.transfer_matrix(
            **phases, **known, arrangement=self.arrangement, crosstalk=self.crosstalk
        )
        return float(np.linalg.norm(reached - unitary) / np.sqrt(self.units))

    def wrap(self) -> None:
        """Brings all phases into [0, 2π), which heaters give, for the same matrix.

        Phases cannot be taken modulo 2π one by one: a turn more of `theta` changes
        the sign of its cell. `phi` and `gamma` make up for it, see
        `physics.mesh.wrapped`. The matrix stays the same to rounding for all
        imperfections.

        With crosstalk what the shifters give stays the same, up to whole turns. A few
        phases may be out of reach and miss a little, see
        `physics.decompose.compensated`. With crosstalk and a `dac`, which sets phases
        in [0, 2π) as it is, these are the phases that it is given.

        Raises:
            ValueError: the layer is not built, or a phase is NaN or infinite.
        """
        check_built(self)
        if self.crosstalk is None or self.dac is not None:
            phases = (self.controls[n] for n in ("theta", "phi", "gamma"))
            self._store(*mesh.wrapped(*phases, self.arrangement))
            return
        now = {n: np.asarray(v, "float64") for n, v in self.controls.items()}
        both = self._exists * np.stack([now["theta"], now["phi"]])
        given = (self.crosstalk @ both.ravel()).reshape(both.shape)
        phases = decompose.MeshPhases(*given, now["gamma"], self.arrangement)
        phases = decompose.compensated(phases, self.crosstalk, within_turn=True)
        self._store(phases.theta, phases.phi, phases.gamma)

    def _assign(self, phases: decompose.MeshPhases) -> None:
        """Sets the phases that make the shifters give these."""
        check_built(self)
        if self.crosstalk is not None:
            # A `dac` sets phases in [0, 2π) and no others, and by crosstalk a turn
            # more is another mesh.
            phases = decompose.compensated(
                phases, self.crosstalk, within_turn=self.dac is not None
            )
        self._store(phases.theta, phases.phi, phases.gamma)

    def _store(self, theta, phi, gamma) -> None:
        """Sets the phases; none below 2π is rounded up to it."""
        for name, value in (("theta", theta), ("phi", phi), ("gamma", gamma)):
            variable = self.controls[name]
            kind = tf.as_dtype(variable.dtype).as_numpy_dtype
            exact = np.asarray(value, "float64")
            rounded = exact.astype(kind)
            up = (exact < 2 * np.pi) & (rounded.astype("float64") >= 2 * np.pi)
            below = np.nextafter(kind(2 * np.pi), kind(0))
            variable.assign(np.where(up, below, rounded))

    def transfer_matrix(self) -> tf.Tensor:
        """Returns the matrix (units, units), with the present imperfections."""
        return mesh.transfer_matrix(**self._settings(*self.current_values()))

    def position(self, name, index):
        if name == "gamma":
            return "", index[0], ""
        column, cell = index
        return "", 2 * cell + column % 2, column

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "units": self.units,
            "arrangement": self.arrangement,
            "phase_initializer": serialize(self.phase_initializer),
            "phase_regularizer": serialize(self.phase_regularizer),
            "phase_constraint": serialize(self.phase_constraint),
            "loss_db": np.asarray(self.loss_db).tolist(),
            "straight_loss_db": self.straight_loss_db,
            "crosstalk": None if self.crosstalk is None else self.crosstalk.tolist(),
            "dac": serialize(self.dac),
        }


@keras.saving.register_keras_serializable(package="keras_pnn")
class Attenuators(PhysicalLayer):
    """One attenuator in each mode, and one gain for all: the Σ of `MZIDense`.

    outputs = gain · attenuation · inputs on the first modes. Inputs that are left
    over are dropped, outputs that are left over are dark.

    Controls: `attenuation`, amplitudes from 0 to 1, (min(modes in, units),); and
    `gain`, a scalar.

    Args:
        units: number of modes at the outputs.

    Input shape:
        `(..., modes)`, real or complex.

    Output shape:
        `(..., units)`, complex.

    Raises:
        ValueError: `units` is not a whole number of 1 or more.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.units = whole("`units`", units)

    def build(self, input_shape):
        self._modes = min(self.units, input_shape[-1])
        self.add_control(
            "attenuation",
            (self._modes,),
            unit="",
            initializer="ones",
            nominal=1.0,
            constraint=ControlRange(0.0, 1.0),
        )
        self.add_control("gain", (), unit="", initializer="ones", nominal=1.0)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def compute_output_spec(self, inputs):
        return _fields(self, inputs)

    def forward(self, inputs, controls, imperfections):
        amplitude = controls["gain"] * controls["attenuation"]
        dtype = tf.complex128 if amplitude.dtype == tf.float64 else tf.complex64
        fields = as_complex(inputs[..., : self._modes], dtype)
        fields *= as_complex(amplitude, dtype)
        dark = tf.zeros_like(fields[..., :1])
        dark = tf.repeat(dark, self.units - self._modes, axis=-1)
        return tf.concat([fields, dark], axis=-1)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="keras_pnn")
class MZIDense(keras.layers.Layer):
    """A real or complex matrix of any shape, as two meshes with attenuators between.

    outputs = gain · U Σ V† · inputs, by singular values: `v`, an `MZIMesh` over the
    inputs, gives V†; `sigma` attenuates each mode, since passive optics cannot
    amplify, and one gain sets the scale; `u` is an `MZIMesh` over the outputs.

    Controls and imperfections are those of the sublayers `v`, `sigma` and `u`.

    Args:
        units: number of outputs, 2 or more.
        arrangement: of both meshes, see `MZIMesh`.
        phase_initializer: of both meshes; a name, or an object whose seed both share.
        phase_regularizer: of both meshes.
        phase_constraint: of both meshes.
        loss_db: insertion loss of each cell, in dB.
        straight_loss_db: loss of a mode that passes a column without a cell, in dB.
        dac: `None`, or a `DAC` of all phases.

    Call arguments:
        inputs: real or complex fields.

    Input shape:
        `(..., inputs)`, 2 inputs or more.

    Output shape:
        `(..., units)`, complex64; complex128 with the dtype policy `"float64"`.

    Raises:
        ValueError: an argument is out of range, or there are less than 2 inputs.

    Example:

    >>> layer = pnn.layers.MZIDense(10)
    >>> layer.build((None, 64))
    >>> layer.program(np.random.default_rng(0).normal(size=(10, 64)))

    Reference:

    - Shen et al., Nat. Photonics 11:441 (2017).
    """

    def __init__(
        self,
        units: int,
        arrangement: str = "clements",
        phase_initializer="haar",
        phase_regularizer=None,
        phase_constraint=None,
        loss_db: float = 0.0,
        straight_loss_db: float = 0.0,
        dac=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        loss_db = _loss("loss_db", loss_db)
        self._mesh = {
            "arrangement": arrangement,
            "phase_initializer": phase_initializer,
            "phase_regularizer": phase_regularizer,
            "phase_constraint": phase_constraint,
            "loss_db": loss_db,
            "straight_loss_db": straight_loss_db,
            "dac": dac,
        }
        self.u = MZIMesh(units, **self._mesh, **self._common("u"))
        self.units = self.u.units
        self.sigma = Attenuators(self.units, **self._common("sigma"))

    def _common(self, part: str) -> dict:
        # The names of parts are unique where those of the whole are.
        return {
            "name": f"{self.name}_{part}",
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }

    def build(self, input_shape):
        if len(input_shape) < 2 or not input_shape[-1] or input_shape[-1] < 2:
            raise ValueError(
                "The inputs of `MZIDense` must have the shape (batch, ..., modes), "
                f"with 2 modes or more. Received: shape {tuple(input_shape)}"
            )
        self.v = MZIMesh(input_shape[-1], **self._mesh, **self._common("v"))
        self.v.build(input_shape)
        self.sigma.build(input_shape)
        self.u.build((*input_shape[:-1], self.units))

    def call(self, inputs):
        return self.u(self.sigma(self.v(inputs)))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def compute_output_spec(self, inputs):
        return _fields(self, inputs)

    @property
    def attenuation(self) -> keras.Variable:
        """Amplitudes from 0 to 1, (min(inputs, units),)."""
        return self.sigma.controls["attenuation"]

    @property
    def gain(self) -> keras.Variable:
        """The scale of the matrix."""
        return self.sigma.controls["gain"]

    def program(self, matrix) -> None:
        """Sets all controls to those of a matrix on the ideal device.

        Args:
            matrix: complex or real matrix of shape (units, inputs):
                outputs = matrix · inputs.

        Raises:
            ValueError: the shape differs, or an element is NaN or infinite.
        """
        check_built(self)
        matrix = _matrix("matrix", matrix, (self.units, self.v.units))
        if not np.isfinite(matrix).all():
            raise ValueError("`matrix` must be finite. Received: NaN or infinity")
        u, singular, vh = np.linalg.svd(matrix)
        gain = singular[0] if singular[0] > 0 else 1.0
        self.u.program(u)
        self.v.program(vh)
        self.attenuation.assign(singular / gain)
        self.gain.assign(gain)

    def transfer_matrix(self) -> tf.Tensor:
        """Returns the matrix (units, inputs), with the present imperfections."""
        check_built(self)
        wide = self.compute_dtype == "float64"
        inputs = tf.eye(self.v.units, dtype="complex128" if wide else "complex64")
        return tf.transpose(self(inputs))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        start = self.u.phase_initializer
        return {
            **super().get_config(),
            "units": self.units,
            "arrangement": self.u.arrangement,
            "phase_initializer": serialize(start),
            "phase_regularizer": serialize(self.u.phase_regularizer),
            "phase_constraint": serialize(self.u.phase_constraint),
            "loss_db": self.u.loss_db,
            "straight_loss_db": self.u.straight_loss_db,
            "dac": serialize(self.u.dac),
        }
