"""Drafts drawn from a law cut by top-k or top-p: the target's law, tail included, comes out all the same."""

import pytest

from backend.acceptance import create_rule
from tests.exact.test_registry import error_of, proposal_of, rules_for, tiny
from tests.parts import CASES

DRAWN = [(name, variant) for name, variant in CASES if variant.get("children") in ("iid", "without_replacement")]


@pytest.mark.lossless
@pytest.mark.parametrize("option", ["draft_top_k", pytest.param("draft_top_p", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "variant"), DRAWN)
def test_drafts_from_a_truncated_law_keep_the_target_law(name, variant, option):
    options = tiny(name, variant) | {option: {"draft_top_k": 2, "draft_top_p": 0.75}[option]}
    for rule in rules_for(proposal_of(name, options)):
        assert error_of(name, options, create_rule(rule), "dense", seed=3, steps=1) == 0
