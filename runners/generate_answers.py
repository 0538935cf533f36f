"""Lets a target answer the prompts of a training text: `python -m runners.generate_answers --help`."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from backend.errors import TreebenchError
from backend.loading import load_target
from backend.memory import keep_freed_memory
from runners.benchmark import CONF, to_plain
from runners.cli import run_or_explain
from runners.console import console
from runners.training.answers import write_answers

COUNTS = ("num_answers", "batch_size", "max_new_tokens", "max_prompt_tokens")


def run(cfg: DictConfig) -> None:
    config = to_plain(cfg)
    for name in COUNTS:
        if not isinstance(config[name], int) or config[name] < 1:
            raise TreebenchError(f"{name} is {config[name]!r}; it must be a whole number of at least 1")
    if config["device"]["threads"]:
        torch.set_num_threads(config["device"]["threads"])
    keep_freed_memory()
    loaded = load_target(config["target"], config["dtype"], config["device"]["torch_device"])
    path = Path(config["output"])
    path.parent.mkdir(parents=True, exist_ok=True)
    count = write_answers(loaded, config, path)
    console.print(f"{path}: {count} answers of {loaded.name}")


def main() -> None:
    run_or_explain(run, CONF, "generate_answers")


if __name__ == "__main__":
    main()
