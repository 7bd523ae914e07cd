"""Why does training go wrong? Checks of hand-written gradients, of memory nobody wrote, and of recurrent weights."""

from __future__ import annotations

from fusecell.health._check_gradients import CheckedGradient, GradientCheck, check_gradients
from fusecell.health._poison import poisoned
from fusecell.health._spectrum import largest_singular_value

__all__ = ["CheckedGradient", "GradientCheck", "check_gradients", "largest_singular_value", "poisoned"]
