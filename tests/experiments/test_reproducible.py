"""Every script, run twice with one seed on one machine, finds the same numbers bit for bit.

Left to the tests of their own are `reproduce` and `train` (runs again from its checkpoints),
`rank_table`, `claims` and `imagenet` (test_processes.py and their files), and those whose results
are times or a picture of pictures: `benchmark`, `overview`.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import foliax
from experiments import (
    cifar,
    data_leaf,
    drift,
    dynamics,
    explain,
    foliation_2d,
    foliation_3d,
    kernel,
    leaf_map,
    natural_gradient,
    noise_leaf,
    noise_level,
)
from experiments.attack import __main__ as attack
from experiments.curvature import __main__ as curvature
from experiments.denoise import __main__ as denoise
from experiments.generate import __main__ as generate
from experiments.harness import command
from experiments.harness.study import WalkCommand
from experiments.ood import __main__ as ood
from foliax import zoo

# The same lengths in all, so that they share compiled programs.
SIZES = {"steps": 20, "save_every": 5}
POPULATIONS = {
    "data_leaf": (data_leaf, data_leaf.Command(pairs=2, **SIZES)),
    "data_leaf --flip": (data_leaf, data_leaf.Command(pairs=1, flip=True, **SIZES)),
    "noise_level": (noise_level, WalkCommand(pairs=2, **SIZES)),
    "kernel": (kernel, kernel.Command(pairs=2, **SIZES)),
    "noise_leaf": (noise_leaf, noise_leaf.Command(noise=0.09, start=3, end=5, **SIZES)),
    "explain": (explain, explain.Command(pairs=2, step=0.5, steps=100, quick=True)),
    "leaf_map": (leaf_map, leaf_map.Command(start=3, half=1, spacing=0.5)),
    "cifar": (cifar, cifar.Command(quick=True, steps=4, save_every=2)),
    "attack": (
        attack,
        attack.Command(pairs=6, steps=4, penalties=(1.0,), hidden=8, epochs=1, quick=True),
    ),
    "curvature": (curvature, curvature.Command(pairs=4, hidden=6, epochs=1, steps=4, quick=True)),
}  # fmt: skip
OTHERS = {
    "drift": (drift, drift.Config(images=2, steps=60, quick=True)),
    "foliation_2d": (foliation_2d, foliation_2d.Config(activations=("gelu",), quick=True)),
    "foliation_3d": (foliation_3d, foliation_3d.Config(activations=("gelu",), quick=True)),
    "natural_gradient": (natural_gradient, natural_gradient.Config(quick=True)),
    "ood": (
        ood,
        ood.Config(
            count=12,
            calibration=20,
            bank=200,
            fixed=3,
            many=10,
            max_steps=10,
            resamples=10,
            quick=True,
        ),
    ),
}


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Return the folder of a training of two epochs."""
    out = tmp_path_factory.mktemp("training")
    model = zoo.MLP((64, 8, 10), rngs=nnx.Rngs(0))
    config = zoo.TrainConfig(epochs=2, learning_rate=0.1, track_per_epoch=2, reference_size=16)
    with jax.enable_x64(False):
        zoo.train(model, zoo.load_digits(), config, out=out, progress=False)
    return out


def twice(run, tmp_path):
    """Return what two runs wrote, by the name of the file."""
    told = []
    for name in ("first", "second"):
        with jax.enable_x64(False):
            run(tmp_path / name)
        told.append({file.name: file.read_bytes() for file in (tmp_path / name).glob("*.json")})
    return told


def check(first, second):
    assert "results.json" in first
    assert {"seconds", "seed", "command", "versions", "device", "revision"} <= set(
        json.loads(first.pop("run.json"))
    )
    second.pop("run.json")
    assert first == second


@pytest.mark.parametrize(
    "name",
    [
        name if name == "kernel" else pytest.param(name, marks=pytest.mark.slow)
        for name in POPULATIONS
    ],
)
def test_populations_repeat(name, tmp_path):
    module, options = POPULATIONS[name]
    check(*twice(
        lambda out: command.perform(replace(options, out=out), module.measure_command, title=name),
        tmp_path,
    ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_scripts_repeat(name, tmp_path):
    module, config = OTHERS[name]
    check(*twice(lambda out: module.run(replace(config, out=out)), tmp_path))


def trained_commands(training):
    sizes = {"pairs": 4, "tuning": 4, "references": 2, "steps": 10}
    noises = {"gaussian": (0.2,), "salt": (0.2,), "blur": (1.0,)}
    return {
        "dynamics": (dynamics, command.Command(checkpoint=training, pairs=3)),
        "denoise": (
            denoise,
            denoise.Command(checkpoint=training, epochs=(1,), quick=True, **sizes, **noises),
        ),
        "generate": (
            generate,
            generate.Command(
                checkpoint=training, epochs=(1, 2), samples=2, steps=10, quick=True
            ),
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamics", "generate", "denoise"])
def test_scripts_on_a_training_repeat(name, training, tmp_path):
    module, options = trained_commands(training)[name]
    check(*twice(
        lambda out: command.perform(replace(options, out=out), module.measure_command, title=name),
        tmp_path,
    ))  # fmt: skip


@pytest.mark.slow
def test_batch_sizes_agree_to_rounding():
    """Blocks of a batched program change only the order of sums."""
    with jax.enable_x64(False):
        model, data = zoo.load("digits_mlp"), zoo.load_digits()
        xs, targets = data.test_x[:7], data.test_x[7:14]
        traces = [
            np.asarray(foliax.sweep(foliax.trace, model, xs, batch=size, progress=False))
            for size in (1, 3, 7)
        ]
        paths = [
            foliax.map(foliax.walk, model, xs, targets, block=block, max_steps=20, save_every=10)
            for block in (1, 3, 7)
        ]
    for trace in traces[1:]:
        np.testing.assert_allclose(trace, traces[0], rtol=1e-5)
    for path in paths[1:]:
        np.testing.assert_allclose(path.points, paths[0].points, atol=2e-4)
        assert np.all(path.status == paths[0].status)
