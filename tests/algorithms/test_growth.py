"""Steps that algorithms share: choosing the best places and packing nodes, against plain Python."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.growth import best_places, compact
from backend.tree import NO_NODE


@given(
    rows=st.integers(1, 3).flatmap(
        lambda batch: st.integers(0, 12).flatmap(
            lambda n: st.lists(
                st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=n, max_size=n),
                min_size=batch,
                max_size=batch,
            )
        )
    ),
    count=st.integers(0, 14),
)
@settings(max_examples=150, deadline=None)
def test_best_places_are_a_stable_sorts(rows, count):
    found = best_places(np.array(rows, np.float32).reshape(len(rows), -1), count)
    for row, places in zip(rows, found.tolist(), strict=True):
        assert places == sorted(sorted(range(len(row)), key=lambda place: -row[place])[:count])


@given(st.lists(st.lists(st.sampled_from([NO_NODE, 0, 3, 5, 8, 9]), min_size=5, max_size=5), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_compact_sorts_and_drops_columns_that_nobody_needs(rows):
    expected = [sorted(node for node in row if node != NO_NODE) for row in rows]
    width = max(map(len, expected))
    found = compact(torch.tensor(rows))
    assert found.tolist() == [row + [NO_NODE] * (width - len(row)) for row in expected]
