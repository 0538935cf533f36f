"""Every file of conf/ composes to something that can be run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from backend.errors import TreebenchError
from backend.head_loading import load_head
from backend.loading import load_target
from runners.benchmark import CONF, to_plain
from runners.point import check
from runners.training.learners import LEARNERS
from tests.tiny_models import tiny_llama

ALGORITHMS = sorted(path.stem for path in Path(CONF, "algorithm").glob("*.yaml"))


def composed(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("benchmark", list(overrides)))


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(CONF, "training").glob("*.yaml")))
def test_every_training_belongs_to_a_drafter_and_a_learner(name):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = to_plain(compose("train_drafter", [f"drafter={name}"]))
    assert config["training"]["kind"] in LEARNERS
    assert config["output"] == config["drafter"]["path"] == f"results/drafters/{name}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_file_is_complete(algorithm):
    check(composed(f"algorithm={algorithm}"))


@pytest.mark.parametrize("algorithm", ["chain", "fixed_tree", "specinfer", "sequoia", "dyspec"])
def test_drafts_are_drawn_under_the_sampling_settings_of_the_run(algorithm):
    config = composed(f"algorithm={algorithm}", "temperature=0.7", "top_k=5", "top_p=0.9")
    assert (config["algorithm"]["draft_top_k"], config["algorithm"]["draft_top_p"]) == (5, 0.9)
    other = composed(f"algorithm={algorithm}", "top_k=5", "algorithm.draft_top_k=null")
    assert other["algorithm"]["draft_top_k"] is None


PAIRS = {  # what papers measure
    "eagle_vicuna_7b": ["vicuna_7b"],
    "eagle_vicuna_13b": ["vicuna_13b"],
    "eagle3_vicuna_13b": ["vicuna_13b"],
    "eagle_llama31_8b": ["llama31_8b"],
    "eagle3_llama31_8b": ["llama31_8b"],
    "eagle3_llama33_70b": ["llama33_70b"],
    "eagle3_deepseek_r1_8b": ["deepseek_r1_8b"],
    "eagle_qwen2_7b": ["qwen2_7b"],
    "eagle3_qwen3_8b": ["qwen3_8b"],
    "llama_68m": ["llama2_7b", "llama2_13b", "llama2_70b"],
}


@pytest.mark.parametrize(("drafter", "target"), [(d, t) for d, targets in PAIRS.items() for t in targets])
def test_pairs_of_the_papers_compose_and_say_what_to_download(drafter, target, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = composed(f"target={target}", f"drafter={drafter}", "algorithm=chain")
    check(config)
    with pytest.raises(TreebenchError, match=f"run `hf download {config['target']['path']}`"):
        load_target(config["target"])
    if config["drafter"]["kind"] == "eagle_head":
        with pytest.raises(TreebenchError, match=f"run `hf download {config['drafter']['path']}`"):
            load_head(config["drafter"]["path"], tiny_llama())
