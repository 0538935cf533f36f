"""The random stream: reproducible, independent of the batch, and its draws follow the laws they are given."""

import pytest
import torch
from scipy import stats

from backend.random import NO_TOKEN, RandomStream

ALPHA = 1e-6


def stream(rows, seed=11, position=3):
    sequences = torch.arange(rows)
    return RandomStream.keyed(seed, sequences, torch.full_like(sequences, position))


def fits(tokens, law):
    """Whether the counts of tokens pass a chi-square test against a law."""
    support = law > 0
    counts = torch.bincount(tokens.flatten(), minlength=len(law)).double()
    assert counts[~support].sum() == 0
    return stats.chisquare(counts[support], counts.sum() * law[support].double() / law.sum()).pvalue > ALPHA


def test_known_numbers():
    """The same on every machine and device; a change here makes old records irreproducible."""
    random = stream(2).of("draft")
    assert random.keys.tolist() == KNOWN_KEYS
    assert random.uniforms(torch.zeros(2, 1, dtype=torch.int64), 1).flatten().tolist() == KNOWN_UNIFORMS


KNOWN_KEYS = [-5570530944100729105, 675304131215170810]
KNOWN_UNIFORMS = [0.310001878118356, 0.5511258046421058]


def test_independent_of_batch_and_order():
    laws = torch.rand(5, 3, 300, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4])
    random = stream(5).of("draft")
    some = RandomStream.keyed(11, order, torch.full_like(order, 3)).of("draft")
    counters = torch.arange(3)
    for draw in ("draw_iid", "draw_without_replacement"):
        whole, part = getattr(random, draw)(laws, 4, counters), getattr(some, draw)(laws[order], 4, counters)
        assert torch.equal(whole[order], part)
    assert torch.equal(random.choose(laws, counters)[order], some.choose(laws[order], counters))
    assert torch.equal(random.select(order).keys, some.keys)
    halves = torch.full((5, 3), 0.5)
    assert torch.equal(
        random.accepts(halves, halves + 0.5, counters)[order],
        some.accepts(halves[order], halves[order] + 0.5, counters),
    )


def test_fresh_by_seed_sequence_position_purpose_and_counter():
    counter = torch.zeros(1, 64, dtype=torch.int64) + torch.arange(64)
    streams = [
        RandomStream.keyed(seed, torch.tensor([sequence]), torch.tensor([position])).of(purpose)
        for seed in (0, 1, -1, 2**63)
        for sequence in (0, 1, 2**40)
        for position in (0, 1, 500)
        for purpose in ("draft", "accept", "residual")
    ]
    numbers = torch.cat([random.uniforms(counter, 3).flatten() for random in streams])
    assert len(numbers.unique()) == len(numbers)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("kind", ["uniforms", "exponentials"])
def test_neighbouring_lanes_counters_and_rows_are_independent(kind):
    numbers = getattr(stream(20), kind)(torch.arange(50).expand(20, 50), 400).double()
    law = "uniform" if kind == "uniforms" else "expon"
    assert stats.kstest(numbers.flatten().numpy(), law).pvalue > ALPHA
    for shifted in (numbers.roll(1, 0), numbers.roll(1, 1), numbers.roll(1, 2)):
        correlation = torch.corrcoef(torch.stack([numbers.flatten(), shifted.flatten()]))[0, 1]
        assert abs(float(correlation)) * numbers.numel() ** 0.5 < 5


class Fixed(RandomStream):
    """Its uniform numbers run over an even grid of [0, 1), one per row, starting with 0."""

    def uniforms(self, counter, num_lanes):
        grid = torch.arange(len(self.keys), dtype=torch.float64) / len(self.keys)
        return grid.reshape(-1, *[1] * counter.dim()).expand(*counter.shape, num_lanes)


def test_acceptance_is_strict():
    """On a grid of 16 numbers exactly 16 * ratio of them accept; a test that is not strict takes one more."""
    grid = Fixed(torch.zeros(16, dtype=torch.int64))
    for sixteenths in range(17):
        accepted = grid.accepts(torch.full((16,), sixteenths / 16), torch.ones(16), 0)
        assert accepted.sum() == sixteenths
    assert not grid.accepts(torch.zeros(16), torch.zeros(16), 0).any()


class NotStrict(Fixed):
    def accepts(self, numerator, denominator, counter):
        return self.uniforms(torch.zeros(len(self.keys), dtype=torch.int64), 1).squeeze(-1) * denominator <= numerator


def test_the_grid_sees_a_test_that_is_not_strict():
    assert NotStrict(torch.zeros(16, dtype=torch.int64)).accepts(torch.zeros(16), torch.ones(16), 0).sum() == 1


def test_choice_is_exact_on_a_grid_and_never_takes_weight_zero():
    grid = Fixed(torch.zeros(20, dtype=torch.int64))
    weights = torch.tensor([0, 5, 0, 0, 10, 5, 0]).float()
    assert torch.bincount(grid.choose(weights.expand(20, 7), 0), minlength=7).tolist() == weights.int().tolist()
    wide = torch.zeros(20, 1000)
    wide[:, [255, 256, 511, 900]] = 5.0
    assert torch.bincount(grid.choose(wide, 0), minlength=1000)[[255, 256, 511, 900]].tolist() == [5, 5, 5, 5]


def test_choose_and_iid_follow_the_law():
    law = torch.tensor([0.5, 0.1, 0.0, 0.25, 0.05, 0.1])
    laws, counters = law.expand(100, 100, 6), torch.arange(100)
    assert fits(stream(100).choose(laws, counters), law)
    tokens = stream(100).draw_iid(laws, 3, counters)
    assert fits(tokens, law)
    pairs = tokens[..., 0] * 6 + tokens[..., 1]
    assert fits(pairs, torch.outer(law, law).flatten())


def test_race_draws_in_the_order_of_draws_without_replacement():
    law = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.1])
    tokens = stream(200).draw_without_replacement(law.expand(200, 200, 5), 3, torch.arange(200))
    assert fits(tokens[..., 0], law)
    second = torch.outer(law, law) / (1 - law)[:, None]
    third = second[:, :, None] * law / (1 - law[:, None] - law).clamp(min=1e-9)[:, :, None]
    distinct = torch.ones(5, 5).fill_diagonal_(0)
    third = third * distinct[:, :, None] * distinct[:, None] * distinct
    assert fits(tokens[..., 0] * 25 + tokens[..., 1] * 5 + tokens[..., 2], third.flatten().clamp(min=0))


def test_unlikely_tokens_keep_their_share():
    """Half of the mass lies on a million tokens of 5e-7: a race or a running sum in too few bits loses it."""
    law = torch.cat([torch.tensor([0.5]), torch.full((2**20,), 0.5 / 2**20)])
    random = stream(1)
    iid = random.draw_iid(law[None, None], 4000, 0)
    race = torch.cat([random.draw_without_replacement(law[None, None], 1, c) for c in range(100)])
    for tokens in (iid, race):
        tail = int((tokens > 0).sum())
        assert stats.binomtest(tail, tokens.numel(), 0.5).pvalue > ALPHA
    assert stats.kstest((iid[iid > 0].double() / 2**20).numpy(), "uniform").pvalue > ALPHA


def test_small_supports():
    law = torch.tensor([[[0.0, 0.7, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    tokens = stream(1).draw_without_replacement(law, 6, torch.arange(2))[0]
    assert sorted(tokens[0].tolist()) == [NO_TOKEN] * 4 + [1, 2]
    assert tokens[0, 2:].tolist() == [NO_TOKEN] * 4
    assert tokens[1].tolist() == [NO_TOKEN] * 6
    assert stream(1).draw_iid(law, 3, torch.arange(2))[0, 1].tolist() == [NO_TOKEN] * 3
    assert stream(1).choose(law, torch.arange(2))[0, 1] == 0
    assert sorted(stream(1).draw_without_replacement(torch.ones(1, 1, 5), 5, 0)[0, 0].tolist()) == list(range(5))
