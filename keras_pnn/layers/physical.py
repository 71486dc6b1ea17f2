"""Split a layer's values into controls, which training changes, and imperfections."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras
from keras_pnn.layers import context
from keras_pnn.layers.belonging import refuse_elsewhere
from keras_pnn.layers.mixins import ConfiguredLayer
from keras_pnn.layers.quantity import Quantity


class PhysicalLayer(ConfiguredLayer):
    """Base of layers with controls, imperfections and one pure `forward`.

    Controls are what training may change (currents, phases, masks); they are saved
    with the model. Imperfections are how one device differs from the design; they
    are not saved, and a loaded model has them at their nominal values. Loading
    weights while a device is installed keeps its imperfections.

    A subclass calls `add_control` and `add_imperfection` in `build`, and implements
    `forward(inputs, controls, imperfections)` as a pure function of tensors. Values
    are read through `keras.StatelessScope`, so a layer needs no further code for
    perturbed controls, for another device, or for a thousand devices at once.

    Example:

    ```python
    class Attenuators(pnn.layers.PhysicalLayer):
        def build(self, input_shape) -> None:
            self.add_control("amplitude", input_shape[-1:], unit="", initializer="ones")
            self.add_imperfection("loss_db", input_shape[-1:], unit="dB")

        def forward(self, inputs, controls, imperfections):
            loss = 10.0 ** (-imperfections["loss_db"] / 20)
            return inputs * controls["amplitude"] * loss
    ```
    """

    # Other quantities in which deviations may be given: name → (imperfection,
    # function from a deviation in that quantity to one of the imperfection).
    aliases: ClassVar[dict[str, tuple[str, Callable]]] = {}

    def __init__(self, **kwargs):
        refuse_elsewhere(type(self), kwargs)
        super().__init__(**kwargs)
        self._controls: dict[str, Quantity] = {}
        self._imperfections: dict[str, Quantity] = {}

    def add_control(
        self,
        name: str,
        shape: tuple,
        unit: str,
        initializer: str | keras.initializers.Initializer = "zeros",
        nominal: float = 0.0,
        regularizer: str | keras.regularizers.Regularizer | None = None,
        constraint: str | keras.constraints.Constraint | None = None,
        trainable: bool = True,
        mask: np.ndarray | None = None,
    ) -> keras.Variable:
        """Adds a quantity that training may change.

        Args:
            name: its key in `layer.controls`.
            shape: its shape.
            unit: its unit, for tables, files and plots.
            initializer, regularizer, constraint, trainable: as in `add_weight`.
            nominal: the value at which it has no effect.
            mask: which elements the hardware has, `None` for all. `forward` must
                not depend on the others.

        Returns:
            The variable. It keeps its dtype under mixed precision.

        Raises:
            ValueError: If the layer has a quantity of that name.
        """
        weight = {
            "initializer": initializer,
            "regularizer": regularizer,
            "constraint": constraint,
            "trainable": trainable,
        }
        about = {"unit": unit, "nominal": nominal, "mask": mask}
        return self._add(self._controls, name, shape, weight, about)

    def add_imperfection(
        self,
        name: str,
        shape: tuple,
        unit: str,
        nominal: float = 0.0,
        shared: bool = False,
        mask: np.ndarray | None = None,
        lower_bound: float | None = None,
        upper_bound: float | None = None,
    ) -> keras.Variable:
        """Adds a quantity by which one device may differ from the design.

        Args:
            name: its key in `layer.imperfections`.
            shape, unit, mask: as in `add_control`.
            nominal: its value in the design.
            shared: whether one draw serves all layers of a chip.
            lower_bound: a bound that values must exceed, `None` for no bound. Devices,
                sweeps and radii that are known to reach it raise an error.
            upper_bound: a bound that values must stay below, likewise.

        Returns:
            The variable. It is never trained and never saved.

        Raises:
            ValueError: If the nominal value is not between the bounds, or the layer
                has a quantity of that name.
        """
        if lower_bound is not None and not nominal > lower_bound:
            expected = f"above {lower_bound:g}, the lower bound of '{name}'"
            raise _checks.error("nominal", expected, f"{nominal:g}")
        if upper_bound is not None and not nominal < upper_bound:
            expected = f"below {upper_bound:g}, the upper bound of '{name}'"
            raise _checks.error("nominal", expected, f"{nominal:g}")
        about = {"unit": unit, "nominal": nominal, "shared": shared, "mask": mask}
        about |= {"lower_bound": lower_bound, "upper_bound": upper_bound}
        start = keras.initializers.Constant(nominal)
        weight = {"initializer": start, "trainable": False}
        return self._add(self._imperfections, name, shape, weight, about)

    def add_stuck(self, name: str) -> keras.Variable:
        """Adds the imperfection `<name>_stuck`, by which devices hold a control fixed.

        Its last axis has two entries: whether the element is stuck (1, nominally 0),
        and the value that it then has, in the control's unit. `forward` must pass
        controls through `held`, behind the converter.

        Args:
            name: a control.

        Returns:
            The variable, of the control's shape with a last axis of two.
        """
        control = self._controls[name]
        mask = None if control.mask is None else np.asarray(control.mask)[..., None]
        shape, own = (*control.variable.shape, 2), f"{name}_stuck"
        variable = self.add_imperfection(own, shape, unit=control.unit, mask=mask)
        stuck = dataclasses.replace(self._imperfections[own], holds=name)
        self._imperfections[own] = stuck
        return variable

    def _add(self, kind: dict, name: str, shape: tuple, weight: dict, about: dict):
        """Adds a variable; its name must be new among the layer's names and aliases."""
        taken = [*self._controls, *self._imperfections, *self.aliases]
        if name in taken:
            expected = f"a name that layer '{self.name}' does not have, {taken}"
            raise _checks.error("name", expected, repr(name))
        variable = self.add_weight(name=name, shape=shape, autocast=False, **weight)
        kind[name] = Quantity(self, name, variable, **about)
        return variable

    def held(self, controls: dict, imperfections: dict) -> dict:
        """Returns controls, name to tensor, with stuck elements at their values."""
        found = dict(controls)
        for name, quantity in self._imperfections.items():
            if quantity.holds in found and name in imperfections:
                stuck, value = tf.unstack(imperfections[name], axis=-1)
                control = found[quantity.holds]
                value = tf.cast(value, control.dtype)
                found[quantity.holds] = tf.where(stuck > 0.5, value, control)
        return found

    @property
    def controls(self) -> dict[str, keras.Variable]:
        """The layer's controls, name to variable."""
        return {name: q.variable for name, q in self._controls.items()}

    @property
    def imperfections(self) -> dict[str, keras.Variable]:
        """The layer's imperfections, name to variable."""
        return {name: q.variable for name, q in self._imperfections.items()}

    def quantity(self, name: str) -> Quantity:
        """Returns the description of a control or an imperfection."""
        return {**self._imperfections, **self._controls}[name]

    def places(self, name: str) -> np.ndarray:
        """Numbers the hardware component of each element of an imperfection.

        Elements with the same number are the same component, such as a ring that is
        used in several passes.
        """
        shape = tuple(self.imperfections[name].shape)
        return np.arange(math.prod(shape)).reshape(shape)

    def check_given(self, name: str, value: np.ndarray) -> None:
        """Raises an error for values that a user chose outside a quantity's range.

        A Gaussian draw beyond the range is clipped, but a value chosen there, as in a
        sweep, is a mistake.

        Args:
            name: an imperfection, or a key of `aliases`.
            value: nominal value plus deviation, in the variable's shape; for an
                alias, the deviation.
        """

    def position(self, name: str, index: tuple[int, ...]) -> tuple:
        """Returns the place on the chip of the element `index` of a control.

        Returns:
            (tile, row, column), each counted from 0, or `""` where it has no meaning.
            The tile is a pass of a bank, or a frame of a modulator.
        """
        return "", "", ""

    def forward(self, inputs, controls: dict, imperfections: dict):
        """Computes the layer's outputs, as a pure function of tensors.

        Args:
            inputs: the layer's inputs.
            controls, imperfections: dictionaries from name to tensor.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement "
            "`forward(inputs, controls, imperfections)`."
        )

    def as_set(self, controls: dict) -> dict:
        """Returns controls, name to tensor, as a converter of the layer sets them.

        A subclass with a converter overrides this method and uses the result in
        `forward`; `export_controls` writes the result to the file.
        """
        return dict(controls)

    def current_values(self) -> tuple[dict, dict]:
        """Returns controls and imperfections, name to tensor, as `forward` takes them.

        Raises:
            ValueError: If the layer is not built.
        """
        check_built(self)
        return tuple(
            {name: tf.convert_to_tensor(v) for name, v in variables.items()}
            for variables in (self.controls, self.imperfections)
        )

    def call(self, inputs):
        controls, imperfections = self.current_values()
        outputs = self.forward(inputs, controls, imperfections)
        substitute = context.current().substitute
        if substitute is None:
            return outputs
        return substitute(self, inputs, controls, outputs)

    def reset_imperfections(self) -> None:
        """Sets every imperfection to its nominal value."""
        self._reset_all_but(())

    def _reset_all_but(self, kept) -> None:
        for quantity in self._imperfections.values():
            variable = quantity.variable
            if id(variable) not in kept:
                nominal = tf.cast(quantity.nominal, variable.dtype)
                variable.assign(tf.fill(variable.shape, nominal))

    def _saved_variables(self) -> list[keras.Variable]:
        imperfect = {id(v) for v in self.imperfections.values()}
        own = _keras.own_variables(self)
        return [v for v in own if id(v) not in imperfect]

    def save_own_variables(self, store):
        for index, variable in enumerate(self._saved_variables()):
            store[str(index)] = variable

    def load_own_variables(self, store):
        variables = self._saved_variables()
        if len(store.keys()) != len(variables):
            raise ValueError(
                f"Layer '{self.name}' expected {len(variables)} saved variables. "
                f"Received: {len(store.keys())} variables"
                + ("" if self.built else " before the layer was built.")
            )
        for index, variable in enumerate(variables):
            variable.assign(store[str(index)])
        # A run resumed on a device continues on that device.
        self._reset_all_but(context.current().kept)


def check_built(layer: keras.layers.Layer) -> None:
    """Raises an error for a layer that is not built."""
    if not layer.built:
        raise ValueError(
            f"The layer must be built, by `build` or a first call. Received: {layer!r}"
        )
