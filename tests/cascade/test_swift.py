"""SWIFT's comb: how wide where, and where it ends."""

import pytest

from backend.errors import TreebenchError
from tests.algorithms.parts import TableDrafter, assert_closed, grow, make, paths_of, same_everywhere


@pytest.mark.parametrize(
    ("law", "paths"),
    [
        ((0.96, 0.02, 0.01, 0.01), [(0,), (0, 0), (0, 0, 0)]),
        ((0.6, 0.3, 0.06, 0.04), [(0,), (1,), (0, 0), (0, 1), (0, 0, 0), (0, 0, 1)]),
        ((0.3, 0.29, 0.21, 0.2), [(0,), (1,), (2,)]),
    ],
)
def test_swift_draws_combs_and_stops_when_unsure(law, paths):
    draft = grow(
        make("swift", TableDrafter(same_everywhere(*law)), depth=3, stop=0.5, bounds=[0.9, 0.5], widths=[1, 2, 3])
    )
    assert_closed(draft)
    assert paths_of(draft) == paths


@pytest.mark.parametrize("options", [{"bounds": [0.5, 0.9]}, {"widths": [1]}, {"widths": [1, 0, 1]}])
def test_swift_settings(options):
    with pytest.raises(TreebenchError, match=r"must fall and swift\.widths"):
        make("swift", TableDrafter(same_everywhere(1.0)), **{"bounds": [0.9, 0.5], "widths": [1, 2, 3]} | options)
