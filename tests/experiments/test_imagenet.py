"""The ImageNet experiment, on an untrained network of the same kind."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments import imagenet
from foliax.zoo.efficientnet import EfficientNetLite


def tiny():
    stages = ((1, 3, 1, 1, 4), (1, 3, 2, 2, 6))
    model = EfficientNetLite((16, 16, 3), 7, stem=4, stages=stages, head=24, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)


def _config(out, **changes):
    sizes = {"num_eigenvalues": 3, "num_samples": 8}
    return imagenet.Config(out=out, photographs=("chelsea", "coffee"), **sizes, **changes)


def test_factor_and_estimates_agree(tmp_path):
    results = imagenet.run(_config(tmp_path, exact=1), tiny())
    assert json.loads((tmp_path / "results.json").read_text()) == results
    claims = results["claims"]
    assert claims["S1"]["outcome"] == claims["spectrum"]["outcome"] == "holds"
    first, second = (claims["S1"]["numbers"]["images"][who] for who in ("chelsea", "coffee"))
    assert first["rank"]["default"] <= first["dimension"]["default"] <= 6
    assert first["lanczos"]["values_off"] < 1e-4
    assert "rank" not in second
    for found in (first, second):
        assert 0.5 < found["captured"] <= 1.0001
    for name in ("run.json", "report.html", "spectrum.png", "eigenvectors.png"):
        assert (tmp_path / name).stat().st_size


@pytest.mark.slow
def test_the_same_seed_finds_the_same_numbers(tmp_path):
    for name in ("first", "second"):
        imagenet.run(_config(tmp_path / name, exact=1), tiny())
    first, second = ((tmp_path / n / "results.json").read_bytes() for n in ("first", "second"))
    assert first == second


def test_quick_leaves_the_factor_out(tmp_path):
    results = imagenet.run(_config(tmp_path, quick=True), tiny())
    assert "left out" in results["claims"]["S1"]["verdict"]
    assert "trace" not in results["claims"]["S1"]["numbers"]["images"]["chelsea"]


def test_samples_of_imagenet_have_names_and_labels():
    pixels, labels = imagenet.images((), 2, 224)
    assert list(pixels) == ["0 bull mastiff", "1 folding chair"]
    assert labels == [243, 559]
    for image in pixels.values():
        assert image.shape == (224, 224, 3)
        assert -1e-6 <= image.min() < image.max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="samples must be in 1 … 20, got 21"):
        imagenet.images((), 21, 224)
