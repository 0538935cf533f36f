"""Times the pieces of a step on the very objects that the benchmark decodes with."""

from collections.abc import Callable, Iterator

import torch

from algorithms.base import Drafter
from algorithms.growth import Children, Growth
from backend.acceptance import create_rule
from backend.model import TreeModel
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.timing import Stopwatch
from backend.tree import Draft, TokenTree, Verified

WARM_UPS = 2
CHILDREN = 8  # of each node of a drafted level


class Pieces:
    """A target and a drafter on texts of one length; what is cached does not matter for time, so nothing is."""

    def __init__(self, target: TreeModel, drafter: Drafter | None, batch: int, context: int, widest: int) -> None:
        self.target, self.drafter = target, drafter
        self.batch = batch
        self.clock = Stopwatch(target.device)
        self.lengths = torch.full((batch,), context, device=target.device)
        self.rows = torch.arange(batch, device=target.device)
        nothing = torch.zeros(batch, 0, dtype=torch.int64, device=target.device)
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(1, target.vocab_size, (batch, context), generator=generator).to(target.device)
        self.prompts = {True: nothing, False: text}  # with a cache: nothing to read; a copier wants a text
        for model in (target, drafter):
            if model is not None:
                model.allocate(batch, context + 2 * widest + CHILDREN)

    def restart(self, drafter_too: bool) -> None:
        self.target.prefill(self.prompts[True], self.lengths)
        if drafter_too and self.drafter is not None:
            self.drafter.prefill(self.prompts[hasattr(self.drafter, "cache")], self.lengths)

    def star(self, width: int) -> TokenTree:
        """A root with `width` children."""
        tree = TokenTree.root(self.rows % self.target.vocab_size)
        children = torch.arange(width, device=self.target.device).expand(self.batch, -1) + 1
        return tree.add(torch.zeros_like(children), children, torch.zeros_like(children).float())

    def verify(self, width: int, commits_to_drafter: bool) -> Iterator[tuple[float, float]]:
        """Endless pairs of seconds: the target's forward on `width` nodes, and the rest of the step."""
        rule, sampler = create_rule("greedy"), Sampler(0.0)
        drafter = self.drafter if commits_to_drafter else None
        while True:
            self.restart(drafter_too=commits_to_drafter)
            tree = self.star(width - 1) if width > 1 else TokenTree.root(self.rows)
            draft = Draft(tree, torch.arange(width, device=self.target.device).expand(self.batch, -1))
            start = self.clock.now()
            logits = self.target.expand(tree, draft.nodes)
            forward = self.clock.now()
            random = RandomStream.keyed(0, self.rows, self.lengths)
            accepted = rule(draft, logits, sampler, random)
            self.target.commit(tree, accepted)
            if drafter is not None:
                drafter.commit(tree, accepted, Verified(draft.nodes, logits))
            accepted.emitted(tree)
            self.target.settle()
            yield forward - start, self.clock.now() - forward

    def draft(self, width: int, before: Callable[[], object] = tuple) -> Iterator[tuple[float, ...]]:
        """Endless seconds of drafting the children of `width` nodes, which are children of the root themselves.

        `before` is called each time, after the root was expanded and before the clock starts.
        """
        assert self.drafter is not None
        while True:
            self.restart(drafter_too=True)
            random = RandomStream.keyed(0, self.rows, self.lengths)
            growth = Growth(self.star(width), self.drafter, Children.named("top_k", 1.0), random)
            self.drafter.expand(growth.tree, growth.root)
            frontier = growth.nodes[:, 1:]
            before()
            start = self.clock.now()
            growth.expand(frontier, CHILDREN)
            yield (self.clock.now() - start,)


@torch.inference_mode()
def medians(timed: Iterator[tuple[float, ...]], repeats: int, most_seconds: float) -> list[float]:
    """Of `repeats` rounds after warming up, fewer (three at least) once they have taken `most_seconds`."""
    for _ in range(WARM_UPS):
        next(timed)
    rounds: list[tuple[float, ...]] = []
    while len(rounds) < repeats and (len(rounds) < 3 or sum(map(sum, rounds)) < most_seconds):
        rounds.append(next(timed))
    return [sorted(column)[len(column) // 2] for column in zip(*rounds, strict=True)]
