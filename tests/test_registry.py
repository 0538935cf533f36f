"""A part's options: the keyword-only parameters of its constructor, and with `**options` the inherited ones."""

from typing import Any

import pytest

from backend.errors import TreebenchError
from backend.registry import Registry, parameters


class Above:
    def __init__(self, drafter: str, *, width: int, rows: str) -> None:
        self.settings = (drafter, width, rows)


class Below(Above):
    def __init__(self, drafter: str, costs: float, *, memory: float, **options: Any) -> None:
        super().__init__(drafter, **options)
        self.memory = (memory, costs)


class Closed(Above):
    def __init__(self, drafter: str, *, memory: float) -> None:
        super().__init__(drafter, width=1, rows=str(memory))


@pytest.fixture
def registry() -> Registry[Any]:
    registry: Registry[Any] = Registry("part", "algorithms")
    for name, part in (("below", Below), ("closed", Closed)):
        registry.register(name)(part)
    return registry


def test_options_of_the_class_above_count_where_they_are_handed_on(registry):
    registry.check("below", {"memory": 0.5, "width": 3, "rows": "own"})
    registry.check("closed", {"memory": 0.5})
    assert set(parameters(Below)) == {"drafter", "costs", "memory", "width", "rows"}
    assert set(parameters(Closed)) == {"drafter", "memory"}


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("below", {"memory": 0.5, "width": "wide", "rows": "own"}, "part.width is 'wide'; below needs a whole number"),
        ("below", {"memory": 0.5, "width": 3}, "part below needs the option 'rows'"),
        ("below", {"memory": 0.5, "widht": 3, "rows": "own"}, "has no option 'widht' (did you mean 'width'?)"),
        ("below", {"memory": 0.5, "width": 3, "rows": "own", "costs": 1.0}, "part below has no option 'costs'"),
        ("closed", {"memory": 0.5, "width": 3}, "part closed has no option 'width'; it has memory"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(registry, name, options, line):
    with pytest.raises(TreebenchError) as refusal:
        registry.check(name, options)
    assert line in str(refusal.value)
