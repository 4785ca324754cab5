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
# # 5 What your network cannot tell apart
#
# A classifier of ten classes sees at most nine directions of an image of 784 pixels. Along all
# others its probabilities do not change. Here you walk on a level set of $p$ toward an image of
# another class, and come so near that you see that other class, while the network gives the very
# same probabilities as before: a **metamer**.
#
# *A minute or two on a CPU.* The first cell installs foliax where it is not there yet.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import foliax
from foliax import viz, zoo
from foliax.apps.metamer import metamers

SMOKE = os.environ.get("FOLIAX_SMOKE", "0") != "0"  # a quick run, to check that everything works
PICTURES = Path(tempfile.mkdtemp(prefix="foliax_"))

# %% [markdown]
# ## Your network here
#
# Any callable pytree from one input to C logits will do: a Flax or Equinox module, or
# `jax.tree_util.Partial(module.apply, variables)`. The box is the range of the pixels, in the units
# of the model's input; `data.to_pixels` brings images back to [0, 1].

# %%
model, data = zoo.load("mnist_cnn"), zoo.load_mnist_5k()
box, to_pixels, names = data.box, data.to_pixels, data.class_names

labels = np.asarray(jnp.argmax(jax.vmap(model)(data.test_x), axis=1))
right = np.flatnonzero(labels == data.test_y)
first = {c: right[data.test_y[right] == c][0] for c in range(10)}

# %% [markdown]
# ## One metamer
#
# `foliax.closest` along the kernel minimises the distance to the target over all images in the box
# that have the logit contrasts of the start. It says how good its answer is.

# %%
start, target = data.test_x[first[5]], data.test_x[first[4]]
found = foliax.closest(model, start, target, along="kernel", box=box)
print(f"distance to the target: {jnp.linalg.norm(target - start):.2f} → {found.distance:.2f}")
print(f"largest change of a probability: {found.probability_change:.1e}")
print(f"pixels on a bound: {found.active_bounds}, projected gradient: {found.optimality:.2f}")
print(foliax.Status[found.status])

# %% [markdown]
# ## The way there
#
# Points on the straight line from the start to the target, and for each the nearest image on the
# level set.

# %%
way = metamers(model, start, target[None], num=3 if SMOKE else 7, box=box)
row = np.concatenate([start[None], way.points[0], target[None]])


def said(images):
    """Return the label and the probability of each image."""
    p = jax.nn.softmax(jax.vmap(model)(images))
    return [f"{names[int(c)]}, p = {q:.4f}" for c, q in zip(p.argmax(1), p.max(1), strict=True)]


strip = viz.strip(np.clip(to_pixels(row), 0, 1), said(row), PICTURES / "way.png", columns=len(row))
Image.open(strip)

# %% [markdown]
# The last image is the target itself. All before it have the probabilities of the first, to
# rounding: the change is at most

# %%
print(f"{way.probability_change.max():.1e}")

# %% [markdown]
# ## How far can one go?
#
# For a few images, and a reference of every other class: how much of the way to the reference is
# left. If only nine random directions were forbidden, next to nothing would be; but these nine are
# those in which the classes differ.

# %%
classes = (0, 3) if SMOKE else range(10)
starts = np.stack([data.test_x[first[a]] for a in classes for b in classes if a != b])
targets = np.stack([data.test_x[first[b]] for a in classes for b in classes if a != b])
many = foliax.map(foliax.closest, model, starts, targets, along="kernel", box=box, block=1)
distance = np.linalg.norm((targets - starts).reshape(len(starts), -1), axis=1)
left = np.asarray(many.distance) / distance
print(f"left, of {len(left)} pairs: {left.min():.2f} … {np.median(left):.2f} … {left.max():.2f}")
print(f"largest change of a probability: {many.probability_change.max():.1e}")

# %% [markdown]
# ## Only a part of the image
#
# `free=` is a mask of the pixels that may move. Here only the upper half may.

# %%
upper = np.zeros(data.shape, bool)
upper[: data.shape[0] // 2] = True
half = foliax.closest(model, start, target, along="kernel", box=box, free=upper)
pair = np.stack([found.point, half.point])
picture = viz.strip(np.clip(to_pixels(pair), 0, 1), said(pair), PICTURES / "half.png", columns=2)
Image.open(picture)

# %% [markdown]
# ## What to take from it
#
# - The probabilities of a network, and every score that is computed from them, are blind along its
#   level sets: confidence, entropy, energy cannot tell a metamer from the image that it has the
#   probabilities of.
# - A network that withstands *small* changes can be fooled by *large* ones, and the reverse
#   (Jacobsen et al. 2019; Tramèr et al. 2020). `experiments.metamer --trainings` compares a plain,
#   a penalised and an adversarial training.
