# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 Why partially trained
#
# "This is why we do not want a fully trained model: the information is lost at equilibrium!" So the
# slides, under a picture in which the trace of $G$ rises and then falls. Here you train a small
# network, record $G$ during training, and choose the epoch to use.
#
# *A minute or two on a CPU.* The first cell installs foliax where it is not there yet.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import foliax
from foliax import viz, zoo

SMOKE = os.environ.get("FOLIAX_SMOKE", "0") != "0"  # a quick run, to check that everything works
PICTURES = Path(tempfile.mkdtemp(prefix="foliax_"))

data = zoo.load_mnist_5k()
untrained = zoo.small_cnn(rngs=nnx.Rngs(0))  # 14,410 weights

# %% [markdown]
# ## What to expect
#
# $G = J^T (\operatorname{diag} p - p\,p^T) J$ has two parts. The Jacobian $J$ of the logits grows
# while the network learns to distinguish the classes. The matrix in the middle is the covariance of
# a label drawn from $p$, and it vanishes when $p$ becomes certain. First the one dominates, then
# the other: the trace rises, then falls.
#
# ## The papers' setting: the rise, and the fall
#
# Plain SGD at 0.01 in batches of 60; the papers train for 30 epochs, here 10 are enough.
# `foliax.zoo.train` measures trace and rank over the same training images as it goes.

# %%
paper = zoo.TrainConfig(
    epochs=1 if SMOKE else 10, track_per_epoch=4, reference_size=32 if SMOKE else 256
)
_, slow = zoo.train(untrained, data, paper, progress=False)
print(slow)
top = int(np.argmax(slow.trace_mean))
start, most, end = slow.trace_mean[[0, top, -1]]
print(
    f"mean trace: {start:.3f} untrained, {most:.3f} at step {slow.steps[top]}, {end:.3f} at the end"
)
Image.open(viz.dynamics(slow, PICTURES / "paper.png"))

# %% [markdown]
# With 4,000 images an epoch is 66 steps. The trace rises within the first of them, by a ninth, and
# falls from then on; after ten epochs a little more than half of the peak is left.
#
# ## On to the equilibrium
#
# Continued to the papers' 30 epochs, SGD leaves the mean trace at about 0.15. Adam goes further.
# `on_epoch` keeps the network of every epoch, for later.

# %%
config = zoo.TrainConfig(
    epochs=2 if SMOKE else 30,
    optimizer="adam",
    learning_rate=1e-3,
    track_per_epoch=2,
    reference_size=32 if SMOKE else 256,
)
kept = {}
final, history = zoo.train(
    untrained, data, config, progress=False, on_epoch=lambda e, model, _: kept.update({e: model})
)
peak = int(np.argmax(history.trace_mean))
first, most, last = history.trace_mean[[0, peak, -1]]
print(
    f"mean trace: {first:.3f} untrained, {most:.3f} at step {history.steps[peak]}, {last:.3f} now"
)
print(f"that is {100 * last / most:.0f} % of the peak, after {history.steps[-1]} steps")
print(f"mean rank: {history.rank_mean[0]:.2f} untrained, {history.rank_mean[-1]:.2f} now")

# %% [markdown]
# ## Which epoch to choose
#
# Before the peak the network has not learnt; long after it, $G$ is gone. The rule `"peak"` takes
# the first epoch that ends at or after the peak of the mean trace, and has enough test accuracy.

# %%
enough = 0.9 if not SMOKE else 0.0
try:
    chosen = zoo.choose_epoch(history, min_accuracy=enough)
except ValueError:  # the trace still rises
    chosen = zoo.choose_epoch(history, rule="best")
print(zoo.describe_choice(history, chosen, min_accuracy=enough))
Image.open(
    viz.dynamics(
        history,
        PICTURES / "dynamics.png",
        marks={"chosen epoch": int(history.epoch_steps[chosen - 1])},
    )
)

# %% [markdown]
# ## What is lost, and what is not
#
# The rank at right falls by only one: it counts every eigenvalue above rounding. Let us count only
# those above 1 % of the largest, and let us use test images, not those of the training.


# %%
def look(model, x):
    """Return trace, rank and dimension at one image."""
    p = jax.nn.softmax(model(x))
    return {
        "trace": foliax.trace(model, x),
        "rank": foliax.rank(model, x),
        "loose": foliax.rank(model, x, rtol=1e-2),
        "dimension": foliax.dimension(model, x),
        "probability": jnp.max(p),
    }


images = data.test_x[: 8 if SMOKE else 200]
epochs = sorted(kept)
measured = [foliax.sweep(look, kept[e], images, progress=False) for e in epochs]


def curve(label, name):
    """Return median and quartiles over the images, by epoch."""
    low, middle, high = np.quantile([found[name] for found in measured], (0.25, 0.5, 0.75), axis=1)
    return viz.Curve(label, epochs, middle, low, high)


def mean(label, name, **look):
    """Return the mean over the images, by epoch."""
    return viz.Curve(label, epochs, [np.mean(found[name]) for found in measured], **look)


Image.open(
    viz.curves(
        [
            viz.Panel("Trace at test images", "epoch", "trace", [curve("t", "trace")], log=True),
            viz.Panel(
                "Ranks, means",
                "epoch",
                "rank",
                [
                    mean("rank of G", "rank"),
                    mean("above 1 % of the largest", "loose"),
                    mean("dimension of D", "dimension", reference=True),
                ],
                y_range=(0, 9.5),
            ),
            viz.Panel(
                "Confidence", "epoch", "probability", [curve("p", "probability")], y_range=(0, 1.03)
            ),
        ],
        PICTURES / "epochs.png",
    )
)

# %%
print("test images: median confidence, median and mean trace, mean of the others")
names = ("epoch", "accuracy", "confidence", "trace", "mean", "λ > 1 %", "dim D")
print(" ".join(f"{name:>10}" for name in names))
for e in sorted({1, chosen, epochs[-1]}):
    found = measured[e - 1]
    print(
        f"{e:10d} {history.test_accuracy[e - 1]:10.3f} {np.median(found['probability']):10.4f} "
        f"{np.median(found['trace']):10.3g} {found['trace'].mean():10.3g} "
        f"{found['loose'].mean():10.2f} {found['dimension'].mean():10.2f}"
    )
largest = np.sort(measured[-1]["trace"])[::-1]
share = largest[: len(largest) // 10 + 1].sum() / largest.sum()
print(f"at the end, a tenth of the images has {100 * share:.0f} % of all that is left of the trace")

# %% [markdown]
# Three quantities behave differently here that are easily confused:
#
# - the **trace** of $G$ falls at the typical image. Its mean over the training images falls less,
#   and that over these test images by only a fifth: the few near a decision boundary, which the
#   network has not memorised, have nearly everything that is left;
# - the **rank** falls as far as your tolerance lets it. It says how many directions exceed it;
# - the **distribution** $D$ keeps its dimension. It is spanned by differences of logits, in which
#   $p$ does not appear, and foliax walks with those. A certain prediction still has leaves; what
#   is lost is the metric on them.
#
# ## Does it matter for a walk?
#
# Then walks should still run on the fully trained network. The same pairs, at three epochs:

# %%
num_pairs = 4 if SMOKE else 32
starts, targets = data.test_x[:num_pairs], data.test_x[num_pairs : 2 * num_pairs]
begun = np.linalg.norm(np.asarray(targets - starts).reshape(num_pairs, -1), axis=1)
steps = 50 if SMOKE else 1000
for e in sorted({1, chosen, epochs[-1]}):
    paths = foliax.map(foliax.walk, kept[e], starts, targets, max_steps=steps, save_every=steps)
    away = np.asarray(targets - paths.best).reshape(num_pairs, -1)
    left = np.median(np.linalg.norm(away, axis=1) / begun)
    arrived, stalled = (
        int(np.sum(np.asarray(paths.status == status)))
        for status in (foliax.Status.arrived, foliax.Status.stalled)
    )
    print(
        f"epoch {e:2d}: {arrived} of {num_pairs} arrive, {stalled} stall, "
        f"{100 * left:.0f} % of the distance remains"
    )

# %% [markdown]
# They do, and none arrives at any epoch: all end at the closest point of their leaf. So
# "partially trained" is advice about $G$, its trace and spectrum, where it is right. For the
# leaves alone, check each time.
#
# Next: what the slides propose to do with all this (`04_denoising_and_out_of_distribution`).
