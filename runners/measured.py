"""Options that come from a file of measurements: `algorithm.acceptance='${measured:FILE.json,acceptance}'`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from backend.errors import TreebenchError


def measured(path: str, key: str, *, _root_: Any) -> Any:
    """`key` of a file that `runners.calibrate` or `runners.search_fixed` wrote for this target and drafter."""
    values = _read(Path(path))
    if key not in values:
        raise TreebenchError(f"{path} has no {key!r}; it has {', '.join(values)}")
    config = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(config, dict)
    for group in ("target", "drafter"):
        wanted = _name(config.get(group) or {})
        if values.get(group) != wanted:
            raise TreebenchError(
                f"{path} was measured with {group} {values.get(group)!r}, not {wanted!r}: measure it anew"
            )
    return values[key]


def _name(group: Mapping[str, Any]) -> str:
    group = group.get("runs") or group  # acceptances are those of the model that runs
    return str(group.get("name") or str(group.get("path")).rstrip("/").split("/")[-1])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise TreebenchError(
            f"there is no file {path}: run python -m runners.calibrate, which says where it writes"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TreebenchError(f"{path} is damaged, perhaps truncated: measure it anew") from error
    if not isinstance(values, dict):
        raise TreebenchError(f"{path} is no file of measurements")
    return values


def register_resolver() -> None:
    OmegaConf.register_new_resolver("measured", measured, replace=True)
