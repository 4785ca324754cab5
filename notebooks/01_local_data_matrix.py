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
# # 1 The local data matrix of your own model
#
# Most changes of an image do not change what a classifier says. Of the 784 directions in which
# you could change a 28×28 digit, it reacts to at most nine. Which nine, and how strongly, is in one
# matrix: the **local data matrix** $G(x, w)$, the Fisher information with the data in the place of
# the parameters. Here you compute it for a digit of MNIST, and then for a model of your own.
#
# *A minute on a CPU.* The first cell installs foliax where it is not there yet.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from PIL import Image

import foliax
from foliax import viz, zoo

SMOKE = os.environ.get("FOLIAX_SMOKE", "0") != "0"  # a quick run, to check that everything works
PICTURES = Path(tempfile.mkdtemp(prefix="foliax_"))

data = zoo.load_mnist_5k()  # 5,000 real images of MNIST (extra `mnist`)
model = zoo.load("mnist_cnn")  # a small convolutional network, partially trained
x = data.test_x[0]

print(f"one input: {x.shape}, n = {x.size}; C = {data.num_classes} classes")
print(f"test accuracy {zoo.accuracy(model, data.test_x, data.test_y):.3f}")

# %% [markdown]
# ## What it is
#
# Let $p = \mathrm{softmax}(s(x))$ be the probabilities. Then
#
# $$G(x, w) = \sum_i p_i \, \nabla_x \log p_i \, (\nabla_x \log p_i)^T .$$
#
# It is $n \times n$ and positive semidefinite. The $C$ gradients are not independent, since
# $\sum_i p_i \nabla \log p_i = 0$, so
#
# $$\operatorname{rank} G \le C - 1 .$$
#
# (The slides' text says rank < C; their table prints the looser bound C.) foliax never needs the
# $n \times n$ matrix: it works with a **factor** $A$ of $C - 1$ rows, $G = A^T A$, in which the
# bound is part of the shape and nothing cancels when the softmax saturates.

# %%
factor = foliax.factor(model, x)
matrix = foliax.matrix(model, x)
print("A:", factor.shape, " G:", matrix.shape)

jacobian = jax.jacrev(model)(x).reshape(data.num_classes, -1)
p = jax.nn.softmax(model(x))
by_hand = jacobian.T @ (jnp.diag(p) - jnp.outer(p, p)) @ jacobian  # the definition, written out
print(f"G differs from the definition by {jnp.abs(matrix - by_hand).max():.0e}")
print(f"and from AᵀA by {jnp.abs(matrix - factor.T @ factor).max():.0e}")
print(f"trace G = {foliax.trace(model, x):.4f} = ‖A‖² = {jnp.sum(factor**2):.4f}")
print(f"rank G  = {foliax.rank(model, x)} of at most {data.num_classes - 1}")

# %% [markdown]
# Rank is measured, never assumed: a layer with few active units can make it smaller than $C - 1$.
#
# ## The spectrum, and its cliff
#
# `eigh` gives the eigenpairs that are not zero. Beside them stand all 784 eigenvalues of one dense
# $G$: past the ninth there is nothing but rounding.

# %%
eigen = foliax.eigh(model, x)
print("eigenvalues:", " ".join(f"{value:.1e}" for value in eigen.values))

images = data.test_x[: 8 if SMOKE else 100]
values = foliax.sweep(lambda model, x: foliax.eigh(model, x).values, model, images, progress=False)
dense = np.linalg.eigvalsh(np.asarray(matrix))
dense = np.maximum(np.abs(dense), 1e-15)  # the smallest are drawn there
Image.open(
    viz.spectrum(values, PICTURES / "spectrum.png", num_classes=data.num_classes, dense=dense)
)

# %% [markdown]
# Each eigenvector is a direction in input space, and so an image. Adding it to the digit (orange:
# brighter, blue: darker) changes the prediction as fast as its eigenvalue says; any direction that
# is orthogonal to all nine changes it, to first order, not at all. The first few follow the
# strokes; all of them are speckled, as noise is.

# %%
vectors = viz.signed(eigen.vectors)
digit = np.repeat(np.asarray(data.to_pixels(x))[None], 3, axis=-1)
captions = [f"the digit, a {data.test_y[0]}"] + [f"λ = {value:.2g}" for value in eigen.values]
Image.open(
    viz.strip(np.concatenate([digit, vectors]), captions, PICTURES / "vectors.png", columns=5)
)

# %% [markdown]
# ## It measures how far the prediction moves
#
# $G$ is a metric because it is the second derivative of the Kullback–Leibler divergence:
#
# $$\mathrm{KL}\big(p(\cdot\,|\,x + \delta) \,\|\, p(\cdot\,|\,x)\big)
#   = \tfrac12 \, \delta^T G \, \delta + O(\|\delta\|^3) .$$
#
# **Mind the ½**: the slides leave it out. The numbers do not: `quadratic` is
# $\tfrac12 \delta^T G \delta$, and the ratio of the KL to it goes to 1. Its ratio to
# $\delta^T G \delta$ goes to ½.
#
# A derivative must be there for that. The background of the digit is flat, so in many windows of a
# max pool the values tie, and the network has a kink. foliax gives the whole derivative to the
# first of them, as PyTorch does; $\delta$ may raise another. A little noise undoes the ties, so
# the table is that of a noisy digit, and below it is the ratio at the digit itself. (The last row
# of the table shows the rounding of float32: its KL is a billionth of a nat.)

# %%
keys = jax.random.split(jax.random.key(0))
direction = jax.random.normal(keys[0], x.shape)
direction = direction / jnp.linalg.norm(direction)
noisy = data.noisy(x[None], 0.1, keys[1])[0]
print(f"{'‖δ‖':>8} {'KL':>12} {'½ δᵀGδ':>12} {'KL / ½δᵀGδ':>12} {'KL / δᵀGδ':>12}")
for length in (1.0, 0.3, 0.1, 0.03, 0.01):
    kl = foliax.kl(model, noisy, length * direction)
    half = foliax.quadratic(model, noisy, length * direction)
    print(f"{length:8.2f} {kl:12.3e} {half:12.3e} {kl / half:12.4f} {kl / (2 * half):12.4f}")
kl, half = (f(model, x, 0.01 * direction) for f in (foliax.kl, foliax.quadratic))
print(f"without noise, at ‖δ‖ = 0.01: KL / ½δᵀGδ = {kl / half:.4f}")

# %% [markdown]
# ## Your own model
#
# foliax takes any **callable pytree** from *one* input to $C$ **logits**. That covers Flax NNX,
# Linen, Equinox and plain functions. Here is one network written three ways, with the weights of
# the one above; the geometry must be the same.
#
# **NNX** modules are such pytrees as they are.

# %%
layers = {name: getattr(model, name) for name in ("conv1", "conv2", "dense1", "dense2")}
weights = {
    name: {"kernel": layer.kernel[...], "bias": layer.bias[...]} for name, layer in layers.items()
}


class MyNNX(nnx.Module):
    """Two convolutions, each with a pool, and two dense layers, in NNX."""

    def __init__(self, *, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), padding="VALID", rngs=rngs)
        self.dense1 = nnx.Linear(400, 32, rngs=rngs)
        self.dense2 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        """Return the logits of one image."""
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(jax.nn.relu(conv(x)), (2, 2), (2, 2))
        return self.dense2(jax.nn.relu(self.dense1(x.ravel())))


my_nnx = MyNNX(rngs=nnx.Rngs(0))
for name, values in weights.items():
    getattr(my_nnx, name).kernel.set_value(values["kernel"])
    getattr(my_nnx, name).bias.set_value(values["bias"])

# %% [markdown]
# **Linen** keeps weights beside the module. `jax.tree_util.Partial` joins the two into one callable
# pytree. (A lambda would work too, but its weights would be constants of the compiled program, and
# every new checkpoint would compile again.)


# %%
class MyLinen(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x):
        """Return the logits of one image."""
        for name, width in (("conv1", 8), ("conv2", 16)):
            x = jax.nn.relu(linen.Conv(width, (3, 3), padding="VALID", name=name)(x))
            x = linen.max_pool(x, (2, 2), (2, 2))
        x = jax.nn.relu(linen.Dense(32, name="dense1")(x.ravel()))
        return linen.Dense(10, name="dense2")(x)


my_linen = jax.tree_util.Partial(MyLinen().apply, {"params": weights})

# %% [markdown]
# **A plain function** of weights and input is joined with its weights in the same way.


# %%
def logits(weights, x):
    """Return the logits of one image."""
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x[None],
            weights[name]["kernel"],
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
        x = zoo.max_pool(jax.nn.relu(x + weights[name]["bias"]))
    hidden = jax.nn.relu(x.ravel() @ weights["dense1"]["kernel"] + weights["dense1"]["bias"])
    return hidden @ weights["dense2"]["kernel"] + weights["dense2"]["bias"]


my_function = jax.tree_util.Partial(logits, weights)

for name, mine in (("NNX", my_nnx), ("Linen", my_linen), ("function", my_function)):
    apart = jnp.abs(foliax.matrix(mine, x) - matrix).max()
    trace, rank = foliax.trace(mine, x), foliax.rank(mine, x)
    print(f"{name:>8}: trace {trace:.4f}, rank {rank}, G differs by at most {apart:.0e}")

# %% [markdown]
# Three things to check when the model is yours:
#
# - it returns **logits**, not probabilities;
# - it takes **one** input. One that insists on a batch is wrapped:
#   `Partial(lambda w, x: module.apply(w, x[None])[0], variables)`;
# - it is in **evaluation mode** (`model.eval()`, `use_running_average=True`): dropout would make
#   $G$ random, and the statistics of a batch would make it that of the batch.
#
# ## Many images
#
# Everything is written for one input. `jax.vmap` makes a batch of it, `jax.jit` a program; the
# model is an argument of both.

# %%
traces = jax.jit(jax.vmap(foliax.trace, in_axes=(None, 0)))
print("four traces:", np.asarray(traces(model, data.test_x[:4])).round(3))
print("of the Linen model:", np.asarray(traces(my_linen, data.test_x[:4])).round(3))

# %% [markdown]
# For a whole data set there is `foliax.sweep`: it streams batches through one program, and with
# `out=` it writes files from which a stopped run resumes.

# %%
many = data.test_x[:16] if SMOKE else data.test_x
trace = foliax.sweep(foliax.trace, model, many, progress=False)
rank = foliax.sweep(foliax.rank, model, many, progress=False)
leading = foliax.sweep(partial(foliax.eigh, k=1), model, many, progress=False)

print(f"{len(many)} test images")
print(f"trace: median {np.median(trace):.3f}, from {trace.min():.3g} to {trace.max():.3g}")
print(f"rank: from {rank.min()} to {rank.max()}")
share = np.median(leading.values[:, 0] / trace)
print(f"the first direction alone has {100 * share:.0f} % of the trace in the median")

# %% [markdown]
# Where the trace is small the prediction is certain and does not react to small changes; where it
# is large, the image lies near a decision boundary.

# %%
order = np.argsort(trace)
shown = np.concatenate([order[:6], order[-6:]])
p = jax.nn.softmax(jax.vmap(model)(many[shown]))
captions = [
    f"trace {trace[i]:.2g}\nlabel {row.argmax()}, p {row.max():.2f}"
    for i, row in zip(shown, np.asarray(p), strict=True)
]
Image.open(
    viz.strip(
        data.to_pixels(many[shown]),
        captions,
        PICTURES / "traces.png",
        row_labels=["smallest\ntraces", "largest\ntraces"],
    )
)

# %% [markdown]
# Next: the directions of $G$ are tangent to surfaces, and one can walk on them
# (`02_walking_the_data_leaf`).
