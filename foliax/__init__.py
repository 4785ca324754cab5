"""foliax: data through the eyes of a model.

The local data matrix G(x, w) of a classifier, its spectrum, the distribution D that it gives and
how far that has leaves, and walks along them. Everything here is a pure function of
`(model, x, …)` for one input x, and compiles itself; batch with `jax.vmap`.

`foliax.leaf` is the geometry of leaves. `foliax.fisher` (F on the parameters),
`foliax.equivariance` (invariant models), `foliax.apps` (denoising, outliers, generation,
explanation, metamers, transfer, attacks), `foliax.sharding` (many devices and hosts), `foliax.zoo`
(networks, data, training, checkpoints) and `foliax.viz` (pictures) are loaded when they are first
used.
"""

import importlib
import importlib.metadata
from typing import Any

from foliax._backend.rewrite import with_options as with_options
from foliax.adapt import adapt as adapt
from foliax.batch.map import map as map
from foliax.batch.sweep import sweep as sweep
from foliax.data_matrix import Average as Average
from foliax.data_matrix import Eigen as Eigen
from foliax.data_matrix import Estimate as Estimate
from foliax.data_matrix import Spectrum as Spectrum
from foliax.data_matrix import average as average
from foliax.data_matrix import eigh as eigh
from foliax.data_matrix import factor as factor
from foliax.data_matrix import kl as kl
from foliax.data_matrix import matrix as matrix
from foliax.data_matrix import matvec as matvec
from foliax.data_matrix import quadratic as quadratic
from foliax.data_matrix import rank as rank
from foliax.data_matrix import solve as solve
from foliax.data_matrix import spectrum as spectrum
from foliax.data_matrix import trace as trace
from foliax.data_matrix import trace_estimate as trace_estimate
from foliax.describe import describe as describe
from foliax.flow.box import Box as Box
from foliax.flow.brownian import Brownian as Brownian
from foliax.flow.brownian import brownian as brownian
from foliax.flow.closest import Closest as Closest
from foliax.flow.closest import closest as closest
from foliax.flow.path import Path as Path
from foliax.flow.path import Status as Status
from foliax.flow.walk import drift as drift
from foliax.flow.walk import walk as walk
from foliax.foliation import Frame as Frame
from foliax.foliation import Involutivity as Involutivity
from foliax.foliation import dimension as dimension
from foliax.foliation import frame as frame
from foliax.foliation import involutivity as involutivity
from foliax.foliation import project_kernel as project_kernel
from foliax.foliation import project_leaf as project_leaf
from foliax.leaf.holonomy import Holonomy as Holonomy
from foliax.leaf.holonomy import holonomy as holonomy
from foliax.likelihood import Bernoulli as Bernoulli
from foliax.likelihood import Categorical as Categorical
from foliax.likelihood import Gaussian as Gaussian

__version__ = importlib.metadata.version("foliax")

_ON_DEMAND = {
    name: f"foliax.{name}" for name in ("apps", "equivariance", "fisher", "viz", "zoo")
} | {"sharding": "foliax.batch.sharding"}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(_ON_DEMAND[name])
    raise AttributeError(f"module 'foliax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])
