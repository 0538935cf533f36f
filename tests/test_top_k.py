"""Searching by blocks finds what torch finds, in vocabularies with and without room for blocks."""

import pytest
import torch

from backend.sampling import likeliest
from backend.top_k import finite_maxima, largest, top_k

SIZES = [5, 1000, 64 * 200, 49152]


def some(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, size, generator=torch.Generator().manual_seed(size)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 4, 30])
def test_top_k_is_torchs(size, k, dtype):
    values = some(size, dtype)
    k = min(k, size)
    found, places = top_k(values, k)
    assert torch.equal(found, values.topk(k, dim=-1).values)
    assert torch.equal(values.gather(-1, places), found)
    assert all(len(set(row)) == k for row in places.flatten(0, 1).tolist())


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("below", [0.0, 9.0])  # 9: all values are negative
@pytest.mark.parametrize("size", SIZES)
def test_the_first_of_equal_values_is_the_largest(size, below, dtype):
    values = (some(size).round() - below).to(dtype)  # many ties
    values = torch.where(values == 0, torch.zeros_like(values).copysign(some(size)), values)  # zeros of both signs
    found, places = largest(values)
    assert torch.equal(found, values.amax(-1))
    assert torch.equal(places, (values == found[..., None]).int().argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_of_either_sign_is_found(sign, dtype):
    values = some(1000, dtype)
    values[1, 2, 700] = torch.tensor(torch.nan).copysign(torch.tensor(sign)).to(dtype)
    found, places = largest(values)
    assert found.isnan().sum() == 1
    assert found[1, 2].isnan()
    assert places[1, 2] == 700


@pytest.mark.parametrize("size", SIZES)
def test_rows_without_a_number_come_back_as_such(size):
    values = torch.full((2, size), -torch.inf)
    values[1, size // 2] = torch.nan
    found, places = largest(values)
    assert found[0] == -torch.inf
    assert found[1].isnan()
    assert ((places >= 0) & (places < size)).all()
    assert (top_k(values[:1], 3)[0] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_maxima_are_found_where_all_of_them_are_finite_and_positive(dtype):
    values = some(1000, dtype)
    places = finite_maxima(values)
    assert places is not None
    assert torch.equal(places, largest(values)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("poison", [torch.inf, torch.nan, -torch.nan])
def test_nothing_infinite_is_vouched_for(poison, dtype):
    values = some(1000, dtype)
    values[1, 2, 700] = torch.tensor(poison).to(dtype)
    assert finite_maxima(values) is None
    values[1, 2] = -torch.inf
    assert finite_maxima(values) is None
    _, valid = likeliest(values)
    assert valid is not None
    assert valid.sum() == values[..., 0].numel() - 1
