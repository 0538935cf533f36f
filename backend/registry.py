"""Named parts (algorithms, drafters): a decorator registers one, its options are its keyword parameters."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from backend.errors import TreebenchError

Part = TypeVar("Part", bound=Callable[..., Any])
Registered = TypeVar("Registered")
PLAIN = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "Sequence": "a list"}


class Registry(Generic[Part]):
    """Parts of one kind by name. Every module of `package` is imported first, so one file adds one part."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that makes a part available under the name of its YAML file. A name is taken once."""

        def add(part: Registered) -> Registered:
            other = self._parts.setdefault(name, cast(Part, part))
            if other.__module__ != part.__module__:
                places = f"{other.__module__} and {part.__module__}"
                raise TreebenchError(f"{self.kind} {name!r} is registered twice, by {places}: rename one")
            self._parts[name] = cast(Part, part)
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
        """Raise TreebenchError unless `options` are exactly the keyword-only parameters of the part, of their types."""
        known = parameters(self.find(name))
        kinds = {option: kind for option, (own, kind) in known.items() if own.kind is own.KEYWORD_ONLY}
        wanted = list(kinds)
        for option, value in options.items():
            if option not in wanted:
                there = f"; it has {', '.join(wanted)}" if wanted else "; it has none"
                raise TreebenchError(f"{self.kind} {name} has no option {option!r}{suggestion(option, wanted)}{there}")
            if not fits(value, kinds[option]):
                kind = str(getattr(kinds[option], "__name__", kinds[option]))
                raise TreebenchError(f"{self.kind}.{option} is {value!r}; {name} needs {PLAIN.get(kind, kind)}")
        if missing := sorted(set(wanted) - set(options)):
            raise TreebenchError(f"{self.kind} {name} needs the option {missing[0]!r}")


def parameters(part: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Of a function or constructor by name, each with its type; `**options` stands for those of the class above it."""
    known: dict[str, tuple[inspect.Parameter, Any]] = {}
    for function in _constructors(part) if inspect.isclass(part) else [part]:
        kinds, own = get_type_hints(function), inspect.signature(function).parameters.values()
        named = [p for p in own if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        known = {p.name: (p, kinds.get(p.name, Any)) for p in named} | known
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return known


def _constructors(part: type) -> list[Callable[..., Any]]:
    """Its own, that of the class above, and so on."""
    return [vars(kind)["__init__"] for kind in part.__mro__ if "__init__" in vars(kind)]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from YAML is of the annotated type; int serves as float, bool as neither."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, kind) for kind in arguments)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if isinstance(value, bool) or annotation is bool:
        return isinstance(value, bool) and annotation is bool
    kinds = (int, float) if annotation is float else origin or annotation
    return isinstance(value, kinds)


def suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
