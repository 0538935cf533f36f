"""Measures what a step costs here and how often a drafter is right: `python -m runners.calibrate --help`.

The cost table is written after every cell, so that an interrupted run goes on where it stopped.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from algorithms.base import Drafter
from backend.costs import TABLE_VERSION
from backend.drafters.registry import create_drafter
from backend.errors import TreebenchError
from backend.model import TreeModel
from backend.targets import build_target
from runners.acceptance_rates import measure_rates
from runners.benchmark import CONF, to_plain
from runners.cli import run_or_explain
from runners.console import Meter, console
from runners.cost_plot import plot_costs
from runners.point import use_threads
from runners.pricing import check_pricing, drafter_options, identity, table_path
from runners.stopwatching import Pieces, medians
from runners.store import write_bytes
from runners.summary import created_now, git_commit

PLAIN = "none"  # what a table calls the absence of a drafter
MEASURES = ("costs", "acceptance")


@dataclass(frozen=True)
class Cell:
    """One entry of a table: indices along its axes, and where the seconds go."""

    part: str  # PLAIN for the target, or the drafter's name
    batch: int
    width: int
    context: int


def run(cfg: DictConfig) -> None:
    config = to_plain(cfg)
    check(config)
    use_threads(config["device"])
    loaded, target = build_target(config["target"], config["dtype"], config["device"]["torch_device"])
    drafter = create_drafter(config["drafter"]["kind"], target, loaded, drafter_options(config))
    if "costs" in config["measure"]:
        assert isinstance(target, TreeModel)
        calibrate(config, target, drafter)
    if "acceptance" in config["measure"] and drafter is not None:
        path = measure_rates(config, loaded, target, drafter)
        console.print(f"acceptance rates: {path}")


def check(config: Mapping[str, Any]) -> None:
    check_pricing(config)
    if config["device"].get("roofline"):
        raise TreebenchError(
            f"device {config['device']['name']} is not here, its costs are projected: nothing to measure"
        )
    for axis in ("batch_sizes", "widths", "contexts"):
        values = config[axis]
        if not values or values != sorted(set(values)) or not all(isinstance(v, int) and v >= 1 for v in values):
            raise TreebenchError(f"{axis} is {values}; it must be a rising list of whole numbers of at least 1")
    if unknown := sorted(set(config["measure"]) - set(MEASURES)):
        raise TreebenchError(f"measure has {unknown[0]!r}; choose from {', '.join(MEASURES)}")


def calibrate(config: Mapping[str, Any], target: TreeModel, drafter: Drafter | None) -> Path:
    """Measure the cells that are missing in the table; those of another drafter stay as they are."""
    path = table_path(config)
    table = opened(path, config, drafter)
    cells = list(missing(table, config, drafter))
    with Meter("seconds of forwards", len(cells)) as meter, torch.inference_mode():
        for cell in cells:
            meter.describe(f"{cell.part} {table_place(table, cell)}")
            fill(table, cell, config, target, drafter)
            save(path, table)
            meter.advance()
    finish(table, drafter)
    save(path, table)
    plot_costs(table, path.with_suffix(".png"))
    console.print(f"{len(cells)} cells measured: {path}")
    return path


def opened(path: Path, config: Mapping[str, Any], drafter: Drafter | None) -> dict[str, Any]:
    """The table so far if it is of the same kind, else a new one."""
    axes = {"batches": config["batch_sizes"], "widths": config["widths"], "contexts": config["contexts"]}
    wanted = {"schema_version": TABLE_VERSION, **identity(config), **axes, "max_rows": config["max_rows"]}
    table: dict[str, Any] | None = None
    if path.is_file() and not config["force"]:
        try:
            table = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            console.print(f"{path} is damaged and measured anew", style="red")
        if table and any(table.get(key) != value for key, value in wanted.items()):
            raise TreebenchError(f"{path} was measured with other settings: add force=true, or set device.costs=FILE")
    if table is None:
        table = {**wanted, "git_commit": git_commit(), "created": created_now(), "complete": False}
        table |= {"target_seconds": empty(table), "drafters": {PLAIN: new_part(table, {}) | {"seconds": None}}}
    if drafter is not None:
        options = drafter_options(config)
        if table["drafters"].get(drafter.name, {}).get("options") != options:
            table["drafters"][drafter.name] = new_part(table, options)
    return table


def empty(table: Mapping[str, Any]) -> list[list[list[float | None]]]:
    return [[[None for _ in table["contexts"]] for _ in table["widths"]] for _ in table["batches"]]


def new_part(table: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    overhead = [[None for _ in table["widths"]] for _ in table["batches"]]
    return {"options": dict(options), "complete": False, "seconds": empty(table), "overhead": overhead}


def missing(table: Mapping[str, Any], config: Mapping[str, Any], drafter: Drafter | None) -> Iterator[Cell]:
    """Cells without a figure, but for those with more rows than `max_rows`."""
    for part, seconds in ((PLAIN, table["target_seconds"]), *_drafted(table, drafter)):
        for b, batch in enumerate(table["batches"]):
            for w, width in enumerate(table["widths"]):
                for c in range(len(table["contexts"])):
                    if seconds[b][w][c] is None and (w == 0 or batch * width <= config["max_rows"]):
                        yield Cell(part, b, w, c)


def _drafted(table: Mapping[str, Any], drafter: Drafter | None) -> list[tuple[str, Any]]:
    return [] if drafter is None else [(drafter.name, table["drafters"][drafter.name]["seconds"])]


def table_place(table: Mapping[str, Any], cell: Cell) -> str:
    batch, width, context = (
        table[a][i] for a, i in zip(("batches", "widths", "contexts"), _indices(cell), strict=True)
    )
    return f"batch {batch}, width {width}, context {context}"


def _indices(cell: Cell) -> tuple[int, int, int]:
    return cell.batch, cell.width, cell.context


def fill(
    table: dict[str, Any], cell: Cell, config: Mapping[str, Any], target: TreeModel, drafter: Drafter | None
) -> None:
    """Time one cell. The rest of a step is timed at the first context, once per width."""
    b, w, c = _indices(cell)
    batch, width, context = table["batches"][b], table["widths"][w], table["contexts"][c]
    pieces = Pieces(target, drafter, batch, context, table["widths"][-1])
    limits = (config["repeats"], config["seconds_per_cell"])
    if cell.part == PLAIN:
        forward, rest = medians(pieces.verify(width, commits_to_drafter=False), *limits)
        table["target_seconds"][b][w][c] = forward
    else:
        table["drafters"][cell.part]["seconds"][b][w][c] = medians(pieces.draft(width), *limits)[0]
        rest = medians(pieces.verify(width, commits_to_drafter=True), *limits)[1] if c == 0 else 0.0
    if c == 0:
        table["drafters"][cell.part]["overhead"][b][w] = rest


def finish(table: dict[str, Any], drafter: Drafter | None) -> None:
    table["complete"] = True
    for name in (PLAIN, *([drafter.name] if drafter else [])):
        table["drafters"][name]["complete"] = True


def save(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())
    write_bytes(path, f"{{\n{lines}\n}}\n".encode())


def main() -> None:
    """Exit code 0 if everything was measured, 2 for bad input."""
    run_or_explain(run, CONF, "calibrate")


if __name__ == "__main__":
    main()
