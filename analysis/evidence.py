"""What lies beside the records of a sweep: counts of steps, drafted trees, and what adaptive algorithms traced."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pandas
import pyarrow.parquet as pq

from analysis.inspector import read_trees
from analysis.load import Point
from analysis.metrics import STEP_COUNTS, STEP_KEY, Efficiency, StepCost, Table, efficiency, located, step_cost
from runners.records import STEP_COLUMNS
from runners.store import STEPS_FILE, read_steps


class Evidence:
    """Reads each file once, when it is asked for. A point without a file, or with a damaged one, has no rows."""

    def __init__(self, points: Iterable[Point]) -> None:
        self.points = list(points)
        self._nodes: dict[Path, pandas.DataFrame] = {}

    @cached_property
    def _counts(self) -> dict[Path, pandas.DataFrame]:
        found = {}
        for sweep in {point.folder.parent for point in self.points}:
            counts, _ = read_steps(sweep, STEP_COUNTS)
            found |= {sweep / str(name): rows for name, rows in counts.groupby("point")}
        return found

    def counts(self, point: Point) -> Table | None:
        """STEP_COUNTS of the point."""
        return self._counts.get(point.folder)

    def efficiency(self, point: Point) -> Efficiency | None:
        counts = self.counts(point)
        return None if counts is None else efficiency(counts)

    def step_cost(self, point: Point) -> StepCost | None:
        counts = self.counts(point)
        return None if counts is None else step_cost(point.record, counts)

    def nodes(self, points: Iterable[Point]) -> Table | None:
        """The located nodes of all these points, their sequences numbered apart."""
        tables = [self._nodes_of(point) for point in points]
        tables = [table.assign(sequence=table["sequence"] + 10**6 * i) for i, table in enumerate(tables) if len(table)]
        return pandas.concat(tables, ignore_index=True) if tables else None

    def _nodes_of(self, point: Point) -> Table:
        if point.folder not in self._nodes:
            trees = read_trees(point.folder)
            self._nodes[point.folder] = pandas.DataFrame() if trees is None or trees.empty else located(trees)
        return self._nodes[point.folder]

    def traces(self, point: Point) -> Table | None:
        """Numeric columns that the algorithm added to its steps, of the point's first sequence, by step."""
        try:
            table = pq.read_table(point.folder / STEPS_FILE).to_pandas()
        except (OSError, ValueError):
            return None
        more = [name for name in table.select_dtypes("number").columns if name not in STEP_COLUMNS]
        if not more or table.empty:
            return None
        first = table[table["sequence"] == table["sequence"].min()]
        traces = first.set_index(STEP_KEY[1])[more].dropna(axis="columns", how="all")
        return None if traces.empty else traces


def by_method(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points of one setting under their labels, in order of appearance."""
    groups = defaultdict(list)
    for point in points:
        groups[point.label].append(point)
    return dict(groups)
