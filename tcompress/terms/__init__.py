"""What positions add to attention scores, besides the product of query and key."""

from torch import Tensor, nn


class ScoreTerms(nn.Module):
    """Scores of a layer are `scale * q . k + bias`, with queries and keys rotated before.

    This base class adds nothing. A layer whose output is read at the first token only passes one
    query: queries are always the first tokens of the sequence of keys.
    """

    reads_keys = True
    """Whether a constant that is added to every key would change more than all scores alike."""
    shares_projections = False
    """Whether the layer's query and key projections are used for positions too."""
    pair_products = 0
    """Products over pairs of tokens for each head, besides those of queries, keys and values."""

    @property
    def local(self) -> bool:
        """Whether tokens see only those near them."""
        return False

    @property
    def scale(self) -> float | None:
        """Factor of the products; None for one over the root of the head size."""
        return None

    def rotated(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys as their positions turn them.

        Args:
            q: `(batch, heads, queries, head_size)`.
            k: `(batch, heads, tokens, head_size)`.
        """
        return q, k

    def bias(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Return what is added to the scores, `(batch or 1, heads or 1, queries, tokens)`.

        Args:
            q: Queries before rotation, `(batch, heads, queries, head_size)`.
            k: Keys before rotation, `(batch, heads, tokens, head_size)`.
        """
        return None

    def folded(self) -> "ScoreTerms":
        """Return terms that say the same, with all that depends on weights alone computed."""
        return self
