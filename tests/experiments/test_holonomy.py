"""The gaps of lifted loops by network, and the picture."""

import json

import jax
import pytest
from PIL import Image

from experiments import holonomy


def test_networks_are_compared_by_one_change_at_a_time():
    found = holonomy.trainings(holonomy.Config())
    assert found["relu"] == ("relu", 48, 30)
    assert found["width 16"] == ("relu", 16, 30)
    assert found["epoch 5"] == ("relu", 48, 5)
    assert len(set(found.values())) == len(found) == 7


@pytest.mark.slow
def test_loops_close_within_a_region_and_open_across_faces(tmp_path):
    config = holonomy.Config(out=tmp_path, quick=True, images=4)
    with jax.enable_x64(False):
        results = holonomy.run(config)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    found = results["claims"]["holonomy"]
    relu, softplus = (found["numbers"][name] for name in ("relu", "softplus"))
    assert relu["side_0"]["gap"]["median"] < 1e-10 < softplus["side_0"]["gap"]["median"]
    assert relu["outside"]["largest"] == 0 < softplus["outside"]["median"]
    assert relu["side_1"]["open"] == softplus["side_1"]["open"] == 1
    assert relu["side_1"]["change_of_p"] < 1e-9
    assert found["outcome"] == "does not hold"
    with Image.open(tmp_path / "holonomy.png") as image:
        assert min(image.size) > 100
