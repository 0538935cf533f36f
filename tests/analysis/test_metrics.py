"""Every metric on a record made by hand, against the answer worked out by hand."""

from dataclasses import replace
from io import StringIO
from math import log

import pandas
import pytest

from analysis.cost_table import EXPLANATION, cost_table_md
from analysis.evidence import Evidence
from analysis.load import load_sweep
from analysis.metrics import (
    acceptance_by_depth,
    acceptance_by_rank,
    achieved_length,
    calibration,
    efficiency,
    located,
    oracle_length,
    share_of_bound,
    stage_cost,
    step_cost,
    survival,
    time_split,
)
from analysis.metrics_table import metrics_csv
from runners.records import STEP_COLUMNS
from tests.analysis.conftest import RECORD
from tests.analysis.trees import TREES

COUNTS = pandas.DataFrame(  # 10 steps, 17 tokens, 35 verified nodes, 52 drafted ones
    [(1, 3, 5, 2, 5), (2, 4, 5, 3, 3), (3, 4, 6, 3, 2)],
    columns=["emitted", "verified_nodes", "drafted_nodes", "depth", "steps"],
)
NODES = located(TREES)


def test_efficiency():
    found = efficiency(COUNTS)
    assert found is not None
    assert found.accepted_per_verified == pytest.approx(7 / 25)
    assert found.wasted_per_token == pytest.approx(18 / 17)
    assert (found.verified_per_step, found.drafted_per_step) == (3.5, 5.2)


def test_plain_decoding_has_no_draft_efficiency():
    counts = pandas.DataFrame([(1, 1, 1, 0, 8)], columns=COUNTS.columns)
    found = efficiency(counts)
    assert found is not None
    assert (found.accepted_per_verified, found.wasted_per_token) == (None, 0.0)
    assert survival(counts).empty


def test_no_steps_have_no_figures():
    assert efficiency(COUNTS[:0]) is None
    assert survival(COUNTS[:0]).empty


def test_survival():
    assert survival(COUNTS).to_dict() == pytest.approx({1: 0.5, 2: 0.2, 3: 0.0})


def test_depths_and_paths():
    first = NODES[NODES["step"] == 0].set_index("node")
    assert first["depth"].to_dict() == {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 3}
    assert first.loc[3, "path_log_prob"] == pytest.approx(log(0.55 * 0.8))
    assert first["parent_accepted"].to_dict() == {0: False, 1: True, 2: True, 3: True, 4: True, 5: True}


def test_acceptance_by_depth():
    table = acceptance_by_depth(NODES)
    assert table.index.tolist() == [1, 2]
    assert table["joint"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert table["conditional"].tolist() == pytest.approx([2 / 3, 1 / 1])
    assert table["steps"].tolist() == [3, 1]


def test_acceptance_by_rank():
    table = acceptance_by_rank(NODES).set_index(["depth", "rank"])
    assert table["rate"].to_dict() == pytest.approx({(1, 0): 1 / 3, (1, 1): 1 / 2, (2, 0): 1.0})
    assert table["nodes"].to_dict() == {(1, 0): 3, (1, 1): 2, (2, 0): 1}


def test_calibration():
    found = calibration(NODES, num_bins=2)
    # below a half: 0.25, 0.4 (accepted), 0.3; above: 0.55 (accepted), 0.6, 0.8 (accepted)
    assert found.bins["nodes"].tolist() == [3, 3]
    assert found.bins["predicted"].tolist() == pytest.approx([0.95 / 3, 1.95 / 3])
    assert found.bins["realised"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert found.error == pytest.approx((abs(0.95 / 3 - 1 / 3) + abs(1.95 / 3 - 2 / 3)) / 2)
    assert calibration(NODES[:0], num_bins=2).error is None


def test_oracle_knows_what_pruning_cost():
    assert achieved_length(NODES) == pytest.approx((3 + 2 + 1) / 3)
    assert oracle_length(NODES) == pytest.approx((4 + 2 + 1) / 3), "the drafted node 4 was right but not verified"
    assert oracle_length(NODES[:0]) is None
    assert achieved_length(NODES[:0]) is None


def test_time_split_and_cost_per_token():
    stages = {"draft": 1.0, "tree": 0.5, "verify": 2.0, "accept": 0.25, "commit": 0.25, "other": 1.0}
    record = replace(RECORD, stage_seconds={**stages, "forward": 2.5, "total": 5.0}, tokens_per_second=50.0)
    assert time_split(record) == pytest.approx({name: seconds / 5 for name, seconds in stages.items()})
    assert stage_cost(record)["verify"] == pytest.approx(0.4 / 50)
    assert sum(stage_cost(record).values()) == pytest.approx(1 / 50)
    assert time_split(RECORD) == stage_cost(RECORD) == {}


def test_step_cost():
    """Tokens per step 1.7 at a speedup of 0.85: a step costs two plain ones. The tree of COUNTS is 2.5 levels deep."""
    stages = {"draft": 1.0, "tree": 0.5, "verify": 2.0, "accept": 0.25, "commit": 0.25, "other": 1.0, "total": 5.0}
    record = replace(RECORD, stage_seconds=stages, speedup=0.85, acceptance_length=1.7)
    cost = step_cost(record, COUNTS)
    assert cost is not None
    assert cost == pytest.approx((2.0, 2.5, 0.4 / 2.5, 0.8, 0.8))
    assert cost.levels * (cost.draft_level or 0) + cost.verify + cost.rest == pytest.approx(cost.step)
    plain = step_cost(record, COUNTS.assign(depth=0))
    assert plain is not None
    assert plain.draft_level is None
    assert (
        step_cost(RECORD, COUNTS) is step_cost(record, COUNTS[:0]) is step_cost(replace(record, speedup=None), COUNTS)
    )


def test_the_table_of_costs(sweep_dir, add):
    stages = {"draft": 1.0, "tree": 0.5, "verify": 2.0, "accept": 0.25, "commit": 0.25, "other": 1.0, "total": 5.0}
    rows = [(0, step, 10, 3, 3, 2, 2 if step else 1) for step in range(4)]
    steps = pandas.DataFrame(rows, columns=list(STEP_COLUMNS))
    add(name="a", steps=steps, stage_seconds=stages, speedup=0.875, acceptance_length=1.75)
    sweep = load_sweep(sweep_dir)
    table = cost_table_md(sweep, Evidence(sweep.succeeded))
    row = next(line for line in table.splitlines() if "humaneval" in line and line.startswith("|"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [cells[2], *cells[4:]] == ["0.88x", "1.75", "75.0%", "2.00", "2.0", "0.200", "0.80", "0.80"]
    assert EXPLANATION.split(";")[0] in table
    (sweep_dir / "a" / "steps.parquet").unlink()
    sweep = load_sweep(sweep_dir)
    assert cost_table_md(sweep, Evidence(sweep.succeeded)) == ""


def test_share_of_bound():
    assert share_of_bound(replace(RECORD, speedup=1.5, acceptance_length=2.0)) == 0.75
    assert share_of_bound(replace(RECORD, speedup=None)) is None


def test_the_table_of_metrics(sweep_dir, add):
    steps = pandas.DataFrame([(0, step, 10, 3, 3, 2, 2) for step in range(4)], columns=list(STEP_COLUMNS))
    add(name="a", steps=steps, trees=TREES)
    add(name="b", task="chat")
    points = load_sweep(sweep_dir).succeeded
    table = pandas.read_csv(StringIO(metrics_csv(points, Evidence(points)))).set_index("point")
    row = table.loc["a"]
    assert (row["accepted_per_verified"], row["verified_per_step"], row["share_of_bound"]) == (0.5, 3.0, 0.75)
    assert (row["accepted_depth_1"], row["accepted_depth_2"]) == (1.0, 0.0)
    assert row["share_of_oracle"] == pytest.approx(6 / 7)
    assert table.loc["b", ["accepted_per_verified", "oracle_length"]].isna().all()
