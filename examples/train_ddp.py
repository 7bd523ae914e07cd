"""A ConvLSTM trained by several processes: predict the next frame of a square that moves. Seconds on two cores.

    torchrun --nproc-per-node 2 examples/train_ddp.py [--steps N] [--checkpoint FILE]

On GPUs (nccl) where there are any, else on the CPU (gloo). Interrupted and started again, it goes on from its
checkpoint to the very result that it would have had.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fusecell
from fusecell.torch import ConvLSTM2d, clip_grad_norm_

HELD_OUT = 1 << 40  # a seed that no step has


class Forecaster(nn.Module):
    """The next frame from each of the frames so far."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.lstm = ConvLSTM2d(1, channels, 3, batch_first=True)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, 1, H, W] -> logits [B, T, 1, H, W]."""
        y, _ = self.lstm(frames)
        logits: Tensor = self.head(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return logits


def squares(seed: int, batch: int = 8, steps: int = 9, size: int = 24, side: int = 5) -> Tensor:
    """White squares that leave the frame on one side and come in on the other: [B, T, 1, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, size, (batch, 1, 2), generator=generator)
    velocity = torch.randint(-2, 3, (batch, 1, 2), generator=generator)
    corner = start + velocity * torch.arange(steps)[:, None]
    rows, columns = (((torch.arange(size) - corner) % size) < side for corner in corner.split(1, -1))
    return (rows[..., :, None] & columns[..., None, :]).float().unsqueeze(2)


def loss_of(model: nn.Module, frames: Tensor) -> Tensor:
    """The mean error of the predictions of frames 1, 2, ..."""
    return binary_cross_entropy_with_logits(model(frames[:, :-1]), frames[:, 1:])


@torch.no_grad()
def held_out_loss(model: nn.Module, device: torch.device) -> float:
    """On squares that training does not see."""
    return float(loss_of(model, squares(HELD_OUT, batch=32).to(device)))


def train(steps: int, checkpoint: Path, device: torch.device) -> None:
    """Train, and say the loss before and after."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = Forecaster().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    done, before = 0, held_out_loss(model, device)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    wrapped = DistributedDataParallel(model)
    for step in tqdm(range(done, steps), initial=done, total=steps, disable=rank > 0):
        optimizer.zero_grad()
        loss_of(wrapped, squares(step * world + rank).to(device)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if rank == 0 and ((step + 1) % 20 == 0 or step + 1 == steps):
            save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1})
    if rank == 0:
        print(f"loss before {before:.6f}, after {steps} steps {held_out_loss(model, device):.6f}")


def save(path: Path, state: dict[str, object]) -> None:
    """Whole or not at all: whoever is interrupted here has the last one still."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    """One of the processes that torchrun starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint", type=Path, default=Path("train_ddp.pt"))
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    fusecell.set_num_threads(torch.get_num_threads())
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        train(args.steps, args.checkpoint, device)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
