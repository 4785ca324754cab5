"""Points and curves at even distances, so that a picture of many is neither full nor empty."""

import numpy as np


def lattice(side: int, edge: float, axes: int = 2) -> np.ndarray:
    """Return the points of a grid in a square or a cube; the first coordinate runs fastest."""
    line = np.linspace(-edge, edge, side, dtype=np.float32)
    grid = np.meshgrid(*[line] * axes, indexing="ij")
    return np.stack([each.ravel() for each in reversed(grid)], axis=1)


def spaced(curves: np.ndarray, gap: float, edge: float) -> list[np.ndarray]:
    """Return curves thinned to an even density; the two sides of a seed are curves i and i + N/2.

    A seed near a curve that is there starts none, and a curve ends where it comes near another,
    at half that gap. Outside of the window nothing is near.
    """
    shown: list[np.ndarray] = []
    taken = np.full((1, curves.shape[2]), np.inf, np.float32)

    def distance(points: np.ndarray) -> np.ndarray:
        return np.sqrt(((points[:, None] - taken[None]) ** 2).sum(axis=2).min(axis=1))

    for sides in curves.reshape(2, -1, *curves.shape[1:]).swapaxes(0, 1):
        if distance(sides[0, :1])[0] < gap:
            continue
        near = [distance(side) < gap / 2 for side in sides]
        ends = [int(hit.argmax()) if hit.any() else len(hit) for hit in near]
        kept = [side[:end] for side, end in zip(sides, ends, strict=True)]
        shown.append(np.concatenate([kept[1][::-1], kept[0]]))
        inside = shown[-1][np.abs(shown[-1]).max(axis=1) < 1.1 * edge]
        taken = np.concatenate([taken, inside])
    return shown


def apart(points: np.ndarray, gap: float, most: int | None = None) -> np.ndarray:
    """Return points that are no nearer to each other than the gap, the first ones first."""
    kept: list[np.ndarray] = []
    for x in points:
        if all(np.linalg.norm(x - other) >= gap for other in kept):
            kept.append(x)
        if len(kept) == most:
            break
    return np.array(kept).reshape(-1, points.shape[1])
