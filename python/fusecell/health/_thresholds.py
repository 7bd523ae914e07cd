"""What counts as sick, in one place. docs/health.md has what they cost in misses and false alarms.

They were chosen on runs of their own (examples/cases and the tests), mended once by a first study of runs that nobody had
looked at, and then frozen: the table of hits and misses that counts is of a second set, made by someone else.
"""

from __future__ import annotations

# ------------------------------------------------------------------------------------------------ how much is needed
FEW = 5
"""Observations before anything is said that one of them already shows (twins, no gradient)."""
ENOUGH = 20
"""Observations before anything is said that rests on the loss."""
RECENT = 0.2
"""The share of the observations, the last ones, that a statement about now is made of; at least FEW."""

# ----------------------------------------------------------------------------------------------------------- the loss
FALLEN = 0.9
"""The recent loss is below this share of the first: it falls."""
FLAT = 0.98
"""The recent loss is above this share of what it was half-way: it has stopped falling."""
RUINED = 0.5
"""The very first loss below this share of all recent ones: the first update took away what there was."""
UNEXPLAINED = 0.9
"""The squared error above this share of the targets' variance: the network predicts about the mean."""
DIVERGED = 3.0
"""The recent loss above so many times the first ..."""
EXPLAINED = 0.5
"""... unless less than this share of the targets' variance is unexplained: the task grew, not the error."""

# ------------------------------------------------------------------------------------------- gradients over the steps
SHRINKS = 1e-5
"""Gradient at the earliest step over the largest: vanished. An LSTM at its usual start keeps 0.73 a step by its
forget gate: 2e-3 over 20 steps, which trains well."""
GROWS = 1e3
"""Gradient at the earliest step over that at the last: explodes."""
JUMPS = 1e4
"""The gradient's norm over its own median: one jump and a loss that did not come back is an explosion, too."""
LAYER_SHRINKS = 1e-5
"""Relative gradient (of norm by norm of weight) of the first layer over the last one's, without time steps."""

# --------------------------------------------------------------------------------------------------- units and gates
DEAD = 0.75
DEAD_AND_STUCK = 0.5
"""Share of a layer's units that give 0 for every example of every recent step: of one step alone, and that of one
example, many units rest that take turns."""
SATURATED = 0.95
"""Share of a layer's values within a hundredth of their bounds' distance from a bound."""
SAME_FOR_ALL = 0.5
"""Share of a layer's units that give the same for every example."""
TWINS = 0.5
"""Share of a matrix's rows that another row equals."""
EDGE = 0.01
"""A value is saturated within this part of the distance between its bounds: sigmoid's slope is 4 % of its largest."""

# ------------------------------------------------------------------------------------------------- outputs and losses
CONSTANT = 0.05
"""Spread of the outputs over that of the targets: they explain a four-hundredth of the variance at most."""
BEYOND = 0.01
"""Share of the targets that no setting of the last layer's inputs could reach ..."""
PRESSED = 0.2
"""... on a side on which the outputs come within this part of the reach to its end: noise need not be reached."""
ZEROS = 0.1
"""Share of what goes into a softmax that is exactly 0, where nothing is below: a ReLU stands before it."""
DROWNS = 2.0
"""The penalty over the rest of the loss."""

# ------------------------------------------------------------------------------------------------------------ updates
LARGE_UPDATE = 0.3
"""Change over weight, each step: no direction lasts."""
SMALL_UPDATE = 1e-7
"""Change over weight: float32's own rounding is 6e-8."""
