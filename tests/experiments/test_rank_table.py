"""The slides' table, with digits measured and the other lines given, made or missing."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import rank_table
from foliax import zoo


def make(out, **options):
    """Return the results of a quick run, in float32 as users run it."""
    with jax.enable_x64(False):
        return rank_table.make_table(rank_table.Command(out=out, quick=True, **options))


def imagenet_results(folder, images):
    file = folder / "results.json"
    file.write_text(json.dumps({"claims": {"S1": {"numbers": {"images": images}}}}))
    return file


def photograph(rank):
    counts = {"default": rank, "1e-2": 5, "1e-4": 100, "1e-6": 300}
    return {"rank": counts, "dimension": {"default": 454}, "trace": 18.4}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Return folder and results: digits measured, ImageNet given, the rest missing."""
    given, out = (tmp_path_factory.mktemp(name) for name in ("imagenet", "table"))
    images = {"cat": photograph(307), "cup": photograph(345), "rocket": {"trace": 273.0}}
    file = imagenet_results(given, images)
    return out, make(out, imagenet=file)


def test_every_data_set_of_the_slides_has_a_line(table):
    out, results = table
    rows = results["rows"]
    bounds = {name: (row["n"], row["num_classes"], row["bound"]) for name, row in rows.items()}
    assert bounds == {
        "digits": (64, 10, 9),
        "mnist": (784, 10, 9),
        "fashion_mnist": (784, 10, 9),
        "cifar10": (3072, 10, 9),
        "cifar100": (3072, 100, 99),
        "imagenet": (150528, 1000, 999),
    }
    text = (out / "table.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert rows.keys() < lines.keys()
    assert json.loads((out / "results.json").read_text()) == results
    assert json.loads((out / "run.json").read_text())["seconds"]["digits"] > 0
    for name, key in (("cifar10", "missing"), ("cifar100", "network")):
        wanted = f"needs the internet: python -m experiments.train --dataset {name}"
        assert wanted in rows[name][key]
        assert wanted in lines[name]
    assert rows["cifar100"]["network"].startswith("colour_cnn, untrained")
    assert 9 < rows["cifar100"]["rank"]["default"]["largest"] <= 99
    assert rows["mnist"]["network"] == "mnist_cnn, as shipped"
    assert rows["mnist"]["rank"]["default"]["least"] == 9
    assert "--fashion-mnist DIR" in lines["fashion_mnist"]
    assert "pip install 'foliax[imagenet]'" in rank_table.missing("imagenet")


def test_digits_are_measured(table):
    row = table[1]["rows"]["digits"]
    assert row["num_inputs"] == 8
    tightest = [row["rank"][key]["median"] for key in ("1e-2", "1e-4", "1e-6", "default")]
    assert tightest == sorted(tightest)
    assert row["rank"]["default"]["largest"] == row["dimension"]["least"] == 9
    assert row["rank_dense"]["largest"] == 9  # formed without the factor
    assert 0 < row["trace"]["least"] < row["trace"]["largest"]


def test_imagenet_results_are_taken_over(table):
    out, results = table
    row = results["rows"]["imagenet"]
    assert row["num_inputs"] == 2  # those with an exact factor
    assert row["rank"]["default"]["largest"] == 345
    assert row["dimension"]["median"] == 454
    assert "345 of 999" in results["verdict"]
    assert "| 326 (307–345) " in (out / "table.md").read_text()


def test_results_do_not_depend_on_the_run(table, tmp_path):
    again = make(tmp_path)["rows"]["digits"]
    assert again == table[1]["rows"]["digits"]


def test_a_training_is_read(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).random((4, 28, 28, 1))
    names = tuple("0123456789")
    data = zoo.from_arrays("mnist", *[(pixels, np.arange(4))] * 2, class_names=names)
    model = zoo.CNN((28, 28, 1), 10, rngs=nnx.Rngs(0))
    monkeypatch.setattr(zoo, "load_dataset", {"mnist": data}.__getitem__)
    zoo.save(tmp_path / "run", model, epoch=3, info={"training": {"dataset": "mnist"}})
    command = rank_table.Command(quick=True, mnist=tmp_path / "run", cifar10=tmp_path / "run")
    row = rank_table._row("mnist", command)
    assert (row["network"], row["num_inputs"]) == ("CNN 28-28-1, relu, epoch 3 of run", 4)
    with pytest.raises(ValueError, match="a training on cifar10, got one on mnist"):
        rank_table._row("cifar10", command)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rank_table._row("mnist", replace(command, mnist=tmp_path / "nowhere"))


def test_other_files_are_refused(tmp_path):
    for text in ("{}", "[1]", "no json"):
        file = tmp_path / "results.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"must be a results.json of experiments\.imagenet"):
            rank_table.imagenet_row(file)
    bare = imagenet_results(tmp_path, {"cat": {"trace": 1.0}})
    assert "without exact factors" in rank_table.imagenet_row(bare)["missing"]
