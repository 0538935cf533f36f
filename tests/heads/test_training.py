"""Training a head: the loss is what decoding meets, and an interrupted run goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.checkpoints import write_safetensors
from backend.errors import TreebenchError
from backend.head_loading import load_head
from backend.heads import Eagle3Head, Rows, causal
from backend.loading import load_model
from runners.training.features import Batch, FeatureExtractor, batches
from runners.training.learners import HeadLearner, LanguageModelLearner
from runners.training.loop import Trainer
from runners.training.unroll import chosen_rows, unroll
from tests.heads.training import SETTINGS, parts, stream, trained

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.usefixtures("cache")]  # one worker sets its world up


def test_an_interrupted_training_has_the_same_curve(world, tmp_path):
    whole = trained(world, tmp_path / "whole", [12])
    interrupted = trained(world, tmp_path / "interrupted", [7, 12])  # falls back to the checkpoint of step 5
    assert interrupted == whole
    assert len(whole) == 12
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert "held_out" in whole[5]


def test_what_is_written_is_a_head_of_the_public_layout(world, tmp_path):
    trained(world, tmp_path / "head", [5])
    head, layers = load_head(str(tmp_path / "head"), parts(world)[2].model)
    assert isinstance(head, Eagle3Head)
    assert layers == (2, 3, 3)
    assert head.draft_tokens is not None
    assert head.draft_tokens.tolist() == sorted(set(head.draft_tokens.tolist()))
    assert int(head.t2d.sum()) == 64


def test_a_checkpoint_of_another_drafter_is_refused(world, tmp_path):
    write_safetensors(tmp_path / "checkpoint.safetensors", {"weight.other": torch.zeros(1)})
    loaded, corpus, _ = parts(world)
    learner = HeadLearner(loaded, corpus, world["settings"])
    trainer = Trainer(learner, {"training": world["settings"], "seed": 0, "dtype": "float32"}, tmp_path)
    with pytest.raises(TreebenchError, match="belongs to another drafter: give another output folder, or delete it"):
        trainer.resume()


@torch.no_grad()
def test_simulated_steps_are_those_of_decoding(world):
    """Step s of row i equals running the head over rows up to i and then over its own chain of s tokens."""
    loaded, corpus, target = parts(world)
    learner = HeadLearner(loaded, corpus, world["settings"])
    for parameter in learner.head.layer.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))  # what it adds starts at zero
    batch = FeatureExtractor(target, learner.layers)([corpus.window(5), corpus.window(8)[:40]])
    rows = chosen_rows(batch.tokens.shape[1], 3, 0.5, torch.Generator().manual_seed(1))
    results = unroll(learner.head, learner.embeddings, learner.teacher, batch, rows, 0.0)
    for step, result in enumerate(results):
        for place in (1, 3, len(rows[step]) - 1):
            row = int(rows[step][place])
            expected = chain_choice(learner, batch, row, step)
            wanted = int((batch.final[0, row + step + 1] @ learner.teacher.T).argmax())
            assert bool(result.agrees[0, place]) == (expected == wanted)


def chain_choice(learner: HeadLearner, batch: Batch, row: int, step: int) -> int:
    """The head's first choice after `step` tokens drafted behind row `row`, computed from scratch."""
    states = learner.head.fuse(batch.features[:1, : row + 1])
    for drafted in range(step + 1):
        count = row + 1 + drafted
        tokens = learner.embeddings(batch.tokens[:1, 1 : count + 1])
        output = learner.head(Rows(tokens, states, torch.arange(count)[None]), causal)
        states = torch.cat([states, output[:, -1:]], 1)
    return int(learner.head.logits(states[:, -1:]).argmax())


def test_a_small_language_model_learns_and_is_loadable(world, tmp_path):
    loaded, corpus, target = parts(world)
    learner = LanguageModelLearner(loaded, corpus, world["settings"])
    trainer = Trainer(learner, {"training": world["settings"], "seed": 0, "dtype": "float32"}, tmp_path)
    extract = FeatureExtractor(target, learner.layers)
    trainer.run(islice(stream(extract, corpus, 0), 12), [next(stream(extract, corpus, 50))])
    curve = [json.loads(line)["loss"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1] < curve[0]
    again = load_model(str(tmp_path), "float32", "cpu")
    assert again.model.config.hidden_size == 16


def test_a_language_models_chain_goes_on_where_the_text_does(world):
    loaded, corpus, target = parts(world)
    learner = LanguageModelLearner(loaded, corpus, world["settings"])
    batch = next(stream(FeatureExtractor(target, learner.layers), corpus, 0))
    results = learner.steps(batch, torch.Generator(), whole=True)
    assert len(results) == world["settings"]["eval_steps"] == 3
    picks = learner.model(input_ids=batch.tokens).logits.argmax(2)
    lm_head: Any = target.model.get_output_embeddings()
    wanted = lm_head(batch.final).argmax(2)
    for depth, result in enumerate(results):
        for row, length in enumerate(batch.lengths.tolist()):
            expected = (picks[row] == wanted[row])[depth:length]
            assert result.agrees[row, : len(expected)].equal(expected)
            assert result.real[row].sum() == len(expected)


def test_held_out_windows_are_never_trained_on(world):
    _, corpus, _ = parts(world)
    per_pass = len(corpus.indices(held_out=False)) // 2
    seen = {index for pair in islice(batches(corpus, 2, seed=0, start=0), per_pass) for index in pair}
    assert seen.isdisjoint(corpus.indices(held_out=True).tolist())
    assert len(seen) == 2 * per_pass
    assert len(corpus.indices(held_out=True)) > 0


@pytest.mark.slow
def test_training_survives_kill_9(world, tmp_path):
    """The command itself, killed in mid-training and started again."""
    command = [sys.executable, "-m", "runners.train_drafter", "target=hf", f"target.path={world['folder'] / 'model'}"]
    command += [f"training.corpus.sources=[{{path: {world['folder'] / 'chat.jsonl'}}}]", "dtype=float32"]
    chosen = ("steps", "batch_size", "eval_every", "checkpoint_every", "draft_vocab_size", "held_out_windows")
    command += [f"training.{name}={SETTINGS[name]}" for name in chosen] + ["training.corpus.window=48"]

    def curve(folder: Path) -> list[float]:
        path = folder / "curve.jsonl"
        return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.is_file() else []

    subprocess.run([*command, f"output={tmp_path / 'whole'}"], check=True, capture_output=True)
    killed = subprocess.Popen([*command, f"output={tmp_path / 'killed'}"], stdout=subprocess.DEVNULL)
    while len(curve(tmp_path / "killed")) < 6:
        time.sleep(0.05)
        assert killed.poll() is None or len(curve(tmp_path / "killed")) >= 6
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run([*command, f"output={tmp_path / 'killed'}"], check=True, capture_output=True)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
