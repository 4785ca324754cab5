"""Outliers, baselines, measures and combinations on toy data, and the script at smoke size."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from PIL import Image
from sklearn.metrics import roc_auc_score

from experiments.ood import __main__ as ood
from experiments.ood import baselines, measures, tables
from foliax import zoo

RNG = np.random.default_rng(0)
DIGITS = zoo.load_digits()


def toy_parts(seed=0):
    """Scores of which "good" tells outliers, "bad" does not, and "far" is its reverse."""
    rng = np.random.default_rng(seed)

    def draw(count, shift):
        good = rng.normal(shift, 1, count)
        return {"good": good, "bad": rng.normal(size=count), "far": -good}

    sizes = {"held": (60, 0), "synthetic": (60, 1.5), "test": (80, 0), "a": (50, 1.5), "b": (40, 1)}
    return {kind: draw(*size) for kind, size in sizes.items()}


# --- data --------------------------------------------------------------------------------------


def test_sets_keep_calibration_and_references_apart():
    sizes = {"count": 20, "calibration": 30, "bank": 100, "seed": 0}
    found = measures.sets(None, DIGITS, {}, **sizes)
    held = found.images["held"]
    assert held.shape[0] == len(found.images["synthetic"]) == 30
    assert len(found.bank_x) == len(found.bank_y) == 100
    together = np.concatenate([held, found.bank_x]).reshape(130, -1)
    assert len(np.unique(together, axis=0)) >= 129  # one image occurs twice in the data
    other = replace(DIGITS, test_x=np.zeros_like(DIGITS.test_x), test_y=DIGITS.test_y)
    again = measures.sets(None, other, {}, **sizes)  # synthetic outliers know no test image
    np.testing.assert_array_equal(found.images["synthetic"], again.images["synthetic"])
    np.testing.assert_array_equal(held, again.images["held"])
    with pytest.raises(ValueError, match="calibration must be below the 1437 training images"):
        measures.sets(None, DIGITS, {}, count=1, calibration=1437, bank=1, seed=0)


# --- baselines ---------------------------------------------------------------------------------


def test_logit_scores_have_their_formulas():
    logits = RNG.normal(size=(5, 4)) * 3
    found = baselines.from_logits(logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    largest = p.max(axis=1)
    np.testing.assert_allclose(found["msp"], np.log((1 - largest) / largest))
    np.testing.assert_allclose(found["max_logit"], -logits.max(axis=1))
    np.testing.assert_allclose(found["energy"], -np.log(np.exp(logits).sum(axis=1)))
    saturated = baselines.from_logits(np.array([[800.0, 0.0], [900.0, 0.0]]))["msp"]
    assert saturated[0] > saturated[1]  # no tie where both probabilities are 1


WEIGHT = RNG.normal(size=(3, 6)).astype(np.float32)
LINEAR = Partial(lambda weight, x: weight @ x.ravel(), jnp.asarray(WEIGHT))
XS, LABELS = RNG.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3
HELD = RNG.normal(size=(9, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return baselines.fit(LINEAR, XS, LABELS, HELD, std=1.0)


def test_fitted_baselines_agree_with_values_by_hand(fitted):
    xs = RNG.normal(size=(4, 6)).astype(np.float32)
    found = {}
    for group in fitted.values():
        found |= group(xs)
    assert tuple(found) == baselines.NAMES
    pixels = np.sort(np.linalg.norm(xs[:, None] - XS[None], axis=2), axis=1)[:, 0]
    np.testing.assert_allclose(found["knn_pixels"], pixels, rtol=1e-4)
    seen, features = xs @ WEIGHT.T, XS @ WEIGHT.T  # without a last layer to take off: the logits
    unit, known = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (seen, features))
    near = np.sort(np.linalg.norm(unit[:, None] - known[None], axis=2), axis=1)[:, 0]
    np.testing.assert_allclose(found["knn_features"], near, rtol=1e-4)
    means = np.stack([features[label == LABELS].mean(axis=0) for label in range(3)])
    centred = features - means[LABELS]
    inverse = np.linalg.inv(centred.T @ centred / len(centred))
    away = seen[:, None] - means
    exact = np.einsum("nki,ij,nkj->nk", away, inverse, away).min(axis=1)
    np.testing.assert_allclose(found["mahalanobis"], exact, rtol=1e-3)


def test_odin_steps_along_the_sign_of_the_gradient():
    x, step = XS[:1], 0.1
    moved = np.asarray(baselines.perturbed(LINEAR, x, step))
    tempered = np.exp(WEIGHT @ x[0] / baselines.TEMPERATURE)
    p = tempered / tempered.sum()
    label = p.argmax()
    gradient = WEIGHT[label] - p @ WEIGHT  # of log p of the predicted class, but for 1 / T
    np.testing.assert_allclose(moved[0], x[0] + step * np.sign(gradient), rtol=1e-5)
    logits = WEIGHT.astype(np.float64) @ moved[0] / baselines.TEMPERATURE
    exact = -np.log(np.exp(logits).max() / np.exp(logits).sum())
    np.testing.assert_allclose(baselines.odin(LINEAR, x, step)[0], exact, rtol=1e-6)
    sure = [baselines.odin(LINEAR, HELD, s).mean() for s in baselines.STEPS]
    assert baselines.odin_step(LINEAR, HELD, 1.0) == baselines.STEPS[int(np.argmin(sure))]


# --- measures ----------------------------------------------------------------------------------


def test_measures_by_hand():
    apart = measures.measure(np.arange(20.0), np.arange(30.0, 40.0))
    assert apart == pytest.approx({"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0})
    # 19 of 20 test images lie at or below 18: of the outliers, two of four pass.
    mixed = measures.measure(np.arange(20.0), np.array([17.5, 18.0, 19.5, 20.5]))
    assert mixed["fpr95"] == 0.5
    assert mixed["auroc"] == pytest.approx((18 + 18.5 + 20 + 20) / 80)
    assert measures.measure(np.arange(20.0), np.full(5, -1.0))["auroc"] == 0


def test_the_table_counts_what_the_training_threshold_calls_out():
    parts = toy_parts()
    found = measures.table(parts)["good"]
    threshold = np.sort(parts["held"]["good"])[57]  # at least 95 % of 60 lie at or below
    assert np.mean(parts["held"]["good"] <= threshold) >= 0.95
    for out in ("test", "a", "b"):
        values = parts[out]
        assert found[out]["called"] == np.mean(values["good"] > threshold)
    assert measures.mean(found) == np.mean([found[out]["auroc"] for out in ("a", "b")])


@pytest.mark.parametrize("way", measures.WAYS)
def test_a_gain_is_the_difference_of_two_aurocs(way):
    parts = toy_parts()
    combine = measures.WAYS[way]
    base, more = combine(parts, ["bad"]), combine(parts, ["bad", "good"])
    found = measures.bootstrap(base, resamples=200, seed=0)(more)
    for out in ("a", "b"):
        labels = np.repeat([0, 1], [80, len(parts[out]["good"])])
        before, after = (
            roc_auc_score(labels, np.concatenate([c.values["test"], c.values[out]]))
            for c in (base, more)
        )
        assert found["by_set"][out] == pytest.approx(after - before, abs=1e-6)
    assert 0 < found["low"] < found["gain"] < found["high"]
    same = measures.bootstrap(base, resamples=50, seed=0)(base)
    assert same["gain"] == same["low"] == same["high"] == 0


def test_the_sum_is_of_standardised_scores():
    parts = toy_parts()
    found = measures.summed(parts, ["good", "bad"])
    standard = [
        (parts["test"][n] - parts["held"][n].mean()) / parts["held"][n].std()
        for n in ("good", "bad")
    ]
    np.testing.assert_allclose(found.values["test"], standard[0] + standard[1])


@pytest.mark.parametrize("way", measures.WAYS)
def test_what_is_tested_changes_no_combination(way):
    """Neither test images nor outliers are seen by what is fitted or chosen."""
    parts, other = toy_parts(), toy_parts(seed=1)
    changed = parts | {kind: other[kind] for kind in ("test", "a", "b")}
    one, two = (measures.WAYS[way](p, ["good", "bad"]) for p in (parts, changed))
    assert one.weights == two.weights
    assert one.synthetic() == two.synthetic()
    mixed = parts | {"b": other["a"]}
    np.testing.assert_array_equal(
        measures.WAYS[way](mixed, ["good", "bad"]).values["a"], one.values["a"]
    )
    options = {"resamples": 20, "seed": 0}
    chosen = [
        measures.choose(measures.partners(p, ["bad"], ["good", "far"], **options), ["good", "far"])
        for p in (parts, changed)
    ]
    assert chosen[0] == chosen[1]


def test_a_score_that_is_turned_round_is_not_chosen():
    found = measures.partners(toy_parts(), ["bad"], ["good", "far"], resamples=20, seed=0)
    assert found["far"]["logistic"]["weights"][1] < 0
    assert found["far"]["logistic"]["synthetic"] > 0.7
    assert measures.choose(found, ["far"]) == ("far", "sum")
    assert measures.choose(found, ["good", "far"])[0] == "good"


def test_scores_that_are_no_numbers_are_counted():
    parts = toy_parts()
    parts["a"]["bad"][3] = np.nan
    assert measures.not_finite(parts) == {"bad": 1}


def test_only_scores_of_blind_references_are_the_leafs():
    assert tables.is_blind("residual[predicted]")
    assert tables.is_blind("trace")
    for name in ("energy", "distance[fixed, min]", "residual[nearest]"):
        assert not tables.is_blind(name)


# --- the script --------------------------------------------------------------------------------

# As many references in each family as there are classes, so that they share compiled programs.
SMOKE = ood.Config(
    count=12, calibration=30, bank=100, fixed=10, many=10, resamples=10, max_steps=20
)


def test_the_script_writes_tables_numbers_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "_HELD_OUT", {})
    monkeypatch.setattr(ood, "_SMALL", 0)  # as for large images: fewer closest points
    with jax.enable_x64(False):
        result = ood.run(replace(SMOKE, out=tmp_path))["epochs"]["given"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["epochs"]["given"] == result
    assert written["setting"]["outliers"]["faces"] == 12
    assert result["accuracy"] == pytest.approx(0.944, abs=0.01)
    assert result["not_finite"] == {}
    outs = set(written["setting"]["outliers"])
    for rows in result["scores"].values():
        assert set(rows) == outs | {"test"}
        assert all(0 <= rows[out]["auroc"] <= 1 for out in outs)
    some = {"residual[predicted]", "kernel_fraction[fixed, mean]", "kernel_at_x[many, min]"}
    assert {*some, "trace", "residual_ratio[nearest]", *baselines.NAMES} <= set(result["scores"])
    assert result["scores"]["knn_pixels"]["inverted"]["auroc"] > 0.9
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["milliseconds_an_image"]["leaf, predicted"] > 0
    assert "ms an image" in (tmp_path / "table.md").read_text()
    with Image.open(tmp_path / "examples.png") as image:
        assert min(image.size) > 100
    assert tables.verdict(result)[0] in ("holds", "holds in part", "does not hold")


def test_a_network_without_classes_is_trained_as_the_other_was(tmp_path):
    with jax.enable_x64(False):
        settings = zoo.TrainConfig(epochs=2, learning_rate=0.1, batch_size=120, track_per_epoch=1)
        model = zoo.MLP((64, 8, 10), rngs=nnx.Rngs(0))
        zoo.train(model, DIGITS, settings, out=tmp_path / "whole", progress=False)
        config = ood.Config(checkpoint=tmp_path / "whole", epochs=(1, 2), out=tmp_path)
        networks = ood.networks(config)
        rest, outside, others = ood.train_without(config, DIGITS, list(networks))
    assert set(networks) == set(others) == {"1", "2"}
    assert set(DIGITS.test_y) - {8, 9} == set(map(int, rest.class_names))
    assert len(outside) == np.isin(DIGITS.test_y, (8, 9)).sum()
    assert others["1"](rest.test_x[0]).shape == (8,)
    results = {
        epoch: {"scores": {"a": {"x": {"auroc": score}}}, "mean_trace": trace, "accuracy": 1.0}
        for epoch, score, trace in (("1", 0.7, 2.0), ("2", 0.6, 1.0))
    }
    told = ood._training(config, results)
    assert told["best_epoch"] == {"a": "1"}
    assert told["most_trace"] == "1"
    assert told["peak_epoch_of_training"] in (1, 2)
