"""Several processes measure one point together: the first announces it, prints and writes; the others follow it."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.errors import TreebenchError
from backend.ranks import join, leave, num_ranks, rank, word_of_first
from runners.console import console
from runners.records import RunRecord

CRASHED = "crashed with"  # how the reason begins where nothing foresaw the failure


def announce(config: Mapping[str, Any]) -> None:
    """The first rank says what all of them measure next."""
    if num_ranks() > 1:
        join()
        word_of_first(dict(config))


def dismiss() -> None:
    """The first rank is done; so are the others."""
    if num_ranks() > 1:
        with suppress(TreebenchError):  # they never met
            join()
            word_of_first(None)
            leave()


def follow() -> None:
    """What every rank but the first does until it is dismissed. Nothing is printed but why it had to leave."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from runners.job import attempt
    from runners.plugins import load_once
    from runners.summary import new_record

    console.quiet = True
    disable_progress_bar()
    set_verbosity_error()
    warnings.simplefilter("ignore")
    for config in announced():
        if config["plugins"]:
            load_once(Path(config["plugins"]).expanduser())
        record, *_ = attempt(config, new_record(config, "failed"))
        leave_if_out_of_step(record)
    leave()


def announced() -> Iterator[dict[str, Any]]:
    """What the first rank announces, until it dismisses this one or is gone."""
    try:
        join()
        while (config := word_of_first(None)) is not None:
            yield config
    except (RuntimeError, KeyboardInterrupt):
        sys.exit(1)


def leave_if_out_of_step(record: RunRecord) -> None:
    """End this process if it stopped where other ranks may have gone on; torchrun then ends them all.

    A refusal is no such thing: every rank refuses at the same place.
    """
    if num_ranks() > 1 and (record.status == "oom" or record.reason.startswith(CRASHED)):
        sys.stderr.write(f"rank {rank()} cannot go on: {record.reason}\n")
        sys.exit(1)
