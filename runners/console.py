"""The terminal: all messages go to stderr. How far a long job is: a bar there, lines now and then elsewhere."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)  # messages may hold brackets
PAUSE = 30.0  # seconds between lines where there is no terminal
Item = TypeVar("Item")


class Meter:
    """A bar that goes away when its job is done; where stderr is no terminal, a line every half minute."""

    def __init__(self, description: str, total: int, completed: int = 0) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(
            TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.progress.add_task(description, total=total, completed=completed)
        self.last_line = time.monotonic()

    def __enter__(self) -> "Meter":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def describe(self, description: str) -> None:
        self.progress.update(self.task, description=description)

    def advance(self) -> None:
        self.progress.advance(self.task)
        if not console.is_terminal and time.monotonic() - self.last_line >= PAUSE:
            self.last_line = time.monotonic()
            task = self.progress.tasks[0]
            console.print(f"{task.description}: {task.completed:.0f} of {task.total:.0f}")


def metered(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """The items, with a meter that counts those that are done."""
    with Meter(description, total) as meter:
        for item in items:
            yield item
            meter.advance()
