"""Training: it learns, records what it says, and goes on where it stopped."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import foliax
from foliax import zoo
from foliax.zoo import training

SMALL = {"learning_rate": 0.1, "reference_size": 20, "track_per_epoch": 3}


@pytest.fixture(scope="module")
def digits():
    return zoo.load_digits()


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
    x = jnp.arange(11.0)
    np.testing.assert_array_equal(training._in_blocks(lambda x: x + 1, 4, x), np.arange(1.0, 12.0))


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
    before = training.train_step._cache_size()

    def count(*_):
        sizes.append((training.train_step._cache_size(), training._observe._cache_size()))

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


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"optimizer": "adam"}])
def test_resumed_training_ends_with_identical_weights(digits, tmp_path, options):
    options = {**options, "learning_rate": 0.01, "track_per_epoch": 1}
    whole, whole_history = run(digits, 4, **options)
    run(digits, 2, out=tmp_path, **options)
    # The weights of the model given play no part in a resumed run.
    resumed, history = run(digits, 4, model=fresh(9), out=tmp_path, **options)
    assert_same_weights(whole, resumed)
    assert history.to_dict() == whole_history.to_dict()
    assert zoo.epochs(tmp_path) == [1, 2, 3, 4]
    assert_same_weights(zoo.restore(tmp_path), whole)


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


def test_corrupt_newest_checkpoint_is_trained_again(digits, tmp_path):
    whole, _ = run(digits, 3, out=tmp_path)
    for file in (tmp_path / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="skipped: the checkpoint of epoch 3"):
        resumed, _ = run(digits, 3, out=tmp_path)
    assert_same_weights(whole, resumed)
    assert_same_weights(zoo.restore(tmp_path, 3), whole)


def test_cnn_trains(digits):
    few = zoo.from_arrays(
        "few",
        (np.clip(digits.to_pixels(digits.train_x[:128, 1:7, 1:7]), 0, 1), digits.train_y[:128]),
        (np.clip(digits.to_pixels(digits.test_x[:32, 1:7, 1:7]), 0, 1), digits.test_y[:32]),
        class_names=digits.class_names,
    )
    model = zoo.CNN((6, 6, 1), 10, rngs=nnx.Rngs(0))
    _, history = run(few, 2, model=model, batch_size=32, track_per_epoch=1, reference_size=8)
    assert history.loss[-1] < history.loss[0]


def test_choose_epoch_is_at_or_after_the_peak(trained):
    rows = trained[1].to_dict()
    rows["trace_mean"] = [0.1] * 5 + [0.5] + [0.2] * 7  # the peak is at step 38, in epoch 2
    rows["test_accuracy"] = [0.95, 0.8, 0.92, 0.93]
    history = zoo.History.from_dict(rows)
    assert zoo.choose_epoch(history) == 3
    assert zoo.choose_epoch(history, min_accuracy=0.5) == 2
    with pytest.raises(ValueError, match=r"the best is 0\.950"):
        zoo.choose_epoch(history, min_accuracy=0.99)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"track_per_epoch": -1}, "track_per_epoch must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"optimizer": "lion"}, "'sgd', 'adam'"),
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
