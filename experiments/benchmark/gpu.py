"""The row of the benchmark for a GPU: how much of its arithmetic the batch Jacobian uses.

The peak is measured, as the rate of a large square product in the same precision, and the work is
counted: the floating-point operations of a forward pass, by XLA on the program before it is
optimised, times C, as each of the C − 1 reverse passes costs as much as the forward one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.benchmark import nets, peers
from experiments.benchmark.bench import Bench
from experiments.benchmark.timing import Ratio, Row, Skipped, compiled, within

_IMAGES, _SIDE = 1024, 8192
_TERA = 1e12
_CHUNK = 256  # images at once in PyTorch, whose memory is that of as many graphs
_ROUGH, _CLOSE = 0.2, 1e-3  # median errors of traces, in bfloat16 and in float32


def gpu_row(bench: Bench) -> Row:
    """Compare rates, in float32 as JAX sets it and in bfloat16 with float32 sums."""
    if jax.default_backend() != "gpu":
        raise Skipped(f"JAX runs on {jax.default_backend()}, no GPU")
    return rates(bench, _IMAGES, _SIDE)


def rates(bench: Bench, images: int, side: int) -> Row:
    """Return the row: a unit is 10¹² operations, so that 1 / seconds is the rate in TFLOP/s."""
    xs = bench.images(images)
    work = images * forward_operations(bench.stock, xs[0]) * bench.classes / _TERA
    contenders, ratios = [], []
    for dtype in ("float32", "bfloat16"):
        peak, own, theirs = (
            f"{what}, {dtype}" for what in ("product", "Jacobian", "PyTorch's Jacobian")
        )
        square = jnp.ones((side, side), dtype)
        model = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), bench.model)
        contenders += [
            compiled(peak, product, square, square, units=2 * side**3 / _TERA),
            compiled(own, jacobian, model, jnp.asarray(xs, dtype), units=work),
            *bench.theirs(theirs, work, partial(_by_func, bench, xs, dtype)),
        ]
        ratios += [
            Ratio(f"TFLOP/s, {peak}", (), (peak,)),
            Ratio(f"TFLOP/s, {own}", (), (own,)),
            Ratio(f"{own}: share of the peak", (peak,), (own,)),
            Ratio(f"{own}: beside PyTorch's", (theirs,), (own,)),
        ]
    return Row(f"Jacobian of {images} images at once", "TFLOP", contenders, ratios, _errors)


def _by_func(bench: Bench, xs: np.ndarray, dtype: str) -> Any:
    given = getattr(peers.torch, dtype)
    net = peers.network(bench.model).to(given)
    return partial(peers.factors_by_func, net, peers.tensor(xs).to(given), _CHUNK)


def _errors(found: dict[str, Any]) -> dict[str, Any]:
    """Compare the traces of all Jacobians with ours in float32."""
    traces = {who: _traces(factors) for who, factors in found.items() if "Jacobian" in who}
    exact, errors = traces.pop("Jacobian, float32"), {}
    for who, values in traces.items():
        most = _ROUGH if "bfloat16" in who else _CLOSE
        error = float(np.median(np.abs(values / exact - 1)))
        errors[f"trace_error: {who}"] = within(error, most, f"trace, {who}")
    return errors


def _traces(factors: Any) -> np.ndarray:
    if not isinstance(factors, jax.Array):  # a tensor, on the device
        factors = factors.float().cpu()
    return np.sum(np.asarray(factors, np.float64) ** 2, axis=(1, 2))


def jacobian(model: Any, xs: Any) -> Any:
    """Return the factors of all images, all reverse passes at once."""
    return jax.vmap(foliax.factor, (None, 0))(model, xs)


def product(a: Any, b: Any) -> Any:
    """Multiply, summing in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def forward_operations(model: Any, x: Any) -> float:
    """Return the floating-point operations of one forward pass."""
    analysis: Any = jax.jit(nets.forward).lower(model, x[None]).cost_analysis()
    return float(analysis["flops"])
