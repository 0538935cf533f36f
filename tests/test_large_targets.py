"""Targets larger than one device: layers on several, or a shard in each of two processes, decode what one would."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from backend import placement
from backend.drafters.quantized import build_weight_quantized
from backend.drafters.views import SkippedLayer, view
from backend.errors import TreebenchError
from backend.loading import check_target, load_target
from backend.memory import OutOfMemory
from backend.model import TreeModel
from runners.launchers.registry import launch
from runners.point import check
from runners.pricing import calibrate_command, table_path
from tests import two_ranks
from tests.architectures import config_of, random_model
from tests.entry_point import save_model, save_questions
from tests.pretended_device import FAR, TwoDevices
from tests.test_configs import composed
from tests.tiny_checkpoints import one_line_error
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.xdist_group("large targets")  # one worker sets its fixtures up

ROOT = Path(__file__).parent.parent
LARGE = ("target=hf", "target.path=folder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    two_ranks.write_models(folder)
    return folder


def whole(folder: Path, parallel: str = "none") -> TreeModel:
    return TreeModel(load_target({"kind": "hf", "path": str(folder / "target"), "parallel": parallel}).model)


@pytest.fixture(scope="module")
def expected(folder) -> two_ranks.Decoded:
    return two_ranks.decode(whole(folder), folder)


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    return two_ranks.in_two_processes(folder)


def assert_same(found: two_ranks.Decoded, expected: two_ranks.Decoded) -> None:
    assert found.tokens == expected.tokens
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.features, expected.features, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ shards


def test_two_shards_decode_what_one_process_does(ranks, expected):
    for rank in ranks:
        assert_same(rank["decoded"], expected)
        assert rank["decoded"].shapes == [(1, 8)] * 4  # of two key heads, its own
    assert torch.equal(ranks[0]["decoded"].logits, ranks[1]["decoded"].logits)


def test_all_ranks_read_the_clock_of_the_first_and_notice_when_they_differ(ranks):
    assert [rank["words"] for rank in ranks] == [("from 0", 0.0)] * 2
    assert all(rank["disagreement"].startswith("the ranks disagree about their number") for rank in ranks)


def test_what_cannot_be_cut_is_refused_on_every_rank(ranks):
    for rank in ranks:
        assert rank["refused"] == {
            "no plan": "the architecture 'gpt2' has no tensor-parallel plan in transformers: "
            "use target.parallel=device_map",
            "odd heads": "num_key_value_heads is 1, which 2 processes cannot share evenly: start another number",
        }


def test_one_rank_writes_and_prints_and_the_other_keeps_quiet(ranks, folder):
    (code, lines, _), silent = ranks[0]["bench"], ranks[1]["bench"]
    assert code == 0
    assert ["acceptance length" in line for line in lines] == [True]
    assert silent == (0, [], "")
    assert not (folder / "bench1" / "out").exists()
    (record,) = (folder / "bench0" / "out").glob("*/run.json")
    run = json.loads(record.read_text())
    assert (run["status"], run["identical_rate"], run["environment"]["ranks"]) == ("ok", 1, 2)


@pytest.mark.slow
def test_torchrun_measures_a_point_once(tmp_path):
    settings = [
        *("target=hf", f"target.path={save_model(tmp_path / 'tiny')}", "target.parallel=tensor"),
        *("task=jsonl", f"task.path={save_questions(tmp_path / 'q.jsonl')}", f"output={tmp_path / 'out'}"),
        *("algorithm=eagle2", "drafter.skip=[1]", "num_prompts=1", "max_new_tokens=6", "repeats=1"),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "runners.benchmark", *settings], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/run.json"))) == 1
    assert done.stderr.count("acceptance length") == 1


# ----------------------------------------------------------------------------------------------------------- devices


def spread(model: Any, near: int) -> Any:
    """The model with its first layers on the CPU, the others, its last norm and its head on the other device."""
    places: dict[str, Any] = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": FAR, "lm_head": FAR}
    places |= {f"model.layers.{i}": "cpu" if i < near else FAR for i in range(len(model.model.layers))}
    options: Any = {"main_device": "cpu", "skip_keys": model._skip_keys_device_placement}
    return dispatch_model(model, places, **options)


@pytest.mark.parametrize(("near", "head"), [(2, "eagle3"), (0, "eagle1")])
def test_layers_on_two_devices_decode_what_one_does(near, head, folder, expected):
    methods = two_ranks.METHODS[: 3 if near else 1]
    wanted = expected if near else two_ranks.decode(whole(folder), folder, head, methods)
    with TwoDevices():
        target = TreeModel(spread(tiny_llama(), near))
        assert [shape.device for shape in target.shapes.values()] == [torch.device("cpu")] * near + [FAR] * (4 - near)
        assert_same(two_ranks.decode(target, folder, head, methods), wanted)
        assert target.cache is not None
        assert all(target.cache.keys[layer].device == shape.device for layer, shape in target.shapes.items())


def test_sliding_windows_on_another_device_are_seen():
    model = random_model(config_of("mistral"))
    with TwoDevices():
        TreeModel(spread(model, 1))


def test_the_pretended_device_refuses_to_mix():
    with TwoDevices(), pytest.raises(RuntimeError, match="different devices"):
        torch.ones(2).to(FAR).add(torch.ones(2))


def test_a_view_of_a_hooked_model_runs_its_own_layers():
    model = tiny_llama()
    with TwoDevices(), torch.inference_mode():
        hooked = spread(model, 2)
        skipped = view(hooked, {"model.layers.3": SkippedLayer(model.model.layers[3])})
        text = torch.tensor([[3, 4, 5]])
        assert not torch.equal(skipped(text, use_cache=False).logits, hooked(text, use_cache=False).logits)
    model.forward = lambda text: None
    assert "a forward that a view cannot share" in one_line_error(view, model, {"lm_head": torch.nn.Identity()})


def test_accelerate_places_a_model_that_fits_as_ever(folder, expected):
    target = whole(folder, "device_map")
    assert not target.is_spread
    assert_same(two_ranks.decode(target, folder), expected)


def test_a_model_that_is_left_on_the_host_or_on_disk_is_out_of_memory():
    for places in ({"model": 0, "lm_head": "cpu"}, {"model": "cpu", "lm_head": "disk"}):
        model: Any = tiny_llama()
        model.hf_device_map = places
        with pytest.raises(OutOfMemory, match=f"were left on {places['lm_head']}"):
            placement.placed(model, "device_map", "cpu")


# ---------------------------------------------------------------------------------------------------------- refusals


def test_placements_that_cannot_be(folder, monkeypatch):
    target = {"kind": "hf", "path": "x"}
    assert "choose one of none, device_map, tensor" in one_line_error(check_target, target | {"parallel": "both"})
    assert "torchrun --nproc-per-node 2" in one_line_error(check_target, target | {"parallel": "tensor"})
    packaged = {"kind": "packaged_gguf", "parallel": "device_map"}
    assert "GGUF weights are not split" in one_line_error(check_target, packaged)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "which would all do the same" in one_line_error(check_target, target)
    check_target(target | {"parallel": "tensor"})
    options = (folder / "target", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "CUDA_VISIBLE_DEVICES=" in one_line_error(placement.load_options, "tensor", *options)
    assert placement.load_options("device_map", *options) == {"device_map": "cpu"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs accelerate" in one_line_error(placement.load_options, "device_map", *options)


def test_ranks_that_never_meet(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert "start the command with torchrun" in one_line_error(two_ranks.load_shard, folder / "target")


def test_what_ranks_cannot_do_together(monkeypatch):
    graphs = ("backend.graphs=true", "device=cuda")
    assert "target.parallel at none" in one_line_error(check, composed(*LARGE, "target.parallel=device_map", *graphs))
    monkeypatch.setenv("WORLD_SIZE", "2")
    sharded = composed(*LARGE, "target.parallel=tensor", "algorithm=cast")
    assert "weighs costs" in one_line_error(check, sharded)
    for launcher in ({"name": "slurm"}, sharded["launch"] | {"isolate": True}):
        assert "torchrun has started the processes" in one_line_error(lambda c=launcher: list(launch([sharded], c)))
    bounded = sharded["launch"] | {"timeout_minutes": 1}
    assert "torchrun bounds nothing" in one_line_error(lambda: list(launch([sharded], bounded)))


def test_quantized_drafts_need_whole_matrices(folder):
    loaded = load_target({"kind": "hf", "path": str(folder / "target")})
    loaded.model._tp_size = 2
    options: dict[str, Any] = {"bits": 8, "group": 32, "head": False, "skip": [], "fake_quant": False}
    with pytest.raises(TreebenchError, match="whole matrices"):
        build_weight_quantized(TreeModel(loaded.model), loaded, **options)


def test_costs_of_a_spread_target_have_a_table_of_their_own():
    config = composed(*LARGE, "target.parallel=device_map", "algorithm=cast")
    assert table_path(config).name == "cpu-folder-device_map-float32.json"
    assert "target.parallel=device_map" in calibrate_command(config)
