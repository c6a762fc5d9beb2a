"""The 24B model's shape, and how many of its weights are of which kind."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A dense llama; the default is Vistral-24B's, by its config.json."""

    layers: int = 40
    hidden: int = 5120
    feed_forward: int = 32768
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 131072

    @property
    def linear(self) -> int:
        """Weights of the layers' matrices: what every quantization quantizes."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def embedding(self) -> int:
        """Weights of the input embedding; the output matrix has as many, untied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear + 2 * self.embedding + norms

    @property
    def multiplied(self) -> int:
        """Weights that each token is multiplied with: the embedding is only looked up."""
        return self.linear + self.embedding

    def kv_bytes(self, tokens: int) -> int:
        """Of the cache in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim * tokens


VISTRAL_24B = Shape()
