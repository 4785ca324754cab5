"""The sections of the report on the ImageNet network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.outcomes import FAILS, HOLDS, IN_PART
from experiments.harness.report import section
from foliax.zoo.efficientnet import EfficientNetLite

INTRO = (
    "EfficientNet-Lite0 as trained on ImageNet (C = 1000, n = 150,528; ReLU6, piecewise linear) on "
    "photographs that scikit-image ships. Eigenvalues are in nats per squared input unit, and a "
    "unit is 128 of 255 grey levels. Tolerances are relative to the largest eigenvalue. All "
    "numbers are in results.json."
)
_LEFT_OUT = "The exact factor was left out, so nothing was compared."


def _rows(who: Sequence[str], titles: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return a row for each path below `images.WHO`, with its title."""
    return [(title, *(f"images.{w}.{path}" for w in who)) for path, title in titles.items()]


def network_section(agreement: dict[str, Any]) -> dict[str, Any]:
    """Say how the network compares with the original."""
    images = agreement["images"]
    first = "; ".join(f"{who}: {next(iter(found['top']))}" for who, found in images.items())
    outcome, text = IN_PART, "The PyTorch original is not installed, so nothing was compared."
    titles = {"largest_logit": "largest logit"}
    if agreement["original"]:
        off = max(float(found["logits_off"]) for found in images.values())
        same = all(found["same_order"] for found in images.values())
        outcome = HOLDS if off < 1e-4 and same else FAILS
        order = "are the same in the same order" if same else "differ"
        text = f"No logit is off by more than {off:.2g}; the five most probable classes {order}."
        titles["logits_off"] = "largest difference"
    return section(
        title="The network is the original",
        claim="The Flax network has the logits of the PyTorch network whose weights it took.",
        verdict=(outcome, f"{text} Most probable: {first}."),
        numbers=agreement,
        pictures=[],
        columns=("logits", *images),
        rows=_rows(list(images), titles),
    )


def rank_section(
    numbers: dict[str, Any], model: EfficientNetLite, exponents: Sequence[int]
) -> dict[str, Any]:
    """Say what rank was found at each tolerance."""
    measured = [who for who, found in numbers.items() if "rank" in found]
    bound, n = model.dense.out_features - 1, int(np.prod(model.shape))
    counts = {
        f"{part}.{key}": f"{title}, tolerance {key}"
        for part, title in (("rank", "rank of G"), ("dimension", "dimension of the leaf"))
        for key in ("default", *(f"1e-{k}" for k in exponents))
        if measured
    }
    active = {
        "active.pooled": "pooled features with an active unit",
        "active.narrowest": "active units in the narrowest layer",
        "active.last_layer_rank": "rank of the last layer on active features",
        "active.share": "share of active units",
    }
    return section(
        title="The rank of G at the size of ImageNet",
        claim=f"rank G(x, w) < C: at most {bound} of {n:,}.",
        verdict=_rank_verdict(numbers, measured, bound),
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
        rows=_rows(measured or list(numbers), counts | active),
    )


def _rank_verdict(numbers: dict[str, Any], measured: list[str], bound: int) -> tuple[str, str]:
    pooled = {who: found["active"]["pooled"] for who, found in numbers.items()}
    listed = ", ".join(f"{pooled[who]} at {who}" for who in measured or numbers)
    if not measured:
        return IN_PART, f"The exact factor was left out. Active pooled features: {listed}."
    ranks = "; ".join(
        f"{who}: {r['1e-12']} ({r['1e-2']} at a tolerance of 1 %, {r['1e-6']} at 1e-6)"
        for who, r in ((who, numbers[who]["rank"]) for who in measured)
    )
    exactly = "".join(
        f" In float64 at {who}: rank {found['float64']['rank']['default']}, dimension "
        f"{found['float64']['dimension']['default']} at the default tolerance."
        for who, found in numbers.items()
        if "float64" in found
    )
    return HOLDS, (
        f"At most {bound}, by shape. Rank at a tolerance of 1e-12: {ranks}. Active pooled "
        f"features, which bound rank and dimension: {listed}.{exactly}"
    )


def spectrum_section(numbers: dict[str, Any], num_eigenvalues: int) -> dict[str, Any]:
    """Say what the leading eigenvalues are."""
    titles = {
        "largest": "largest eigenvalue",
        "trace": "trace",
        "estimate.value": "trace, estimated",
        "estimate.standard_error": "standard error",
        "captured": f"share of the trace in the {num_eigenvalues} leading",
        "lanczos.values_off": "Lanczos eigenvalues off",
        "lanczos.residual": "residual of the eigenpairs on the factor",
    }
    rows = [
        (title, *(path if path.split(".")[2] in numbers[who] else ""
                  for who, path in zip(numbers, paths, strict=True)))
        for title, *paths in _rows(list(numbers), titles)
    ]  # fmt: skip
    compared = [found["lanczos"] for found in numbers.values() if "lanczos" in found]
    misses = [abs(float(f["estimate"].get("errors_off", 0))) for f in numbers.values()]
    outcome, text = IN_PART, _LEFT_OUT
    if compared:
        off, residual = (
            max(float(found[k]) for found in compared) for k in ("values_off", "residual")
        )
        outcome = HOLDS if max(off, residual) < 1e-4 and max(misses) < 4 else FAILS
        text = (
            f"The {num_eigenvalues} leading eigenvalues differ from those of the factor by at most "
            f"{off:.1g} of the largest, residuals are at most {residual:.1g} of it; the estimated "
            f"traces are at most {max(misses):.2g} standard errors off."
        )
    shown = ("trace", "estimate", "largest", "captured", "lanczos")
    return section(
        title="Eigenpairs and trace without the factor",
        claim="Lanczos and random signs give what the exact factor gives.",
        verdict=(outcome, text),
        numbers={"images": {w: {k: f[k] for k in shown if k in f} for w, f in numbers.items()}},
        pictures=[
            ("eigenvectors.png", "Photographs and the leading eigenvectors of G, around grey.")
        ],
        columns=("", *numbers),
        rows=[row for row in rows if any(row[1:])],
    )
