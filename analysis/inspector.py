"""Drafted trees of a sweep, packed small enough to travel inside the report page."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pyarrow.parquet as pq

from analysis.load import Point
from runners.records import TREE_COLUMNS
from runners.store import TREES_FILE

VERIFIED, ACCEPTED, BONUS = 1, 2, 4
PAGE_BUDGET = 750_000  # bytes of all trees in one page
MOST_POINTS = 200  # of one report that are looked at; the rest are counted


class Traces(NamedTuple):
    """`entries` are for the page: id, prompt, method, whether it drafts, and the packed steps."""

    entries: list[dict[str, Any]]
    left_out: str  # why some are missing, in one line; empty if none are


def read_trees(folder: Path) -> pandas.DataFrame | None:
    """The node table of one point; None where there is none, or none that this code can read."""
    try:
        table = pq.read_table(folder / TREES_FILE).to_pandas()
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
    return table if set(TREE_COLUMNS) <= set(table.columns) else None


def page_traces(points: list[Point], budget: int = PAGE_BUDGET) -> Traces:
    """First prompts of all points first, so that two algorithms share a prompt; none once the budget is spent."""
    waiting = [entry for point in points[:MOST_POINTS] for entry in _entries(point)]
    kept, spent = [], 0
    for entry in sorted(waiting, key=lambda entry: entry["turn"]):
        if spent + len(entry["packed"]) <= budget:
            kept.append(entry | {"id": len(kept)})
            spent += len(entry["packed"])
    left_out = []
    if len(kept) < len(waiting):
        left_out = [f"{len(waiting) - len(kept)} of {len(waiting)} prompts are left out: the page would grow too large"]
    if len(points) > MOST_POINTS:
        left_out.append(f"only the first {MOST_POINTS} of {len(points)} points are looked at")
    return Traces(kept, "; ".join(left_out) + "." if left_out else "")


def _entries(point: Point) -> list[dict[str, Any]]:
    trees = read_trees(point.folder)
    if trees is None:
        return []
    return [
        {
            "turn": turn,
            "prompt": _prompt_name(point, int(str(sequence))),
            "method": _method_name(point),
            "drafts": bool((rows["node"] > 0).sum() > rows["bonus"].sum()),
            "packed": pack(rows),
        }
        for turn, (sequence, rows) in enumerate(trees.groupby("sequence"))
    ]


def _prompt_name(point: Point, sequence: int) -> str:
    prompts = point.record.prompts
    name = f"{prompts[sequence].id}, turn {prompts[sequence].turn + 1}" if sequence < len(prompts) else str(sequence)
    return f"{point.record.task}: {name}"


def _method_name(point: Point) -> str:
    setting = point.setting
    return f"{point.label} - {setting.dtype}, batch {setting.batch_size}, T {setting.temperature:g}, {setting.target}"


def pack(rows: pandas.DataFrame) -> str:
    """One prompt's trees: per step the nodes' parents, texts, log-probabilities (hundredths) and flags, deflated."""
    texts = {text: index for index, text in enumerate(rows["text"].unique())}
    steps = [_step(step_rows, texts) for _, step_rows in rows.groupby("step")]
    plain = json.dumps({"texts": list(texts), "steps": steps}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(plain.encode(errors="replace"), 9)).decode()


def _step(rows: pandas.DataFrame, texts: dict[str, int]) -> dict[str, list]:
    """Nodes in their order, numbered anew where the tree has gaps; the bonus is the last."""
    places = {node: place for place, node in enumerate(rows["node"])}
    flags = rows["verified"] * VERIFIED + rows["accepted"] * ACCEPTED + rows["bonus"] * BONUS
    log_probs = [None if pandas.isna(value) else round(100 * float(value)) for value in rows["log_prob"]]
    return {
        "p": [places.get(parent, -1) for parent in rows["parent"]],
        "t": [texts[text] for text in rows["text"]],
        "l": log_probs,
        "f": [int(flag) for flag in flags],
    }
