"""What a point's steps and trees say beyond its summary. Pure functions of tables as `runners/records.py` defines them.

`counts` is the answer to STEP_COUNTS: steps of one point that are alike, and how many there are. `nodes` is the
`trees.parquet` of one point after `located`. Rates leave out the root, which is never drafted.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy
import pandas

from runners.records import RunRecord

STEP_COUNTS = """SELECT point, emitted, verified_nodes, drafted_nodes, depth, count(*)::BIGINT AS steps
FROM steps GROUP BY ALL ORDER BY ALL"""
STAGES = ("draft", "tree", "verify", "accept", "commit", "other")  # add up to the decode seconds
STEP_KEY = ["sequence", "step"]
Table = Any  # a pandas.DataFrame, whose types as inferred without stubs fit no operator


class Efficiency(NamedTuple):
    """How well verified nodes are spent; None where nothing was drafted."""

    accepted_per_verified: float | None  # drafted nodes: accepted / verified
    wasted_per_token: float  # drafted nodes verified in vain, per emitted token
    verified_per_step: float  # root included
    drafted_per_step: float  # root included


class StepCost(NamedTuple):
    """What a step costs, in plain decoding's steps of the same batch: speedup is the acceptance length over `step`."""

    step: float
    levels: float  # depth of the verified tree, on average; a drafter is asked about once per level
    draft_level: float | None  # of the drafter, its forwards included; the papers' c. None: nothing was drafted
    verify: float  # the target's forward and what leads to its logits
    rest: float  # growing, accepting, committing


class Calibration(NamedTuple):
    """Does a node come true as often as the drafter says? Of verified nodes whose parent was accepted."""

    bins: Table  # nodes, predicted (mean probability), realised (share accepted)
    error: float | None  # expected calibration error: mean over nodes of |predicted - realised| of their bin


# ---------------------------------------------------------------------------------------------------------- of steps


def efficiency(counts: Table) -> Efficiency | None:
    """None without steps. A step that the end of the text cut counts what it emitted."""
    weight = counts["steps"].to_numpy()
    if not weight.sum():
        return None
    emitted, verified, drafted = (
        float(counts[name].to_numpy() @ weight) for name in ("emitted", "verified_nodes", "drafted_nodes")
    )
    steps = float(weight.sum())
    accepted, offered = emitted - steps, verified - steps
    return Efficiency(
        accepted_per_verified=accepted / offered if offered else None,
        wasted_per_token=(offered - accepted) / emitted,
        verified_per_step=verified / steps,
        drafted_per_step=drafted / steps,
    )


def survival(counts: Table) -> pandas.Series:
    """Share of steps that accepted a node of at least this depth, from depth 1 to the deepest verified one."""
    weight = counts["steps"].to_numpy()
    emitted = counts["emitted"].to_numpy()
    depths = range(1, int(counts["depth"].to_numpy().max()) + 1) if len(counts) else range(0)
    shares = [float(weight[emitted > depth].sum() / weight.sum()) for depth in depths]
    return pandas.Series(shares, index=list(depths), dtype=float)


# ---------------------------------------------------------------------------------------------------------- of trees


def located(trees: Table) -> Table:
    """The table with each node's `depth`, `path_log_prob`, and whether its parent was accepted."""
    trees = trees.reset_index(drop=True)
    keys = pandas.MultiIndex.from_frame(trees[[*STEP_KEY, "node"]])
    parents = keys.get_indexer(pandas.MultiIndex.from_frame(trees[[*STEP_KEY, "parent"]]))
    has_parent = parents >= 0
    depth = numpy.zeros(len(trees), dtype=int)
    path = trees["log_prob"].astype(float).fillna(0.0).to_numpy().copy()
    own, frontier = path.copy(), has_parent.copy()
    while frontier.any():  # every pass settles one more level
        before = depth.copy()
        depth = numpy.where(has_parent, depth[parents] + 1, 0)
        path = numpy.where(has_parent, path[parents] + own, own)
        frontier = depth != before
    taken = trees["accepted"].to_numpy()[parents] & has_parent
    return trees.assign(depth=depth, path_log_prob=path, parent_accepted=taken)


def acceptance_by_depth(nodes: Table) -> Table:
    """Per depth: `joint`, share of all steps with an accepted node there; `conditional`, the same share of the steps
    that reached the depth above and verified a child there; `steps`, how many those are."""
    drafted = nodes[nodes["verified"] & (nodes["depth"] > 0)]
    num_steps = len(nodes[STEP_KEY].drop_duplicates())
    offered = drafted[drafted["parent_accepted"]].groupby("depth")
    steps = offered.apply(lambda rows: len(rows[STEP_KEY].drop_duplicates()), include_groups=False)
    accepted = offered["accepted"].sum()
    return pandas.DataFrame({"joint": accepted / num_steps, "conditional": accepted / steps, "steps": steps})


def acceptance_by_rank(nodes: Table) -> Table:
    """Of verified nodes whose parent was accepted: the share accepted (`rate`) and their number, by depth and rank."""
    offered = nodes[nodes["verified"] & nodes["parent_accepted"]]
    groups = offered.groupby(["depth", "rank"])["accepted"]
    return pandas.DataFrame({"rate": groups.mean(), "nodes": groups.size()}).reset_index()


def calibration(nodes: Table, num_bins: int) -> Calibration:
    """Bins of equal width in probability; empty ones are left out. The drafter's probabilities are at temperature 1."""
    offered = nodes[nodes["verified"] & nodes["parent_accepted"]]
    predicted = numpy.exp(offered["log_prob"].to_numpy(dtype=float))
    place = numpy.minimum((predicted * num_bins).astype(int), num_bins - 1)
    frame = pandas.DataFrame({"place": place, "predicted": predicted, "realised": offered["accepted"].to_numpy(float)})
    groups: Table = frame.groupby("place")
    bins = groups[["predicted", "realised"]].mean().assign(nodes=groups.size())
    if bins.empty:
        return Calibration(bins, None)
    gaps = (bins["predicted"] - bins["realised"]).abs()
    return Calibration(bins, float((gaps * bins["nodes"]).sum() / bins["nodes"].sum()))


def oracle_length(nodes: Table) -> float | None:
    """Acceptance length of the best choice of verified nodes in hindsight: the same drafted trees, each followed as far
    as the text that came out goes along. Over the achieved length it says what pruning cost."""
    if nodes.empty:
        return None
    lengths = [length for _, rows in nodes.groupby("sequence") for length in _oracle_steps(rows)]
    return float(numpy.mean(lengths))


def achieved_length(nodes: Table) -> float | None:
    """Tokens per step of the same trees, not cut at the end of the text."""
    steps = len(nodes[STEP_KEY].drop_duplicates())
    return float(nodes["accepted"].sum() / steps) if steps else None  # the accepted root stands for the bonus


def _oracle_steps(sequence: Table) -> list[int]:
    steps = [rows for _, rows in sequence.groupby("step")]
    taken = [rows[(rows["accepted"] & (rows["depth"] > 0)) | rows["bonus"]]["token"].tolist() for rows in steps]
    return [1 + _match(rows, chain.from_iterable(taken[index:])) for index, rows in enumerate(steps)]


def _match(rows: Table, text: Iterable[int]) -> int:
    """How many tokens of the text the drafted tree holds as a path from its root."""
    drafted = rows[~rows["bonus"]]
    children = {(p, t): n for p, t, n in zip(drafted["parent"], drafted["token"], drafted["node"], strict=True)}
    node, depth = 0, 0
    for token in text:
        if (node, token) not in children:
            break
        node, depth = children[node, token], depth + 1
    return depth


# -------------------------------------------------------------------------------------------------------- of records


def time_split(record: RunRecord) -> dict[str, float]:
    """Share of the decode seconds per stage, from the pass with stage clocks; empty without one."""
    total = record.stage_seconds.get("total")
    return {stage: record.stage_seconds.get(stage, 0.0) / total for stage in STAGES} if total else {}


def stage_cost(record: RunRecord) -> dict[str, float]:
    """Seconds per emitted token and stage: the timed pass's seconds, split as the pass with stage clocks says."""
    if not record.tokens_per_second:
        return {}
    return {stage: share / record.tokens_per_second for stage, share in time_split(record).items()}


def step_cost(record: RunRecord, counts: Table) -> StepCost | None:
    """The timed pass's seconds, split as the pass with stage clocks says; None without either."""
    split, weight = time_split(record), counts["steps"].to_numpy()
    if not split or not record.speedup or not record.acceptance_length or not weight.sum():
        return None
    step = record.acceptance_length / record.speedup
    levels = float(counts["depth"].to_numpy() @ weight / weight.sum())
    draft, verify = split["draft"] * step, split["verify"] * step
    return StepCost(step, levels, draft / levels if levels else None, verify, step - draft - verify)


def share_of_bound(record: RunRecord) -> float | None:
    """Speedup over acceptance length. 1.0 would be the memory roofline: drafting is free and a verifying forward costs
    what a plain one costs, as long as reading the weights hides its arithmetic."""
    if record.speedup is None or not record.acceptance_length:
        return None
    return record.speedup / record.acceptance_length
