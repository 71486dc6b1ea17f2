"""Files of measured points: one line of JSON for each block, kept as it is done."""

import json
import os
import pathlib
import zlib
from collections.abc import Sequence

_FORMAT = "keras_pnn.rows/2"


class Store:
    """Blocks of rows as lines of JSON in a folder, one file for each part.

    Each line is written whole and flushed, with a check sum. A line that a kill cut
    short or that was changed is left out when the file is read, and its block is
    measured again.

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
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`rows` must be a folder. Received: the file {folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{fingerprint[:16]}-{part[0]}of{part[1]}.jsonl"
        self.path = self.folder / name
        if self.path.exists() and not _header(self.path):
            # A kill came before the first line was whole.
            self.path.unlink()

    def read(self) -> dict[int, list[dict]]:
        """Returns the blocks that are there, from all files of this study."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
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
        self._write(_line(block, rows), "a")

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
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(_line(b, blocks[b]) for b in sorted(blocks))]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    os.replace(part, path)
    return header["blocks"] - len(blocks)


def read_rows(path: str | os.PathLike) -> tuple[dict, dict[int, list[dict]]]:
    """Returns the header of a file of rows, and its whole blocks.

    Args:
        path: what `robustness_rows` wrote.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    lines = _lines(path) if pathlib.Path(path).is_file() else []
    header = lines[0] if lines and _is_header(lines[0]) else None
    if header is None:
        raise ValueError(
            f"`path` must be a file that `robustness_rows` wrote. Received: {path}"
        )
    count = header["blocks"]
    whole = [line for line in lines[1:] if _is_block(line, count)]
    return header, {line["block"]: line["rows"] for line in whole}


def _line(block: int, rows: list[dict]) -> dict:
    return {"block": block, "rows": rows, "check": _check_sum(block, rows)}


def _check_sum(block: int, rows) -> int:
    return zlib.crc32(json.dumps([block, rows]).encode())


def _is_header(line) -> bool:
    return (
        isinstance(line, dict)
        and line.get("format") == _FORMAT
        and isinstance(line.get("fingerprint"), str)
        and isinstance(line.get("blocks"), int)
    )


def _is_block(line, count: int) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("block"), int)
        and 0 <= line["block"] < count
        and line.get("check") == _check_sum(line["block"], line.get("rows"))
    )


def _header(path) -> dict:
    """The first line of a file of rows; empty where it is none."""
    first = next(iter(_lines(path)), None)
    return first if _is_header(first) else {}


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
        path: the file to write, `.jsonl`, in the folder that the report is given.

    Returns:
        How many of the study's blocks are still missing.

    Raises:
        ValueError: there is no file, one is no such file, they are of different
            studies, or `path` has another suffix.
    """
    if isinstance(paths, str | os.PathLike):
        raise ValueError(f"`paths` must be a list of files. Received: {paths!r}")
    if pathlib.Path(path).suffix != ".jsonl":
        raise ValueError(f"`path` must end in .jsonl. Received: {path}")
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
