"""Leaves of the plane: the level sets of p are found, and the pictures are drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import foliation_2d
from foliax import viz
from foliax.viz.plane import Family, Plane, plane, tinted


@pytest.fixture(scope="module")
def smoke(run_small):
    """Return the folder of a small run, and its results."""
    return run_small(foliation_2d.run, foliation_2d.Config, activations=("gelu",), quick=True)


@pytest.mark.slow
def test_kernel_leaves_keep_p_and_data_leaves_do_not(smoke):
    _, results = smoke
    numbers = results["xor"]["gelu"]
    assert numbers["accuracy"] > 0.9
    assert numbers["kernel_leaf_drift_of_p"]["largest"] <= 1e-4
    assert numbers["data_leaf_change_of_p"]["largest"] > 0.5


@pytest.mark.slow
def test_singular_points_of_xor_include_the_saddle_in_the_middle(smoke):
    _, results = smoke
    points = np.asarray(results["xor"]["gelu"]["singular_points"])
    assert len(points) >= 1
    assert np.linalg.norm(points, axis=1).min() < 1


@pytest.mark.slow
def test_p_changes_more_along_the_first_eigenvector(smoke):
    _, results = smoke
    numbers = results["circles"]["gelu"]
    assert numbers["accuracy"] > 0.85
    first, second = (numbers[f"{which}_eigenvector_change_of_p"] for which in ("first", "second"))
    assert second["median"] < first["median"]
    assert 0 < numbers["share_with_reversed_orientation"] < 1


@pytest.mark.slow
def test_pictures_are_written_and_results_are_numbers(smoke):
    out, _ = smoke
    assert set(json.loads((out / "results.json").read_text())) == {"xor", "circles"}
    for name in ("xor", "circles"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300


def test_plane_draws_every_kind_of_thing(tmp_path):
    x = np.linspace(-1, 1, 8)
    circle = np.stack([np.cos(3 * x), np.sin(3 * x)], axis=1)
    upper = Plane("a", (-1, 1, -1, 1), tinted(np.full((8, 8, 3), 1 / 3)), [Family("c", [circle])])
    lower = Plane(
        "b", (-1, 1, -1, 1), np.add.outer(x, x), zero=np.add.outer(x, x), zero_label="zero",
        points=circle, labels=np.arange(8), marks=circle[:2], marks_label="mark", field_label="f",
    )  # fmt: skip
    with Image.open(plane([upper, lower], tmp_path / "plane.png", columns=1)) as image:
        assert image.height > image.width


def test_plane_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="panels must not be empty"):
        plane([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="at most 7 classes"):
        tinted(np.full(8, 1 / 8))
    assert len(viz.PALETTE) == 7
