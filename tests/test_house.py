"""Check the layout: imports go one way, and private names stay in one file."""

import ast
import pathlib
import re
import sys

import pytest

import keras_pnn

ROOT = pathlib.Path(keras_pnn.__file__).parent
ROOMS = (
    "physics",
    "layers",
    "deploy",
    "devices",
    "hardware",
    "training",
    "curvature",
    "robustness",
    "callbacks",
)
LEAVES = (
    "_checks",
    "_display",
    "_files",
    "_keras",
    "_png",
    "_signatures",
    "_tables",
    "_version",
    "_warnings",
    "datasets",
    "plotting",
)
FILES = sorted(ROOT.rglob("*.py"))
# What Keras and TensorFlow do not promise: modules of theirs, and attributes that
# start with an underscore and that are not this package's own.
PRIVATE = re.compile(
    r"keras\.src|tensorflow\.python|_keras_mask|_keras_logits|\._loss_tracker"
    r"|\._compile_|\._flatten_layers|\._layers\b|\._functional\b|\._nodes_by_depth"
    r"|\._inbound_nodes|\._seed_generators|\._(non_)?trainable_variables"
    r"|\._symbolic_build|\._compute_loss|\.(train|test|predict)_function\b"
    r"|tf\.nn\.\w+ *=|_initial_epoch|_eval_epoch_iterator"
)


def room(path: pathlib.Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """The rooms and leaves of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "keras_pnn":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            head, _, rest = node.module.partition(".")
            found |= {rest.split(".")[0]} if head == "keras_pnn" else set()
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
            found |= {n[1] for n in names if n[0] == "keras_pnn" and n[1:]}
    return found


def test_every_file_is_in_a_room_or_a_leaf():
    places = {room(path) for path in FILES} - {"__init__"}
    assert places == {*ROOMS, *LEAVES}


@pytest.mark.parametrize("name", [*ROOMS, *LEAVES])
def test_imports_go_one_way(name):
    allowed = set(LEAVES) | {name}
    if name in ROOMS:
        allowed |= set(ROOMS[: ROOMS.index(name)])
    if name == "curvature":
        allowed -= {"training"}
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported(path) - allowed)
        for path in FILES
        if room(path) == name and imported(path) - allowed
    }
    assert not wrong


# Needs an extra, which `import keras_pnn` must do without.
LAZY = {"keras_pnn.hardware.instrument.wiring"}


def test_no_import_inside_a_function_is_of_the_package():
    wrong = []
    for path in FILES:
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                wrong += [
                    f"{path.relative_to(ROOT)}:{node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom)
                    and (node.module or "").startswith("keras_pnn")
                    and node.module not in LAZY
                ]
    assert not wrong


def test_private_names_of_keras_are_in_one_file():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        if room(path) != "_keras"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert not wrong


def test_no_module_has_the_name_of_what_its_package_exports():
    # The reference, and `import` by the longer path, would find the module.
    wrong = [
        f"{package}.{name}"
        for package, module in list(sys.modules.items())
        if package.startswith("keras_pnn") and hasattr(module, "__path__")
        for name in getattr(module, "__all__", ())
        if f"{package}.{name}" in sys.modules
        and sys.modules[f"{package}.{name}"] is not getattr(module, name)
    ]
    assert not wrong


def test_no_file_is_too_long():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in FILES
        if (lines := len(path.read_text("utf-8").splitlines())) > 450
    }
    assert not long
