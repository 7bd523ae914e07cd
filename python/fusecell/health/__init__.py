"""Why does training go wrong? A monitor that watches a run and names what is wrong with it; and checks that stand
alone: of hand-written gradients, of memory that nobody wrote, of recurrent weights, of what an output layer can reach.
"""

from __future__ import annotations

from fusecell.health._check_gradients import CheckedGradient, GradientCheck, check_gradients
from fusecell.health._poison import poisoned
from fusecell.health._reach import output_bounds
from fusecell.health._spectrum import largest_singular_value
from fusecell.health._verdicts import Verdict
from fusecell.health.monitor import Monitor

__all__ = [
    "CheckedGradient",
    "GradientCheck",
    "Monitor",
    "Verdict",
    "check_gradients",
    "largest_singular_value",
    "output_bounds",
    "poisoned",
]
