"""What an algorithm and a drafter are: the two protocols that everything else is built on."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from backend.random import RandomStream
from backend.tree import Accepted, Draft, Proposal, TokenTree, Verified


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens. It keeps caches of its own and brings them up to date by itself."""

    name: str

    def allocate(self, batch: int, capacity: int) -> None:
        """Make room for `capacity` tokens per row, drafted ones included."""
        ...

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        """Start new sequences; `prompts` are right-padded and end before the root."""
        ...

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"]) -> Float[Tensor, "batch frontier vocab"]:
        """Log-probabilities (temperature 1, fp32) of the token after each node; -inf where it proposes nothing."""
        ...

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        """Keep what the accepted path shares with the caches, drop the rest of the tree, learn from the target."""
        ...


class SelectiveDrafter(Drafter, Protocol):
    """A drafter that finds its likeliest tokens faster than by searching the whole vocabulary."""

    def likeliest(
        self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"], width: int
    ) -> tuple[Float[Tensor, "batch frontier few"], Int[Tensor, "batch frontier few"]]:
        """The `width` largest values of what `expand` says and their tokens, in descending order. They may be fewer
        where the drafter never proposes so many; -inf where it proposes nothing."""
        ...


class TreeAlgorithm(ABC):
    """Decides which tree is drafted and which of its nodes are verified. One file per paper."""

    proposal: Proposal = Proposal.DETERMINISTIC

    @abstractmethod
    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        """Grow the tree from its root. Every random draw comes from `random`, which is fresh in each step."""

    def trace(self) -> dict[str, list[float]]:
        """Figures about the last step, one per row; they become columns of the step records under these names."""
        return {}

    def start(self, lengths: Int[Tensor, " batch"]) -> None:  # noqa: B027
        """New sequences begin, of so many tokens (the root included). What was learned from others is forgotten here,
        so that no result depends on what was decoded before."""

    def observe(self, draft: Draft, accepted: Accepted) -> None:  # noqa: B027
        """Learn from a verified step; adaptive algorithms override this."""
