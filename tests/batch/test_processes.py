"""Real processes, signals and limits: what was finished stays, and the end is the same bytes.

Killed sweeps are in test_sweep.py, killed trainings in zoo/test_kill.py.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from foliax import zoo

ROOT = Path(__file__).parents[2]
DEADLINE = 240  # seconds for anything to happen
LIMITED = """
import resource, runpy, sys
limit, sys.argv = int(sys.argv[1]), sys.argv[2:]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {**kept, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", **more}


def start(*command, **more):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment(**more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, returncode=0):
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == returncode, said
    return said


def walked(out, *more):
    """Return the command line of a small population on the digits, of 16 parts by each scheme."""
    return (
        "-m", "experiments.data_leaf", "--pairs", 16, "--steps", 10, "--save-every", 5,
        "--out", out, *more,
    )  # fmt: skip


def claims(out, *more):
    """Return the command line of two small populations on the digits."""
    return (
        "-m", "experiments.claims", "--claims", "S6", "S3", "--pairs", 2, "--steps", 20,
        "--out", out, *more,
    )  # fmt: skip


def contents(folder):
    """Return the bytes of every file that must repeat, by its place."""
    told_apart = ("run.json", ".run.json", ".lock")  # times, and where it ran
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(told_apart)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(*walked(out)))
    return out


@contextmanager
def stopped(process, when):
    """Stop a process as soon as something is so, and kill it in the end."""
    try:
        end = time.monotonic() + DEADLINE
        while not when() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        assert when()
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_population_goes_on_and_ends_with_the_same_bytes(whole, tmp_path):
    def begun():
        return any(
            json.loads(journal.read_text())["done"]
            for journal in (tmp_path / ".parts").glob("*/sweep.json")
        )

    with stopped(start(*walked(tmp_path)), begun):
        assert not (tmp_path / "results.json").exists()
        said = finish(start(*walked(tmp_path)), returncode=1)  # while the first holds the folder
        assert f"data_leaf: out='{tmp_path}' is being written by another run" in said
        assert "Traceback" not in said
    finish(start(*walked(tmp_path)))
    assert contents(tmp_path) == contents(whole)  # and no parts any more


@pytest.mark.slow
def test_a_killed_table_goes_on_and_ends_with_the_same_bytes(tmp_path):
    out = tmp_path / "killed"
    first, last = (out / "cells" / "digits_mlp" / f"{claim}.json" for claim in ("S6", "S3"))
    with stopped(start(*claims(out)), first.exists):
        assert not last.exists()
    written = first.stat().st_mtime_ns
    finish(start(*claims(out)))
    assert first.stat().st_mtime_ns == written  # not measured again
    finish(start(*claims(tmp_path / "whole")))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_written(whole):
    before = contents(whole)
    largest = 20_000  # bytes of a file; pictures have more
    limited = start("-c", LIMITED, largest, *walked(whole, "--seed", 1)[1:])
    said = finish(limited, returncode=1)
    assert "data_leaf: [Errno 27] File too large" in said
    assert "Traceback" not in said
    after = contents(whole)
    kept = {"results.json", "paths.json", "report.html", "leaf.png"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    for name, text in after.items():
        if name.endswith(".json"):
            json.loads(text)


TRAINING = """
import resource, sys
from flax import nnx
from foliax import zoo

def fill(epoch, model, history):
    if epoch == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))

config = zoo.TrainConfig(epochs=4, reference_size=8, track_per_epoch=1)
model = zoo.MLP((64, 16, 10), rngs=nnx.Rngs(0))
on_epoch = fill if sys.argv[2] == "full" else None
zoo.train(model, zoo.load_digits(), config, out=sys.argv[1], on_epoch=on_epoch, progress=False)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints(tmp_path):
    said = finish(start("-c", TRAINING, tmp_path / "full", "full"), returncode=1)
    assert "File too large" in said or "EFBIG" in said
    assert zoo.epochs(tmp_path / "full") == [1, 2]
    finish(start("-c", TRAINING, tmp_path / "full", "room again"))
    finish(start("-c", TRAINING, tmp_path / "whole", "room"))
    ended, whole = (
        jax.tree.leaves(nnx.state(zoo.restore(tmp_path / name, 4))) for name in ("full", "whole")
    )
    for a, b in zip(ended, whole, strict=True):
        np.testing.assert_array_equal(a, b)


DATA_LEAF = ("-m", "experiments.data_leaf", "--pairs", 5, "--steps", 10, "--save-every", 5)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def numbers(value):
    """Return the numbers of a JSON value in order, and everything else."""
    if isinstance(value, dict):
        value = [part for item in sorted(value.items()) for part in item]
    if isinstance(value, list):
        parts = [numbers(item) for item in value]
        return [n for part in parts for n in part[0]], [w for part in parts for w in part[1]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value], []
    return [], [value]


@pytest.mark.slow
def test_a_script_shares_its_walks_among_processes_and_devices(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    together = [
        start(
            *DATA_LEAF, "--out", tmp_path / "together",
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(place),
        )
        for place in range(2)
    ]  # fmt: skip
    for process in together:
        finish(process)
    finish(start(*DATA_LEAF, "--out", tmp_path / "alone"))
    found, alone = (
        numbers(json.loads((tmp_path / name / "paths.json").read_text()))
        for name in ("together", "alone")
    )
    assert found[0] == pytest.approx(alone[0], rel=1e-4, abs=1e-4)
    assert found[1] == alone[1]
    assert sorted(contents(tmp_path / "together")) == sorted(contents(tmp_path / "alone"))


def test_what_cannot_be_shared_says_so(tmp_path):
    said = finish(start(*claims(tmp_path, "--devices", 3)), returncode=1)
    assert "claims: devices must be at most 1, those that JAX sees, got 3" in said
    assert "Traceback" not in said
