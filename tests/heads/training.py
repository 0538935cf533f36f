"""A tiny target's training, stopped and begun again as often as a test wants."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from backend.loading import load_model
from backend.model import TreeModel
from runners.training.corpus import Corpus, load_corpus
from runners.training.features import FeatureExtractor, batches
from runners.training.learners import HeadLearner, LanguageModelLearner
from runners.training.loop import Trainer

SETTINGS: dict[str, Any] = {
    "kind": "eagle3",
    "fit_batches": 4,
    "steps": 12,
    "batch_size": 2,
    "threads": 1,
    "feature_workers": 1,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "decay_steps": 4,
    "weight_decay": 0.01,
    "clip": 1.0,
    "average": 0.9,
    "unroll_steps": 3,
    "unroll_fraction": 0.5,
    "eval_steps": 3,
    "step_weight": 0.8,
    "regression": 0.0,
    "draft_vocab_size": 64,
    "held_out_windows": 2,
    "eval_every": 6,
    "checkpoint_every": 5,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "softmax_frequent": 16,
    "softmax_sampled": 4096,
    "passes": 1,
}


def parts(world: dict[str, Any]) -> tuple[Any, Corpus, TreeModel]:
    loaded = load_model(str(world["folder"] / "model"), "float32", "cpu")
    return loaded, load_corpus(world["settings"]["corpus"], loaded.tokenizer), TreeModel(loaded.model)


def stream(extract: FeatureExtractor, corpus: Corpus, start: int) -> Any:
    for indices in batches(corpus, 2, seed=0, start=start):
        yield extract([corpus.window(index) for index in indices])


def trained(
    world: dict[str, Any],
    folder: Path,
    stops: list[int],
    make: type[HeadLearner] | type[LanguageModelLearner] = HeadLearner,
) -> list[dict[str, Any]]:
    """Train to each of `stops` in turn, every time with everything built anew; the loss curve."""
    folder.mkdir(exist_ok=True)
    for stop in stops:
        torch.manual_seed(0)
        loaded, corpus, target = parts(world)
        learner = make(loaded, corpus, world["settings"])
        trainer = Trainer(learner, {"training": world["settings"], "seed": 0, "dtype": "float32"}, folder)
        trainer.resume()
        extract = FeatureExtractor(target, learner.layers)
        if trainer.step == trainer.begun:
            learner.start(list(islice(stream(extract, corpus, 0), 4)))
            trainer.restart_average()
        held_out = [extract([corpus.window(int(index)) for index in corpus.indices(held_out=True)[:2]])]
        trainer.run(islice(stream(extract, corpus, trainer.step), stop - trainer.step), held_out)
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
