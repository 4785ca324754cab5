"""What a sweep reads: sources of rows behind len() and slices, a batch at a time."""

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from foliax.batch.fingerprint import has_keys


@dataclass(frozen=True)
class Source:
    """One array, or what reads like one.

    Attributes:
        rows: It has len() and slices that give arrays.
        name: How the caller would write it.
        struct: Shape and dtype of one row, as the device will have it.
    """

    rows: Any
    name: str
    struct: jax.ShapeDtypeStruct

    @classmethod
    def of(cls, rows: Any, name: str) -> "Source":
        """Look at the first row, and refuse what cannot be swept."""
        if has_keys(rows):
            raise ValueError(
                f"{name} must hold numbers, got dtype {rows.dtype}; pass whole numbers, one a "
                "row, and make the keys in fn by jax.random.key"
            )
        if isinstance(rows, jax.Array):  # on the device, each new size of a slice is compiled
            rows = np.asarray(rows)
        try:
            count, first = len(rows), rows[0:1]
        except (TypeError, KeyError):
            raise ValueError(
                f"{name} must be stacked along axis 0 and have len() and slices, got "
                f"{type(rows).__name__}; stack first, e.g. np.stack(list(images)), or x[None] for "
                "a single input"
            ) from None
        if not count:
            raise ValueError(f"{name} must have at least one row, got none")
        return cls(rows, name, _row_struct(_as_array(first, name), name))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start to stop, or say how they differ from the first."""
        found = _as_array(self.rows[start:stop], self.name)
        shape, dtype = (stop - start, *self.struct.shape), self.struct.dtype
        if found.shape != shape or not np.can_cast(found.dtype, dtype, "same_kind"):
            raise ValueError(
                f"{self.name}[{start}:{stop}] must be like the first row, {shape} {dtype}, got "
                f"{found.shape} {found.dtype}"
            )
        cast = found.astype(dtype, copy=False)
        if cast is not found and dtype.kind in "iu" and not np.array_equal(cast, found):
            raise ValueError(
                f"{self.name}[{start}:{stop}] must fit into {dtype}, got numbers from "
                f"{found.min()} to {found.max()}"
            )
        return cast


@dataclass(frozen=True)
class Rows:
    """The inputs as fn takes them.

    Attributes:
        sources: One a leaf.
        treedef: Rebuilds the arguments of fn after the model.
        count: How many rows each source has.
    """

    sources: tuple[Source, ...]
    treedef: Any  # a PyTreeDef
    count: int

    @classmethod
    def of(cls, inputs: Any) -> "Rows":
        """Find the sources: those of a tuple are several arguments, anything else is one."""
        alone = type(inputs) is not tuple
        leaves, treedef = jax.tree.flatten_with_path(
            (inputs,) if alone else inputs,
            is_leaf=lambda node: not isinstance(node, tuple | dict),
        )
        if not leaves:
            raise ValueError(f"inputs must hold an array, got {inputs!r}")
        sources = tuple(
            Source.of(leaf, "inputs" + keystr(path[1:] if alone else path)) for path, leaf in leaves
        )
        counts = [len(source.rows) for source in sources]
        if len(set(counts)) > 1:
            listed = ", ".join(f"{n} in {s.name}" for n, s in zip(counts, sources, strict=True))
            raise ValueError(f"inputs must be stacked alike along axis 0, got {listed}")
        return cls(sources, treedef, counts[0])

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Return rows start to stop of every source."""
        return [source.read(start, stop) for source in self.sources]

    def blank(self, *lead: int) -> Any:
        """Return what fn takes, with leading axes, for its shapes: it contains one number each."""
        structs = [source.struct for source in self.sources]
        return self.treedef.unflatten(
            np.broadcast_to(np.zeros((), s.dtype), (*lead, *s.shape)) for s in structs
        )

    def described(self) -> list[str]:
        """Return shape and dtype of every source."""
        structs = [source.struct for source in self.sources]
        return [f"{(self.count, *s.shape)} {s.dtype}" for s in structs]

    def digest(self, batch: int) -> str:
        """Hash all rows of arrays and lists, the first and the last batch of what may be slow."""
        digest, all_rows = hashlib.sha256(), True
        for source in self.sources:
            starts = range(0, self.count, batch)
            if not isinstance(source.rows, np.ndarray | list):
                starts, all_rows = sorted({0, max(self.count - batch, 0)}), False
            for start in starts:
                stop = min(start + batch, self.count)
                digest.update(source.read(start, stop).tobytes())
        return f"{'all rows' if all_rows else 'first and last batch'}, sha256 {digest.hexdigest()}"


def _row_struct(first: np.ndarray, name: str) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of one row, or say why the rows cannot be inputs."""
    if first.shape[:1] != (1,) or first.size == 0:
        raise ValueError(
            f"{name} must hold at least one number a row, got the shape {first.shape} for the "
            "first row, where (1, *shape) was expected"
        )
    dtype = first.dtype.newbyteorder("=")
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise ValueError(
            f"{name} must hold real numbers, got dtype {dtype}; pass a class with __len__ and "
            "__getitem__ that converts slice by slice"
        )
    return jax.ShapeDtypeStruct(first.shape[1:], jax.dtypes.canonicalize_dtype(dtype))


def _as_array(rows: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError as error:  # rows of several shapes
        raise ValueError(f"{name} must give arrays for slices: {error}") from None
