"""Run the README's examples, and compare what they print with its table.

    python tests/readme.py            # on MNIST, if it is found; fails if they differ
    python tests/readme.py 0 1 2      # mean ± spread over seeds, as the table has it

With seeds, the data are those of `pnn.datasets.load()`. Accuracies are in percent.
"""

import contextlib
import io
import pathlib
import re
import sys

import numpy as np

import keras_pnn as pnn

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
SYSTEMS = ("rings", "mesh", "masks")
COLUMNS = ("nominal", "mean", "worst")


def blocks() -> list[str]:
    """The fenced blocks of Python: what the examples share, then one for each."""
    text = README.read_text("utf-8")
    return [m[1] for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)]


def measured(systems=SYSTEMS, seed: int = 0) -> tuple[str, dict]:
    """Runs examples; returns the name of the data, and figures by system and method."""
    shared, *examples = (b.replace("seed(0)", f"seed({seed})") for b in blocks())
    namespace = {}
    exec(compile(shared, str(README), "exec"), namespace)
    figures = {}
    for system in systems:
        code = examples[SYSTEMS.index(system)]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, str(README), "exec"), namespace)
        print(out.getvalue(), end="", flush=True)
        for line in re.findall(r"^(plain|robust)\b(.*)", out.getvalue(), re.M):
            percent = [float(v) for v in re.findall(r"([\d.]+)%", line[1])]
            figures[system, line[0]] = np.array(percent)
    return namespace["data"].name, figures


def stated(data: str) -> dict:
    """The table's means and spreads, (3, 2), by system and method."""
    rows = re.findall(
        r"^\| (\w+), (plain|robust).*?\|(.*)\|$", README.read_text("utf-8"), re.M
    )
    first = {"digits": 0, "mnist": len(COLUMNS)}[data]
    found = {}
    for system, method, row in rows:
        cells = row.split("|")[first : first + len(COLUMNS)]
        found[system, method] = np.array(
            [[float(v) for v in cell.replace("*", "").split("±")] for cell in cells]
        )
    return found


def differences(data: str, figures: dict) -> list[str]:
    """What lies outside the table, beyond twice its spread and half a point."""
    table, wrong = stated(data), []
    for key, values in figures.items():
        for column, value, (mean, spread) in zip(
            COLUMNS, values, table[key], strict=True
        ):
            if abs(value - mean) > 2 * spread + 0.5:
                wrong.append(f"{key}, {column}: {value}, not {mean} ± {spread}")
    return wrong


def main() -> None:
    seeds = [int(seed) for seed in sys.argv[1:]]
    if not seeds and pnn.datasets.load().name != "mnist":
        print("MNIST is not here; the tests compare the figures of the digits.")
        return
    if not seeds:
        wrong = differences(*measured())
        raise SystemExit("\n".join(wrong) or None)
    runs = [measured(seed=seed) for seed in seeds]
    for key in runs[0][1]:
        values = np.array([figures[key] for _, figures in runs])
        pairs = zip(values.mean(axis=0), values.std(axis=0), strict=True)
        cells = " | ".join(f"{mean:.1f} ± {spread:.1f}" for mean, spread in pairs)
        print(f"{runs[0][0]}: {key[0]}, {key[1]} | {cells}")


if __name__ == "__main__":
    main()
