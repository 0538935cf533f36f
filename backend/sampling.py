"""From logits to the law that tokens are drawn from: temperature, then top-k, then top-p."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.errors import TreebenchError
from backend.top_k import finite_maxima, largest


@dataclass(frozen=True)
class Sampler:
    """Turns logits into probabilities; one and the same for the target and for the baseline.

    Temperature 0 puts all mass on the largest logit. `top_k` keeps what is as likely as the k-th token, ties included;
    `top_p` keeps the likeliest tokens until their mass reaches p. On every other tie the first index goes first.
    A row with a NaN, with +inf or with nothing above -inf has no law: its probabilities are all zero.
    """

    temperature: float
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise TreebenchError(f"temperature is {self.temperature}; it must be 0 or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise TreebenchError(f"top_k is {self.top_k}; it must be at least 1, or null to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise TreebenchError(f"top_p is {self.top_p}; it must lie in (0, 1], or be null to keep all tokens")

    def probs(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Probabilities in fp32; log-probabilities serve as logits too."""
        if self.temperature == 0:
            return _one_hot(logits)
        scaled = logits if self.temperature == 1 else logits.float() / self.temperature
        probs = scaled.softmax(-1, dtype=torch.float32)
        if self.top_k is not None:
            probs = _keep_top_k(probs, self.top_k)
        if self.top_p is not None:
            probs = _keep_top_p(probs, self.top_p)
        return probs.nan_to_num_(nan=0.0)


def likeliest(logits: Float[Tensor, "*rows vocab"]) -> tuple[Int[Tensor, "*rows"], Bool[Tensor, "*rows"] | None]:
    """The first index of the largest logit, 0 in a row without a law, and which rows have one (None: all of them)."""
    places = finite_maxima(logits)
    if places is not None:
        return places, None
    values, tokens = largest(logits)
    valid = values.isfinite()
    return tokens.masked_fill(~valid, 0), valid


def _one_hot(logits: Tensor) -> Tensor:
    tokens, valid = likeliest(logits)
    mass = 1.0 if valid is None else valid[..., None].float()
    return torch.zeros_like(logits, dtype=torch.float32).scatter(-1, tokens[..., None], mass)


def _keep_top_k(probs: Tensor, k: int) -> Tensor:
    least = probs.topk(min(k, probs.shape[-1]), dim=-1).values[..., -1:]
    return _normalised(probs.masked_fill(probs < least, 0.0))


def _keep_top_p(probs: Tensor, p: float) -> Tensor:
    ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
    likelier = ordered.cumsum(-1) - ordered  # mass of the tokens before this one
    return _normalised(torch.zeros_like(probs).scatter(-1, tokens, ordered.masked_fill(likelier >= p, 0.0)))


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
