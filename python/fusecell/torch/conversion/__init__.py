"""convert."""

from .walk import convert

__all__ = ["convert"]
