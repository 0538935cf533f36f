"""The DyTC router: the objectives' values, its stop rules, what it learns and from what, what it traces."""

from typing import Any

import pytest
import torch

from algorithms.dytc import Budget, Configuration, Costs, Policy, choose
from algorithms.dytc_estimators import Acceptance
from backend.errors import TreebenchError
from runners.decoding import Generation, Request, generate
from tests.algorithms.parts import TableDrafter, assert_closed, grow, make, paths_of, same_everywhere
from tests.cascade.parts import PROMPT, pool, target_of
from tests.parts import LIMITS, make_algorithm, make_decoder

FIRST, SECOND = (Acceptance(0.9, 0.9), 0.4), (Acceptance(0.8, 0.8), 0.3)
LEAST = {"paper": 0.0, "ewif": 1.0}  # no stop; the plain walltime improvement
COSTS = Costs(verify=1.0, per_node=0.0, bottom=0.3)


def configuration(name: str, draft: tuple[Acceptance, float], longest: int = 5) -> Configuration:
    return Configuration(name, draft[0], [draft[1] * k for k in range(1, longest + 1)])


def score(objective: str, draft: tuple[Acceptance, float], length: int, reached: float = 1.0) -> float:
    """Of one length: shorter ones are made to cost the world."""
    only = Configuration("it", draft[0], [1e9] * (length - 1) + [draft[1] * length])
    chosen = choose(Policy(objective, LEAST[objective], "listed"), [only], SECOND[0], True, reached, COSTS, Budget(1.0))
    assert chosen is not None
    assert chosen.length == length
    return chosen.score


PRINTED = {
    "paper": ([2.314, 2.144, 2.015, 1.905, 1.808], [2.400, 2.169, 1.968, 1.793, 1.640]),
    "ewif": ([1.541, 1.599, 1.609, 1.593, 1.563], [1.525, 1.554, 1.528, 1.476, 1.411]),
}


@pytest.mark.parametrize("objective", PRINTED)
def test_values_of_the_objectives_on_the_papers_example(objective):
    """Eq. 5 takes the second draft although the first is better; with the step's whole time the first one wins."""
    for draft, values in zip((FIRST, SECOND), PRINTED[objective], strict=True):
        assert [score(objective, draft, k) for k in range(1, 6)] == pytest.approx(values, abs=6e-4)
    both = [configuration("first", FIRST), configuration("second", SECOND)]
    chosen = choose(Policy(objective, LEAST[objective], "listed"), both, SECOND[0], True, 1.0, COSTS, Budget(1.0))
    assert chosen is not None
    assert (chosen.name, chosen.length) == {"paper": ("second", 1), "ewif": ("first", 3)}[objective]


@pytest.mark.parametrize(
    ("cost", "alpha", "least"), [(0.01, 0.3, 0.037), (0.01, 0.1, 0.11), (0.05, 0.3, 0.183), (0.1, 0.3, 0.367)]
)
def test_printed_stop_rule(cost, alpha, least):
    """a_dn / c_dn x P(leaf) < t_min, whatever the other configurations promise."""
    policy, costs, bottom = Policy("paper", 1.1, "available"), Costs(1.0, 0.0, cost), Acceptance(alpha, alpha)
    for reached, goes_on in ((least * 1.02, True), (least * 0.98, False)):
        chosen = choose(policy, [configuration("first", FIRST)], bottom, True, reached, costs, Budget(1.0))
        assert (chosen is not None) == goes_on


def test_ewif_stops_where_the_ratio_no_longer_grows():
    policy, draft = Policy("ewif", 1.0, "available"), configuration("first", FIRST)
    costs = Costs(1.0, 0.1, 0.01)
    bottom = Acceptance(0.3, 0.3)
    assert choose(policy, [draft], bottom, False, 1.0, costs, Budget(1.0)) is not None
    assert choose(policy, [draft], bottom, False, 0.2, costs, Budget(1.0)) is None
    assert choose(policy, [], bottom, False, 1.0, costs, Budget(1.0)) is None
    dear = choose(policy, [configuration("first", (FIRST[0], 0.95))], bottom, False, 1.0, costs, Budget(1.0))
    assert dear is None, "0.95 to draft and 0.1 to verify is more than a token is worth"


def test_tail_only_where_the_bottom_draft_has_a_token():
    both = [configuration("first", FIRST)]
    for tail, offers, counted in (("listed", False, True), ("available", True, True), ("available", False, False)):
        chosen = choose(
            Policy("ewif", 1.0, tail), both, Acceptance(0.5, 0.5), offers, 1.0, Costs(1.0, 0.0, 1e-9), Budget(1.0)
        )
        assert chosen is not None
        plain = (1 + chosen.gain) / (1 + chosen.seconds)
        assert (chosen.score > plain + 1e-6) == counted


def test_drafting_time_counts_as_often_as_the_policy_says():
    costs, bottom = Costs(1.0, 0.0, 0.01), Acceptance(0.3, 0.3)
    draft = [configuration("int8", (Acceptance(0.93, 0.93), 0.71), longest=1)]
    for threshold, drafts in ((1.0, True), (1.4, False)):
        chosen = choose(Policy("ewif", threshold, "available"), draft, bottom, False, 1.0, costs, Budget(1.0))
        assert (chosen is not None) == drafts, "1.93 tokens for 1.71 forwards"


def test_a_certain_draft_is_followed_and_a_hopeless_one_left_alone():
    for prior, expected in ((0.9, [(1,), (1, 1), (1, 1, 1)]), (0.05, [])):
        drafter = TableDrafter(same_everywhere(0.0, 1.0, 0.0))
        options = {"objective": "ewif", "priors": {"default": [prior, 0.2]}, "latency": "prior"}
        draft = grow(make("cas_spec", drafter, **options, max_length=3, max_nodes=3))
        assert paths_of(draft) == expected


@pytest.mark.parametrize("objective", ["paper", "ewif"])
def test_alternatives_and_siblings(objective):
    drafter = TableDrafter(same_everywhere(0.5, 0.3, 0.2))
    options = {"objective": objective, "priors": {"default": [0.9, 0.05]}, "node_cost": 0.01, "threshold": 0.5}
    algorithm = make(
        "cas_spec", drafter, **options, max_length=2, max_nodes=9, width=2, alternatives="ranked", sibling_share=0.5
    )
    draft = grow(algorithm, batch=2)
    assert_closed(draft)
    paths = paths_of(draft)
    assert len(paths) == 9
    assert {(0,), (1,), (0, 0), (0, 1)} <= set(paths)
    assert paths_of(draft, 1) == paths
    alone: Any = make("cas_spec", drafter, **options)
    assert alone.members == {"table": drafter}, "any drafter is a pool of one"


def decode(**options: Any) -> tuple[Generation, Generation, Any]:
    target = target_of()
    drafter = pool(target)
    decoder = make_decoder("autoregressive", {}, "none")
    algorithm = make_algorithm("cas_spec", options, drafter)
    decoder = type(decoder)(target, algorithm, drafter, decoder.rule, decoder.sampler, 0)
    plain = type(decoder)(target, make_algorithm("autoregressive", {}, None), None, decoder.rule, decoder.sampler, 0)
    clock = target.clock
    requests = [Request(0, PROMPT), Request(1, PROMPT[3:])]
    return generate(decoder, requests, LIMITS, clock), generate(plain, requests, LIMITS, clock), algorithm


@pytest.mark.lossless
@pytest.mark.parametrize("objective", ["paper", "ewif"])
def test_greedy_text_from_a_pool_is_the_targets(objective):
    """With learning on: the tree follows the clock, the text must not."""
    drafted, plain, _ = decode(objective=objective, latency="learned", memory="run", outcomes="all")
    assert drafted.tokens == plain.tokens
    assert len(drafted.emitted) < len(plain.emitted)


def test_traces():
    drafted, _, algorithm = decode(objective="ewif", latency="learned", max_length=5)
    names = {f"{figure}_{name}" for name in algorithm.members for figure in ("alpha", "c", "nodes")}
    assert all(set(trace) == {*names, "decisions", "decision_seconds"} for trace in drafted.traces)
    assert {len(values) for trace in drafted.traces for values in trace.values()} == {2}
    learnt = {trace["alpha_int8"][0] for trace in drafted.traces}
    assert len(learnt) > 1
    assert algorithm.states[0].shares["vc_int8"] == "int8"
    assert all(trace["decision_seconds"][0] > 0 for trace in drafted.traces if trace["decisions"][0])
    assert any(trace["decisions"][0] for trace in drafted.traces)


def test_memory():
    for memory, kept in (("run", 2), ("sequence", 0)):
        _, _, algorithm = decode(objective="ewif", memory=memory)
        algorithm.start(torch.tensor([4, 4]))
        assert len(algorithm.states) == kept


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"objective": "best"}, "cas_spec.objective must be one of paper, ewif, not 'best'"),
        ({"tail": "never"}, "cas_spec.tail must be one of listed, available, not 'never'"),
        ({"memory": "none"}, "cas_spec.memory must be run or sequence, not 'none'"),
        ({"alternatives": "none"}, "cas_spec.alternatives must be equal or ranked, not 'none'"),
        ({"estimator": "mean"}, "cas_spec.estimator must be one of ema, beta, not 'mean'"),
        ({"outcomes": "last"}, "cas_spec.outcomes must be first or all, not 'last'"),
        (
            {"priors": {"default": [0.5]}},
            r"cas_spec.priors.default is \[0.5\]; it must be an acceptance rate and a cost",
        ),
        ({"priors": {"a": [0.5, 0.1]}}, "cas_spec.priors needs an entry `default`"),
    ],
)
def test_bad_settings(options, line):
    with pytest.raises(TreebenchError, match=line):
        make("cas_spec", TableDrafter(same_everywhere(1.0)), **options)
