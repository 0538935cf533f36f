"""Every registered algorithm, with every valid acceptance rule, has exactly the target's law."""

import random
from collections import defaultdict
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import TreeAlgorithm
from algorithms.dyspec import DySpec
from algorithms.eagle2 import Eagle2
from algorithms.fixed_tree import FixedTree
from algorithms.growth import Growth, Offspring
from algorithms.registry import ALGORITHMS, create, needs_drafter
from backend.acceptance import RULES, AcceptanceRule, check_compatible, create_rule
from backend.arrays import on_host
from backend.errors import Incompatible
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Draft, Proposal, TokenTree
from tests.exact.branching import Replay, enumerate_runs
from tests.exact.laws import law_of, step, total_variation, uses_fresh_noise, verify
from tests.exact.models import Law, LawDrafter, Model, random_law
from tests.parts import CASES, TINY_COSTS, costs, options_of

TINY: dict[str, dict[str, Any]] = {  # trees small enough for every outcome to be visited; draft temperatures stay exact
    "chain": {"depth": 2, "draft_temperature": 0.5},
    "fixed_tree": {"widths": [2, 1], "draft_temperature": 1.0},
    "eagle2": {"depth": 1, "top_k": 2, "total_tokens": 5},
    "dyspec": {"budget": 3, "draft_temperature": 0.5},
} | TINY_COSTS
MODELS = {  # kinds of target and draft, vocabulary
    "dense": ("dense", "dense", 3),
    "sparse": ("sparse", "sparse", 3),
    "one-hot": ("one-hot", "one-hot", 4),
    "sparse draft": ("dense", "sparse", 3),
    "one-hot draft": ("sparse", "one-hot", 4),
    "one-hot target": ("one-hot", "dense", 3),
}
SLOW = {"dense", "one-hot target"}  # the other mixes keep dense laws on either side in the fast set
TWO_STEPS = {"sparse", "one-hot", "one-hot draft"}


def tiny(name: str, variant: dict[str, Any]) -> dict[str, Any]:
    """Options that keep the tree within a handful of nodes, whatever the algorithm calls them."""
    options = options_of(name, variant)
    for option, value in options.items():
        if isinstance(value, int) and not isinstance(value, bool):
            options[option] = min(value, 2)
        elif isinstance(value, list):
            options[option] = [min(width, 2) if isinstance(width, int) else width for width in value[:2]]
        elif option == "draft_temperature":
            options[option] = 1.0
    return options | TINY.get(name, {}) | variant


def make(name: str, options: dict[str, Any], drafter: LawDrafter) -> TreeAlgorithm:
    return create(name, drafter if needs_drafter(name) else None, options, costs())


def proposal_of(name: str, options: dict[str, Any]) -> Proposal:
    return make(name, options, LawDrafter(random_law(0, 3, "dense"))).proposal


def rules_for(proposal: Proposal) -> list[str]:
    """The lossless rules above temperature 0 that the table allows."""
    rules = [RULES[name](name=name) for name in RULES]
    return [rule.name for rule in rules if rule.lossless and not rule.greedy_only and proposal in rule.proposals]


def error_of(name: str, options: dict[str, Any], rule: AcceptanceRule, models: str, seed: int, steps: int) -> Fraction:
    target_kind, draft_kind, vocabulary = MODELS[models]
    target, draft = random_law(seed, vocabulary, target_kind), random_law(seed + 70, vocabulary, draft_kind)
    learns = ALGORITHMS.find(name).observe is not TreeAlgorithm.observe
    law = law_of(lambda drafter: make(name, options, drafter), rule, target, draft, steps, joint=learns and steps > 1)
    assert sum(law.values()) == 1
    return total_variation(law, target)


TRIPLES = [
    (name, variant, rule) for name, variant in CASES for rule in rules_for(proposal_of(name, tiny(name, variant)))
]
IDS = ["-".join([name, *map(str, variant.values()), rule]) for name, variant, rule in TRIPLES]


@pytest.mark.lossless
@pytest.mark.parametrize("models", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in MODELS])
@pytest.mark.parametrize(("name", "variant", "rule"), TRIPLES, ids=IDS)
def test_every_valid_triple_has_the_target_law(name, variant, rule, models):
    steps = 2 if models in TWO_STEPS else 1
    assert error_of(name, tiny(name, variant), create_rule(rule), models, seed=3, steps=steps) == 0


@pytest.mark.lossless
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_steps_never_share_noise(name, variant):
    options, law = tiny(name, variant), random_law(3, 3, "dense")
    rule = create_rule(rules_for(proposal_of(name, options))[-1])
    assert uses_fresh_noise(lambda drafter: make(name, options, drafter), rule, law, random_law(73, 3, "dense"), 3)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_other_rule_is_refused_or_called_lossy(name, variant):
    options, law = tiny(name, variant), random_law(3, 3, "dense")
    proposal, drafter = proposal_of(name, options), LawDrafter(law)
    draft = step(make(name, options, drafter), drafter, [()], [Replay()])
    refused = [rule for rule in RULES if RULES[rule](name=rule).lossless and rule not in rules_for(proposal)]
    assert "greedy" in refused
    for rule in refused:
        with pytest.raises(Incompatible):
            check_compatible(rule, proposal, 1.0)
        with pytest.raises(Incompatible):
            verify(create_rule(rule), draft, Model(law), [()], [Replay()])
    assert all("lossy" in rule for rule in {*RULES} - {*refused, *rules_for(proposal)})


def generic_law(seed: int, vocabulary: int, zeros: int = 0) -> Law:
    """Without ties between slots, which one of the builds compares in floating point."""

    @cache
    def law(context: tuple[int, ...]) -> list[Fraction]:
        source = random.Random(f"{seed} {context}")
        weights = [source.randint(1, 1000) for _ in range(vocabulary)]
        for token in source.sample(range(vocabulary), zeros):
            weights[token] = 0
        return [Fraction(weight, sum(weights)) for weight in weights]

    return law


def shape_of(draft: Draft, row: int) -> tuple[Any, ...]:
    """The verified tree as nested (token, children), children in draw order."""
    tokens, parents = draft.tree.tokens[row].tolist(), draft.tree.parents[row].tolist()
    nodes = [node for node in draft.nodes[row].tolist() if node != NO_NODE]

    def below(parent: int) -> tuple[Any, ...]:
        return tuple((tokens[node], below(node)) for node in nodes if node and parents[node] == parent)

    return below(0)


def law_over_trees(law: Law, **options: Any) -> dict[tuple[Any, ...], Fraction]:
    drafter = LawDrafter(law)

    def grow(cases: list[int], replays: list[Replay]) -> list[tuple[Any, ...]]:
        algorithm = create("dyspec", drafter, tiny("dyspec", options) | {"draft_temperature": 1.0} | options)
        draft = step(algorithm, drafter, [()] * len(cases), replays)
        return [shape_of(draft, row) for row in range(len(cases))]

    trees: dict[tuple[Any, ...], Fraction] = defaultdict(Fraction)
    for _, tree, replay in enumerate_runs(grow, 1):
        trees[tree] += replay.probability
    return trees


DRAFT_LAWS = {
    "dense": generic_law(1, 3),
    "other": generic_law(2, 3),
    "sparse": generic_law(3, 4, zeros=2),
    "binary": generic_law(4, 2),
    "one-hot": random_law(5, 4, "one-hot"),
}


@pytest.mark.lossless
@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("law", DRAFT_LAWS)
def test_layerwise_trees_have_the_law_of_algorithm_1(law, budget):
    layerwise, printed = (
        law_over_trees(DRAFT_LAWS[law], budget=budget, children="without_replacement", build=build)
        for build in ("layerwise", "algorithm1")
    )
    assert layerwise == printed
    assert sum(layerwise.values()) == 1
    assert law == "one-hot" or len(layerwise) > 1


@pytest.mark.parametrize("budget", [1, 3, 7, 16])
@pytest.mark.parametrize("law", DRAFT_LAWS)
def test_likeliest_trees_are_equal(law, budget):
    one, other = (
        law_over_trees(DRAFT_LAWS[law], budget=budget, children="top_k", build=build)
        for build in ("layerwise", "algorithm1")
    )
    assert one == other
    assert len(one) == 1


# --- the enumeration sees planted bugs -------------------------------------------------------------------------------

SWOR = Proposal.WITHOUT_REPLACEMENT


class ClaimsItsTopKWasDrawn(Eagle2):
    proposal = SWOR

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        draft = super().grow(tree, random)
        laws = Sampler(1.0).probs(self.drafter.expand(draft.tree, draft.nodes))
        return draft._replace(proposal=self.proposal, laws=laws)


def worth_of_the_token(growth: Growth, offspring: Offspring, first: Any, floor: Any) -> Any:
    return first[:, :, None] * np.exp(on_host(offspring.log_probs))


def resorted(growth: Growth, nodes: torch.Tensor, width: int) -> Offspring:
    tokens, log_probs = _propose(growth, nodes, width)
    order = log_probs.argsort(dim=2, descending=True, stable=True)
    return Offspring(tokens.gather(2, order), log_probs.gather(2, order))


_propose = Growth.propose
MUTANTS = {
    "top-k said to be drawn": (ClaimsItsTopKWasDrawn, {"depth": 1, "top_k": 2, "total_tokens": 4}, {}),
    "best by value after the draw": (
        DySpec,
        tiny("dyspec", {"children": "without_replacement", "build": "layerwise"}) | {"budget": 2},
        {"algorithms.dyspec.slot_values": worth_of_the_token},
    ),
    "siblings re-sorted": (
        FixedTree,
        options_of("fixed_tree", {"widths": [2, 1], "children": "without_replacement"}),
        {"algorithms.growth.Growth.propose": resorted},
    ),
    "one noise for all nodes": (
        FixedTree,
        options_of("fixed_tree", {"widths": [2, 2], "children": "iid"}),
        {"algorithms.growth.Growth._ranks": lambda growth, nodes: torch.zeros_like(nodes)},
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutated_algorithms_are_caught(mutant, monkeypatch):
    algorithm, options, patches = MUTANTS[mutant]
    monkeypatch.setitem(ALGORITHMS._parts, "mutant", algorithm)
    for name, patch in patches.items():
        monkeypatch.setattr(name, patch)
    for rule in rules_for(proposal_of("mutant", options)):
        if rule != "target_sampling":
            errors = (error_of("mutant", options, create_rule(rule), "dense", seed, steps=1) for seed in range(4))
            assert any(errors)
