"""The rows of the benchmark: who takes turns, on what, and what the times should come to."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, get_args

import numpy as np
from flax import nnx

import foliax
from experiments.benchmark import nets, peers, walks
from experiments.benchmark.bench import Bench
from experiments.benchmark.timing import (
    FOLIAX,
    FORWARD,
    FUNC,
    LOOP,
    Contender,
    Ratio,
    Row,
    Skipped,
    beside_forwards,
    beside_peers,
    compiled,
    median_error,
    within,
)
from foliax import fisher, zoo
from foliax.zoo.train_config import make_optimizer
from foliax.zoo.train_step import TrainState, train_step

Name = Literal[
    "batch", "batch_stock", "adapted", "walk_1", "walk_64", "walk_256", "kernel", "exact",
    "digits_1", "digits_256", "classes_100", "convolution", "scan", "training", "tracking", "sweep",
    "fisher", "efficientnet",
]  # fmt: skip
SLOW: Final[tuple[Name, ...]] = ("walk_256", "exact", "efficientnet")  # not with --quick

_GIGA = 1e9
_EPOCH, _TRACKED = 1000, 10  # steps of an epoch of Fashion-MNIST, and trackings in one
_CLOSE = 1e-3  # largest median error against float64, or against each other
_TORCH, _TRACKING = "PyTorch", "tracking"
_CHUNK = 27  # rows of EfficientNet's factor at a time
_MATRICES = "trace + rank + spectrum"


def batch_row(bench: Bench, stock: bool = False) -> Row:
    """Make trace, rank and spectrum of a batch in memory."""
    xs, model = bench.images(bench.sizes.images), bench.stock if stock else bench.model
    ours = compiled(FOLIAX, partial(nets.batch, block=bench.block), model, xs, units=len(xs))
    least, most = (2.8, 2.0) if stock else (3.2, 1.7)
    return Row(
        f"{_MATRICES}, {'any model of stock layers' if stock else 'zoo network'}",
        "image",
        [ours, *bench.batch_peers, bench.forward()],
        [beside_peers(least), beside_forwards(bench.classes, most)],
        partial(same_matrices, bench.reference),
    )


def same_matrices(reference: dict[str, np.ndarray], found: dict[str, Any]) -> dict[str, Any]:
    """Compare everybody's trace, spectrum and rank, of as many images, with float64."""
    agreement = {}
    for who, result in found.items():
        if who == FORWARD:
            continue
        count = min(len(result["trace"]), len(reference["trace"]))
        trace, rank, spectrum = (
            np.asarray(result[key])[:count] for key in ("trace", "rank", "spectrum")
        )
        expected = {key: values[:count] for key, values in reference.items()}
        errors = np.abs(trace / expected["trace"] - 1)
        off = median_error(spectrum, expected["spectrum"])
        agreement[who] = {
            "images": count,
            "trace_error": within(np.median(errors), _CLOSE, f"trace, {who}"),
            "trace_largest_error": errors.max(),
            "traces_off": int(np.sum(errors > _CLOSE)),
            "spectrum_error": within(off, _CLOSE, f"spectrum, {who}"),
            "ranks_equal": np.mean(rank == expected["rank"]),
            "median_rank": np.median(rank),
        }
    return agreement


def adapted_row(bench: Bench) -> Row:
    """Make the same of the network in PyTorch, adapted, beside PyTorch's own."""
    if peers.torch is None:
        raise Skipped("needs PyTorch: pip install 'foliax[torch]'")
    try:
        model = foliax.adapt(deepcopy(bench.net).cpu(), channels="first")
    except ImportError as error:
        raise Skipped(str(error)) from error
    xs = bench.images(bench.sizes.images)
    ours = compiled(FOLIAX, partial(nets.batch, block=bench.block), model, xs, units=len(xs))
    return Row(
        f"{_MATRICES}, PyTorch network, adapted",
        "image",
        [ours, *bench.batch_peers, bench.forward()],
        [beside_peers(), beside_forwards(bench.classes)],
        partial(same_matrices, bench.reference),
    )


def classes_row(bench: Bench, classes: int = 100, chunk: int = 9) -> Row:
    """Make the same for many classes, a few reverse passes at a time."""
    model = nets.with_classes(bench.model, classes, bench.seed)
    stock, xs = nets.StockCNN(model), bench.images(bench.sizes.classes_images)
    function = partial(nets.batch, block=bench.block, chunk=chunk)
    ours = compiled(FOLIAX, function, model, xs, units=len(xs))
    few = xs[:4]

    def theirs() -> Any:
        return partial(peers.matrices_by_func, peers.network(model), peers.tensor(few), len(few))

    return Row(
        f"{_MATRICES}, C = {classes}",
        "image",
        [ours, bench.forward(stock), *bench.theirs(FUNC, len(few), theirs)],
        [beside_forwards(classes, 1.7), beside_peers()],
        partial(same_matrices, nets.plain(stock, xs)),
        note=f"the last layer is random; {chunk} of {classes - 1} reverse passes at a time",
    )


def convolution_row(bench: Bench) -> Row:
    """Pull C − 1 cotangents of each image through the second convolution alone: what bounds G."""
    layer, images = bench.model.convs[1], bench.sizes.images
    window, inputs, outputs = layer.kernel.shape[0], *layer.kernel.shape[2:]
    side = bench.model.shape[0] - 2  # after the first one
    rng = np.random.default_rng(bench.seed)
    hs = rng.normal(size=(images, side, side, inputs)).astype(np.float32)
    shape = (images, bench.classes - 1, side - 2, side - 2, outputs)
    rows = rng.normal(size=shape).astype(np.float32)
    work = 2 * rows.size * window**2 * inputs / _GIGA
    ours = compiled(FOLIAX, partial(nets.pulled, block=bench.block), layer, hs, rows, units=work)

    def theirs() -> Any:
        given = peers.kernel_of(layer), peers.tensor(rows), (inputs, side, side)
        return partial(peers.pulled, *given)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        return {
            who: within(median_error(found[FOLIAX], peers.array(rows)), _CLOSE, "pulled back")
            for who, rows in found.items()
            if who == _TORCH
        }

    ratios = [
        Ratio("GFLOP/s, foliax", (), (FOLIAX,)),
        Ratio("GFLOP/s, PyTorch", (), (_TORCH,)),
        Ratio("PyTorch / foliax", (_TORCH,), (FOLIAX,)),
    ]
    title = "input gradients of the second convolution"
    contenders = [ours, *bench.theirs(_TORCH, work, theirs)]
    note = "the largest part of G; beside it stands the rate of a plain matrix product, above"
    return Row(title, "GFLOP", contenders, ratios, same, note=note)


def sweep_row(bench: Bench) -> Row:
    """Sweep the test set; the untimed call of so long a program is a sweep of one batch."""
    xs = bench.subject.dataset.test_x[: bench.sizes.swept]
    run = partial(foliax.sweep, nets.measured, bench.model, block=bench.block, progress=False)
    ours = Contender(FOLIAX, partial(run, xs), len(xs), warm=partial(run, xs[:256]))
    return Row(
        f"sweep of {len(xs)} images: trace, rank, spectrum",
        "image",
        [ours, *bench.batch_peers, bench.forward()],
        [beside_peers(), beside_forwards(bench.classes)],
        lambda found: same_matrices(bench.reference, {FOLIAX: found[FOLIAX]}),
        rounds=bench.sizes.long_rounds,
    )


def _parts(model: nnx.Module) -> tuple[Any, Any, Any]:
    parts: Any = nnx.split(model, nnx.Param, ...)
    return parts


def _same_weights(found: Any, expected: dict[str, Any], what: str) -> float:
    """Compare a module's weights with those of PyTorch, layer by layer."""
    ours = peers.weights_of(found)
    errors = [
        median_error(ours[name].cpu().numpy()[None], value.detach().cpu().numpy()[None])
        for name, value in expected.items()
    ]
    return within(max(errors), _CLOSE, what)


def fisher_row(bench: Bench) -> Row:
    """Make F·v, mean over a batch."""
    xs = bench.images(bench.sizes.images)
    graph, _, rest = _parts(bench.model)
    v = _parts(zoo.build(bench.model.config, nnx.Rngs(bench.seed + 1)))[1]
    product = partial(fisher.matvec, batched=True)

    def theirs() -> Any:
        direction = peers.weights_of(nnx.merge(graph, v, rest))
        return partial(peers.fisher_product, bench.net, peers.tensor(xs), direction)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        ours = nnx.merge(graph, found[FOLIAX], rest)
        return {who: _same_weights(ours, w, "F·v") for who, w in found.items() if who == FUNC}

    ours = compiled(FOLIAX, product, bench.model, xs, v, units=len(xs))
    contenders = [ours, bench.forward(), *bench.theirs(FUNC, len(xs), theirs)]
    ratios = [beside_peers(), Ratio("foliax / forward", (FOLIAX,), (FORWARD,))]
    return Row("F·v, mean over a batch", "image", contenders, ratios, same)


def training_row(bench: Bench) -> Row:
    """Make a step of plain SGD on a batch of 60."""
    config = zoo.TrainConfig()
    data, size = bench.subject.dataset, config.batch_size
    xs, ys = data.train_x[:size], data.train_y[:size]
    graph, params, stats, rest = nnx.split(bench.model, nnx.Param, nnx.BatchStat, ...)
    optimizer = make_optimizer(config, _EPOCH)
    state = TrainState(params, stats, optimizer.init(params))

    def step(state: Any, rest: Any, xs: Any, ys: Any) -> Any:
        return train_step(graph, optimizer, state, rest, xs, ys)

    def theirs() -> Any:
        advance = peers.trainer(bench.model, config.learning_rate)[1]
        return partial(advance, peers.tensor(xs), peers.labels(ys))

    def same(found: dict[str, Any]) -> dict[str, Any]:
        if _TORCH not in found:
            return {}
        net, advance = peers.trainer(bench.model, config.learning_rate)
        after, loss = found[FOLIAX]
        error = abs(float(loss) / float(advance(peers.tensor(xs), peers.labels(ys))) - 1)
        updated = nnx.merge(graph, after.params, stats, rest)
        return {
            "loss": within(error, _CLOSE, "loss"),
            "weights": _same_weights(updated, dict(net.named_parameters()), "weights"),
        }

    ours = compiled(FOLIAX, step, state, rest, xs, ys, units=1)
    contenders = [ours, bench.forward(), *bench.theirs(_TORCH, 1, theirs)]
    ratios = [
        Ratio("foliax / PyTorch", (FOLIAX,), (_TORCH,), at_most=1.2),
        Ratio("forwards an image", (FOLIAX,), (FORWARD,), scale=1 / size),
    ]
    return Row(f"training step, batch of {size}", "step", contenders, ratios, same)


def tracking_row(bench: Bench) -> Row:
    """Train with `zoo.train` itself, which says what steps and tracking took."""
    sizes, data = bench.sizes, bench.subject.dataset
    config = zoo.TrainConfig(epochs=1)
    most = max(sizes.training_steps * config.batch_size, sizes.reference)
    part = replace(
        data, train_x=data.train_x[:most], train_y=data.train_y[:most],
        test_x=data.test_x[:64], test_y=data.test_y[:64],
    )  # fmt: skip

    def train(track: int, reference: int = sizes.reference) -> Any:
        seconds: dict[str, float] = {}
        settings = replace(config, track_per_epoch=track, reference_size=reference)
        _, history = zoo.train(bench.model, part, settings, progress=False, seconds=seconds)
        return seconds, history

    def same(found: dict[str, Any]) -> dict[str, Any]:
        _, history = found[_TRACKING]
        images = min(len(part.train_y), sizes.reference)
        mean = history.ranks[0] @ np.arange(history.ranks.shape[1]) / images
        return {"mean_rank": mean, "mean_trace": history.trace_mean[0], "images": images}

    steps = len(part.train_y) // config.batch_size
    contenders = [
        Contender("step", partial(train, 0), steps, clock=lambda result: result[0]["steps"]),
        # Once before the first step and once after the last.
        Contender(
            _TRACKING, partial(train, 1), 2, clock=lambda result: result[0]["tracking"],
            warm=partial(train, 1, 64),
        ),
    ]  # fmt: skip
    ratio = Ratio(
        "with tracking / without", (_TRACKING,), ("step",), at_most=1.3, scale=_TRACKED / _EPOCH,
        plus=1.0,
    )  # fmt: skip
    title = f"training, {sizes.reference} images tracked {_TRACKED} times in {_EPOCH} steps"
    return Row(title, "step or tracking", contenders, [ratio], same, rounds=sizes.long_rounds)


def efficientnet_row(bench: Bench) -> Row:
    """Make the factor of one photograph, 999 × 150,528, a few rows at a time."""
    from experiments.imagenet import normalised, original, photograph
    from foliax.zoo.efficientnet import load_efficientnet_lite0

    try:
        model = load_efficientnet_lite0()
        net = original() if peers.torch is not None else None
    except ImportError as error:
        raise Skipped(str(error)) from error
    x = normalised(photograph("chelsea", 224))
    few, rows = np.repeat(x[None], 4, axis=0), model.dense.kernel.shape[1] - 1
    function = lambda model, x: foliax.factor(model, x, chunk=_CHUNK)  # noqa: E731

    def theirs(count: int, together: bool) -> Any:
        return partial(peers.factor_rows, net, peers.tensor(x), count, together=together)

    def same(found: dict[str, Any]) -> dict[str, Any]:
        agreement = {}
        for who in {LOOP, FUNC} & found.keys():
            first = peers.array(found[who])
            off = median_error(np.asarray(found[FOLIAX][: len(first)]), first)
            agreement[who] = within(off, _CLOSE, f"rows, {who}")
        return agreement

    return Row(
        f"EfficientNet-Lite0, factor of {rows} rows",
        "image",
        [
            compiled(FOLIAX, function, model, x, units=1),
            compiled(FORWARD, nets.forward, model, few, units=len(few)),
            *bench.theirs(LOOP, 3 / rows, partial(theirs, 3, False)),
            *bench.theirs(FUNC, _CHUNK / rows, partial(theirs, _CHUNK, True)),
        ],
        [beside_peers(), beside_forwards(rows + 1)],
        same,
        note=f"{_CHUNK} rows at a time; PyTorch's time is that of its first rows, scaled to all",
        rounds=bench.sizes.long_rounds,
    )


# --- all ---------------------------------------------------------------------------------------

ROWS: Final[dict[Name, Callable[[Bench], Row]]] = {
    "batch": batch_row,
    "batch_stock": partial(batch_row, stock=True),
    "adapted": adapted_row,
    "walk_1": partial(walks.leaf_row, count=1),
    "walk_64": partial(walks.leaf_row, count=64),
    "walk_256": partial(walks.leaf_row, count=256),
    "kernel": walks.kernel_row,
    "exact": walks.exact_row,
    "digits_1": partial(walks.dense_row, count=1),
    "digits_256": partial(walks.dense_row, count=256),
    "classes_100": classes_row,
    "convolution": convolution_row,
    "scan": walks.scan_row,
    "training": training_row,
    "tracking": tracking_row,
    "sweep": sweep_row,
    "fisher": fisher_row,
    "efficientnet": efficientnet_row,
}
assert tuple(ROWS) == get_args(Name)
