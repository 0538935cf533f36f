"""Buckets, static inputs and the eager fallback of CUDA graphs, with a recorder that replays by running again."""

import pytest
import torch

from backend import graphs
from backend.graphs import BUCKETS, Graphs
from backend.model import TreeModel
from backend.ops.select import TORCH
from backend.ops.triton_bitmask import layout_words
from backend.tree import NO_NODE, Accepted
from tests.kernels.cases import DEVICE, triton_ops
from tests.test_architectures import PATHS, all_nodes, random_tree, start
from tests.tiny_models import tiny_llama

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(DEVICE.type != "cpu", reason="the recorder needs no GPU; test_end_to_end replays on one"),
]


class Recorder:
    """Replays as a graph would: the same function over the same tensors, into the same output."""

    def __init__(self):
        self.num_captures = self.num_replays = 0

    def __call__(self, run):
        self.num_captures += 1
        output = run().clone()

        def replay():
            self.num_replays += 1
            output.copy_(run())

        return replay, output


def graphed(recorder: Recorder) -> TreeModel:
    model = TreeModel(tiny_llama(num_layers=1), ops=triton_ops())
    model.graphs = Graphs(layout_words, recorder)
    return model


def test_one_graph_serves_steps_of_other_lengths_and_other_trees():
    recorder, plain = Recorder(), TreeModel(tiny_llama(num_layers=1), ops=TORCH)
    model = graphed(recorder)
    start(model)
    start(plain)
    for seed in (1, 2):
        tree = random_tree(seed)
        found, expected = (one.expand(tree, all_nodes(tree)) for one in (model, plain))
        live = tree.exists[:, :, None]
        torch.testing.assert_close(found * live, expected * live, rtol=0, atol=1e-5)
        for one in (model, plain):
            one.commit(tree, Accepted(PATHS, tree.tokens[:, 0]))
            one.settle()
    assert model.graphs is not None
    assert (recorder.num_captures, recorder.num_replays, model.graphs.num_eager) == (1, 2, 0)
    assert [shape.num_nodes for shape in model.graphs.captured] == [16]


def test_a_new_cache_forgets_graphs_that_point_into_the_old_one():
    model = graphed(Recorder())
    start(model)
    model.expand(random_tree(1), torch.zeros(3, 1, dtype=torch.int64))
    assert model.graphs is not None
    assert len(model.graphs.captured) == 1
    (old,) = model.graphs.captured.values()
    model.allocate(3, 90)
    model.prefill(torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    model.expand(random_tree(1), torch.zeros(3, 1, dtype=torch.int64))
    (new,) = model.graphs.captured.values()
    assert new is not old


def test_what_no_graph_serves_runs_eagerly(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 0)
    recorder = Recorder()
    model = graphed(recorder)
    start(model)
    assert model.expand(random_tree(1), torch.zeros(3, 1, dtype=torch.int64)).isfinite().all()
    assert model.graphs is not None
    assert (recorder.num_captures, model.graphs.num_eager) == (0, 1)


def test_widths_are_filled_up_to_the_next_bucket():
    graph = Graphs(layout_words, Recorder())
    widths = {width: graph.padded(torch.zeros(2, width, dtype=torch.int64)).shape[1] for width in (1, 2, 60, 256, 257)}
    assert widths == {1: 1, 2: 8, 60: 64, 256: 256, 257: 257}
    assert graph.padded(torch.zeros(1, 2, dtype=torch.int64)).tolist() == [[0, 0, *[NO_NODE] * 6]]
    assert sorted(BUCKETS) == list(BUCKETS)
