"""The same mathematics in PyTorch, as a researcher would write it: what foliax is timed beside.

- P1, the papers' algorithm: one sample at a time, `torch.autograd.functional.jacobian` of the log
  probabilities, ranks by `matrix_rank`, projections by QR of the normalised gradients; the kernel's
  by a full QR, whose n × n matrix holds a basis of the kernel, and least squares on that basis.
- P2, the best plain `torch.func`: `vmap(jacrev)` of C − 1 differences of logits where the
  projection is all that is wanted, of the log probabilities elsewhere, and batched linear algebra.

Images are channels first. PyTorch is an extra; without it `torch` is None.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from foliax import zoo

torch: Any = import_module("torch") if find_spec("torch") else None


def device() -> str:
    """Return where PyTorch computes: on the GPU where JAX does and PyTorch can."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def wait(result: Any) -> Any:
    """Wait until the device is done."""
    if device() == "cuda":
        torch.cuda.synchronize()
    return result


def settings() -> dict[str, Any]:
    """Return what a time depends on."""
    return {
        "version": torch.__version__,
        "device": device(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def network(model: Any) -> Any:
    """Return the `torch.nn.Sequential` of a `zoo.CNN` or `zoo.MLP`, with its weights."""
    nn, layers = torch.nn, []
    if isinstance(model, zoo.CNN):
        convs = iter(model.convs)
        for item in model.plan:
            if item == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            own = next(convs)
            layer = nn.Conv2d(own.kernel.shape[2], item, 3, padding=model.padding)
            layers += [_filled(layer, _numpy(own.kernel).transpose(3, 2, 0, 1), own), nn.ReLU()]
        denses, image = model.denses, model.pooled_shape
    else:
        denses, image = tuple(model.layers), (model.sizes[0], 1, 1)
    layers.append(nn.Flatten())
    for i, own in enumerate(denses):
        kernel = _numpy(own.kernel)
        if i == 0:  # images are flattened channels last there, first here
            kernel = kernel.reshape(*image, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        layers += [_filled(nn.Linear(*kernel.shape), kernel.T, own), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device()).requires_grad_(False).eval()


def _filled(layer: Any, weight: np.ndarray, own: Any) -> Any:
    layer.weight.data = torch.tensor(weight)
    layer.bias.data = torch.tensor(_numpy(own.bias))
    return layer


def _numpy(parameter: Any) -> np.ndarray:
    return np.ascontiguousarray(parameter[...])


def tensor(xs: Any, net: Any = None) -> Any:
    """Return images (…, H, W, channels) channels first, in the precision of a network."""
    moved = torch.tensor(np.moveaxis(np.asarray(xs), -1, -3).copy()).to(device())
    return moved if net is None else moved.to(next(net.parameters()).dtype)


def array(images: Any) -> np.ndarray:
    """Return images channels last again."""
    return np.moveaxis(images.detach().cpu().numpy(), -3, -1)


def matrices_by_loop(net: Any, xs: Any) -> dict[str, np.ndarray]:
    """Return trace, rank and spectrum of G, image by image (P1)."""
    found: dict[str, list[Any]] = {"trace": [], "rank": [], "spectrum": []}
    for x in xs:
        rows = _gradients(net, x)
        p = torch.softmax(net(x[None]), dim=1)[0]
        found["trace"].append(torch.sum(p * torch.sum(rows**2, dim=1)).item())
        rank = int(torch.linalg.matrix_rank(rows))
        found["rank"].append(min(rank, len(rows) - 1))
        s = torch.linalg.svdvals(torch.sqrt(p)[:, None] * rows)
        found["spectrum"].append((s[: len(rows) - 1] ** 2).cpu().numpy())
    return {name: np.stack(values) for name, values in found.items()}


def _gradients(net: Any, x: Any) -> Any:
    """Return the gradients of the log probabilities at one image, (C, n) (P1)."""
    jacobian = torch.autograd.functional.jacobian
    rows = jacobian(lambda y: torch.log_softmax(net(y), dim=1), x[None])
    return rows.reshape(rows.shape[1], -1)


def matrices_by_func(net: Any, xs: Any, chunk: int | None) -> dict[str, Any]:
    """Return trace, rank and spectrum of G of a batch (P2), in chunks of images."""
    factor = factors_by_func(net, xs, chunk)
    classes = factor.shape[1]
    s = torch.linalg.svdvals(torch.linalg.qr(factor.mT, mode="r").R)[:, : classes - 1]
    least = 10 * classes * torch.finfo(s.dtype).eps * s[:, :1]
    trace = torch.sum(factor**2, dim=(1, 2))
    return {"trace": trace, "rank": torch.sum(s > least, dim=1), "spectrum": s**2}


def factors_by_func(net: Any, xs: Any, chunk: int | None) -> Any:
    """Return the factors of G, √p times the gradients of log p, of a batch (P2)."""

    def log_p(x: Any) -> tuple[Any, Any]:
        value = torch.log_softmax(net(x[None])[0], dim=0)
        return value, value

    jacobian = torch.func.jacrev(log_p, has_aux=True)
    rows, value = torch.func.vmap(jacobian, chunk_size=chunk)(xs)
    return torch.exp(value / 2)[:, :, None] * rows.flatten(2)


def kernel_of(layer: Any) -> Any:
    """Return the weight of a convolution."""
    return torch.tensor(_numpy(layer.kernel).transpose(3, 2, 0, 1).copy()).to(device())


def pulled(weight: Any, rows: Any, shape: tuple[int, int, int]) -> Any:
    """Return cotangents of a convolution's outputs, (images, cotangents, …), at its inputs."""
    size = (rows.shape[0] * rows.shape[1], *shape)
    back = torch.nn.grad.conv2d_input(size, weight, rows.flatten(0, 1))
    return back.reshape(*rows.shape[:2], *shape)


def walk_by_loop(
    net: Any, x: Any, goal: Any, box: tuple[float, float], *,
    along: str, step: float, steps: int,
) -> Any:  # fmt: skip
    """Return the points (steps, *x.shape) of a path by the published scheme (P1).

    The goal is where to go along the leaf; along the kernel, in which direction.
    """
    normalize, points = torch.nn.functional.normalize, []
    for _ in range(steps):
        columns = normalize(_gradients(net, x), dim=1).T
        v = (goal - x if along == "leaf" else goal).flatten()
        d = _on_leaf(columns, v) if along == "leaf" else _on_kernel(columns, v)
        x = (x + step * normalize(d, dim=0).reshape(x.shape)).clamp(*box)
        points.append(x)
    return torch.stack(points)


def _on_leaf(columns: Any, v: Any) -> Any:
    """Project on the span of C dependent gradients: of QR, the first C − 1 columns."""
    q = torch.linalg.qr(columns).Q[:, : columns.shape[1] - 1]
    return q @ (q.T @ v)


def _on_kernel(columns: Any, v: Any) -> Any:
    """Project on the kernel by a basis of it, n − C + 1 columns of the full QR."""
    basis = torch.linalg.qr(columns, mode="complete").Q[:, columns.shape[1] - 1 :]
    return basis @ torch.linalg.lstsq(basis, v[:, None]).solution[:, 0]


def walk_by_func(
    net: Any, xs: Any, goals: Any, box: tuple[float, float], *,
    along: str, step: float, steps: int, chunk: int | None = None,
) -> Any:  # fmt: skip
    """Return the points (steps, *xs.shape) of many paths (P2); see `walk_by_loop`."""

    def differences(x: Any) -> Any:
        logits = net(x[None])[0]
        return logits[:-1] - logits[-1]

    one = torch.func.jacrev(differences)
    many = torch.func.vmap(one, chunk_size=chunk) if len(xs) > 1 else lambda xs: one(xs[0])[None]
    points = []
    for _ in range(steps):
        rows = many(xs).flatten(2)
        v = (goals - xs if along == "leaf" else goals).flatten(1)[:, :, None]
        lower = torch.linalg.cholesky_ex(rows @ rows.mT).L  # NaN where rows are dependent
        d = rows.mT @ torch.cholesky_solve(rows @ v, lower)
        d = d[:, :, 0] if along == "leaf" else (v - d)[:, :, 0]
        d = torch.nn.functional.normalize(d, dim=1).reshape(xs.shape)
        xs = (xs + step * d).clamp(*box)
        points.append(xs)
    return torch.stack(points)


def fisher_product(net: Any, xs: Any, v: dict[str, Any]) -> dict[str, Any]:
    """Return the mean over xs of F(x, w) v: one jvp, one vjp."""
    weights = dict(net.named_parameters())

    def logits(weights: Any) -> Any:
        return torch.func.functional_call(net, weights, (xs,))

    value, change = torch.func.jvp(logits, (weights,), (v,))[:2]
    p = torch.softmax(value, dim=1)
    cotangent = p * (change - torch.sum(p * change, dim=1, keepdim=True))
    return torch.func.vjp(logits, weights)[1](cotangent / len(xs))[0]


def trainer(model: Any, rate: float) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return a network, and what makes a step of plain SGD on it and returns the loss."""
    net = network(model).requires_grad_(True).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)

    def step(xs: Any, ys: Any) -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(xs), ys)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, step


def labels(ys: Any) -> Any:
    """Return class labels."""
    return torch.tensor(np.asarray(ys, np.int64)).to(device())


def weights_of(model: Any) -> dict[str, Any]:
    """Return a network's weights, or whatever has its shapes, by their names in PyTorch."""
    return dict(network(model).named_parameters())


def factor_rows(net: Any, x: Any, count: int, *, together: bool) -> Any:
    """Return the first rows of A = Lᵀ J at one image: one by one (P1), or in one vmap (P2)."""

    def columns(logits: Any) -> Any:
        weights, rows = foliax.Categorical().factor(jnp.asarray(logits.detach().cpu().numpy()))
        first = np.array(weights[:count, None] * rows[:count])
        return torch.tensor(first, dtype=x.dtype).to(x.device)

    if together:
        logits, pull = torch.func.vjp(lambda y: net(y[None])[0], x)[:2]
        return torch.func.vmap(lambda column: pull(column)[0])(columns(logits))
    x = x.clone().requires_grad_(True)
    logits = net(x[None])[0]
    grad = torch.autograd.grad
    return torch.stack([grad(logits, x, c, retain_graph=True)[0] for c in columns(logits)])
