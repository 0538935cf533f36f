"""The largest of a vocabulary, found by blocks: torch's own search looks at one token at a time on a CPU.

The k largest lie in the k blocks of largest maxima, and the maxima are one vectorised pass.
"""

from jaxtyping import Float, Int
from torch import Tensor

FEW_BLOCKS = 8  # in which one is searched: the detour does not pay then


def top_k(values: Float[Tensor, "*rows vocab"], k: int) -> tuple[Float[Tensor, "*rows k"], Int[Tensor, "*rows k"]]:
    """The k largest values of each row and where they are, in descending order, as `torch.topk`."""
    if k == 1:
        found, places = largest(values)
        return found[..., None], places[..., None]
    blocks = _blocks(values, 64)
    if blocks is None or blocks.shape[-2] < k * FEW_BLOCKS:
        found, places = values.topk(k, dim=-1)
        return found, places
    chosen = blocks.amax(-1).topk(k, dim=-1).indices
    found, places = _of(blocks, chosen).flatten(-2).topk(k, dim=-1)
    return found, chosen.gather(-1, places // 64) * 64 + places % 64


def largest(values: Float[Tensor, "*rows vocab"]) -> tuple[Float[Tensor, "*rows"], Int[Tensor, "*rows"]]:
    """The largest value of each row and the first place where it stands."""
    blocks = _blocks(values, 256)
    if blocks is None or blocks.shape[-2] < FEW_BLOCKS:
        found, place = values.max(-1)
        return found, place
    chosen = blocks.amax(-1).max(-1, keepdim=True).indices
    found, place = _of(blocks, chosen).squeeze(-2).max(-1)
    return found, chosen.squeeze(-1) * 256 + place


def _blocks(values: Tensor, size: int) -> Tensor | None:
    fits = values.device.type == "cpu" and values.shape[-1] % size == 0
    return values.unflatten(-1, (-1, size)) if fits else None


def _of(blocks: Float[Tensor, "*rows block size"], chosen: Int[Tensor, "*rows chosen"]) -> Tensor:
    return blocks.gather(-2, chosen[..., None].expand(*chosen.shape, blocks.shape[-1]))
