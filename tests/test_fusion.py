"""Fused modules compute what the modules computed, hold weights once, and can be copied."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from backend.fusion import fuse
from backend.model import TreeModel
from tests.architectures import config_of, random_model, same_model
from tests.tiny_models import perturbed, tiny_llama

NAMES = ("q_proj", "k_proj", "v_proj")
TEXT = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        for name, size in zip(NAMES, (8, 4, 4), strict=True):
            self.add_module(name, nn.Linear(6, size, bias=bias).requires_grad_(False))

    def outputs(self, hidden: torch.Tensor, order: tuple[str, ...] = NAMES) -> dict[str, torch.Tensor]:
        return {name: self.get_submodule(name)(hidden) for name in order}


def fused_pair(bias: bool = True) -> tuple[Any, Any]:
    plain = Attention(bias)
    fused = copy.deepcopy(plain)
    fuse(fused)
    return plain, fused


def assert_same(plain: Attention, fused: Attention, order: tuple[str, ...] = NAMES) -> None:
    hidden = torch.randn(3, 6)
    expected = plain.outputs(hidden)
    for name, output in fused.outputs(hidden, order).items():
        torch.testing.assert_close(output, expected[name], rtol=0, atol=1e-6)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(TEXT, use_cache=False).logits


def num_fused(model: nn.Module, kind: str) -> int:
    return sum("forward" in vars(m) for m in model.modules() if type(m).__name__.endswith(kind))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "olmo2", "gemma2", "phi3", "deepseek_v3", "mixtral"])
def test_a_fused_model_says_the_same(name):
    reference = random_model(config_of(name))
    fused = same_model(reference)
    fuse(fused)
    torch.testing.assert_close(logits(fused), logits(reference), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_projections_are_exact_in_any_order(bias):
    plain, fused = fused_pair(bias)
    assert_same(plain, fused)
    assert_same(plain, fused, NAMES[::-1])


def test_norms_are_exact():
    reference = random_model(config_of("llama"))
    fused = same_model(reference)
    fuse(fused)
    hidden = torch.randn(2, 3, 32) * 4
    for name, module in reference.named_modules():
        if type(module).__name__ == "LlamaRMSNorm":
            torch.testing.assert_close(
                fused.get_submodule(name)(hidden), reference.get_submodule(name)(hidden), rtol=0, atol=1e-6
            )


@pytest.mark.parametrize(("name", "num_norms"), [("llama", 5), ("gemma", 0), ("gemma2", 0), ("gpt2", 0)])
def test_norms_that_add_one_to_their_weight_are_left_alone(name, num_norms):
    model = random_model(config_of(name))
    fuse(model)
    assert num_fused(model, "Norm") == num_norms


def test_weights_are_held_once():
    _, fused = fused_pair()
    for field in ("weight", "bias"):
        storages = {getattr(fused.get_submodule(name), field).untyped_storage().data_ptr() for name in NAMES}
        assert len(storages) == 1
    sizes = [fused.get_submodule(name).weight.numel() for name in NAMES]
    assert fused.q_proj.weight.untyped_storage().nbytes() == 4 * sum(sizes)


def test_a_write_to_a_weight_is_seen():
    plain, fused = fused_pair()
    for module in (plain, fused):
        module.get_parameter("k_proj.weight").mul_(3)
    assert_same(plain, fused)
    assert set(fused.state_dict()) == set(plain.state_dict())


def test_other_inputs_and_repeated_calls_compute_anew():
    plain, fused = fused_pair()
    one, other = torch.randn(2, 6), torch.randn(2, 6)
    for name, hidden in [("q_proj", one), ("k_proj", other), ("v_proj", one), ("k_proj", one), ("k_proj", one)]:
        expected = plain.get_submodule(name)(hidden)
        torch.testing.assert_close(fused.get_submodule(name)(hidden), expected, rtol=0, atol=1e-6)


def test_the_input_is_let_go_once_all_have_read_it():
    _, fused = fused_pair()
    fused.outputs(torch.randn(2, 6))
    shared = fused.q_proj.forward.func.__self__
    assert shared.input is None
    assert not shared.waiting


def test_fusing_twice_is_harmless():
    plain, fused = fused_pair()
    before = fused.q_proj.forward
    fuse(fused)
    assert fused.q_proj.forward is before
    assert_same(plain, fused)


def test_a_model_can_be_wrapped_twice():
    model = tiny_llama()
    TreeModel(model)
    assert TreeModel(model).shapes == TreeModel(model).shapes


def test_linears_of_another_kind_or_half_with_bias_are_left_alone():
    class Quantized(nn.Linear):
        pass

    mixed, other = Attention(), Attention()
    mixed.k_proj = nn.Linear(6, 4, bias=False)
    other.k_proj = Quantized(6, 4)
    for module in (mixed, other):
        fuse(module)
        assert num_fused(module, "Linear") == 0


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_weights(clone):
    """A forward that still read the original's weights would make every drafter cloned from a target its twin."""
    model = random_model(config_of("llama"))
    fuse(model)
    before = logits(model)
    copied = clone(model)
    torch.testing.assert_close(logits(copied), before, rtol=0, atol=0)
    for weight in copied.parameters():
        weight.mul_(1.5)
    plain = same_model(copied)
    torch.testing.assert_close(logits(copied), logits(plain), rtol=0, atol=1e-4)
    assert torch.equal(logits(model), before)
    ours = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert not ours & {weight.untyped_storage().data_ptr() for weight in copied.parameters()}
    attention = copied.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()


def test_a_perturbed_copy_of_a_wrapped_model_differs_in_every_projection():
    target = TreeModel(tiny_llama()).model
    noisy = perturbed(target)
    hidden = torch.randn(1, 32)
    for name, linear in target.named_modules():
        if isinstance(linear, nn.Linear) and linear.in_features == 32:
            assert not torch.equal(noisy.get_submodule(name)(hidden), linear(hidden))
