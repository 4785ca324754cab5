"""An independent classifier that says what an image shows, for images that a network has made.

A network must not classify what was made by moving through its own input space. This one is a
support vector machine with a Gaussian kernel (scikit-learn), on the pixels of small images and on
the principal components of larger ones: it shares neither architecture nor training with a network.
It is fitted anew where it is needed, in seconds, so that nothing has to be stored.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.harness.populations import flat

_SMALL = 100  # images of no more pixels are classified by their pixels
_COMPONENTS = 100
_FITTED_ON = 30_000  # training images at most; the fit costs their square
_QUICK = 3_000
_PENALTY = 10.0  # C of the support vector machine


class Classifier(NamedTuple):
    """A classifier from images (N, *shape), normalised, to labels; in words, and how accurate."""

    predict: Callable[[Float[np.ndarray, "n ..."]], Int[np.ndarray, " n"]]
    words: str
    accuracy: float


def independent(dataset: Any, *, seed: int = 1, quick: bool = False) -> Classifier:
    """Fit an independent classifier on the training images of a data set, in seconds.

    The seed draws the images where there are many, 30,000 or if `quick` 3,000, and starts the
    search for principal components.

    Example:
        >>> from foliax import zoo
        >>> found = independent(zoo.load_digits(), quick=True)
        >>> found.accuracy > 0.98, found.predict(zoo.load_digits().test_x[:2]).shape
        (True, (2,))
    """
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    def some(split: str) -> Any:
        total, most = dataset.length(split), _QUICK if quick else _FITTED_ON
        drawn = np.random.default_rng(seed).permutation(total)[:most]
        return dataset.take(np.sort(drawn), split=split)

    large = math.prod(dataset.shape) > _SMALL
    steps: list[Any] = [SVC(C=_PENALTY, cache_size=500)]
    if large:
        # Given by name: "auto" would take another solver for another number of images.
        steps.insert(0, PCA(_COMPONENTS, svd_solver="randomized", random_state=seed))
    xs, labels = some("train")
    machine = make_pipeline(*steps).fit(flat(xs), labels)

    def predict(images: Any) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim < 2 or images.shape[1:] != tuple(dataset.shape):
            raise ValueError(
                f"images must have shape (N, {', '.join(map(str, dataset.shape))}), "
                f"got {images.shape}; stack them along axis 0"
            )
        return machine.predict(flat(images)).astype(np.int64)

    test, truth = some("test")
    what = f"{_COMPONENTS} principal components" if large else "the pixels"
    words = f"support vector machine (RBF) on {what}, fitted on {len(xs)} training images"
    return Classifier(predict, words, float(np.mean(predict(test) == truth)))
