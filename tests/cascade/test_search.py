"""The search for skip sets: the loop on scores that are known, and the entry point on a tiny model."""

import json
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from backend.errors import TreebenchError
from runners import search_layers
from runners.skip_search import SearchSettings, posterior, search
from tests.cascade.parts import target_of
from tests.entry_point import save_model, save_questions
from tests.parts import prompts

SETTINGS = SearchSettings(0.25, 80, 2, 2.5, 0.01, 300, 0.99, seed=0)


def test_search_finds_what_is_not_needed():
    useless = set(range(0, 24, 3))

    def score(mask: np.ndarray) -> float:
        assert mask.sum() == 6
        return float(np.mean([index in useless for index in np.flatnonzero(mask)]))

    guided = search(24, score, SETTINGS)
    blind = search(24, score, replace(SETTINGS, bayes_interval=1000))
    assert guided.score >= blind.score
    assert guided.score > guided.history[0][1]
    assert score(guided.mask) == guided.score
    assert guided.history == sorted(guided.history)


def test_search_ends_early():
    assert search(24, lambda mask: 1.0, SETTINGS).iterations == 0
    assert search(24, lambda mask: 0.5, replace(SETTINGS, patience=7)).iterations == 7
    with pytest.raises(TreebenchError, match=r"skip_ratio 0\.01 skips 0 of 24 blocks"):
        search(24, lambda mask: 1.0, replace(SETTINGS, skip_ratio=0.01))


def test_posterior_goes_through_what_was_tried():
    tried = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=bool)
    mean, deviation = posterior(tried, np.array([0.2, 0.8]), np.array([*tried, [1, 0, 1, 0]], dtype=bool), 1e-6)
    assert mean[:2] == pytest.approx([0.2, 0.8], abs=1e-3)
    assert 0.2 < mean[2] < 0.8
    assert deviation[2] > deviation[0]


def test_agreement_counts_the_targets_own_tokens():
    target = target_of()
    agreement = search_layers.Agreement(target, [prompts([7])[0], prompts([3])[0]], (), 8)
    assert agreement.of([]) == 1.0
    scores = {layer: agreement.of([layer]) for layer in range(4)}
    assert scores[0] < scores[2] <= 1.0
    assert agreement.of([2]) == scores[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    save_model(folder / "tiny", num_hidden_layers=4)
    save_questions(folder / "questions.jsonl")
    return folder


def call(folder, *arguments: str) -> int:
    GlobalHydra.instance().clear()
    target = ("target=hf", f"target.path={folder / 'tiny'}", "task=jsonl", f"task.path={folder / 'questions.jsonl'}")
    small = ("num_prompts=2", "answer_tokens=6", "iterations=6", f"output={folder / 'out'}")
    with patch.object(sys, "argv", ["search_layers.py", *target, *small, *arguments]):
        try:
            search_layers.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_entry_point_writes_a_set_with_its_provenance(folder):
    assert call(folder, "skip_ratio=0.5") == 0
    (file,) = (folder / "out").glob("*.json")
    result = json.loads(file.read_text())
    assert file.name == "skip_set-tiny-0.5.json"
    assert len(result["skip"]) == 2
    assert set(result["skip"]) <= {f"{layer}.{block}" for layer in (1, 2) for block in ("attention", "mlp")}
    assert result["agreement"] >= result["agreement_of_even_blocks"]
    assert {"questions", "settings", "environment", "provenance", "created"} <= set(result)


@pytest.mark.parametrize("bad", ["skip_ratio=0.01", "iterations=0", "task.path=nowhere.jsonl"])
def test_bad_input(folder, bad, capfd):
    assert call(folder, bad) == 2
