"""The next token of a text."""

import dataclasses
import math

import flax.linen as nn
import jax

from jaxbig.objectives.base import Batch, Objective, Sums, of_logits


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Softmax cross entropy in nats a token, accuracy, perplexity, and bits per byte (tokens are bytes).

    Reads `inputs` and `targets` [B, L] (token numbers; a target is the token after its input) and `mask` [B, L].
    """

    vocab: int
    """How many different tokens the data has."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        return of_logits(forward(batch["inputs"], train=train), batch, self.vocab, "tokens")  # type: ignore[operator]

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        loss = means["loss"]
        perplexity = math.inf if loss > 700 else math.exp(loss)  # the exponential of NaN is NaN
        return {**means, "perplexity": perplexity, "bits_per_byte": loss / math.log(2)}
