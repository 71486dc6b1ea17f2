"""Train forward on the device, backward through the model: physics-aware training."""

import keras

from keras_pnn._signatures import passing_on
from keras_pnn.training.gradients.base import DeviceGradient
from keras_pnn.training.sat import SATModel


class PATModel(SATModel):
    """Trains with a device in the loop: measured outputs, gradients of the model.

    Args:
        model: as in `SATModel`; its physical layers are the model of the device.
        device: a `SimulatedDevice`, a `HardwareDevice`, or any object with
            `measure(layer, inputs, controls)`.
        readout: `"layers"`: every physical layer is measured, and its
            vector–Jacobian product is taken through the model at the measured input;
            or `"output"`: only the outputs of the network are measured, and the
            derivative is the model's, at its own states. For an imperfect `MZIMesh`
            start with `"output"`: its errors rotate the phases of the fields, so that
            `"layers"` may fail, above all in large meshes.
        ascent: an ascent as in `SATModel`, for SAT online. Default: none.
        **kwargs: further arguments of `SATModel`.

    Raises:
        ValueError: If `device` is `None` or cannot measure, or `readout` is unknown.

    Example:

    ```python
    chip = pnn.Variation(theta_error=0.15, phi_error=0.15).sample(model, 1, seed=7)[0]
    online = pnn.PATModel(model, device=chip, readout="output")
    online.compile("adam", loss="sparse_categorical_crossentropy")
    online.fit(x_train, y_train)
    ```

    Reference:
        - Wright et al., Nature 601:549 (2022)
    """

    @passing_on(SATModel, without=("gradient",))
    def __init__(
        self,
        model: keras.Model,
        device,
        readout: str = "layers",
        ascent=None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"pat_{getattr(model, 'name', '')}")
        super().__init__(
            model,
            ascent=ascent,
            device=device,
            gradient=DeviceGradient(readout),
            **kwargs,
        )
