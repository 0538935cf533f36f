"""From verification to commit nothing waits for the device, whatever the architecture."""

from dataclasses import replace

import pytest
import torch

from backend.acceptance import create_rule
from backend.drafters.draft_model import DraftModel
from backend.model import TreeModel
from backend.ops import Ops
from backend.ops.select import TORCH
from backend.sampling import Sampler
from backend.tree import Draft, Proposal, Verified
from tests.architectures import VOCAB, config_of, random_model
from tests.exact.reference import stream
from tests.kernels.cases import DEVICE, triton_ops
from tests.test_acceptance import NoSync
from tests.test_architectures import all_nodes, random_tree, start
from tests.tiny_models import perturbed, tiny_llama

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "granite", "cohere",
    "gpt_neox", "opt", "gpt2", "starcoder2", "ministral",
)  # fmt: skip


def step(target: TreeModel, drafter: DraftModel | None, rule: str, proposal: Proposal, ops: Ops) -> None:
    """Verify, accept, commit; a step's growth, before it, and its one wait for the device, after it, are outside."""
    tree = random_tree(3)
    nodes = all_nodes(tree)
    laws = torch.full((*nodes.shape, VOCAB), 1 / VOCAB)
    draft = Draft(tree, nodes, proposal, laws)
    decide = replace(create_rule(rule), ops=ops)
    sampler, random = Sampler(0.0 if rule == "greedy" else 0.8), stream(3)
    if drafter is not None:
        drafter.expand(tree, nodes)
    with NoSync():
        logits = target.expand(tree, nodes)
        accepted = decide(draft, logits, sampler, random)
        target.commit(tree, accepted)
        if drafter is not None:
            drafter.commit(tree, accepted, Verified(nodes, logits))
    target.settle()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_waits_for_nothing(name):
    target = TreeModel(random_model(config_of(name)), ops=TORCH)
    start(target)
    for rule in ("greedy", "target_sampling"):
        step(target, None, rule, Proposal.DETERMINISTIC, TORCH)


@pytest.mark.kernels
@pytest.mark.skipif(DEVICE.type != "cpu", reason="the guard sees operations on CPU tensors")
def test_rejection_and_a_drafter_wait_for_nothing_with_kernels():
    target = TreeModel(tiny_llama(num_layers=1), ops=TORCH)
    drafter = DraftModel("small", perturbed(target.model), VOCAB, ops=TORCH)
    start(target)
    start(drafter)
    for _ in range(2):
        step(target, drafter, "recursive_rejection", Proposal.WITHOUT_REPLACEMENT, triton_ops())


def test_the_guard_notices_the_reference_rejection():
    target = TreeModel(tiny_llama(num_layers=1), ops=TORCH)
    start(target)
    with pytest.raises(AssertionError, match="waits for the device"):
        step(target, None, "recursive_rejection", Proposal.WITHOUT_REPLACEMENT, TORCH)
