"""Trains a drafter for a target: `python -m runners.train_drafter --help`."""

import json
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from backend.errors import TreebenchError
from backend.loading import check_target, load_target
from backend.memory import keep_freed_memory
from backend.model import TreeModel
from runners.benchmark import CONF, to_plain
from runners.cli import run_hydra
from runners.store import SITTINGS_FILE, write_bytes
from runners.summary import created_now, git_commit
from runners.training.corpus import Corpus, load_corpus
from runners.training.features import Batch, FeatureExtractor, FeatureStream, batches, loader
from runners.training.learners import LEARNERS, Learner
from runners.training.loop import Trainer


def train(config: Mapping[str, Any]) -> None:
    """Train until `training.steps`, from the output folder's checkpoint or published weights if there are any."""
    settings = config["training"]
    check_target(config["target"])
    if settings["kind"] not in LEARNERS:
        raise TreebenchError(f"training.kind is {settings['kind']!r}: choose one of {', '.join(LEARNERS)}")
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    torch.manual_seed(config["seed"])
    loaded = load_target(config["target"], config["dtype"], config["device"]["torch_device"])
    target = TreeModel(loaded.model)
    corpus = load_corpus(settings["corpus"], loaded.tokenizer)
    learner: Learner = LEARNERS[settings["kind"]](loaded, corpus, settings)
    folder = Path(config["output"])
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(learner, config, folder)
    trainer.resume()
    extract = FeatureExtractor(target, learner.layers)
    if trainer.step == trainer.begun:
        order = islice(batches(corpus, settings["batch_size"], config["seed"], 0), settings["fit_batches"])
        learner.start([extract([corpus.window(index) for index in indices]) for indices in order])
        trainer.restart_average()
    held_out = held_out_batches(extract, corpus, settings)
    note_sitting(folder / SITTINGS_FILE, config, trainer.step, loaded.provenance)
    stream = loader(FeatureStream(config, learner.layers, trainer.step))
    trainer.run(iter(stream), held_out)


def note_sitting(path: Path, config: Mapping[str, Any], step: int, target: str) -> None:
    """Add how the training goes on from `step`: for the drafter's model card."""
    known = json.loads(path.read_text()) if path.is_file() else []
    command = " ".join(
        ["python -m runners.train_drafter", *(word for word in sys.argv[1:] if not word.startswith("output="))]
    )
    sitting = {"step": step, "target": target, "command": command, "git_commit": git_commit(), "created": created_now()}
    sitting["config"] = {name: value for name, value in config.items() if name != "output"}
    kept = [earlier for earlier in known if earlier["step"] < step]
    write_bytes(path, json.dumps([*kept, sitting], indent=1).encode())


def held_out_batches(extract: FeatureExtractor, corpus: Corpus, settings: Mapping[str, Any]) -> list[Batch]:
    """The first held-out windows, which stay the same over a training."""
    windows = corpus.indices(held_out=True)[: settings["held_out_windows"]]
    if not len(windows):
        raise TreebenchError("no window of the training text is held out: give more text")
    size = settings["batch_size"]
    return [extract([corpus.window(int(index)) for index in part]) for part in windows.split(size)]


def main() -> None:
    def run(cfg: DictConfig) -> None:
        train(to_plain(cfg))

    run_hydra(run, CONF, "train_drafter")


if __name__ == "__main__":
    main()
