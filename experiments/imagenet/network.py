"""Photographs, the network beside the PyTorch original, and how many of its units are active."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foliax.zoo.efficientnet import EfficientNetLite, weights_path

MEAN, DEVIATION = 127.0, 128.0  # bytes, as the original takes them
CROP = 224 / 256  # the middle of a photograph, as in the original's evaluation
TOP = 5
NAMES: Mapping[int, str] = {
    281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 287: "lynx", 422: "barbell",
    450: "bobsled", 504: "coffee mug", 540: "drilling platform", 560: "football helmet",
    573: "go-kart", 657: "missile", 668: "mosque", 682: "obelisk", 744: "projectile",
    747: "punching bag", 809: "soup bowl", 812: "space shuttle", 904: "window screen",
    925: "consomme", 960: "chocolate sauce", 967: "espresso", 968: "cup",
}  # fmt: skip


def photograph(name: str, side: int) -> np.ndarray:
    """Return the middle of a photograph, resized, as pixels in [0, 1]."""
    from skimage import data, transform

    image = getattr(data, name)()
    crop = round(CROP * min(image.shape[:2]))
    top, left = ((extent - crop) // 2 for extent in image.shape[:2])
    middle = image[top : top + crop, left : left + crop]
    return np.asarray(transform.resize(middle, (side, side), order=1, anti_aliasing=True))


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1] as the network takes them."""
    return ((255 * pixels - MEAN) / DEVIATION).astype(np.float32)


def original_logits(xs: np.ndarray) -> np.ndarray | None:
    """Return the logits of the PyTorch original, or None where it is not installed."""
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights_path(), map_location="cpu", weights_only=True))
    with torch.no_grad():
        return network.eval()(torch.from_numpy(xs.transpose(0, 3, 1, 2).copy())).numpy()


def top(logits: np.ndarray) -> dict[str, float]:
    """Return the most probable classes with their probabilities."""
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    return {NAMES.get(int(i), f"class {i}"): float(p[i]) for i in np.argsort(-p)[:TOP]}


def activity(model: EfficientNetLite, x: Any) -> dict[str, Any]:
    """Count the active ReLU6 units, which bound dim D.

    The logits depend on x through the pooled features alone, and a feature varies with x only if
    one of its units is active: dim D is at most the number of such features. The units of a layer
    bound it too, where no bypass leads around the layer.
    """
    _, inputs = jax.jit(lambda model, x: model.inspect(x))(model, x)
    active = {name: np.asarray((before > 0) & (before < 6)) for name, before in inputs.items()}
    bypassed = {str(i) for i, block in enumerate(model.blocks) if block.skip}
    cuts = {k: int(a.sum()) for k, a in active.items() if k.split(".")[0] not in bypassed}
    pooled = active["head"].any(axis=(0, 1))
    dense = np.asarray(model.dense.kernel[...], np.float64)[pooled]
    centred = dense - dense.mean(axis=1, keepdims=True)
    return {
        "layers": {
            name.replace(".", " "): {"units": a.size, "active": int(a.sum())}
            for name, a in active.items()
        },
        "narrowest": min(cuts.values()),
        "narrowest_layer": min(cuts, key=lambda name: cuts[name]).replace(".", " "),
        "share": float(np.mean(np.concatenate([a.ravel() for a in active.values()]))),
        "pooled": int(pooled.sum()),
        "last_layer_rank": int(np.linalg.matrix_rank(centred)),
    }


def compare_with_original(
    model: EfficientNetLite, xs: Mapping[str, Any], *, trained: bool = True
) -> dict[str, Any]:
    """Return the five most probable classes at each photograph, beside those of the original."""
    batch = jnp.stack(list(xs.values()))
    ours = np.asarray(jax.jit(lambda m, xs: jax.lax.map(m, xs))(model, batch))
    theirs = original_logits(np.asarray(batch)) if trained else None
    found: dict[str, Any] = {"original": theirs is not None, "images": {}}
    for i, who in enumerate(xs):
        found["images"][who] = {"top": top(ours[i]), "largest_logit": np.abs(ours[i]).max()}
        if theirs is not None:
            found["images"][who] |= {
                "top_of_original": top(theirs[i]),
                "logits_off": np.abs(ours[i] - theirs[i]).max(),
                "same_order": list(top(ours[i])) == list(top(theirs[i])),
            }
    return found
