"""Files that others made: cut off, of another kind or version, hostile.

Each is refused by a sentence that names the file. Nothing in it is executed, nothing is written
beside it, and what was on the disk stays as it was.
"""

import gzip
import hashlib
import io
import json
import pickle
import shutil
import struct
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import foliax
from experiments import data_leaf, train
from experiments.harness import command as experiment
from experiments.harness.study import places
from foliax import zoo
from foliax.zoo import checkpoints
from foliax.zoo.data import preparing

TRAINING = zoo.TrainConfig(epochs=1, batch_size=8, track_per_epoch=0)
bounded = settings(max_examples=40, deadline=None, derandomize=True)
few = settings(max_examples=30, deadline=None, derandomize=True)


class Unsafe:
    """Leaves a trace when it is unpickled."""

    opened = False

    def __reduce__(self):
        return (setattr, (Unsafe, "opened", True))


def mlp(seed=0):
    return zoo.MLP((4, 6, 3), rngs=nnx.Rngs(seed))


def same_weights(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def npz(arrays, write=np.savez):
    """Return the bytes of an npz."""
    buffer = io.BytesIO()
    write(buffer, **arrays)
    return buffer.getvalue()


def archive(**members):
    """Return a zip with these members; their names may go anywhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def described(architecture, metadata=None):
    return np.array(json.dumps({"architecture": architecture, "metadata": metadata or {}}))


@cache
def entries_of_a_file():
    """Return what a good weight file holds."""
    model = mlp()
    return checkpoints.weights_of(model) | {"__metadata__": described(model.config)}


def with_entries(**entries):
    """Return a weight file in which some entries are others, and None are left out."""
    arrays = entries_of_a_file() | entries
    return npz({name: value for name, value in arrays.items() if value is not None})


def header(shape):
    """Return an .npy that claims a shape, and holds nothing of it."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


GOOD = with_entries()
BEYOND = {"kind": "MLP", "sizes": [10**9, 10**9], "activation": "relu"}
STATE = {"0.weight": np.ones((6, 4)), "0.bias": np.ones(6),
         "2.weight": np.ones((3, 6)), "2.bias": np.ones(3)}  # fmt: skip


def files(folder):
    """Return all files of a folder with their bytes, but those that are locked."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("lock")
    }


def refused(load, path, message=""):
    """Check that the file is refused by name, with nothing executed and nothing changed."""
    before = files(path.parent)
    with pytest.raises(ValueError, match=rf"(?s){path.name}.*{message}"):
        load(path)
    assert files(path.parent) == before
    assert not Unsafe.opened


# --- weights of foliax ------------------------------------------------------------------------

NOT_WEIGHTS = {
    "empty": (b"", "is not a weight file"),
    "text": (b"weights", "is not a weight file"),
    "half": (GOOD[: len(GOOD) // 2], "is not a weight file"),
    "without the directory at its end": (GOOD[:-22], "is not a weight file"),
    "an .npy": (npy(np.zeros(3)), "is not a weight file"),
    "an empty archive": (archive(), "is not a weight file"),
    "an archive of texts": (archive(**{"a.txt": b"text"}), "is not a weight file"),
    "a pickle": (pickle.dumps(Unsafe()), "no pickled objects"),
    "a pickled array": (
        with_entries(**{"layers.0.bias": np.array([Unsafe()])}), "no pickled objects"),
    "a pickled description": (
        with_entries(__metadata__=np.array(Unsafe(), dtype=object)), "no pickled objects"),
    "no description": (with_entries(__metadata__=None), "is not a weight file"),
    "a description that is no JSON": (
        with_entries(__metadata__=np.array("{'a'")), "is not a weight file"),
    "a description that is deep": (
        with_entries(__metadata__=np.array("[" * 100_000)), "is not a weight file"),
    "a description that is a list": (
        with_entries(__metadata__=np.array("[1]")), "is not a weight file"),
    "a later version": (
        with_entries(__metadata__=np.array('{"network": {}, "version": 2}')), "is not a weight"),
    "metadata of another kind": (
        with_entries(__metadata__=np.array('{"architecture": {}, "metadata": 3}')), "is not a"),
    "more numbers than there are": (
        archive(**{"layers.0.bias.npy": header((10**15,))}), "is not a weight file"),
    "a negative shape": (archive(**{"a.npy": header((-1, 3))}), "is not a weight file"),
    "a weight missing": (with_entries(**{"layers.0.bias": None}), r"layers\.0\.bias"),
    "a weight too many": (with_entries(extra=np.ones(2)), r"extra.*\(2,\)"),
    "a weight of another shape": (
        with_entries(**{"layers.0.bias": np.ones(5)}), r"layers\.0\.bias.*\(5,\).*\(6,\)"),
    "weights of text": (
        with_entries(**{"layers.0.bias": np.full(6, "a")}), r"layers\.0\.bias of <U1.*float32"),
    "whole numbers for weights": (
        with_entries(**{"layers.0.bias": np.ones(6, int)}), r"layers\.0\.bias of int64.*float32"),
    "a path that leaves": (
        archive(**{"../escaped.npy": npy(np.ones(2)), "__metadata__.npy": npy(
            described(mlp().config))}), r"\.\./escaped"),
    "an absolute path": (
        archive(**{"/tmp/foliax-escaped.npy": npy(np.ones(2)), "__metadata__.npy": npy(
            described(mlp().config))}), "/tmp/foliax-escaped"),
    "no kind": (with_entries(__metadata__=described({})), "kind must be one of 'MLP', 'CNN'"),
    "a kind that is a list": (with_entries(__metadata__=described({"kind": []})), "kind|describe"),
    "a kind of another library": (
        with_entries(__metadata__=described({"kind": "os.system"})), "kind must be one of"),
    "an architecture that is text": (with_entries(__metadata__=described("MLP")), "describe"),
    "sizes that are text": (
        with_entries(__metadata__=described({"kind": "MLP", "sizes": ["a", 3]})), "cannot be load"),
    "sizes below 1": (
        with_entries(__metadata__=described({"kind": "MLP", "sizes": [0, 3]})), "at least 1"),
    # Nothing of the size is drawn before it is seen not to fit.
    "sizes beyond all memory": (
        with_entries(__metadata__=described(BEYOND)), "layers.0.kernel"),
    "sizes beyond all numbers": (
        with_entries(__metadata__=described({"kind": "MLP", "sizes": [10**30, 3]})), "cannot be"),
    "arguments that are none": (
        with_entries(__metadata__=described({"kind": "MLP", "sizes": [4, 3], "run": "x"})), "run"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_not_weights(name, tmp_path):
    data, message = NOT_WEIGHTS[name]
    path = tmp_path / "inner" / "model.npz"
    path.parent.mkdir()
    path.write_bytes(data)
    refused(zoo.load_npz, path, message)
    assert [entry.name for entry in tmp_path.iterdir()] == ["inner"]


def test_what_is_no_file_is_said_by_the_system(tmp_path):
    for load in (zoo.load_npz, partial(zoo.load_torch, mlp())):
        with pytest.raises(FileNotFoundError, match="none"):
            load(tmp_path / "none.npz")
        folder = tmp_path / "folder.npz"
        folder.mkdir(exist_ok=True)
        with pytest.raises(IsADirectoryError, match="folder"):
            load(folder)


def damaged(data, places, flips, end):
    """Flip bits at some places, and cut the end off."""
    changed = bytearray(data)
    for place, flip in zip(places, flips, strict=True):
        changed[place % len(changed)] ^= flip
    return bytes(changed[: len(changed) - end % len(changed)])


def attempt(call):
    """Return what it gives and None, or None and why it was refused."""
    try:
        return call(), None
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


damages = st.tuples(
    st.lists(st.integers(0, 2**16), max_size=4),
    st.lists(st.integers(1, 255), min_size=4, max_size=4),
    st.one_of(st.just(0), st.integers(0, 2**16)),
).map(lambda drawn: (drawn[0], drawn[1][: len(drawn[0])], drawn[2]))


@bounded
@given(damages, st.sampled_from([np.savez, np.savez_compressed]))
def test_damaged_weights_are_the_same_or_refused(tmp_path_factory, damage, write):
    arrays = {**checkpoints.weights_of(mlp()), "__metadata__": described(mlp().config)}
    path = tmp_path_factory.mktemp("npz") / "model.npz"
    path.write_bytes(damaged(npz(arrays, write), *damage))
    found, refusal = attempt(lambda: zoo.load_npz(path))
    assert "model.npz" in refusal if found is None else same_weights(found[0], mlp())


# --- weights of PyTorch --------------------------------------------------------------------------

NOT_TORCH = {
    "empty": (b"", "not an .npz file of numeric arrays"),
    "half": (npz(STATE)[:300], "not an .npz file of numeric arrays"),
    "an .npy": (npy(np.zeros(3)), "not an .npz file of numeric arrays"),
    "a pickle": (pickle.dumps(Unsafe()), "which nothing pickled is"),
    "a pickled array": (npz(STATE | {"0.bias": np.array([Unsafe()])}), "which nothing pickled is"),
}


@pytest.mark.parametrize("name", NOT_TORCH)
def test_not_an_npz_of_torch(name, tmp_path):
    data, message = NOT_TORCH[name]
    path = tmp_path / "weights.npz"
    path.write_bytes(data)
    refused(partial(zoo.load_torch, mlp()), path, message)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "source must hold 2 layers with weights, got 0"),
        ({"0.weight": STATE["0.weight"]}, "source must hold 2 layers"),
        (STATE | {"2.bias": np.ones(4)}, r"source\['2\.bias'\] has shape \(4,\), expected \(3,\)"),
        (STATE | {"0.bias": np.full(6, "a")}, r"source\['0\.bias'\] must be an array of numbers"),
        (STATE | {"0.extra": np.ones(2)}, r"has no place for: 0\.extra \(2,\)"),
        ({"model": STATE}, r"source\['model'\] must be an array of numbers, got dict; pass the"),
    ],
)
def test_a_state_that_does_not_fit(state, message):
    with pytest.raises(ValueError, match=message):
        zoo.load_torch(mlp(), state)


def test_pt_files_are_read_as_tensors_alone(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    state = {name: torch.tensor(value, dtype=torch.bfloat16) for name, value in STATE.items()}
    state["0.bias"] = torch.nn.Parameter(state["0.bias"])
    torch.save(state, path)
    good = path.read_bytes()
    assert float(zoo.load_torch(mlp(), path).layers[0].kernel[0, 0]) == 1
    load = partial(zoo.load_torch, mlp())
    for data, message in {
        b"": "not a whole file of torch.save",
        b"weights": "holds more than tensors|not a whole file",
        good[: len(good) // 2]: "not a whole file of torch.save",
        pickle.dumps(Unsafe(), protocol=2): "holds more than tensors and is not loaded",
        archive(**{"../escaped": b"x"}): "not a whole file of torch.save",
    }.items():
        path.write_bytes(data)
        refused(load, path, message)
    torch.save({"0.weight": Unsafe()}, path)
    refused(load, path, r"holds more than tensors and is not loaded; save model\.state_dict\(\)")
    torch.save([torch.ones(2)], path)
    refused(load, path, "must hold a state dict, got list")
    torch.save({0: torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"source must have names for keys, got \[0\]"):
        load(path)
    with pytest.raises(ValueError, match=r"\.npz, \.pt or \.pth file, got .*weights\.bin"):
        zoo.load_torch(mlp(), tmp_path / "weights.bin")
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


@few
@given(damages)
def test_damaged_pt_files_are_the_same_or_refused(tmp_path_factory, damage):
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("pt") / "weights.pt"
    torch.save({name: torch.tensor(value) for name, value in STATE.items()}, path)
    expected = zoo.load_torch(mlp(), STATE)
    path.write_bytes(damaged(path.read_bytes(), *damage))
    # A name or a number that was changed is seen where it does not fit; PyTorch keeps no checksums.
    found, refusal = attempt(lambda: zoo.load_torch(mlp(), path))
    if found is None:
        assert "weights.pt" in refusal or "source" in refusal
    else:
        assert jax.tree.structure(found) == jax.tree.structure(expected)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """One checkpoint, to be copied."""
    folder = tmp_path_factory.mktemp("stored")
    zoo.save(folder, mlp(1), epoch=1)
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "training")


def change_description(change):
    def apply(step):
        path = next(path for path in step.rglob("*") if path.is_file() and b"arch" in tail(path))
        path.write_bytes(json.dumps(change(json.loads(path.read_bytes()))).encode())

    return apply


def tail(path):
    return path.read_bytes()[:5000] if "description" in str(path) else b""


BROKEN = {
    "empty files": lambda step: [p.write_bytes(b"") for p in step.rglob("*") if p.is_file()],
    "a folder of a file": lambda step: (shutil.rmtree(step), step.write_text("1")),
    "a later version": change_description(lambda found: {"version": 2, "network": found}),
    "a list": change_description(lambda found: [found]),
    "no checksum": change_description(lambda found: {**found, "checksum": None}),
    "an epoch of nothing": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused(name, folder):
    BROKEN[name](folder / "checkpoints" / "1")
    before = files(folder)
    with pytest.raises((ValueError, FileNotFoundError), match="training"):
        zoo.restore(folder, 1)
    assert files(folder) == before


def test_a_checkpoint_that_asks_for_too_much(folder):
    change_description(lambda found: found | {"architecture": BEYOND})(folder / "checkpoints" / "1")
    with pytest.raises(ValueError, match=r"the checkpoint has the weights"):
        zoo.restore(folder, 1)
    with pytest.raises(ValueError, match="another architecture"):
        zoo.restore(folder, 1, model=mlp())


# The reader of tensorstore, in threads of its own, says that the loop it was asked from has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@few
@given(damage=damages, choice=st.integers(0, 1000))
def test_damaged_checkpoints_are_the_same_or_refused(stored, tmp_path_factory, damage, choice):
    folder = shutil.copytree(stored, tmp_path_factory.mktemp("damaged") / "training")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = paths[choice % len(paths)]
    path.write_bytes(damaged(path.read_bytes(), *damage))
    found, refusal = attempt(lambda: zoo.restore(folder, 1))
    assert "checkpoint" in refusal if found is None else same_weights(found, mlp(1))


def test_a_training_does_not_go_on_in_the_folder_of_something_else(folder, tmp_path):
    pixels, labels = np.random.default_rng(0).random((16, 2, 2, 1)), np.arange(16) % 3
    parts = (pixels, labels), (pixels, labels)
    data = zoo.from_arrays("toy", *parts, class_names=("a", "b", "c"))
    before = files(folder)
    with pytest.raises(ValueError, match=r"holds another training: .*dataset was None, is 'toy'"):
        zoo.train(mlp(), data, TRAINING, out=folder, progress=False)
    assert files(folder) == before
    (tmp_path / "file").write_text("kept")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        zoo.train(mlp(), data, TRAINING, out=tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "kept"


# --- sweeps --------------------------------------------------------------------------------------

XS = jnp.arange(12.0).reshape(4, 3)


def norm(model, x):
    return jnp.sum(x**2) + model


def swept(out):
    return foliax.sweep(norm, 0.0, XS, out=out, batch=2, progress=False)


@bounded
@given(damage=damages, name=st.sampled_from(["sweep.json", "result.npy"]))
def test_damaged_sweeps_are_the_same_or_refused(sweep_folder, tmp_path_factory, damage, name):
    source, expected = sweep_folder
    folder = shutil.copytree(source, tmp_path_factory.mktemp("sweep") / "swept")
    path = folder / name
    path.write_bytes(damaged(path.read_bytes(), *damage))
    before = files(folder)
    found, refusal = attempt(lambda: np.array(swept(folder)))
    if found is None:
        assert "swept" in refusal
        assert files(folder) == before
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "swept"
    return folder, np.array(swept(folder))


def test_a_hostile_sweep_is_not_unpickled(sweep_folder, tmp_path):
    folder = shutil.copytree(sweep_folder[0], tmp_path / "swept")
    np.save(folder / "result.npy", np.array([Unsafe()] * 4), allow_pickle=True)
    refused(lambda path: swept(path.parent), folder / "result.npy", "not as a sweep left it")


def test_a_sweep_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        swept(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


# --- command lines -------------------------------------------------------------------------------


def command(monkeypatch, main, *arguments):
    """Run a script as its command line does."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()


WALKS = partial(
    experiment.main, data_leaf.Command, data_leaf.measure_command, name="walks", description=None
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "many"], "pairs"),
        (["--epoch", "1.5"], "epoch"),
        (["--dataset", "imagenet"], "dataset"),
        (["--unknown"], "unknown"),
        (["--checkpoint"], "checkpoint"),
        (["--seed", ""], "seed"),
    ],
)
def test_command_lines_that_cannot_be_read(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, WALKS, *arguments)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert message in told.out + told.err
    assert not list(tmp_path.iterdir())


FLAGS = (
    *("--pairs", "--images", "--start", "--end", "--seed", "--epoch", "--steps", "--step"),
    *("--dataset", "--weights", "--checkpoint", "--out", "--flip", "--quick", "--", "-h-"),
)
VALUES = ("0", "-1", "3", "1e9", "nan", "", "None", "digits", "../x", "--pairs", "\x00", "é", "{}")


@bounded
@given(st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text()), max_size=6))
def test_any_command_line_is_read_or_refused(arguments):
    """What is read is a command, whose pairs are there or are refused in words."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        try:
            found = tyro.cli(data_leaf.Command, args=arguments)
        except SystemExit:  # help, or not to be read
            return
    _, refusal = attempt(lambda: places(zoo.load_digits(), found.sizes()))
    assert refusal is None or "must" in refusal or "name one pair" in refusal, refusal


# --- files of data sets ---------------------------------------------------------------------------

LABELS = struct.pack(">ii", 2049, 300) + bytes(i % 10 for i in range(300))  # an idx file


@bounded
@given(damages)
def test_damaged_idx_files_are_the_same_or_refused(tmp_path_factory, damage):
    path = tmp_path_factory.mktemp("idx") / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damaged(gzip.compress(LABELS, mtime=0), *damage))
    contents = {"fashion_mnist": {path.name: hashlib.sha256(LABELS).hexdigest()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_CONTENTS", contents)
        _, refusal = attempt(
            lambda: preparing._check_file("fashion_mnist", path, "0" * 64, "https://example.org")
        )
    if refusal is None:
        assert gzip.decompress(path.read_bytes()) == LABELS
    else:
        assert "train-labels-idx1-ubyte.gz is not the original file" in refusal


def test_command_lines_name_the_files_that_are_wrong(folder, monkeypatch, tmp_path):
    (tmp_path / "cut.npz").write_bytes(GOOD[:99])
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    shutil.rmtree(folder / "checkpoints" / "1" / "arrays")
    for arguments, message in {
        ("--checkpoint", tmp_path / "none"): "none does not exist",
        ("--checkpoint", tmp_path / "empty"): "empty holds no checkpoint; give the `out` folder",
        ("--checkpoint", folder, "--epoch", 1): "the checkpoint of epoch 1 in .* cannot be read",
        ("--epoch", 3): "epoch=3 needs --checkpoint",
        ("--weights", tmp_path / "cut.npz"): r"cut\.npz is not an \.npz file",
        ("--weights", tmp_path / "none.npz"): "No such file.*none",
        ("--weights", tmp_path / "weights.h5"): "source must be a .npz, .pt or .pth file",
        ("--pairs", 0): "pairs must be at least 1, got 0",
        ("--start", 10**6): "start must be in 0 … 359, the test images",
    }.items():
        with pytest.raises(SystemExit, match=message):
            command(monkeypatch, WALKS, *arguments, "--out", out)
    assert not out.exists()


def test_an_output_folder_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match="file"):
        command(monkeypatch, train.main, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_preparing_names_what_it_lacks(monkeypatch, tmp_path):
    from foliax.zoo import prepare

    main = partial(tyro.cli, prepare.main)
    with pytest.raises(SystemExit, match=r"name must be one of .*, got 'nothing'"):
        command(monkeypatch, main, "nothing", "--data-dir", tmp_path)
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    (tmp_path / "files").mkdir()
    with pytest.raises(SystemExit, match=r"files lacks files of 'mnist'"):
        command(
            monkeypatch, main, "mnist", "--files", tmp_path / "files", "--data-dir", tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()
