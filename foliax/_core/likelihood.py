"""What a likelihood must supply, for G, D and F to follow."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float


@runtime_checkable
class Likelihood(Protocol):
    """What the geometry asks of an output distribution."""

    def check(self, num_logits: int) -> None:
        """Raise ValueError if the distribution cannot have this many logits."""
        ...

    def factor(self, logits: Float[Array, " c"]) -> tuple[Float[Array, " r"], Float[Array, "r c"]]:
        """Return (weights, rows) with metric = rowsᵀ diag(weights²) rows."""
        ...

    def possible(self, logits: Float[Array, " c"]) -> Bool[Array, " c"]:
        """Mark the logits that count: false for a class that cannot occur, at −∞."""
        ...

    def contrasts(self, logits: Float[Array, " c"]) -> Float[Array, "r c"]:
        """Return orthogonal rows spanning the functions of the logits the distribution sees.

        A contrast of 1 is a change that the distribution shows, in whatever units the logits are.
        Each class that cannot occur has a row of zeros.
        """
        ...

    def unit(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return the change of each logit that the distribution shows."""
        ...

    def probabilities(self, logits: Float[Array, " c"]) -> Float[Array, " c"]:
        """Return what is conserved along kernel leaves, as numbers to compare."""
        ...

    def embedding(self, logits: Float[Array, " c"]) -> Float[Array, "e c"]:
        """Return M = ∂u/∂s of an isometric image u of the distributions: metric = MᵀM."""
        ...

    def edge(self, logits: Float[Array, " c"]) -> Float[Array, ""]:
        """Return the least probability, 0 at the edge of the distributions; ∞ if there is none."""
        ...

    def kl(self, logits: Float[Array, " c"], change: Float[Array, " c"]) -> Float[Array, ""]:
        """Return KL(p(logits + change) ‖ p(logits)), summed without cancellation."""
        ...
