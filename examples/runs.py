"""Results of single runs, kept as JSON so that none is repeated."""

import json
import os
import pathlib


def kept(path: pathlib.Path, **setting) -> bool:
    """Whether a run is there already; a run with another setting stops the program."""
    if not path.exists():
        return False
    run = json.loads(path.read_text("utf-8"))
    other = {k: run.get(k) for k, v in setting.items() if run.get(k) != v}
    if other:
        raise SystemExit(
            f"{path} was made with {other}, not with "
            f"{ {k: setting[k] for k in other} }: move it, or choose another --out"
        )
    return True


def keep(path: pathlib.Path, run: dict) -> None:
    """Writes a run whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(run), "utf-8")
    os.replace(part, path)
