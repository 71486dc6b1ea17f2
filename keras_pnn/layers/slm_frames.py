"""Lay masks out on the frames of a modulator, and store frames as PNG files."""

import math
import os
import pathlib

import numpy as np

from keras_pnn._png import read_png, write_png
from keras_pnn.layers.limits import DAC
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics import frames


class SLMFrames(PhysicalLayer):
    """Base of layers whose control `mask` is shown on a spatial light modulator.

    A subclass sets `units`, `grid`, `margin`, `pixel_repeat` and `dac`, adds the
    control `mask`, of shape (units, height, width) from −1 to 1, and implements
    `as_set`, the masks as the modulator's converter sets them.
    """

    @property
    def _layout(self) -> dict:
        return {
            "grid": self.grid,
            "margin": self.margin,
            "pixel_repeat": self.pixel_repeat,
        }

    @property
    def _size(self) -> tuple[int, int]:
        return tuple(self.controls["mask"].shape[1:])

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels of the modulator."""
        check_built(self)
        return frames.frame_shape(self.units, self._size, **self._layout)

    def frames(self) -> np.ndarray:
        """Returns the transmissions for the modulator: 0 to 1, (frames, y, x).

        Raises:
            ValueError: If a mask is NaN or beyond ±1.
        """
        controls, _ = self.current_values()
        mask = np.asarray(self.as_set(controls)["mask"])
        if not (np.abs(mask) <= 1).all():
            raise ValueError(
                "Masks must be within ±1 to be shown. Received: values from "
                f"{mask.min()} to {mask.max()}"
            )
        return (1 + np.asarray(frames.tile(mask, **self._layout))) / 2

    def save_frames(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Writes `frames` as greyscale PNG files, black 0 and white 255.

        With a `DAC` of more than 8 bits the files have 16, and white is 65535. A
        signed sum takes one more frame, entirely white, as the reference. 8 bits have
        no middle: a mask of 0, mid-grey, is written as 128 and shows 0.004;
        `dac=DAC(8, -1, 1)` trains with the same steps.

        Args:
            folder: where to write; it is created if it does not exist.

        Returns:
            The paths, `<layer>_000.png` and so on. Give the layer a name, since an
            automatic one differs from run to run.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = self._frame_paths(folder)
        bits = 16 if isinstance(self.dac, DAC) and self.dac.bits > 8 else 8
        levels = np.rint((2**bits - 1) * self.frames()).astype(f"uint{bits}")
        for path, level in zip(paths, levels, strict=True):
            write_png(path, level)
        return paths

    def load_frames(self, folder: str | os.PathLike) -> None:
        """Sets the masks from files that `save_frames` wrote, to their 8 or 16 bits.

        Nothing is set unless all files fit the layer.

        Args:
            folder: where the files are.

        Raises:
            FileNotFoundError: If a frame is missing.
            ValueError: If a file is not a PNG picture, is damaged, or is not greyscale
                of the size of the layer's frames.
        """
        shape = self.frame_shape
        levels = [read_png(p, shape[1:]) for p in self._frame_paths(folder)]
        signed = 2 * np.stack([n / np.iinfo(n.dtype).max for n in levels]) - 1
        masks = frames.untile(signed, self.units, self._size, **self._layout)
        self.controls["mask"].assign(masks)

    def _frame_paths(self, folder) -> list[pathlib.Path]:
        count, _, _ = self.frame_shape
        return [pathlib.Path(folder) / f"{self.name}_{i:03d}.png" for i in range(count)]

    def position(self, name, index):
        """Returns the frame, row and column of a mask pixel's first SLM pixel."""
        unit, *pixel = index
        frame, place = divmod(unit, math.prod(self.grid))
        cell = divmod(place, self.grid[1])
        return frame, *(
            r * (c * (n + 2 * m) + m + p)
            for r, c, n, m, p in zip(
                self.pixel_repeat, cell, self._size, self.margin, pixel, strict=True
            )
        )
