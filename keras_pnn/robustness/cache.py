"""Store measured points in SQLite files in a folder."""

import contextlib
import json
import math
import os
import pathlib
import sqlite3
from collections.abc import Iterator

from keras_pnn import _checks, _warnings

_SUFFIX = ".sqlite"
# Seconds to wait while another process writes.
_PATIENCE = 60
_TABLES = """
CREATE TABLE IF NOT EXISTS studies
    (study TEXT PRIMARY KEY, points INTEGER, loss REAL);
CREATE TABLE IF NOT EXISTS points
    (study TEXT, point INTEGER, metrics TEXT, PRIMARY KEY (study, point));
"""
# Relative difference that the losses of a study may have between machines.
_AGREEMENT = 0.01


class Cache:
    """The measured points of one study, in a folder.

    A process writes one file, named after its `part` (i, n), with one transaction per
    block, and reads all files. Blocks that were interrupted or are in a damaged file
    are measured again. `study` is the study's digest; a different `loss` on a few
    samples reveals that a function was changed under the same name.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        study: str,
        points: int,
        loss: float,
        part: tuple[int, int],
    ):
        folder = pathlib.Path(folder)
        if folder.exists() and not folder.is_dir():
            raise _checks.error("cache_dir", "a folder", f"the file {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"points-{part[0]}of{part[1]}{_SUFFIX}"
        self._study = study, points, loss

    def read(self) -> dict[int, dict[str, float]]:
        """Returns point → metrics, from all files of the folder."""
        digest, _, own = self._study
        found = {}
        for path in sorted(self.path.parent.glob(f"*{_SUFFIX}")):
            try:
                studies, points = _read(path)
            except sqlite3.OperationalError:
                # The file may be intact, but locked or impossible to open.
                raise
            except sqlite3.DatabaseError as error:
                _warnings.warn(
                    f"{path} is damaged ({error}): its points are measured again."
                )
                if path == self.path:
                    path.unlink()
                continue
            for study, _, loss in studies:
                close = math.isclose(own, loss, rel_tol=_AGREEMENT, abs_tol=1e-6)
                if study == digest and not close:
                    raise ValueError(
                        f"Argument `cache_dir` must be another folder: {path} has "
                        "points of this study, whose loss on the first samples was "
                        "another. Was a function changed? "
                        f"Received: a loss of {own:g}, where it was {loss:g}"
                    )
            found |= {i: json.loads(m) for study, i, m in points if study == digest}
        return found

    def add(self, points: dict[int, dict[str, float]]) -> None:
        """Writes all points, or none if it fails."""
        rows = [(self._study[0], i, json.dumps(m)) for i, m in points.items()]
        with _opened(self.path) as file:
            file.executescript(_TABLES)
            file.execute("INSERT OR IGNORE INTO studies VALUES (?, ?, ?)", self._study)
            file.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", rows)


def _read(path: pathlib.Path) -> tuple[list[tuple], list[tuple]]:
    """Returns the rows of both tables; raises DatabaseError for any other file."""
    # Not read-only, so that SQLite can roll back an interrupted transaction.
    with _opened(path, "?mode=rw") as file:
        (state,) = file.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        tables = ("studies", "points")
        known = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
        if not known.issuperset(tables):
            raise sqlite3.DatabaseError("no tables of points")
        return tuple(file.execute(f"SELECT * FROM {t}").fetchall() for t in tables)


@contextlib.contextmanager
def _opened(path: pathlib.Path, mode: str = "") -> Iterator[sqlite3.Connection]:
    """Opens a database for one transaction."""
    uri = path.absolute().as_uri() + mode
    with contextlib.closing(sqlite3.connect(uri, _PATIENCE, uri=True)) as file, file:
        yield file
