"""The terminal: all messages go to stderr."""

from rich.console import Console

console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)  # messages may hold brackets
