"""The attention kernel against the reference in fp64; slots that nobody sees hold NaN."""

from typing import Any

import pytest
import torch

from backend.errors import TreebenchError
from backend.ops.tiles import MAX_SPLITS, Tile, splits_for
from backend.ops.triton_attention import attend, check_shapes
from tests.kernels.cases import BOUNDS, DEVICE, AttentionCase, plan_on_device, triton_ops
from tests.parts import some_slow

pytestmark = pytest.mark.kernels
SMALL = [1, 4, 7, 8, 13, 14, 15, 59]
SEEDS = [*SMALL, *(seed for seed in range(130) if seed not in SMALL)]


def run(case: AttentionCase, tile: Tile, splits: int) -> torch.Tensor:
    plan = plan_on_device(case.plan)
    assert plan.layout is not None
    key, value = case.poisoned()
    sinks = case.options["sinks"]
    options: dict[str, Any] = case.options | {"sinks": None if sinks is None else sinks.to(DEVICE)}
    query, key, value = (tensor.to(DEVICE) for tensor in (case.query, key, value))
    return attend(query, key, value, plan.layout, plan.positions, **options, tile=tile, splits=splits).cpu()


def error(case: AttentionCase, found: torch.Tensor) -> float:
    assert found.isfinite().all(), "padding must stay finite"
    return case.error(found)


@pytest.mark.parametrize("seed", some_slow(SEEDS, len(SMALL)))
def test_equals_the_reference(seed):
    case = AttentionCase.random(seed)
    assert error(case, run(case, case.tile, case.splits)) < BOUNDS[case.query.dtype]


def test_cases_cover_what_models_need():
    """The random cases are only as good as what they meet."""
    cases = [AttentionCase.random(seed) for seed in SEEDS]
    assert {case.query.dtype for case in cases} == set(BOUNDS)
    for dtype in BOUNDS:
        assert {64, 80, 96, 128, 192, 256} <= {case.query.shape[3] for case in cases if case.query.dtype == dtype}
    assert {1, 2, 4} == {case.splits for case in cases}
    widths = {case.plan.layout.num_nodes for case in cases if case.plan.layout}
    assert {1, 256} <= widths
    for option in ("window", "softcap", "sinks"):
        assert sum(case.options[option] is not None for case in cases) > 20
    assert sum(bool(case.plan.layout and case.plan.layout.num_owed) for case in cases) > 20
    assert sum(bool(case.dead().any()) for case in cases) > 60


@pytest.mark.parametrize("splits", [1, 8])
def test_more_splits_than_keys(splits):
    case = AttentionCase.random(1)
    assert error(case, run(case, Tile(16, 16, 4, 2), splits)) < BOUNDS[case.query.dtype]


def test_the_operation_chooses_its_own_tile_and_takes_strided_caches():
    case = AttentionCase.random(5)
    key, value = case.poisoned()
    plan = plan_on_device(case.plan)
    views = (tensor.to(DEVICE)[:, :, : plan.used] for tensor in (key, value))
    found = triton_ops().attention(case.query.to(DEVICE), *views, plan, **case.options)
    assert error(case, found.cpu()) < BOUNDS[case.query.dtype]


def test_splits_fill_the_device_but_never_starve():
    assert splits_for(num_tiles=2, num_keys=100, num_processors=132) == 1
    assert splits_for(num_tiles=2, num_keys=4096, num_processors=132) == 16
    assert splits_for(num_tiles=2, num_keys=1 << 20, num_processors=132) == MAX_SPLITS
    assert splits_for(num_tiles=1000, num_keys=1 << 20, num_processors=132) == 1


@pytest.mark.parametrize(
    ("dtype", "size", "line"),
    [
        (torch.bfloat16, 512, "bfloat16 heads of size 512 have no Triton kernel (at most 256); use backend.ops=torch"),
        (torch.float32, 264, "float32 heads of size 264 have no Triton kernel (at most 256); use backend.ops=torch"),
        (torch.float64, 64, "dtype float64 has no Triton kernel (float32, float16, bfloat16 have); use backend"),
    ],
)
def test_shapes_without_a_kernel_are_refused(dtype, size, line):
    with pytest.raises(TreebenchError) as refusal:
        check_shapes(dtype, size)
    assert line in str(refusal.value)
