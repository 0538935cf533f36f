"""In which order the training text comes, and how often its features are computed."""

from itertools import islice, pairwise

import pytest

from runners.training.features import DELAY, recall, visits


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_batch_comes_once_per_pass_and_a_later_start_changes_nothing(lanes):
    places: dict[int, list[int]] = {}
    for place, number in enumerate(order := list(islice(visits(lanes - 1, lanes, 3, 0), 9 * DELAY))):
        places.setdefault(number, []).append(place)
    assert list(places) == [index * lanes + lanes - 1 for index in range(len(places))]  # fresh text in its order
    assert [number for number in places if len(places[number]) != 3] == list(places)[-2 * DELAY :]
    again = [second - first for found in places.values() for first, second in pairwise(found)]
    assert DELAY <= min(again) <= max(again) <= 3 * DELAY + 1  # fewer visits lie between at the start
    for start in (1, DELAY, 3 * DELAY + 5):
        assert list(islice(visits(lanes - 1, lanes, 3, start), 20)) == order[start : start + 20]


def test_one_pass_is_the_order_of_the_text():
    assert list(islice(visits(1, 2, 1, 3), 40)) == list(range(7, 87, 2))


@pytest.mark.parametrize("start", [0, 1500])
def test_once_underway_each_batch_is_made_once(start):
    """Also in a stream that starts in the middle, whose first repeats are not kept."""
    kept: dict[int, int] = {}
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in islice(visits(0, 1, 3, start), 3000):
        assert recall(kept, number, 1 + 2 * DELAY, make) == number
        assert len(kept) <= 1 + 2 * DELAY
    late = made[-500:]
    assert len(set(late)) == len(late)
    assert late == list(range(late[0], late[0] + 500))
