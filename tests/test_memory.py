"""Running out of memory is an outcome, and says which batch and width asked for more than there is."""

import pytest
import torch

from backend.memory import OutOfMemory, memory_of_forward
from backend.model import TreeModel
from backend.tree import TokenTree
from tests.entry_point import Bench
from tests.tiny_models import tiny_llama

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [CUDA, HOST, MemoryError()])
def test_a_forward_names_its_batch_and_width(error, monkeypatch):
    target = TreeModel(tiny_llama())
    target.allocate(3, 32)
    tokens = torch.ones(3, 4, dtype=torch.int64)
    target.prefill(tokens, torch.full((3,), 4))

    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr(target.model, "forward", no_memory)
    tree = TokenTree.root(tokens[:, 0])
    with pytest.raises(OutOfMemory, match=r"^out of memory in a forward of batch 3, width 1: [^\n]+$"):
        target.expand(tree, torch.zeros(3, 1, dtype=torch.int64))


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shapes"), memory_of_forward(1, 1):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CUDA, "out of memory at batch 1: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (
            OutOfMemory("out of memory in a forward of batch 8, width 65: CUDA"),
            "out of memory in a forward of batch 8,",
        ),
    ],
)
def test_it_is_recorded_and_tried_again(tmp_path, monkeypatch, error, reason):
    def no_memory(*_):
        raise error

    bench = Bench(tmp_path)
    monkeypatch.setattr("algorithms.chain.Chain.grow", no_memory)
    outcome = bench("algorithm=chain", "num_prompts=1")
    assert outcome.code == 1
    assert outcome.run["status"] == "oom"
    assert outcome.run["reason"].startswith(reason)
    monkeypatch.undo()
    assert bench("algorithm=chain", "num_prompts=1", "retry=[failed]").lines == [
        f"{outcome.points[0].name}: already oom (force=true tries again): {outcome.run['reason']}"
    ]
    assert bench("algorithm=chain", "num_prompts=1").run["status"] == "ok"
