"""What each of two processes does in tests/test_large_targets.py: decode with its shard of a tiny model."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import multiprocessing
from transformers import GPT2Config, GPT2LMHeadModel

from backend.acceptance import create_rule, default_rule
from backend.drafters.draft_model import DraftModel
from backend.drafters.eagle_head import build as eagle_head
from backend.drafters.layer_skip import LayerSkip
from backend.errors import TreebenchError
from backend.loading import load_model, load_target
from backend.model import TreeModel
from backend.ranks import require_same, seconds_of_first, word_of_first
from backend.sampling import Sampler
from backend.timing import Stopwatch
from backend.tree import TokenTree
from runners import job  # noqa: F401 - before the fork, else each rank imports it
from runners.decoding import Decoder, Limits, Request, generate
from tests.entry_point import Bench, save_model
from tests.heads.checkpoints import random_head, write_head
from tests.parts import make_algorithm, prompts
from tests.tiny_checkpoints import tiny_tokenizer
from tests.tiny_models import perturbed, tiny_llama

RANKS = 2
LAYERS = [0, 2, 3]  # what the EAGLE-3 head reads
REFUSED = {"no plan": "gpt2", "odd heads": "odd"}
METHODS = (("eagle_head", "eagle2", 0.0), ("small_model", "specinfer", 0.8), ("layer_skip", "chain", 0.0))
POINT = ("target.parallel=tensor", "launch=local", "algorithm=chain", "algorithm.depth=2", "drafter=layer_skip")
SHORT = ("drafter.skip=[1]", "num_prompts=1", "max_new_tokens=4", "stage_prompts=0", "control_prompts=0")


class Decoded(NamedTuple):
    """What a process found out; `shapes` are (heads, key size) of each layer's cache."""

    tokens: dict[str, list[list[int]]]
    logits: torch.Tensor
    features: torch.Tensor
    shapes: list[tuple[int, int]]


def write_models(folder: Path) -> None:
    """A target, a draft of it, an EAGLE-3 head, and two that cannot be cut."""
    model = tiny_llama()
    size: Any = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2))
    for name, saved in {"target": model, "draft": perturbed(model), "gpt2": gpt2}.items():
        saved.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    save_model(folder / "odd", num_key_value_heads=1)
    for name, eagle3 in (("eagle1", False), ("eagle3", True)):
        write_head(folder / name, *random_head(eagle3))


def decode(target: TreeModel, folder: Path, head: str = "eagle3", methods: Any = METHODS) -> Decoded:
    """Greedy and sampled texts of some methods over two prompts, and the logits over one tree."""
    loaded = load_model(str(folder / "draft"), "float32", "cpu")
    drafters: dict[str, Any] = {
        "eagle_head": eagle_head(target, loaded, path=str(folder / head), revision=None),
        "small_model": DraftModel("small_model", loaded.model, target.vocab_size),
        "layer_skip": LayerSkip("layer_skip", target, [1, "2.mlp"]),
    }
    tokens = {}
    for kind, name, temperature in methods:
        algorithm = make_algorithm(name, {}, drafters[kind])
        rule = create_rule(default_rule(algorithm.proposal, temperature))
        decoder = Decoder(target, algorithm, drafters[kind], rule, Sampler(temperature), seed=0)
        requests = [Request(i, prompt) for i, prompt in enumerate(prompts([9, 5]))]
        result = generate(decoder, requests, Limits(6, (), 64), Stopwatch(target.device))
        tokens[f"{kind} {name}"] = [*result.tokens, *result.emitted]
    return Decoded(tokens, *tree_logits(target), [shape[:2] for shape in target.shapes.values()])


@torch.inference_mode()
def tree_logits(target: TreeModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and features over a root, two children and a grandchild, behind five tokens."""
    tree = TokenTree.root(torch.tensor([7]))
    tree = tree.add(torch.tensor([[0, 0]]), torch.tensor([[11, 12]]), torch.zeros(1, 2))
    tree = tree.add(torch.tensor([[1]]), torch.tensor([[13]]), torch.zeros(1, 1))
    target.allocate(1, 16)
    target.prefill(torch.tensor([[3, 4, 5, 6, 8]]), torch.tensor([5]))
    logits = target.expand(tree, torch.arange(4)[None])
    return logits.clone(), target.features.clone()


def in_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What both ranks found, by forked processes: they start with everything imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks: list[Any] = [context.Process(target=_rank, args=(i, port, folder), daemon=True) for i in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * RANKS
    return [torch.load(folder / f"rank{i}.pt", weights_only=False) for i in range(RANKS)]


def _rank(rank: int, port: int, folder: Path) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)
    found: dict[str, Any] = {"refused": {n: refusal(lambda p=p: load_shard(folder / p)) for n, p in REFUSED.items()}}
    found["decoded"] = decode(load_shard(folder / "target"), folder)
    found["words"] = word_of_first(f"from {rank}"), seconds_of_first(float(rank))
    require_same("the same", "nothing")
    found["disagreement"] = refusal(lambda: require_same(rank, "their number"))
    bench = Bench(folder / f"bench{rank}")
    found["bench"] = bench(*POINT, *SHORT, f"target.path={folder / 'bench0' / 'tiny'}")[:3]
    torch.save(found, folder / f"rank{rank}.pt")


def load_shard(path: Path) -> TreeModel:
    return TreeModel(load_target({"kind": "hf", "path": str(path), "parallel": "tensor"}).model)


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except TreebenchError as error:
        return str(error)
    return ""
