"""Every command of the slides runs small, alone and over a population, and writes what it says."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image

from experiments import data_leaf, dynamics, kernel, leaf_map, noise_leaf, noise_level
from experiments.harness import command
from experiments.harness.networks import load, papers_network
from experiments.harness.populations import box_excess
from experiments.harness.run import running
from experiments.harness.study import Sizes, Study, WalkCommand, places
from foliax import zoo

# The same lengths in all, so that they share compiled programs.
SIZES = {"steps": 20, "save_every": 5}
LEAF = data_leaf.Command(pairs=2, **SIZES)
COMMANDS = {
    "data_leaf": (data_leaf, LEAF, "S3"),
    "flipped": (data_leaf, replace(LEAF, pairs=1, flip=True, start=3), "S4"),
    "noise_level": (noise_level, WalkCommand(pairs=2, **SIZES), "S5"),
    "kernel": (kernel, kernel.Command(pairs=2, **SIZES), "S6"),
    # 0.09 of noise on digits are twenty kernel steps.
    "noise_leaf": (noise_leaf, noise_leaf.Command(noise=0.09, start=3, end=5, **SIZES), "S7"),
}


@pytest.fixture(scope="module", params=COMMANDS)
def ran(request, tmp_path_factory):
    """Return the name of a command, its output folder, the claim, and what it returned."""
    module, options, claim = COMMANDS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    with jax.enable_x64(False):
        results = command.perform(
            replace(options, out=out), module.measure_command, title=request.param
        )
    return request.param, out, claim, results


def test_a_command_writes_numbers_pictures_and_every_point(ran):
    name, out, claim, results = ran
    written = json.loads((out / "results.json").read_text())
    assert written["setting"]["test_accuracy"] == pytest.approx(0.944, abs=0.01)
    assert written["setting"]["pairs"] == COMMANDS[name][1].pairs
    section = written["claims"][claim]
    assert section["outcome"] == results["claims"][claim]["outcome"]
    for picture in section["pictures"]:
        with Image.open(out / picture["file"]) as image:
            assert min(image.size) > 100
    for file in ("run.json", "report.html"):
        assert (out / file).stat().st_size > 100
    paths = json.loads((out / "paths.json").read_text())[claim]
    kinds = {path["kind"] for path in paths}
    assert len(paths) == len(kinds) * COMMANDS[name][1].pairs
    assert len(kinds) >= 2
    for path in paths:
        assert path["step"][0] == 0
        assert path["step"][-1] == path["num_steps"]
        assert len({len(path[key]) for key in ("step", "label", "probability", "noise")}) == 1
        assert all(0 < p <= 1 for p in path["probability"])


@pytest.mark.parametrize("ran", ["data_leaf"], indirect=True)
def test_a_population_says_how_walks_ended(ran):
    *_, found = ran
    for scheme in ("exact", "published"):
        numbers = found["claims"]["S3"]["numbers"][scheme]
        assert sum(numbers["ended"].values()) == pytest.approx(1)
        left = numbers["not_arrived"]
        assert left["count"] == 2
        assert 0 < left["residual"]["median"] < 1
        assert 0 <= left["tangent_fraction"]["median"] <= 1
        assert numbers["noise"]["estimator"] == "Laplacian"
        assert numbers["noise"]["along"]["step"][0] == 0
        assert numbers["drift_of_p"]["median"] > 0


def test_a_pair_is_the_one_that_is_named():
    data = zoo.load_digits()
    study = Study(None, data, Sizes(pairs=1, start=3, end=17))
    xs, targets = study.pair()
    np.testing.assert_array_equal(xs[0], data.test_x[3])
    np.testing.assert_array_equal(targets[0], data.test_x[17])
    _, flipped = study.pair("mirrored")
    np.testing.assert_array_equal(flipped[0], data.test_x[17][:, ::-1])
    starts, ends = places(data, replace(study.sizes, end=None), mirrored=True)
    assert starts.tolist() == [3]
    assert data.test_y[ends[0]] in (2, 3, 4, 5, 6, 7, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 2}, "name one pair, got them for 2"),
        ({"start": 360}, r"start must be in 0 … 359"),
        ({"start": None, "end": None, "pairs": 300}, "fewer for 360 test images, got 300"),
    ],
)
def test_pairs_that_cannot_be_are_refused(change, message):
    sizes = replace(Sizes(pairs=1, start=3, end=17), **change)
    with pytest.raises(ValueError, match=message):
        places(zoo.load_digits(), sizes)


def test_starts_are_drawn_or_named():
    options = command.Command(pairs=3, seed=1)
    assert len(set(options.starts(360).tolist())) == 3
    leaf, _ = places(zoo.load_digits(), Sizes(pairs=3, seed=1))
    np.testing.assert_array_equal(options.starts(360), leaf)
    assert replace(options, pairs=1, start=7).starts(360).tolist() == [7]
    with pytest.raises(ValueError, match="start names one image, got it for 3"):
        replace(options, start=7).starts(360)


def test_the_command_line_takes_images_for_pairs():
    options = tyro.cli(kernel.Command, args=["--images", "4", "--dataset", "digits"])
    assert (options.pairs, options.dataset) == (4, "digits")


def test_noise_grows_with_the_size_of_an_image():
    grey, colour = (zoo.load_digits(), colourful())
    few = noise_leaf.noise_steps(grey, 0.2, step=0.1, save_every=5)
    many = noise_leaf.noise_steps(colour, 0.2, step=0.1, save_every=5)
    assert few % 5 == many % 5 == 0
    assert few < many


def test_the_map_of_the_leaf_has_its_start_in_the_middle(tmp_path):
    loaded = load()
    model, data, xs = loaded.model, loaded.dataset, loaded.dataset.test_x[[3]]
    with jax.enable_x64(False):
        found, labels, p = leaf_map.run(model, data, tmp_path, xs, half=1, spacing=0.5)
        (vectors,) = leaf_map.eigenpairs(model, xs)[1]
        points = leaf_map.survey(model, data, xs[0], vectors, half=1, spacing=0.5)
    assert labels.shape == p.shape == (1, 3, 3)
    np.testing.assert_array_equal(points[1, 1], xs[0])
    steps = np.linalg.norm((points[:, 1] - points[1, 1]).reshape(3, -1), axis=1)
    np.testing.assert_allclose(steps, [0.5, 0, 0.5], rtol=0.1)  # the path may bend
    assert found["numbers"]["nearest_over_start"]["least"] > 0
    assert {path.name for path in tmp_path.iterdir()} >= {
        "leaf_map.png", "eigenvectors.png", "spectrum.png",
    }  # fmt: skip


def test_dense_eigenvalues_show_the_cliff():
    values = leaf_map.dense_eigenvalues(zoo.load("digits_mlp"), zoo.load_digits().test_x[:1])[0][0]
    assert values.shape == (64,)
    assert values[8] > 1e6 * np.abs(values[9:]).max()


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Return the folder of a training of two epochs."""
    out = tmp_path_factory.mktemp("training")
    model = zoo.MLP((64, 8, 10), rngs=nnx.Rngs(0))
    config = zoo.TrainConfig(epochs=2, track_per_epoch=2, reference_size=16)
    with jax.enable_x64(False):
        zoo.train(model, zoo.load_digits(), config, out=out, progress=False)
    return out


def test_dynamics_follows_test_images_over_the_epochs(training, tmp_path):
    options = command.Command(checkpoint=training, pairs=3, out=tmp_path)
    with jax.enable_x64(False):
        results = command.perform(options, dynamics.measure_command, title="dynamics")
    measured = results["claims"]["S2"]["numbers"]["test_images"]
    assert list(measured) == ["1", "2"]
    assert measured["1"]["rank"]["largest"] <= 9
    (first, *rest) = json.loads((tmp_path / "paths.json").read_text())["S2"]
    assert len(rest) == 2
    assert first["epoch"] == [1, 2]
    assert len(first["trace"]) == len(first["probability"]) == 2
    assert (tmp_path / "dynamics_test.png").exists()


def test_an_epoch_is_loaded_with_its_data(training):
    loaded = load(checkpoint=training, epoch=1)
    assert loaded.dataset.name == "digits"
    assert loaded.network == f"MLP 64-8-10, relu, epoch 1 of {training.name}"
    newest = load("digits", checkpoint=training)
    assert newest.network.endswith(f"epoch 2 of {training.name}")
    different = np.asarray(newest.model.layers[0].kernel) != np.asarray(
        loaded.model.layers[0].kernel
    )
    assert different.any()


def test_weights_of_pytorch_are_loaded(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"0.weight": (48, 64), "0.bias": (48,), "2.weight": (10, 48), "2.bias": (10,)}
    weights = {name: rng.standard_normal(shape) for name, shape in sizes.items()}
    np.savez(tmp_path / "mlp.npz", **weights)
    model, data, network = load("digits", weights=tmp_path / "mlp.npz")
    assert (data.name, network) == ("digits", "mlp.npz")
    np.testing.assert_allclose(np.asarray(model.layers[1].kernel), weights["2.weight"].T, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset": "fashion_mnist"}, ValueError, r"--checkpoint .* --weights, or --model"),
        ({"epoch": 1}, ValueError, "epoch=1 needs --checkpoint"),
        ({"checkpoint": "nowhere"}, FileNotFoundError, "does not exist"),
        ({"checkpoint": "a", "weights": "b.npz"}, ValueError, "--weights, got both, .*a and b.npz"),
    ],
)
def test_networks_that_are_not_there_are_refused(options, error, message, tmp_path):
    if "checkpoint" in options:
        options = options | {"checkpoint": tmp_path / options["checkpoint"]}
    with pytest.raises(error, match=message):
        load(**options)


def test_a_training_on_other_data_is_refused(training):
    with pytest.raises(ValueError, match="must hold a training on mnist, got one on digits"):
        load("mnist", checkpoint=training)


def test_what_would_fail_late_is_refused_at_once():
    data = zoo.load_digits()
    same = Sizes(pairs=1, start=3, end=3)
    with pytest.raises(ValueError, match="start and end must be two images, got 3 for both"):
        places(data, same)
    assert places(data, same, mirrored=True) == (3, 3)
    for steps in ("steps", "drift_steps", "noise_steps"):
        with pytest.raises(ValueError, match="save_every must divide the number of steps, 20, got"):
            Sizes(**{"steps": 0, "drift_steps": 0, "noise_steps": 0, steps: 20}, save_every=50)


def test_weights_for_colour_get_images_as_the_papers_code_makes_them(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((20, 32, 32, 3)), np.arange(20) % 10
    data = zoo.from_arrays(
        "cifar10", (pixels, labels), (pixels, labels), class_names=tuple("abcdefghij")
    )
    monkeypatch.setattr(zoo, "load_dataset", lambda _: data)
    monkeypatch.setattr(zoo, "load_torch", lambda model, _: model)
    found = load("cifar10", weights=tmp_path / "papers.npz")
    np.testing.assert_allclose(found.dataset.test_x, (pixels - 0.5) / 0.5, atol=1e-5)


def test_another_checkpoint_compiles_nothing(training, tmp_path):
    """Of all epochs of a training, populations run in the same programs."""
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: counted.append(event) if "backend_compile" in event else None
    )
    sizes = Sizes(pairs=2, steps=20, drift_steps=20, noise_steps=0)

    def reproduce(epoch):
        with jax.enable_x64(False), running("test", tmp_path):
            model, data, _ = load(checkpoint=training, epoch=epoch)
            study = Study(model, data, sizes)
            data_leaf.measure(study, "exact", "test")
            kernel.measure(study, "exact")
        return len(counted)

    first = reproduce(1)
    assert first > 0
    assert reproduce(2) == first


def colourful():
    """Return a small data set of colour, whose channels differ in mean and deviation."""
    rng = np.random.default_rng(0)
    scale = np.array([0.2, 0.5, 0.9])
    pixels, labels = scale * rng.random((40, 8, 8, 3)), np.arange(40) % 3
    return zoo.from_arrays(
        "colourful", (pixels, labels), (pixels, labels), class_names=("a", "b", "c")
    )


def test_colour_takes_the_deviation_of_its_channels(tmp_path):
    data = colourful()
    study = Study(zoo.MLP((192, 8, 3), rngs=nnx.Rngs(0)), data, Sizes(pairs=2, steps=20))
    xs, _ = study.pair()
    with jax.enable_x64(False):
        path = study.leaf("exact")
        # The same path in the place of the others: what is asked is how it is measured.
        study.once(("kernel", "exact"), lambda: path)
        study.once(("test", "published"), lambda: path)
        level = noise_level.run(study, tmp_path)
        walked, drifted = data_leaf.measure(study, "exact", "test"), kernel.measure(study, "exact")
    moved = (np.asarray(path.points[:, -1]) - xs) * data.std
    expected = np.median(np.sqrt(np.mean(moved**2, axis=(1, 2, 3))))
    assert level["numbers"]["moved"]["leaf"]["median"] == pytest.approx(expected, 1e-4)
    assert drifted["added_rms_pixels"]["median"] == pytest.approx(expected, 1e-4)
    assert walked["dimension"]["largest"] <= 2
    pixels = np.asarray(data.to_pixels(path.points))
    expected = np.maximum(-pixels, pixels - 1).clip(0).reshape(2, -1).max(1)
    np.testing.assert_allclose(box_excess(path, data), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "kind"), [(zoo.load_digits, zoo.MLP), (colourful, zoo.CNN)], ids=["grey", "colour"]
)
def test_the_papers_network_fits_the_data(data, kind):
    if kind is zoo.CNN:
        shape = type("D", (), {"shape": (32, 32, 3), "num_classes": 3})
        assert papers_network(shape).pooled_shape == (2, 2, 128)
    else:
        assert isinstance(papers_network(data()), kind)
