"""A sweep folder with known figures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runners.records import RunRecord
from runners.store import write_point

RECORD = RunRecord(
    status="ok",
    reason="",
    algorithm="eagle2",
    drafter="layer_skip",
    target="smollm2",
    task="humaneval",
    device="cpu",
    dtype="float32",
    batch_size=1,
    temperature=0.0,
    seed=0,
    num_prompts=8,
    new_tokens=512,
    steps=256,
    speedup=1.5,
    speedup_low=1.4,
    speedup_high=1.6,
    acceptance_length=2.0,
    tokens_per_second=45.0,
    baseline_tokens_per_second=30.0,
    identical_rate=1.0,
    config_hash="0123456789abcdef" * 4,
    git_commit="fedcba9876543210",
)


@pytest.fixture
def sweep_dir(tmp_path) -> Path:
    folder = tmp_path / "first_sweep"
    folder.mkdir()
    return folder


@pytest.fixture
def add(sweep_dir) -> Callable[..., RunRecord]:
    """Add a point that differs from RECORD in the given fields; its folder is `name`, or says what the point is."""

    def add_point(name: str = "", steps=None, trees=None, **choices) -> RunRecord:
        record = replace(RECORD, **choices)
        write_point(sweep_dir / (name or f"{record.algorithm}-{record.drafter}-{record.task}"), record, steps, trees)
        return record

    return add_point


@pytest.fixture
def small_sweep(sweep_dir, add) -> Path:
    """Three methods x two tasks; eagle2 is best on humaneval, chain on chat."""
    for task, chain, eagle2 in (("chat", 2.25, 1.75), ("humaneval", 1.125, 3.5)):
        add(algorithm="autoregressive", drafter="", task=task, speedup=1.0, acceptance_length=1.0)
        add(algorithm="chain", drafter="prompt_lookup", task=task, speedup=chain, acceptance_length=chain + 0.5)
        add(task=task, speedup=eagle2, acceptance_length=eagle2 + 0.5)
    return sweep_dir
