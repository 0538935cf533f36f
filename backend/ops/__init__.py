"""The operations of a decode step that exist twice: in torch (CPU; what kernels are tested against) and in Triton."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.tree import Accepted


@dataclass(frozen=True)
class Ops:
    """One implementation of them; the reference functions say what each one computes.

    attention(query, key, value, plan, scale, window, softcap, sinks): of tree nodes over prefix and ancestors.
    keep(stack, places, lengths): KV compaction in place. follow(draft, picks): the deepest path that one pick per node
    follows. walk(draft, logits, sampler, random, events): where rejection ends, and what it leaves of the target's law.
    check(dtype, head_size): raises TreebenchError for what the implementation cannot do.
    """

    name: str
    attention: Callable[..., Tensor]
    keep: Callable[[Tensor, Tensor, Tensor], None]
    follow: Callable[..., Accepted]
    walk: Callable[..., tuple[Tensor, Tensor]]
    check: Callable[[torch.dtype, int], None]
