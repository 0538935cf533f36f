"""Exact enumeration: the production code in rational arithmetic, over every outcome of its random draws."""
