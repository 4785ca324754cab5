"""Checkpoints and weight files: what they hold, and what they refuse."""

import importlib.resources
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from foliax import zoo
from foliax.zoo import checkpoints, shipped


class Unsafe:
    """Leaves a trace when it is unpickled."""

    opened = False

    def __reduce__(self):
        return (setattr, (Unsafe, "opened", True))


class Plain(nnx.Module):
    """A network without a `config`."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


def mlp(seed=0):
    return zoo.MLP((4, 6, 3), rngs=nnx.Rngs(seed))


def assert_same_weights(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def folder(tmp_path):
    """Three epochs, with different weights."""
    for epoch in (1, 2, 3):
        zoo.save(tmp_path, mlp(epoch), epoch=epoch, info={"note": f"epoch {epoch}"})
    return tmp_path


def test_restore_returns_what_was_saved(folder):
    assert zoo.epochs(folder) == [1, 2, 3]
    assert_same_weights(zoo.restore(folder), mlp(3))
    assert_same_weights(zoo.restore(folder, 1), mlp(1))
    assert_same_weights(zoo.restore(folder / "checkpoints", 2), mlp(2))
    assert checkpoints.read(folder, 2).info == {"note": "epoch 2"}


def test_cnn_and_modules_without_config(tmp_path):
    cnn = zoo.CNN((8, 8, 1), 3, activation="gelu", pool="average", rngs=nnx.Rngs(1))
    zoo.save(tmp_path / "cnn", cnn, epoch=1)
    assert_same_weights(zoo.restore(tmp_path / "cnn"), cnn)
    plain = Plain(nnx.Rngs(1))
    zoo.save(tmp_path / "plain", plain, epoch=1)
    restored = zoo.restore(tmp_path / "plain", model=Plain(nnx.Rngs(2)))
    assert_same_weights(restored, plain)
    with pytest.raises(ValueError, match="kind must be one of"):
        zoo.restore(tmp_path / "plain")


def test_weights_have_readable_names():
    names = set(checkpoints.weights_of(mlp()))
    assert names == {"layers.0.kernel", "layers.0.bias", "layers.1.kernel", "layers.1.bias"}


def test_an_epoch_can_be_saved_again(folder):
    zoo.save(folder, mlp(7), epoch=2)
    assert zoo.epochs(folder) == [1, 2, 3]
    assert_same_weights(zoo.restore(folder, 2), mlp(7))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        zoo.restore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        zoo.epochs(tmp_path)
    assert not list(tmp_path.iterdir())  # looking creates nothing


def test_missing_epoch_lists_the_others(folder):
    with pytest.raises(ValueError, match=r"one of \[1, 2, 3\], got 4"):
        zoo.restore(folder, 4)


@pytest.mark.parametrize(
    "other",
    [
        zoo.MLP((4, 5, 3), rngs=nnx.Rngs(0)),
        zoo.MLP((4, 6, 3), activation="gelu", rngs=nnx.Rngs(0)),
        Plain(nnx.Rngs(0)),
    ],
    ids=["width", "activation", "class"],
)
def test_another_architecture_is_refused(folder, other):
    with pytest.raises(ValueError, match=r"another architecture.*build the same model"):
        zoo.restore(folder, model=other)


def truncate(step):
    for file in step.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_one_weight(step):
    """Put another epoch's arrays under this epoch's checksum: readable, and wrong."""
    shutil.rmtree(step / "arrays")
    shutil.copytree(step.parent / "1" / "arrays", step / "arrays")


def remove_arrays(step):
    shutil.rmtree(step / "arrays")


def remove_everything(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize("corrupt", [truncate, change_one_weight, remove_arrays, remove_everything])
def test_corrupted_newest_is_skipped(folder, corrupt):
    corrupt(folder / "checkpoints" / "3")
    with pytest.warns(UserWarning, match="skipped: the checkpoint of epoch 3"):
        assert_same_weights(zoo.restore(folder), mlp(2))
    with pytest.raises(ValueError, match=r"epoch 3 in .* cannot be read"):
        zoo.restore(folder, 3)


def test_nothing_readable_is_an_error(tmp_path):
    zoo.save(tmp_path, mlp(), epoch=1)
    truncate(tmp_path / "checkpoints" / "1")
    with (
        pytest.warns(UserWarning, match="epoch 1"),
        pytest.raises(ValueError, match=r"no checkpoint in .* can be read"),
    ):
        zoo.restore(tmp_path)


def test_set_aside_keeps_everything(folder):
    before = sorted(path.name for path in (folder / "checkpoints").rglob("*"))
    for i in (1, 2):
        kept = checkpoints.set_aside(folder)
        assert kept == folder / f"checkpoints.unreadable-{i}"
        assert not checkpoints.has_any(folder)
        zoo.save(folder, mlp(9), epoch=1)
    kept = folder / "checkpoints.unreadable-1"
    assert sorted(path.name for path in kept.rglob("*")) == before


def test_running_statistics_are_weights(tmp_path):
    options = {"plan": (3, "pool"), "hidden": (), "batch_norm": True}
    model = zoo.CNN((4, 4, 1), 2, **options, rngs=nnx.Rngs(0))
    model.norm1.mean[...] = jnp.array([1, 2, 3], jnp.float32)
    zoo.save(tmp_path, model, epoch=1)
    assert_same_weights(zoo.restore(tmp_path), model)
    zoo.save_npz(tmp_path / "model.npz", model)
    assert_same_weights(zoo.load_npz(tmp_path / "model.npz")[0], model)


def test_npz_round_trip(tmp_path):
    path = tmp_path / "model.npz"
    zoo.save_npz(path, mlp(4), {"epoch": 3, "name": "Grüße"})
    model, metadata = zoo.load_npz(path)
    assert_same_weights(model, mlp(4))
    assert metadata == {"epoch": 3, "name": "Grüße"}
    with pytest.raises(ValueError, match="another architecture"):
        zoo.load_npz(path, model=zoo.MLP((4, 3), rngs=nnx.Rngs(0)))


def test_npz_is_the_same_bytes_each_time(tmp_path):
    for name in ("a.npz", "b.npz"):
        zoo.save_npz(tmp_path / name, mlp(4), {"epoch": 3})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_pickled_objects_are_refused(tmp_path):
    path, weights = tmp_path / "evil.npz", checkpoints.weights_of(mlp())
    described = json.dumps({"architecture": mlp().config, "metadata": {}})
    weights["layers.0.kernel"] = np.array([Unsafe()], dtype=object)
    np.savez(path, __metadata__=np.array(described), **weights)
    with pytest.raises(ValueError, match="no pickled objects"):
        zoo.load_npz(path)
    path.write_bytes(pickle.dumps(Unsafe()))
    with pytest.raises(ValueError, match="no pickled objects"):
        zoo.load_npz(path)
    assert not Unsafe.opened


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        zoo.load_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz is not a weight file"):
        zoo.load_npz(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is not a weight file"):
        zoo.load_npz(tmp_path / "array.npy")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 not a whole archive")
    with pytest.raises(ValueError, match="is not a weight file"):
        zoo.load_npz(tmp_path / "cut.npz")


def test_npz_of_other_shapes_names_them(tmp_path):
    weights = checkpoints.weights_of(mlp())
    weights["layers.1.bias"] = np.zeros(5, np.float32)
    described = json.dumps({"architecture": mlp().config, "metadata": {}})
    np.savez(tmp_path / "odd.npz", __metadata__=np.array(described), **weights)
    with pytest.raises(ValueError, match=r"layers\.1\.bias.*\(5,\).*\(3,\)"):
        zoo.load_npz(tmp_path / "odd.npz")


def test_what_npz_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.npz"):
        zoo.save_npz(tmp_path / "model.pt", mlp())
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), mlp())
    with pytest.raises(ValueError, match="cast them to float32"):
        zoo.save_npz(tmp_path / "model.npz", half)


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_shipped_model_is_partially_trained(name):
    data, metadata = zoo.load_dataset(shipped.SHIPPED[name]), zoo.load_metadata(name)
    accuracy = zoo.accuracy(zoo.load(name), data.test_x, data.test_y)
    assert accuracy >= 0.9
    assert accuracy == pytest.approx(metadata["test_accuracy"], abs=1 / len(data.test_y))
    assert metadata["step"] >= metadata["peak"]["step"]
    assert metadata["dataset"] == data.name


def test_shipped_architectures():
    assert zoo.load("digits_mlp").config == {
        "kind": "MLP",
        "sizes": [64, 48, 10],
        "activation": "relu",
    }
    convolutional = zoo.load("mnist_cnn").config
    assert convolutional["shape"] == [28, 28, 1]
    assert convolutional["plan"] == [8, "pool", 16, "pool"]


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_shipped_files_are_small(name):
    file = importlib.resources.files("foliax.zoo") / "weights" / f"{name}.npz"
    assert len(file.read_bytes()) < 100_000


def test_unknown_shipped_name_lists_the_choices():
    for load in (zoo.load, zoo.load_metadata):
        with pytest.raises(ValueError, match="one of 'digits_mlp', 'mnist_cnn', got 'digits'"):
            load("digits")
