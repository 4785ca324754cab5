"""The main job runs at quick size, writes what it promises, and quotes only what it measured."""

import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import dynamics, reproduce
from experiments.harness import noise
from experiments.harness.pictures import caption
from experiments.harness.populations import live_rows
from experiments.harness.report import look_up, outcome, plain, section, write_json
from foliax import zoo

CLAIMS = ("S1", "S2", "S3", "S4", "S5", "S6", "S7")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return the output folder of a quick run, in float32 as users run it, and its results."""
    out = tmp_path_factory.mktemp("reproduce")
    with jax.enable_x64(False):
        results = reproduce.run(reproduce.Config(dataset="digits", epochs=2, out=out, quick=True))
    return out, results


class Page(HTMLParser):
    """Collects what a report quotes and shows."""

    def __init__(self, text):
        super().__init__()
        self.quoted, self.pictures, self._path = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "data":
            self._path = dict(attrs)["value"]
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        if self._path:
            self.quoted[self._path] = data
            self._path = None


@pytest.mark.slow
def test_everything_promised_is_written(quick):
    out, results = quick
    assert tuple(results["claims"]) == CLAIMS
    for name in ("results.json", "run.json", "report.html"):
        assert (out / name).stat().st_size > 100
    for claim in results["claims"].values():
        assert claim["outcome"] in ("holds", "holds in part", "does not hold")
        for picture in claim["pictures"]:
            with Image.open(out / picture["file"]) as image:
                assert min(image.size) > 100
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_results_hold_all_that_the_report_quotes(quick):
    out, _ = quick
    text = (out / "report.html").read_text()
    results = json.loads((out / "results.json").read_text())
    page = Page(text)
    assert len(page.quoted) > 80
    for path, shown in page.quoted.items():
        name, _, rest = path.partition(".")
        value = look_up(results["claims"][name]["numbers"], rest)
        if value is None:
            assert shown == "n/a"
        else:
            assert float(shown) == pytest.approx(value, rel=5e-3)
    for claim in results["claims"].values():
        assert re.sub("[\"'&<>]", "", claim["verdict"])[:60] in re.sub(
            "&[#a-z0-9]+;", "", text
        ).replace("'", "")
    assert results["choice"]["reason"] in text
    for file in page.pictures:
        assert (out / file).exists()


@pytest.mark.slow
def test_numbers_are_what_the_geometry_promises(quick):
    claims = quick[1]["claims"]
    ranks = claims["S1"]["numbers"]
    assert ranks["bound"] == 9
    assert ranks["rank"]["largest"] <= 9
    assert ranks["rank_dense"]["largest"] <= 9
    assert ranks["least_cliff"] > 1e6
    kernel = claims["S6"]["numbers"]
    exact, published = kernel["exact"], kernel["published"]
    assert exact["drift_of_p"]["median"] <= published["drift_of_p"]["median"]
    assert exact["drift_of_p"]["largest"] < 1e-2
    assert exact["label_kept"] >= published["label_kept"]
    assert exact["box_excess_pixels"]["largest"] < 1e-5
    assert kernel["strip"]["exact"]["iteration"][0] == 0
    for name in ("S3", "S4"):
        for scheme in ("exact", "published"):
            walk = claims[name]["numbers"][scheme]
            assert sum(walk["ended"].values()) == pytest.approx(1)
            assert 0 < walk["residual"]["least"] <= walk["residual"]["median"] <= 1
    level = claims["S5"]["numbers"]
    assert level["noise"]["leaf"]["median"] < level["noise"]["kernel"]["median"]


@pytest.mark.slow
def test_run_says_how_it_came_about(quick):
    run = json.loads((quick[0] / "run.json").read_text())
    assert {"command", "versions", "device", "seed", "seconds", "revision"} <= run.keys()
    assert run["versions"]["jax"] == jax.__version__
    assert set(CLAIMS) < run["seconds"].keys()


@pytest.mark.slow
def test_a_run_from_checkpoints_repeats_every_number(quick, tmp_path):
    out, _ = quick
    config = reproduce.Config(
        dataset="digits", epochs=2, out=tmp_path, checkpoint=str(out), quick=True
    )
    with jax.enable_x64(False):
        reproduce.run(config)
    assert (tmp_path / "results.json").read_bytes() == (out / "results.json").read_bytes()
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoint_must_exist(tmp_path):
    config = reproduce.Config(out=tmp_path, checkpoint=str(tmp_path / "nowhere"), quick=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        reproduce.run(config)


def history(trace, accuracy):
    steps = np.arange(len(trace))
    names = ("loss", "trace_mean", "trace_low", "trace_high", "rank_mean")
    lists = {name: np.asarray(trace, float) for name in names}
    return zoo.History(
        steps=steps,
        ranks=np.ones((len(trace), 3), int),
        epoch_steps=steps[1:],
        train_loss=np.ones(len(accuracy)),
        test_accuracy=np.asarray(accuracy),
        **lists,
    )


def test_choice_is_after_the_peak_and_accurate():
    choice = dynamics.choose(history([1, 2, 3, 2, 1], [0.95, 0.8, 0.91, 0.99]))
    assert (choice.epoch, choice.step) == (3, 3)
    assert "peak" in choice.reason


def test_choice_falls_back_on_the_most_accurate_and_says_so():
    choice = dynamics.choose(history([1, 2, 3], [0.5, 0.4]))
    assert choice.epoch == 1
    assert "none ends at or after the peak" in choice.reason


def test_json_is_sorted_rounded_and_has_no_nan(tmp_path):
    value = {"b": np.float32(1 / 3), "a": [np.nan, np.int32(2), True], "c": np.arange(2)}
    text = write_json(tmp_path / "x.json", value).read_text()
    assert json.loads(text) == {"a": [None, 2, True], "b": 0.333333, "c": [0, 1]}
    assert text.index('"a"') < text.index('"b"')
    with pytest.raises(TypeError, match="cannot write set"):
        plain({1})


def test_captions_and_rows():
    assert caption(125, 1, 0.92937, ("zero", "one")) == "iteration 125\nlabel one\np = 0.9294"
    path = type("P", (), {"steps": np.array([0, 5, 10, 12, 12]), "num_steps": np.array(12)})
    assert live_rows(path) == [0, 1, 2, 3]
    assert live_rows(path, 2) == [0, 3]


@pytest.mark.parametrize(
    ("share", "name"), [(1.0, "holds"), (0.34, "holds in part"), (0.0, "does not hold")]
)
def test_outcome_of_a_share(share, name):
    assert outcome(share) == name


def test_section_refuses_to_quote_what_was_not_measured():
    found = section(
        title="t", claim="c", verdict=("holds", "v"), numbers={"a": {"b": 1}}, pictures=[]
    )
    assert look_up(found["numbers"], "a.b") == 1
    with pytest.raises(KeyError):
        look_up(found["numbers"], "a.c")


def test_laplacian_reads_white_noise_and_ignores_slopes():
    x = np.linspace(0, 1, 32)
    slope = (x[:, None] + 2 * x)[None, ..., None]
    assert noise.laplacian(slope)[0] == pytest.approx(0, abs=1e-12)
    white = np.random.default_rng(0).normal(0, 0.1, (20, 32, 32, 1))
    # 20 · 900 filtered pixels: the mean reading is known to about 1 %.
    assert noise.laplacian(slope + white).mean() == pytest.approx(0.1, rel=0.03)


def test_calibration_gives_back_the_noise_added():
    data = zoo.load_digits()
    known = noise.calibrate(data, 0, 360, (0.0, 0.1, 0.2, 0.3))
    noisy = data.noisy(data.test_x, 0.15, jax.random.key(9))
    reading = noise.whole_readings(data.to_pixels(noisy)).mean()
    assert known.sigma(reading) == pytest.approx(0.15, abs=0.02)


def test_quick_sizes_are_smaller():
    data = zoo.load_digits()
    small, full = (reproduce.Config(seed=3, quick=quick).sizes(data) for quick in (True, False))
    assert small.pairs < full.pairs
    assert small.steps < full.steps
    assert small.seed == full.seed == 3
