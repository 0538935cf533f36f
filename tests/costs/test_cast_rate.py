"""cast_rate and the goodput chain: they take the optimum, stop where plain decoding is faster, and learn."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from algorithms.cast import chord
from algorithms.cast_rate import CastRate, slowest_of
from algorithms.confidence import BINS, Calibration, bins_of
from algorithms.goodput_chain import GoodputChain
from algorithms.registry import create
from backend.errors import TreebenchError
from backend.tree import NO_NODE, Accepted, Draft, TokenTree
from tests.algorithms.parts import TableDrafter, grow, nodes_of, paths_of, same_everywhere
from tests.costs.parts import Formulas, affine, make
from tests.parts import options_of

STEPWISE = Formulas(lambda b, w, c: 1 + 0.16 * np.floor((w - 1) / 16), lambda b, w, c: 0 * w + 0.02)
KNEE = Formulas(lambda b, w, c: 1 + 0.03 * np.maximum(0, w - 32), lambda b, w, c: 0 * w + 0.02)


def rate_of(algorithm: CastRate, utility: np.ndarray, size: int) -> float:
    tokens = 1 + (utility[size - 1] if size else 0.0)
    return tokens / (algorithm.spent + algorithm._step(1, size + 1)[-1])


@pytest.mark.parametrize("costs", [affine(0.003), affine(0.03), STEPWISE, KNEE], ids=["cheap", "dear", "steps", "knee"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_size_and_no_threshold_promises_more(costs, seed):
    algorithm = make("cast_rate", costs, seed)
    assert isinstance(algorithm, CastRate)
    algorithm.start(torch.tensor([10]))
    algorithm.spent = 0.1
    utility = np.sort(np.random.default_rng(seed).random(60) ** 3)[::-1].cumsum()
    size = int(algorithm.size(1, utility[None])[0])
    best = rate_of(algorithm, utility, size)
    assert best == max(rate_of(algorithm, utility, k) for k in range(61))
    cost = (algorithm.prices.verify(1, 10, 60) / algorithm.prices.verify(1, 10, 1)[0]).tolist()
    for threshold in (0.5, 1.0, 2.5, 4.0):
        assert rate_of(algorithm, utility, chord(utility.tolist(), cost, threshold)) <= best


def test_pooling_is_the_optimum_over_all_rows_sizes():
    algorithm = make("cast_rate", affine(0.03), rows="pooled", budget=4)
    assert isinstance(algorithm, CastRate)
    algorithm.start(torch.tensor([10, 10]))
    values = np.array([[0.9, 0.7, 0.2, 0.1], [0.3, 0.2, 0.1, 0.05]])
    found = algorithm.pooled_size(values)

    def rate(sizes: list[int]) -> float:
        tokens = 1 + sum(values[row, :size].sum() for row, size in enumerate(sizes)) / 2
        return tokens / (1 + 0.03 * 2 * sum(sizes) / 2)

    best = max(rate([a, b]) for a in range(5) for b in range(5))
    assert rate(found) == pytest.approx(best)


def test_steep_cost_means_no_speculation_and_dear_drafts_are_not_made():
    assert nodes_of(grow(make("cast_rate", affine(1e9)))) == [0]
    dear = create(
        "cast_rate",
        drafter := TableDrafter(same_everywhere(0.6, 0.4)),
        options_of("cast_rate", {}),
        affine(0.1, draft=2.0),
    )
    assert nodes_of(grow(dear)) == [0]
    assert drafter.calls == 0


def test_every_so_often_a_draft_is_made_all_the_same():
    drafter = TableDrafter(same_everywhere(0.6, 0.4))
    options = options_of("cast_rate", {}) | {"explore_every": 4}
    algorithm = create("cast_rate", drafter, options, affine(0.1, draft=2.0))
    calls = []
    for _ in range(8):
        grow(algorithm)
        calls.append(drafter.calls)
    assert [int(b > a) for a, b in pairwise([0, *calls])] == [0, 0, 0, 1, 0, 0, 0, 1]
    never = create(
        "cast_rate", TableDrafter(same_everywhere(1.0)), options | {"explore_every": None}, affine(0.1, draft=2.0)
    )
    assert all(nodes_of(grow(never)) == [0] for _ in range(40))


def drafting_steps(laws: tuple[float, ...], steps: int = 80, **options: object) -> list[int]:
    """Steps that drafted, where a verified token costs half a step and a draft a tenth."""
    drafter = TableDrafter(same_everywhere(*laws))
    algorithm = create("cast_rate", drafter, options_of("cast_rate", {}) | options, affine(0.5, draft=0.1))
    calls = [0]
    for _ in range(steps):
        draft = grow(algorithm)
        nodes = draft.nodes[:, : 2 if draft.nodes.shape[1] > 1 else 1]  # the best drafted token is accepted
        algorithm.observe(draft, Accepted(nodes, torch.zeros_like(nodes[:, 0])))
        calls.append(drafter.calls)
    return [step for step, (a, b) in enumerate(pairwise(calls)) if b > a]


def test_drafts_of_which_nothing_is_worth_verifying_are_given_up_step_by_step():
    """Five children of 0.2 would be accepted together as often as one of 1, but each costs more than it yields."""
    assert drafting_steps((0.2,) * 5) == [0, 1, 2, 3, 5, 9, 17, 33, 65]
    assert drafting_steps((0.2,) * 5, explore_every=None) == [0, 1, 2, 3]
    assert drafting_steps((0.9, 0.1)) == list(range(80))


def rejected(draft: Draft) -> Accepted:
    return Accepted(torch.zeros(draft.nodes.shape[0], 1, dtype=torch.int64), torch.zeros_like(draft.nodes[:, 0]))


@pytest.mark.parametrize(("calibration", "shrinks"), [("online", True), ("none", False)])
def test_a_boastful_drafter_is_found_out(calibration, shrinks):
    """Drafts of probability 1 that are never right."""
    drafter = TableDrafter(same_everywhere(0.999, 0.001))
    options = options_of("cast_rate", {}) | {"calibration": calibration, "memory": 0.99}
    algorithm = create("cast_rate", drafter, options, affine(0.15))
    sizes = []
    for _ in range(60):
        draft = grow(algorithm)
        sizes.append(len(nodes_of(draft)))
        algorithm.observe(draft, rejected(draft))
    assert (sizes[-1] < sizes[0]) == shrinks


def test_a_batch_that_waits_for_its_last_row_wants_more_of_a_draft():
    """A token for certain at 1.8 times the cost: 2 / 1.8 pays for the mean row, not for the slowest of eight."""
    decided = {}
    for spread, batch in ((0.0, 8), (0.1, 8), (0.1, 1)):
        options = options_of("cast_rate", {}) | {"spread": spread, "explore_every": None, "max_depth": 1, "width": 1}
        drafter = TableDrafter(same_everywhere(0.999, 0.001))
        algorithm = create("cast_rate", drafter, options, affine(0.78 / batch))
        algorithm.start(torch.full((batch,), 10))
        decided[spread, batch] = grow(algorithm, batch=batch).nodes.shape[1] - 1
    assert decided == {(0.0, 8): 1, (0.1, 8): 0, (0.1, 1): 1}
    assert [round(slowest_of(rows), 2) for rows in (1, 8, 32)] == [0, 1.43, 2.07]


def test_a_second_is_never_worth_less_than_plain_decoding_makes_of_it():
    algorithm = make("cast_rate", affine(0.1), seed=1)
    assert isinstance(algorithm, CastRate)
    algorithm.start(torch.tensor([10]))
    for _ in range(30):
        draft = grow(algorithm)
        algorithm.observe(draft, rejected(draft))
    assert algorithm.rate[0] == 1 / algorithm._step(1, 1)[0] > algorithm.mean_rate[0]


def test_new_sequences_start_from_nothing_learned():
    algorithm = make("cast_rate", affine(0.05), seed=1)
    runs = []
    for _ in range(2):
        algorithm.start(torch.tensor([10]))
        trees = []
        for _ in range(5):
            draft = grow(algorithm)
            algorithm.observe(draft, rejected(draft))
            trees.append(paths_of(draft))
        runs.append(trees)
    assert runs[0] == runs[1]


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_counts_only_what_was_tried():
    """Below a rejected node nothing was tried; finished rows say nothing."""
    tree = TokenTree.root(torch.tensor([0, 0]))
    tree = tree.add(
        torch.tensor([[0, 0], [0, 0]]), torch.tensor([[1, 2], [1, 2]]), torch.tensor([[0.6, 0.3]] * 2).log()
    )
    tree = tree.add(
        torch.tensor([[1, 2], [1, 2]]), torch.tensor([[3, 4], [3, 4]]), torch.tensor([[0.6, 0.6]] * 2).log()
    )
    draft = Draft(tree, torch.arange(5).expand(2, -1))
    calibration = Calibration(depths=2, strength=1.0, ratios=None)
    calibration.learn(draft, Accepted(torch.tensor([[0, 1], [NO_NODE, NO_NODE]]), torch.tensor([9, 9])))
    assert calibration.expected.sum() == pytest.approx(0.6 + 0.3 + 0.6)
    assert calibration.accepted.sum() == 1
    assert calibration.corrected(np.log([[0.6]]), 1) == pytest.approx(0.6 * (1 + 1) / (0.6 + 1))
    assert calibration.corrected(np.log([[0.6]]), 2) == pytest.approx(0.6 * 1 / (0.6 + 1))
    assert calibration.corrected(np.log([[0.01]]), 1) == pytest.approx(0.01)


def test_bins_halve():
    assert bins_of(np.log([1.0, 0.51, 0.5, 0.26, 0.25, 1e-30])).tolist() == [0, 0, 1, 1, 2, BINS - 1]
    assert bins_of(np.array([-np.inf])).tolist() == [BINS - 1]


def test_measured_ratios_are_the_first_guess():
    calibration = Calibration(depths=3, strength=2.0, ratios=[[0.5, 2.0]])
    assert calibration.corrected(np.log([[0.8, 0.4, 0.1]]), 1)[0] == pytest.approx([0.4, 0.8, 0.1])


# --- the chain --------------------------------------------------------------------------------------------------------


def goodput(costs: Formulas, **options: object) -> GoodputChain:
    values = options_of("goodput_chain", {}) | {"max_length": 10} | options
    algorithm = create("goodput_chain", TableDrafter(same_everywhere(0.7, 0.3)), values, costs)
    assert isinstance(algorithm, GoodputChain)
    return algorithm


@pytest.mark.parametrize("prior", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("slope", [0.01, 0.1, 0.5])
def test_the_length_maximises_goodput(prior, slope):
    algorithm = goodput(affine(slope), prior=prior, rows="uniform")
    rates = []
    for k in range(11):
        tokens = sum(prior**i for i in range(k + 1))
        rates.append(tokens / (1 + 0.02 * k + slope * k) * (1.1 if k == 0 else 1.0))
    assert len(nodes_of(grow(algorithm))) - 1 == rates.index(max(rates))


def test_a_chain_shrinks_as_the_batch_grows_and_when_rejected():
    assert len({len(nodes_of(grow(goodput(affine(0.03), rows="uniform"), batch=b))) for b in (1, 16)}) == 2
    algorithm = goodput(affine(0.03), rows="uniform", explore_every=None)
    before = len(nodes_of(grow(algorithm)))
    for _ in range(10):
        draft = grow(algorithm)
        algorithm.observe(draft, rejected(draft))
    assert len(nodes_of(grow(algorithm))) < before


def test_best_fixed_takes_the_row_of_its_batch():
    options = {"settings": [[4, 1, 2, 4], [1, 3, 4, 12], [8, 1, 1, 1]]}
    algorithm = create("best_fixed", TableDrafter(same_everywhere(0.4, 0.3, 0.2, 0.1)), options)
    assert [len(nodes_of(grow(algorithm, batch=b))) for b in (1, 3, 4, 7, 8, 9)] == [12, 12, 4, 4, 1, 1]
    with pytest.raises(TreebenchError, match="rows of batch size"):
        create("best_fixed", TableDrafter(same_everywhere(1.0)), {"settings": [[1, 2]]})
