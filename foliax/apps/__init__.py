"""Applications of the foliation and of G.

Denoising, out-of-distribution scores, generation, explanation and metamers use `foliax.closest`,
`foliax.walk` and `foliax.brownian`; the comparison of data sets and attacks on the eigenvalues and
eigenvectors of G. Each module is a handful of pure functions; how they compare with the usual
methods is measured by the experiment of the same name.
"""

from foliax.apps import attack as attack
from foliax.apps import denoise as denoise
from foliax.apps import explain as explain
from foliax.apps import generate as generate
from foliax.apps import metamer as metamer
from foliax.apps import ood as ood
from foliax.apps import transfer as transfer
