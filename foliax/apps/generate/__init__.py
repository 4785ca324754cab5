"""New images of a label: motions on a leaf that keep the probability of the label.

Two motions, each of one input. `diffuse` is Brownian motion, along the data leaf or along the
kernel leaf; a step that would take p_label below the threshold is refused, and the next one is
drawn from where it was. `approach` walks on the leaf toward another image of the label, and slides
along the level set of p_label where the straight path would leave it. No point of either is below
the threshold: the model is evaluated at every point before it is accepted.

Many starts go by `foliax.map`, what differs from one to the next among its inputs:

    def one(model, x, target, label, floor):
        return approach(model, x, target, label=label, threshold=floor)

    foliax.map(one, model, xs, targets, labels, 0.9 * p_labels)

Along the data leaf the pixels are not kept in their range (D has too few dimensions for it): clip
for display. Along the kernel a `box` is respected, and p stays.
"""

from foliax.apps.generate.approach import approach
from foliax.apps.generate.diffuse import diffuse
from foliax.apps.generate.scene import Motion

__all__ = ["Motion", "approach", "diffuse"]
