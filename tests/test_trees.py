"""The node table of a few prompts equals the trees that were drafted and what the target took of them."""

from random import Random
from typing import Any

import pytest
import torch

from algorithms.growth import WHOLE_LAW
from backend.tree import NO_NODE, Accepted, Draft, TokenTree
from runners import measure as measuring
from runners.decoding import Request
from runners.measure import Pair
from runners.records import TREE_COLUMNS
from runners.store import write_point
from runners.summary import steps_table
from runners.trees import step_nodes, trees_table
from tests.analysis.conftest import RECORD
from tests.parts import prompts
from tests.test_summary import CONFIG, QUESTIONS, make_point

CHAIN = {"algorithm": {"name": "chain", "depth": 4, "children": "top_k", **WHOLE_LAW}}


def test_nodes_of_one_step():
    tree = TokenTree.root(torch.tensor([7, 7]))
    tree = tree.add(
        torch.tensor([[0, 0], [0, 0]]), torch.tensor([[1, 2], [3, 4]]), torch.log(torch.tensor([[0.5, 0.25]] * 2))
    )
    tree = tree.add(torch.tensor([[NO_NODE, 1], [2, NO_NODE]]), torch.tensor([[0, 5], [6, 0]]), torch.zeros(2, 2))
    draft = Draft(tree, torch.tensor([[0, 1, 4], [0, 2, NO_NODE]]))
    accepted = Accepted(torch.tensor([[0, 1, 4], [0, NO_NODE, NO_NODE]]), torch.tensor([8, 9]))
    first, second = step_nodes(draft, accepted, 0), step_nodes(draft, accepted, 1)
    assert [row[:4] for row in first] == [(0, -1, 0, 7), (1, 0, 0, 1), (2, 0, 1, 2), (4, 1, 0, 5), (5, 4, 0, 8)]
    assert [row[5:] for row in first] == [
        (True, True, False),
        (True, True, False),
        (False, False, False),
        (True, True, False),
        (False, False, True),
    ]
    assert first[1][4] == pytest.approx(-0.6931, abs=1e-4)
    assert first[0][4] is None
    assert second[-1][:4] == (5, 0, 2, 9), "the bonus is the root's third child"
    assert [row[0] for row in second] == [0, 1, 2, 3, 5]


@pytest.fixture(scope="module")
def traced() -> tuple[Any, list[Pair]]:
    """Two batches of two, of which the pass with stage clocks sees both and keeps the trees of the first."""
    point = make_point()
    pairs = []
    for start in (0, 2):
        requests = [Request(start + i, prompt) for i, prompt in enumerate(prompts([9, 14], start))]
        pair = Pair([(question, 0) for question in QUESTIONS[start : start + 2]], requests)
        measuring._decode_both(point, pair, Random(0))
        pairs.append(pair)
    measuring.measure_stages(point, pairs, CONFIG | CHAIN | {"batch_size": 2, "stage_prompts": 4, "tree_prompts": 2})
    return point, pairs


def test_the_table_agrees_with_the_steps(traced, tmp_path):
    point, pairs = traced
    trees: Any = trees_table(pairs, point.loaded.tokenizer)
    steps: Any = steps_table(pairs)
    assert list(trees.columns) == list(TREE_COLUMNS)
    assert sorted(trees["sequence"].unique()) == [0, 1], "tree_prompts prompts and no more"
    for _, row in steps[steps["sequence"] < 2].iterrows():
        nodes = trees[(trees["sequence"] == row.sequence) & (trees["step"] == row.step)]
        assert (~nodes["bonus"]).sum() == row.drafted_nodes
        assert nodes["verified"].sum() == row.verified_nodes
        assert nodes["accepted"].sum() >= row.emitted, "the limit may cut what was accepted"
        assert nodes["bonus"].sum() == 1
    write_point(tmp_path, RECORD, steps, trees)
    assert (tmp_path / "trees.parquet").stat().st_size < 50_000


def test_the_accepted_tokens_are_the_answer(traced):
    point, pairs = traced
    trees = trees_table(pairs, point.loaded.tokenizer)
    for sequence in (0, 1):
        taken = trees[(trees["sequence"] == sequence) & (trees["accepted"] | trees["bonus"]) & (trees["node"] > 0)]
        answer = pairs[0].method[0].tokens[sequence]
        assert taken["token"].tolist()[: len(answer)] == answer


def test_timed_runs_keep_no_trees(traced):
    _, pairs = traced
    assert all(generation.steps == [] for pair in pairs for generation in (*pair.method, *pair.baseline))
    assert pairs[1].traced is None
