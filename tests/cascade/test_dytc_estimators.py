"""What the DyTC router learns and from what: acceptance per configuration, seconds per forward."""

import numpy as np
import pytest

from algorithms.dytc import Budget
from algorithms.dytc_estimators import Acceptance, AcceptanceEstimator, Latency
from algorithms.dytc_state import Action, Latencies, RowState, checked_priors


def test_moving_average_as_printed():
    estimator = AcceptanceEstimator("ema", "first", 0.5, decay=0.7, window=2)
    for first, expected in ((True, 0.65), (True, 0.755), (False, 0.7 * 0.755 + 0.3 * 0.5)):
        estimator.learn([first, False])
        assert estimator.now.first == pytest.approx(expected)
        assert estimator.now.later == estimator.now.first
    estimator.rest(0.5)
    assert estimator.now.first == pytest.approx(0.6785), "it was used in this step"
    estimator.rest(0.5)
    assert estimator.now.first == pytest.approx(0.58925)


def test_beta_posterior_with_later_tokens_apart():
    estimator = AcceptanceEstimator("beta", "all", 0.5, decay=0.9, window=100)
    estimator.learn([True, True, True, False])
    assert estimator.now.first == pytest.approx(6 / 11)
    assert estimator.now.later == pytest.approx(7 / 13)
    for _ in range(400):
        estimator.learn([False])
    assert estimator.now.first < 0.03
    estimator.rest(0.1)
    estimator.rest(0.1)
    assert 0.04 < estimator.now.first < 0.1


def state(*names: str, **shares: str) -> RowState:
    return RowState(
        {name: AcceptanceEstimator("ema", "all", 0.5, 0.0, 1) for name in names},
        {name: name for name in names} | shares,
    )


def test_only_tokens_whose_ancestors_were_accepted_are_learnt_from():
    row = state("int8", "lookup", vc="int8")
    row.actions = [Action("lookup", 0, [1, 2, 3]), Action("vc", 2, [4]), Action("int8", 3, [5, 6])]
    row.learn([0, 1, 2], idle_drift=0.0)
    assert row.acceptance("lookup") == Acceptance(0.9999, 1e-4), "1 and 2 accepted, 3 refused"
    assert row.acceptance("vc").first == row.acceptance("int8").first == 1e-4, "4 refused; leaf 3 was never reached"
    before = row.acceptance("lookup")
    row.learn([], idle_drift=0.0)
    assert row.acceptance("lookup") == before, "a finished row says nothing"


def test_a_draft_that_goes_on_with_its_own_chain_has_the_estimate_of_later_tokens():
    row = state("int8", "lookup", vc="int8")
    row.authors = {1: "lookup", 2: "int8"}
    row.actions = [Action("lookup", 0, [1]), Action("lookup", 1, [3]), Action("vc", 2, [4])]
    row.learn([0, 1, 2, 4], idle_drift=0.0)
    assert row.acceptance("lookup") == Acceptance(0.9999, 1e-4), "1 accepted; 3 was refused behind a token of its own"
    assert row.acceptance("lookup", leaf=1) == Acceptance(1e-4, 1e-4)
    assert row.acceptance("lookup", leaf=2) == row.acceptance("lookup"), "int8 was there before"
    assert row.acceptance("vc", leaf=2) == Acceptance(0.9999, 0.9999), "a cascade goes on with its top's chain"
    assert row.acceptance("vc").first == 0.5


def test_what_further_nodes_take_at_all_is_not_spread_over_them():
    """One row takes 40 ms, several take 50 ms and 0.5 ms each: a line through both would say 1 ms per node and more."""
    latencies = Latencies(checked_priors({"default": [0.5, 0.4]}, ["a", "b"]), "stepped", node_cost=0.03)
    for step in range(80):
        latencies.begin(1, 100)
        nodes = (1, 4, 8, 12)[step % 4]
        latencies.verified(nodes, 0.040 if nodes == 1 else 0.050 + 0.0005 * nodes)
    latencies.begin(1, 100)
    costs = latencies.costs
    assert costs.verify == pytest.approx(0.040, rel=0.03)
    assert costs.per_node == pytest.approx(0.0005, abs=0.0003)
    assert costs.further == pytest.approx(0.010, abs=0.002)
    budget = Budget(costs.verify, entry=costs.further)
    budget.add(0.5, costs.per_node)
    budget.add(0.25, costs.per_node)
    assert budget.seconds == pytest.approx(costs.verify + costs.further + 2 * costs.per_node), "it is paid once"


def test_latency_learns_a_line_and_survives_an_outlier():
    model, random = Latency(0.5, 0.05, learn=True), np.random.default_rng(0)
    assert model.seconds(1, 3, 0, scale=2.0) == pytest.approx(1.2), "the prior, in seconds"
    for _ in range(200):
        tokens, context = int(random.integers(1, 9)), int(random.integers(100, 900))
        model.add(1, tokens, context, 0.020 + 0.003 * tokens + 1e-5 * context, scale=0.04)
    assert model.seconds(1, 5, 500, scale=0.04) == pytest.approx(0.040, rel=0.02)
    model.add(1, 5, 500, 10.0, scale=0.04)
    assert model.seconds(1, 5, 500, scale=0.04) < 0.06
    fixed = Latency(0.5, 0.05, learn=False)
    fixed.add(1, 5, 500, 10.0, scale=0.04)
    assert fixed.seconds(1, 1, 0, scale=1.0) == pytest.approx(0.5)


def test_costs_scale_with_what_verification_takes():
    latencies = Latencies(checked_priors({"default": [0.5, 0.4]}, ["a", "b"]), "learned", node_cost=0.1)
    for _ in range(30):
        latencies.begin(1, 100)
        latencies.verified(11, 0.08)
    latencies.begin(1, 100)
    costs = latencies.costs
    assert costs.verify + costs.further + 10 * costs.per_node == pytest.approx(0.08, rel=0.05)
    assert latencies.curve("a", False, 2) == pytest.approx([0.016, 0.032], rel=0.05)
    latencies.drafted("a", False, 2, 0.5)
    latencies.begin(1, 100)
    assert latencies.curve("a", False, 2)[1] > 0.03 > 0.02 > latencies.curve("a", True, 1)[0]
