"""Searches a skip set for layer-skipping self-drafts: `python -m runners.search_layers --help`.

A candidate's score is how often its favourite token is the target's, over the target's own greedy text on a split that
no reported number uses, with the prompt's keys and values by the target: as it drafts.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from backend.drafters.layer_skip import LayerSkip
from backend.layers import BLOCKS, layer_list_path
from backend.loading import LoadedModel, load_target
from backend.model import TreeModel
from backend.sampling import Sampler
from backend.tree import TokenTree
from runners.benchmark import CONF, to_plain
from runners.cli import check_counts, run_or_explain
from runners.console import Meter, console
from runners.decoding import pad, plain_answers
from runners.prompts import load_questions, render
from runners.skip_search import SearchSettings, search
from runners.store import write_bytes
from runners.summary import environment, git_commit

SETTINGS = ("skip_ratio", "iterations", "bayes_interval", "kappa", "noise", "patience", "max_score", "seed")


class Agreement:
    """Scores skip sets on the target's greedy answers to some prompts, all of them in one forward."""

    @torch.inference_mode()
    def __init__(self, target: TreeModel, prompts: list[list[int]], eos: tuple[int, ...], answer_tokens: int) -> None:
        self.target = target
        answers = plain_answers(target, prompts, eos, answer_tokens, Sampler(0.0))
        self.lengths = torch.tensor([len(answer) for answer in answers], device=target.device)
        text, _ = pad(answers, target.device)
        self.expected = text
        self.tree = TokenTree.root(torch.tensor([prompt[-1] for prompt in prompts], device=target.device))
        for place in range(text.shape[1] - 1):
            parents = torch.full_like(text[:, :1], place)
            self.tree = self.tree.add(parents, text[:, place : place + 1], torch.zeros_like(parents).float())
        self.prompts = pad([prompt[:-1] for prompt in prompts], target.device)
        target.prefill(*self.prompts)

    @torch.inference_mode()
    def of(self, skip: list[int | str]) -> float:
        draft = LayerSkip("candidate", self.target, skip)
        draft.prefill(*self.prompts)
        nodes = torch.arange(self.tree.num_nodes, device=self.target.device).expand_as(self.tree.tokens)
        right = draft.expand(self.tree, nodes).argmax(2) == self.expected
        there = nodes < self.lengths[:, None]
        return float(right[there].double().mean())


def blocks_of(model: Any) -> list[str]:
    """The blocks that may be skipped: those of all layers but the first and the last."""
    count = len(model.get_submodule(layer_list_path(model)))
    return [f"{layer}.{block}" for layer in range(1, count - 1) for block in BLOCKS]


def run_search(config: Mapping[str, Any]) -> dict[str, Any]:
    """Search, and say where the set comes from."""
    questions = load_questions(config["task"] | {"split": "tune"}, config["num_prompts"], config["seed"])
    loaded: LoadedModel = load_target(config["target"], config["dtype"], config["device"]["torch_device"])
    target = TreeModel(loaded.model)
    prompts = [render(loaded.tokenizer, question.turns, []) for question in questions]
    agreement = Agreement(target, prompts, loaded.eos_token_ids, config["answer_tokens"])
    blocks = blocks_of(target.model)

    def skip(mask: np.ndarray) -> list[int | str]:
        return [blocks[index] for index in np.flatnonzero(mask)]

    settings = SearchSettings(**{name: config[name] for name in SETTINGS})
    with Meter("skip sets", settings.iterations + 1) as meter:

        def score(mask: np.ndarray) -> float:
            found = agreement.of(skip(mask))
            meter.advance()
            return found

        found = search(len(blocks), score, settings)
    return {
        "skip": skip(found.mask),
        "agreement": found.score,
        "agreement_of_even_blocks": found.history[0][1],
        "num_blocks": len(blocks),
        "iterations": found.iterations,
        "best_scores": found.history,
        "answer_tokens": int(agreement.lengths.sum()),
        "questions": [question.id for question in questions],
        "target": loaded.name,
        "provenance": loaded.provenance,
        "settings": {key: value for key, value in config.items() if key != "output"},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "environment": environment(),
    }


def run(cfg: DictConfig) -> Path:
    plain = to_plain(cfg)
    check_counts(plain, ("num_prompts", "answer_tokens", "iterations", "bayes_interval"))
    result = run_search(plain)
    file = Path(plain["output"]) / f"skip_set-{result['target']}-{plain['skip_ratio']:g}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(result, indent=1) + "\n").encode())
    console.print(
        f"{len(result['skip'])} of {result['num_blocks']} blocks: agreement {result['agreement']:.1%} "
        f"(evenly spread: {result['agreement_of_even_blocks']:.1%}) after {result['iterations']} iterations -> {file}"
    )
    return file


def main() -> None:
    run_or_explain(run, CONF, "search_layers")


if __name__ == "__main__":
    main()
