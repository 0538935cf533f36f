"""Bugs that a careful reader could overlook, planted one by one: the enumeration has to see each of them.

Where verification work has published how wrong a bug is on the toy law, the total variation is compared as well.
"""

from fractions import Fraction

import pytest
import torch

import backend.matching
import backend.rejection
from backend.acceptance import check_compatible, create_rule
from backend.errors import Incompatible
from backend.sampling import Sampler
from backend.tree import Proposal

from . import laws
from .builders import Sampled
from .laws import law_of, total_variation, uses_fresh_noise
from .models import random_law
from .mutants import (
    CapsAfterDraw,
    Claims,
    DraftNoiseForResidual,
    DropsDuplicates,
    DropsUnlikely,
    PricesByExpectation,
    PrunesByPath,
    Resorted,
    ReusesAcceptNoise,
    Reversed,
    StaleNoise,
    TopKWithLaws,
    TopPlusOneDrawn,
)
from .test_lossless import TOY_DRAFT, TOY_TARGET

IID, WITHOUT = Proposal.IID, Proposal.WITHOUT_REPLACEMENT


def error_of(make, rule, target, draft_law, **options):
    """How far the law of the emitted tokens is from the target's."""
    return total_variation(law_of(make, create_rule(rule), target, draft_law, **options), target)


def toy_error(make, rule, **options):
    return float(error_of(make, rule, lambda _: TOY_TARGET, lambda _: TOY_DRAFT, steps=1, **options))


def largest_error(make, rule, seeds=range(4), kind="dense", vocabulary=3):
    """Over a few pairs of models; stops at the first that shows the bug."""
    for seed in seeds:
        error = error_of(
            make, rule, random_law(seed, vocabulary, kind), random_law(seed + 90, vocabulary, kind), steps=1
        )
        if error:
            return error
    return Fraction(0)


TOY_BUGS = {
    "top-k with a q-ratio": (lambda d: TopKWithLaws(d, (3,)), "recursive_rejection", 0.400),
    "top-k, q over the k": (lambda d: TopKWithLaws(d, (3,), renormalised=True), "recursive_rejection", 0.386),
    "siblings re-sorted": (lambda d: Resorted(d, (3,), WITHOUT), "recursive_rejection", 0.312),
    "siblings reversed": (lambda d: Reversed(d, (3,), WITHOUT), "recursive_rejection", 0.251),
    "unlikely draws dropped": (lambda d: DropsUnlikely(d, (3,), WITHOUT), "recursive_rejection", 0.077),
    "q not updated": (lambda d: Claims(d, (3,), WITHOUT, IID), "multi_step", 0.0079),
    "duplicates dropped": (lambda d: DropsDuplicates(d, (3,), IID), "multi_step", 0.0026),
}


@pytest.mark.parametrize("bug", TOY_BUGS)
def test_bugs_of_known_size(bug):
    make, rule, expected = TOY_BUGS[bug]
    assert toy_error(make, rule) == pytest.approx(expected, rel=0.05, abs=6e-4 if expected > 0.05 else 6e-5)


FORBIDDEN = {
    "top-k": lambda d: TopKWithLaws(d, (2, 1), WITHOUT),
    "top-k as i.i.d.": lambda d: TopKWithLaws(d, (2, 1), IID),
    "i.i.d. as without replacement": lambda d: Claims(d, (2, 1), IID, WITHOUT),
    "without replacement as i.i.d.": lambda d: Claims(d, (2, 1), WITHOUT, IID),
    "top tokens and one drawn": lambda d: TopPlusOneDrawn(d, (2, 1), WITHOUT),
    "pruned by path, i.i.d.": lambda d: PrunesByPath(d, (2, 2), IID),
    "pruned by path": lambda d: PrunesByPath(d, (2, 2), WITHOUT),
    "re-sorted": lambda d: Resorted(d, (2, 1), WITHOUT),
    "reversed": lambda d: Reversed(d, (2, 1), WITHOUT),
    "duplicates dropped": lambda d: DropsDuplicates(d, (2, 1), IID),
    "capped by value after the draw": lambda d: CapsAfterDraw(d, 2, 2),
}


@pytest.mark.parametrize("rule", ["walk", "traversal"])
@pytest.mark.parametrize("bug", FORBIDDEN)
def test_a_forbidden_pair_is_biased(bug, rule):
    draws_iid = bug in (
        "top-k as i.i.d.",
        "without replacement as i.i.d.",
        "pruned by path, i.i.d.",
        "duplicates dropped",
    )
    walk = "multi_step" if draws_iid else "recursive_rejection"
    assert largest_error(FORBIDDEN[bug], walk if rule == "walk" else rule) > 0


@pytest.mark.parametrize("bug", ["top tokens and one drawn", "pruned by path", "capped by value after the draw"])
def test_target_sampling_does_not_mind(bug):
    """The target's own draws did not shape these trees, so this rule is right where all others are biased."""
    target, draft_law = random_law(0, 3, "sparse"), random_law(90, 3, "dense")
    assert error_of(FORBIDDEN[bug], "target_sampling", target, draft_law, steps=1) == 0


def test_a_priority_that_rises_along_a_path_is_biased():
    assert largest_error(lambda drafter: PricesByExpectation(drafter, 2, 2), "recursive_rejection") > 0


@pytest.mark.parametrize("rule", ["multi_step", "recursive_rejection", "traversal"])
def test_deterministic_drafts_are_refused(rule):
    with pytest.raises(Incompatible, match="deterministic"):
        check_compatible(rule, Proposal.DETERMINISTIC)


def test_noise_kept_over_steps_is_biased_jointly_only():
    def make(drafter):
        return StaleNoise(drafter, (1,), WITHOUT)

    constant = (lambda _: TOY_TARGET), (lambda _: TOY_DRAFT)
    rule = create_rule("recursive_rejection")
    assert not uses_fresh_noise(make, rule, *constant)
    assert total_variation(law_of(make, rule, *constant, steps=2, joint=True), constant[0]) > Fraction(1, 10)
    assert error_of(make, "recursive_rejection", *constant, steps=1) == 0


def test_accept_noise_reused_for_the_residual(monkeypatch):
    monkeypatch.setattr(laws, "EnumeratingStream", ReusesAcceptNoise)
    make, rule, target = (lambda d: Sampled(d, (1,), WITHOUT)), create_rule("recursive_rejection"), lambda _: TOY_TARGET
    emissions = laws.emissions_of(make, rule, target, lambda _: TOY_DRAFT, 1)
    first = {}
    for emitted, chance in emissions.items():
        if len(emitted) == 1:  # rejected at the root; what follows an accepted token reuses noise as well
            first[emitted[0]] = chance
    accepted = [min(p, q) for p, q in zip(TOY_TARGET, TOY_DRAFT, strict=True)]
    error = sum(abs(accepted[t] + first.get(t, 0) - TOY_TARGET[t]) for t in range(5)) / 2
    assert float(error) == pytest.approx(0.140, abs=6e-4)


def test_draft_noise_reused_for_the_residual(monkeypatch):
    def make(drafter):
        return Sampled(drafter, (1,), IID)

    monkeypatch.setattr(laws, "EnumeratingStream", DraftNoiseForResidual)
    law = law_of(make, create_rule("multi_step"), lambda _: TOY_TARGET, lambda _: TOY_DRAFT, 1, joint=True)
    assert total_variation(law, lambda _: TOY_TARGET) > 0


def kept(proposal, law, tokens):
    return law, torch.ones_like(tokens[:, 0], dtype=torch.bool)


def struck_only(proposal, law, tokens):
    law = law.scatter(1, tokens, 0.0)
    return law, law.sum(1) > 0


@pytest.mark.parametrize("bug", [kept, struck_only])
@pytest.mark.parametrize("rule", ["recursive_rejection", "traversal"])
def test_draft_law_not_updated(monkeypatch, bug, rule):
    monkeypatch.setattr(backend.rejection, "_law_without", bug)
    assert toy_error(lambda d: Sampled(d, (3,), WITHOUT), rule) > 0


@pytest.mark.parametrize("rule", ["recursive_rejection", "traversal"])
def test_residual_forgotten(monkeypatch, rule):
    monkeypatch.setattr(backend.rejection, "_residual", lambda p, q: (p.clone(), p.sum(1, keepdim=True)))
    assert toy_error(lambda d: Sampled(d, (2,), WITHOUT), rule) > 0


def test_residual_without_clamping_or_normalising(monkeypatch):
    monkeypatch.setattr(
        backend.rejection, "_residual", lambda p, q: ((p - q).clamp(min=0), (p - q).clamp(min=0).sum(1, keepdim=True))
    )
    assert toy_error(lambda d: Sampled(d, (2,), WITHOUT), "recursive_rejection") > 0


def test_the_better_of_two_copies_of_a_token(monkeypatch):
    """Independent picks at duplicates: the deepest path looks at what was drawn below both copies."""
    monkeypatch.setattr(backend.matching, "_first_of_token", lambda draft: torch.ones_like(draft.exists))
    assert largest_error(lambda d: Sampled(d, (2, 1), IID), "target_sampling") > 0


def test_laws_at_another_temperature():
    class Sharper(Sampled):
        def draft(self, tree, laws):
            return super().draft(tree, Sampler(0.5).probs(laws.log()))

    assert toy_error(lambda d: Sharper(d, (2,), WITHOUT), "recursive_rejection") > 0
