"""Run the tutorials, each from its first cell to its last in an empty folder.

    python docs/run_tutorials.py            # as they are printed, some minutes
    python docs/run_tutorials.py --quick    # few images and epochs, to see them run
    python docs/run_tutorials.py --write    # and keep the outputs in the notebooks
"""

import argparse
import os
import pathlib
import re
import tempfile
import time

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted(pathlib.Path(__file__).parent.glob("tutorials/*.ipynb"))
QUICK = {"EPOCHS": 1, "CHIPS": 3}
# In front of all others.
FEW_IMAGES = """
import keras_pnn
load = keras_pnn.datasets.load
keras_pnn.datasets.load = lambda *args, **kwargs: load(*args, **kwargs).head(300, 100)
"""


def quick(notebook) -> None:
    """Puts small numbers into the cell of parameters, and has few images loaded."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    for name, value in QUICK.items():
        for cell in cells:
            cell.source = re.sub(rf"\b{name} = \d+", f"{name} = {value}", cell.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW_IMAGES))


def run(notebook) -> None:
    """Runs a notebook; what its cells print is in their outputs then."""
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            text = output.get("text", "")
            if output.get("name") == "stderr" and "Warning" in text:
                raise SystemExit(f"{cell.source}\n\nwarns:\n{text}")
        # TensorFlow says at its import which processor it has found.
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="few images and epochs")
    mode.add_argument("--write", action="store_true", help="keep the outputs")
    parser.add_argument("names", nargs="*", help="notebooks; default: all")
    args = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for path in NOTEBOOKS:
        if args.names and path.stem not in args.names:
            continue
        start = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        if args.quick:
            quick(notebook)
        run(notebook)
        if args.write:
            # What the kernel adds (its version of Python) is not the notebook's.
            notebook.metadata["language_info"] = {"name": "python"}
            nbformat.write(notebook, path)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
