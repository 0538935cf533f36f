"""The largest of a vocabulary: torch's own search looks at one token at a time on a CPU.

NumPy's is vectorised, for one. The k largest lie in the k blocks of largest maxima, and the maxima are one pass.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
FEW_BLOCKS = 8  # per value that is looked for: the detour does not pay with fewer
FEW_VALUES = 16384  # in all: nor here
INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # its bits
SIGN = 0x8000


def top_k(values: Float[Tensor, "*rows vocab"], k: int) -> tuple[Float[Tensor, "*rows k"], Int[Tensor, "*rows k"]]:
    """The k largest values of each row and where they are, in descending order, as `torch.topk`; all if fewer."""
    size = values.shape[-1]
    k = min(k, size)
    if k == 1:
        found, places = largest(values)
        return found[..., None], places[..., None]
    if values.device.type != "cpu" or values.numel() <= FEW_VALUES or size % BLOCK or size < k * FEW_BLOCKS * BLOCK:
        found, places = values.topk(k, dim=-1)
        return found, places
    blocks = values.unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(k, dim=-1).indices
    candidates = blocks.gather(-2, chosen[..., None].expand(*chosen.shape, BLOCK))
    found, places = candidates.flatten(-2).topk(k, dim=-1)
    return found, chosen.gather(-1, places // BLOCK) * BLOCK + places % BLOCK


def largest(values: Float[Tensor, "*rows vocab"]) -> tuple[Float[Tensor, "*rows"], Int[Tensor, "*rows"]]:
    """The largest value of each row and the first place where it stands; NaN is larger than any number."""
    if values.device.type != "cpu":
        found, place = values.max(-1)
        return found, place
    rows = values.reshape(-1, values.shape[-1])
    positive = _positive_maxima(rows)
    places = (rows.float() if rows.dtype in INFINITY else rows).numpy().argmax(1) if positive is None else positive[0]
    places = torch.from_numpy(places).view(values.shape[:-1])
    return values.gather(-1, places[..., None]).squeeze(-1), places


def finite_maxima(values: Float[Tensor, "*rows vocab"]) -> Int[Tensor, "*rows"] | None:
    """The places that `largest` finds, if the host can say at little cost that all these values are finite."""
    if values.device.type != "cpu":
        return None
    positive = _positive_maxima(values.reshape(-1, values.shape[-1]))
    if positive is None or max(positive[1], default=0) >= INFINITY[values.dtype]:
        return None
    return torch.from_numpy(positive[0]).view(values.shape[:-1])


def _positive_maxima(rows: Float[Tensor, "row vocab"]) -> tuple[np.ndarray, list[int]] | None:
    """Where each row's maximum is, and its bits, for halves whose maxima are positive; else None.

    NumPy's search is vectorised. It knows no bf16, but positive numbers have the order of their bits as integers.
    """
    if rows.dtype not in INFINITY:
        return None
    bits = rows.view(torch.int16).numpy()
    places = bits.argmax(1)
    found = [bits.item(row, place) for row, place in enumerate(places.tolist())]
    highest = INFINITY[rows.dtype] | SIGN  # above it are the negative NaNs
    if min(found, default=1) <= 0 or bits.view(np.uint16).max(initial=0) > highest:
        return None
    return places, found
