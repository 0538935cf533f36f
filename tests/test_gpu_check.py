"""The check of a CUDA machine: what it says without one, and that a failed step spoils neither bundle nor others."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu_check import NO_GPU, Step, main, run_steps, steps
from benchmarks.kernels import Attention, Compaction, Rejection


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_3(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert main() == NO_GPU == 3
    assert capsys.readouterr().err == "gpu-check: torch finds no CUDA device here, so there is nothing to check\n"


def test_a_failed_step_is_noted_and_the_others_run(tmp_path):
    fails, passes = (Step(name, (sys.executable, "-c", code)) for name, code in (("a", "1/0"), ("b", "print(7)")))
    assert run_steps([fails, passes], tmp_path) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [done["exit_status"] for done in summary.values()] == [1, 0]
    assert "ZeroDivisionError" in (tmp_path / "a.log").read_text()
    assert (tmp_path / "b.log").read_text() == "7\n"


def test_steps_are_commands_of_this_project(tmp_path):
    names = [step.name for step in steps(tmp_path)]
    assert names[:4] == ["environment", "kernels", "lossless", "kernel_times"]
    assert names[-2:] == ["quick", "report"]


def test_the_makefile_has_the_target():
    recipe = subprocess.run(["make", "-n", "gpu-check"], capture_output=True, text=True, check=True).stdout
    assert "benchmarks.gpu_check" in recipe


def test_a_prefix_is_read_once_where_rows_fit_into_one_tile():
    least, moved = Attention(batch=1, prefix=32768, width=16).bytes(132)
    keys = 2 * 8 * 128 * 2 * (32768 + 16)
    assert least > keys
    assert moved < 1.2 * least  # the partial sums of the splits come on top
    four_tiles = Attention(batch=1, prefix=32768, width=64).bytes(132)
    assert 3.5 < four_tiles.moved / four_tiles.least < 5


def test_bytes_never_fall_below_the_least():
    for case in (Attention(1, 1, 1), Attention(8, 4096, 64), Compaction(2, 3), Rejection(1, 64, 4, 6)):
        least, moved = case.bytes(132)
        assert 0 < least <= moved
