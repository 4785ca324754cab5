"""The benchmark compares like with like: peers that agree, and a clock that counts right."""

import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import foliax
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import bench as shared
from experiments.benchmark import nets, peers
from experiments.benchmark import timing as method
from experiments.benchmark.bench import Bench, Sizes
from experiments.benchmark.rows import ROWS, SLOW
from experiments.benchmark.timing import FOLIAX, FORWARD, FUNC, LOOP
from experiments.harness.command import script
from experiments.harness.networks import Loaded
from foliax import fisher, zoo
from foliax.zoo.train_config import make_optimizer
from foliax.zoo.train_step import TrainState, train_step

pytestmark = pytest.mark.usefixtures("one_thread", "small_products")

SHAPE, CLASSES, COUNT, STEPS = (7, 7, 2), 4, 3, 3
LIMITS = (-1.0, 1.0)


def small(seed=0, shape=SHAPE, classes=CLASSES):
    # Wide enough for dim D = C − 1 at every point: unlike foliax, peers rely on that.
    return zoo.CNN(shape, classes, plan=(3, 5, "pool"), hidden=(32,), rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def one_thread():
    """Keep PyTorch to one thread: on a busy machine more of them wait for each other."""
    if peers.torch is None:
        yield
        return
    before = peers.torch.get_num_threads()
    peers.torch.set_num_threads(1)
    yield
    peers.torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_products():
    """Time a product that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "_SIDE", 64)
        yield


@pytest.fixture(scope="module")
def model():
    """Return a network in float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64), small())


@pytest.fixture(scope="module")
def xs():
    return np.random.default_rng(0).uniform(*LIMITS, (COUNT, *SHAPE))


@pytest.fixture
def net(model):
    pytest.importorskip("torch")
    return peers.network(model)


# --- the peers ---------------------------------------------------------------------------------


def test_networks_are_the_same(model, net, xs):
    logits = jax.vmap(model)(xs)
    np.testing.assert_allclose(net(peers.tensor(xs)).numpy(), logits, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(nets.StockCNN(model))(xs), logits, atol=1e-12)
    np.testing.assert_array_equal(peers.array(peers.tensor(xs)), xs)
    mlp, digits = zoo.load("digits_mlp"), zoo.load_digits().test_x[:2]
    theirs = peers.network(mlp)(peers.tensor(digits)).numpy()
    np.testing.assert_allclose(theirs, jax.vmap(mlp)(digits), atol=1e-4)


def same_matrices(found, model, xs):
    ours = jax.jit(partial(nets.batch, block=2))(model, xs)
    np.testing.assert_allclose(found["trace"], ours["trace"], rtol=1e-10)
    np.testing.assert_allclose(found["spectrum"], ours["spectrum"], rtol=1e-8)
    np.testing.assert_array_equal(found["rank"], ours["rank"])
    assert ours["spectrum"].shape == (COUNT, CLASSES - 1)


@pytest.mark.parametrize(
    "peer", [peers.matrices_by_loop, partial(peers.matrices_by_func, chunk=2)], ids=("P1", "P2")
)
def test_trace_rank_and_spectrum(peer, model, net, xs):
    same_matrices(peer(net, peers.tensor(xs)), model, xs)


def test_cotangents_of_a_convolution(model, net):
    layer, rng = model.convs[1], np.random.default_rng(0)
    size = tuple(n - 2 for n in SHAPE[:2])
    hs = rng.normal(size=(COUNT, *size, layer.kernel.shape[2]))
    rows = rng.normal(size=(COUNT, 3, size[0] - 2, size[1] - 2, layer.kernel.shape[3]))
    ours = nets.pulled(layer, hs, rows, block=2)
    theirs = peers.pulled(peers.kernel_of(layer), peers.tensor(rows), (hs.shape[3], *size))
    np.testing.assert_allclose(peers.array(theirs), ours, atol=1e-10)


def test_the_plain_reference(model, xs):
    same_matrices(nets.plain(nets.StockCNN(model), xs), model, xs)


@pytest.fixture(scope="module")
def walked(model, xs):
    """Return what walks with foliax by the published scheme: (steps, paths, H, W, channels)."""

    def walk(along):
        goals, told = np.roll(xs, 1, axis=0), {"box": foliax.Box(*LIMITS), "scheme": "published"}
        told |= {"max_steps": STEPS, "save_every": 1}
        if along == "leaf":
            paths = foliax.map(foliax.walk, model, xs, goals, arrival=0.0, **told)
        else:
            paths = foliax.map(foliax.drift, model, xs, goals, along="kernel", **told)
        return np.moveaxis(np.asarray(paths.points)[:, 1:], 0, 1)

    return functools.cache(walk)


@pytest.mark.parametrize("along", ["leaf", "kernel"])
def test_first_steps(along, walked, net, xs):
    starts, goals = peers.tensor(xs), peers.tensor(np.roll(xs, 1, axis=0))
    told = {"along": along, "step": 0.1, "steps": STEPS}
    many = peers.walk_by_func(net, starts, goals, LIMITS, chunk=2, **told)
    np.testing.assert_allclose(peers.array(many), walked(along), atol=1e-9)
    one = peers.walk_by_loop(net, starts[0], goals[0], LIMITS, **told)
    np.testing.assert_allclose(peers.array(one), walked(along)[:, 0], atol=1e-9)
    alone = peers.walk_by_func(net, starts[:1], goals[:1], LIMITS, **told)
    np.testing.assert_allclose(peers.array(alone), walked(along)[:, :1], atol=1e-9)


def test_a_scan_walks_the_same_way(model, walked, xs):
    scan = jax.jit(partial(nets.scan_by_hand, classes=CLASSES, step=0.1, steps=STEPS))
    points = scan(model, xs[0], xs[-1], foliax.Box(*LIMITS))
    np.testing.assert_allclose(points, walked("leaf")[:, 0], atol=1e-9)


def same_weights(ours, theirs):
    expected = peers.weights_of(ours)
    assert expected.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(value.detach(), expected[name], atol=1e-10)


def test_fisher_product(model, net, xs):
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    other = jax.tree.map(lambda a: a.astype(jnp.float64), small(1))
    v = nnx.split(other, nnx.Param, ...)[1]
    ours = fisher.matvec(model, xs, v, batched=True)
    theirs = peers.fisher_product(net, peers.tensor(xs), peers.weights_of(other))
    same_weights(nnx.merge(graph, ours, rest), theirs)


def test_training_step(model, net, xs):
    ys, config = np.array([0, 3, 1]), zoo.TrainConfig()
    graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    optimizer = make_optimizer(config, 10)
    state = TrainState(params, stats, optimizer.init(params))
    after, loss = train_step(graph, optimizer, state, rest, xs, ys)
    trained, step = peers.trainer(model, config.learning_rate)
    assert float(step(peers.tensor(xs), peers.labels(ys))) == pytest.approx(float(loss))
    same_weights(nnx.merge(graph, after.params, stats, rest), dict(trained.named_parameters()))


@pytest.mark.parametrize("together", [False, True])
def test_rows_of_the_factor(together, model, net, xs):
    rows = peers.factor_rows(net, peers.tensor(xs[0]), 2, together=together)
    ours = jax.jit(foliax.factor)(model, xs[0])[:2]
    np.testing.assert_allclose(peers.array(rows).reshape(2, -1), ours, atol=1e-12)


# --- the clock ---------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a contender says so."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def contender(self, name, seconds, units=1.0, **more):
        def run():
            self.now += seconds[min(len(self.ran), len(seconds) - 1)]
            self.ran.append(name)
            return seconds

        return method.Contender(name, run, units, **more)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(method.time, "perf_counter", lambda: clock.now)
    return clock


def test_each_timing_follows_an_untimed_call(clock):
    one = clock.contender("one", [8.0, 2.0], units=4)
    assert one.seconds() == pytest.approx(0.5)
    assert clock.ran == ["one", "one"]


def test_short_programs_are_called_several_times(clock):
    one = clock.contender("one", [0.5, 0.005])
    assert one.first() == [0.5, 0.005]
    assert one.calls == 4
    assert one.seconds() == pytest.approx(0.005)
    assert len(clock.ran) == 2 + 1 + 4


def test_a_program_may_keep_its_own_time_and_have_its_own_warm_up(clock):
    warm = clock.contender("warm", [1.0])
    one = clock.contender("one", [5.0], units=2, warm=warm.run, clock=lambda result: result[0] / 5)
    one.first()
    assert one.seconds() == pytest.approx(0.5)
    assert clock.ran == ["one", "warm", "one"]


def test_turns_are_taken_in_a_random_order_that_the_seed_decides(clock):
    def order(seed):
        clock.ran.clear()
        contenders = [clock.contender(name, [0.1]) for name in "abcd"]
        times = method.take_turns(contenders, 6, np.random.default_rng(seed))
        assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abcd", 6)
        rounds = np.array(clock.ran[::2]).reshape(6, 4)
        assert [sorted(names) for names in rounds] == [list("abcd")] * 6
        return rounds.tolist()

    assert order(0) == order(0) != order(1)
    assert len({tuple(names) for names in order(0)}) > 1


TIMES = {
    FOLIAX: np.array([1.0, 2.0, 4.0]), LOOP: np.array([9.0, 9.0, 9.0]),
    FUNC: np.array([4.0, 6.0, 20.0]), FORWARD: np.array([0.1, 0.1, 0.2]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "label", "median", "least", "largest", "target", "met"),
    [
        (method.beside_peers(3.5), "PyTorch / foliax (PyTorch P2)", 4, 3, 5, "≥ 3.5", True),
        (method.beside_forwards(9, 1.7), "foliax / 10 forwards", 2, 1, 2, "≤ 1.7", False),
        (method.beside_peers(names=(LOOP,)), "PyTorch P1 / foliax", 4.5, 2.25, 9, "", None),
        (method.Ratio("a", (LOOP,), (FOLIAX,), scale=0.1, plus=1), "a", 1.45, 1.225, 1.9, "", None),
        (method.Ratio("rate", (), (FOLIAX,)), "rate", 0.5, 0.25, 1, "", None),
    ],
)
def test_ratios_are_medians_of_the_rounds_ratios(ratio, label, median, least, largest, target, met):
    found = ratio.of(TIMES)
    assert (found["label"], found["target"], found["met"]) == (label, target, met)
    numbers = [found[key] for key in ("median", "least", "largest")]
    assert numbers == pytest.approx([median, least, largest])


def test_nothing_is_made_of_times_that_are_missing():
    assert method.beside_peers().of({FOLIAX: TIMES[FOLIAX]}) is None


def test_results_that_differ_are_refused():
    assert method.within(0.5, 1.0, "trace") == 0.5
    for value in (2.0, np.nan):
        with pytest.raises(method.Disagreement, match=r"trace: .* at most 1 allowed"):
            method.within(value, 1.0, "trace")
    assert method.median_error([[3.0, 4.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 1.0]]) == 0.5


# --- the whole ---------------------------------------------------------------------------------


def digits_subject():
    data = zoo.load_digits()
    model = small(0, data.shape, data.num_classes)
    return Loaded(model, data, "a network for tests")


TINY = Sizes(
    images=4, looped=2, steps=6, many_steps=5, peer_steps=2, peer_many_steps=1, dense_steps=50,
    dense_many_steps=50, classes_images=2, training_steps=2, reference=16, swept=6,
    long_rounds=1,
)  # fmt: skip
SMOKE = ("batch", "walk_1", "scan", "classes_100", "training", "tracking", "sweep", "fisher")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, one_thread, small_products):
    """Return the folder and the results of a tiny run, in float32 as users run it."""
    out = tmp_path_factory.mktemp("benchmark")
    config = benchmark.Config(out=out, rows=SMOKE, rounds=2, sizes=TINY)
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        patch.setattr(benchmark, "obtain", lambda *_: digits_subject())
        patch.setattr(shared, "_BATCHES", (1, 4))
        return out, benchmark.run(config)


def test_every_row_is_measured(smoke):
    _, results = smoke
    rows = results["rows"]
    for name, row in rows.items():
        assert row["status"] == "measured", (name, row["status"])
        assert row["rounds"] == (1 if name in ("tracking", "sweep") else 2)
        assert all(len(spread["rounds"]) == row["rounds"] for spread in row["seconds"].values())
        assert all(one["least"] <= one["median"] <= one["largest"] for one in row["ratios"])
    assert {"least", "median"} <= rows["batch"]["seconds"][FOLIAX].keys()
    assert rows["batch"]["agreement"][FOLIAX]["ranks_equal"] == 1
    assert rows["tracking"]["agreement"]["images"] == 16


def test_everything_promised_is_written(smoke):
    out, results = smoke
    assert json.loads((out / "results.json").read_text()).keys() == results.keys()
    assert results["network"] == "a network for tests"
    told = json.loads((out / "run.json").read_text())
    assert {"jax", "jaxlib"} <= told["versions"].keys()
    assert all(told["seconds"][name] > 0 for name in SMOKE)
    assert results["peak_bytes"] > 2**20
    assert results["product_gflops"]["jax"] > 0
    assert results["rows"]["batch"]["compile_seconds"][FOLIAX] > 0


def test_peers_take_part(smoke):
    pytest.importorskip("torch")
    rows = smoke[1]["rows"]
    assert {FOLIAX, LOOP, FUNC, FORWARD} == rows["walk_1"]["seconds"].keys()
    assert rows["walk_1"]["agreement"][f"{LOOP}, float64"][0] < 1e-3
    assert rows["training"]["agreement"]["weights"] < 1e-5
    assert smoke[1]["device"]["torch"]["threads"] >= 1


def test_the_table(smoke):
    table = (smoke[0] / "table.md").read_text()
    first = next(line for line in table.splitlines() if line.startswith("| trace + rank"))
    assert "a network for tests" in table
    assert "zoo network" in first
    assert table.count("≤ 1.7") >= 2
    assert "scan by hand" in table


def test_a_row_that_is_left_out_says_why(monkeypatch):
    def without(bench):
        raise method.Skipped("it is not installed")

    monkeypatch.setitem(ROWS, "efficientnet", without)
    row = benchmark._row("efficientnet", Bench(digits_subject(), TINY, 2, 0), 1, 0)
    table = method.tables({"efficientnet": row})[0]
    assert "| efficientnet | skipped: it is not installed |" in " ".join(table.split())


def test_a_row_that_cannot_be_compared_is_no_row(tmp_path, monkeypatch, capsys):
    def broken(bench):
        raise method.Disagreement("trace: 2, at most 1 allowed")

    monkeypatch.setattr(benchmark, "obtain", lambda *_: digits_subject())
    monkeypatch.setitem(ROWS, "batch", broken)
    monkeypatch.setattr("sys.argv", ["benchmark", "--rows", "batch", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="results differ in batch"):
        script(benchmark.Config, benchmark.main, name="benchmark", description="")
    assert "failed: trace: 2, at most 1 allowed" in capsys.readouterr().out


def test_without_pytorch_the_rest_is_measured(monkeypatch):
    monkeypatch.setattr(peers, "torch", None)
    bench = Bench(digits_subject(), TINY, 2, 0)
    assert bench.batch_peers == []
    assert "PyTorch is not installed" in "".join(
        benchmark.heading(
            {"device": benchmark.device(), "rows": {}, "network": "", "load_at_start": (9,),
             "peak_bytes": 0, "product_gflops": bench.product_rates}
        )
    )  # fmt: skip


def test_quick_leaves_the_slowest_rows_out():
    chosen = benchmark.Config(quick=True).chosen()
    assert set(ROWS) - set(chosen) == set(SLOW)
    assert benchmark.Config(quick=True, rows=("exact",)).chosen() == ("exact",)
    assert benchmark.Config().chosen() == tuple(ROWS)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        benchmark.run(benchmark.Config(rounds=0))
    with pytest.raises(ValueError, match="got both"):
        nets.obtain("a.npz", "b", 0)


# --- the network -------------------------------------------------------------------------------


def test_without_weights_a_network_is_trained(monkeypatch):
    def missing(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(zoo, "load_dataset", missing)
    monkeypatch.setattr(nets, "_STEPS", 10)
    with jax.enable_x64(False):
        subject = nets.obtain(None, None, 0)
    assert "trained here for 10 steps on digits, test accuracy" in subject.network
    assert subject.model.shape == (8, 8, 1)


def test_a_network_with_more_classes_shares_all_but_the_last_layer(model):
    other = nets.with_classes(model, 9, 0)
    assert other.num_classes == 9
    for ours, theirs in zip(other.convs, model.convs, strict=True):
        np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
