"""Drafted trees of a few prompts as a table with a row per node: TREE_COLUMNS in `runners/records.py`."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pandas

from backend.tree import NO_NODE, Accepted, Draft
from runners.measure import Pair
from runners.records import TREE_COLUMNS

KINDS = {"string": "object", "bool": "bool"}


def trees_table(pairs: Sequence[Pair], tokenizer: Any) -> pandas.DataFrame:
    """All steps of the sequences that the pass with stage clocks has traced."""

    @cache
    def text_of(token: int) -> str:
        return str(tokenizer.decode([token]))

    rows, first = [], 0
    for pair in pairs:
        for row in range(len(pair.requests)) if pair.traced else ():
            rows += [(first + row, *node) for node in _nodes_of(pair, row)]
        first += len(pair.requests)
    names = [name for name in TREE_COLUMNS if name != "text"]
    table = pandas.DataFrame(rows, columns=names)
    table.insert(list(TREE_COLUMNS).index("text"), "text", [text_of(int(token)) for token in table["token"]])
    return table.astype({name: KINDS.get(kind, kind) for name, kind in TREE_COLUMNS.items()})


def _nodes_of(pair: Pair, row: int) -> Iterator[tuple]:
    assert pair.traced is not None
    for step, ((draft, accepted), emitted) in enumerate(zip(pair.traced.steps, pair.traced.emitted, strict=True)):
        if emitted[row]:
            yield from ((step, *node) for node in step_nodes(draft, accepted, row))


def step_nodes(draft: Draft, accepted: Accepted, row: int) -> list[tuple]:
    """One step of one row: columns from `node` on, without the text. The bonus is the last."""
    tokens, parents, log_probs = (
        values[row].tolist() for values in (draft.tree.tokens, draft.tree.parents, draft.tree.log_probs)
    )
    verified = set(draft.nodes[row].tolist()) - {NO_NODE}
    path = [node for node in accepted.path[row].tolist() if node != NO_NODE]
    nodes, children = [], [0] * (len(tokens) + 1)
    for node, (token, parent, log_prob) in enumerate(zip(tokens, parents, log_probs, strict=True)):
        if node and parent == NO_NODE:
            continue  # a place that this row does not have
        rank, children[parent] = children[parent], children[parent] + 1
        score = log_prob if node else None
        nodes.append((node, parent, rank, token, score, node in verified, node in path, False))
    bonus = (len(tokens), path[-1], children[path[-1]], int(accepted.bonus[row]), None, False, False, True)
    return [*nodes, bonus]
