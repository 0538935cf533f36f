"""Is our baseline honest? Plain decoding and prompt lookup through the backend against transformers' `generate`.

Run `python -m benchmarks.peers`: same model, dtype, threads and prompts, arms in alternating random order, ratios of
prefill and decoding together. A speedup over a slow baseline is no speedup; this is where that would show.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

from algorithms.growth import WHOLE_LAW
from algorithms.registry import create
from backend.acceptance import create_rule
from backend.drafters.prompt_lookup import PromptLookup
from backend.loading import LoadedModel, load_target
from backend.model import TreeModel
from backend.sampling import Sampler
from backend.timing import Stopwatch
from runners.console import metered
from runners.decoding import Decoder, Limits, Request, generate
from runners.prompts import load_questions, render

CONF = Path(__file__).parent.parent / "conf"
LOOKUP_TOKENS, LOOKUP_NGRAM = 10, 2  # what transformers' prompt lookup does by default
Arm = Callable[[list[int]], list[int]]


def load(group: str, name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))


def our_arms(loaded: LoadedModel, new_tokens: int) -> dict[str, Arm]:
    target = TreeModel(loaded.model)
    lookup = PromptLookup(target.vocab_size, max_ngram=LOOKUP_NGRAM, min_ngram=1, continuation=1)
    chain = create(
        "chain",
        lookup,
        {"depth": LOOKUP_TOKENS, "children": "top_k", **WHOLE_LAW},
    )
    plain = create("autoregressive", None, {})
    limits = Limits(new_tokens, (), 64)

    def arm(algorithm, drafter) -> Arm:
        decoder = Decoder(target, algorithm, drafter, create_rule("greedy"), Sampler(0.0), 0)
        return lambda prompt: generate(decoder, [Request(0, prompt)], limits, Stopwatch(target.device)).tokens[0]

    return {"ours plain": arm(plain, None), "ours prompt lookup": arm(chain, lookup)}


def their_arms(loaded: LoadedModel, new_tokens: int) -> dict[str, Arm]:
    """`min_new_tokens` keeps both sides at the same number of tokens."""

    def arm(**options) -> Arm:
        config = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, **options)

        @torch.inference_mode()
        def run(prompt: list[int]) -> list[int]:
            tokens = torch.tensor([prompt])
            model: Any = loaded.model
            output = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
            return output[0, len(prompt) :].tolist()

        return run

    lookup = {"prompt_lookup_num_tokens": LOOKUP_TOKENS, "max_matching_ngram_size": LOOKUP_NGRAM}
    return {"transformers plain": arm(), "transformers prompt lookup": arm(**lookup)}


def compare(dtype: str, tasks: list[str], num_prompts: int, new_tokens: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds per prompt of every arm, all arms on the same prompts in the same order."""
    ours, theirs = (load_target(load("target", "smollm2"), dtype) for _ in range(2))
    arms = our_arms(ours, new_tokens) | their_arms(theirs, new_tokens)
    questions = [q for task in tasks for q in load_questions(load("task", task), num_prompts, seed)]
    prompts = [render(ours.tokenizer, question.turns, []) for question in questions]
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for run in arms.values():
        run(prompts[0])
    for prompt in metered(prompts, f"prompts in {dtype}", len(prompts)):
        for name in order.sample(list(arms), len(arms)):
            start = time.perf_counter()
            arms[name](prompt)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Theirs over ours, median of paired ratios: above 1 the backend is faster."""
    return {
        kind: median(t / o for t, o in zip(seconds[f"transformers {kind}"], seconds[f"ours {kind}"], strict=True))
        for kind in ("plain", "prompt lookup")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--task", nargs="+", default=["humaneval", "summarize"])
    parser.add_argument("--num-prompts", type=int, default=4, help="per task")
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    for dtype in options.dtype:
        table = Table("dtype", "arm", "tokens/s", "ratio to transformers (median of pairs)")
        seconds = compare(dtype, options.task, options.num_prompts, options.new_tokens)
        found = ratios(seconds)
        for name, values in seconds.items():
            ratio = f"{found[name.removeprefix('ours ')]:.2f}" if name.startswith("ours") else "1"
            table.add_row(dtype, name, f"{options.new_tokens * len(values) / sum(values):.1f}", ratio)
        Console().print(table)


if __name__ == "__main__":
    main()
