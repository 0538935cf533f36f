"""Three steps of one sequence, small enough to check by hand.

Step 0 drafts root(10) -> 11 (p 0.55), 12 (0.25); 11 -> 13 (0.8); 13 -> 14 (0.9, right but not verified). The target
takes 11 and 13 and adds 14. Step 1 takes the second child. Step 2 takes none.
"""

from math import log

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
