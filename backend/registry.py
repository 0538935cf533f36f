"""Named parts (algorithms, drafters): a decorator registers one, its options are its keyword parameters."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from backend.errors import TreebenchError

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Generic[Part]):
    """Parts of one kind by name. Every module of `package` is imported first, so one file adds one part."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator that makes a part available under the name of its YAML file."""

        def add(part: Part) -> Part:
            self._parts[name] = part
            return part

        return add

    def all(self) -> dict[str, Part]:
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return dict(sorted(self._parts.items()))

    def find(self, name: str) -> Part:
        known = self.all()
        if name not in known:
            raise TreebenchError(
                f"unknown {self.kind} {name!r}{suggestion(name, known)}; choose one of: {', '.join(known)}"
            )
        return known[name]

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise TreebenchError unless `options` are exactly the keyword-only parameters of the part."""
        parameters = inspect.signature(self.find(name)).parameters.values()
        wanted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        for option in options:
            if option not in wanted:
                raise TreebenchError(f"{self.kind} {name} has no option {option!r}{suggestion(option, wanted)}")
        if missing := sorted(wanted - set(options)):
            raise TreebenchError(f"{self.kind} {name} needs the option {missing[0]!r}")


def suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
