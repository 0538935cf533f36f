"""What one benchmark point leaves behind: `run.json` (`RunRecord`), `steps.parquet` (`STEP_COLUMNS`) and, of a few
prompts, `trees.parquet` (`TREE_COLUMNS`)."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

SCHEMA_VERSION = 1

STATUSES = ("ok", "failed", "skipped", "timeout", "oom")

STEP_COLUMNS = {
    "sequence": "int32",  # index into RunRecord.prompts
    "step": "int32",  # 0-based verification step of this sequence
    "context": "int32",  # committed tokens before the step, the root included
    "drafted_nodes": "int32",  # nodes of the drafted tree, the root included
    "verified_nodes": "int32",  # nodes the target scored, the root included
    "depth": "int32",  # deepest verified node
    "emitted": "int32",  # tokens emitted, bonus included, cut at the end of the text or the limit
}

TREE_COLUMNS = {  # a row per node of the drafted tree, the root included, and one per bonus token
    "sequence": "int32",  # index into RunRecord.prompts
    "step": "int32",  # as in STEP_COLUMNS
    "node": "int32",  # number in the drafted tree; 0 is the root, the bonus comes last
    "parent": "int32",  # -1 at the root; the bonus hangs on the last accepted node
    "rank": "int32",  # place among its siblings, 0-based, in the order in which they were drawn
    "token": "int32",
    "text": "string",
    "log_prob": "float32",  # drafter's, of the token after its parent; null at the root and the bonus
    "verified": "bool",
    "accepted": "bool",  # on the path that the target took, the root included; before the end of the text cuts it
    "bonus": "bool",  # the target's own token
}


class Outcome(NamedTuple):
    """How a point of a sweep went: one of STATUSES, or `done` if it was measured before."""

    status: str
    line: str  # what the user is told
    folder: str = ""  # of its record; empty if it has none


@dataclass
class Unit:
    """What is timed as one: a batch of prompts, decoded by the baseline and by the method, `repeats` times each."""

    sequences: list[int]  # indices into RunRecord.prompts
    new_tokens: int  # of one repeat, summed over the sequences
    baseline_new_tokens: int
    steps: int
    seconds: list[float]  # decode seconds of the method, one per repeat; prefill apart
    baseline_seconds: list[float]
    prefill_seconds: list[float]
    baseline_prefill_seconds: list[float]


@dataclass
class PromptRecord:
    """One generated answer of the method and how it compares with the baseline's."""

    id: str
    category: str
    turn: int
    prompt_tokens: int
    new_tokens: int
    steps: int
    identical: bool  # token ids equal the baseline's
    first_divergence: int | None  # index of the first differing token
    text: str = ""
    baseline_text: str | None = None  # only where it differs from `text`
    baseline_encoded_tokens: int | None = None  # of the baseline's text, encoded anew: what Spec-Bench counts, plus one


@dataclass
class RunRecord:
    """One point of a sweep. Seconds are wall clock if `basis` is measured; `acceptance_length` counts the bonus."""

    status: str  # one of STATUSES; skipped: its parts cannot be combined, oom: memory ran out
    reason: str
    algorithm: str
    drafter: str
    target: str
    task: str
    device: str
    dtype: str
    batch_size: int
    temperature: float
    seed: int
    basis: str = "measured"  # measured | projected | replayed
    acceptance: str = ""  # the acceptance rule
    lossless: bool = True  # False for a rule that changes the output's law
    max_new_tokens: int = 0
    repeats: int = 0
    num_prompts: int = 0
    new_tokens: int = 0
    baseline_new_tokens: int = 0
    steps: int = 0
    speedup: float | None = None  # seconds per token, baseline over method, each the sum of medians over repeats
    speedup_low: float | None = None  # 95 % paired BCa bootstrap over units
    speedup_high: float | None = None
    speedup_median_of_pairs: float | None = None
    speedup_of_totals: float | None = None
    spec_bench_speedup: float | None = None  # ratio of mean per-question rates, as Spec-Bench computes it
    spec_bench_speedup_encoded: float | None = None  # with the baseline's tokens counted as its script does, too
    acceptance_length: float | None = None  # micro: emitted tokens / steps
    acceptance_length_low: float | None = None
    acceptance_length_high: float | None = None
    acceptance_length_macro: float | None = None  # mean over prompts
    tokens_per_second: float | None = None
    baseline_tokens_per_second: float | None = None
    prefill_seconds: float | None = None
    baseline_prefill_seconds: float | None = None
    identical_rate: float | None = None  # share of prompts whose tokens equal the baseline's
    stage_seconds: dict[str, float] = field(default_factory=dict)  # second pass: draft, tree, verify, accept, commit
    losslessness: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    git_commit: str = ""
    schema_version: int = SCHEMA_VERSION
    created: str = ""  # ISO 8601, UTC
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    prompts: list[PromptRecord] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunRecord":
        """Unknown keys are ignored, so that a later minor addition can still be read."""
        parts = {
            "units": [Unit(**_known(Unit, unit)) for unit in values.get("units", [])],
            "prompts": [PromptRecord(**_known(PromptRecord, prompt)) for prompt in values.get("prompts", [])],
        }
        return cls(**_known(cls, values) | parts)


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in values.items() if key in names}


SCALARS = tuple(
    field.name
    for field in fields(RunRecord)
    if field.name not in ("config", "environment", "units", "prompts", "stage_seconds", "losslessness")
)
