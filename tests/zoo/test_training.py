"""Training: it learns, records what it says, and goes on where it stopped."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import foliax
from foliax import sharding, zoo
from foliax.zoo import checkpoints, evaluation, train_config, training
from foliax.zoo.train_step import TrainState, train_step

MESHES = (None, sharding.mesh(1))
SMALL = {"learning_rate": 0.1, "reference_size": 20, "track_per_epoch": 3}


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


@pytest.fixture(scope="module")
def few(digits):
    """128 digits, cut down to 6×6."""
    return zoo.from_arrays(
        "few",
        (np.clip(digits.to_pixels(digits.train_x[:128, 1:7, 1:7]), 0, 1), digits.train_y[:128]),
        (np.clip(digits.to_pixels(digits.test_x[:32, 1:7, 1:7]), 0, 1), digits.test_y[:32]),
        class_names=digits.class_names,
    )


def fresh(seed=0):
    return zoo.MLP((64, 16, 10), rngs=nnx.Rngs(seed))


def run(dataset, epochs, *, model=None, **options):
    settings = {name: options.pop(name) for name in list(options) if name in CONFIG_FIELDS}
    config = zoo.TrainConfig(epochs=epochs, **{**SMALL, **settings})
    return zoo.train(model or fresh(), dataset, config, progress=False, **options)


CONFIG_FIELDS = zoo.TrainConfig.__dataclass_fields__


def assert_same_weights(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def trained(digits):
    return run(digits, 4)


def test_loss_falls_and_accuracy_rises(trained, digits):
    model, history = trained
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert (np.diff(history.train_loss) < 0).all()
    assert history.test_accuracy[-1] > 0.85
    assert history.test_accuracy[-1] == zoo.accuracy(model, digits.test_x, digits.test_y)


def test_history_has_a_row_for_each_mark(trained):
    _, history = trained
    assert history.steps.tolist() == [0, 8, 15, 23, 31, 38, 46, 54, 61, 69, 77, 84, 92]
    assert history.epoch_steps.tolist() == [23, 46, 69, 92]
    for name in ("loss", "trace_mean", "trace_low", "trace_high", "rank_mean"):
        assert getattr(history, name).shape == (13,)
    assert history.ranks.shape == (13, 10)
    assert (history.ranks.sum(axis=1) == 20).all()
    np.testing.assert_allclose(history.ranks @ np.arange(10) / 20, history.rank_mean)
    assert (history.trace_low <= history.trace_high).all()


def test_history_survives_json(trained):
    _, history = trained
    again = zoo.History.from_dict(json.loads(json.dumps(history.to_dict())))
    assert again.to_dict() == history.to_dict()
    assert repr(again).startswith("History(4 epochs, 13 tracked steps")


def test_tracked_numbers_are_those_of_the_geometry(trained, digits):
    model, history = trained
    reference = np.sort(np.random.default_rng(0).permutation(len(digits.train_y))[:20])
    matrices = jax.jit(jax.vmap(foliax.matrix, in_axes=(None, 0)))(
        jax.tree.map(lambda w: w.astype(jnp.float64), model),
        digits.train_x[reference].astype(np.float64),
    )
    traces = np.trace(matrices, axis1=1, axis2=2)
    np.testing.assert_allclose(history.trace_mean[-1], np.mean(traces), rtol=1e-4)
    values = np.linalg.eigvalsh(matrices)
    least = (100 * np.finfo(np.float32).eps) ** 2
    ranks = np.sum(values > least * values[:, -1:], axis=1)
    np.testing.assert_array_equal(history.ranks[-1], np.bincount(ranks, minlength=10))


def test_blocks_change_nothing():
    x = np.arange(11.0)
    found = evaluation.in_blocks(lambda model, x: model(x), lambda x: x + 1, 4, x, mesh=None)
    np.testing.assert_array_equal(found, np.arange(1.0, 12.0))


def test_one_device_of_a_mesh_is_one_device(few):
    options = {"batch_size": 32, "track_per_epoch": 1, "reference_size": 8}
    one, many = (run(few, 1, model=normalised(0), **options, mesh=mesh) for mesh in MESHES)
    assert_same_weights(*(nnx.state(model) for model, _ in (one, many)))
    np.testing.assert_array_equal(one[1].trace_mean, many[1].trace_mean)


def test_model_given_is_not_changed(digits):
    model = fresh()
    run(digits, 1, model=model, track_per_epoch=0)
    assert_same_weights(model, fresh())


def test_no_tracking_leaves_the_rows_out(digits):
    history = run(digits, 1, track_per_epoch=0)[1]
    assert len(history.steps) == 0
    assert history.test_accuracy.shape == (1,)
    with pytest.raises(ValueError, match="track_per_epoch"):
        zoo.choose_epoch(history)


def test_compiles_once_for_all_epochs(digits):
    sizes = []
    before = train_step._cache_size()

    def count(*_):
        sizes.append((train_step._cache_size(), evaluation._observe._cache_size()))

    run(digits, 3, batch_size=50, on_epoch=count)
    assert len(set(sizes)) == 1
    assert sizes[0][0] == before + 1


def test_on_epoch_sees_each_epoch(digits):
    seen = []
    run(
        digits,
        2,
        track_per_epoch=0,
        on_epoch=lambda epoch, model, history: seen.append(
            (epoch, model(digits.test_x[0]).shape, len(history.epoch_steps))
        ),
    )
    assert seen == [(1, (10,), 1), (2, (10,), 2)]


def test_batches_depend_on_seed_and_epoch_alone():
    config = zoo.TrainConfig(batch_size=4, seed=3)
    batches = training.shuffled(11, 2, config)
    assert batches.shape == (2, 4)
    assert len(np.unique(batches)) == 8
    np.testing.assert_array_equal(batches, training.shuffled(11, 2, config))
    assert not np.array_equal(batches, training.shuffled(11, 3, config))
    assert not np.array_equal(batches, training.shuffled(11, 2, zoo.TrainConfig(batch_size=4)))


@pytest.mark.parametrize(
    ("num_steps", "per_epoch", "expected"),
    [(10, 2, [5, 10]), (3, 10, [0, 1, 2, 3]), (7, 1, [7]), (5, 0, [])],
)
def test_marks_are_spread_over_the_epoch(num_steps, per_epoch, expected):
    marks = training.tracked_steps(num_steps, per_epoch)
    assert [m for m in marks if m] == [m for m in expected if m]


class Stopped(Exception):
    """Raised in the middle of a training, as a user's Ctrl-C is."""


def stop_after(last):
    def on_epoch(epoch, *_):
        if epoch == last:
            raise Stopped

    return on_epoch


def assert_resumes(dataset, out, *, make, **options):
    """Compare a whole training with one that is stopped after its second epoch of three."""
    whole, whole_history = run(dataset, 3, model=make(0), **options)
    with pytest.raises(Stopped):
        run(dataset, 3, model=make(0), out=out, on_epoch=stop_after(2), **options)
    # The weights of the model given play no part in a resumed run.
    resumed, history = run(dataset, 3, model=make(9), out=out, **options)
    assert_same_weights(whole, resumed)
    assert history.to_dict() == whole_history.to_dict()
    assert zoo.epochs(out) == [1, 2, 3]
    assert_same_weights(zoo.restore(out), whole)
    assert history.train_loss[-1] < history.train_loss[0]
    return whole


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "momentum", "schedule": "step", "weight_decay": 1e-3},
        {"optimizer": "adam", "schedule": "cosine"},
        {"optimizer": "adamw", "schedule": "warmup-cosine"},
    ],
    ids=lambda options: options["optimizer"],
)
def test_resumed_training_ends_with_identical_weights(digits, tmp_path, options):
    options = {**options, "learning_rate": 0.01, "track_per_epoch": 1}
    assert_resumes(digits, tmp_path, make=fresh, **options)


def test_longer_training_goes_on_with_a_shorter_one(digits, tmp_path, trained):
    run(digits, 2, out=tmp_path)
    longer, history = run(digits, 4, out=tmp_path)
    assert_same_weights(longer, trained[0])
    assert history.to_dict() == trained[1].to_dict()


def normalised(seed):
    options = {"plan": (8, "pool"), "hidden": (), "padding": 1, "batch_norm": True}
    return zoo.CNN((6, 6, 1), 10, **options, rngs=nnx.Rngs(seed))


def test_running_statistics_follow_the_batches_and_survive_a_stop(few, tmp_path):
    options = {"batch_size": 32, "track_per_epoch": 1, "reference_size": 8, "learning_rate": 0.02}
    model = assert_resumes(few, tmp_path, make=normalised, **options)
    assert model.norm1.use_running_average
    assert float(jnp.max(jnp.abs(model.norm1.mean[...]))) > 0.05
    xs = few.train_x[:32]
    convolved = np.asarray(jax.jit(jax.vmap(lambda x: model.conv1(x)))(xs)).reshape(-1, 8)
    # 12 batches at a momentum of 0.9: 72 % of the way from the initial 0 and 1.
    np.testing.assert_allclose(model.norm1.mean[...], 0.72 * convolved.mean(0), atol=0.2)


def test_steps_with_batch_normalisation_are_those_of_pytorch(few):
    torch = pytest.importorskip("torch")
    model = normalised(0)
    conv, norm = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
    dense = torch.nn.Linear(72, 10)
    rest = (torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), dense)
    network = torch.nn.Sequential(conv, norm, *rest)
    kernel = np.asarray(model.dense1.kernel[...]).reshape(3, 3, 8, 10)  # H, W, channels
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(np.asarray(model.conv1.kernel[...]).transpose(3, 2, 0, 1)))
        dense.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1).reshape(10, 72)))
        conv.bias.zero_()
        dense.bias.zero_()
    config = zoo.TrainConfig(epochs=1, batch_size=32, optimizer="momentum", learning_rate=0.05)
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9), []
    for batch in training.shuffled(len(few.train_y), 1, config):
        x = torch.tensor(np.moveaxis(few.train_x[batch], -1, 1))
        loss = torch.nn.functional.cross_entropy(
            network(x), torch.tensor(few.train_y[batch]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained, history = zoo.train(model, few, config, progress=False)
    np.testing.assert_allclose(history.train_loss, np.mean(losses), rtol=1e-5)
    expected = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(trained.conv1.kernel[...], expected, atol=1e-5)
    np.testing.assert_allclose(trained.norm1.mean[...], norm.running_mean, atol=1e-5)
    # PyTorch's running variance is the unbiased one, of 32 · 6 · 6 values.
    count = 32 * 36
    ours = 0.9**4 + (np.asarray(trained.norm1.var[...]) - 0.9**4) * count / (count - 1)
    np.testing.assert_allclose(ours, norm.running_var, rtol=1e-5)


def test_batch_normalisation_needs_the_axis(few):
    model = normalised(0)
    model.norm1.axis_name = None
    with pytest.raises(ValueError, match=r"axis_name='batch' in its batch normalisation norm1"):
        run(few, 1, model=model, batch_size=32)


def test_finished_training_is_returned_at_once(digits, tmp_path):
    done, history = run(digits, 2, out=tmp_path)
    again, same = run(digits, 2, out=tmp_path, on_epoch=lambda *_: pytest.fail("trained again"))
    assert_same_weights(done, again)
    assert same.to_dict() == history.to_dict()
    first, _ = run(digits, 1, out=tmp_path)
    assert_same_weights(first, zoo.restore(tmp_path, 1))


def test_another_training_is_not_resumed(digits, tmp_path):
    run(digits, 1, out=tmp_path)
    with pytest.raises(ValueError, match=r"batch_size was 60, is 50"):
        run(digits, 2, out=tmp_path, batch_size=50)
    with pytest.raises(ValueError, match=r"another architecture.*\[64, 16, 10\].*\[64, 8, 10\]"):
        run(digits, 2, out=tmp_path, model=zoo.MLP((64, 8, 10), rngs=nnx.Rngs(0)))


def test_a_schedule_over_the_epochs_keeps_their_number(digits, tmp_path):
    run(digits, 1, out=tmp_path, schedule="cosine")
    with pytest.raises(ValueError, match=r"epochs was 1, is 2; choose another `out`"):
        run(digits, 2, out=tmp_path, schedule="cosine")


def truncate(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_training_starts_over_where_no_checkpoint_can_be_read(digits, tmp_path):
    whole, _ = run(digits, 2, out=tmp_path)
    truncate(tmp_path / "checkpoints")
    with warnings.catch_warnings(record=True, action="always") as told:
        again, _ = run(digits, 2, out=tmp_path)
    skipped_2, skipped_1, over = (str(w.message) for w in told)
    assert skipped_2.startswith("skipped: the checkpoint of epoch 2")
    assert skipped_1.startswith("skipped: the checkpoint of epoch 1")
    assert "the training starts over, and they are kept in" in over
    assert_same_weights(whole, again)
    assert zoo.epochs(tmp_path) == [1, 2]
    assert (tmp_path / "checkpoints.unreadable-1" / "1").is_dir()
    truncate(tmp_path / "checkpoints" / "1")
    with (
        pytest.warns(match="skipped"),
        pytest.raises(ValueError, match="no usable one of epoch ≤ 1"),
    ):
        run(digits, 1, out=tmp_path)


def test_corrupt_newest_checkpoint_is_trained_again(digits, tmp_path):
    whole, _ = run(digits, 3, out=tmp_path)
    truncate(tmp_path / "checkpoints" / "3")
    with pytest.warns(UserWarning, match="skipped: the checkpoint of epoch 3"):
        resumed, _ = run(digits, 3, out=tmp_path)
    assert_same_weights(whole, resumed)
    assert_same_weights(zoo.restore(tmp_path, 3), whole)


@pytest.fixture
def peaked(trained):
    """A history whose mean trace is greatest at step 38, in the second epoch of four."""
    rows = trained[1].to_dict()
    rows["trace_mean"] = [0.1] * 5 + [0.5] + [0.2] * 7
    rows["test_accuracy"] = [0.95, 0.8, 0.92, 0.93]
    return zoo.History.from_dict(rows)


@pytest.mark.parametrize(
    ("options", "epoch", "told"),
    [
        ({}, 3, "the first that ends at or after the peak of the mean trace"),
        ({"min_accuracy": 0.5}, 2, "accuracy of at least 0.5"),
        ({"rule": "accuracy"}, 1, "the first that has a test accuracy of at least 0.9"),
        ({"rule": "accuracy", "min_accuracy": 0.96}, None, "the most accurate one, as none has"),
        ({"min_accuracy": 0.99}, None, "the most accurate one, as none ends"),
        ({"rule": "best"}, 1, "the most accurate one."),
        ({"rule": "epoch", "epoch": 2}, 2, "the one asked for"),
    ],
)
def test_choice_of_the_epoch(peaked, options, epoch, told):
    if epoch is None:
        with pytest.raises(ValueError, match=r"the best is 0\.950"):
            zoo.choose_epoch(peaked, **options)
    else:
        assert zoo.choose_epoch(peaked, **options) == epoch
    options.pop("epoch", None)
    said = zoo.describe_choice(peaked, epoch or 1, **options)
    assert told in said
    assert said.startswith(f"It is epoch {epoch or 1} (step ")
    assert said.endswith("greatest at step 38.")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rule": "epoch"}, r"epoch must be in 1 … 4, the epochs trained, got None"),
        ({"rule": "epoch", "epoch": 5}, "got 5"),
        ({"rule": "middle"}, "rule must be one of 'peak', 'accuracy', 'best', 'epoch'"),
    ],
)
def test_wrong_choices_are_named(peaked, options, match):
    with pytest.raises(ValueError, match=match):
        zoo.choose_epoch(peaked, **options)


STEPS = (0, 5, 10, 15, 20)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.853553, 0.5, 0.146447, 0]),
        ("warmup-cosine", [0.5, *(0.5 + 0.5 * np.cos(np.pi * (s - 2) / 18) for s in STEPS[1:])]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules(schedule, expected):
    config = zoo.TrainConfig(learning_rate=1.0, schedule=schedule, warmup=0.1)
    rate = train_config.make_schedule(config, 20)
    got = [rate(step) if callable(rate) else rate for step in STEPS]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_presets_are_the_papers():
    paper = zoo.PRESETS["paper"].settings()
    expected = {"epochs": 30, "batch_size": 60, "learning_rate": 0.01, "optimizer": "sgd"}
    expected |= {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    assert {name: paper[name] for name in expected} == expected
    assert zoo.PRESETS["vgg"].settings()["momentum"] == 0.9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"track_per_epoch": -1}, "track_per_epoch must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"optimizer": "lion"}, "'sgd', 'momentum', 'adam', 'adamw'"),
        ({"schedule": "linear"}, "'constant', 'cosine', 'warmup-cosine', 'step'"),
        ({"warmup": 1.0}, "warmup must be"),
        ({"trace_penalty": -1.0}, "trace_penalty must be"),
        ({"trace_penalty": float("inf")}, "trace_penalty must be"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "take 'adamw'"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum must be"),
        ({"momentum": 1.0}, "momentum must be"),
    ],
)
def test_wrong_settings_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        zoo.TrainConfig(**options)


def test_model_and_data_must_fit(digits):
    with pytest.raises(ValueError, match="at most the 1437 training images"):
        run(digits, 1, batch_size=2000)
    with pytest.raises(ValueError, match="10 logits"):
        run(digits, 1, model=zoo.MLP((64, 5), rngs=nnx.Rngs(0)))


def test_bar_shows_what_is_tracked(digits, capsys):
    config = zoo.TrainConfig(epochs=1, **SMALL)
    zoo.train(fresh(), digits, config)
    told = capsys.readouterr().err
    assert all(word in told for word in ("23/23", "loss=", "accuracy=", "trace=", "rank="))


# --- the penalty on the trace ------------------------------------------------------------------


def test_a_penalty_lowers_the_trace_and_nothing_else_changes_without_it():
    data = zoo.load_digits()
    traces, weights = {}, {}
    for penalty in (0.0, 1.0):
        config = zoo.TrainConfig(epochs=1, trace_penalty=penalty, **SMALL)
        model, _ = zoo.train(fresh(), data, config, progress=False)
        traces[penalty] = np.mean(jax.vmap(foliax.trace, (None, 0))(model, data.train_x[:64]))
        weights[penalty] = jax.tree.leaves(nnx.state(model))
    assert traces[1.0] < 0.9 * traces[0.0]
    plain, _ = zoo.train(fresh(), data, zoo.TrainConfig(epochs=1, **SMALL), progress=False)
    for a, b in zip(jax.tree.leaves(nnx.state(plain)), weights[0.0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_of_the_penalty_is_that_of_the_trace():
    """With a linear network and one image: against the exact trace, over many keys."""
    model = zoo.MLP((3, 2), rngs=nnx.Rngs(0))
    graphdef, params, stats, rest = training._split(model)
    x, y = jnp.array([[0.3, -1.0, 0.5]]), jnp.array([1])
    optimizer = optax.sgd(1.0)
    state = TrainState(params, stats, optimizer.init(params))

    def moved(key, penalty):
        after, _ = train_step(graphdef, optimizer, state, rest, x, y, key, penalty)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(after.params)])

    keys = jax.random.split(jax.random.key(0), 4)
    # C = 2: the factor has one row, and any sign gives the trace itself.
    found = [moved(key, 2.0) - moved(None, 0.0) for key in keys]
    exact = jax.grad(lambda p: foliax.trace(nnx.merge(graphdef, p, stats, rest), x[0]))(params)
    expected = -2.0 * jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(exact)])
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("track_per_epoch", [0, 1])
def test_a_training_that_diverges_says_so_and_keeps_its_checkpoints(few, tmp_path, track_per_epoch):
    model = zoo.MLP((36, 8, 10), rngs=nnx.Rngs(0))
    seen = []
    with pytest.raises(FloatingPointError, match="smaller learning_rate") as raised:
        run(
            few, 40, model=model, learning_rate=1e6, track_per_epoch=track_per_epoch,
            out=tmp_path, on_epoch=lambda epoch, *_: seen.append(epoch),
        )  # fmt: skip
    told = re.search(r"not finite (?:at|after) step (\d+);.* to epoch (\d+)", str(raised.value))
    assert told is not None, str(raised.value)
    step, epoch = map(int, told.groups())
    assert epoch == seen[-1] == (step - 1) // 2  # two steps an epoch
    assert checkpoints.epochs(tmp_path) == seen
    _, history = run(
        few, epoch, model=model, learning_rate=1e6, track_per_epoch=track_per_epoch, out=tmp_path
    )
    assert np.isfinite(history.train_loss).all()


def test_a_training_whose_last_step_is_too_long_says_so(few):
    model = zoo.MLP((36, 8, 10), rngs=nnx.Rngs(0))
    model.layers[0].kernel[...] = jnp.full_like(model.layers[0].kernel[...], 1e30)
    with pytest.raises(FloatingPointError, match=r"has diverged: .*not finite"):
        run(few, 1, model=model, batch_size=128, learning_rate=1e38)
