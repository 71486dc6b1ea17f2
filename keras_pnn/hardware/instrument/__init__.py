"""Drive instruments that speak SCPI, described by one file."""

from keras_pnn.hardware.instrument.device import InstrumentDevice, InstrumentError

__all__ = ["InstrumentDevice", "InstrumentError"]
