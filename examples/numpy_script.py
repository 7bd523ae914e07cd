"""A ConvLSTM in a plain NumPy training loop: predict the next frame of a drifting wave. Runs in a few seconds."""

from __future__ import annotations

import numpy as np

from fusecell import layers, losses, optim


def waves(rng: np.random.Generator, batch: int, steps: int = 9, size: int = 16) -> np.ndarray:
    """Sine waves of random direction, speed and phase: [T, B, 1, H, W]."""
    row, column = np.mgrid[:size, :size] * (2 * np.pi / size)
    angle, speed, phase = rng.uniform(0, 2 * np.pi, batch), rng.uniform(0.3, 0.9, batch), rng.uniform(0, 6, batch)
    field = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column + phase[:, None, None]
    frames = [np.sin(2 * field + speed[:, None, None] * t) for t in range(steps)]
    return np.stack(frames)[:, :, None].astype(np.float32)


def main(steps: int = 60) -> list[float]:
    """Train for some steps and return the losses."""
    rng = np.random.default_rng(0)
    net = layers.Sequential(
        [layers.ConvLSTM2D(1, 16, 3, peephole="channel", rng=rng), layers.Conv2D(16, 1, 1, rng=rng)]
    )
    optimizer = optim.Adam(net.parameters(), lr=1e-2, clip_norm=1.0)
    history = []
    for step in range(steps):
        x = waves(rng, batch=8)
        loss, dprediction = losses.mean_squared(net.forward(x[:-1]), x[1:])
        net.backward(dprediction)
        norm = optimizer.step(net.gradients())
        history.append(loss)
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss:.4f}  gradient norm {norm:.3f}")
    return history


if __name__ == "__main__":
    main()
