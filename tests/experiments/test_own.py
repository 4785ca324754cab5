"""One's own data and network in the scripts: on a file and a module that the test writes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import claims, data_leaf, drift, dynamics, kernel, rank_table, reproduce, train
from experiments.harness import command
from experiments.harness.networks import load
from experiments.harness.own import load_model
from foliax import zoo

ROOT = Path(__file__).parents[2]
MODULE = """
import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    def __init__(self, classes=3):
        self.inner = nnx.Linear(36, 12, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.outer = nnx.Linear(12, classes, rngs=nnx.Rngs(2))

    def __call__(self, xs):  # of a batch
        h = jnp.tanh(self.inner(xs.reshape(len(xs), -1)))
        return {"logits": self.outer(self.dropout(h))}


def load():
    model = Net()
    model.eval()
    return model


def equinox():
    return eqx.nn.Sequential(
        [eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(36, 3, 8, 1, jnp.tanh, key=jax.random.key(0))]
    )


def function():
    return lambda x: jnp.stack([x.mean(), x[0].sum(), x[..., 1, 0].sum()])


def training():
    return Net()


def four():
    model = Net(4)
    model.eval()
    return model


def other_size():
    return eqx.nn.Linear(7, 3, key=jax.random.key(0))


def nothing():
    return None


CONSTANT = 3
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Return a folder with `my.npz` and `my_net.py`, in which Python finds modules."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_net.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    images = rng.integers(0, 90, (150, 6, 6), dtype=np.uint8)
    for label in range(3):
        images[labels == label, 2 * label : 2 * label + 2] += 120
    np.savez(folder / "my.npz", x=images, y=labels)
    np.savez(folder / "other.npz", x=images[::-1], y=labels)
    sys.path.insert(0, str(folder))
    with jax.enable_x64(False):
        yield folder
    sys.path.remove(str(folder))


def test_data_leaf_from_the_command_line(mine):
    """The very command of the guide, in the folder of the file and the module."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.data_leaf", "--data", "my.npz", "--model",
         "my_net:load", "--steps", "20", "--save-every", "5", "--pairs", "2"],
        cwd=mine, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((mine / "out" / "data_leaf" / "results.json").read_text())
    assert written["setting"]["dataset"] == "my.npz"
    assert written["setting"]["network"] == "my_net:load"
    assert written["claims"]["S3"]["numbers"]["num_pairs"] == 2


SHORT = {"steps": 10, "save_every": 5}


@pytest.mark.parametrize("name", ["load", "equinox", "function"])
def test_any_kind_of_model_runs(mine, tmp_path, name):
    options = data_leaf.Command(
        data=mine / "my.npz", model=f"my_net:{name}", pairs=2, out=tmp_path, **SHORT
    )
    found = command.perform(options, data_leaf.measure_command, title="data_leaf")
    exact = found["claims"]["S3"]["numbers"]["exact"]
    assert 0 < exact["residual"]["median"] <= 1
    assert 0 <= found["setting"]["test_accuracy"] <= 1


@pytest.mark.slow
def test_other_scripts_take_them_too(mine, tmp_path):
    own = {"data": mine / "my.npz", "model": "my_net:load"}
    options = kernel.Command(pairs=2, out=tmp_path / "kernel", **own, **SHORT)
    assert command.perform(options, kernel.measure_command, title="kernel")["claims"]["S6"]
    table = rank_table.make_table(rank_table.Command(out=tmp_path / "t", quick=True, **own))
    assert table["rows"]["my.npz"]["rank"]["default"]["largest"] == 2
    (where,) = claims.sources(claims.Config(**own)).values()
    assert load(**where).network == "my_net:load"
    few = drift.Config(images=4, rounds=2, steps=20, quick=True, out=tmp_path / "drift", **own)
    assert drift.run(few)["dataset"] == "my.npz"


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
    """Return the folder of a training on the file."""
    out = tmp_path_factory.mktemp("trained")
    config = train.Config(
        data=mine / "my.npz", hidden=(8,), preset="quick", epochs=1, track_per_epoch=1, out=out
    )
    assert train.run(config)["setting"]["dataset"] == "my.npz"
    return out


def test_a_checkpoint_remembers_its_data_and_asks_for_it(mine, trained, tmp_path):
    data = zoo.load_files(mine / "my.npz")
    message = rf"on data of your own, my\.npz, with the fingerprint {data.fingerprint()}; give the"
    with pytest.raises(ValueError, match=message):
        load(checkpoint=trained)
    options = data_leaf.Command(
        data=mine / "my.npz", checkpoint=trained, pairs=2, out=tmp_path, **SHORT
    )
    assert options.load().dataset.fingerprint() == data.fingerprint()
    with pytest.raises(ValueError, match=r"training on other\.npz \(fingerprint .*got one on my"):
        replace(options, data=mine / "other.npz").load()
    found = command.Command(data=mine / "my.npz", checkpoint=trained, pairs=2, out=tmp_path)
    assert command.perform(found, dynamics.measure_command, title="dynamics")["claims"]["S2"]


@pytest.mark.slow
def test_the_whole_report_on_own_data(mine, tmp_path):
    config = reproduce.Config(data=mine / "my.npz", epochs=2, pairs=3, quick=True, out=tmp_path)
    results = reproduce.run(config)
    assert set(results["claims"]) == {f"S{k}" for k in range(1, 8)}
    assert results["setting"]["dataset"] == "my.npz"
    assert "The data manifold of my.npz" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("place", "message"), [
    ("my_net", "model must be module:function, as my_net:load, got 'my_net'"),
    ("their_net:load", "names the module 'their_net', which is not found; start Python in its"),
    ("my_net:lode", "names 'my_net:lode', and my_net has no 'lode'"),
    ("my_net:CONSTANT", "my_net:CONSTANT must be a function, got a int"),
    ("my_net:nothing", "returns no usable model: model must be a network or a function, got None"),
    ("my_net:training", r"got training mode in dropout; call model\.eval\(\)"),
    ("my_net:four", r"my_net:four returns a model of 4 classes, and my\.npz has 3"),
    ("my_net:other_size", r"does not take the inputs of my\.npz, of shape \(6, 6, 1\)"),
])  # fmt: skip
def test_a_model_that_cannot_be_used_is_told(mine, place, message):
    with pytest.raises(ValueError, match=message):
        load_model(place, zoo.load_files(mine / "my.npz"))


@pytest.mark.parametrize(("options", "message"), [
    (["--model", "my_net:four", "--data", "my.npz"], "data_leaf: my_net:four returns a model of 4"),
    (["--data", "none.npz"], "data_leaf: none.npz does not exist"),
    (["--data", "my.npz"], "dataset=my.npz needs a network: --checkpoint"),
    (["--data", "my.npz", "--dataset", "digits"], "--data my.npz name two data sets; give one"),
    (["--model", "my_net:load", "--weights", "w.npz"], "from --model or from a file, got both"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(mine, monkeypatch, options, message):
    monkeypatch.chdir(mine)
    monkeypatch.setattr(sys, "argv", ["data_leaf", "--out", "fresh", *options])
    with pytest.raises(SystemExit) as ended:
        command.main(data_leaf.Command, data_leaf.measure_command, name="data_leaf",
                     description=None)  # fmt: skip
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)
    assert not (mine / "fresh").exists()


def test_a_network_of_the_zoo_trains_on_own_data_in_a_few_lines(mine):
    data = zoo.load_files(mine / "my.npz")
    model = zoo.MLP((36, 16, data.num_classes), rngs=nnx.Rngs(0))
    model, history = zoo.train(
        model, data, zoo.TrainConfig(epochs=3, learning_rate=0.1), progress=False
    )
    assert history.test_accuracy[-1] > 0.9
