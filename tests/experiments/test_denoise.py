"""Denoising is measured against libraries, on training images it is tuned on, and told as found."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import restoration
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.decomposition import PCA

from experiments.denoise import __main__ as denoise
from experiments.denoise import classical
from experiments.denoise.report import LEAF, label, paired, training_verdict
from experiments.harness.command import perform
from foliax import zoo


def cells_of(report):
    """Return the text of a report, a bar in place of tags."""
    return re.sub(r"(\s*<[^>]*>\s*)+", " | ", report.read_text())


@pytest.fixture(scope="module")
def pixels():
    data = zoo.load_digits()
    return np.asarray(data.to_pixels(data.train_x[:40]), np.float64)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Return the output folder of a small run, in float32 as users run it, and its results."""
    out, training = tmp_path_factory.mktemp("denoise"), tmp_path_factory.mktemp("training")
    trained = zoo.load("digits_mlp")
    halved = jax.tree.map(lambda leaf: leaf / 2, trained)  # a quarter of the logits' Jacobian
    for epoch, model in enumerate((halved, trained), start=1):
        zoo.save(training, model, epoch=epoch, info={"training": {"dataset": "digits"}})
    command = denoise.Command(
        checkpoint=training, epochs=(2, 1),
        pairs=6, tuning=6, references=2, steps=15, out=out, quick=True,
        gaussian=(0.1, 0.4), salt=(0.2,), blur=(1.0,),
    )  # fmt: skip
    with jax.enable_x64(False):
        return out, perform(command, denoise.measure_command, title="Denoising by data leaves")


@pytest.mark.slow
def test_what_is_promised_is_written(smoke):
    out, results = smoke
    assert set(results["claims"]) == {"S9-gaussian", "S9-salt", "S9-blur", "S9-training"}
    assert results["claims"] == json.loads((out / "results.json").read_text())["claims"]
    for claim in results["claims"].values():
        assert claim["outcome"] in ("holds", "holds in part", "does not hold")
        for picture in claim["pictures"]:
            with Image.open(out / picture["file"]) as image:
                assert image.width > 400
    report = cells_of(out / "report.html")
    assert "| PSNR at 0.1 | SSIM | classified right | PSNR at 0.4 |" in report
    assert "support vector machine" in report
    for method in LEAF:
        assert report.count(f"| {label(method)} |") == 3, method
    assert "| random planes | n/a | n/a |" in report
    assert report.count("| Richardson-Lucy, blur known |") == 1


@pytest.mark.slow
def test_every_image_is_kept_and_the_table_holds_their_means(smoke):
    out, results = smoke
    paths = json.loads((out / "paths.json").read_text())
    assert len(paths["test_image"]) == 6
    first = paths["measured"][0]
    assert (first["noise"], first["strength"]) == ("gaussian", 0.1)
    numbers = results["claims"]["S9-gaussian"]["numbers"]
    both = first["methods"] | first["leaves"]["e2"]
    for key, method in (("closest_mean", "closest_mean"), ("noisy_input", "noisy input")):
        for measure in ("psnr", "ssim", "classified_right"):
            mean = np.mean(both[method][measure])
            assert len(both[method][measure]) == 6
            assert mean == pytest.approx(numbers["method"][key]["s0"][measure], rel=1e-5)
    # 0.1 of the pixel range, in units of its deviation, 0.376
    assert numbers["noise"]["s0"] == pytest.approx(0.1 / 0.376, rel=0.1)
    assert numbers["gain"]["s0"]["closest_over_reference"]["mean"] == pytest.approx(
        numbers["method"]["closest"]["s0"]["psnr"] - numbers["method"]["nearest"]["s0"]["psnr"],
        abs=1e-4,
    )


@pytest.mark.slow
def test_shares_that_make_two_ways_one_give_one_result(smoke):
    """No share along and none across leaves the references; their blend is at least as good."""
    methods = smoke[1]["claims"]["S9-salt"]["numbers"]["method"]
    assert methods["nearest"]["s0"]["psnr"] <= 60
    chosen = smoke[1]["claims"]["S9-salt"]["numbers"]["leaf"]["s0"]["chosen"]
    assert set(chosen["closest_apart"]) == {"k", "along", "across"}
    assert chosen["closest_mean"]["k"] in (1, 2)


@pytest.mark.slow
def test_epochs_are_compared_and_the_tables_are_of_the_largest_trace(smoke):
    out, results = smoke
    every = results["claims"]["S9-training"]["numbers"]["network"]
    assert set(every) == {"plane", "e1", "e2"}
    assert every["e1"]["mean_trace"] < every["e2"]["mean_trace"]
    assert "epoch 2 of" in results["setting"]["network"]
    assert every["plane"]["mean_trace"] is None
    report = cells_of(out / "report.html")
    assert "| epoch 1 |" in report
    assert "with the largest mean trace, epoch 2" in report


@pytest.mark.parametrize(
    ("networks", "outcome"),
    [
        ({"e1": (0.3, 0.2, 5.0), "e2": (0.1, 0.1, 1.0)}, "holds"),
        ({"e1": (0.3, 0.2, 1.0), "e2": (0.1, 0.1, 5.0)}, "does not hold"),
        ({"e1": (0.3, 0.1, 1.0), "e2": (0.1, 0.2, 5.0)}, "holds in part"),
        ({"e": (0.3, 0.2, 1.0)}, "holds"),
        ({"e": (-0.3, -0.2, 1.0)}, "does not hold"),
    ],
)
def test_the_verdict_on_training_follows_the_numbers(networks, outcome):
    noise = np.array([-0.01, 0.01] * 10)
    gains = {
        name: {"weak": weak + noise, "part": part - noise}
        for name, (weak, part, *_) in (networks | {"plane": (0.0, 0.0)}).items()
    }
    traces = {name: numbers[-1] for name, numbers in networks.items()}
    found, text = training_verdict(gains, traces)
    assert found == outcome
    assert ("epoch 1" in text) == (len(networks) > 1)


def test_measures_are_those_of_the_library(pixels):
    noisy = classical.corrupt(pixels, "gaussian", 0.3, seed=0)
    clipped = np.clip(noisy, 0, 1)
    psnr, ssim = classical.psnr(noisy, pixels), classical.ssim(noisy, pixels)
    for i in (0, 17):
        expected = peak_signal_noise_ratio(pixels[i], clipped[i], data_range=1)
        assert psnr[i] == pytest.approx(expected, rel=1e-12)
        expected = structural_similarity(pixels[i, ..., 0], clipped[i, ..., 0], data_range=1)
        assert ssim[i] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(classical.psnr(pixels, pixels), 60)


def test_noise_is_as_strong_as_it_says_and_the_same_each_time(pixels):
    white = classical.corrupt(pixels, "gaussian", 0.3, seed=0) - pixels
    assert white.std() == pytest.approx(0.3, rel=0.05)
    assert white.min() < -0.5  # not clipped
    salt = classical.corrupt(np.full((40, 8, 8, 1), 0.5), "salt", 0.2, seed=0)
    assert np.mean(salt != 0.5) == pytest.approx(0.2, abs=0.03)
    assert set(np.unique(salt)) == {0, 0.5, 1}
    blurred = classical.corrupt(pixels, "blur", 1.0, seed=0)
    assert blurred.std() < pixels.std()
    for noise in classical.NOISES:
        first, again = (classical.corrupt(pixels, noise, 0.3, seed=3) for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_baselines_are_called_and_not_rewritten(pixels):
    noisy = classical.corrupt(pixels[:2], "gaussian", 0.2, seed=0)
    denoisers = classical.denoisers(pixels)
    found = denoisers["total variation (Chambolle)"].apply(noisy, 0.1)[1, ..., 0]
    np.testing.assert_array_equal(
        found, restoration.denoise_tv_chambolle(noisy[1, ..., 0], weight=0.1)
    )
    found = denoisers["wavelets (BayesShrink)"].apply(noisy, 0.1)[1, ..., 0]
    told = restoration.denoise_wavelet(
        noisy[1, ..., 0], sigma=0.1, wavelet="haar", rescale_sigma=False
    )
    np.testing.assert_array_equal(found, told)
    fitted = PCA(6, svd_solver="full").fit(pixels.reshape(40, 64))
    codes = fitted.transform(noisy.reshape(2, 64))
    np.testing.assert_allclose(
        denoisers["PCA of the training set"].apply(noisy, 6).reshape(2, 64),
        fitted.inverse_transform(codes),
        atol=1e-10,
    )
    np.testing.assert_array_equal(denoisers["noisy input"].apply(noisy, None), noisy)
    for name, one in denoisers.items():
        turned = one.apply(noisy[::-1], one.grid[0])
        expected = one.apply(noisy, one.grid[0])
        np.testing.assert_allclose(turned[::-1], expected, atol=1e-12, err_msg=name)


def test_a_known_blur_is_undone(pixels):
    blurred = classical.corrupt(pixels[:4], "blur", 0.7, seed=0)
    sharp = classical.deconvolution(0.7, (8, 8, 1)).apply(blurred, 10)
    assert (classical.psnr(sharp, pixels[:4]) > classical.psnr(blurred, pixels[:4])).all()


def test_a_parameter_is_tuned_to_the_highest_psnr(pixels):
    shifts = classical.Denoiser(lambda images, by: images + by, (-0.2, 0.0, 0.3, 0.4))
    assert shifts.tuned(0.5 * pixels, 0.5 * pixels + 0.3) == 0.3


def test_a_gain_comes_with_its_standard_error():
    gain = paired(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert gain["mean"] == 2
    assert gain["error"] == pytest.approx(1 / np.sqrt(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": (1,)}, "epoch=1 needs --checkpoint"),
        ({"tuning": 0}, "tuning must be in 1 … 1436, got 0"),
        ({"pairs": 361}, "pairs must be in 1 … 360"),
    ],
)
def test_errors_say_what_is_wrong(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        denoise.measure_command(denoise.Command(out=tmp_path, **options))
