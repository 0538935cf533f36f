"""Shipped sweeps: each composes, says how to run it, and its settings win over the defaults."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from runners import benchmark
from runners.benchmark import to_plain
from runners.point import check
from runners.prompts import load_questions
from runners.store import config_hash

CONF = Path(__file__).parent.parent / "conf"
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_settings_of_a_sweep_win(sweep):
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("benchmark", [f"sweep={sweep}"]))
    for key in settings:
        if key != "hydra":
            assert config[key] == settings[key], key


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_choice_of_a_sweep_exists(sweep):
    settings: Any = OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml")
    params = settings.hydra.sweeper.params
    groups = {group: str(choices).split(",") for group, choices in params.items() if (CONF / str(group)).is_dir()}
    assert "algorithm" in groups
    for group, choices in groups.items():
        for choice in choices:
            assert (CONF / str(group) / f"{choice}.yaml").exists(), f"{group}={choice}"


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_tasks_of_a_sweep_have_as_many_prompts_as_it_asks_for(sweep):
    settings: Any = OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml")
    largest = max(int(size) for size in str(settings.hydra.sweeper.params.get("batch_size", 1)).split(","))
    settings = OmegaConf.merge({"batch_size": largest}, settings)
    for name in settings.hydra.sweeper.params.task.split(","):
        loaded: Any = OmegaConf.load(CONF / "task" / f"{name}.yaml")
        task = to_plain(loaded)
        if task["source"] in ("human_eval", "packaged"):  # others need a download, or are larger
            assert len(load_questions(task, settings.num_prompts, 0)) == settings.num_prompts


def composed(sweep: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Its points, as the entry point hands them to the launcher."""
    seen: list[Any] = []
    GlobalHydra.instance().clear()
    arguments = patch.object(sys, "argv", ["benchmark.py", f"sweep={sweep}", "output=sweep"])
    collected = patch.object(benchmark, "run_sweep", lambda points: seen.extend(points) or 0)
    with arguments, collected, pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 0, capsys.readouterr().err
    return seen


@pytest.mark.parametrize(("sweep", "count"), [("dyspec_budget", 14)])
def test_every_point_of_a_sweep_is_valid_and_there_is_no_other(sweep, count, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    points = composed(sweep, capsys)
    assert len({config_hash(point) for point in points}) == len(points) == count
    for point in points:
        check(point)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_point_of_every_sweep_is_valid(sweep, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    points = composed(sweep, capsys)
    assert len({config_hash(point) for point in points}) == len(points)
    for point in points:
        check(point)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_says_how_to_run_it(sweep):
    assert f"python -m runners.benchmark sweep={sweep}" in (CONF / "sweep" / f"{sweep}.yaml").read_text()
