"""The sizes that are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Of a sequence x [T, B, I, H, W] and a state of C channels; k: the size of both kernels."""

    B: int
    T: int
    I: int
    C: int
    H: int
    W: int
    k: int

    def __str__(self) -> str:
        return f"B={self.B} T={self.T} {self.I}->{self.C} channels {self.H}x{self.W} k={self.k}"

    @property
    def operations(self) -> int:
        """Floating-point operations of a forward pass, counted as the direct algorithm does them, without the gates."""
        return 2 * self.T * self.B * self.H * self.W * 4 * self.C * (self.I + self.C) * self.k * self.k


SHAPES = {
    "S": Shape(4, 10, 1, 16, 64, 64, 3),  # Moving MNIST, first layer
    "M": Shape(4, 10, 16, 64, 32, 32, 3),  # half the resolution, more channels
    "L": Shape(2, 10, 64, 64, 64, 64, 3),  # a layer in the middle of a large stack
    "K5": Shape(4, 10, 8, 32, 32, 32, 5),
}

# Large enough for a GPU, and two that are not, where launches take longer than work.
GPU_SHAPES = {
    "reference": Shape(16, 20, 64, 64, 64, 64, 3),
    "small": Shape(4, 10, 1, 16, 64, 64, 3),
    "small, k5": Shape(4, 10, 8, 32, 32, 32, 5),
    "wide": Shape(8, 20, 32, 64, 128, 128, 3),
    "large": Shape(2, 12, 128, 128, 256, 256, 3),
}
