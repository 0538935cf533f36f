"""Errors that a user can fix. Their message is one line that says what to do; entry points print it and exit 2."""


class TreebenchError(Exception):
    """Bad input: unknown name, wrong option, missing model or data, unsupported combination."""


class Incompatible(TreebenchError):
    """Parts that are each fine but cannot be combined; a sweep records such a point as skipped."""
