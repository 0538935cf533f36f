"""Kernels compiled ahead of time, in a process without the interpreter, stay within the limits of their tiles."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernel_resources import SHARED_LIMIT, Resources, as_markdown
from benchmarks.kernel_variants import variants

FINE = Resources("3.7.1", 80, "kernel", "variant", 8, 255, 0, SHARED_LIMIT, 64)


def test_limits_name_what_breaks_them():
    assert FINE.broken_limits() == []
    assert FINE._replace(spills=2).broken_limits() == ["2 spills"]
    assert FINE._replace(shared=SHARED_LIMIT + 1).broken_limits() == ["101377 bytes of shared memory"]
    assert FINE._replace(warps=16).broken_limits() == ["255 registers in 16 warps"]


def test_the_table_has_a_row_per_variant_and_a_section_per_version():
    text = as_markdown([FINE, FINE._replace(architecture=90, registers=7), FINE._replace(triton="3.6.0"),
                        FINE._replace(triton="3.6.0", architecture=90)])  # fmt: skip
    assert text.count("## Triton") == 2
    assert "0 of 4 kernels break one." in text
    assert "| kernel | variant | 8 | 255 regs, 0 spills, 101,376 B, 64 MMA | 7 regs, 0 spills" in text


def test_every_kernel_and_every_head_size_is_in_the_table():
    found = list(variants())
    kernels = {variant.kernel.__name__ for variant in found}
    assert kernels == {"attend_split", "attend_merge", "build_words", "follow_picks", "walk_nodes", "move_rows"}
    sizes = {variant.constants["SIZE"] for variant in found if "GROUP" in variant.constants}
    assert sizes == {64, 80, 96, 128, 192, 256}
    for variant in found:
        assert list(variant.signature) == list(variant.kernel.arg_names)


@pytest.mark.slow
@pytest.mark.kernels
def test_every_variant_compiles_within_its_limits(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--output", str(tmp_path / "kernels.md")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "sm_90" in (tmp_path / "kernels.md").read_text()
