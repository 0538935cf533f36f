"""Lets a target answer the prompts of a training text: `python -m runners.generate_answers --help`."""

from pathlib import Path

from omegaconf import DictConfig

from backend.loading import load_target
from backend.memory import keep_freed_memory
from runners.benchmark import CONF, to_plain
from runners.cli import check_counts, run_or_explain
from runners.console import console
from runners.point import use_threads
from runners.training.answers import write_answers


def run(cfg: DictConfig) -> None:
    config = to_plain(cfg)
    check_counts(config, ("num_answers", "batch_size", "max_new_tokens", "max_prompt_tokens"))
    use_threads(config["device"])
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
