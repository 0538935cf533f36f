"""Every file of conf/ composes to something that can be run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from runners.benchmark import CONF, to_plain
from runners.point import check

ALGORITHMS = sorted(path.stem for path in Path(CONF, "algorithm").glob("*.yaml"))


def composed(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("benchmark", list(overrides)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_file_is_complete(algorithm):
    check(composed(f"algorithm={algorithm}"))


@pytest.mark.parametrize("algorithm", ["chain", "fixed_tree", "specinfer", "sequoia", "dyspec"])
def test_drafts_are_drawn_under_the_sampling_settings_of_the_run(algorithm):
    config = composed(f"algorithm={algorithm}", "temperature=0.7", "top_k=5", "top_p=0.9")
    assert (config["algorithm"]["draft_top_k"], config["algorithm"]["draft_top_p"]) == (5, 0.9)
    other = composed(f"algorithm={algorithm}", "top_k=5", "algorithm.draft_top_k=null")
    assert other["algorithm"]["draft_top_k"] is None
