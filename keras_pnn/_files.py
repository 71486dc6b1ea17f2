"""Write files whole or not at all; prepare arrays for them; compute digests."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, whose file finally replaces `path`.

    It has the same suffixes and is in the same folder, which is created if missing. If
    the process is killed or the body raises, the old file remains.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by process, so that two that write one file do not share a temporary file.
    suffix = "".join(path.suffixes)
    stem = path.name.removesuffix(suffix)
    part = path.with_name(f".{stem}.{os.getpid()}.part{suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def storable(array) -> np.ndarray:
    """Returns an array in a native NumPy type: bfloat16 becomes float32."""
    array = np.asarray(array)
    if array.dtype.kind == "V":
        return array.astype("float32")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def digest(*parts) -> str:
    """Returns a SHA-256 digest of texts, bytes and arrays, in hexadecimal.

    It depends on dtype, shape and values of arrays, in C order.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode()
        elif isinstance(part, np.ndarray):
            head = f"{part.dtype.str}{part.shape}".encode()
            part = head + np.ascontiguousarray(part).tobytes()
        # With its length, so that ("ab", "c") and ("a", "bc") differ.
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
