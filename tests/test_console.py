"""Long jobs show how far they are: with a bar in a terminal, with lines now and then where there is none."""

import io

import pytest
from rich.console import Console

from runners import console
from runners.console import Meter, metered


@pytest.fixture
def written(monkeypatch):
    def use(is_terminal: bool) -> io.StringIO:
        text = io.StringIO()
        shown = Console(file=text, force_terminal=is_terminal, width=100, markup=False, color_system=None)
        monkeypatch.setattr(console, "console", shown)
        return text

    return use


def test_where_there_is_no_terminal_a_line_comes_once_in_a_while(written, monkeypatch):
    text, now = written(False), [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for _ in metered(range(10), "points", 10):
        now[0] += console.PAUSE / 4
    assert text.getvalue().splitlines() == ["points: 4 of 10", "points: 8 of 10"]


def test_a_short_job_says_nothing(written):
    text = written(False)
    assert list(metered("abc", "letters", 3)) == ["a", "b", "c"]
    assert text.getvalue() == ""


def test_a_terminal_gets_a_bar_with_the_latest_description(written):
    text = written(True)
    with Meter("points", 5, completed=2) as meter:
        meter.describe("point three")
        meter.advance()
        meter.progress.refresh()
    assert "point three" in text.getvalue()
    assert "3/5" in text.getvalue()


def test_the_meter_ends_with_a_job_that_fails(written):
    written(True)
    with pytest.raises(ValueError, match="broken"), Meter("points", 5) as meter:
        raise ValueError("broken")
    assert not meter.progress.live.is_started
