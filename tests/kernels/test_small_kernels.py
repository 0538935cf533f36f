"""Words, verification and compaction, bit by bit, and rejection with the same uniform numbers as the reference."""

import random

import pytest
import torch

from backend.acceptance import NumericEvents
from backend.ops.select import HOST, TORCH
from backend.ops.triton_bitmask import ancestor_words
from backend.ops.triton_follow import follow
from backend.ops.triton_walk import walk
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Draft, Proposal
from tests.exact.reference import random_case, stream
from tests.kernels.cases import DEVICE, on_device, random_tree, triton_ops
from tests.parts import some_slow

pytestmark = pytest.mark.kernels
WIDTHS = [1, 2, 15, 60, 64, 65, 128, 200, 256]


def chosen(choose: random.Random, tree, width):
    """Ascending nodes, closed under parents, ragged, padded at the end."""
    rows = []
    for row in range(tree.tokens.shape[0]):
        kept = {0}
        for node in range(1, tree.num_nodes):
            has_room = len(kept) < width and choose.random() < 0.9
            if has_room and tree.exists[row, node] and int(tree.parents[row, node]) in kept:
                kept.add(node)
        rows.append(sorted(kept) + [NO_NODE] * (width - len(kept)))
    return torch.tensor(rows)


def moved(draft: Draft) -> Draft:
    laws, places = (None if values is None else values.to(DEVICE) for values in (draft.laws, draft.law_places))
    return Draft(on_device(draft.tree), draft.nodes.to(DEVICE), draft.proposal, laws, places)


def stream_there(rows: int, seed: int = 0) -> RandomStream:
    return RandomStream(stream(rows, seed).keys.to(DEVICE))


@pytest.mark.parametrize("seed", some_slow(range(25), 3))
def test_words_equal_ancestry(seed):
    choose = random.Random(seed)
    width, batch = choose.choice(WIDTHS), choose.randint(1, 3)
    tree = random_tree(choose, batch, width + choose.choice([0, 30, 300]))
    shown = chosen(choose, tree, width)
    queries = choose.randint(1, width)
    words = ancestor_words(on_device(tree).ancestors, shown.to(DEVICE), queries).cpu()
    bits = (words.repeat_interleave(64, 2)[:, :, :width] >> (torch.arange(width) % 64)) & 1
    assert torch.equal(bits.bool(), tree.is_ancestor(shown, shown[:, width - queries :]))
    assert words.shape[2] == -(-width // 64)


@pytest.mark.parametrize("proposal", [Proposal.DETERMINISTIC, Proposal.IID])
@pytest.mark.parametrize("seed", some_slow(range(20), 3))
def test_verification_equals_the_reference(seed, proposal):
    """Few tokens, so that siblings repeat and deep paths match; the root's row may be all padding but for it."""
    choose = random.Random(seed)
    tree = random_tree(choose, choose.randint(1, 4), choose.choice([2, 40, 300]), vocabulary=choose.choice([1, 2, 3]))
    draft = Draft(tree, chosen(choose, tree, choose.choice(WIDTHS)), proposal)
    picks = torch.randint(0, 3, draft.nodes.shape, generator=torch.Generator().manual_seed(seed))
    expected = TORCH.follow(draft, picks)
    for found in (follow(moved(draft), picks.to(DEVICE)), HOST.follow(draft, picks)):
        assert torch.equal(found.path.cpu(), expected.path)
        assert torch.equal(found.bonus.cpu(), expected.bonus)


@pytest.mark.parametrize("proposal", [Proposal.WITHOUT_REPLACEMENT, Proposal.IID])
@pytest.mark.parametrize("seed", some_slow(range(20), 3))
def test_rejection_equals_the_reference(seed, proposal):
    sizes = [[5], [0, 9, 3], [30, 12], [1, 2, 3, 4]][seed % 4]
    draft, logits = random_case(seed, sizes, [2, 5, 9, 1500][seed // 4 % 4], proposal, [0.0, 0.3, 0.7][seed % 3])
    if seed % 2:  # laws in another order than nodes
        assert draft.laws is not None
        places = torch.arange(draft.nodes.shape[1]).flip(0).expand_as(draft.nodes)
        draft = draft._replace(laws=draft.laws.flip(1), law_places=places)
    sampler, expected_events, events = Sampler(0.8), NumericEvents(), NumericEvents()
    places, left = TORCH.walk(draft, logits, sampler, stream(len(sizes), seed), expected_events)
    found, left_there = walk(moved(draft), logits.to(DEVICE), sampler, stream_there(len(sizes), seed), events)
    assert torch.equal(found.cpu(), places)
    torch.testing.assert_close(left_there.cpu(), left, rtol=1e-5, atol=1e-7)
    assert events.read() == expected_events.read()


def test_rejection_meets_nodes_without_a_law_and_vanished_residuals():
    draft, logits = random_case(2, [9, 9], 4, Proposal.WITHOUT_REPLACEMENT, 0.0)
    logits[0, 0] = float("nan")
    expected_events, events = NumericEvents(), NumericEvents()
    places, _ = TORCH.walk(draft, logits, Sampler(1.0), stream(2), expected_events)
    found, _ = walk(moved(draft), logits.to(DEVICE), Sampler(1.0), stream_there(2), events)
    assert torch.equal(found.cpu(), places)
    assert events.read() == expected_events.read()
    assert events.read()["invalid_rows"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", some_slow(range(15), 2))
def test_compaction_equals_the_reference(seed, dtype):
    choose = random.Random(seed)
    batch, layers, heads = choose.randint(1, 3), choose.randint(1, 3), choose.randint(1, 2)
    size, length = choose.choice([8, 64, 80]), choose.choice([1, 5, 40])
    generator = torch.Generator().manual_seed(seed)
    stack = torch.randn(layers, batch, heads, 200, size, generator=generator).to(dtype)
    rows = []
    for _ in range(batch):
        kept = sorted(choose.sample(range(1, 100), choose.randint(0, length) if length < 90 else 0))
        path = [0, *kept][: choose.randint(0, length)]
        rows.append(path + [NO_NODE] * (length - len(path)))
    places, lengths = torch.tensor(rows), torch.tensor([choose.randint(0, 60) for _ in range(batch)])
    expected, found = stack.clone(), stack.to(DEVICE)
    TORCH.keep(expected, places, lengths)
    triton_ops().keep(found, places.to(DEVICE), lengths.to(DEVICE))
    assert torch.equal(found.cpu(), expected)
