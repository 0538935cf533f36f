"""Drafted trees: three steps of one sequence, small enough to check by hand, and large random ones.

Step 0 drafts root(10) -> 11 (p 0.55), 12 (0.25); 11 -> 13 (0.8); 13 -> 14 (0.9, right but not verified). The target
takes 11 and 13 and adds 14. Step 1 takes the second child. Step 2 takes none.
"""

from collections import Counter
from math import log
from random import Random

import pandas

from runners.records import TREE_COLUMNS


def node(step, number, parent, rank, token, prob=None, verified=False, accepted=False, bonus=False) -> tuple:
    score = None if prob is None else log(prob)
    return (0, step, number, parent, rank, token, f"t{token}", score, verified, accepted, bonus)


ROWS = [
    node(0, 0, -1, 0, 10, verified=True, accepted=True),
    node(0, 1, 0, 0, 11, 0.55, verified=True, accepted=True),
    node(0, 2, 0, 1, 12, 0.25, verified=True),
    node(0, 3, 1, 0, 13, 0.8, verified=True, accepted=True),
    node(0, 4, 3, 0, 14, 0.9),
    node(0, 5, 3, 1, 14, bonus=True),
    node(1, 0, -1, 0, 14, verified=True, accepted=True),
    node(1, 1, 0, 0, 15, 0.6, verified=True),
    node(1, 2, 0, 1, 16, 0.4, verified=True, accepted=True),
    node(1, 3, 2, 0, 17, bonus=True),
    node(2, 0, -1, 0, 17, verified=True, accepted=True),
    node(2, 1, 0, 0, 18, 0.3, verified=True),
    node(2, 2, 0, 1, 19, bonus=True),
]
TREES = pandas.DataFrame(ROWS, columns=list(TREE_COLUMNS)).astype({"log_prob": "float32"})


def large_trees(num_nodes: int, num_steps: int, sequence: int = 0, seed: int = 0) -> pandas.DataFrame:
    """Steps with random trees of this size, most of whose nodes are verified; the likeliest child comes true."""
    random = Random(seed)
    rows = []
    for step in range(num_steps):
        parents, accepted, seen = [-1], {0}, Counter({-1: 1})
        ranks, probs = [0], [1.0]
        for number in range(1, num_nodes):
            parents.append(max(0, number - 1 - int(random.expovariate(0.1))))
            ranks.append(seen[parents[-1]])
            seen[parents[-1]] += 1
            probs.append(0.9 * 0.5 ** (ranks[-1] + 1) + 0.01)
            if ranks[-1] == 0 and parents[-1] in accepted and len(accepted) < 6:
                accepted.add(number)
        words = [f" w{random.randrange(300)}" for _ in range(num_nodes + 1)]
        for number in range(num_nodes):
            score = log(probs[number]) if number else None
            verified = number in accepted or probs[number] > 0.1
            fields = (parents[number], ranks[number], number, words[number], score, verified, number in accepted, False)
            rows.append((sequence, step, number, *fields))
        last = max(accepted)
        rows.append((sequence, step, num_nodes, last, seen[last], num_nodes, words[-1], None, False, False, True))
    return pandas.DataFrame(rows, columns=list(TREE_COLUMNS)).astype({"log_prob": "float32"})
