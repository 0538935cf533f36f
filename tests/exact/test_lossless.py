"""Every valid pair of a proposal kind and an acceptance rule has exactly the target's law."""

from fractions import Fraction

import pytest

from backend.acceptance import create_rule
from backend.tree import Proposal

from .builders import Heap, Layerwise, Sampled, TopK
from .laws import (
    completed,
    emissions_of,
    joint_emissions_of,
    law_of,
    mean_tokens,
    total_variation,
    uses_fresh_noise,
)
from .models import random_law

IID, WITHOUT = Proposal.IID, Proposal.WITHOUT_REPLACEMENT

BUILDERS = {
    "chain": lambda drafter: Sampled(drafter, (1, 1, 1), IID),
    "top_k": lambda drafter: TopK(drafter, (2, 1)),
    "iid": lambda drafter: Sampled(drafter, (2, 1), IID),
    "iid_wide": lambda drafter: Sampled(drafter, (3,), IID),
    "without": lambda drafter: Sampled(drafter, (2, 1), WITHOUT),
    "without_wide": lambda drafter: Sampled(drafter, (4,), WITHOUT),
    "without_deep": lambda drafter: Sampled(drafter, (1, 2, 1), WITHOUT),
    "heap": lambda drafter: Heap(drafter, 3),
    "layerwise": lambda drafter: Layerwise(drafter, 3, 2),
}
PAIRS = [
    ("top_k", "target_sampling"),
    ("iid_wide", "target_sampling"),
    ("heap", "target_sampling"),
    *[(builder, rule) for builder in ("chain", "iid", "iid_wide") for rule in ("multi_step", "traversal")],
    *[
        (builder, rule)
        for builder in ("without", "without_wide", "without_deep", "heap", "layerwise")
        for rule in ("recursive_rejection", "traversal")
    ],
]
ONE_STEP = {"chain", "layerwise", "without_deep", "without_wide", ("iid", "traversal")}
ONE_STEP |= {(builder, "target_sampling") for builder in ("heap", "iid_wide")}  # too many outcomes for two steps


@pytest.mark.lossless
@pytest.mark.parametrize("kind", [pytest.param("dense", marks=pytest.mark.slow), "sparse", "one-hot"])
@pytest.mark.parametrize(("builder", "rule"), PAIRS)
def test_two_steps_have_the_target_law(builder, rule, kind):
    steps = 1 if kind == "dense" and (builder in ONE_STEP or (builder, rule) in ONE_STEP) else 2
    seed = {"dense": 1, "sparse": 5, "one-hot": 10}[kind]  # pairs that agree often enough to accept tokens
    target, draft_law = random_law(seed, 3, kind), random_law(seed + 20, 3, kind)
    law = law_of(BUILDERS[builder], create_rule(rule), target, draft_law, steps)
    assert sum(law.values()) == 1
    assert total_variation(law, target) == 0


@pytest.mark.lossless
@pytest.mark.slow
@pytest.mark.parametrize(("builder", "rule"), [*PAIRS, ("iid", "target_sampling"), ("without", "target_sampling")])
def test_four_tokens_with_other_supports(builder, rule):
    """A sparse draft of a dense target and the reverse: dead ends, exhausted supports, disjoint supports."""
    for kinds in (("dense", "sparse"), ("sparse", "dense"), ("sparse", "one-hot")):
        vocabulary = 4 if "wide" in builder else 3
        target, draft_law = random_law(5, vocabulary, kinds[0]), random_law(6, vocabulary, kinds[1])
        assert total_variation(law_of(BUILDERS[builder], create_rule(rule), target, draft_law, steps=1), target) == 0


@pytest.mark.lossless
@pytest.mark.parametrize(("proposal", "rule"), [(IID, "multi_step"), (WITHOUT, "traversal")])
def test_whole_runs_agree_with_steps_taken_apart(proposal, rule):
    target, draft_law = random_law(3, 2, "dense"), random_law(4, 2, "dense")

    def make(drafter):
        return Sampled(drafter, (2,), proposal)

    arguments = make, create_rule(rule), target, draft_law
    assert joint_emissions_of(*arguments) == emissions_of(*arguments)
    assert uses_fresh_noise(*arguments)


def test_layerwise_growth_has_the_law_of_the_heap():
    target, draft_law = random_law(1, 3, "dense"), random_law(2, 3, "dense")
    rule = create_rule("recursive_rejection")
    heap, layers = (emissions_of(BUILDERS[name], rule, target, draft_law, 1) for name in ("heap", "layerwise"))
    assert heap == layers


@pytest.mark.parametrize(("builder", "rule"), [pair for pair in PAIRS if pair[1] != "target_sampling"])
def test_a_draft_equal_to_the_target_is_accepted_down_to_a_leaf(builder, rule):
    target = random_law(1, 3, "dense")
    emissions = emissions_of(BUILDERS[builder], create_rule(rule), target, target, 1)
    shortest = {"chain": 4, "iid_wide": 2, "without_wide": 2, "without_deep": 4, "heap": 2, "layerwise": 2}
    assert min(len(emitted) for emitted in emissions) == shortest.get(builder, 3)


def test_traversal_never_accepts_less():
    for seed in range(2):
        target, draft_law = random_law(seed, 3, "dense"), random_law(seed + 50, 3, "dense")
        recursive, traversal = (
            mean_tokens(emissions_of(BUILDERS["without"], create_rule(rule), target, draft_law, 1))
            for rule in ("recursive_rejection", "traversal")
        )
        assert recursive <= traversal


TOY_TARGET = [Fraction(mass, 100) for mass in (35, 25, 20, 15, 5)]
TOY_DRAFT = [Fraction(mass, 100) for mass in (50, 10, 25, 5, 10)]


@pytest.mark.parametrize(
    ("k", "recursive", "multi", "naive"),
    [(1, 0.750, 0.750, 0.350), (2, 0.813, 0.788, 0.550), (3, 0.905, 0.819, 0.800)],
)
def test_acceptance_on_the_toy_law(k, recursive, multi, naive):
    makers = {
        "recursive_rejection": lambda drafter: Sampled(drafter, (k,), WITHOUT),
        "multi_step": lambda drafter: Sampled(drafter, (k,), IID),
        "target_sampling": lambda drafter: TopK(drafter, (k,)),
    }
    for (rule, make), expected in zip(makers.items(), (recursive, multi, naive), strict=True):
        emissions = emissions_of(make, create_rule(rule), lambda _: TOY_TARGET, lambda _: TOY_DRAFT, 1)
        assert float(mean_tokens(emissions)) - 1 == pytest.approx(expected, abs=6e-4)
        assert total_variation(completed(emissions, lambda _: TOY_TARGET), lambda _: TOY_TARGET) == 0
