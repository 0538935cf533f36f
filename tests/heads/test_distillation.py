"""The loss of training equals the plain formula, and so does its gradient."""

import pytest
import torch

from runners.training.distillation import ROWS, distillation
from runners.training.sampled_softmax import SampledSoftmax


@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 3])
def test_equals_the_plain_cross_entropy_and_its_gradient(rows):
    torch.manual_seed(0)
    wanted, weight = torch.randn(rows, 40), torch.rand(rows)
    logits = torch.randn(rows, 40, requires_grad=True)
    loss, agrees = distillation(logits, wanted)
    (gradient,) = torch.autograd.grad((loss * weight).sum(), logits)
    plain = -(wanted.softmax(1) * logits.log_softmax(1)).sum(1)
    (expected,) = torch.autograd.grad((plain * weight).sum(), logits)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, expected)
    assert agrees.equal(logits.argmax(1) == wanted.argmax(1))


def test_rows_in_bf16_give_a_loss_in_fp32():
    logits = torch.randn(3, 40).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = distillation(logits, torch.randn(3, 40).bfloat16())
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_a_sampled_softmax_sums_to_the_whole_one_on_average():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator)
    softmax = SampledSoftmax(torch.tensor([3, 7, 40]), vocab_size=50, sampled=5)
    sums = []
    for _ in range(4000):
        tokens, shift = softmax.draw(generator)
        assert len(set(tokens.tolist())) == 8
        assert tokens[:3].tolist() == [3, 7, 40]
        sums.append(float((logits[tokens] + shift).exp().sum()))
    assert torch.tensor(sums).mean() == pytest.approx(float(logits.exp().sum()), rel=0.02)


@pytest.mark.parametrize("sampled", [47, 1000])
def test_sampling_all_tokens_is_the_whole_softmax(sampled):
    softmax = SampledSoftmax(torch.tensor([3, 7, 40]), vocab_size=50, sampled=sampled)
    for tokens, shift in (softmax.whole(), softmax.draw(torch.Generator().manual_seed(1))):
        assert sorted(tokens.tolist()) == list(range(50))
        assert shift.eq(0).all()
