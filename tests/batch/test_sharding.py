"""Many devices give what one gives, each holds its share; two processes agree with one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from foliax import sharding, zoo

ROOT = Path(__file__).parents[2]
NUM_DEVICES = 8
TOLERANCE = 1e-6
ONE_THREAD = "--xla_cpu_parallel_codegen_split_count=1"  # of LLVM, which then works less


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return {**kept, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", **more}


@pytest.fixture(scope="module")
def told():
    """Return what eight virtual devices of this machine say of functions without a loop."""
    return said("functions")


@pytest.fixture(scope="module")
def told_at_length():
    """Return what they say of walks and trainings, which take long to compile."""
    return said("loops")


def said(*about):
    flags = f"--xla_force_host_platform_device_count={NUM_DEVICES} {ONE_THREAD}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.batch.on_eight_devices", *about],
        capture_output=True, text=True, cwd=ROOT, env=environment(XLA_FLAGS=flags), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["trace", "rank", "factor", "values", "project_leaf", "jit"])
def test_eight_devices_give_what_one_gives(told, name):
    assert told["devices"] == NUM_DEVICES
    assert told[name]["difference"] <= TOLERANCE
    assert told[name]["rows"] == [[2] * NUM_DEVICES]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["walks", "drifts", "closest", "brownian"])
def test_eight_devices_walk_as_one(told_at_length, name):
    assert told_at_length["devices"] == NUM_DEVICES
    assert told_at_length[name]["difference"] <= TOLERANCE
    assert told_at_length[name]["rows"] == [[2] * NUM_DEVICES]


@pytest.mark.slow
def test_applications_are_shared_too():
    found = said("applications")
    assert found.pop("devices") == NUM_DEVICES
    assert len(found) == 6
    for one in found.values():
        assert one["difference"] <= TOLERANCE
        assert one["rows"] == [[2] * NUM_DEVICES]


@pytest.mark.parametrize("name", ["trace of 1", "trace of 5", "trace of 13", "sweep"])
def test_odd_numbers_of_inputs(told, name):
    assert told[name]["difference"] <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("factor of one input", 2),  # 9 rows, filled up to 16
        ("factor of 1000 classes", 125),  # 999 rows, of 1000: an eighth each
    ],
)
def test_a_factor_is_cut_over_its_rows(told, name, rows):
    found = told[name]
    assert found["difference"] <= TOLERANCE
    assert found["rows"] == [[rows] * NUM_DEVICES]
    assert found["padding"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "training that goes on"])
def test_devices_that_share_batches_train_as_one(told_at_length, name):
    assert told_at_length[name]["difference"] <= TOLERANCE


@pytest.mark.slow
def test_every_device_has_the_weights(told_at_length):
    found = told_at_length["training"]
    assert set(found["devices"]) == {NUM_DEVICES}
    assert found["whole"]
    assert found["compiled again"] == 0
    assert found["trace"] <= TOLERANCE
    assert found["accuracy"][0] == found["accuracy"][1]


@pytest.mark.slow
def test_devices_must_share_a_batch_evenly(told_at_length):
    words = "batch_size must be a multiple of the 8 devices that share a batch, got 12"
    assert words in told_at_length["training of odd batches"]


@pytest.mark.slow
def test_other_weights_do_not_compile_again(told_at_length):
    assert told_at_length["compiled again"] == 0


SWEEP = """
import sys
import numpy as np
from foliax import sharding
assert sharding.initialize()
import jax, foliax
from foliax import zoo
model, data = zoo.load("digits_mlp"), zoo.load_digits()
mesh = sharding.mesh()
assert mesh.is_multi_process and mesh.size == 2
found = foliax.sweep(
    foliax.trace, model, data.test_x[:101], mesh=mesh, batch=40, progress=False, out=sys.argv[1]
)
again = foliax.sweep(
    foliax.trace, model, data.test_x[:101], mesh=mesh, batch=40, progress=False, out=sys.argv[1]
)
alone = foliax.sweep(
    foliax.trace, model, data.test_x[:101], mesh=mesh, batch=40, progress=False
)
assert np.array_equal(found, again) and np.array_equal(found, alone)
right = zoo.accuracy(model, data.test_x[:101], data.test_y[:101], mesh=mesh)
assert right == zoo.accuracy(model, data.test_x[:101], data.test_y[:101])
try:
    zoo.train(model, data, zoo.TrainConfig(epochs=1), mesh=mesh, progress=False)
except ValueError as error:
    assert "mesh must be of the devices of this process" in str(error)
else:
    raise AssertionError("one process would write for two")
np.save(f"{sys.argv[2]}{jax.process_index()}.npy", np.asarray(found))
"""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_two_processes_sweep_as_one(tmp_path):
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SWEEP, str(tmp_path / "out"), str(tmp_path / "got")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(place), XLA_FLAGS="",
            ),
        )
        for place in range(2)
    ]  # fmt: skip
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        one = foliax.sweep(foliax.trace, model, data.test_x[:101], batch=40, progress=False)
    for place in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"got{place}.npy"), one, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "lacks JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
         "must be whole numbers, got two and 0"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
         "JAX_PROCESS_ID must lie in 0 … 1, got 2"),
    ],
)  # fmt: skip
def test_half_an_environment_is_refused(given, match):
    with pytest.raises(ValueError, match=match):
        sharding.initialize(given)


def test_without_the_environment_nothing_is_joined():
    assert sharding.initialize({}) is False
    one = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    assert sharding.initialize(one) is False


@pytest.mark.parametrize("devices", [0, -1, 10_000, True, []])
def test_devices_that_are_not_there(devices):
    with pytest.raises(ValueError, match="devices must be"):
        sharding.mesh(devices)


def test_inputs_must_be_stacked_alike():
    trace = jax.vmap(foliax.trace, in_axes=(None, 0))
    mesh, model = sharding.mesh(1), lambda x: x
    for inputs in [(jnp.ones(3), jnp.ones(4)), (jnp.ones(()),), (jnp.ones((0, 3)),)]:
        with pytest.raises(ValueError, match="stacked alike along axis 0"):
            sharding.spread(trace, model, *inputs, mesh=mesh)
    with pytest.raises(ValueError, match="got none"):
        sharding.spread(trace, model, mesh=mesh)
