"""One run of a script: its populations in parts, kept until it has come to its end."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foliax
from experiments.harness import run
from experiments.harness.run import in_parts, keeping_nothing, mesh, running
from foliax import zoo
from foliax.apps import generate


def scaled(model, xs, shifts, *, scale):
    return {"value": scale * xs @ model + shifts, "xs": xs}


FN = partial(scaled, scale=np.float32(2))
MODEL = jnp.arange(3.0, dtype=jnp.float32)


def rows(count):
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3)).astype(np.float32), np.arange(count, dtype=np.float32)


@pytest.mark.parametrize("count", [1, 5, 16, 37])
def test_parts_make_the_whole(count):
    found, whole = in_parts(FN, MODEL, *rows(count)), FN(MODEL, *map(jnp.asarray, rows(count)))
    assert isinstance(found["value"], np.ndarray)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="stacked must hold at least one row, got none"):
        in_parts(FN, MODEL, *rows(0))


def journals(out):
    return sorted((out / ".parts").glob("*/sweep.json"))


def test_parts_are_kept_until_the_run_ends(tmp_path):
    with running("test", tmp_path):
        found = in_parts(FN, MODEL, *rows(20))
        assert len(journals(tmp_path)) == 1
        in_parts(FN, MODEL, *rows(20))  # the same again, of other weights, and of another constant
        assert len(journals(tmp_path)) == 1
        in_parts(FN, 2 * MODEL, *rows(20))
        in_parts(partial(scaled, scale=np.float32(3)), MODEL, *rows(20))
        assert len(journals(tmp_path)) == 3
        with keeping_nothing():
            in_parts(FN, 5 * MODEL, *rows(20))
        assert len(journals(tmp_path)) == 3
    assert not (tmp_path / ".parts").exists()
    np.testing.assert_allclose(found["value"], 2 * rows(20)[0] @ np.arange(3) + rows(20)[1], 1e-5)


def stopped(out):
    """Stop a run after its population, and return what that was, and its journal."""
    found = []

    def run():
        with running("test", out):
            found.append(in_parts(FN, MODEL, *rows(20)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    (journal,) = journals(out)
    return found[0], journal


def test_a_run_that_was_stopped_does_not_repeat_its_parts(tmp_path):
    first, journal = stopped(tmp_path)
    assert json.loads(journal.read_text())["done"] == 20
    written = journal.stat().st_mtime_ns
    with running("test", tmp_path):
        again = in_parts(FN, MODEL, *rows(20))
        assert journals(tmp_path) == [journal]
        assert journal.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first["value"], again["value"])


def test_what_is_no_longer_as_it_was_left_is_computed_anew(tmp_path):
    """A damaged file, or another program of the same name, costs time and not the run."""
    first, journal = stopped(tmp_path)
    (journal.parent / "value.npy").write_bytes(b"damaged")
    with running("test", tmp_path):
        again = in_parts(FN, MODEL, *rows(20))
    np.testing.assert_array_equal(first["value"], again["value"])


def test_other_numbers_of_rows_and_of_options_compile_nothing():
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: counted.append(event) if "backend_compile" in event else None
    )
    in_parts(partial(scaled, scale=0.5), MODEL, *rows(20))
    before = len(counted)
    for count, scale in ((3, 0.5), (37, 0.5), (20, 0.25)):
        found = in_parts(partial(scaled, scale=scale), MODEL, *rows(count))
        assert found["value"].dtype == np.float32
    assert len(counted) == before


def test_without_a_run_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_parts(FN, MODEL, *rows(3))
    assert not list(tmp_path.iterdir())
    assert mesh() is None


def test_motions_run_in_parts():
    model, data = zoo.load("digits_mlp"), zoo.load_digits()
    fn = partial(
        foliax.map,
        generate.approach,
        step=0.2,
        max_steps=10,
        save_every=10,
        stall=1e-2,
        threshold=0.1,
    )
    xs, targets = np.asarray(data.test_x[:3]), np.asarray(data.test_x[3:6])
    found, whole = in_parts(fn, model, xs, targets), fn(model, xs, targets)
    np.testing.assert_allclose(found.end, whole.end, atol=1e-6)
    assert np.all(found.status == whole.status)


def test_compiled_programs_are_kept_in_the_users_cache_and_pruned(tmp_path, monkeypatch):
    folder = tmp_path / "foliax" / "programs"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"12")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(run, "_PROGRAMS", 1)
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        run.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert not folder.exists()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        run.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(folder)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
