"""Shipped sweeps: each composes, says how to run it, and its settings win over the defaults."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parent.parent / "conf"
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_settings_of_a_sweep_win(sweep):
    settings: Any = OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("benchmark", [f"sweep={sweep}"])
    for key in settings:
        if key != "hydra":
            assert config[key] == settings[key], key


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_choice_of_a_sweep_exists(sweep):
    settings: Any = OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml")
    params = settings.hydra.sweeper.params
    for group, choices in params.items():
        for choice in str(choices).split(","):
            if (CONF / str(group)).is_dir():  # else it is a setting
                assert (CONF / str(group) / f"{choice}.yaml").exists()


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_says_how_to_run_it(sweep):
    assert f"python -m runners.benchmark sweep={sweep}" in (CONF / "sweep" / f"{sweep}.yaml").read_text()
