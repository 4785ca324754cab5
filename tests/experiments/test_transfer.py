"""Data sets shown to one network: what they are made of, what is measured, and the command."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.harness.command import perform
from experiments.ood.baselines import outputs
from experiments.transfer import __main__ as transfer
from experiments.transfer import comparison
from experiments.transfer import sets as transfer_sets
from experiments.transfer.sets import Labelled, Wanted, in_shape, labelled_sets
from foliax import zoo

WANTED = Wanted(train=60, test=30, budget=0.1, seed=3)
COMMAND = transfer.Command(pairs=12, train=60, test=30, seed=3)


@pytest.fixture(scope="module", autouse=True)
def no_fashion():
    """Let Fashion-MNIST be missing, as it is on most machines, and small when it is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        load = zoo.load_dataset

        def without(name):
            if name != "digits":
                raise FileNotFoundError(f"{name!r} is not prepared")
            return load(name)

        patch.setattr(transfer_sets.zoo, "load_dataset", without)
        yield


@pytest.fixture(scope="module")
def shown(no_fashion):
    """Return the shipped network, its data, and the labelled sets."""
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        return model, data, labelled_sets(model, data, WANTED, ())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, no_fashion):
    """Return the folders of two small runs that must agree."""
    outs = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    with jax.enable_x64(False):
        for out in outs:
            command = replace(COMMAND, out=out)
            perform(command, transfer.measure_command, title="transfer")
    return outs


# --- the sets ----------------------------------------------------------------------------------


def test_own_images_come_first_and_are_those_of_the_command(shown):
    _, data, (sets, left_out) = shown
    assert next(iter(sets)) == "own"
    places = replace(COMMAND, pairs=30).starts(len(data.test_x))
    np.testing.assert_array_equal(sets["own"].test_x, data.test_x[places])
    np.testing.assert_array_equal(sets["own"].test_y, data.test_y[places])
    assert left_out == {"fashion_mnist": "'fashion_mnist' is not prepared"}
    for labelled in sets.values():
        assert labelled.train_x.shape == (60, 8, 8, 1)
        assert labelled.test_x.shape == (30, 8, 8, 1)
        assert labelled.train_x.dtype == labelled.test_x.dtype == np.float32
        assert labelled.train_y.shape == (60,)
        assert np.isfinite(labelled.train_x).all()
        assert labelled.says


def test_changes_are_what_they_say(shown):
    _, data, (sets, _) = shown
    own = sets["own"]
    np.testing.assert_array_equal(sets["mirrored"].test_x, own.test_x[:, :, ::-1])
    np.testing.assert_array_equal(sets["turned"].test_x[:, 0, :, 0], own.test_x[:, :, -1, 0])
    pixels = np.asarray(data.to_pixels(own.test_x))
    np.testing.assert_allclose(data.to_pixels(sets["inverted"].test_x), 1 - pixels, atol=1e-6)
    for part in ("train_x", "test_x"):
        mine, permuted = (getattr(sets[name], part).reshape(-1, 64) for name in ("own", "permuted"))
        order = [
            int(np.argmin(np.abs(mine - column[:, None]).sum(axis=0))) for column in permuted.T
        ]
        np.testing.assert_array_equal(mine[:, order], permuted)
    for name, sigma in {"noisy": 0.1, "very noisy": 0.4}.items():
        noise = np.asarray(data.to_pixels(sets[name].test_x)) - pixels
        assert noise.std() == pytest.approx(sigma, rel=0.1)
    assert (
        np.abs(np.diff(sets["blurred"].test_x, axis=1)).mean()
        < np.abs(np.diff(own.test_x, axis=1)).mean()
    )
    for name in set(sets) - {"photographs"}:
        np.testing.assert_array_equal(sets[name].train_y, own.train_y)


def test_the_adversarial_step_has_its_length_and_lowers_the_label(shown):
    model, _, (sets, _) = shown
    own, moved = sets["own"], sets["adversarial"]
    step = (moved.test_x - own.test_x).reshape(30, -1)
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), 0.1 * 8, rtol=1e-4)
    before, after = (
        outputs(jax.tree_util.Partial(log_p, model), xs)[np.arange(30), own.test_y]
        for xs in (own.test_x, moved.test_x)
    )
    assert np.all(after < before)


def log_p(model, x):
    return jax.nn.log_softmax(model(x))


def test_images_are_brought_into_shape():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(size=(2, 8, 8, 1))
    padded = in_shape(pixels, (28, 28, 1), pad=True)
    np.testing.assert_allclose(padded[:, 10:18, 10:18], pixels, rtol=1e-6)
    assert padded.sum() == pytest.approx(pixels.sum(), rel=1e-5)
    assert in_shape(pixels, (28, 28, 1)).shape == (2, 28, 28, 1)
    colour = np.broadcast_to(pixels, (2, 8, 8, 3))
    np.testing.assert_allclose(in_shape(colour, (8, 8, 1)), pixels, atol=1e-6)
    np.testing.assert_allclose(in_shape(pixels, (8, 8, 3)), colour, rtol=1e-6)


@pytest.fixture(scope="module")
def larger(no_fashion):
    """Return 28×28 data of noise, how little is wanted, and the sets that others make."""
    rng = np.random.default_rng(0)
    part = rng.uniform(size=(50, 28, 28, 1)), np.arange(50) % 10
    data = zoo.from_arrays("other", part, part, class_names=tuple("abcdefghij"))
    wanted = WANTED._replace(train=8, test=4)
    return data, wanted, transfer_sets.foreign(data, wanted, ())


def test_a_larger_network_gets_digits_twice(larger):
    data, _, (sets, left_out) = larger
    assert set(sets) == {"digits", "digits, padded", "photographs"}
    assert left_out == {}
    digits = np.asarray(data.to_pixels(sets["digits, padded"].test_x))
    assert np.abs(digits[:, :10]).max() < 1e-6
    assert digits.max() == pytest.approx(1)


def test_padded_digits_are_changed_as_its_own_data_are(larger):
    data, wanted, (sets, _) = larger
    model = zoo.MLP((784, 10), rngs=nnx.Rngs(0))
    digits = sets["digits, padded"]
    found = transfer_sets.padded_versions(model, data, digits, wanted)
    changes = ("mirrored", "permuted", "noisy", "adversarial")
    assert list(found) == [f"padded, {change}" for change in changes]
    mirrored, permuted, _, adversarial = found.values()
    np.testing.assert_array_equal(mirrored.test_x, digits.test_x[:, :, ::-1])
    np.testing.assert_allclose(np.sort(permuted.test_x.ravel()), np.sort(digits.test_x.ravel()))
    for known in found.values():
        np.testing.assert_array_equal(known.test_y, digits.test_y)
    before, after = (jax.vmap(model)(xs) for xs in (digits.test_x, adversarial.test_x))
    predicted = jnp.argmax(before, axis=1)
    p, q = (jax.nn.softmax(logits)[jnp.arange(4), predicted] for logits in (before, after))
    assert np.all(np.asarray(q) < np.asarray(p))


def test_what_is_not_prepared_or_is_its_own_is_refused(shown):
    model, data, _ = shown
    with pytest.raises(ValueError, match="others must not name the network's own data, 'digits'"):
        labelled_sets(model, data, WANTED, ("digits",))
    with pytest.raises(FileNotFoundError, match="'kmnist' is not prepared"):
        transfer_sets.foreign(data, WANTED._replace(train=8, test=4), ("kmnist",))


# --- what is measured --------------------------------------------------------------------------


def test_a_last_layer_is_retrained_on_what_it_is_given():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    one_hot = np.eye(3)[labels] + 0.1 * rng.normal(size=(90, 3))
    accuracies = [
        comparison.retrained(
            comparison._pixels, Labelled(xs[:60], labels[:60], xs[60:], labels[60:], ""), seed=0
        )
        for xs in (one_hot, rng.normal(size=(90, 3)))
    ]
    assert accuracies[0] == 1
    assert accuracies[1] < 0.7


def test_an_untrained_network_has_the_same_architecture(shown):
    model, data, _ = shown
    other = comparison.untrained(model, 0)
    assert other.config == model.config
    seen = [outputs(zoo.penultimate(each), data.test_x[:5]) for each in (model, other)]
    assert seen[0].shape == seen[1].shape == (5, 48)
    assert np.abs(seen[0] - seen[1]).max() > 0.1


def test_comparison_ranks_the_sets_without_the_own():
    rng = np.random.default_rng(0)

    def made(shift, accuracy):
        values = np.sort(10 ** rng.normal(size=(400, 3)), axis=1)[:, ::-1] * 10**shift
        accuracies = {"retrained": accuracy, "untrained": 0.5, "pixels": 0.9, "as_it_is": None}
        return comparison.Measured(values, accuracies, shift, {})

    found = {"own": made(0, 0.2), "a": made(1, 0.9), "b": made(2, 0.8), "c": made(-3, 0.7)}
    numbers = comparison.compare(found)
    ranks = numbers["rank_correlation"]
    assert ranks["spectral"]["retrained"]["rho"] == pytest.approx(-1)
    assert ranks["trace"]["over_untrained"]["rho"] == pytest.approx(-1)
    assert ranks["pixels"]["retrained"]["rho"] == pytest.approx(0.5)
    assert np.isnan(ranks["spectral"]["pixels"]["rho"])  # all alike
    away = [numbers["sets"][name]["away"]["spectral"] for name in found]
    np.testing.assert_allclose(away, [0, 1, 2, 3], atol=0.1)
    assert numbers["num_ranked"] == 3
    assert numbers["num_changed"] == 0
    assert numbers["halves_of_own"] < 0.2


# --- the command -------------------------------------------------------------------------------


def test_everything_is_written(smoke):
    out = smoke[0]
    claim = json.loads((out / "results.json").read_text())["claims"]["transfer"]
    numbers = claim["numbers"]
    names = {"own", "mirrored", "turned", "inverted", "permuted", "noisy", "very noisy",
             "adversarial", "blurred", "photographs"}  # fmt: skip
    assert set(numbers["sets"]) == set(numbers["means"]) == names
    assert numbers["sets"]["own"]["away"]["spectral"] == 0
    assert numbers["num_ranked"] == 9
    assert numbers["num_changed"] == 8
    for row in numbers["sets"].values():
        assert row["num_spectra"] == 12
        assert 0 <= row["accuracy"]["retrained"] <= 1
        assert np.all(np.diff(row["log_eigenvalues"], axis=0) >= 0)
    assert "Left out: fashion_mnist ('fashion_mnist' is not prepared)." in claim["verdict"]
    assert "rank correlation" in (out / "report.html").read_text()
    for picture in claim["pictures"]:
        with Image.open(out / picture["file"]) as image:
            assert image.width > 1000
    spectra = json.loads((out / "paths.json").read_text())["transfer"]
    assert {each["name"] for each in spectra} == names
    assert np.shape(spectra[0]["log_eigenvalues"]) == (12, 9)
    assert (out / "run.json").stat().st_size > 100


def test_a_run_repeats(smoke):
    for file in ("results.json", "paths.json", "report.html"):
        assert (smoke[0] / file).read_bytes() == (smoke[1] / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 3, "pairs": 1}, "start names one image, and data sets are compared; got 3"),
        ({"budget": -1.0}, "budget must be a number >= 0, got -1.0"),
        ({"train": 10}, "train must be at least 40, got 10"),
        ({"pairs": 1}, "pairs must be at least 2, got 1"),
    ],
)
def test_a_command_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        replace(COMMAND, **options).checked()


def test_quick_is_smaller():
    quick = transfer.Command(quick=True).checked()
    assert (quick.pairs, quick.train, quick.test) == (40, 300, 100)
    assert transfer.Command(quick=True, pairs=5).checked().pairs == 5
