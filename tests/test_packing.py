"""Packed weights multiply as the plain ones, follow them when they change, and are a copy's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backend import packing
from backend.fusion import fuse
from backend.packing import MOST, PackedWeight, may_pack, pack
from tests.architectures import config_of, random_model, same_model
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.skipif(not packing._has_kernel(), reason="this processor has no bf16 kernels in oneDNN")
SIZE, OUT = 64, 48


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def linear(bias: bool = True) -> nn.Linear:
    with torch.inference_mode(False):
        return nn.Linear(SIZE, OUT, bias=bias).bfloat16().requires_grad_(False)


def packed_of(module: nn.Linear) -> PackedWeight:
    return module.forward.args[1]  # type: ignore[attr-defined]


def assert_multiplies(module: nn.Linear, *shape: int) -> None:
    inputs = torch.randn(*shape, SIZE).bfloat16()
    expected = F.linear(inputs.float(), module.weight.float(), None if module.bias is None else module.bias.float())
    torch.testing.assert_close(module(inputs).float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 7), (3, 5), (1, 17), (4, 8), (33,), (2, 64), (MOST,), (MOST + 1,)])
def test_a_packed_module_multiplies_as_it_did(shape, bias):
    module = linear(bias)
    pack(module)
    assert_multiplies(module, *shape)
    rows = torch.Size(shape).numel()
    assert (packed_of(module).layout is not None) == (1 < rows <= MOST)


def test_a_write_to_the_weight_is_seen():
    module = linear()
    pack(module)
    assert_multiplies(module, 4)
    before = packed_of(module).layout
    with torch.inference_mode(False):
        module.weight.mul_(3)
    assert_multiplies(module, 4)
    assert packed_of(module).layout is not before


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_packs_its_own_weight(clone):
    module = linear()
    pack(module)
    assert_multiplies(module, 4)
    with torch.inference_mode(False):
        copied = clone(module)
        copied.weight.mul_(-2)
    assert_multiplies(copied, 4)
    assert_multiplies(module, 4)


def test_a_weight_that_does_not_tell_of_writes_is_not_packed():
    module = nn.Linear(SIZE, OUT).bfloat16().requires_grad_(False)
    pack(module)
    assert_multiplies(module, 4)
    module.weight.mul_(3)
    assert_multiplies(module, 4)


def test_nothing_is_packed_where_gradients_are_wanted():
    module = linear()
    pack(module)
    inputs = torch.randn(4, SIZE).bfloat16()
    with torch.inference_mode(False), torch.enable_grad():
        outputs = module(inputs.clone().requires_grad_())
        outputs.sum().backward()
    assert packed_of(module).layout is None


def test_a_fused_model_packs_every_matrix_once():
    with torch.inference_mode(False):
        reference = random_model(config_of("llama")).bfloat16()
        model = same_model(reference).bfloat16()
        fuse(model)
    text = torch.randint(3, 61, (2, 9))
    expected, found = (one(text, use_cache=False).logits.float() for one in (reference, model))
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    shared = {id(m.forward.func.__self__): m.forward.func.__self__.packed for m in joined(model)}
    single = [packed_of(m) for m in plain(model)]
    assert len(shared) == 2 * model.config.num_hidden_layers
    assert len(single) == 2 * model.config.num_hidden_layers + 1
    assert all(packed.layout is not None for packed in (*shared.values(), *single))


def joined(model: nn.Module) -> list:
    return [m for m in linears(model) if hasattr(m.forward.func, "__self__")]


def plain(model: nn.Module) -> list:
    return [m for m in linears(model) if not hasattr(m.forward.func, "__self__")]


def linears(model: nn.Module) -> list:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_only_what_has_a_kernel_and_fits_twice_is_packed(monkeypatch):
    small = tiny_llama()
    assert not may_pack(small)  # fp32
    assert may_pack(small.bfloat16())
    monkeypatch.setattr(packing, "SHARE_OF_MEMORY", 1e-12)
    assert not may_pack(small)
    assert not may_pack(nn.Module())
