"""Leaves of space: p is kept, brackets leave the D of smooth networks, the pictures are drawn."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from PIL import Image

import foliax
from experiments import foliation_3d, foliations
from foliax import zoo
from foliax.viz.space import Sheet, Space, Strands, space
from foliax.viz.spacing import lattice


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    return run_small(foliation_3d.run, foliation_3d.Config, activations=("gelu",), quick=True)


@pytest.mark.slow
def test_kernel_leaves_keep_p_and_data_leaves_do_not(smoke):
    _, results = smoke
    for data in ("xor", "circles"):
        numbers = results[data]["gelu"]
        assert numbers["accuracy"] > 0.95
        assert numbers["kernel_leaf_drift_of_p"]["largest"] <= 1e-4
    assert results["xor"]["gelu"]["data_leaf_change_of_p"]["median"] > 0.4


@pytest.mark.slow
def test_a_smooth_network_is_not_involutive(smoke):
    _, results = smoke
    numbers = results["circles"]["gelu"]
    assert numbers["share_of_dimension_two"] == 1
    assert numbers["share_where_brackets_leave_d"] > 0.9
    assert 0.05 < numbers["brackets_outside_d"]["median"] < np.sqrt(2)


def test_a_network_of_flat_pieces_is_involutive():
    model = zoo.MLP((3, 16, 3), rngs=nnx.Rngs(0))
    xs = np.random.default_rng(0).normal(size=(20, 3))
    found = foliax.map(foliax.involutivity, model, xs, block=20)
    assert jnp.all(found.outside == 0)
    np.testing.assert_array_equal(found.dimension_with_brackets, found.dimension)


@pytest.mark.slow
def test_kernel_leaves_about_the_axis_are_closed(smoke):
    _, results = smoke
    numbers = results["circles"]["gelu"]
    assert numbers["closed_kernel_leaves"] >= numbers["kernel_leaves"] / 2


@pytest.mark.slow
def test_pictures_are_written_and_results_are_numbers(smoke):
    out, _ = smoke
    assert set(json.loads((out / "results.json").read_text())) == {"xor", "circles"}
    assert json.loads((out / "run.json").read_text())["seed"] == 0
    for name in ("xor", "circles"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300


def test_singular_points_are_found_isolated_and_on_curves():
    seeds = lattice(3, 0.5, axes=3).astype(float)

    def saddle(x):
        return jnp.stack([x[0] * x[1] + (x[2] - 0.3) ** 2, jnp.zeros(())])

    (found,) = foliations.singular_points(Partial(saddle), seeds, edge=1.0, gap=0.01)
    np.testing.assert_allclose(found, [0, 0, 0.3], atol=1e-5)

    def turned(x):  # about the third axis, on which one gradient is lost
        return jnp.stack([x[0] ** 2 + x[1] ** 2, x[2], jnp.zeros(())])

    found = foliations.singular_points(Partial(turned), seeds, edge=1.0, gap=0.1)
    assert len(found) >= 3
    np.testing.assert_allclose(found[:, :2], 0, atol=1e-5)


def test_loops_close_once():
    turn = np.linspace(0, 4 * np.pi, 400)
    circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    line = np.stack([turn, 0 * turn, 0 * turn], axis=1)
    step = turn[1]
    found, closed = foliation_3d.loops(np.stack([circle, line, circle, -line]), step)
    assert closed == 1
    assert abs(len(found[0]) - 200) <= 2
    assert len(found[1]) == 800


def test_space_draws_every_kind_of_thing(tmp_path):
    turn = np.linspace(0, 6, 40)
    helix = np.stack([np.cos(turn), np.sin(turn), turn / 6], axis=1)
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    first = Space(
        "a", 1.2, [Strands("c", [helix], [np.abs(helix)]), Strands("d", [2 * helix], margin=0)],
        [Sheet("s", corners, [[0, 1, 3, 2]])], points=helix, labels=np.arange(40),
        marks=helix[:2], marks_label="mark", note="n",
    )  # fmt: skip
    second = Space("b", 1.2, sheets=[Sheet("", corners, [[4, 5, 7, 6]], [0.3])], field_label="f")
    with Image.open(space([first, second], tmp_path / "space.png", columns=1)) as image:
        assert image.height > image.width
    with Image.open(space(Space("empty", 1), tmp_path / "empty.png")) as image:
        assert min(image.size) > 300


def test_what_is_near_hides_what_is_far(tmp_path):
    square = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
    far, near = (
        Sheet("", 0.9 * square + [0, y, 0], [[0, 1, 2, 3]], color, 1)
        for y, color in ((0.5, "#ff0000"), (-0.5, "#0000ff"))
    )
    for sheets in ([far, near], [near, far]):
        path = space(Space("", 1, sheets=sheets), tmp_path / "x.png", elevation=0, azimuth=-90)
        with Image.open(path) as image:
            red, _, blue = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
        assert blue > red


def test_space_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="panels must not be empty"):
        space([], tmp_path / "none.png")
