"""What the tests of the scripts share: a small run."""

import jax
import pytest


@pytest.fixture(scope="module")
def run_small(tmp_path_factory):
    """Return what runs a script in a new folder, in float32 as users run it, with its options."""

    def start(run, kind, **options):
        out = tmp_path_factory.mktemp("out")
        with jax.enable_x64(False):
            return out, run(kind(out=out, **options))

    return start
