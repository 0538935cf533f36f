"""The training loop: seeded by step, checkpointed in one piece, resumed with the same loss curve."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.checkpoints import load_exactly, read_safetensors, write_safetensors
from backend.errors import TreebenchError
from runners.console import Meter
from runners.store import LEARNING_CURVE_FILE, SITTINGS_FILE
from runners.training.evaluation import evaluate, summary
from runners.training.features import Batch
from runners.training.learners import Learner


class Trainer:
    """AdamW with warm-up, a constant rate and a final linear decay; evaluation uses averaged weights."""

    def __init__(self, learner: Learner, config: Mapping[str, Any], folder: Path) -> None:
        self.learner, self.config, self.settings = learner, config, config["training"]
        self.folder = folder
        self.parameters = {n: p for n, p in learner.module.named_parameters() if p.requires_grad}
        self.restart_average()
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=self.settings["learning_rate"],
            betas=(0.9, 0.95),
            weight_decay=self.settings["weight_decay"],
        )
        self.step = 0
        self.tokens = 0
        self.begun = 0  # step from which the optimizer knows

    def restart_average(self) -> None:
        """From the weights as they are."""
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def run(self, stream: Iterator[Batch], held_out: list[Batch]) -> None:
        with Meter("training", self.settings["steps"], self.step) as meter:
            for batch in stream:
                if self.step >= self.settings["steps"]:
                    break
                start = time.perf_counter()
                line = self.learn(batch)
                line["seconds"] = time.perf_counter() - start
                if self.step % self.settings["eval_every"] == 0 or self.step == self.settings["steps"]:
                    line |= self.evaluate(held_out)
                self.log(line)
                meter.describe(summary(line))
                meter.advance()
                if self.step % self.settings["checkpoint_every"] == 0 or self.step == self.settings["steps"]:
                    self.save()

    def learn(self, batch: Batch) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.config["seed"] * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self.rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config["dtype"] == "bfloat16"):
            results = self.learner.steps(batch, generator, whole=False)
            loss = sum(self.settings["step_weight"] ** i * result.loss for i, result in enumerate(results))
        assert isinstance(loss, Tensor)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings["clip"])
        self.optimizer.step()
        self.step += 1
        self.tokens += int(batch.lengths.sum())
        self.update_average()
        top1 = [float(result.agrees.sum() / result.real.sum().clamp(min=1)) for result in results]
        return {"step": self.step, "tokens": self.tokens, "loss": float(loss.detach()), "top1": top1}

    def rate(self) -> float:
        """Factor of the learning rate."""
        warm = (self.step - self.begun + 1) / max(1, self.settings["warmup_steps"])
        left = (self.settings["steps"] - self.step) / max(1, self.settings["decay_steps"])
        return min(1.0, warm, max(left, 0.02))

    def update_average(self) -> None:
        keep = min(self.settings["average"], 1 - 1 / (self.step + 1))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - keep)

    def evaluate(self, held_out: list[Batch]) -> dict[str, Any]:
        """Held-out figures of the averaged weights."""
        current = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.average)
        try:
            return {"held_out": evaluate(self.learner, held_out, self.config["dtype"])}
        finally:
            self._put(current)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """One file holds weights, their average and the optimizer's moments, so that no mixture can be read."""
        moments = {f"{key}.{name}": value for name, p in self.parameters.items() for key, value in self._moments(p)}
        weights = {f"weight.{name}": parameter for name, parameter in self.parameters.items()}
        average = {f"average.{name}": value for name, value in self.average.items()}
        position = {"position": torch.tensor([self.step, self.tokens, self.begun])}
        buffers = {f"buffer.{name}": value for name, value in self.learner.buffers.items()}
        path = self.folder / "checkpoint.safetensors"
        write_safetensors(path, moments | weights | average | buffers | position)
        exported = {**self.learner.module.state_dict(), **self.average}
        self.learner.export(self.folder, exported)

    def _moments(self, parameter: Tensor) -> list[tuple[str, Tensor]]:
        state = self.optimizer.state[parameter]
        return [(key, state[key]) for key in ("exp_avg", "exp_avg_sq")]

    def resume(self) -> None:
        """Go on from the folder's checkpoint, else from the weights published in it, if there are any."""
        path = self.folder / "checkpoint.safetensors"
        if path.is_file():
            self._resume(path)
        elif (self.folder / "model.safetensors").is_file():
            self._resume_published()

    def _resume_published(self) -> None:
        """Steps and tokens count on; the optimizer begins anew."""
        sittings, curve = self.folder / SITTINGS_FILE, self.folder / LEARNING_CURVE_FILE
        if not sittings.is_file() or not curve.is_file():
            raise TreebenchError(f"{self.folder} holds a drafter of unknown training: give another output folder")
        self.learner.load(self.folder)
        self.restart_average()
        self.begun = self.step = json.loads(sittings.read_text())[-1]["config"]["training"]["steps"]
        self.tokens = int(curve.read_text().splitlines()[-1].partition(",")[0])

    def _resume(self, path: Path) -> None:
        """Lines of the curve after the checkpoint are dropped."""
        stored = read_safetensors(path)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in stored.items():
            kind, _, parameter = name.partition(".")
            parts.setdefault(kind, {})[parameter] = value
        names = set(self.parameters)
        if any(set(parts.get(kind, {})) != names for kind in ("weight", "average", "exp_avg", "exp_avg_sq")):
            raise TreebenchError(f"{path} belongs to another drafter: give another output folder, or delete it")
        load_exactly(_Holder(self.parameters), {k.replace(".", "/"): v for k, v in parts["weight"].items()}, str(path))
        self.average = parts["average"]
        self.learner.restore(parts.get("buffer", {}))
        self.step, self.tokens, self.begun = stored["position"].tolist()
        for name, parameter in self.parameters.items():
            moments = {key: parts[key][name] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step - self.begun)), **moments}
        self._cut_curve()

    def _cut_curve(self) -> None:
        curve = self.folder / "curve.jsonl"
        lines = curve.read_text().splitlines() if curve.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        curve.write_text("".join(f"{line}\n" for line in kept))


class _Holder(torch.nn.Module):
    """The trained parameters alone, for checked loading; names may hold no dots in a module of its own."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)
