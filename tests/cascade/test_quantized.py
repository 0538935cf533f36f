"""Quantized products against what their codes stand for, and quantized views of whole models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from backend.drafters.quantized import linear_groups, quantized
from backend.drafters.quantized_products import (
    fake_product,
    int4_weight_product,
    int8_dynamic_product,
    int8_weight_product,
    quantize_in_groups,
    quantize_symmetric,
    round_trip,
)
from backend.errors import TreebenchError
from backend.model import TreeModel
from tests.architectures import config_of, random_model
from tests.cascade.parts import draft
from tests.tiny_models import tiny_llama

TEXT = torch.tensor([[5, 9, 7, 5, 9, 3, 1]])


def in_half_precision(model: Any) -> Any:
    return model.to(torch.bfloat16)


def weight_and_inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator) * torch.linspace(0.1, 2, 48)[:, None]
    return weight.to(dtype), torch.randn(2, 3, 64, generator=generator).to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_codes_restore_the_weight_within_half_a_step():
    weight, _ = weight_and_inputs()
    for codes in (quantize_symmetric(weight), quantize_in_groups(weight, 4, 32)):
        error = (codes.restored() - weight).abs().unflatten(1, (codes.scales.shape[1], -1)).amax(2)
        assert (error <= codes.scales * 0.5001).all()
    assert quantize_symmetric(torch.zeros(2, 32)).restored().abs().max() == 0


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "bits", "group", "activations"),
    [
        (int8_dynamic_product, 8, None, True),
        (int8_weight_product, 8, None, False),
        (lambda w, b: int4_weight_product(w, b, 32), 4, 32, False),
    ],
    ids=["int8 dynamic", "W8", "W4"],
)
def test_kernels_compute_what_the_round_trip_says(kernel, bits, group, activations, with_bias):
    weight, inputs = weight_and_inputs(torch.float32 if activations else torch.bfloat16)
    bias = torch.linspace(-1, 1, 48).to(weight.dtype) if with_bias else None
    expected = fake_product(weight, bias, bits, group, activations)(inputs)
    found = kernel(weight, bias)(inputs)
    assert found.shape == (2, 3, 48)
    assert relative_error(found, expected) < (0.01 if activations else 0.005)
    assert 1e-4 < relative_error(expected, F.linear(inputs, weight, bias)) < (0.15 if bits == 4 else 0.02)


def test_activations_are_rounded_per_token():
    inputs = torch.tensor([[[1.0, 0.5, 0.001]], [[100.0, 50.0, 0.1]]])
    assert torch.allclose(round_trip(inputs)[0], torch.tensor([[1.0, 64 / 127, 0.0]]))
    assert round_trip(inputs)[1, 0, 2] == 0
    assert torch.equal(round_trip(torch.zeros(1, 1, 3)), torch.zeros(1, 1, 3))


def test_groups_of_linears_that_read_one_input():
    groups = list(linear_groups(tiny_llama(num_layers=1), head=True))
    layer = "model.layers.0."
    assert groups == [
        [f"{layer}self_attn.{name}_proj" for name in "qkv"],
        [f"{layer}self_attn.o_proj"],
        [f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"],
        [f"{layer}mlp.down_proj"],
        ["lm_head"],
    ]
    assert "lm_head" not in str(list(linear_groups(tiny_llama(num_layers=1), head=False)))


@torch.inference_mode()
@pytest.mark.parametrize("head", [True, False])
def test_a_quantized_view_is_close_to_the_model_and_leaves_it_alone(head):
    model = tiny_llama()
    TreeModel(model)  # fused, as targets are
    model.set_attn_implementation("sdpa")
    before = model(TEXT, use_cache=False).logits
    view = quantized(model, int8_dynamic_product, 8, head, [])
    assert 1e-4 < relative_error(view(TEXT, use_cache=False).logits, before) < 0.1
    assert torch.equal(model(TEXT, use_cache=False).logits, before)


@torch.inference_mode()
def test_quantized_and_skipped():
    model = tiny_llama()
    skipping = quantized(model, int8_dynamic_product, 8, True, [1, "2.mlp"])
    whole = quantized(model, int8_dynamic_product, 8, True, [])
    assert relative_error(skipping(TEXT, use_cache=False).logits, whole(TEXT, use_cache=False).logits) > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["activation_quantized", "weight_quantized"])
@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantization_agrees_with_the_kernel(kind, bits):
    target: Any = TreeModel(in_half_precision(tiny_llama()))
    options = {"head": True, "skip": []} | ({"bits": bits, "group": 32} if kind == "weight_quantized" else {})
    target.model.set_attn_implementation("sdpa")
    real, fake = (draft(target, kind, fake_quant=fake, **options).model for fake in (False, True))
    logits = [model(TEXT, use_cache=False).logits for model in (real, fake, target.model)]
    assert relative_error(logits[0], logits[1]) < 0.05
    assert relative_error(logits[0], logits[2]) > 1e-3


def test_nothing_to_quantize():
    with pytest.raises(TreebenchError, match="'gpt2' has no linear modules in its layers"):
        list(linear_groups(random_model(config_of("gpt2")), head=True))
