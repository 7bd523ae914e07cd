"""The pointwise part of the cell: from z and the old state to the new state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._activations import activation_backward, activation_forward
from ._check import Array, expect, f64, shaped, wanted
from ._options import GateOptions


class Activated:
    """y = name(x), together with its way back."""

    def __init__(self, name: str, x: Array, options: GateOptions) -> None:
        self.name, self.x, self.options = name, x, options
        self.y = activation_forward(name, x, slope=options.slope)

    def backward(self, dy: Array) -> Array:
        slope, at_zero = self.options.slope, self.options.relu_at_zero
        return activation_backward(self.name, self.x, self.y, dy, slope=slope, at_zero=at_zero)


def blocks(name: str, p: ArrayLike | None, count: int, state: tuple[int, ...]) -> Sequence[Array | None]:
    """A bias or a peephole as ``count`` blocks that broadcast over the state [B, C, *spatial].

    p: None, per channel [count C] or per pixel [count C, *spatial].
    """
    if p is None:
        return [None] * count
    p = f64(p)
    channels, spatial = count * state[1], state[2:]
    if p.ndim == 1:
        expect(name, p, (channels,))
        p = p.reshape(channels, *[1] * len(spatial))
    else:
        expect(name, p, (channels, *spatial))
    return np.split(p, count)


def blocks_backward(p: Array, dblocks: Sequence[Array]) -> Array:
    """Sums what was broadcast: over the samples, and over the pixels too where p is per channel."""
    dp = np.concatenate(dblocks, axis=1).sum(axis=0)
    return np.asarray(dp.sum(axis=tuple(range(1, dp.ndim))) if p.ndim == 1 else dp)


def add_product(x: Array, p: Array | None, factor: Array | float) -> Array:
    """x + p factor. Not with p = 0 for None: that would make NaN of an infinite factor."""
    return x if p is None else x + p * factor


def zoneout(old: Array, new: Array, m: Array | None) -> Array:
    return new if m is None else m * old + (1.0 - m) * new


def zoneout_backward(d: Array, m: Array | None) -> tuple[Array, Array]:
    """The gradients of the old and of the new state."""
    return (np.zeros_like(d), d) if m is None else (m * d, (1.0 - m) * d)


@dataclass(frozen=True)
class SavedGates:
    old_c: Array
    bias: Array | None
    peephole: Array | None
    i: Activated
    f: Activated
    g: Activated
    o: Activated
    cell: Activated  # phi(C)
    m_h: Array | None
    m_c: Array | None


def lstm_gates_forward(
    z: ArrayLike,
    c: ArrayLike,
    h: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    peephole: ArrayLike | None = None,
    **options: Any,
) -> tuple[Array, Array, Any]:
    """The gates of one step, for any number of spatial dimensions, none included (``nn.LSTMCell``'s case).

    z [B, 4C, *spatial], blocks in the order i, f, g, o; c and h [B, C, *spatial], the state before (h is
    looked at with zoneout of h only); bias [4C] or [4C, *spatial]; peephole [3C] or [3C, *spatial], blocks
    in the order i, f, o; ``options``: see ``GateOptions``. Returns (h, c, saved).

    Shi et al. 2015, eq. 3; zoneout, Krueger et al. 2016; the formula stands in ``fusecell.reference``.
    """
    opt = GateOptions(**options)
    z, old_c = f64(z), f64(c)
    if z.ndim < 2 or z.shape[1] % 4:
        raise ValueError(f"z: expected [B, 4C, *spatial], got {z.shape}")
    state = (z.shape[0], z.shape[1] // 4, *z.shape[2:])
    expect("c", old_c, state)
    m_h, m_c = opt.m_h(state), opt.m_c(state)
    if h is None and m_h is not None:
        raise ValueError("h: expected the state before the step, of which zoneout keeps a part, got None")
    old_h = shaped("h", h, state)

    def sigma(x: Array) -> Activated:
        return Activated(opt.recurrent_activation, x, opt)

    def phi(x: Array) -> Activated:
        return Activated(opt.activation, x, opt)

    b_i, b_f, b_g, b_o = blocks("bias", bias, 4, state)
    p_i, p_f, p_o = blocks("peephole", peephole, 3, state)
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)

    i = sigma(add_product(add_product(z_i, b_i, 1.0), p_i, old_c))
    f = sigma(add_product(add_product(z_f, b_f, 1.0), p_f, old_c))
    g = phi(add_product(z_g, b_g, 1.0))
    new_c = f.y * old_c + i.y * g.y
    o = sigma(add_product(add_product(z_o, b_o, 1.0), p_o, new_c))
    cell = phi(new_c)
    new_h = o.y * cell.y

    bias, peephole = (None if p is None else f64(p) for p in (bias, peephole))
    saved = SavedGates(old_c, bias, peephole, i, f, g, o, cell, m_h, m_c)
    return zoneout(old_h, new_h, m_h), zoneout(old_c, new_c, m_c), saved


def new_state_backward(s: SavedGates, dnew_h: Array, dnew_c: Array) -> tuple[Array, Array]:
    """The gradients of z_o and, in all, of C, from those that reach H and C from behind zoneout."""
    p_o = blocks("peephole", s.peephole, 3, s.old_c.shape)[2]
    dz_o = s.o.backward(dnew_h * s.cell.y)
    return dz_o, add_product(dnew_c + s.cell.backward(dnew_h * s.o.y), p_o, dz_o)


def lstm_gates_backward(
    saved: Any, dh: ArrayLike | None = None, dc: ArrayLike | None = None, *, needs: Iterable[str] | None = None
) -> dict[str, Array]:
    """The gradients of ``lstm_gates_forward``; dh and dc are those of its results (None: zero).

    A dict of z, c, h (with zoneout of h), bias and peephole (where given), or of those named in ``needs``.
    """
    s: SavedGates = saved
    state = s.old_c.shape
    p_i, p_f, _ = blocks("peephole", s.peephole, 3, state)

    dh_kept, dnew_h = zoneout_backward(shaped("dh", dh, state), s.m_h)
    dc_kept, dnew_c = zoneout_backward(shaped("dc", dc, state), s.m_c)
    dz_o, dnew_c = new_state_backward(s, dnew_h, dnew_c)
    dz_i = s.i.backward(dnew_c * s.g.y)
    dz_f = s.f.backward(dnew_c * s.old_c)
    dz_g = s.g.backward(dnew_c * s.i.y)
    dold_c = add_product(add_product(dnew_c * s.f.y, p_i, dz_i), p_f, dz_f) + dc_kept

    dz = [dz_i, dz_f, dz_g, dz_o]
    gradients = {"z": np.concatenate(dz, axis=1), "c": dold_c}
    if s.m_h is not None:
        gradients["h"] = dh_kept
    if s.bias is not None:
        gradients["bias"] = blocks_backward(s.bias, dz)
    if s.peephole is not None:
        new_c = s.cell.x
        gradients["peephole"] = blocks_backward(s.peephole, [dz_i * s.old_c, dz_f * s.old_c, dz_o * new_c])
    return wanted(gradients, needs)
