"""The composed picture holds its parts, below the size that a README can carry."""

import numpy as np
from PIL import Image

from experiments import overview


def test_pictures_are_composed(tmp_path):
    names = ("training", "kernel", "leaf", "map", "eigenvectors")
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        color = rng.integers(0, 255, 3)
        picture = np.broadcast_to(color, (60 + 10 * i, 120, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    parts = {name: tmp_path / f"{name}.png" for name in names}
    out = overview.run(overview.Config(**parts, out=tmp_path / "made" / "overview.png"))
    assert [path.name for path in out.parent.iterdir()] == ["overview.png"]
    with Image.open(out) as page:
        assert page.width == 1700
        assert len(page.convert("RGB").getcolors(256)) > len(names)
    assert out.stat().st_size < 600_000
