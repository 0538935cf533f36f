"""Training that goes on from published weights, whose checkpoint is gone."""

import json
import shutil

import pytest

from backend.errors import TreebenchError
from runners.store import LEARNING_CURVE_FILE, SITTINGS_FILE
from runners.training.learners import HeadLearner, LanguageModelLearner
from tests.heads.training import trained

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.usefixtures("cache")]


@pytest.mark.parametrize("make", [HeadLearner, LanguageModelLearner])
def test_published_weights_are_trained_on(world, tmp_path, make):
    """Steps and tokens count on, the loss begins where it was, and an interruption changes nothing."""
    first = trained(world, tmp_path / "drafter", [5], make)
    sitting = {"step": 0, "config": {"training": {"steps": 5}}}
    (tmp_path / "drafter" / SITTINGS_FILE).write_text(json.dumps([sitting]))
    (tmp_path / "drafter" / LEARNING_CURVE_FILE).write_text(f"tokens,loss\n1,9.5\n{first[-1]['tokens']},0.5\n")
    shutil.copytree(tmp_path / "drafter", tmp_path / "twice")
    curves = []
    for folder, stops in (("drafter", [12]), ("twice", [11, 12])):
        for name in ("checkpoint.safetensors", "curve.jsonl"):
            (tmp_path / folder / name).unlink()
        curves.append(trained(world, tmp_path / folder, stops, make))
    once, twice = curves
    assert once == twice, "also where it was interrupted"
    assert [line["step"] for line in once] == list(range(6, 13))
    assert once[0]["tokens"] > first[-1]["tokens"]
    assert once[0]["loss"] == pytest.approx(first[-1]["loss"], rel=0.15)


def test_a_drafter_of_unknown_training_is_not_trained_on(world, tmp_path):
    trained(world, tmp_path / "head", [5])
    (tmp_path / "head" / "checkpoint.safetensors").unlink()
    with pytest.raises(TreebenchError, match="head holds a drafter of unknown training: give another output folder"):
        trained(world, tmp_path / "head", [12])
