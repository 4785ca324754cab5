"""Statuses: their names and numbers, what they print, and that they pass through everything."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import foliax
from foliax import Status, sharding
from foliax.flow.path import Code, as_code, as_status
from tests.cases import name_of

PLANE = Partial(lambda weight, x: weight @ x, jnp.array([[1.0, 0.0], [0.0, 0.0]]))
STARTS = jnp.zeros((4, 2))
# On the plane x1 = 0: arrives, stalls, has no numbers, does not get there.
TARGETS = jnp.array([[0.5, 0.0], [1.0, 3.0], [jnp.nan, 0.0], [90.0, 0.0]])
ENDS = ["arrived", "stalled", "invalid", "out_of_steps"]
walk = partial(foliax.walk, max_steps=30, save_every=30, arrival=0.1)


def test_statuses_and_their_numbers_are_in_the_same_order():
    assert len(Status) == len(Code)
    for number, code in enumerate(Code):
        item = getattr(Status, code.name)
        assert (int(as_code(item)), int(code)) == (number, number)
        assert as_status(code) == item
        assert name_of(item) == code.name


@pytest.mark.parametrize("code", Code)
def test_a_status_prints_a_sentence_that_begins_with_its_name(code):
    sentence = Status[as_status(code)]
    assert sentence.startswith(f"{code.name}: ")
    assert sentence.endswith(".")
    assert sentence in str(as_status(code))


def test_batches_compare_and_print():
    batch = as_status(jnp.array([[0, 3], [5, 0]]))
    np.testing.assert_array_equal(batch == Status.arrived, [[True, False], [False, True]])
    np.testing.assert_array_equal(batch != Status.invalid, [[True, True], [False, True]])
    assert name_of(batch) == [["arrived", "out_of_steps"], ["invalid", "arrived"]]
    for name in ("arrived: ", "out_of_steps: ", "invalid: "):
        assert name in Status[batch]
    # A number is no status, and would have compared unequal to all of them.
    with pytest.raises(ValueError, match="Can only compare equality between enumerations"):
        batch == 0  # noqa: B015


def test_every_batch_tells_how_each_ended():
    loop = [name_of(walk(PLANE, x, y).status) for x, y in zip(STARTS, TARGETS, strict=True)]
    mapped = foliax.map(
        foliax.walk, PLANE, STARTS, TARGETS, max_steps=30, save_every=30, arrival=0.1
    )
    vmapped = jax.vmap(walk, in_axes=(None, 0, 0))
    spread = sharding.spread(vmapped, PLANE, STARTS, TARGETS, mesh=sharding.mesh(1))
    found = [path.status for path in (mapped, vmapped(PLANE, STARTS, TARGETS), spread)]
    found.append(jax.jit(vmapped)(PLANE, STARTS, TARGETS).status)
    assert loop == ENDS
    assert [name_of(status) for status in found] == [ENDS] * 4
    assert name_of(sharding.gather(spread).status) == ENDS


def test_a_status_is_compared_inside_a_program():
    @jax.jit
    def share(xs, ys):
        paths = jax.vmap(walk, in_axes=(None, 0, 0))(PLANE, xs, ys)
        return jnp.mean(paths.status == Status.arrived)

    assert float(share(STARTS, TARGETS)) == 0.25


@pytest.mark.parametrize("out", [False, True])
def test_a_sweep_hands_statuses_back(out, tmp_path):
    folder = tmp_path / "sweep" if out else None
    run = partial(foliax.sweep, walk, PLANE, (STARTS, TARGETS), batch=3, progress=False, out=folder)
    for path in (run(), run()):  # the second one reads the files
        assert isinstance(path.status, Status)
        assert name_of(path.status) == ENDS
        np.testing.assert_array_equal(path.status == Status.stalled, [False, True, False, False])
        assert Status[path.status].count(": ") == 4
    if out:
        np.testing.assert_array_equal(
            np.load(folder / "status.npy", allow_pickle=False), as_code(run().status)
        )


def test_a_status_is_kept_without_pickling(tmp_path):
    leaves, treedef = jax.tree.flatten(as_status(jnp.array([0, 5])))
    np.savez(tmp_path / "kept.npz", *leaves)
    with np.load(tmp_path / "kept.npz", allow_pickle=False) as kept:
        again = treedef.unflatten(list(kept.values()))
    assert name_of(again) == ["arrived", "invalid"]
