"""How sequences and states lie in memory: outputs as the inputs do, so that neither side needs a transpose.

A sequence is always [T, B, C, H, W] to the operators. In memory it may be batch first, and each of its frames may be
channels last (C stride 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Shape = tuple[Any, ...]  # sizes may be symbolic


def is_channels_last(frames: Tensor) -> bool:
    """Whether the frames [..., C, H, W] have neighbouring channels, and not only because C or H * W is 1."""
    channels, height, width = frames.shape[-3:]
    return bool(channels > 1 and height * width > 1 and frames.stride(-3) == 1)


def follows(x: Tensor, weight_hh: Tensor) -> bool:
    """Whether outputs are channels last: as x is, or as the weights are where one channel or one pixel is silent."""
    channels, height, width = x.shape[-3:]
    return is_channels_last(weight_hh if channels == 1 or height * width == 1 else x)


def is_batch_first(x: Tensor) -> bool:
    """Whether the sequence [T, B, ...] is a view of [B, T, ...]."""
    return bool(x.shape[0] > 1 and x.shape[1] > 1 and x.stride(1) > x.stride(0))


def empty_frames(shape: Shape, channels_last: bool, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised [..., C, H, W]."""
    if not channels_last:
        return torch.empty(shape, dtype=dtype, device=like.device)
    *outer, c, h, w = shape
    return torch.empty((*outer, h, w, c), dtype=dtype, device=like.device).movedim(-1, -3)


def empty_sequence(shape: Shape, channels_last: bool, batch_first: bool, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised [T, B, C, H, W]."""
    if not batch_first:
        return empty_frames(shape, channels_last, like, dtype)
    t, b, *frame = shape
    return empty_frames((b, t, *frame), channels_last, like, dtype).transpose(0, 1)


def joined(frames: list[Tensor], axis: int) -> Tensor:
    """Several [..., C, H, W] along the channels (axis -3) or stacked along a new first axis (axis 0), lying as they do.

    torch.cat and torch.stack know channels last in four dimensions only, and would transpose.
    """
    if not is_channels_last(frames[0]):
        return torch.stack(frames) if axis == 0 else torch.cat(frames, axis)
    turned = [f.movedim(-3, -1) for f in frames]
    return (torch.stack(turned) if axis == 0 else torch.cat(turned, -1)).movedim(-1, -3)


def with_channels_last(frames: Tensor) -> Tensor:
    """The tensor itself where it is [..., H, W, C] in memory, else a copy that is."""
    return frames.movedim(-3, -1).contiguous().movedim(-1, -3)


def addressable(frames: Tensor) -> Tensor:
    """The tensor itself where H and W are one run of pixels at a constant stride, else a contiguous copy."""
    h, w = frames.shape[-2:]
    if h == 1 or w == 1 or frames.stride(-2) == w * frames.stride(-1) or frames.numel() == 0:
        return frames
    return frames.contiguous()
