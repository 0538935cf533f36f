"""Samplers: what each truncation keeps, ties, temperature 0, and logits that are not numbers."""

import pytest
import torch

from backend.errors import TreebenchError
from backend.sampling import Sampler, likeliest

NAN, INF = float("nan"), float("inf")


def probs(logits, *options):
    return Sampler(*options).probs(torch.tensor(logits))


def test_temperature_divides_logits():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Sampler(0.7).probs(logits), (logits / 0.7).softmax(-1))
    torch.testing.assert_close(Sampler(0.7).probs(logits.log_softmax(-1)), (logits / 0.7).softmax(-1))
    half = logits.bfloat16()
    torch.testing.assert_close(Sampler(1.0).probs(half), half.float().softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_zero_takes_the_first_of_the_largest(dtype):
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], dtype=dtype)
    assert Sampler(0.0).probs(logits).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_top_k_keeps_ties():
    kept = probs([[2.0, 1.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0]], 1.0, 2) > 0
    assert kept.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert (probs([1.0, 2.0], 1.0, 9) > 0).all()


def test_top_p_keeps_the_likeliest_until_their_mass_reaches_p():
    law = torch.tensor([0.1, 0.5, 0.15, 0.25])
    for p, kept in ((0.3, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3]), (1e-9, [1])):
        truncated = Sampler(1.0, None, p).probs(law.log())
        assert truncated.nonzero().flatten().tolist() == kept
        torch.testing.assert_close(truncated[kept], law[kept] / law[kept].sum())
    tied = Sampler(1.0, None, 0.5).probs(torch.zeros(4))
    assert tied.tolist() == [0.5, 0.5, 0, 0]


def test_top_k_comes_before_top_p():
    law = torch.tensor([0.4, 0.3, 0.2, 0.1])
    torch.testing.assert_close(Sampler(1.0, 2, 0.6).probs(law.log()), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(Sampler(1.0, 2, 0.5).probs(law.log()), torch.tensor([1.0, 0, 0, 0]))


@pytest.mark.parametrize("options", [(0.0,), (1.0,), (0.5, 2), (2.0, None, 0.9), (1.0, 2, 0.9)])
@pytest.mark.parametrize("row", [[NAN, 1.0, 2.0], [INF, 1.0, 2.0], [-INF, -INF, -INF], [INF, INF, NAN]])
def test_a_row_without_a_law_is_all_zero(row, options):
    law = probs([row, [0.0, -INF, 1.0]], *options)
    assert law[0].tolist() == [0, 0, 0]
    assert law[1].sum() == pytest.approx(1)
    assert law[1, 1] == 0
    tokens, valid = likeliest(torch.tensor([row, [0.0, -INF, 1.0]]))
    assert tokens.tolist() == [0, 2]
    assert valid is not None
    assert valid.tolist() == [False, True]


@pytest.mark.parametrize("options", [(-1.0,), (NAN,), (INF,), (1.0, 0), (1.0, None, 0.0), (1.0, None, 1.5)])
def test_bad_options_are_refused(options):
    with pytest.raises(TreebenchError):
        Sampler(*options)
