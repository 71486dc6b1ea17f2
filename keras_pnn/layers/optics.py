"""Share wavelength and pitch among the layers of diffraction."""

from keras_pnn import _checks
from keras_pnn.layers.fields import PlaneOutputs
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.physics._tensors import as_float64

# Wavelength and pitch of the reference, in m.
WAVELENGTH, PITCH = 532e-9, 2e-6


class Optics(PlaneOutputs, PhysicalLayer):
    """Base of layers that act on planes of a given wavelength and pitch."""

    def __init__(self, wavelength: float, pitch: float, /, **kwargs):
        super().__init__(**kwargs)
        self.wavelength = _checks.real("wavelength", wavelength, above=0)
        self.pitch = _checks.real("pitch", pitch, above=0)

    def _add_wavelength_shift(self) -> None:
        """Adds the deviation from the design's wavelength, one for the whole device."""
        least = -1e9 * self.wavelength
        self.add_imperfection(
            "wavelength_shift", (), unit="nm", shared=True, lower_bound=least
        )

    def _wave(self, imperfections: dict):
        """Returns the wavelength in m, float64."""
        return self.wavelength + 1e-9 * as_float64(imperfections["wavelength_shift"])
