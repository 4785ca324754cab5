"""What the foliation is good for: denoising, out-of-distribution, generation, explanation.

Each module is a handful of pure functions on `foliax.foot`, `foliax.walk` and `foliax.brownian`.
How good each is beside what people use is measured by the experiment of the same name.
"""

from foliax.apps import denoise as denoise
from foliax.apps import explain as explain
from foliax.apps import generate as generate
from foliax.apps import ood as ood
