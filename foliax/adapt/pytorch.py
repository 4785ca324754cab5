"""PyTorch: an `nn.Module`, run on JAX by torchax."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from foliax._core.fixed import Fixed
from foliax.adapt.network import Change, Network, no_layer, with_array
from foliax.adapt.output import Pick, picked

_INSTALL = "pip install 'foliax[torch]'"


class Torch(Network):
    """A module in evaluation mode, with copies of its weights as JAX arrays.

    Attributes:
        weights: Parameters by name.
        buffers: Statistics and the like by name.
        module: The module; its own weights are not used.
        pick: What of the output are the logits, chosen before it leaves PyTorch.
        options: Names and values that are given by name.
    """

    weights: dict[str, Any]
    buffers: Fixed
    module: Any = eqx.field(static=True)
    pick: Pick = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def call(self, x: Any) -> Any:
        """Return the logits of the module, in the dtype of its weights."""
        from torch.func import functional_call
        from torchax.interop import jax_view, torch_view

        if jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(self._dtype(x.dtype))
        tensors = self.weights | self.buffers.value
        with _environment():
            given = {name: torch_view(weight) for name, weight in tensors.items()}
            out = functional_call(self.module, given, (torch_view(x),), dict(self.options))
            return jax_view(picked(out, self.pick))

    def _dtype(self, otherwise: Any) -> Any:
        kinds = (weight.dtype for weight in self.weights.values())
        return next((kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)), otherwise)

    @contextmanager
    def changed(self, layer: str, change: Change) -> Iterator[Network]:
        """Change what a layer returns by a hook, which is taken off again."""
        found = dict(self.module.named_modules())
        if not layer or layer not in found:
            raise no_layer(layer, [name for name in found if name])
        handle = found[layer].register_forward_hook(_hook(change))
        try:
            yield self
        finally:
            handle.remove()


def _hook(change: Change) -> Callable[..., Any]:
    def hook(module: Any, args: Any, out: Any) -> Any:
        from torchax.interop import jax_view, torch_view

        del module, args
        return with_array(out, lambda array: torch_view(change(jax_view(array))))

    return hook


def bind(module: Any, weights: tuple[Any, ...], options: Mapping[str, Any], pick: Pick) -> Torch:
    """Copy the weights of a module that is in evaluation mode, on the CPU."""
    if weights:
        raise ValueError(
            f"model, a PyTorch {type(module).__name__}, holds its weights, got {len(weights)} "
            "more arguments; call adapt(model)"
        )
    training = [name or "the model itself" for name, m in module.named_modules() if m.training]
    if training:
        raise ValueError(
            f"model must be in evaluation mode, got training mode in {', '.join(training[:5])}; "
            "call model.eval()"
        )
    named = dict(module.named_parameters()), dict(module.named_buffers())
    devices = {str(tensor.device) for part in named for tensor in part.values()} - {"cpu"}
    if devices:
        raise ValueError(
            f"model must lie on the CPU, from where JAX takes it to its own device, got weights "
            f"on {', '.join(sorted(devices))}; call model.cpu()"
        )
    _environment()
    parameters, buffers = (
        {name: _as_array(tensor) for name, tensor in part.items()} for part in named
    )
    return Torch(parameters, Fixed(buffers), module, pick, tuple(sorted(options.items())))


def _as_array(tensor: Any) -> jax.Array:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        return jnp.asarray(tensor.float().numpy()).astype(jnp.bfloat16)
    return jnp.array(tensor.numpy())


def _environment() -> Any:
    """Return what runs PyTorch's operations on JAX, or say what to install."""
    try:
        import torchax
    except Exception as error:  # of a version of PyTorch that it does not know
        import torch

        raise ImportError(
            f"a PyTorch model needs torchax, which does not import beside torch "
            f"{torch.__version__} ({type(error).__name__}: {error}); {_INSTALL} brings two "
            "versions that fit"
        ) from error
    return torchax.default_env()
