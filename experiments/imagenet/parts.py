"""What `imagenet` rests on: photographs, the network beside the original, and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.common import FAILS, HOLDS, IN_PART
from experiments.harness.report import section
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
    _, seen = jax.jit(lambda model, x: model.inspect(x))(model, x)
    active = {name: np.asarray((before > 0) & (before < 6)) for name, before in seen.items()}
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


# --- the report --------------------------------------------------------------------------------

INTRO = (
    "EfficientNet-Lite0 as trained on ImageNet (C = 1000, n = 150,528; ReLU6, piecewise linear) on "
    "photographs that scikit-image ships. Eigenvalues are in nats per squared input unit, and a "
    "unit is 128 of 255 grey levels. Tolerances are relative to the largest eigenvalue. All "
    "numbers are in results.json."
)


def network_section(agreement: dict[str, Any]) -> dict[str, Any]:
    """Say how the network compares with the original."""
    images = agreement["images"]
    seen = "; ".join(f"{who}: {next(iter(found['top']))}" for who, found in images.items())
    outcome, told = IN_PART, "The PyTorch original is not installed, so nothing was compared."
    rows = [("largest logit", *(f"images.{who}.largest_logit" for who in images))]
    if agreement["original"]:
        off = max(float(found["logits_off"]) for found in images.values())
        same = all(found["same_order"] for found in images.values())
        outcome = HOLDS if off < 1e-4 and same else FAILS
        order = "are the same in the same order" if same else "differ"
        told = (
            f"No logit is off by more than {off:.2g}, and the five most probable classes {order}."
        )
        rows.append(("largest difference", *(f"images.{who}.logits_off" for who in images)))
    return section(
        title="The network is the original",
        claim="The Flax network has the logits of the PyTorch network whose weights it took.",
        verdict=(outcome, f"{told} Most probable: {seen}."),
        numbers=agreement,
        pictures=[],
        columns=("logits", *images),
        rows=rows,
    )


def rank_section(
    numbers: dict[str, Any], model: EfficientNetLite, exponents: Sequence[int]
) -> dict[str, Any]:
    """Say what rank was found at each tolerance."""
    measured = [who for who, found in numbers.items() if "rank" in found]
    bound, n = model.dense.out_features - 1, int(np.prod(model.shape))
    rows = []
    if measured:
        keys = ("default", *(f"1e-{k}" for k in exponents))
        rows = [
            (f"{title}, tolerance {key}", *(f"images.{who}.{part}.{key}" for who in measured))
            for title, part in (("rank of G", "rank"), ("dimension of the leaf", "dimension"))
            for key in keys
        ]
    active = [
        (title, *(f"images.{who}.active.{name}" for who in (measured or numbers)))
        for title, name in (
            ("pooled features with an active unit", "pooled"),
            ("active units in the narrowest layer", "narrowest"),
            ("rank of the last layer on active features", "last_layer_rank"),
            ("share of active units", "share"),
        )
    ]
    return section(
        title="The rank of G at the size of ImageNet",
        claim=f"rank G(x, w) < C: at most {bound} of {n:,}.",
        verdict=_judge_rank(numbers, measured, bound),
        numbers={"bound": bound, "n": n, "images": numbers},
        pictures=[
            (
                "spectrum.png",
                "Left, the leading eigenvalues of G by Lanczos; right, where the factor was made, "
                "all of them, in float32: the cliff stands where the active pooled features end, "
                "and what follows it is rounding.",
            )
        ],
        columns=("", *(measured or numbers)),
        rows=[*rows, *active],
    )


def _judge_rank(numbers: dict[str, Any], measured: list[str], bound: int) -> tuple[str, str]:
    pooled = {who: found["active"]["pooled"] for who, found in numbers.items()}
    if not measured:
        told = ", ".join(f"{count} at {who}" for who, count in pooled.items())
        return IN_PART, f"The exact factor was left out. Active pooled features: {told}."
    ranks = {who: numbers[who]["rank"] for who in measured}
    told = "; ".join(
        f"{who}: {r['1e-12']} ({r['1e-2']} at a tolerance of 1 %, {r['1e-6']} at 1e-6)"
        for who, r in ranks.items()
    )
    same = all(
        numbers[who][kind]["1e-12"] == pooled[who]
        for who in measured
        for kind in ("rank", "dimension")
    )
    why = (
        "At every photograph rank and dimension are the number of pooled features that have an "
        "active unit: the network is narrower than the bound."
        if same
        else f"Active pooled features: {', '.join(f'{pooled[who]} at {who}' for who in measured)}."
    )
    exactly = "".join(
        f" In float64 at {who}: rank {found['float64']['rank']['default']}, dimension "
        f"{found['float64']['dimension']['default']} at the default tolerance."
        for who, found in numbers.items()
        if "float64" in found
    )
    text = f"At most {bound}, by shape. Rank at a tolerance of 1e-12: {told}. {why}{exactly}"
    return HOLDS, text


def spectrum_section(numbers: dict[str, Any], num_eigenvalues: int) -> dict[str, Any]:
    """Say what the leading eigenvalues are."""
    rows = [("largest eigenvalue", *(f"images.{who}.largest" for who in numbers))]
    titles = {
        "trace": "trace",
        "estimate.value": "trace, estimated",
        "estimate.standard_error": "standard error",
        "captured": f"share of the trace in the {num_eigenvalues} leading",
        "lanczos.values_off": "Lanczos eigenvalues off",
        "lanczos.residual": "residual of the eigenpairs on the factor",
    }
    for name, title in titles.items():
        first = name.split(".")[0]
        cells = [f"images.{w}.{name}" if first in found else "" for w, found in numbers.items()]
        if any(cells):
            rows.append((title, *cells))
    compared = [found["lanczos"] for found in numbers.values() if "lanczos" in found]
    misses = [abs(float(f["estimate"].get("errors_off", 0))) for f in numbers.values()]
    outcome, told = IN_PART, "The exact factor was left out, so nothing was compared."
    if compared:
        off = max(float(found["values_off"]) for found in compared)
        residual = max(float(found["residual"]) for found in compared)
        outcome = HOLDS if max(off, residual) < 1e-4 and max(misses) < 4 else FAILS
        told = (
            f"The {num_eigenvalues} leading eigenvalues differ from those of the factor by "
            f"at most {off:.1g} of the largest, residuals are at most {residual:.1g} of it; the "
            f"estimated traces are at most {max(misses):.2g} standard errors off."
        )
    strip = ("eigenvectors.png", "Photographs and the leading eigenvectors of G, around grey.")
    return section(
        title="Eigenpairs and trace without the factor",
        claim="Lanczos and random signs give what the exact factor gives.",
        verdict=(outcome, told),
        numbers={
            "images": {w: {k: v for k, v in f.items() if k in _SHOWN} for w, f in numbers.items()}
        },
        pictures=[strip],
        columns=("", *numbers),
        rows=rows,
    )


_SHOWN = ("trace", "estimate", "largest", "captured", "lanczos")
