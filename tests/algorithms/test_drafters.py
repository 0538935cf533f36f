"""Training-free drafters: Token Recycling's matrix and the suffix automaton, against what they should have found."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.drafters.suffix_automaton import Automaton, SuffixAutomaton
from backend.drafters.token_recycling import TokenRecycling
from backend.timing import Stopwatch
from backend.tree import NO_NODE, Accepted, TokenTree, Verified
from runners.decoding import Request, generate
from tests.parts import LIMITS, make_algorithm, make_decoder, prompts
from tests.tiny_models import VOCAB


def chain(*tokens: int) -> TokenTree:
    tree = TokenTree.root(torch.tensor(tokens[:1]))
    for parent, token in enumerate(tokens[1:]):
        tree = tree.add(torch.tensor([[parent]]), torch.tensor([[token]]), torch.zeros(1, 1))
    return tree


def prefilled(drafter, prompt: list[int]):
    drafter.prefill(torch.tensor([prompt], dtype=torch.int64).reshape(1, -1), torch.tensor([len(prompt)]))
    return drafter


def likeliest(log_probs: torch.Tensor) -> list[list[int]]:
    """Per node, what is proposed, best first."""
    return [
        [int(token) for token in row.argsort(descending=True, stable=True) if row[token] > -torch.inf]
        for row in log_probs[0]
    ]


def naive_match(text: list[int]) -> tuple[int, int]:
    """Length of the longest suffix that occurs before the end, and where its earliest occurrence ends."""
    for length in range(len(text) - 1, 0, -1):
        for end in range(length, len(text)):
            if text[end - length : end] == text[-length:]:
                return length, end - 1
    return 0, -1


@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_automaton_knows_the_longest_suffix_that_occurred_before(text):
    automaton = Automaton()
    for place, token in enumerate(text):
        automaton.append(token, track_latest=False)
        length, end = naive_match(text[: place + 1])
        assert automaton.match[1] == length
        assert not length or automaton.first[automaton.match[0]] == end


@given(text=st.lists(st.integers(0, 2), min_size=2, max_size=30), latest=st.booleans())
@settings(max_examples=100, deadline=None)
def test_proposal_follows_an_occurrence_of_the_match(text, latest):
    drafter = prefilled(SuffixAutomaton(3, 1, "latest" if latest else "earliest"), text[:-1])
    proposed = likeliest(drafter.expand(TokenTree.root(torch.tensor(text[-1:])), torch.tensor([[0]])))[0]
    length, _ = naive_match(text)
    ends = [end for end in range(length, len(text)) if length and text[end - length : end] == text[-length:]]
    assert proposed == ([text[ends[-1 if latest else 0]]] if ends else [])


def test_suffix_automaton_follows_the_path_and_what_was_committed():
    drafter = prefilled(SuffixAutomaton(9, 2, "earliest"), [1, 2, 3, 4, 5, 1])
    tree = chain(2, 3, 4, 7)
    every = torch.tensor([[0, 1, 2, 3]])
    assert likeliest(drafter.expand(tree, every)) == [[3], [4], [5], []]
    drafter.commit(tree, Accepted(torch.tensor([[0, 1]]), torch.tensor([8])), Verified(every, torch.zeros(1, 4, 9)))
    assert drafter.rows[0].text == [1, 2, 3, 4, 5, 1, 2, 3]
    assert likeliest(drafter.expand(chain(4, 5), torch.tensor([[0, 1, NO_NODE]]))) == [[5], [1], []]


def test_min_match_keeps_short_matches_out():
    for min_match, proposed in ((1, [[5]]), (2, [[]])):
        drafter = prefilled(SuffixAutomaton(9, min_match, "earliest"), [4, 5, 6])
        assert likeliest(drafter.expand(chain(4), torch.tensor([[0]]))) == proposed


def test_token_recycling_remembers_the_last_top_tokens():
    drafter = prefilled(TokenRecycling(6, 2), [])
    tree, every = chain(3, 4, 3), torch.tensor([[0, 1, 2, NO_NODE]])
    assert likeliest(drafter.expand(tree, every)) == [[], [], [], []]
    logits = torch.tensor([[[9, 8, 0, 0, 0, 0], [0, 0, 5, 0, 0, 6], [0, 7, 0, 0, 8, 0], [9.0, 9, 9, 9, 9, 9]]])
    drafter.commit(tree, Accepted(torch.tensor([[0]]), torch.tensor([1])), Verified(every, logits))
    assert likeliest(drafter.expand(chain(3, 4, 1), torch.tensor([[0, 1, 2]]))) == [[4, 1], [5, 2], []]
    assert torch.isfinite(drafter.expand(chain(3), torch.tensor([[0]]))).sum() == 2


@pytest.mark.parametrize("make", [lambda: TokenRecycling(6, 2), lambda: SuffixAutomaton(6, 1, "latest")])
def test_a_new_sequence_starts_from_nothing(make):
    drafter = prefilled(make(), [1, 2, 1, 2])
    verified = Verified(torch.tensor([[0]]), torch.ones(1, 1, 6))
    drafter.commit(chain(1), Accepted(torch.tensor([[0]]), torch.tensor([2])), verified)
    assert likeliest(prefilled(drafter, [5]).expand(chain(1), torch.tensor([[0]]))) == [[]]


@pytest.mark.lossless
@pytest.mark.parametrize(
    ("algorithm", "make"),
    [("token_recycling", lambda: TokenRecycling(VOCAB, 8)), ("chain", lambda: SuffixAutomaton(VOCAB, 1, "latest"))],
)
def test_decoding_stays_lossless_and_drafts_are_accepted(algorithm, make):
    drafter, requests = make(), [prompts([length])[0] for length in (7, 12)]
    decoder = make_decoder("autoregressive", {}, "none")
    plain, drafted = (
        generate(parts, [Request(i, p) for i, p in enumerate(requests)], LIMITS, Stopwatch(torch.device("cpu")))
        for parts in (
            decoder,
            replace(decoder, algorithm=make_algorithm(algorithm, {}, drafter), drafter=drafter),
        )
    )
    assert drafted.tokens == plain.tokens
    assert len(drafted.emitted) < len(plain.emitted)
