"""A training killed in the middle of an epoch, or of a checkpoint, ends as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from foliax import zoo

EPOCHS = 12
DEADLINE = 120  # seconds for anything to happen
CHILD = """
import sys
from tests.zoo.test_kill import training
training(sys.argv[1])
"""

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals"),
    pytest.mark.slow,  # trainings in processes of their own
]


def training(out):
    """Train with small batches, so that an epoch takes about as long as its checkpoint."""
    model = zoo.MLP((64, 16, 10), rngs=nnx.Rngs(0))
    config = zoo.TrainConfig(
        epochs=EPOCHS, batch_size=6, optimizer="momentum", track_per_epoch=1, reference_size=16
    )
    return zoo.train(model, zoo.load_digits(), config, out=out, progress=False)


def stored(out):
    """Return the epochs whose checkpoint is whole, and the folders of those being written."""
    names = [path.name for path in (out / "checkpoints").glob("*")]
    return {int(n) for n in names if n.isdigit()}, [n for n in names if not n.isdigit()]


def kill_when(out, ready):
    """Train in another process, and kill it at a moment at which `ready(out)` holds."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
    )
    try:
        start = time.monotonic()
        while child.poll() is None and time.monotonic() - start < DEADLINE:
            if ready(out):
                child.send_signal(signal.SIGSTOP)  # to look again without a race
                if ready(out):
                    child.send_signal(signal.SIGKILL)
                    break
                child.send_signal(signal.SIGCONT)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL, "the training ended before it could be killed"


def test_killed_training_ends_with_identical_weights(tmp_path):
    rng = np.random.default_rng(0)
    kill_at = []

    def in_an_epoch(out):
        whole, writing = stored(out)
        if whole and not kill_at:
            kill_at.append(time.monotonic() + rng.uniform(0, 0.3))
        return bool(kill_at) and time.monotonic() > kill_at[0] and not writing

    kill_when(tmp_path, in_an_epoch)
    before = stored(tmp_path)[0]
    assert 0 < len(before) < EPOCHS

    def in_a_checkpoint(out):
        return bool(stored(out)[1])

    kill_when(tmp_path, in_a_checkpoint)
    whole, writing = stored(tmp_path)
    assert writing
    assert before <= whole
    assert zoo.epochs(tmp_path) == sorted(whole)  # the half-written one is not listed

    resumed, history = training(tmp_path)
    uninterrupted, its_history = training(None)
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
    assert history.to_dict() == its_history.to_dict()
    assert stored(tmp_path) == (set(range(1, EPOCHS + 1)), [])
