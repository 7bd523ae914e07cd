"""From hand-written ConvLSTMs to fusecell's kernels, in place, and back to stock torch operators."""

from .back import to_plain
from .report import Kept, Replaced, Report
from .walk import convert

__all__ = ["Kept", "Replaced", "Report", "convert", "to_plain"]
