"""Weights trained in PyTorch, read into the networks of the zoo.

What differs is the layout: dense (out, in) here (in, out), convolutions OIHW here HWIO, and images
flattened channels first there, last here. A batch normalisation, which at evaluation is an affine
map, is taken over where the network has one, and otherwise folded into the layer before it, in
float64. Nothing is unpickled.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from foliax.zoo.nets import CNN, MLP

__all__ = ["Layer", "load_torch", "read_torch", "torch_layers"]

Network = TypeVar("Network", bound=nnx.Module)
State = dict[str, np.ndarray]
Names = Sequence[tuple[str, str | None]]


class Layer(NamedTuple):
    """Where a layer's weights come from.

    Attributes:
        module: What has the `kernel` and the `bias` to be set.
        name: The PyTorch layer: its weight is `name.weight`.
        norm: The PyTorch batch normalisation that follows it, or None.
        epsilon: Added to the variance in that normalisation.
        image: (H, W, channels) that the layer gets flattened, or None.
        batch_norm: Our batch normalisation that takes over that one; None to fold it in.
    """

    module: Any
    name: str
    norm: str | None = None
    epsilon: float = 1e-5
    image: tuple[int, ...] | None = None
    batch_norm: nnx.BatchNorm | None = None


def load_torch(
    model: Network,
    source: str | os.PathLike | Mapping[str, Any],
    *,
    shape: Sequence[int] | None = None,
) -> Network:
    """Return the network with weights of a PyTorch state dict.

    Args:
        model: An `MLP`, a `CNN` (VGG is one) or an `EfficientNetLite`, whose sizes the weights must
            fit; it is left as it is. The first two take the weights of a `torch.nn.Sequential`,
            whatever its layers are called, in the order in which they appear.
        source: A .npz file, a .pt or .pth file (needs PyTorch), or a mapping from names to arrays.
            Names may begin with "w."; then all others are ignored.
        shape: (H, W, channels) of the images that an MLP flattens, needed for more than one
            channel, which PyTorch puts first.

    Returns:
        A new network, of the same dtype.

    Raises:
        ValueError: If a weight is missing, has another shape than expected or is not used, or if
            the file is of another kind or contains more than tensors.
        ImportError: If a .pt or .pth file is to be read and PyTorch is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from flax import nnx
        >>> state = {"0.weight": np.array([[1.0, 2.0]]), "0.bias": np.array([3.0])}
        >>> load_torch(MLP((2, 1), rngs=nnx.Rngs(0)), state)(jnp.ones(2)).tolist()
        [6.0]
    """
    state = read_torch(source)
    model = nnx.clone(model)
    layers = torch_layers(model, _in_order(state))
    if shape is not None:
        layers = [layers[0]._replace(image=tuple(shape)), *layers[1:]]
    for layer in layers:
        for target, value in _converted(layer, state):
            target.set_value(jnp.asarray(value, target.dtype))
    if state:
        raise ValueError(
            f"source holds what {type(model).__name__} has no place for: "
            + ", ".join(f"{key} {value.shape}" for key, value in state.items())
        )
    return model


@singledispatch
def torch_layers(model: Any, names: Names) -> list[Layer]:
    """Return the layers of a network, and the PyTorch names of their weights.

    A network of another module registers its own table.

    Args:
        model: The network.
        names: The PyTorch layers in order, each with its batch normalisation or None.
    """
    del names
    raise ValueError(f"model must be a network of foliax.zoo, got {type(model).__name__}")


@torch_layers.register
def _(model: MLP, names: Names) -> list[Layer]:
    return _sequential(model.layers, names)


@torch_layers.register
def _(model: CNN, names: Names) -> list[Layer]:
    first = len(model.convs)
    layers = _sequential((*model.convs, *model.denses), names)
    layers[first] = layers[first]._replace(image=model.pooled_shape)
    for i, norm in enumerate(model.norms):
        layers[i] = layers[i]._replace(batch_norm=norm)
    return layers


def _sequential(modules: Iterable[Any], names: Names) -> list[Layer]:
    modules = list(modules)
    if len(names) != len(modules):
        raise ValueError(
            f"source must hold {len(modules)} layers with weights, got {len(names)}: "
            + ", ".join(name for name, _ in names)
        )
    return [Layer(module, *pair) for module, pair in zip(modules, names, strict=True)]


def read_torch(source: str | os.PathLike | Mapping[str, Any]) -> State:
    """Return a state dict as numpy arrays; see `load_torch` for the sources."""
    if isinstance(source, Mapping):
        found = dict(source)
    elif Path(source).suffix == ".npz":
        found = _read_arrays(Path(source))
    elif Path(source).suffix in (".pt", ".pth"):
        found = _unpickle_tensors(Path(source))
    else:
        raise ValueError(f"source must be a .npz, .pt or .pth file, got {os.fspath(source)}")
    if not all(isinstance(key, str) for key in found):
        raise ValueError(f"source must have names for keys, got {list(found)[:3]}")
    if any(key.startswith("w.") for key in found):
        found = {key[2:]: value for key, value in found.items() if key.startswith("w.")}
    state = {key: np.asarray(value) for key, value in found.items()}
    for key, value in state.items():
        if value.dtype.kind not in "fiu":
            raise ValueError(
                f"source[{key!r}] must be an array of numbers, got {type(found[key]).__name__}; "
                "pass the state dict itself"
            )
    return state


def _read_arrays(path: Path) -> State:
    with path.open("rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise ValueError(
                f"{path} is not an .npz file of numeric arrays, which nothing pickled is: {error}"
            ) from error


def _unpickle_tensors(path: Path) -> dict[Any, Any]:
    """Read tensors and containers of them; anything else in the file is refused by PyTorch."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs PyTorch: pip install 'foliax[imagenet]', or save the "
            "state dict as .npz"
        ) from error
    import pickle

    def plain(value: Any) -> Any:
        return value.detach().to_dense().double().numpy() if torch.is_tensor(value) else value

    with path.open("rb") as raw:
        try:
            found = torch.load(raw, map_location="cpu", weights_only=True)
            if isinstance(found, Mapping):
                return {key: plain(value) for key, value in found.items()}
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors and is not loaded; save model.state_dict() alone"
            ) from error
        except Exception as error:  # its archive and its unpickler each raise their own
            raise ValueError(
                f"{path} is not a whole file of torch.save; save model.state_dict() again: {error}"
            ) from error
    raise ValueError(f"{path} must hold a state dict, got {type(found).__name__}")


def _in_order(state: State) -> Names:
    """Pair each layer, in order of appearance, with the batch normalisation that follows it."""
    pairs: list[tuple[str, str | None]] = []
    for name in dict.fromkeys(key.rpartition(".")[0] for key in state):
        if f"{name}.running_mean" in state and pairs:
            pairs[-1] = (pairs[-1][0], name)
        else:
            pairs.append((name, None))
    return pairs


def _converted(layer: Layer, state: State) -> list[tuple[nnx.Variable, np.ndarray]]:
    """Take a layer's arrays out of the state dict; return our variables and their values."""
    module, width = layer.module, layer.module.kernel.shape[-1:]
    kernel = _kernel(layer, state)
    bias = np.zeros(width)
    if f"{layer.name}.bias" in state or layer.norm is None:
        bias = _take(state, f"{layer.name}.bias", width)
    if layer.norm is None and layer.batch_norm is None:
        return [(module.kernel, kernel), (module.bias, bias)]
    if layer.norm is None:
        raise ValueError(f"source has no batch normalisation after {layer.name}, expected one")
    scale, shift, mean, variance = (
        _take(state, f"{layer.norm}.{key}", width)
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    state.pop(f"{layer.norm}.num_batches_tracked", None)
    if (norm := layer.batch_norm) is not None:
        own: list[Any] = [module.kernel, module.bias, norm.scale, norm.bias, norm.mean, norm.var]
        return list(zip(own, (kernel, bias, scale, shift, mean, variance), strict=True))
    scale = scale / np.sqrt(variance + layer.epsilon)
    return [(module.kernel, kernel * scale), (module.bias, (bias - mean) * scale + shift)]


def _kernel(layer: Layer, state: State) -> np.ndarray:
    """Take a layer's weight out of the state dict, in our layout."""
    shape, weight = layer.module.kernel.shape, f"{layer.name}.weight"
    pointwise = weight in state and state[weight].ndim == 4
    if len(shape) == 2 and pointwise:  # a 1×1 convolution, here a product
        return _take(state, weight, (*shape[::-1], 1, 1))[..., 0, 0].T
    if len(shape) == 2:
        return _channels_last(_take(state, weight, shape[::-1]), layer).T
    if len(shape) == 3:  # depthwise
        return _take(state, weight, (shape[2], 1, *shape[:2]))[:, 0].transpose(1, 2, 0)
    return _take(state, weight, (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)


def _channels_last(weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Reorder the inputs of a dense layer that gets a flattened image."""
    if layer.image is None:
        return weight
    height, width, channels = layer.image
    if height * width * channels != weight.shape[1]:
        raise ValueError(
            f"shape must hold {weight.shape[1]} numbers, the inputs of {layer.name}, got "
            f"{layer.image}"
        )
    chw = weight.reshape(-1, channels, height, width)
    return chw.transpose(0, 2, 3, 1).reshape(weight.shape)


def _take(state: State, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Take an array out of the state dict in float64, or say what is wrong with it."""
    if key not in state:
        raise ValueError(f"source has no {key!r}, expected an array of shape {shape}")
    value = state.pop(key)
    if value.shape != shape:
        raise ValueError(f"source[{key!r}] has shape {value.shape}, expected {shape}")
    return value.astype(np.float64)
