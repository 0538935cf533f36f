"""A node expanded step by step has the log-probabilities that a fresh drafter gives the whole tree in one go.

A drafter whose cache points at the wrong nodes still gives lossless output, only slower; this is where it shows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from algorithms.base import Drafter, TreeAlgorithm
from backend.random import RandomStream
from backend.timing import Stopwatch
from backend.tree import NO_NODE, Accepted, Draft, TokenTree
from runners.decoding import Limits, Request, generate, pad
from tests.by_turns import ByTurns
from tests.parts import CASE_IDS, CASES, DRAFTERS, LIMITS, make_algorithm, make_decoder, make_drafter, prompts

DRAFTING = [(case, name) for case, name in zip(CASES, CASE_IDS, strict=True) if case[0] != "autoregressive"]


class Recorder:
    """A drafter that notes what it was asked and what has been committed."""

    def __init__(self, drafter: Drafter, prompts: list[list[int]]) -> None:
        self.drafter = drafter
        self.committed = [prompt[:-1] for prompt in prompts]
        self.answers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # nodes, log-probabilities, tokens

    def __getattr__(self, name):
        return getattr(self.drafter, name)

    def expand(self, tree: TokenTree, nodes):
        log_probs = self.drafter.expand(tree, nodes)
        self.answers.append((nodes, log_probs, torch.arange(log_probs.shape[2]).expand_as(log_probs)))
        return log_probs

    @property
    def likeliest(self):
        """Where the drafter has it."""
        ask = self.drafter.likeliest  # type: ignore[attr-defined]

        def recorded(tree: TokenTree, nodes, width: int):
            log_probs, tokens = ask(tree, nodes, width)
            self.answers.append((nodes, log_probs, tokens))
            return log_probs, tokens

        return recorded

    def commit(self, tree: TokenTree, accepted: Accepted, verified):
        tokens = tree.tokens.gather(1, accepted.path.clamp(min=0)).tolist()
        for row, new, count in zip(self.committed, tokens, accepted.num_nodes.tolist(), strict=True):
            row += new[:count]
        self.drafter.commit(tree, accepted, verified)


class Checked(TreeAlgorithm):
    """Compares every answer that the drafter gave while the tree grew with a fresh drafter's."""

    def __init__(self, algorithm: TreeAlgorithm, recorder: Recorder, fresh) -> None:
        self.algorithm, self.recorder, self.fresh = algorithm, recorder, fresh
        self.proposal = algorithm.proposal
        self.num_checked = 0

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        self.recorder.answers.clear()
        draft = self.algorithm.grow(tree, random)
        every = torch.arange(draft.tree.num_nodes).expand_as(draft.tree.tokens)
        every = every.masked_fill(~draft.tree.exists, NO_NODE)
        one_shot = self.fresh(self.recorder.committed).expand(draft.tree, every)
        for nodes, log_probs, tokens in self.recorder.answers:
            for row, place in (nodes != NO_NODE).nonzero().tolist():
                everything, found = one_shot[row, nodes[row, place]], log_probs[row, place]
                said = found > -torch.inf
                expected = torch.where(said, everything[tokens[row, place]], -torch.inf)
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
                largest = everything.topk(len(found)).values
                torch.testing.assert_close(found.sort(descending=True).values, largest, atol=2e-5, rtol=1e-5)
                self.num_checked += 1
        return draft


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(("name", "variant"), [case for case, _ in DRAFTING], ids=[name for _, name in DRAFTING])
def test_incremental_expansion_equals_one_shot(name, variant, kind):
    check(kind, make_decoder(name, variant, kind), partial(make_algorithm, name, variant))


@pytest.mark.parametrize("kind", DRAFTERS)
def test_rows_that_do_not_draft_miss_nothing(kind):
    check(kind, make_decoder("chain", {}, kind), ByTurns, replace(LIMITS, max_new_tokens=24))


def check(kind: str, decoder: Any, make: Callable[[Any], TreeAlgorithm], limits: Limits = LIMITS) -> None:
    requests = [prompts([7])[0], prompts([12])[0]]
    assert decoder.drafter is not None
    recorder: Any = Recorder(decoder.drafter, requests)

    def fresh(committed: list[list[int]]) -> Drafter:
        drafter = make_drafter(kind, decoder.target)
        drafter.allocate(len(committed), 256)
        drafter.prefill(*pad(committed, torch.device("cpu")))
        return drafter

    checked = Checked(make(recorder), recorder, fresh)
    decoder = replace(decoder, algorithm=checked, drafter=recorder)
    requests = [Request(i, prompt) for i, prompt in enumerate(requests)]
    generate(decoder, requests, limits, Stopwatch(torch.device("cpu")))
    assert checked.num_checked > 20
