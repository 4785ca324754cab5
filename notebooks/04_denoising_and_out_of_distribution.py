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
# # 4 Denoising and out-of-distribution
#
# The slides end with things to do with a data leaf: "project a noisy data point on the data leaf to
# perform denoising", and "use the distance from the data leaf to recognize out-of-distribution
# examples". Both are one call of `foliax.closest`. Here you try them on digits, each beside the
# simplest baseline, and measure what they are worth.
#
# *A minute on a CPU.* The first cell installs foliax where it is not there yet.

# %%
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from skimage.filters import gaussian
from sklearn.metrics import roc_auc_score

import foliax
from foliax import viz, zoo

SMOKE = os.environ.get("FOLIAX_SMOKE", "0") != "0"  # a quick run, to check that everything works
PICTURES = Path(tempfile.mkdtemp(prefix="foliax_"))

data = zoo.load_digits()
model = zoo.load("digits_mlp")  # partially trained (notebook 3)
train = np.asarray(data.train_x).reshape(len(data.train_x), -1)

# %% [markdown]
# ## A leaf to project on
#
# There is a leaf through every point, so "the data leaf" must be given by one of its points. For a
# new image $x$ we take the leaf through the **nearest training image**, the *reference*, and
# compute its closest point to $x$ (the foot of the perpendicular):
#
# $$z' = P_D(z)\,(x - z), \qquad z(0) = \text{the reference} .$$
#
# The closest point keeps those components of the reference that do not change the prediction, and
# takes from $x$ those that do.


# %%
def nearest(xs):
    """Return the nearest training image of each x, and how far it is."""
    flat = np.asarray(xs).reshape(len(xs), -1)
    squares = (flat**2).sum(1)[:, None] - 2 * flat @ train.T + (train**2).sum(1)
    place = squares.argmin(axis=1)
    return data.train_x[place], np.linalg.norm(flat - train[place], axis=1)


@jax.jit
def projected(model, xs, references):
    """Return the closest point to each x on the leaf through its reference."""

    def one(row):
        return foliax.closest(model, *row[::-1], max_steps=300, stall=1e-3)

    return jax.lax.map(one, (xs, references), batch_size=4)


def psnr(clean, other):
    """Return the peak signal-to-noise ratio of each image, in decibels; higher is better."""
    error = (np.asarray(data.to_pixels(clean)) - np.asarray(data.to_pixels(other))) ** 2
    return -10 * np.log10(error.mean(axis=(1, 2, 3)))


# %% [markdown]
# ## Denoising (S9)
#
# Test images get Gaussian noise of known σ (white is 1), and each method is scored against the
# clean image. The closest point has two baselines: the *reference alone*, without any foliation,
# and a *Gaussian filter*, whose width is chosen on training images, so that it does not know the
# answer.


# %%
def filtered(xs, width):
    """Return the images after a Gaussian filter."""
    pixels = np.asarray(data.to_pixels(xs))
    return data.from_pixels(gaussian(pixels, sigma=(0, width, width, 0)))


number = 8 if SMOKE else 200
clean = data.test_x[:number]
sigmas = (0.1, 0.3) if SMOKE else (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
widths = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
scores = {"noisy": [], "projection": [], "reference": [], "Gaussian filter": []}
pictures = {}
for i, sigma in enumerate(sigmas):
    noisy = data.noisy(clean, sigma, jax.random.key(i))
    references, _ = nearest(noisy)
    practice = data.noisy(data.train_x[:number], sigma, jax.random.key(100 + i))
    width = max(
        widths, key=lambda w, xs=practice: psnr(data.train_x[:number], filtered(xs, w)).mean()
    )
    pictures[sigma] = {
        "noisy": noisy,
        "projection": projected(model, noisy, references).point,
        "reference": references,
        "Gaussian filter": filtered(noisy, width),
    }
    for name, images in pictures[sigma].items():
        scores[name].append(psnr(clean, images))

print("PSNR in dB, median of", number, "images")
print(f"{'σ':>5}" + "".join(f"{name:>17}" for name in scores))
for i, sigma in enumerate(sigmas):
    print(f"{sigma:5.2f}" + "".join(f"{np.median(rows[i]):17.2f}" for rows in scores.values()))

# %%
Image.open(
    viz.curves(
        viz.Panel(
            "Denoising by projection, and without",
            "σ of the noise",
            "PSNR, dB (median)",
            [
                viz.Curve(name, sigmas, np.median(rows, axis=1), reference=name == "noisy")
                for name, rows in scores.items()
            ],
        ),
        PICTURES / "psnr.png",
    )
)

# %%
sigma, shown = sigmas[len(sigmas) // 2], 6
names = ["clean", *scores]
rows = [clean, *pictures[sigma].values()]
captions = [
    "" if name == "clean" else f"{psnr(clean[i : i + 1], row[i : i + 1])[0]:.1f} dB"
    for name, row in zip(names, rows, strict=True)
    for i in range(shown)
]
Image.open(
    viz.strip(
        np.concatenate([data.to_pixels(row[:shown]) for row in rows]),
        captions,
        PICTURES / "denoised.png",
        row_labels=[name.replace(" ", "\n") for name in names],
        title=f"Noise of σ = {sigma}",
    )
)

# %% [markdown]
# In words, from the numbers:

# %%
medians = {name: np.median(rows, axis=1) for name, rows in scores.items()}
for other in ("noisy", "reference", "Gaussian filter"):
    pairs = zip(sigmas, medians["projection"], medians[other], strict=True)
    better = [s for s, a, b in pairs if a > b]
    where = ", ".join(map(str, better)) or "no σ"
    rival = other if other == "noisy" else f"the {other}"
    print(f"The projection is better than {rival} at: {where}.")
best = np.max([medians[name] for name in medians if name != "projection"], axis=0)
wins = int(np.sum(medians["projection"] > best))
print(f"It is better than all three at {wins} of {len(sigmas)} levels of noise.")

# %% [markdown]
# The projection does remove noise once there is enough of it: the noise has 64 dimensions, the leaf
# at most nine, and the noise across the leaf is gone. What replaces it is the reference, and the
# noise *along* the leaf stays. So a gain over the noisy image is no merit of the foliation by
# itself: compare it with the reference alone, which is free, and with a filter, which knows nothing
# of digits.
#
# ## Out-of-distribution (S10)
#
# The length of the perpendicular is a distance from the leaf, and so a score: the farther, the more
# unusual. The outliers are mirrored digits (which are no digits, but for 0, 1 and 8, nearly) and
# pixels drawn at random. The baselines are the distance to the nearest training image in raw
# pixels, and 1 − the largest softmax probability. The area under the ROC curve is 1 for a perfect
# score and ½ for a coin.

# %%
known = data.test_x[:number]
others = data.test_x[-(8 if SMOKE else 160) :]
labels = data.test_y[-len(others) :]
handed = ~np.isin(labels, (0, 1, 8))  # those that a mirror changes
groups = {
    "digits": known,
    "mirrored": data.mirrored(others),
    "mirrored, no 0, 1, 8": data.mirrored(others[np.flatnonzero(handed)]),
    "random pixels": data.from_pixels(jax.random.uniform(jax.random.key(7), others.shape)),
}
NAMES = ("distance from the leaf", "nearest neighbour", "1 − max softmax")


def score(xs):
    """Return the three scores of each image; larger is farther out."""
    references, distance = nearest(xs)
    p = jax.nn.softmax(jax.vmap(model)(xs))
    values = (projected(model, xs, references).distance, distance, 1 - p.max(axis=1))
    return dict(zip(NAMES, map(np.asarray, values), strict=True))


scored = {name: score(xs) for name, xs in groups.items()}
areas = {}
print("AUROC against test digits")
print(" " * 22 + "".join(f"{name:>24}" for name in NAMES))
for group in list(groups)[1:]:
    areas[group] = {}
    for name in NAMES:
        inside, outside = scored["digits"][name], scored[group][name]
        truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        areas[group][name] = roc_auc_score(truth, np.r_[inside, outside])
    print(f"{group:>22}" + "".join(f"{areas[group][name]:24.3f}" for name in NAMES))

# %% [markdown]
# In words, from the numbers:

# %%
leaf = NAMES[0]
for group, area in areas.items():
    for name in NAMES[1:]:
        gap = area[leaf] - area[name]
        word = "level with" if abs(gap) < 0.005 else "better than" if gap > 0 else "worse than"
        print(f"{group}: {leaf} is {word} {name} ({area[leaf]:.3f} against {area[name]:.3f}).")
flat = {name: np.concatenate([found[name] for found in scored.values()]) for name in NAMES}
likeness = np.corrcoef(flat[leaf], flat[NAMES[1]])[0, 1]
print(f"Correlation of the two distances over all images: {likeness:.3f}.")

# %% [markdown]
# The correlation explains it. With nine of 64 dimensions along the leaf, nearly all of the
# displacement from an image to its nearest neighbour is perpendicular: the distance from the leaf
# *is* the distance to the nearest neighbour, less the small part along the leaf. Whatever it knows,
# it knows from there. On these digits the leaf adds nothing that raw pixels do not have; that it
# beats the softmax is something that the nearest neighbour does as well.

# %%
side = np.linspace(0, 1, 101)
panels = []
for group in ("mirrored", "random pixels"):
    drawn = []
    for name in NAMES:
        inside, outside = scored["digits"][name], scored[group][name]
        bounds = np.quantile(inside, 1 - side)
        drawn.append(viz.Curve(name, side, [(outside > bound).mean() for bound in bounds]))
    drawn.append(viz.Curve("a coin", side, side, reference=True))
    title = f"Digits against {group}"
    panels.append(viz.Panel(title, "digits called outliers", "outliers recognised", drawn))
Image.open(viz.curves(panels, PICTURES / "roc.png"))

# %% [markdown]
# A result like this is a measurement of one small network on small images, not of the idea. To try
# it on your own, exchange `data` and `model` above, and keep the baselines.
