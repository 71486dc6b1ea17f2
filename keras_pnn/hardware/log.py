"""Store measurements in an SQLite file.

One row of the table `records` is one measurement. Its arrays are one blob in NumPy's
`.npz` format, without pickle; a SHA-256 of the whole row reveals damage. Each record is
a transaction: a process killed while writing loses only that record, and processes that
share a log wait for each other.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator

import numpy as np

from keras_pnn._display import Brief
from keras_pnn._files import digest, storable

# Marks the file as a log: "PNN" and the version of the format.
_APPLICATION = int.from_bytes(b"PNN\x02")
_TABLE = """
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        layer TEXT NOT NULL,
        request TEXT NOT NULL,
        seconds REAL NOT NULL,
        attempts INTEGER NOT NULL,
        arrays BLOB NOT NULL,
        checksum TEXT NOT NULL
    )
"""
_COLUMNS = "layer, request, seconds, attempts, arrays"
# Seconds to wait while another process writes.
_PATIENCE = 60.0
# SQLite's codes for a damaged or foreign file; `None` for errors from Python.
_DAMAGE = (
    None,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_SCHEMA,
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Record(Brief):
    """One measurement of one layer.

    Args:
        layer: the layer's name.
        inputs: the inputs sent, (batch, ...).
        controls: name → array, the controls of the layer.
        outputs: the readings, (batch, ...), averaged over repeats.
        seconds: duration, including settling, repeats and retries.
        attempts: number of calls to the device's `measure`.
        digest: of layer, inputs and controls, as `request_digest` returns it.
    """

    layer: str
    inputs: np.ndarray
    controls: dict[str, np.ndarray]
    outputs: np.ndarray
    seconds: float
    attempts: int
    digest: str


def request_digest(
    layer: str, inputs: np.ndarray, controls: dict[str, np.ndarray]
) -> str:
    """Returns a SHA-256 of a requested measurement, in hexadecimal.

    It depends on each bit, shape and type of the arrays, but not on the order of
    `controls`.
    """
    named = (part for item in sorted(controls.items()) for part in item)
    parts = (layer, inputs, *named)
    return digest(*(p if isinstance(p, str) else storable(p) for p in parts))


def prepare(path: str | os.PathLike) -> str:
    """Creates a log, or checks that one can be appended to; returns its absolute path.

    Raises ValueError for a damaged log or any other file, and leaves it unchanged.
    """
    path = os.path.abspath(os.fspath(path))
    with open(path, "ab"):
        pass
    with _connected(path) as connection:
        # Locked first, since another process may be creating it at the same moment.
        connection.execute("BEGIN IMMEDIATE")
        if not _holds_log(connection, path):
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(_TABLE)
        connection.execute("COMMIT")
    return path


def append(path: str, record: Record) -> None:
    """Adds a record; after a ValueError or OSError, the log is unchanged."""
    arrays = {"inputs": record.inputs, "outputs": record.outputs}
    arrays |= {f"controls/{name}": a for name, a in record.controls.items()}
    blob = io.BytesIO()
    np.savez(blob, **{name: storable(array) for name, array in arrays.items()})
    head = (record.layer, record.digest, record.seconds, record.attempts)
    row = (*head, blob.getvalue())
    insertion = f"INSERT INTO records ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?)"
    with _connected(path) as connection:
        connection.execute(insertion, (*row, _checksum(row)))


def record_ids(path: str | os.PathLike) -> list[int]:
    """Returns the numbers of a log's records, in order; raises like `prepare`."""
    path = os.fspath(path)
    with open(path, "rb"):
        pass
    with _connected(path) as connection:
        if not _holds_log(connection, path):
            return []
        rows = connection.execute("SELECT id FROM records ORDER BY id").fetchall()
    return [number for (number,) in rows]


def read(path: str | os.PathLike, ids: Iterable[int]) -> Iterator[Record]:
    """Yields records by number; ValueError for one that is damaged or missing."""
    path = os.fspath(path)
    query = f"SELECT {_COLUMNS}, checksum FROM records WHERE id = ?"
    with _connected(path) as connection:
        for number in ids:
            # All rows are fetched, since an open cursor would lock out other processes.
            rows = connection.execute(query, (number,)).fetchall()
            yield _decoded(rows, path, number)


@contextlib.contextmanager
def _connected(path: str) -> Iterator[sqlite3.Connection]:
    """Opens an existing file; SQLite errors become ValueError or OSError."""
    try:
        uri = f"{pathlib.Path(path).absolute().as_uri()}?mode=rw"
        # Without an isolation level, each statement is a transaction of its own.
        connection = sqlite3.connect(
            uri, uri=True, timeout=_PATIENCE, isolation_level=None
        )
        with contextlib.closing(connection):
            yield connection
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte of an extended code is the kind of error.
        if (code if code is None else code & 0xFF) in _DAMAGE:
            raise _damaged(path, str(error)) from error
        raise OSError(f"The log {path} could not be used: {error}") from error


def _holds_log(connection: sqlite3.Connection, path: str) -> bool:
    """Tells whether a file holds a log or is empty; else raises like `prepare`."""
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    if application != _APPLICATION:
        if application or connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
            raise ValueError(
                f"`path` must be a log of measurements. Received: {path}, another file"
            )
        return False
    ((problem,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if problem != "ok":
        raise _damaged(path, problem)
    # SQLite reads the missing part of a last page as zeros.
    size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    if os.path.getsize(path) < connection.execute(size).fetchall()[0][0]:
        raise _damaged(path, "the end is missing")
    return True


def _checksum(row: tuple) -> str:
    return digest(*(p if isinstance(p, bytes) else repr(p) for p in row))


def _decoded(rows: list[tuple], path: str, number: int) -> Record:
    """Returns the record in a row of `_COLUMNS`, after checking its checksum."""
    try:
        ((*row, checksum),) = rows
        if _checksum(row) != checksum:
            raise ValueError("wrong checksum")
        layer, request, seconds, attempts, blob = row
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = dict(file)
        inputs, outputs = arrays.pop("inputs"), arrays.pop("outputs")
        controls = {n.removeprefix("controls/"): a for n, a in arrays.items()}
        return Record(layer, inputs, controls, outputs, seconds, attempts, request)
    except Exception as error:
        what = f"record {number}: {type(error).__name__}: {error}"
        raise _damaged(path, what) from error


def _damaged(path: str, what: str) -> ValueError:
    return ValueError(
        "A log of measurements must have whole records. Received: "
        f"{path}, which is damaged ({what})"
    )
