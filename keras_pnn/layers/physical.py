"""The base of every physical layer, and the ways to find its parts in a model."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

_context = threading.local()


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a control or an imperfection is.

    Args:
        variable: the `keras.Variable` that holds it.
        unit: its unit, such as `"nm"`; `""` for a pure number.
        nominal: its value in the design, where the device is ideal.
        shared: whether one value serves the whole chip (a temperature).
        mask: which elements the hardware has, broadcast to the variable; `None` for
            all. The others keep their nominal value: they are never drawn, and not
            written to files.
        lower_bound: what its values must be above, as a scale above 0; `None` where any
            finite value exists.
    """

    variable: keras.Variable
    unit: str
    nominal: float
    shared: bool = False
    mask: np.ndarray | None = None
    lower_bound: float | None = None


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
        self._controls[name] = Quantity(variable, unit, nominal, mask=mask)
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
            variable, unit, nominal, shared, mask, lower_bound
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
        substitute = active_substitute()
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
        own = self._trainable_variables + self._non_trainable_variables
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
        kept = _kept()
        self._reset(
            q for q in self._imperfections.values() if id(q.variable) not in kept
        )


def check_built(layer: keras.layers.Layer) -> None:
    """Raises ValueError if the layer has no variables yet."""
    if not layer.built:
        raise ValueError(
            f"The layer must be built, by `build` or a first call. Received: {layer!r}"
        )


@tf.custom_gradient
def valued(measured, modelled):
    """Returns the values of `measured` with the derivatives of `modelled`."""
    return tf.identity(measured), lambda upstream: (None, upstream)


def measure(device, layer: PhysicalLayer, inputs, controls: dict, modelled):
    """Returns what a device measures for one layer, or `None` if it has none.

    Args:
        device: an object with `measure(layer, inputs, controls)`, on tensors; or with
            `measure_in_graph(layer, inputs, controls, modelled)`, which is also given
            the model's own outputs. Either may return `None`: the layer is not on
            the device.
        layer, inputs, controls: what to measure.
        modelled: the layer's own outputs.
    """
    if hasattr(device, "measure_in_graph"):
        return device.measure_in_graph(layer, inputs, controls, modelled)
    return device.measure(layer, inputs, controls)


def active_substitute() -> Callable | None:
    """Returns what gives the layers' outputs in the present context, if anything."""
    return getattr(_context, "substitute", None)


@contextlib.contextmanager
def substituting(substitute: Callable | None) -> Iterator[None]:
    """Lets a function give the outputs of every physical layer inside.

    Args:
        substitute: a function of (layer, inputs, controls, the layer's own outputs)
            that returns outputs of the same shape and dtype; `None` for these.
    """
    before = active_substitute()
    _context.substitute = substitute
    try:
        yield
    finally:
        _context.substitute = before


def measured_by(
    device, block=None, seen: list | None = None
) -> contextlib.AbstractContextManager[None]:
    """Lets a device give the outputs of every physical layer inside.

    Values are the device's; gradients are those of the layers' own `forward`.

    Args:
        device: as in `measure`.
        block: the block of code to which the device keeps, see `measuring_block`.
        seen: a list to which the layers are added that the device measures.
    """

    def substitute(layer, inputs, controls, modelled):
        measured = measure(device, layer, inputs, controls, modelled)
        if measured is None:
            return modelled
        if seen is not None:
            seen.append(layer)
        return valued(measured, modelled)

    substitute.device, substitute.block = device, block
    return substituting(substitute)


def measuring_device():
    """Returns the device that measures in the present context, or `None`."""
    return getattr(active_substitute(), "device", None)


def measuring_block():
    """Returns the block of the present context beyond which nothing may measure.

    `None` where there is none, as in the steps of a trainer with its own device.
    """
    return getattr(active_substitute(), "block", None)


@contextlib.contextmanager
def keeping(variables) -> Iterator[None]:
    """Lets imperfections stay as they are when weights are loaded inside.

    Args:
        variables: those that a device sets.
    """
    before = _kept()
    _context.kept = before.union(map(id, variables))
    try:
        yield
    finally:
        _context.kept = before


def _kept() -> frozenset[int]:
    return getattr(_context, "kept", frozenset())


@contextlib.contextmanager
def kernels_per_device() -> Iterator[None]:
    """Tells layers that a surrounding `tf.vectorized_map` stacks their kernels.

    TensorFlow cannot vectorise a convolution over its filters, so inside this
    context a convolution is written as patches times kernel.
    """
    before = stacked_kernels()
    _context.stacked = True
    try:
        yield
    finally:
        _context.stacked = before


def stacked_kernels() -> bool:
    """Whether kernels differ per device in the present `tf.vectorized_map`."""
    return getattr(_context, "stacked", False)


def overriding(model: keras.Model, values) -> keras.StatelessScope:
    """A scope in which variables have other values and assignments are only noted.

    Args:
        model: the model whose loss is to be computed inside.
        values: (variable, tensor) pairs.
    """
    values = list(values)
    given = {id(v) for v, _ in values}
    # Keras hands a regulariser None for a variable that the scope does not hold.
    regularized = [
        (v, tf.convert_to_tensor(v))
        for v in model.trainable_variables
        if v.regularizer is not None and id(v) not in given
    ]
    return keras.StatelessScope([*values, *regularized], collect_losses=True)


def flat_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the model's layers without the models around them, once each.

    The order is that in which layers were attached, depth first, so that a wrapper
    and the model inside give the same list.
    """
    seen: set[int] = set()

    def walk(layer):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if not isinstance(layer, keras.Model):
            yield layer
        for inner in layer._layers:
            yield from walk(inner)

    return list(walk(model))


def physical_layers(model: keras.layers.Layer) -> list[PhysicalLayer]:
    """Returns the physical layers of a model, wrapped or not, in order."""
    return [la for la in flat_layers(model) if isinstance(la, PhysicalLayer)]


def imperfection_names(model: keras.layers.Layer) -> list[str]:
    """Returns every name that addresses an imperfection of the model."""
    layers = physical_layers(model)
    common = dict.fromkeys(n for la in layers for n in la.imperfections)
    single = [f"{la.name}/{n}" for la in layers for n in la.imperfections]
    return [*common, *single]


def find_quantities(model: keras.layers.Layer, name: str) -> list[Quantity]:
    """Returns the imperfections that a name addresses.

    Args:
        model: a model with physical layers, built.
        name: an imperfection of every layer that has it (`"temperature"`), or of
            one layer (`"mrr_bank_1/temperature"`).

    Raises:
        ValueError: nothing has that name; the error lists what there is.
    """
    layer_name, _, short = name.rpartition("/")
    found = [
        layer.quantity(short)
        for layer in physical_layers(model)
        if short in layer.imperfections and layer_name in ("", layer.name)
    ]
    if not found:
        names = imperfection_names(model)
        raise ValueError(
            "An imperfection must be one of the model's: "
            f"{', '.join(names) or 'none (is the model built?)'}. Received: {name!r}"
        )
    return found


def find_imperfections(model: keras.layers.Layer, name: str) -> list[keras.Variable]:
    """Returns the variables that a name addresses, as in `find_quantities`."""
    return [q.variable for q in find_quantities(model, name)]


def check_deviation(name: str, deviation, nominal: float, above, dtype: str) -> None:
    """Raises ValueError if a deviation takes an imperfection to its bound.

    Args:
        name: of the imperfection, for the message.
        deviation: from the nominal value, a number or an array.
        nominal, above: as in `Quantity`.
        dtype: of the imperfection's variable: what rounds to the bound is refused.
    """
    if above is None:
        return
    deviation = np.asarray(deviation)
    beyond = ~((nominal + deviation.astype(dtype)).astype(dtype) > above)
    if beyond.any():
        raise ValueError(
            f"'{name}' must be above {above:g}, so that its deviation from the nominal "
            f"value {nominal:g} must be above {above - nominal:g}. "
            f"Received: a deviation of {float(deviation[beyond].min()):g}"
        )


def controls_of(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the trainable controls of a model's physical layers, in order."""
    return [
        v for la in physical_layers(model) for v in la.controls.values() if v.trainable
    ]


def select_variables(
    model: keras.layers.Layer, which: str | Callable[[keras.Variable], bool]
) -> list[keras.Variable]:
    """Returns the variables that a search or a Hessian is about.

    Args:
        model: a built model.
        which: `"controls"`, the trainable controls of its physical layers; `"all"`,
            its trainable variables; or a predicate, asked of trainable variables
            and of imperfections.

    Raises:
        ValueError: nothing was selected, or `which` is neither.
    """
    if which == "controls":
        selected = controls_of(model)
        hint = "Pass 'all' for every trainable variable, or a predicate on variables."
    elif which == "all":
        selected, hint = model.trainable_variables, "The model has none."
    elif callable(which):
        imperfections = [
            v for la in physical_layers(model) for v in la.imperfections.values()
        ]
        candidates = [*model.trainable_variables, *imperfections]
        selected, hint = [v for v in candidates if which(v)], "The predicate took none."
    else:
        raise ValueError(
            "Variables are 'controls', 'all' or a predicate on variables. "
            f"Received: {which!r}"
        )
    if not selected:
        raise ValueError(
            f"No variables were found in model '{model.name}' for {which!r}. {hint}"
        )
    return selected
