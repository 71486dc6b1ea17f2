"""Time a study on workers: per device and image, and per block.

    python benchmarks/workers.py --dask        # pip install "keras-pnn[cluster]"

The network of `examples/quickstart.py` is measured on `--devices` devices at
`--temperatures` temperatures: in this process, on one and on two processes, and, with
`--dask`, on a local Dask cluster of two processes; all with one thread each. Every way
must find the same figures. Prints a table and writes `results/benchmark_workers.json`.

Each way measures two studies that differ in the number of temperatures. The difference
gives the seconds per block, the rest the seconds before the first block (to save, load
and trace the study). The overhead of one process is its time per block beyond that in
this process. The last lines extrapolate a large study to many workers, and check the
extrapolation at one and at two.

`--faults` measures the larger study twice more: one of two processes is killed half-way
and replaced; and Dask's scheduler is killed half-way, after which two processes resume
the study.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import keras
import numpy as np
import tensorflow as tf

import keras_pnn as pnn
from keras_pnn.robustness import ProcessPool

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples/paper"))
from shared import lenet5

# Devices, conditions and images of the large study in the extrapolation.
LARGE = 10_000, 100, 10_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--temperatures", type=int, default=21)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--dask", action="store_true")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
    return parser.parse_args()


@contextlib.contextmanager
def dask():
    """Starts two worker processes, with the scheduler in this process."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c,
        Client(c) as client,
    ):
        yield client.get_executor()


def prepared(args, temperatures: int) -> pnn.robustness.Study:
    images = pnn.datasets.load("digits", verbose=False).x_test
    images = np.resize(images, (args.images, 28, 28, 1)).astype("float32")
    model = lenet5("sample")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    asked = pnn.robustness.Specification(
        variation=pnn.Variation(resonance_shift=0.08),
        n=args.devices,
        sweeps={"temperature": np.linspace(-2, 2, temperatures)},
        sensitivity=False,
        worst_case=False,
        fast=True,
        batch_size=100,
        memory_limit=0.25,
    )
    return pnn.robustness.Study(asked, model, images, np.arange(args.images) % 10)


def figures(study: pnn.robustness.Study, executor, cache_dir=None) -> dict:
    found = study.measure(cache_dir, executor=executor, verbose=0).to_dict()
    del found["setting"]
    return found


def timed(args, temperatures: int, executor):
    """Returns the figures, the seconds, the number of blocks and the points of one."""
    study = prepared(args, temperatures)
    start = time.perf_counter()
    found = figures(study, executor)
    elapsed = time.perf_counter() - start
    (one,) = study.studies.values()
    return found, elapsed, -(-len(one.points) // one.block_size), one.block_size


def measured(args, executor) -> tuple[dict, dict]:
    """Returns the figures of the larger study, and times in seconds."""
    # The first study starts the workers.
    studies = [timed(args, 1, executor)]
    few = max(1, args.temperatures // 4)
    studies += [timed(args, count, executor) for count in (few, args.temperatures)]
    (_, start, *_), (_, short, fewer, _), (found, long, blocks, size) = studies
    block = (long - short) / (blocks - fewer)
    return found, {
        "first study": start,
        "study": long,
        "blocks": blocks,
        "points of a block": size,
        "a block": block,
        "before the first block": long - blocks * block,
    }


@contextlib.contextmanager
def half_way(study: pnn.robustness.Study, kill):
    """Yields a folder for the study's points; kills once it holds half of them."""
    (one,) = study.studies.values()

    def watch():
        count = 0
        while count < len(one.points) / 2:
            time.sleep(0.2)
            for path in pathlib.Path(folder).glob("*.sqlite"):
                with contextlib.suppress(sqlite3.Error):
                    file = sqlite3.connect(path)
                    (count,) = file.execute("SELECT count(*) FROM points").fetchone()
                    file.close()
        print(f"killed after {count} of {len(one.points)} points", flush=True)
        kill()

    with tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=watch, daemon=True).start()
        yield folder


def after_a_kill(study: pnn.robustness.Study) -> dict:
    """Returns the figures of a study, one of whose two workers is killed half-way."""

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with ProcessPool(2, threads=1) as pool, half_way(study, kill) as folder:
        return figures(study, pool, folder)


def after_a_crash(study: pnn.robustness.Study) -> dict:
    """Returns the figures of a study resumed after Dask's scheduler was killed."""
    from dask.distributed import Client

    with tempfile.TemporaryDirectory() as place:
        at = os.path.join(place, "scheduler.json")

        def started(what, *arguments):
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
                + ["--scheduler-file", at, "--no-dashboard"],
                stderr=subprocess.DEVNULL,
            )

        scheduler = started("scheduler", "--port", "0")
        workers = started("worker", "--nworkers", "2", "--nthreads", "1")
        with half_way(study, scheduler.kill) as folder:
            try:
                with Client(scheduler_file=at, timeout=60) as client:
                    client.wait_for_workers(2)
                    figures(study, client.get_executor(), folder)
            except RuntimeError as error:
                print(str(error), flush=True)
            finally:
                scheduler.kill()
                workers.terminate()
            with ProcessPool(2, threads=1) as pool:
                return figures(study, pool, folder)


def main() -> None:
    args = arguments()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # For Dask's workers, which take no `threads`.
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    ways = {
        "this process": contextlib.nullcontext,
        "1 process": lambda: ProcessPool(1, threads=1),
        "2 processes": lambda: ProcessPool(2, threads=1),
    }
    if args.dask:
        ways["Dask, 2 processes"] = dask
    rows, expected = {}, None
    for name, make in ways.items():
        with make() as executor:
            found, row = measured(args, executor)
        expected = expected or found
        rows[name] = {**row, "identical": found == expected}
        said = ", ".join(
            f"{key} {value:.3g}{'' if isinstance(value, int) else ' s'}"
            for key, value in row.items()
        )
        print(f"{name}: {said}, identical: {found == expected}", flush=True)
    if args.faults:
        for what in (after_a_kill, after_a_crash):
            same = what(prepared(args, args.temperatures)) == expected
            print(f"{what.__name__}: identical: {same}", flush=True)
    here, one = rows["this process"], rows["1 process"]
    each = here["a block"] / here["points of a block"] / args.images
    overhead = max(0.0, one["a block"] - here["a block"])
    print(f"{1e6 * each:.1f} µs for a device and image, {overhead:.3f} s for a block")
    for workers in (1, 2):
        row = rows[f"{workers} process{'es' if workers > 1 else ''}"]
        each_block = (here["a block"] + overhead) / workers
        model = one["before the first block"] + row["blocks"] * each_block
        print(f"{workers} workers: {row['study']:.1f} s, by the model {model:.1f} s")
    devices, conditions, images = LARGE
    blocks = devices * conditions / here["points of a block"]
    for workers in (1, 16, 256):
        work = devices * conditions * images * each + blocks * overhead
        hours = work / workers / 3600
        print(f"{LARGE} on {workers} workers, extrapolated: {hours:.1f} h")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "benchmark_workers.json"
    text = json.dumps({"images": args.images, "ways": rows}, indent=1)
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
