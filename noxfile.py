"""Test against the oldest and the newest versions that setup.cfg allows.

`nox` runs a telling part of the tests in each environment of the matrix, and
`nox -- tests` all of them. Interpreters that are not installed are passed over.
"""

import pathlib
import shutil

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]

STACKS = {
    "oldest": (
        "tensorflow~=2.18.0",
        "tf-keras~=2.18.0",
        "keras~=3.12.0",
        "numpy~=1.26.0",
        "scipy~=1.13.0",
    ),
    "newest": ("tensorflow~=2.21.0", "keras~=3.15.0"),
}
# TensorFlow 2.18 has no build for Python 3.13.
MATRIX = [
    ("3.11", "oldest"),
    ("3.12", "oldest"),
    ("3.11", "newest"),
    ("3.12", "newest"),
    ("3.13", "newest"),
]
TELLING = [
    "tests/test_keras.py",
    "tests/test_house.py",
    "tests/layers/test_arguments.py",
    "tests/layers/test_mrr.py",
    "tests/layers/test_mesh_phases.py",
    "tests/training/test_validation.py",
    "tests/training/test_sat.py",
    "tests/devices/test_evaluation.py",
    "tests/robustness/test_report.py",
]


@nox.session
@nox.parametrize("python,stack", MATRIX)
def tests(session: nox.Session, stack: str):
    """Run the tests, and the smoke test, on one interpreter and one stack."""
    session.install(".[test]", *STACKS[stack])
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    session.run("python", "tests/smoke.py", env=environment)
    session.run(
        "python", "-m", "pytest", *(session.posargs or TELLING), env=environment
    )


@nox.session
def types(session: nox.Session):
    """Check the annotations."""
    session.install("-e", ".[instruments,plot,dataframe]", "pyright[nodejs]")
    session.run("pyright")


@nox.session
def package(session: nox.Session):
    """Build both distributions, and try the wheel apart from the checkout."""
    session.install("build", "twine")
    folder = pathlib.Path(session.create_tmp(), "dist")
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder))
    files = [str(path) for path in sorted(folder.iterdir())]
    session.run("twine", "check", "--strict", *files)
    session.install(*(path for path in files if path.endswith(".whl")))
    session.run("python", "tests/smoke.py", "--apart")
