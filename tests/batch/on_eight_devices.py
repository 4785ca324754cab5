"""What tests/batch/test_sharding.py runs in a process of its own, on eight virtual devices.

Prints one JSON object: by the name of a function, its largest difference from one device, and how
many rows of its result each device holds. The argument says of what: "functions", "loops" (walks
and trainings), or "applications" (those of `foliax.apps`).
"""

import json
import sys
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import foliax
from foliax import sharding, zoo
from foliax.apps import denoise, explain, generate, ood

STEPS = {"max_steps": 20, "save_every": 10}


# Differences of numbers of this size, whose rounding they hold: of p, and of logits or points.
CHANGES = {".probability_change": ".probabilities", ".leaf_defect": ".logits", ".defect": ".point"}


def difference(many, one):
    """Return the largest difference, as a share of the largest entry or of what it changes."""
    leaves = jax.tree_util.tree_leaves_with_path(one)
    sizes = {jax.tree_util.keystr(path): np.max(np.abs(np.asarray(b))) for path, b in leaves}
    worst = 0.0
    for a, (path, b) in zip(jax.tree.leaves(many), leaves, strict=True):
        a, b, name = (
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            jax.tree_util.keystr(path),
        )
        assert a.shape == b.shape, (a.shape, b.shape)
        size = max(sizes[name], sizes.get(CHANGES.get(name), 0), 1e-30)
        worst = max(worst, float(np.max(np.abs(a - b)) / size))
    return worst


def rows(tree):
    """Return how many rows each device holds of every array, once each."""
    held = {
        tuple(shard.data.shape[0] for shard in leaf.addressable_shards)
        for leaf in jax.tree.leaves(tree)
    }
    return sorted(map(list, held))


def every(fn):
    return jax.vmap(fn, in_axes=(None, 0))


def brownian(model, xs, keys):
    return jax.vmap(
        lambda x, key: foliax.brownian(model, x, key, 0.1, num_steps=10, save_every=10)
    )(xs, keys)


def applications(xs, targets, keys):
    """Return the functions of `foliax.apps` that work on many inputs, a few steps of each."""
    medoids = jnp.asarray(targets[:2])
    return {
        "project": (
            partial(foliax.map, denoise.project, max_steps=10), (xs, targets[:, None]),
        ),
        "score": (partial(foliax.map, ood.score, references=medoids, max_steps=10), (xs,)),
        "diffuse": (
            partial(foliax.map, generate.diffuse, time=0.1, num_steps=5, save_every=5), (xs, keys),
        ),
        "approach": (
            partial(foliax.map, generate.approach, max_steps=10, save_every=10), (xs, targets),
        ),
        "explain": (partial(foliax.map, explain.explain, max_steps=5), (xs,)),
        "spectrum": (partial(foliax.map, foliax.spectrum), (xs,)),
    }  # fmt: skip


def main():
    model, data = zoo.load("digits_mlp"), zoo.load_digits()
    mesh = sharding.mesh()
    xs, targets = data.test_x[:16], data.test_x[16:32]
    keys = jax.random.split(jax.random.key(0), 16)
    told = {"devices": mesh.size}
    functions = {
        "trace": (every(foliax.trace), (xs,)),
        "rank": (every(foliax.rank), (xs,)),
        "factor": (every(foliax.factor), (xs,)),
        "values": (every(lambda m, x: foliax.eigh(m, x).values), (xs,)),
        "project_leaf": (jax.vmap(foliax.project_leaf, in_axes=(None, 0, 0)), (xs, targets)),
    }
    loops = {
        "walks": (partial(foliax.map, foliax.walk, box=data.box, **STEPS), (xs, targets)),
        "drifts": (
            partial(foliax.map, foliax.drift, along="kernel", box=data.box, **STEPS),
            (xs, targets - xs),
        ),
        "closest": (
            jax.vmap(partial(foliax.closest, max_steps=20), in_axes=(None, 0, 0)), (targets, xs),
        ),
        "brownian": (brownian, (xs, keys)),
    }  # fmt: skip
    match sys.argv[1]:
        case "functions":
            told |= the_rest(model, data, mesh, functions["trace"][0])
        case "loops":
            functions = loops
            told |= trainings(data, mesh)
        case "applications":
            functions = applications(xs, targets, keys)
    if sys.argv[1] == "loops":  # each step adds its rounding, which depends on the size of a block
        jax.config.update("jax_enable_x64", True)
        functions = {
            name: (fn, tuple(np.asarray(x, np.float64) if x is not keys else x for x in inputs))
            for name, (fn, inputs) in functions.items()
        }
    for name, (fn, inputs) in functions.items():
        many = sharding.spread(fn, model, *inputs, mesh=mesh)
        told[name] = {"difference": difference(many, fn(model, *inputs)), "rows": rows(many)}
    if "walks" in functions:
        told["compiled again"] = compilations(model, functions["walks"], mesh)
    print(json.dumps(told))


def the_rest(model, data, mesh, trace):
    """Return what is said of odd numbers, sweeps, factors and jit."""
    xs, told = data.test_x[:16], {}
    for count in (1, 5, 13):  # no multiples of the number of devices
        many = sharding.spread(trace, model, xs[:count], mesh=mesh)
        told[f"trace of {count}"] = {"difference": difference(many, trace(model, xs[:count]))}
    swept = partial(foliax.sweep, foliax.trace, model, data.test_x[:101], progress=False, batch=40)
    told["sweep"] = {"difference": difference(swept(mesh=mesh), swept())}
    whole = sharding.factor(model, xs[0], mesh=mesh)
    told["factor of one input"] = {
        "difference": difference(whole[:9], foliax.factor(model, xs[0])),
        "rows": rows(whole),
        "padding": float(jnp.max(jnp.abs(whole[9:]))),
    }
    many_classes = zoo.MLP((64, 32, 1000), rngs=nnx.Rngs(0))
    whole = sharding.factor(many_classes, xs[0], mesh=mesh)
    told["factor of 1000 classes"] = {
        "difference": difference(whole[:999], foliax.factor(many_classes, xs[0])),
        "rows": rows(whole),
        "padding": float(jnp.max(jnp.abs(whole[999:]))),
    }
    plain = sharding.place(xs, mesh)  # and without help, by jit's own partitioning
    automatic = jax.jit(every(foliax.trace))(sharding.replicate(model, mesh), plain)
    told["jit"] = {
        "difference": difference(automatic, every(foliax.trace)(model, xs)),
        "rows": rows(automatic),
    }
    return told


def trainings(data, mesh):
    """Return what a training, and one that goes on on one device, differ from one device by."""
    few = zoo.from_arrays(
        "few",
        (data.to_pixels(data.train_x[:64, 1:7, 1:7]), data.train_y[:64]),
        (data.to_pixels(data.test_x[:21, 1:7, 1:7]), data.test_y[:21]),
        class_names=data.class_names,
    )
    options = {"plan": (4, "pool"), "hidden": (), "padding": 1, "batch_norm": True}
    settings = {"reference_size": 13, "track_per_epoch": 2, "momentum": 0.9}

    def train(epochs, batch_size=16, **how):
        config = zoo.TrainConfig(
            epochs=epochs, optimizer="momentum", batch_size=batch_size, **settings
        )
        model = zoo.CNN((6, 6, 1), 10, **options, rngs=nnx.Rngs(0))
        return zoo.train(model, few, config, progress=False, **how)

    def weights(model):  # in one array: the bias before a normalisation is rounding alone
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])

    one, history = train(2)
    counted, marks = compiled(), []
    many, watched = train(2, mesh=mesh, on_epoch=lambda *_: marks.append(len(counted)))
    with tempfile.TemporaryDirectory() as folder:
        train(1, mesh=mesh, out=folder)
        resumed, _ = train(2, out=folder)
    return {
        "training": {
            "difference": difference(weights(many), weights(one)),
            "trace": difference(watched.trace_mean, history.trace_mean),
            "devices": [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(many)],
            "whole": all(leaf.is_fully_replicated for leaf in jax.tree.leaves(many)),
            "compiled again": marks[1] - marks[0],
            "accuracy": [zoo.accuracy(one, few.test_x, few.test_y, mesh=m) for m in (mesh, None)],
        },
        "training of odd batches": refused(lambda: train(1, mesh=mesh, batch_size=12)),
        "training that goes on": {"difference": difference(weights(resumed), weights(one))},
    }


def refused(call):
    """Return why a call is refused."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def compiled():
    """Return a list that grows with every compilation."""
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: counted.append(event) if "backend_compile" in event else None
    )
    return counted


def compilations(model, function, mesh):
    """Return how often a second call with other weights compiles anything."""
    counted = compiled()
    fn, inputs = function
    other = jax.tree.map(lambda leaf: leaf * 0.5, model)
    counted.clear()
    sharding.spread(fn, other, *inputs, mesh=mesh)
    return len(counted)


if __name__ == "__main__":
    main()
