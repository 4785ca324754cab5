"""The independent classifier: right, repeatable, and plain about what it refuses."""

import numpy as np
import pytest
from sklearn.svm import SVC

from experiments.harness.classifier import independent
from foliax import zoo


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return independent(digits)


def test_digits_are_read_by_their_pixels(digits, classifier):
    machine = SVC(C=10).fit(digits.train_x.reshape(len(digits.train_x), -1), digits.train_y)
    expected = machine.predict(digits.test_x.reshape(len(digits.test_x), -1))
    np.testing.assert_array_equal(classifier.predict(digits.test_x), expected)
    assert classifier.accuracy == np.mean(expected == digits.test_y)
    assert classifier.accuracy > 0.98
    assert "1437 training images" in classifier.words


def test_order_and_batch_do_not_matter(digits, classifier):
    xs = digits.test_x[:20]
    whole = classifier.predict(xs)
    np.testing.assert_array_equal(classifier.predict(xs[::-1]), whole[::-1])
    np.testing.assert_array_equal([classifier.predict(x[None])[0] for x in xs], whole)


def test_larger_images_by_components_and_the_same_each_time():
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 3
    pixels = np.clip(0.3 * labels[:, None, None, None] + 0.1 * rng.random((4000, 11, 11, 1)), 0, 1)
    data = zoo.from_arrays(
        "toy", (pixels, labels), (pixels[:30], labels[:30]), class_names=("a", "b", "c")
    )
    first, again, other = (independent(data, seed=seed, quick=True) for seed in (1, 1, 2))
    assert "100 principal components, fitted on 3000 training images" in first.words
    assert first.accuracy == 1
    noise = rng.normal(size=(50, 11, 11, 1)).astype(np.float32)
    np.testing.assert_array_equal(first.predict(noise), again.predict(noise))
    assert other.accuracy == 1


def test_refuses_what_is_not_a_stack_of_images(digits, classifier):
    with pytest.raises(ValueError, match=r"images must have shape \(N, 8, 8, 1\), got \(8, 8, 1\)"):
        classifier.predict(digits.test_x[0])
