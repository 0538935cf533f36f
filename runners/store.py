"""Files of a sweep folder: every point is a folder with `run.json` and `steps.parquet`, written whole or not at all.

Readers report what they cannot read by name and go on.
"""

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

from backend.errors import TreebenchError
from runners.records import SCHEMA_VERSION, STATUSES, STEP_COLUMNS, TREE_COLUMNS, RunRecord

RUN_FILE = "run.json"
STEPS_FILE = "steps.parquet"
TREES_FILE = "trees.parquet"
SITTINGS_FILE = "sittings.json"  # of a training: what each start was asked to do
LEARNING_CURVE_FILE = "learning_curve.csv"  # of a training, for its model card; its first column counts tokens
NOT_HASHED = {"output", "tracker", "launch", "force", "retry", "plugins", "hydra"}  # change no number
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class StoredRun(NamedTuple):
    """A record and the point folder it came from."""

    folder: Path
    record: RunRecord


# ---------------------------------------------------------------------------------------------------------- writing


def write_point(folder: Path, record: RunRecord, steps: Any, trees: Any = None) -> None:
    """Write one point. `run.json` comes last, so a folder that has one is complete.

    `steps` and `trees` are pandas or Arrow tables with STEP_COLUMNS and TREE_COLUMNS, or None, which leaves no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, columns in ((STEPS_FILE, steps, STEP_COLUMNS), (TREES_FILE, trees, TREE_COLUMNS)):
        if rows is None:
            (folder / name).unlink(missing_ok=True)
        else:
            from runners.steps import encode  # a point without steps, and one already measured, need no such library

            write_bytes(folder / name, encode(rows, columns, record.config_hash))
    text = json.dumps(_plain(record.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / RUN_FILE, (text + "\n").encode(errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` at once: a reader sees the old file or the new one, also when the writer is killed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """The value in JSON's types: NaN and infinity become null, paths and the like their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and torch
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


# ------------------------------------------------------------------------------------------------------------ naming


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the resolved config; where the output goes, who tracks and who launches it do not count."""
    counted = {key: value for key, value in config.items() if key not in NOT_HASHED}
    text = json.dumps(_canonical(_plain(counted)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """`temperature=0` and `temperature=0.0` are one choice."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def point_name(choices: Mapping[str, Any], config_hash: str) -> str:
    """Folder name of a point, as in `eagle2-layer_skip-smollm2-humaneval-b1-t0-bf16-1a2b3c4d`.

    `choices` holds algorithm, drafter, target, task, batch_size, temperature and dtype: `vars(record)` will do.
    """
    dtype = str(choices["dtype"]).removeprefix("torch.")
    parts = [
        *(choices[axis] for axis in ("algorithm", "drafter", "target", "task")),
        f"b{choices['batch_size']}",
        f"t{float(choices['temperature']):g}",
        DTYPE_NAMES.get(dtype, dtype),
        config_hash[:8],
    ]
    return "-".join(filter(None, map(_safe, parts)))


def _safe(part: Any) -> str:
    """A path is known by its last component; whatever a shell or a file system might mind becomes an underscore."""
    last = re.split(r"[/\\]", str(part or "").rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", last).strip("._")[:48]


# ----------------------------------------------------------------------------------------------------------- reading


def read_runs(sweep_dir: Path, any_version: bool = False) -> tuple[list[StoredRun], list[str]]:
    """Records of all points in the order of their folders' names, and one line for each that cannot be read.

    With `any_version` a record of another schema version is read too, if it has the fields needed here.
    """
    if not sweep_dir.is_dir():
        return [], [f"{sweep_dir}: no such folder"]
    runs, problems = [], []
    for folder in _folders(sweep_dir):
        if (folder / RUN_FILE).exists():
            try:
                runs.append(StoredRun(folder, _read_record(folder / RUN_FILE, any_version)))
            except (OSError, ValueError) as error:
                problems.append(f"{folder.name}/{RUN_FILE}: {' '.join(str(error).split())}")
        elif (folder / STEPS_FILE).exists():
            problems.append(f"{folder.name}: unfinished, it has no {RUN_FILE}")
    return runs, problems


def _folders(sweep_dir: Path) -> Iterator[Path]:
    yield from sorted(path for path in sweep_dir.iterdir() if path.is_dir())


def recorded(sweep_dir: Path) -> dict[str, StoredRun]:
    """What a sweep folder holds already, by config hash. Damaged records count as absent.

    Raises TreebenchError if the folder holds records of another schema version: one folder never mixes them.
    """
    runs = []
    for folder in _folders(sweep_dir) if sweep_dir.is_dir() else ():
        try:
            runs.append(StoredRun(folder, _read_record(folder / RUN_FILE)))
        except OtherVersion as error:
            raise TreebenchError(f"{folder}: {error}; set output=... to another folder") from error
        except (OSError, ValueError):
            continue
    runs.sort(key=lambda run: run.record.status == "ok")  # of two records of one config the measured one counts
    return {run.record.config_hash: run for run in runs}


class OtherVersion(ValueError):
    """The record is whole, but another version of this code wrote it."""


def read_point(folder: Path) -> RunRecord | None:
    """The record of one point; None where there is none or it cannot be read."""
    try:
        return _read_record(folder / RUN_FILE)
    except (OSError, ValueError):
        return None


def _read_record(path: Path, any_version: bool = False) -> RunRecord:
    """ValueError says in one line what is wrong."""
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not readable as JSON, perhaps truncated ({error})") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION and not (any_version and isinstance(version, int)):
        kind = OtherVersion if isinstance(version, int) else ValueError
        raise kind(f"schema version {version!r}, this code reads {SCHEMA_VERSION}")
    try:
        record = RunRecord.from_dict(values)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"fields missing or malformed ({error})") from error
    _check_fields(record)
    return record


def _check_fields(record: RunRecord) -> None:
    for field in fields(record):
        value = getattr(record, field.name)
        if not _fits(value, field.type):
            raise ValueError(f"{field.name} is {value!r}, which is no {getattr(field.type, '__name__', field.type)}")
    if record.status not in STATUSES:
        raise ValueError(f"status is {record.status!r}, not one of {', '.join(STATUSES)}")


def _fits(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, UnionType):
        return any(_fits(value, kind) for kind in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return isinstance(value, float | int) if kind is float else isinstance(value, kind)


def read_steps(sweep_dir: Path, query: str = "SELECT * FROM steps ORDER BY point, sequence, step") -> tuple[Any, list]:
    """Answer of a SQL query over the steps of all points (a pandas table), and one line for each unreadable file.

    `steps` has one row per sequence and step: STEP_COLUMNS, whatever else some file has (null in the others), and
    `point`, the folder's name. Let the query aggregate: a large sweep has millions of rows.
    """
    from runners.steps import query_steps

    return query_steps(sorted(sweep_dir.glob(f"*/{STEPS_FILE}")), query)
