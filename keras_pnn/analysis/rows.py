"""Files of measured points: one line of JSON for each block, kept as it is done."""

import json
import os
import pathlib
from collections.abc import Sequence

_FORMAT = "keras_pnn.rows/1"


class Store:
    """Blocks of rows as lines of JSON in a folder, one file for each part.

    Each line is written whole and flushed; a line that a kill cut short is left out
    when the file is read, and its block is measured again.

    Args:
        folder: the folder, created where it is missing.
        fingerprint: of the study; files of other studies are left alone.
        part: (i, n) of the file to write.
        blocks: how many blocks the whole study has.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: str,
        part: tuple[int, int],
        blocks: int,
    ):
        self.folder, self.fingerprint = pathlib.Path(folder), fingerprint
        self.blocks = blocks
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{fingerprint[:16]}-{part[0]}of{part[1]}.jsonl"
        self.path = self.folder / name
        if self.path.exists() and not _header(self.path):
            # A kill came before the first line was whole.
            self.path.unlink()

    def read(self) -> dict[int, list[dict]]:
        """Returns the blocks that are there, from the files of all parts."""
        found = {}
        for path in sorted(self.folder.glob(f"{self.fingerprint[:16]}-*.jsonl")):
            if _header(path).get("fingerprint") == self.fingerprint:
                found.update(read_rows(path)[1])
        return found

    def add(self, block: int, rows: list[dict]) -> None:
        """Appends one block to the file of this part."""
        if not self.path.exists():
            header = {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "blocks": self.blocks,
            }
            self._write(header, "w")
        elif not self.path.read_bytes().endswith(b"\n"):
            # What a kill left of a line would spoil the next one.
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")
        self._write({"block": block, "rows": rows}, "a")

    def _write(self, value: dict, how: str) -> None:
        with open(self.path, how, encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write_rows(path: str | os.PathLike, header: dict, blocks: dict) -> int:
    """Writes a file of rows, whole or not at all.

    Returns:
        How many blocks of the study it lacks.
    """
    path = pathlib.Path(path)
    lines = [header, *({"block": b, "rows": blocks[b]} for b in sorted(blocks))]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    os.replace(part, path)
    return header["blocks"] - len(blocks)


def read_rows(path: str | os.PathLike) -> tuple[dict, dict[int, list[dict]]]:
    """Returns the header of a file of rows, and its whole blocks.

    Args:
        path: what `robustness_rows` wrote.

    Raises:
        ValueError: the file is another one.
    """
    header = _header(path)
    if not header:
        raise ValueError(
            f"`path` must be a file that `robustness_rows` wrote. Received: {path}"
        )
    return header, {line["block"]: line["rows"] for line in _lines(path)[1:]}


def _header(path) -> dict:
    """The first line of a file of rows; empty where it is none."""
    first = next(iter(_lines(path)), None)
    ours = isinstance(first, dict) and first.get("format") == _FORMAT
    return first if ours else {}


def _lines(path) -> list:
    """What the whole lines of a file hold."""
    found = []
    for line in pathlib.Path(path).read_text("utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def merge_rows(paths: Sequence[str | os.PathLike], path: str | os.PathLike) -> int:
    """Puts the files of several parts together in one.

    Args:
        paths: files that `robustness_rows` wrote for one study.
        path: the file to write, in the folder that the report is given.

    Returns:
        How many of the study's blocks are still missing.

    Raises:
        ValueError: there is no file, or they are of different studies.
    """
    paths = [pathlib.Path(p) for p in paths]
    if not paths:
        raise ValueError("`paths` must name at least one file. Received: none")
    blocks, first = {}, None
    for one in paths:
        header, mine = read_rows(one)
        first = first or header
        if header != first:
            raise ValueError(
                "`paths` must be files of one study: the same weights, data and "
                f"arguments. Received: {paths[0]} and {one}"
            )
        blocks.update(mine)
    return write_rows(path, first, blocks)
