"""The checks table says what the record says, and blanks what it does not."""

import pytest

from analysis.checks import checks_table
from analysis.load import load_sweep


@pytest.fixture
def row_of(sweep_dir, add):
    def row(**choices) -> dict[str, str]:
        add(**choices)
        return checks_table(load_sweep(sweep_dir).points).iloc[0].to_dict()

    return row


def test_greedy_figures(row_of):
    section = {"argmax_rate": 0.984, "largest_gap": 0.125, "beyond_near_tie": 0}
    row = row_of(
        losslessness={"method": section, "numeric_events": {"invalid_rows": 2, "vanished_residuals": 1}},
        stage_seconds={"forward": 9.0, "total": 10.0},
        identical_rate=0.5,
        acceptance="greedy",
    )
    assert row["method"] == "98.4%, 0.12"
    assert row["baseline"] == row["control"] == "-"
    assert (row["events"], row["outside"], row["identical"], row["rule"]) == ("3", "10.0%", "50.0%", "greedy")


def test_sampled_figures(row_of):
    assert row_of(losslessness={"method": {"z": -5.25}})["method"] == "z -5.2"


def test_a_record_without_checks_has_blanks(row_of):
    row = row_of(losslessness={}, stage_seconds={})
    assert [row[name] for name in ("baseline", "method", "control", "events", "outside")] == ["-"] * 5
