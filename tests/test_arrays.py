"""Compiled loops: they give what Python gives, and do without a place to keep their code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import loops
from backend.tree import NO_NODE

VALUES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=3).map(
    lambda rows: np.array([(row * 8)[:8] for row in rows], dtype=np.float64)
)
SCRIPT = """
import sys
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
sys.path.insert(0, sys.argv[1])
from algorithms.loops import best_places
import numpy as np
print(best_places(np.array([[1.0, 3.0, 2.0]]), 2).tolist())
"""


@settings(deadline=None)  # the first call compiles
@given(VALUES, st.integers(0, 9))
def test_best_places_and_best_first_agree_with_sorting(values, count):
    order = (-values).argsort(axis=1, kind="stable")[:, :count]
    assert loops.best_places(values, count).tolist() == np.sort(order, axis=1).tolist()
    nodes, ordered, sums = loops.best_first(values, count, 3)
    assert nodes.tolist() == (order + 3).tolist()
    assert ordered.tolist() == np.take_along_axis(values, order, 1).tolist()
    assert sums.tolist() == ordered.cumsum(1).tolist()


def test_first_of_each_keeps_what_its_group_wants_and_what_is_worth_anything():
    nodes, values = np.array([[4, 2, 3], [3, 1, 2]]), np.array([[0.9, 0.5, 0.1], [0.8, 0.0, 0.0]])
    assert loops.first_of_each(nodes, values, np.array([2])).tolist() == [[4, 2], [3, NO_NODE]]
    assert loops.first_of_each(nodes, values, np.array([0, 3])).tolist() == [[NO_NODE] * 3, [3, NO_NODE, NO_NODE]]
    assert loops.first_of_each(nodes, values, np.array([0])).tolist() == [[NO_NODE], [NO_NODE]]


def test_compiled_loops_need_no_place_to_keep_their_code():
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", SCRIPT, str(root)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[[1, 2]]"
