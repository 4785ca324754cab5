"""Sweeps: what they compute, how they read, and what is on the disk whatever stops them."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax.batch.sweep import sweep
from tests.tolerance import assert_close

MODULE = sys.modules["foliax.batch.sweep"]
XS = np.random.default_rng(0).normal(size=(11, 4))
_traces = []


def network(weights, x):
    return jnp.tanh(weights @ x.ravel())


def make(seed=0):
    return Partial(network, jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4))))


def features(model, x):
    _traces.append(x.shape)
    logits = model(x)
    return {"logits": logits, "norm": jnp.sum(logits**2), "order": jnp.argsort(logits)}


def pulled(model, x, direction):
    return jnp.vdot(model(x), model(direction))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


def quiet(fn, model, inputs, **options):
    return sweep(fn, model, inputs, **{"batch": 4, "progress": False, **options})


class Source:
    """Rows behind len() and slices, which remembers what it was asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.asked.append((rows.start, rows.stop))
        return self.rows[rows]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What it computes.


@pytest.mark.parametrize("count", [1, 3, 4, 8, 11])
@pytest.mark.parametrize("block", [None, 1, 3, 9])
def test_equals_vmap(count, block):
    found = quiet(features, make(), XS[:count], block=block)
    expected = jax.vmap(features, in_axes=(None, 0))(make(), XS[:count])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all(type(leaf) is np.ndarray for leaf in found.values())
    for name, leaf in found.items():
        assert leaf.dtype == expected[name].dtype
        assert_close(leaf, expected[name])


@pytest.mark.parametrize(
    "fn",
    [
        foliax.trace,
        partial(foliax.eigh, k=2),
        lambda model, x: foliax.trace(model, x),
    ],
)
def test_sweeps_the_functions_of_this_library(fn):
    found = quiet(fn, make(), XS[:5])
    expected = jax.jit(jax.vmap(fn, in_axes=(None, 0)))(make(), XS[:5])
    assert type(found) is (np.ndarray if isinstance(expected, jax.Array) else type(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, atol=1e-12)


def test_sweeps_walks():
    walk = partial(foliax.walk, box=foliax.Box(-3.0, 3.0), max_steps=3, save_every=3)
    path = quiet(walk, make(), (XS[:5], XS[5:10]))
    assert isinstance(path, foliax.Path)
    assert path.points.shape == (5, 2, 4)
    assert_close(path.points[:, 0], XS[:5])
    assert_close(path.distance[:, 0], np.linalg.norm(XS[5:10] - XS[:5], axis=1))


def test_a_tuple_is_several_arguments_and_a_dict_is_one():
    expected = jax.vmap(pulled, in_axes=(None, 0, 0))(make(), XS, XS[::-1])
    assert_close(quiet(pulled, make(), (XS, XS[::-1])), expected)
    found = quiet(
        lambda model, rows: pulled(model, rows["x"], rows["to"][0]),
        make(), {"to": (XS[::-1],), "x": XS},
    )  # fmt: skip
    assert_close(found, expected)


def test_whole_numbers_reach_fn_as_they_are(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (11, 4), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    source = np.load(tmp_path / "images.npy", mmap_mode="r")
    seen = []

    def scaled(model, x):
        seen.append(x.dtype)
        return model(x.astype(float) / 255)

    assert_close(quiet(scaled, make(), source), jax.vmap(make())(images / 255))
    assert set(seen) == {jnp.dtype("uint8")}
    with pytest.raises(ValueError, match=r"x must be a floating-point array, got dtype uint8"):
        quiet(foliax.trace, make(), source)


def test_whole_numbers_one_a_row_go_along():
    labels, on = np.arange(11) % 3, np.arange(11) % 2 == 0
    found = quiet(lambda model, x, y, go: jnp.where(go, model(x)[y], 0), make(), (XS, labels, on))
    logits = np.asarray(jax.vmap(make())(XS))
    assert_close(found, np.where(on, logits[np.arange(11), labels], 0))


def test_any_source_of_rows(tmp_path):
    np.save(tmp_path / "xs.npy", XS)
    expected = quiet(features, make(), XS)
    for source in (np.load(tmp_path / "xs.npy", mmap_mode="r"), list(XS), jnp.asarray(XS),
                   Source(XS), XS.astype(">f8")):  # fmt: skip
        same(quiet(features, make(), source), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_is_that_of_the_inputs(dtype):
    found = quiet(lambda _, x: 2 * x, make(), XS.astype(jnp.dtype(dtype)))
    assert found.dtype == dtype


def test_constants_and_nested_results():
    found = quiet(lambda _, x: (1.5, [x[0], None]), make(), XS)
    assert_close(found[0], np.full(11, 1.5))
    assert_close(found[1][0], XS[:, 0])
    assert found[1][1] is None


def test_only_a_batch_is_read_at_once():
    for count in (1, 4, 11):
        source = Source(XS[:count])
        quiet(features, make(), source)
        assert max(stop - start for start, stop in source.asked) <= 4
        batches = [(start, min(start + 4, count)) for start in range(0, count, 4)]
        assert source.asked == [(0, 1), *batches]


def test_padding_is_not_gone_through():
    seen = []

    def counted(model, x):
        jax.debug.callback(lambda one: seen.append(float(one)), x[0])
        return x[0]

    assert_close(quiet(counted, make(), XS[:5], batch=100, block=2), XS[:5, 0])
    jax.effects_barrier()
    assert sorted(seen) == sorted([*XS[:5, 0], XS[4, 0]])


def test_other_weights_and_other_numbers_of_inputs_are_not_traced():
    def scaled(model, x, by, power):
        _traces.append(x.shape)
        return by * model(x) ** power

    _traces.clear()
    first = quiet(partial(scaled, by=jnp.ones(()), power=2), make(1), XS)
    second = quiet(partial(scaled, by=2 * jnp.ones(()), power=2), make(2), XS[:3])
    assert len(_traces) == 1
    assert_close(first, jax.vmap(make(1))(XS) ** 2)
    assert_close(second, 2 * jax.vmap(make(2))(XS[:3]) ** 2)
    quiet(partial(scaled, by=jnp.ones(()), power=3), make(1), XS)
    assert len(_traces) == 2


def test_the_bar(capsys):
    quiet(features, make(), XS)
    assert capsys.readouterr().err == ""
    quiet(features, make(), XS, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "features: 100%" in captured.err
    assert "11/11" in captured.err


# What it refuses.

REFUSED = {
    "complex": (XS * 1j, r"inputs must hold real numbers.*complex128; .*__getitem__"),
    "text": (["a", "b"], "inputs must hold real numbers, got dtype <U1"),
    "no rows": (XS[:0], "inputs must have at least one row, got none"),
    "empty rows": (np.zeros((3, 0)), r"inputs must hold at least one number a row.*\(1, 0\)"),
    "a number": (np.float64(1), r"inputs must be stacked along axis 0.*float64.*x\[None\]"),
    "no axis": (jnp.ones(()), "inputs must be stacked along axis 0.*ndarray"),
    "a generator": ((x for x in XS), r"inputs must be stacked.*generator; .*np\.stack\(list"),
    "None in a pair": ((XS, None), r"inputs\[1\] must be stacked along axis 0.*NoneType"),
    "no array": ((), r"inputs must hold an array, got \(\)"),
    "another length": ((XS, {"y": XS[:3]}), r"stacked alike.*11 in inputs\[0\], 3 in .*\['y'\]"),
    "ragged": ([XS[0], XS[0, :3]], "inputs must give arrays for slices: .*inhomogeneous"),
    "random keys": (jax.random.split(jax.random.key(0), 3), r"key<fry>.*jax\.random\.key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_inputs(name):
    inputs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        quiet(features, make(), inputs)


def test_rows_that_change_on_the_way_are_refused():
    class Changing(Source):
        def __getitem__(self, rows):
            return super().__getitem__(rows)[..., : 4 if rows.start < 4 else 3]

    with pytest.raises(ValueError, match=r"inputs\[4:8\] must be like the first row, \(4, 4\)"):
        quiet(features, make(), Changing(XS))


def test_whole_numbers_that_do_not_fit_are_refused():
    rows = [np.full(2, size, "u1" if size < 256 else "i8") for size in (3, 3, 3, 3, 300)]
    with pytest.raises(ValueError, match=r"inputs\[4:5\] must be like the first row.*int64"):
        quiet(lambda _, x: x, make(), rows)
    with (
        jax.enable_x64(False),
        pytest.raises(
            ValueError, match=r"inputs\[4:5\] must fit into int32, got numbers from 0 to 4294967296"
        ),
    ):
        quiet(lambda _, x: x, make(), 2**32 * (np.arange(10).reshape(5, 2) == 9))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("trace", make(), XS), {}, r"fn must be a function of \(model, x\), got str"),
        ((foliax.trace, make(), XS), {"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ((foliax.trace, make(), XS), {"block": 2.5}, r"block must be a whole number >= 1"),
        ((lambda *_: None, make(), XS), {}, "fn must return at least one array, got None"),
        ((lambda *_: jax.random.key(0), make(), XS), {}, r"must return numbers.*key_data"),
    ],
)
def test_refused_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(*arguments, **options)


def test_refused_under_a_transformation():
    with pytest.raises(ValueError, match=r"must be concrete.*outside of jax\.jit"):
        jax.jit(lambda xs: quiet(features, make(), xs))(XS)


@pytest.mark.parametrize("to_disk", [False, True])
def test_errors_of_fn_are_not_touched(to_disk, tmp_path):
    out = tmp_path if to_disk else None
    with pytest.raises(KeyError, match="mine"):
        quiet(lambda *_: {}["mine"], make(), XS, out=out)
    with pytest.raises(ValueError, match=r"vector \(C,\).*got shape \(\)"):
        quiet(foliax.trace, lambda x: x[0], XS, out=out)
    if to_disk:  # the folder serves another attempt
        quiet(features, make(), XS, out=out)


# What is on the disk.


def test_files_hold_what_memory_would(tmp_path):
    expected = quiet(features, make(), XS)
    found = quiet(features, make(), XS, out=tmp_path / "new" / "folder")
    same(found, expected)
    assert all(isinstance(leaf, np.memmap) for leaf in found.values())
    assert not found["norm"].flags.writeable
    for name, leaf in expected.items():
        path = tmp_path / "new" / "folder" / f"{name}.npy"
        np.testing.assert_array_equal(np.load(path, mmap_mode="r"), leaf)
    assert quiet(features, make(), XS, out=str(tmp_path / "text"))["norm"].shape == (11,)


@pytest.mark.parametrize(
    ("fn", "names"),
    [
        (foliax.trace, {"result"}),
        (partial(foliax.eigh, k=1), {"values", "vectors"}),
        (lambda _, x: (x, [x, {"y": x}]), {"0", "1.0", "1.1.y"}),
        (lambda _, x: {"../a": x, "b c": x, "B/C": x}, {"_a.0", "B_C.1", "b_c.2"}),
        (lambda _, x: {"none": x[:0], "all": x}, {"none", "all"}),
    ],
)
def test_names_of_files(fn, names, tmp_path):
    same(quiet(fn, make(), XS, out=tmp_path), quiet(fn, make(), XS))
    assert {path.name for path in tmp_path.glob("*.npy")} == {f"{name}.npy" for name in names}


def test_dtypes_that_files_lack_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got bfloat16; return y\.astype\(jnp\.float32\)"):
        quiet(lambda _, x: x.astype(jnp.bfloat16), make(), XS, out=tmp_path)


def test_a_finished_sweep_computes_nothing(tmp_path, monkeypatch):
    first = quiet(features, make(), XS, out=tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(MODULE, "_compute", None)
    same(quiet(features, make(), jnp.asarray(XS), out=tmp_path), first)
    assert contents(tmp_path) == before


def test_resumes_after_an_error(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = quiet(features, make(), Source(XS), out=whole)
    source = Source(XS)
    calls = []

    def failing(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return compute(*arguments)

    compute = MODULE._compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_compute", failing)
        with pytest.raises(KeyboardInterrupt):
            quiet(features, make(), source, out=stopped)
    assert json.loads((stopped / "sweep.json").read_text())["done"] == 8
    source.asked.clear()
    same(quiet(features, make(), source, out=stopped), expected)
    # The first row and two batches for the fingerprint, then what was lacking.
    assert source.asked == [(0, 1), (0, 4), (7, 11), (8, 11)]
    assert contents(stopped) == contents(whole)


# Calls that order what reaches the disk, up to the journal of the first batch: twice a journal
# (its draft, its name) and three files, and once the names in the folder.
FIRST_COUNT = 2 * (2 + 3) + 1


class Crash(BaseException):
    """Stands for the end of the process."""


def crash_at(patch, number, error):
    """Let the number-th of the calls fail that order what reaches the disk."""
    calls = []

    def crashing(function, *arguments):
        calls.append(function)
        if len(calls) == number:
            raise error
        return function(*arguments)

    for name in ("fsync", "replace"):
        patch.setattr(os, name, partial(crashing, getattr(os, name)))


def scribble(folder):
    """Spoil what the journal does not count, as a torn write may."""
    journal = json.loads((folder / "sweep.json").read_text())
    for name in journal["crc32"]:
        path = folder / name
        if path.exists() and journal["done"]:
            data = bytearray(path.read_bytes())
            row = np.load(path).nbytes // journal["rows"]
            left = (journal["rows"] - journal["done"]) * row
            data[len(data) - left :] = b"\xff" * left
            path.write_bytes(data)
        elif path.exists():
            path.write_bytes(b"torn")


def test_resumes_wherever_it_crashed(tmp_path):
    expected = quiet(features, make(), XS, out=tmp_path / "whole")
    number, states = 1, set()
    while True:
        out = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, number, Crash())
            try:
                quiet(features, make(), XS, out=out)
                break
            except Crash:
                pass
        if (out / "sweep.json").exists():
            states.add(json.loads((out / "sweep.json").read_text())["done"])
            scribble(out)
        same(quiet(features, make(), XS, out=out), expected)
        assert contents(out) == contents(tmp_path / "whole")
        number += 1
    assert states == {0, 4, 8}
    assert number > FIRST_COUNT


def test_a_full_disk(tmp_path):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, FIRST_COUNT + 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(OSError, match="No space left"):
            quiet(features, make(), XS, out=out)
    assert json.loads((out / "sweep.json").read_text())["done"] == 4
    same(quiet(features, make(), XS, out=out), quiet(features, make(), XS))


SCRIPT = """
import sys, time
import jax.numpy as jnp, numpy as np
from functools import partial
from jax.tree_util import Partial
import foliax
from foliax.batch.sweep import sweep

class Slow:
    asked = []
    def __len__(self):
        return 40
    def __getitem__(self, rows):
        time.sleep(self.pause)
        self.asked.append(rows.start)
        return np.sin(np.arange(160, dtype=np.float32)).reshape(40, 4)[rows]

model = Partial(lambda w, x: jnp.tanh(w @ x), jnp.sin(jnp.arange(12.0)).reshape(3, 4))
fn = partial(foliax.eigh, k=2)
for out, Slow.pause in zip(sys.argv[1::2], map(float, sys.argv[2::2])):
    sweep(fn, model, Slow(), batch=4, out=out, progress=False)
    print(Slow.asked)
"""


def test_killed_and_resumed(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, killed, "0.2"], env=environment)
    try:
        end = time.monotonic() + 60
        while not (done := _done(killed)) and time.monotonic() < end and run.poll() is None:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match=r"out='.*killed' is being written by another run"):
            quiet(features, make(), XS, out=killed)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL
    done = _done(killed)
    assert 0 < done < 40
    resumed = subprocess.run(
        [sys.executable, "-c", SCRIPT, killed, "0", whole, "0"],
        env=os.environ | {"PYTHONHASHSEED": "2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(resumed.stdout.splitlines()[0]) == [0, 0, 36, *range(done, 40, 4)]
    assert contents(killed) == contents(whole)


def _done(folder):
    path = folder / "sweep.json"
    return json.loads(path.read_text())["done"] if path.exists() else 0


def test_a_second_run_is_refused_at_once(tmp_path):
    class Sweeping(Source):
        def __getitem__(self, rows):
            if rows != slice(0, 1):  # read before there is a folder
                with pytest.raises(RuntimeError, match="written by another run; wait for its end"):
                    quiet(features, make(), XS, out=tmp_path)
            return super().__getitem__(rows)

    quiet(features, make(), Sweeping(XS), out=tmp_path)


def affine(shift):
    return lambda x: jnp.stack([x[0] + shift[0], x[1] * shift[1]])


OTHERS = {
    "weights": ((features, make(1), XS), {}, "weights: not the same"),
    "inputs": ((features, make(), XS + 1e-9), {}, "contents of inputs: not the same"),
    "one row": ((features, make(), XS + (np.arange(11) == 5)[:, None]), {}, "contents of inputs"),
    "number": ((features, make(), XS[:9]), {}, r"\(11, 4\) float64.*there, .*\(9, 4\) float64"),
    "dtype": ((features, make(), XS.astype("f4")), {}, r"float64'\] there, .*float32'\] here"),
    "fn": (
        (foliax.trace, make(), XS),
        {},
        r"features there, foliax\.data_matrix\.matrix\.trace here",
    ),
    "options": ((partial(features), make(), XS), {"block": 2}, "block: 4 there, 2 here"),
    "batch": ((features, make(), XS), {"batch": 8}, "batch: 4 there, 8 here"),
}


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_the_folder_of_another_sweep_is_refused(name, stopped, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        if stopped:
            crash_at(patch, FIRST_COUNT + 1, Crash())
        try:
            quiet(features, make(), XS, out=tmp_path)
        except Crash:
            assert stopped
    before = contents(tmp_path)
    arguments, options, message = OTHERS[name]
    with pytest.raises(ValueError, match=f"{message}.*Choose another folder, or delete that one"):
        quiet(*arguments, out=tmp_path, **options)
    assert contents(tmp_path) == before


def test_bound_options_and_closed_over_arrays_tell_sweeps_apart(tmp_path):
    def spread(model, x, by, to=None):
        return by * model(x)

    options = {"by": jnp.arange(2.0), "to": affine}
    quiet(partial(spread, **options), affine(jnp.ones(2)), XS, out=tmp_path)
    fresh = {"by": jnp.arange(2.0), "to": affine}
    quiet(partial(spread, **fresh), affine(jnp.ones(2)), XS, out=tmp_path)
    with pytest.raises(ValueError, match=r"got that of another: weights: not the same\. Choose"):
        quiet(partial(spread, **options | {"by": jnp.ones(2)}), affine(jnp.ones(2)), XS,
              out=tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match=r"fn: .*by=float64\[2\], to=.*affine\) there"):
        quiet(partial(spread, by=jnp.arange(2.0)), affine(jnp.ones(2)), XS, out=tmp_path)
    # A constant of the program, not an argument.
    with pytest.raises(ValueError, match=r"got that of another: program of fn: not the same\."):
        quiet(partial(spread, **options), affine(2 * jnp.ones(2)), XS, out=tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    np.save(tmp_path / "norm.npy", XS)
    with pytest.raises(ValueError, match=r"one with norm\.npy and no sweep\.json; choose another"):
        quiet(features, make(), XS, out=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "norm.npy"), XS)
    assert not (tmp_path / "sweep.json").exists()


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


def in_journal(**entries):
    return lambda data: json.dumps(json.loads(data) | entries).encode()


DAMAGES = {
    "empty journal": ("sweep.json", lambda _: b""),
    "torn journal": ("sweep.json", lambda data: data[: len(data) // 2]),
    "journal of another kind": ("sweep.json", lambda _: b'[{"done": 3}]'),
    "bytes in the journal": ("sweep.json", lambda data: b"\xff\xfe" + data),
    "too many done": ("sweep.json", in_journal(done=12)),
    "half a row done": ("sweep.json", in_journal(done=1.5)),
    "fewer done": ("sweep.json", in_journal(done=8)),
    "fewer rows": ("sweep.json", in_journal(done=4, rows=4)),
    "no checksums": ("sweep.json", in_journal(crc32={})),
    "no data": ("norm.npy", None),
    "no header": ("norm.npy", lambda _: b"nothing"),
    "too short": ("norm.npy", lambda data: data[:-8]),
    "too long": ("norm.npy", lambda data: data + b"\x00"),
    "another shape": ("norm.npy", lambda data: data.replace(b"(11,)", b"(1,) ")),
    "another number": ("norm.npy", lambda data: data[:-24] + b"\x00" + data[-23:]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(name, tmp_path):
    quiet(features, make(), XS, out=tmp_path)
    file, change = DAMAGES[name]
    if change is None:
        (tmp_path / file).unlink()
    else:
        edit(tmp_path / file, change)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is not as a sweep left it.*restore it, or delete"):
        quiet(features, make(), XS, out=tmp_path)
    assert contents(tmp_path) == before


def test_a_fingerprint_says_the_same_in_words_of_any_process():
    spelled = MODULE.spelled(partial(foliax.drift, jnp.ones(2), box=foliax.Box(0.0, 1.0)))
    assert re.fullmatch(r"foliax\.flow\.walk\.drift\(float64\[2\], box=Box\(.*\)\)", spelled)
    assert "0x" not in MODULE.spelled(partial(network, solver=object()))
