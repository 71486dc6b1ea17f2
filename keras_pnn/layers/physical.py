"""The base of every physical layer, and the ways to find its parts in a model."""

from collections.abc import Callable
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers import context
from keras_pnn.layers.quantity import Quantity


class PhysicalLayer(keras.layers.Layer):
    """A layer with controls, imperfections and one pure `forward`.

    Controls are what training may turn (currents, phases, masks); they are saved
    with the model. Imperfections are how one device differs from the design; they
    are not saved, and a loaded model has them at their nominal values. Where weights
    are loaded while a device is installed, that device's stay.

    A subclass calls `add_control` and `add_imperfection` in `build`, and implements
    `forward(inputs, controls, imperfections)` as a pure function of tensors. Values
    are read through `keras.StatelessScope`, so that perturbed controls, another
    device's imperfections, or a thousand devices need nothing from the layer.

    Example:

    ```python
    class Attenuators(pnn.layers.PhysicalLayer):
        def build(self, input_shape):
            self.add_control("amplitude", input_shape[-1:], unit="", initializer="ones")
            self.add_imperfection("loss_db", input_shape[-1:], unit="dB")

        def forward(self, inputs, controls, imperfections):
            loss = 10.0 ** (-imperfections["loss_db"] / 20)
            return inputs * controls["amplitude"] * loss
    ```
    """

    # Other quantities in which a deviation may be given: name → (imperfection, the
    # function from a deviation in that quantity to one of the imperfection).
    aliases: ClassVar[dict[str, tuple[str, Callable]]] = {}

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._controls: dict[str, Quantity] = {}
        self._imperfections: dict[str, Quantity] = {}

    def add_control(
        self,
        name: str,
        shape: tuple,
        unit: str,
        initializer="zeros",
        nominal: float = 0.0,
        regularizer=None,
        constraint=None,
        trainable: bool = True,
        mask: np.ndarray | None = None,
    ) -> keras.Variable:
        """Declares a quantity that training may turn.

        Args:
            name: its key in `layer.controls`.
            shape: its shape.
            unit: its unit, for tables, files and plots.
            initializer, regularizer, constraint, trainable: as in `add_weight`.
            nominal: the value at which it does nothing.
            mask: which elements the hardware has, `None` for all. `forward` must
                not depend on the others.

        Returns:
            The variable. It keeps its dtype under mixed precision.
        """
        variable = self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            regularizer=regularizer,
            constraint=constraint,
            trainable=trainable,
            autocast=False,
        )
        self._controls[name] = Quantity(self, name, variable, unit, nominal, mask=mask)
        return variable

    def add_imperfection(
        self,
        name: str,
        shape: tuple,
        unit: str,
        nominal: float = 0.0,
        shared: bool = False,
        mask: np.ndarray | None = None,
        lower_bound: float | None = None,
    ) -> keras.Variable:
        """Declares how one device may differ from the design.

        Args:
            name: its key in `layer.imperfections`.
            shape: its shape.
            unit: its unit.
            nominal: its value in the design.
            shared: whether one draw serves all layers of a chip.
            mask: which elements the hardware has, `None` for all. `forward` must
                not depend on the others.
            lower_bound: what values must be above, `None` for no bound. Devices, sweeps
                and radii that go beyond are refused where they are known.

        Returns:
            The variable: never trained, never saved.

        Raises:
            ValueError: the nominal value is not above `lower_bound`.
        """
        if lower_bound is not None and not nominal > lower_bound:
            raise ValueError(
                f"The nominal value of '{name}' must be above {lower_bound:g}. "
                f"Received: nominal={nominal:g}"
            )
        variable = self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(nominal),
            trainable=False,
            autocast=False,
        )
        self._imperfections[name] = Quantity(
            self,
            name,
            variable,
            unit,
            nominal,
            shared=shared,
            mask=mask,
            lower_bound=lower_bound,
        )
        return variable

    @property
    def controls(self) -> dict[str, keras.Variable]:
        """The layer's controls, name to variable."""
        return {name: q.variable for name, q in self._controls.items()}

    @property
    def imperfections(self) -> dict[str, keras.Variable]:
        """The layer's imperfections, name to variable."""
        return {name: q.variable for name, q in self._imperfections.items()}

    def quantity(self, name: str) -> Quantity:
        """Returns unit and nominal value of a control or an imperfection."""
        return {**self._imperfections, **self._controls}[name]

    def check_given(self, name: str, value: np.ndarray) -> None:
        """Refuses values of an imperfection that were given, not drawn.

        A Gaussian draw may leave the range that a quantity has, and then counts as
        its end. Who names such a value, in a sweep, made a mistake. A subclass with
        such a quantity overrides this.

        Args:
            name: an imperfection, or a key of `aliases`.
            value: nominal value and deviation together, in the variable's shape; in
                another quantity the value itself.

        Raises:
            ValueError: the value does not exist.
        """

    def position(self, name: str, index: tuple[int, ...]) -> tuple:
        """Returns where on the chip one element of a control is.

        Args:
            name: a key of `layer.controls`.
            index: the element's index in the variable.

        Returns:
            (tile, row, column), each from 0, or `""` where it means nothing: the
            tile of a bank or the frame of a modulator, and the place on it.
        """
        return "", "", ""

    def forward(self, inputs, controls: dict, imperfections: dict):
        """The layer's physics, a pure function of tensors.

        Args:
            inputs: the layer's inputs.
            controls: name to tensor, one entry for each of `layer.controls`.
            imperfections: name to tensor, one for each of `layer.imperfections`.

        Returns:
            The layer's outputs.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement "
            "`forward(inputs, controls, imperfections)`."
        )

    def current_values(self) -> tuple[dict, dict]:
        """Returns controls and imperfections, name to tensor, as `forward` takes them.

        Raises:
            ValueError: the layer is not built.
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
        self._reset(self._imperfections.values())

    def _reset(self, quantities) -> None:
        for quantity in quantities:
            variable = quantity.variable
            variable.assign(
                tf.fill(variable.shape, tf.cast(quantity.nominal, variable.dtype))
            )

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
        # A run that is resumed on a device goes on with that device.
        kept = context.current().kept
        self._reset(
            q for q in self._imperfections.values() if id(q.variable) not in kept
        )


def check_built(layer: keras.layers.Layer) -> None:
    """Raises ValueError if the layer has no variables yet."""
    if not layer.built:
        raise ValueError(
            f"The layer must be built, by `build` or a first call. Received: {layer!r}"
        )
