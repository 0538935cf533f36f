"""The metrics of steps and trees of every measured point as one table: `metrics.csv`."""

from typing import Any

import pandas

from analysis.evidence import Evidence
from analysis.load import Point
from analysis.metrics import (
    Efficiency,
    achieved_length,
    calibration,
    oracle_length,
    share_of_bound,
    stage_cost,
    survival,
)

BINS = 10
DEEPEST = 4  # survival is given up to this depth
MOST_TREES = 40  # points whose trees are gone through; of the others these cells stay empty


def metrics_csv(points: list[Point], evidence: Evidence) -> str:
    """A row per point; a metric that its files do not allow is empty. Seconds per token by stage."""
    rows = [_row(point, evidence, number < MOST_TREES) for number, point in enumerate(points)]
    return pandas.DataFrame(rows, columns=None if rows else ["point", "basis"]).to_csv(index=False)


def _row(point: Point, evidence: Evidence, with_trees: bool) -> dict[str, Any]:
    record = point.record
    row = {"point": point.name, "algorithm": point.method, "task": record.task, "basis": record.basis}
    row |= {"share_of_bound": share_of_bound(record)}
    found = evidence.efficiency(point) or Efficiency(None, *[float("nan")] * 3)
    row |= found._asdict() | _survivals(point, evidence) | _step_cost(point, evidence)
    row |= {f"{stage}_seconds_per_token": seconds for stage, seconds in stage_cost(record).items()}
    return row | (_tree_metrics(point, evidence) if with_trees else {})


def _survivals(point: Point, evidence: Evidence) -> dict[str, float]:
    counts = evidence.counts(point)
    shares = survival(counts).to_dict() if counts is not None else {}
    return {f"accepted_depth_{depth}": shares[depth] for depth in range(1, DEEPEST + 1) if depth in shares}


def _step_cost(point: Point, evidence: Evidence) -> dict[str, float | None]:
    """In plain decoding's steps."""
    cost = evidence.step_cost(point)
    return {f"step_cost_{name}": value for name, value in cost._asdict().items()} if cost else {}


def _tree_metrics(point: Point, evidence: Evidence) -> dict[str, float | None]:
    nodes = evidence.nodes([point])
    if nodes is None:
        return {}
    achieved, oracle = achieved_length(nodes), oracle_length(nodes)
    return {
        "traced_length": achieved,
        "oracle_length": oracle,
        "share_of_oracle": achieved / oracle if achieved and oracle else None,
        "calibration_error": calibration(nodes, BINS).error,
    }
