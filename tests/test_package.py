"""The public face: what an import loads, what is public, and that it is documented and checked."""

import importlib.metadata
import inspect

import jax.numpy as jnp
import jaxtyping
import pytest

import foliax
from foliax._core.jacobian import pull_rows
from foliax._linalg.row_space import RowSpace
from tests.cases import loaded_by

HEAVY = ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib", "sklearn",
         "skimage", "torch", "tyro")  # fmt: skip
PUBLIC = sorted(
    name
    for name, value in vars(foliax).items()
    if not name.startswith("_") and getattr(value, "__module__", "").startswith("foliax.")
)


def test_an_import_loads_no_heavy_package():
    loaded = loaded_by("import foliax")
    assert "diffrax" in loaded  # the process did import
    assert not set(loaded) & set(HEAVY)


def test_the_zoo_and_the_pictures_are_there_on_demand():
    assert {"zoo", "viz"} <= set(dir(foliax))
    with pytest.raises(AttributeError, match="module 'foliax' has no attribute 'zoology'"):
        foliax.zoology  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert foliax.__version__ == importlib.metadata.version("foliax")


def test_public_names():
    assert set(PUBLIC) >= {
        "Box", "Categorical", "Eigen", "Frame", "Path", "Status", "dimension", "drift", "eigh",
        "factor", "frame", "kl", "matrix", "matvec", "project_kernel", "project_leaf", "quadratic",
        "rank", "trace", "walk",
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    value = getattr(foliax, name)
    text = inspect.getdoc(value)
    assert text.split("\n")[0].endswith((".", ".]"))
    if not inspect.isfunction(value):
        return
    assert "Args:" in text
    assert "Returns:" in text
    assert ">>> " in text


def test_shapes_in_signatures_are_checked_in_this_suite():
    with pytest.raises(jaxtyping.TypeCheckError, match="rows"):
        pull_rows(lambda u: u, jnp.zeros(3), None)
    with pytest.raises(jaxtyping.TypeCheckError, match="k"):
        RowSpace.of(jnp.zeros((2, 3), int))
