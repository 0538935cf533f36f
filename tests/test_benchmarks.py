"""The scripts that time pieces of a step still find what they time."""

import subprocess
import sys
from pathlib import Path

import pytest


def rows_of(*command: str) -> list[list[str]]:
    """The cells of the table that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]


@pytest.mark.parametrize("algorithm", ["eagle2", "dyspec"])  # likeliest children are searched, others are drawn
def test_growth_leaves_out_what_runs_over_the_vocabulary(algorithm):
    rows = rows_of("benchmarks.growth", "--steps", "8", "--only", algorithm)
    assert [row[0] for row in rows] == [algorithm] * 4
    for _, _, calls, whole, growth, _, _ in rows:
        assert float(calls) > 1
        assert 0 < float(growth) < 0.95 * float(whole)


def test_decisions_are_timed_at_sixty_nodes():
    rows = rows_of("benchmarks.decisions", "--steps", "8")
    assert [row[:2] for row in rows] == [["cast", "61"], ["cast_rate", "61"]]
    assert all(float(row[3]) > 0 for row in rows)


def test_a_draft_level_of_the_head_is_a_small_part_of_a_target_forward():
    rows = rows_of("benchmarks.draft_forward", "--rounds", "4", "dtype=float32")
    assert [row[0] for row in rows] == ["forwards", "whole"]
    inside, whole = ([float(cell) for cell in row[1:3]] for row in rows)
    assert all(0 < within <= all_of_it for within, all_of_it in zip(inside, whole, strict=True))
    assert inside[0] < inside[1] / 4
