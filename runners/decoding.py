"""The decode loop. It reads as the architecture: grow, verify, accept, commit, observe, record."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.autoregressive import Autoregressive
from algorithms.base import Drafter, TreeAlgorithm
from backend.acceptance import AcceptanceRule, create_rule, default_rule
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.targets import Target
from backend.timing import Stopwatch
from backend.tree import NO_NODE, Accepted, Draft, Proposal, TokenTree, Verified


@dataclass(frozen=True)
class Decoder:
    """The parts of one way to decode. Baseline and method differ in algorithm, drafter and nothing else."""

    target: Target
    algorithm: TreeAlgorithm
    drafter: Drafter | None
    rule: AcceptanceRule
    sampler: Sampler
    seed: int


@dataclass(frozen=True)
class Request:
    """A prompt to continue. `sequence` keys its random numbers, so that they do not depend on the batch."""

    sequence: int
    prompt: list[int]


@dataclass(frozen=True)
class Limits:
    """`tree_slots` is how many nodes of one step the caches have room for."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    tree_slots: int


class TreeSizes(NamedTuple):
    """Per row: nodes drafted, nodes verified (both with the root), and how deep the verified ones reach."""

    drafted: list[int]
    verified: list[int]
    depth: list[int]


@dataclass
class Generation:
    """Committed tokens per request, up to and including the first end of text or the limit, and the steps behind them.

    `emitted`, `trees` and `traces` hold one entry per step for the whole batch.
    """

    tokens: list[list[int]]
    prefill_seconds: float = 0.0
    seconds: float = 0.0
    emitted: list[list[int]] = field(default_factory=list)  # per step and row; 0 where the row had finished
    trees: list[TreeSizes] = field(default_factory=list)
    traces: list[dict[str, list[float]]] = field(default_factory=list)  # what the algorithm says, by name and row
    steps: list[tuple[Draft, Accepted]] = field(default_factory=list)  # with `keep_steps` only: they are large


@torch.inference_mode()
def generate(
    decoder: Decoder, requests: Sequence[Request], limits: Limits, clock: Stopwatch, keep_steps: bool = False
) -> Generation:
    """Decode a batch. Prefill is timed apart from the loop."""
    target, algorithm, drafter = decoder.target, decoder.algorithm, decoder.drafter
    start = clock.now()
    progress = prefill(decoder, requests, limits)
    prefilled = clock.now()
    while any(progress.is_active):
        tree = TokenTree.root(progress.roots)
        random = RandomStream.keyed(decoder.seed, progress.sequences, progress.positions)
        with clock.stage("grow"):
            draft = algorithm.grow(tree, random)
        with clock.stage("verify"):
            logits = target.expand(draft.tree, draft.nodes)
        with clock.stage("accept"):
            accepted = progress.only_active(decoder.rule(draft, logits, decoder.sampler, random))
        with clock.stage("commit"):
            target.commit(draft.tree, accepted)
            if drafter is not None:
                drafter.commit(draft.tree, accepted, Verified(draft.nodes, logits))
            algorithm.observe(draft, accepted)
            progress.advance(draft, accepted)
            progress.result.traces.append(algorithm.trace())
    progress.result.prefill_seconds = prefilled - start
    progress.result.seconds = clock.now() - prefilled
    progress.result.trees = [tree_sizes(draft) for draft in progress.drafts]
    if keep_steps:
        progress.result.steps = list(zip(progress.drafts, progress.accepted, strict=True))
    return progress.result


def plain_answers(
    target: Target,
    prompts: Sequence[list[int]],
    eos_token_ids: tuple[int, ...],
    max_new_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    first_sequence: int = 0,
) -> list[list[int]]:
    """What the target itself says, all prompts in one batch; they are numbered from `first_sequence` on."""
    rule = create_rule(default_rule(Proposal.DETERMINISTIC, sampler.temperature))
    decoder = Decoder(target, Autoregressive(), None, rule, sampler, seed)
    requests = [Request(index, prompt) for index, prompt in enumerate(prompts, first_sequence)]
    limits = Limits(max_new_tokens, eos_token_ids, tree_slots=1)
    return generate(decoder, requests, limits, Stopwatch(target.device)).tokens


class Progress:
    """Where every row of the batch stands. The root is a row's last committed token, not cached yet."""

    def __init__(self, requests: Sequence[Request], limits: Limits, target: Target) -> None:
        self.limits = limits
        self.target = target
        self.roots = torch.tensor([r.prompt[-1] for r in requests], device=target.device)
        self.sequences = torch.tensor([r.sequence for r in requests], device=target.device)
        self.positions = torch.tensor([len(r.prompt) for r in requests], device=target.device)
        self.is_active = [True] * len(requests)
        self.result = Generation([[] for _ in requests])
        self.drafts: list[Draft] = []  # measured after the clock has stopped
        self.accepted: list[Accepted] = []

    def only_active(self, accepted: Accepted) -> Accepted:
        """Finished rows accept nothing and keep their root."""
        if all(self.is_active):
            return accepted
        active = torch.tensor(self.is_active, device=self.roots.device)
        path = accepted.path.masked_fill(~active[:, None], NO_NODE)
        return Accepted(path, torch.where(active, accepted.bonus, self.roots))

    def advance(self, draft: Draft, accepted: Accepted) -> None:
        """Hand out the emitted tokens. This is the step's one wait for the device."""
        rows = accepted.emitted(draft.tree)
        counts = [self._append(tokens, row) for tokens, row in zip(self.result.tokens, rows, strict=True)]
        self.drafts.append(draft._replace(laws=None))  # laws are large
        self.accepted.append(accepted)
        self.result.emitted.append(counts)
        self.roots = accepted.bonus
        self.positions = self.positions + accepted.num_nodes
        self.is_active = [not self._finished(tokens) for tokens in self.result.tokens]
        self.target.settle()

    def _append(self, tokens: list[int], new: list[int]) -> int:
        before = len(tokens)
        for token in new:
            if self._finished(tokens):
                break
            tokens.append(token)
        return len(tokens) - before

    def _finished(self, tokens: list[int]) -> bool:
        at_end = bool(tokens) and tokens[-1] in self.limits.eos_token_ids
        return at_end or len(tokens) >= self.limits.max_new_tokens


def tree_sizes(draft: Draft) -> TreeSizes:
    depths = draft.of_nodes(draft.tree.depths).masked_fill(~draft.exists, 0)
    sizes = (draft.tree.exists.sum(1), draft.exists.sum(1), depths.max(1).values)
    return TreeSizes(*(size.tolist() for size in sizes))


def prefill(decoder: Decoder, requests: Sequence[Request], limits: Limits) -> Progress:
    """Fill the caches with all of every prompt but its last token, which is the first root."""
    prompts, lengths = pad([request.prompt[:-1] for request in requests], decoder.target.device)
    capacity = int(lengths.max()) + limits.max_new_tokens + limits.tree_slots
    for model in (decoder.target, decoder.drafter):
        if model is not None:
            model.allocate(len(requests), capacity)
    decoder.target.prefill(prompts, lengths)
    if decoder.drafter is not None:
        decoder.drafter.prefill(prompts, lengths)
    decoder.algorithm.start(lengths + 1)
    return Progress(requests, limits, decoder.target)


def pad(
    prompts: Sequence[list[int]], device: torch.device
) -> tuple[Int[Tensor, "batch prompt"], Int[Tensor, " batch"]]:
    """Right-padded token ids and their lengths."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(prompts), longest)
    return tokens, torch.tensor([len(prompt) for prompt in prompts], device=device)
