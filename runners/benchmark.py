"""Measures benchmark points: `python -m runners.benchmark --help`."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backend.ranks import rank
from runners.cli import one_line, run_hydra
from runners.followers import dismiss, follow
from runners.sweep import Refused, run_sweep

CONF = str(Path(__file__).parent.parent / "conf")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key != "hydra"}


def main() -> None:
    """Compose all points, then run them; of several ranks only the first does, and the others follow it.

    Exit status 0 if every point is measured or skipped, 1 if one failed, 2 for bad input, 130 if interrupted.
    """
    if rank():
        return follow()
    points: list[dict[str, Any] | Refused] = []

    def collect(cfg: DictConfig) -> None:
        try:
            points.append(to_plain(cfg))
        except OmegaConfBaseException as error:
            points.append(Refused(one_line(error)))

    try:
        run_hydra(collect, CONF, "benchmark")
    except SystemExit:
        dismiss()
        raise
    status = run_sweep(points)
    dismiss()
    sys.exit(status)


if __name__ == "__main__":
    main()
