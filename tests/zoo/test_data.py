"""The data: normalisation, the box, noise, a split that never changes, and batches."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foliax import zoo
from foliax.zoo import data
from foliax.zoo.data.outliers import OUTLIERS
from tests.cases import loaded_by


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


def test_split_is_fixed(digits):
    labels = np.concatenate([digits.train_y, digits.test_y]).astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest()[:16] == "99c3fa75ee18cae9"
    assert digits.fingerprint() == zoo.load_dataset("digits").fingerprint()


def test_fingerprint_is_that_of_the_shipped_weights(digits):
    assert digits.fingerprint() == "032db9cad3b275ae"


def test_shapes_and_types(digits):
    assert digits.train_x.shape == (1437, 8, 8, 1)
    assert digits.test_x.shape == (360, 8, 8, 1)
    assert digits.shape == (8, 8, 1)
    assert digits.train_x.dtype == digits.test_x.dtype == np.float32
    assert digits.train_y.dtype == digits.test_y.dtype == np.int32
    assert digits.num_classes == len(digits.class_names) == 10
    assert set(digits.test_y) == set(range(10))


def test_training_images_are_standardised(digits):
    assert abs(digits.train_x.mean(dtype=np.float64)) < 1e-6
    assert abs(digits.train_x.std(dtype=np.float64) - 1) < 1e-6


def test_box_is_what_pixels_reach(digits):
    assert float(digits.box.lower) == digits.train_x.min()
    assert float(digits.box.upper) == digits.train_x.max()
    for images in (digits.train_x, digits.test_x):
        assert float(digits.box.excess(images)) == 0


def test_pixels_round_trip(digits):
    pixels = digits.to_pixels(digits.test_x)
    np.testing.assert_allclose(pixels * 16, np.rint(pixels * 16), atol=1e-5)
    np.testing.assert_allclose(digits.from_pixels(pixels), digits.test_x, atol=1e-6)
    assert float(digits.to_pixels(digits.box.upper + 1.0)) > 1  # nothing is clipped


def test_mirrored_exchanges_left_and_right(digits):
    x = digits.test_x[:3]
    np.testing.assert_array_equal(digits.mirrored(x)[:, :, 0], x[:, :, 7])
    np.testing.assert_array_equal(digits.mirrored(digits.mirrored(x[0])), x[0])
    with pytest.raises(ValueError, match="H, W, channels"):
        digits.mirrored(x[0, ..., 0])


def test_noise_has_the_deviation_asked_for_in_pixels(digits):
    x = digits.test_x
    key = jax.random.key(0)
    noise = digits.to_pixels(digits.noisy(x, 0.2, key)) - digits.to_pixels(x)
    assert abs(float(noise.std()) - 0.2) < 0.004  # 23,040 numbers: four standard errors
    assert digits.noisy(x, 0.2, key).dtype == x.dtype
    np.testing.assert_array_equal(digits.noisy(x, 0.2, key), digits.noisy(x, 0.2, key))
    np.testing.assert_array_equal(digits.noisy(x, 0.0, key), x)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"one of 'digits', 'xor', .*'imagenet2012', got 'svhn'"):
        zoo.load_dataset("svhn")


@pytest.mark.parametrize(
    ("pixels", "labels", "match"),
    [
        (np.zeros((2, 6, 6)), np.zeros(2, int), "N, H, W, channels"),
        (np.zeros((2, 6, 6, 1)), np.zeros(3, int), r"\(N,\) labels"),
        (np.full((2, 6, 6, 1), 255.0), np.zeros(2, int), "divide bytes by 255"),
        (np.full((2, 6, 6, 1), np.nan), np.zeros(2, int), r"lie in \[0, 1\]"),
        (np.zeros((2, 6, 6, 1)), np.array([0, 2]), "labels must lie in 0 … 1"),
    ],
)
def test_wrong_arrays_are_named(pixels, labels, match):
    good = np.random.default_rng(0).random((2, 6, 6, 1)), np.array([0, 1])
    with pytest.raises(ValueError, match=match):
        zoo.from_arrays("toy", good, (pixels, labels), class_names=("a", "b"))


def test_images_of_one_shape_are_asked_for():
    images = np.zeros((2, 6, 6, 1)), np.array([0, 1])
    smaller = np.zeros((2, 5, 5, 1)), np.array([0, 1])
    with pytest.raises(ValueError, match=r"shape of the training images, \(6, 6, 1\)"):
        zoo.from_arrays("toy", images, smaller, class_names=("a", "b"))


@pytest.mark.parametrize(
    ("constants", "match"),
    [
        ({"mean": (0.1, 0.2)}, "mean must be a number or 3 of them"),
        ({"mean": 0.5, "std": 0.0}, "std must be positive"),
        ({"mean": np.nan}, "mean must be a number"),
    ],
)
def test_wrong_constants_are_named(constants, match):
    images = np.random.default_rng(0).random((2, 6, 6, 3)), np.array([0, 1])
    with pytest.raises(ValueError, match=match):
        zoo.from_arrays("toy", images, images, class_names=("a", "b"), **constants)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def bytes_and_pixels(request):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, request.param), dtype=np.uint8)
    images[..., -1] //= 2  # channels of their own means
    images[0], images[1] = 0, 255
    labels = np.arange(50) % 3
    return tuple(
        zoo.from_arrays("toy", (x, labels), (x, labels), class_names=("a", "b", "c"))
        for x in (images, images / 255.0)
    )


def test_bytes_are_pixels_times_255(bytes_and_pixels):
    of_bytes, of_pixels = bytes_and_pixels
    np.testing.assert_allclose(of_bytes.mean, of_pixels.mean, rtol=1e-6)
    np.testing.assert_allclose(of_bytes.std, of_pixels.std, rtol=1e-6)
    np.testing.assert_allclose(of_bytes.train_x, of_pixels.train_x, atol=1e-6)
    assert of_bytes.train_x.dtype == np.float32


def test_every_channel_is_standardised_and_boxed(bytes_and_pixels):
    for dataset in bytes_and_pixels:
        x, channels = dataset.train_x, dataset.shape[-1]
        np.testing.assert_allclose(x.mean(axis=(0, 1, 2), dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(x.std(axis=(0, 1, 2), dtype=np.float64), 1, atol=1e-5)
        assert dataset.box.lower.shape == (() if channels == 1 else (3,))
        np.testing.assert_array_equal(x.min(axis=(0, 1, 2)), dataset.box.lower)
        np.testing.assert_array_equal(x.max(axis=(0, 1, 2)), dataset.box.upper)


def test_colour_has_the_units_of_pixels(bytes_and_pixels):
    dataset = bytes_and_pixels[0]
    x = jnp.asarray(dataset.test_x)
    np.testing.assert_allclose(dataset.from_pixels(dataset.to_pixels(x)), x, atol=1e-6)
    noise = dataset.to_pixels(dataset.noisy(x, 0.3, jax.random.key(1))) - dataset.to_pixels(x)
    deviations = np.asarray(noise).std(axis=(0, 1, 2))
    np.testing.assert_allclose(deviations, 0.3, rtol=0.1)  # 1,000 numbers: four standard errors
    assert dataset.to_pixels(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(dataset.mirrored(x)[:, :, 0], x[:, :, -1])


def test_xor_is_the_exclusive_or_of_rounded_coordinates():
    xor = zoo.load_dataset("xor")
    corners = np.rint(xor.train_x).astype(int)
    np.testing.assert_array_equal(corners[:, 0] ^ corners[:, 1], xor.train_y)
    assert xor.shape == (2,)
    assert (xor.mean, xor.std) == (0, 1)
    assert abs(xor.train_y.mean() - 0.5) < 0.05
    assert float(xor.box.excess(xor.train_x)) == 0
    assert 0 <= xor.train_x.min() < 0.01 < 0.99 < xor.train_x.max() <= 1


def test_circles_are_three_arcs_of_the_unit_circle():
    circles = zoo.load_dataset("circles")
    np.testing.assert_allclose(np.linalg.norm(circles.train_x, axis=-1), 1, atol=1e-6)
    angles = np.degrees(np.arctan2(circles.test_x[:, 1], circles.test_x[:, 0])) % 360
    np.testing.assert_array_equal(circles.test_y, angles // 120)
    assert circles.num_classes == 3
    assert float(circles.box.excess(circles.train_x)) == 0


@pytest.mark.parametrize("make", [data.load_xor, data.load_circles])
def test_points_are_seeded(make):
    few = make(num_train=20, num_test=5)
    assert (few.length(), few.length("test")) == (20, 5)
    assert few.fingerprint() == make(num_train=20, num_test=5).fingerprint()
    assert few.fingerprint() != make(num_train=20, num_test=5, seed=1).fingerprint()
    with pytest.raises(ValueError, match="at least 1, got 20 and 0"):
        make(num_train=20, num_test=0)
    with pytest.raises(ValueError, match=r"inputs of shape \(2,\)"):
        few.mirrored(few.train_x)


def test_take_is_the_split(digits):
    x, y = digits.take([3, 1], split="test")
    np.testing.assert_array_equal(x, digits.test_x[[3, 1]])
    np.testing.assert_array_equal(y, digits.test_y[[3, 1]])
    with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
        digits.take([0], split="validation")


def test_importing_the_zoo_loads_neither_tensorflow_nor_grain():
    loaded = loaded_by("import foliax.zoo; foliax.zoo.load_dataset('xor')")
    assert "foliax" in loaded
    assert not {"tensorflow", "tensorflow_datasets", "grain"} & set(loaded)


@pytest.mark.parametrize("name", ["mnist", "imagenet2012"])
def test_missing_tensorflow_datasets_is_said_with_the_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=rf"{name}.*pip install 'foliax\[tfds\]'"):
        zoo.load_dataset(name)


def test_missing_grain_is_said_with_the_command(monkeypatch, digits):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'foliax\[tfds\]'"):
        data.batches(digits, batch_size=60)


# Batches


@pytest.fixture(scope="module")
def numbered():
    """A data set whose labels are the places of its images."""
    pytest.importorskip("grain", reason="batches need grain: pip install 'foliax[tfds]'")
    pixels, places = np.random.default_rng(0).random((103, 2, 2, 1)), np.arange(103)
    return zoo.from_arrays(
        "toy", (pixels, places), (pixels[:20], places[:20]), class_names=("a",) * 103
    )


def _places(dataset, **options):
    return [y.tolist() for _, y in data.batches(dataset, **options)]


def _flat(batches):
    return [place for batch in batches for place in batch]


def test_images_go_with_their_labels(numbered):
    for x, y in data.batches(numbered, batch_size=10, seed=3):
        np.testing.assert_array_equal(x, numbered.train_x[y])
        assert x.shape == (10, 2, 2, 1)
        assert (x.dtype, y.dtype) == (np.float32, np.int32)


def test_an_epoch_has_each_image_once(numbered):
    places = _places(numbered, batch_size=10, drop_remainder=False)
    assert [len(batch) for batch in places] == [10] * 10 + [3]
    assert sorted(_flat(places)) == list(range(103))
    assert len(_places(numbered, batch_size=10)) == 10


def test_order_depends_on_seed_and_epoch_alone(numbered):
    orders = [
        _places(numbered, batch_size=10, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 0), (0, 0), (1, 0), (0, 1), (1, 1)]
    ]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 4
    assert _places(numbered, batch_size=3, split="test", shuffle=False)[1] == [3, 4, 5]


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_hosts_share_the_images_of_an_epoch(numbered, drop_remainder):
    options = {"batch_size": 5, "seed": 2, "drop_remainder": drop_remainder, "shard_count": 4}
    hosts = [_places(numbered, shard_index=k, **options) for k in range(4)]
    seen = [place for host in hosts for place in _flat(host)]
    assert len(seen) == len(set(seen)) == (100 if drop_remainder else 103)
    if drop_remainder:  # as many steps on every host, or they would wait for ever
        assert {len(host) for host in hosts} == {5}
    # The hosts deal out one order, that of a single host.
    whole = _flat(_places(numbered, batch_size=1, seed=2))
    assert _flat(hosts[1])[:6] == whole[1::4][:6]


def test_iterator_goes_on_from_its_state(numbered):
    iterator = iter(data.batches(numbered, batch_size=10))
    next(iterator)
    state = iterator.get_state()
    ahead = next(iterator)[1].tolist()
    other = iter(data.batches(numbered, batch_size=10))
    other.set_state(state)
    assert next(other)[1].tolist() == ahead


def test_a_name_is_loaded(numbered):
    x, y = next(iter(data.batches("circles", batch_size=7, split="test")))
    assert (x.shape, y.shape) == ((7, 2), (7,))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, r"batch_size must be in 1 … 103"),
        (
            {"batch_size": 60, "shard_count": 2, "shard_index": 0},
            "one host of 2, got 60",
        ),
        ({"batch_size": 1, "shard_count": 2, "shard_index": 2}, "shard_index must be in 0"),
        ({"batch_size": 1, "seed": -1}, "must not be negative, got -1 and 0"),
        ({"batch_size": 1, "split": "dev"}, "split must be"),
    ],
)
def test_wrong_options_are_named(numbered, options, match):
    with pytest.raises(ValueError, match=match):
        data.batches(numbered, **options)


def test_cuts_of_photographs_have_the_shape_of_cifar_and_all_labels():
    cuts = zoo.load_photographs(num_train=28, num_test=14)
    assert cuts.shape == (32, 32, 3)
    assert cuts.class_names == (
        "astronaut",
        "cat",
        "coffee",
        "rocket",
        "galaxies",
        "tissue",
        "retina",
    )
    assert np.bincount(cuts.train_y).tolist() == [4] * 7
    assert np.shape(cuts.std) == (3,)
    assert np.asarray(cuts.to_pixels(cuts.test_x)).std(axis=(1, 2, 3)).min() > 0.03
    np.testing.assert_array_equal(
        zoo.load_photographs(num_train=28, num_test=14).test_x, cuts.test_x
    )


def test_every_kind_of_outliers_is_normalised_and_drawn_by_the_seed(digits):
    found, again = (zoo.outliers(digits, 6, seed=1) for _ in range(2))
    assert set(found) < set(OUTLIERS)
    for name, images in found.items():
        assert images.shape == (6, 8, 8, 1)
        pixels = np.asarray(digits.to_pixels(images))
        assert pixels.min() > -1e-6
        assert pixels.max() < 1 + 1e-6
        np.testing.assert_array_equal(images, again[name])
    asymmetric = np.isin(digits.test_y, (2, 3, 4, 5, 6, 7, 9))
    kept = np.asarray(digits.test_x)[asymmetric]
    for image in found["mirrored"]:
        assert np.abs(kept - image[:, ::-1]).max(axis=(1, 2, 3)).min() < 1e-5


def test_classes_are_held_out_and_numbered_anew(digits):
    rest, outside = digits.without((3, 9))
    assert rest.num_classes == 8
    assert rest.class_names == ("0", "1", "2", "4", "5", "6", "7", "8")
    assert set(rest.train_y) == set(rest.test_y) == set(range(8))
    assert len(outside) + len(rest.test_y) == len(digits.test_y)
    assert rest.mean == digits.mean
    fours = digits.train_x[digits.train_y == 4]
    np.testing.assert_array_equal(rest.train_x[rest.train_y == 3], fours)
    for classes in ((), (10,), range(9)):
        with pytest.raises(ValueError, match="classes must be some of 0 … 9"):
            digits.without(classes)
