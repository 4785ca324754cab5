"""Pictures are made, of the right size, whole, and in the look of the house."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from foliax import viz

RNG = np.random.default_rng(0)


def size(path):
    with Image.open(path) as image:
        return image.size


def corner(path):
    with Image.open(path) as image:
        return image.convert("RGBA").getpixel((0, 0))


@pytest.fixture
def history():
    steps = np.arange(1, 41)
    trace = 1 + np.sin(steps / 12)
    ranks = np.stack([np.bincount(RNG.integers(5, 10, 30), minlength=10) for _ in steps])
    return {
        "steps": steps,
        "trace_mean": trace,
        "trace_low": 0.5 * trace,
        "trace_high": 1.5 * trace,
        "ranks": ranks,
        "epoch_steps": steps[9::10],
        "test_accuracy": np.linspace(0.2, 0.9, 4),
    }


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 6, 8, 3)])
def test_strip_takes_grey_and_colour(tmp_path, shape):
    path = viz.strip(RNG.random(shape), ["a\nb"] * 5, tmp_path / "deep" / "strip.png")
    assert path == tmp_path / "deep" / "strip.png"
    width, height = size(path)
    assert width > 4 * height / 2
    assert corner(path)[3] == 255  # its own ground, not transparent


def test_strip_wraps_into_even_rows(tmp_path):
    captions = [f"iteration {i}\nlabel 2\np = 1.0000" for i in range(11)]
    one = size(viz.strip(RNG.random((9, 8, 8)), captions[:9], tmp_path / "one.png"))
    two = size(viz.strip(RNG.random((11, 8, 8)), captions, tmp_path / "two.png"))
    assert two[1] > 1.8 * one[1]
    assert two[0] < one[0]  # 6 + 5, not 9 + 2


def test_strip_labels_rows(tmp_path):
    images = RNG.random((6, 8, 8))
    plain = size(viz.strip(images, [""] * 6, tmp_path / "plain.png", columns=3))
    labelled = size(
        viz.strip(images, [""] * 6, tmp_path / "rows.png", row_labels=("exact", "published"))
    )
    assert labelled[0] > plain[0]
    assert labelled[1] == plain[1]


def test_strip_clips_for_display_only(tmp_path):
    images = np.array([[[-3.0, 4.0], [0.5, np.nan]]])
    kept = images.copy()
    path = viz.strip(images, ["out of the box"], tmp_path / "strip.png")
    np.testing.assert_array_equal(images, kept)
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    assert grey.min() == 0
    assert grey.max() == 255


@pytest.mark.parametrize(
    ("images", "captions", "options", "message"),
    [
        (np.zeros((2, 8, 8)), ["one"], {}, "one text per image, 2, got 1"),
        (np.zeros((2, 8, 8)), "ab", {}, "one text per image"),
        (np.zeros((8, 8)), ["one"], {}, r"got shape \(8, 8\)"),
        (np.zeros((1, 8, 8, 2)), ["one"], {}, r"got shape \(1, 8, 8, 2\)"),
        (np.zeros((3, 8, 8)), [""] * 3, {"row_labels": ("a", "b")}, "equal rows, got 2"),
        (np.zeros((3, 8, 8)), [""] * 3, {"columns": 0}, "at least 1, got 0"),
    ],
)
def test_strip_refuses_what_does_not_fit(tmp_path, images, captions, options, message):
    with pytest.raises(ValueError, match=message):
        viz.strip(images, captions, tmp_path / "strip.png", **options)
    assert not list(tmp_path.iterdir())


def test_strip_leaves_a_gap_for_what_is_missing(tmp_path):
    images = np.zeros((3, 8, 8))
    whole = viz.strip(images, [""] * 3, tmp_path / "whole.png")
    images[1] = np.nan
    gap = viz.strip(images, [""] * 3, tmp_path / "gap.png")
    assert size(gap) == size(whole)
    with Image.open(gap) as picture:
        middle = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 3))
    assert min(middle) > 240  # the ground, where a black image would be


def test_signed_images_lie_around_the_ground():
    images = np.array([[[-2.0, 0.0], [1.0, 2.0]]])
    found = viz.signed(images)
    assert found.shape == (1, 2, 2, 3)
    assert found[0, 0, 0, 2] > found[0, 0, 0, 0]  # blue below
    assert found[0, 1, 1, 0] > found[0, 1, 1, 2]  # orange above
    assert found[0, 0, 1].min() > 0.95
    colour = viz.signed(RNG.standard_normal((2, 4, 4, 3)))
    assert colour.min() >= 0
    assert colour.max() <= 1
    np.testing.assert_array_equal(viz.signed(np.zeros((1, 2, 2, 3))), 0.5)
    with pytest.raises(ValueError, match=r"got shape \(2, 2\)"):
        viz.signed(np.zeros((2, 2)))


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 8, 8, 3)])
def test_leaf_map_colours_labels(tmp_path, shape):
    labels = np.repeat([[0, 0, 1, 1]], 3, axis=0)
    path = viz.leaf_map(
        RNG.random(shape), labels, np.ones((3, 4)), tmp_path / "map.png",
        class_names=("a", "b"), x_label="first", y_label="second", title="A map", mark=(1, 1),
    )  # fmt: skip
    with Image.open(path) as picture:
        colors = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    for label in (0, 1):
        wanted = tuple(int(viz.CLASSES[label][i : i + 2], 16) for i in (1, 3, 5))
        assert wanted in colors
    assert corner(path)[3] == 255


def test_leaf_map_refuses_what_does_not_fit(tmp_path):
    names, path = ("a", "b"), tmp_path / "map.png"
    with pytest.raises(ValueError, match=r"got shapes \(2, 2, 8, 8\), \(2, 3\) and \(2, 2\)"):
        viz.leaf_map(
            np.zeros((2, 2, 8, 8)), np.zeros((2, 3)), np.ones((2, 2)), path, class_names=names
        )
    with pytest.raises(ValueError, match="labels must lie in 0 … 1, the class_names, got 0 … 2"):
        viz.leaf_map(np.zeros((1, 2, 8, 8)), [[0, 2]], np.ones((1, 2)), path, class_names=names)


def test_regions_are_found_once():
    from foliax.viz.map import _regions

    labels = np.array([[0, 0, 1], [1, 0, 1], [1, 0, 0]])
    assert _regions(labels) == [(0, 0), (0, 2), (1, 0)]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_a_frame_per_image_and_rests_on_the_last(tmp_path, channels):
    images = RNG.random((7, 8, 8, channels))
    path = viz.gif(images, [f"iteration {i}" for i in range(7)], tmp_path / "walk.gif", fps=10)
    with Image.open(path) as animation:
        assert animation.n_frames == 7
        assert animation.width >= 224
        durations = []
        for i in range(7):
            animation.seek(i)
            durations.append(animation.info["duration"])
    assert durations[0] == 100
    assert durations[-1] > 1000


def test_gif_keeps_greys_grey(tmp_path):
    images = np.linspace(0, 1, 4 * 64).reshape(4, 8, 8)
    path = viz.gif(images, [""] * 4, tmp_path / "grey.gif")
    with Image.open(path) as animation:
        animation.seek(2)
        pixels = np.asarray(animation.convert("RGB"), dtype=int)
    assert np.ptp(pixels, axis=-1).max() == 0


def test_gif_refuses_no_speed(tmp_path):
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        viz.gif(np.zeros((1, 8, 8)), [""], tmp_path / "walk.gif", fps=0)


def test_dynamics_takes_a_history_or_its_dictionary(tmp_path, history):
    one = viz.dynamics(history, tmp_path / "one.png", marks={"chosen": 20})
    wrapped = SimpleNamespace(to_dict=lambda: {k: v.tolist() for k, v in history.items()})
    two = viz.dynamics(wrapped, tmp_path / "two.png", marks={"chosen": 20})
    assert one.read_bytes() == two.read_bytes()
    assert size(one)[0] > 1.5 * size(one)[1]


def test_spectrum_with_and_without_the_dense_matrix(tmp_path):
    values = 10.0 ** -RNG.random((5, 9))
    dense = np.concatenate([values[0], 1e-17 * RNG.standard_normal(55)])
    whole = viz.spectrum(values, tmp_path / "whole.png", num_classes=10, dense=dense)
    one = viz.spectrum(values[0], tmp_path / "one.png", num_classes=10)
    assert whole.read_bytes() != one.read_bytes()


def test_spectrum_of_a_dead_network_is_drawn(tmp_path):
    values = np.zeros((2, 3))
    values[:, 0] = 1.0
    assert viz.spectrum(values, tmp_path / "dead.png", num_classes=4).exists()


def test_curves_draw_panels_side_by_side(tmp_path):
    x = np.arange(5)
    curve = viz.Curve("exact", x, x + 1, x, x + 2)
    straight = viz.Curve("known", x, x + 1, reference=True)
    panel = viz.Panel("Drift", "step", "max |p - p(start)|", [curve, straight], log=True)
    single = size(viz.curves(panel, tmp_path / "one.png"))
    double = size(viz.curves([panel, panel], tmp_path / "two.png"))
    assert double[0] > 1.4 * single[0]


def test_dots_stand_for_cases_with_names(tmp_path):
    dots = viz.Curve("cases", [0, 1], [0.4, 0.6], [0.3, 0.5], [0.5, 0.7], dots=True)
    panel = viz.Panel("Cases", "", "share", [dots], x_names=("one", "two"))
    line = viz.Panel("Cases", "", "share", [viz.Curve("cases", [0, 1], [0.4, 0.6])])
    named = viz.curves(panel, tmp_path / "named.png")
    assert named.read_bytes() != viz.curves(line, tmp_path / "line.png").read_bytes()


def test_spectrum_of_many_pixels_is_drawn(tmp_path):
    values = 10.0 ** -np.arange(9.0)
    dense = np.concatenate([values, 1e-17 * RNG.standard_normal(775)])
    assert viz.spectrum(values, tmp_path / "many.png", num_classes=10, dense=dense).exists()


def test_pictures_leave_no_drafts_and_no_global_style(tmp_path):
    before = dict(matplotlib.rcParams)
    viz.strip(np.zeros((1, 8, 8)), [""], tmp_path / "strip.png")
    assert [path.name for path in tmp_path.iterdir()] == ["strip.png"]
    assert dict(matplotlib.rcParams) == before


def test_a_failed_picture_leaves_the_old_one(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    broken = viz.Curve("broken", np.arange(3), np.arange(4))
    with pytest.raises(ValueError, match="shape"):
        viz.curves(viz.Panel("", "", "", [broken]), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_same_numbers_give_the_same_bytes(tmp_path):
    images = RNG.random((3, 8, 8))
    one = viz.strip(images, ["x"] * 3, tmp_path / "one.png").read_bytes()
    assert viz.strip(images, ["x"] * 3, tmp_path / "two.png").read_bytes() == one
