"""What does a draft level of one node cost, in target forwards of one token? Batch 1, the two in turn.

Run `python -m benchmarks.draft_forward`, by default with the trained head of the default model in bf16; any overrides
of `python -m runners.benchmark` may follow. `forwards` is the time inside the models, as the stage clocks count it;
`whole` is the call: for the target also planning, for the drafter also log-probabilities, the best eight tokens and
the tree.
"""

import argparse
from statistics import median, quantiles

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from backend.model import TreeModel
from backend.timing import Stopwatch
from runners.benchmark import CONF, to_plain
from runners.console import metered
from runners.point import build, with_stage_clock
from runners.stopwatching import WARM_UPS, Pieces

DEFAULTS = ("algorithm=eagle3_small", "drafter=eagle3_smollm2", "task=humaneval", "dtype=bfloat16")
CONTEXT = 150


@torch.inference_mode()
def measure(pieces: Pieces, clock: Stopwatch, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a draft level and of a target forward, one pair per round."""
    drafts, verifications = (
        pieces.draft(1, before=clock.stage_seconds.clear),
        pieces.verify(1, commits_to_drafter=False),
    )
    found: dict[str, list[tuple[float, float]]] = {"forwards": [], "whole": []}
    for _ in metered(range(rounds + WARM_UPS), "rounds", rounds + WARM_UPS):
        level = next(drafts)[0]
        inside = clock.stage_seconds["forward"]
        clock.stage_seconds.clear()
        target = next(verifications)[0]
        found["forwards"].append((inside, clock.stage_seconds["forward"]))
        found["whole"].append((level, target))
    return {name: pairs[WARM_UPS:] for name, pairs in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("overrides", nargs="*", help="as of python -m runners.benchmark")
    arguments = parser.parse_args()
    with initialize_config_dir(CONF, version_base="1.3"):
        config = to_plain(compose("benchmark", [*DEFAULTS, *arguments.overrides]))
    point = build(config)
    target = point.method.target
    assert isinstance(target, TreeModel)
    clock = Stopwatch(target.device, stages=True)
    with_stage_clock(config, point, clock)
    pieces = Pieces(target, point.method.drafter, 1, CONTEXT, widest=2)
    table = Table("time", "draft level ms", "target forward ms", "share", "middle half of rounds")
    for name, pairs in measure(pieces, clock, arguments.rounds).items():
        shares = [draft / target for draft, target in pairs]
        low, _, high = quantiles(shares, n=4)
        milliseconds = (f"{1000 * median(column):.2f}" for column in zip(*pairs, strict=True))
        table.add_row(name, *milliseconds, f"{median(shares):.1%}", f"{low:.1%} to {high:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
