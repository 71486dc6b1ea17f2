"""The file in which measurements are kept: append-only, checked, without pickle.

    file    = "keras_pnn.measurements/1\\n", record, record, ...
    record  = mark (4 bytes), length (8), CRC-32 of the payload (4),
              CRC-32 of these 16 bytes (4), payload (length)
    payload = length of the description (4), description (JSON), arrays one by one

Numbers are little-endian. The header has a checksum of its own: a wrong length must
not make the rest of the file look like one record that was cut short.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np

_TITLE = b"keras_pnn.measurements/1\n"
_MARK = b"\xabPNN"
_HEADER = struct.Struct("<4sQII")
_COUNT = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One measurement of one layer.

    Args:
        layer: the layer's name.
        inputs: what was sent, (batch, ...).
        controls: name → array, what the layer was set to.
        outputs: what came back, (batch, ...), averaged where readings were repeated.
        seconds: how long it took, with settling, repeats and retries.
        attempts: how many calls of the device's `measure` it took.
        digest: of layer, inputs and controls, as `digest` returns it.
    """

    layer: str
    inputs: np.ndarray
    controls: dict[str, np.ndarray]
    outputs: np.ndarray
    seconds: float
    attempts: int
    digest: str


def plain(array) -> np.ndarray:
    """Returns an array of a type that NumPy knows: bfloat16 becomes float32."""
    array = np.asarray(array)
    return array.astype("float32") if array.dtype.kind == "V" else array


def digest(layer: str, inputs: np.ndarray, controls: dict[str, np.ndarray]) -> str:
    """Returns a SHA-256 of what a measurement was asked for.

    Args:
        layer: the layer's name.
        inputs: its inputs.
        controls: name to array; the order does not matter.

    Returns:
        64 hexadecimal digits. They differ wherever one bit, the shape or the type
        of an array does.
    """
    named = [("inputs", inputs), *sorted(controls.items())]
    arrays = [(name, _little_endian(array)) for name, array in named]
    description = [layer, *([n, a.dtype.str, a.shape] for n, a in arrays)]
    total = hashlib.sha256(json.dumps(description).encode())
    for _, array in arrays:
        total.update(array.data)
    return total.hexdigest()


def prepare(path: str | os.PathLike) -> str:
    """Makes a log ready for appending, and creates it where there is none.

    A last record that was cut short, by a process that was killed while it wrote,
    is cut off. Several processes may have one log: each waits for the others.

    Returns:
        The path, absolute, so that a change of directory changes nothing.

    Raises:
        ValueError: the file is not a log, or is damaged; nothing is changed then.
        OSError: the file cannot be opened.
    """
    path = os.path.abspath(os.fspath(path))
    with open(path, "ab") as file:
        file.flush()
    with open(path, "r+b") as file, _alone(file):
        end = 0
        if _has_title(file, path):
            end = len(_TITLE)
            for start, length, check in _walk(file, path):
                end, last = start + length, (start, length, check)
            if end > len(_TITLE):
                _payload(file, path, *last)
        if end < os.fstat(file.fileno()).st_size:
            file.truncate(end)
    return path


def append(path: str, record: Record) -> None:
    """Adds a record to a log, in one write.

    Raises:
        OSError: it could not be written; the log is as before.
    """
    data = _encoded(record)
    with open(path, "ab", buffering=0) as file, _alone(file):
        start = file.seek(0, os.SEEK_END)
        rest = memoryview(data if start else _TITLE + data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(start)
            raise


def places(path: str | os.PathLike) -> tuple[list[int], int]:
    """Returns where whole records begin, and how many bytes follow the last one.

    Args:
        path: of a log. Bytes follow the last record where one was cut short.

    Raises:
        ValueError: the file is not a log, or is damaged.
        OSError: the file cannot be opened.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not _has_title(file, path):
            return [], size
        found, end = [], len(_TITLE)
        for start, length, _ in _walk(file, path):
            found.append(start - _HEADER.size)
            end = start + length
        return found, size - end


def read(path: str | os.PathLike, starts) -> Iterator[Record]:
    """Reads the records that begin at the given places of a log.

    Raises:
        ValueError: a record is damaged.
        OSError: the file cannot be opened.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            length, check = _header(file.read(_HEADER.size), path, start)
            payload = _payload(file, path, start + _HEADER.size, length, check)
            yield _decoded(payload, path, start)


@contextlib.contextmanager
def _alone(file) -> Iterator[None]:
    """Keeps other processes from writing, where the system has such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        # Windows, and some network file systems.
        pass
    # Closing the file ends the lock.
    yield


def _little_endian(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(plain(array)).reshape(np.shape(array))
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _encoded(record: Record) -> bytes:
    named = [("inputs", record.inputs), ("outputs", record.outputs)]
    named += record.controls.items()
    arrays = [(name, _little_endian(array)) for name, array in named]
    description = {
        "layer": record.layer,
        "digest": record.digest,
        "seconds": record.seconds,
        "attempts": record.attempts,
        "arrays": [[n, a.dtype.str, a.shape] for n, a in arrays],
    }
    text = json.dumps(description).encode()
    parts = [_COUNT.pack(len(text)), text, *(a.tobytes() for _, a in arrays)]
    payload = b"".join(parts)
    front = _HEADER.pack(_MARK, len(payload), zlib.crc32(payload), 0)[:-4]
    return front + _COUNT.pack(zlib.crc32(front)) + payload


def _decoded(payload: bytes, path: str, start: int) -> Record:
    try:
        (length,) = _COUNT.unpack_from(payload)
        offset = _COUNT.size + length
        description = json.loads(payload[_COUNT.size : offset])
        arrays = []
        for _, dtype, shape in description["arrays"]:
            count = int(np.prod(shape, dtype="int64"))
            values = np.frombuffer(payload, np.dtype(dtype), count, offset)
            arrays.append(values.reshape(shape))
            offset += values.nbytes
        names = [name for name, *_ in description["arrays"]]
        if names[:2] != ["inputs", "outputs"] or offset != len(payload):
            raise ValueError("arrays are missing or too many")
        return Record(
            layer=description["layer"],
            inputs=arrays[0],
            controls=dict(zip(names[2:], arrays[2:], strict=True)),
            outputs=arrays[1],
            seconds=description["seconds"],
            attempts=description["attempts"],
            digest=description["digest"],
        )
    except Exception as error:
        raise _damaged(path, start, f"{type(error).__name__}: {error}") from error


def _damaged(path: str, start: int, what: str) -> ValueError:
    return ValueError(
        "A log of measurements must have whole records. Received: "
        f"{path}, which is damaged at byte {start} ({what})"
    )


def _has_title(file, path: str) -> bool:
    """Whether the log has begun: an empty one, or half a title, holds nothing."""
    title = file.read(len(_TITLE))
    if not _TITLE.startswith(title):
        raise ValueError(
            f"`path` must be a log of measurements. Received: {path}, another file"
        )
    return title == _TITLE


def _walk(file, path: str) -> Iterator[tuple[int, int, int]]:
    """Yields place, length and checksum of the payloads of whole records."""
    size = os.fstat(file.fileno()).st_size
    start = len(_TITLE)
    while start < size:
        file.seek(start)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size and _MARK.startswith(header[: len(_MARK)]):
            return
        length, check = _header(header, path, start)
        start += _HEADER.size
        if start + length > size:
            return
        yield start, length, check
        start += length


def _header(header: bytes, path: str, start: int) -> tuple[int, int]:
    """Length and checksum of a payload."""
    if len(header) < _HEADER.size or not header.startswith(_MARK):
        raise _damaged(path, start, "no record begins there")
    _, length, check, own = _HEADER.unpack(header)
    if zlib.crc32(header[:-4]) != own:
        raise _damaged(path, start, "wrong checksum of a header")
    return length, check


def _payload(file, path: str, start: int, length: int, check: int) -> bytes:
    file.seek(start)
    payload = file.read(length)
    if len(payload) < length or zlib.crc32(payload) != check:
        raise _damaged(path, start, "wrong checksum of a record")
    return payload
