"""Sequoia's hardware-aware optimizer: the fastest of all sizes and depths, larger where verification is flat."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from algorithms.registry import create
from algorithms.sequoia import HardwareAwareSequoia
from algorithms.sequoia_dp import best_tree
from backend.roofline import Device, Roofline, Shape
from tests.algorithms.parts import TableDrafter, grow, paths_of, random_table
from tests.costs.parts import Formulas, affine
from tests.parts import options_of

PUBLISHED = (0.773, 0.104, 0.040, 0.021, 0.013, 0.008)
LLAMA_7B = Shape(32, 4096, 11008, 32, 32, 128, 32000)
LLAMA_68M = Shape(2, 768, 3072, 12, 12, 64, 32000)


def make(costs, **options) -> HardwareAwareSequoia:
    values = options_of("sequoia_hardware_aware", {}) | {"acceptance": PUBLISHED} | options
    algorithm = create("sequoia_hardware_aware", TableDrafter(random_table(0, 12)), values, costs)
    assert isinstance(algorithm, HardwareAwareSequoia)
    return algorithm


@pytest.mark.parametrize("slope", [0.002, 0.03, 0.4])
@pytest.mark.parametrize("level", [0.005, 0.2])
def test_it_is_the_fastest_of_the_best_trees(slope, level):
    """Against trees that are computed one by one, for each bound of size and depth."""
    depth, nodes = make(affine(slope, level, 0.0), budget=16, max_depth=6).fastest(1, 0)

    def speed(size: int, deepest: int) -> float:
        return best_tree(PUBLISHED, size, deepest).expected_tokens / (1 + slope * size + level * deepest)

    best = max(speed(size, deepest) for size in range(1, 17) for deepest in range(1, 7))
    assert speed(nodes - 1, depth) == pytest.approx(best)


def test_it_drafts_the_tree_that_it_chose():
    algorithm = make(affine(0.01), budget=20, max_depth=5, children="top_k")
    depth, nodes = algorithm.fastest(2, 0)
    draft = grow(algorithm, batch=2)
    for row in range(2):
        paths = paths_of(draft, row)
        assert len(paths) == nodes - 1
        assert max(map(len, paths)) == depth


def test_every_batch_size_has_a_tree_of_its_own():
    """A wider batch makes each further node dearer."""
    algorithm = make(affine(0.01), budget=32, max_depth=6, children="top_k")
    sizes = [len(paths_of(grow(algorithm, batch=batch))) for batch in (1, 8, 1)]
    assert sizes[0] > sizes[1]
    assert sizes[0] == sizes[2]


def test_the_published_order_of_devices():
    """Llama-2-7B with a 68M draft: the paper verifies 64 to 128 nodes of depth 5 to 10 on an A100, and 768 of depth 18
    where every step waits 5.6 s for offloaded weights."""
    settings: Any = OmegaConf.to_container(OmegaConf.load("conf/device/a100.yaml"))
    a100 = Device.of_options(settings["roofline"], "a100")
    resident = Roofline(a100, "float16", LLAMA_7B, LLAMA_68M)
    offloaded = Formulas(lambda b, w, c: 5.6 + 1e-4 * w, lambda b, w, c: 0.02 + 0 * w)
    found = [make(costs, budget=256, max_depth=24).fastest(1, 128) for costs in (resident, offloaded)]
    (depth, nodes), (offloaded_depth, offloaded_nodes) = found
    assert depth < offloaded_depth
    assert nodes < offloaded_nodes == 257
    assert 64 <= nodes - 1 <= 128
    assert 5 <= depth <= 10
