"""The cell over one step (two convolutions and the gates) and over a sequence (a loop of steps)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._check import Array, expect, expect_axes, f64, shaped, wanted
from ._convolution import axes_of, conv2d_backward, conv2d_forward
from ._gates import lstm_gates_backward, lstm_gates_forward
from ._options import GateOptions, SequenceOptions, StepOptions, options_for
from ._statistics import STEP_STATISTICS, step_statistics


def weights(weight_ih: ArrayLike, weight_hh: ArrayLike, in_channels: int) -> tuple[Array, Array]:
    """Both as float64, refused unless they are [4C, in_channels, kh, kw] and [4C, C, kh', kw']."""
    weight_ih, weight_hh = f64(weight_ih), f64(weight_hh)
    expect_axes("weight_ih", weight_ih, "4C C_in kh kw")
    expect_axes("weight_hh", weight_hh, "4C C kh kw")
    channels = weight_ih.shape[0] // 4
    expect("weight_ih", weight_ih, (4 * channels, in_channels, *weight_ih.shape[2:]))
    expect("weight_hh", weight_hh, (4 * channels, channels, *weight_hh.shape[2:]))
    return weight_ih, weight_hh


@dataclass(frozen=True)
class SavedStep:
    options: StepOptions
    x: Array
    weight_ih: Array
    weight_hh: Array
    dropped_h: Array  # what the recurrent convolution saw
    dropout: Array | None
    gates: Any


def conv_lstm_step_forward(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias: ArrayLike | None,
    peephole: ArrayLike | None,
    h: ArrayLike,
    c: ArrayLike,
    **options: Any,
) -> tuple[Array, Array, Any]:
    """One step of a ConvLSTM (Shi et al. 2015; the formula stands in ``fusecell.reference``).

    x [B, C_in, H_in, W_in]; weight_ih [4C, C_in, kh, kw] and weight_hh [4C, C, kh', kw'], blocks in the
    order i, f, g, o; bias None, [4C] or [4C, H, W]; peephole None, [3C] or [3C, H, W], blocks in the order
    i, f, o; h and c [B, C, H, W], the state before, of the size that the input convolution gives;
    ``options``: see ``StepOptions``. Returns (h, c, saved).
    """
    opt = StepOptions(**options)
    x = f64(x)
    expect_axes("x", x, "B C_in H W")
    weight_ih, weight_hh = weights(weight_ih, weight_hh, in_channels=x.shape[1])
    z = conv2d_forward(x, weight_ih, stride=opt.stride, dilation=opt.dilation, padding=opt.padding)
    h = shaped("h", h, (z.shape[0], z.shape[1] // 4, *z.shape[2:]))
    dropout = opt.dropout(h.shape)
    dropped_h = h if dropout is None else dropout * h
    z += conv2d_forward(dropped_h, weight_hh, padding="same")
    new_h, new_c, gates = lstm_gates_forward(z, c, h, bias, peephole, **options_for(GateOptions, opt))
    return new_h, new_c, SavedStep(opt, x, weight_ih, weight_hh, dropped_h, dropout, gates)


def conv_lstm_step_backward(
    saved: Any, dh: ArrayLike | None = None, dc: ArrayLike | None = None, *, needs: Iterable[str] | None = None
) -> dict[str, Array]:
    """The gradients of ``conv_lstm_step_forward``; dh and dc are those of its results (None: zero).

    A dict of x, weight_ih, weight_hh, bias and peephole (where given), h and c, or of those named in
    ``needs``.
    """
    s: SavedStep = saved
    opt = s.options
    gates = lstm_gates_backward(s.gates, dh, dc)
    dz = gates.pop("z")
    ih = conv2d_backward(dz, s.x, s.weight_ih, stride=opt.stride, dilation=opt.dilation, padding=opt.padding)
    hh = conv2d_backward(dz, s.dropped_h, s.weight_hh, padding="same")
    dh_old = hh["x"] if s.dropout is None else s.dropout * hh["x"]
    if "h" in gates:
        dh_old = dh_old + gates["h"]  # what zoneout kept of it
    gradients = {"x": ih["x"], "weight_ih": ih["weight"], "weight_hh": hh["weight"], **gates, "h": dh_old}
    return wanted(gradients, needs)


@dataclass(frozen=True)
class SavedSequence:
    parameters: dict[str, Array]  # weights, bias and peephole: those that were given
    x_shape: tuple[int, ...]
    state_shape: tuple[int, ...]
    steps: list[tuple[int, NDArray[np.bool_], bool, Any]]  # in the order run: t, active, detached, saved


def conv_lstm_forward(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias: ArrayLike | None = None,
    peephole: ArrayLike | None = None,
    h_0: ArrayLike | None = None,
    c_0: ArrayLike | None = None,
    **options: Any,
) -> tuple[Array, Array, Array, Any]:
    """A ConvLSTM (Shi et al. 2015) over a sequence, from the state (h_0, c_0), which is zero if not given.

    x [T, B, C_in, H_in, W_in]; weights, bias and peephole as in ``conv_lstm_step_forward``; h_0 and c_0
    [B, C, H, W]; ``options``: see ``SequenceOptions``. Returns (y, h_n, c_n, saved): y [T, B, C, H, W] is
    the h of every step, 0 where a step is inactive; h_n and c_n [B, C, H, W] are the state after the last
    step. T or B may be 0.
    """
    opt = SequenceOptions(**options)
    x = f64(x)
    expect_axes("x", x, "T B C_in H W")
    weight_ih, weight_hh = weights(weight_ih, weight_hh, in_channels=x.shape[2])
    rows, columns = axes_of(x.shape[3:], weight_ih.shape[2:], opt.stride, opt.dilation, opt.padding)
    state_shape = (x.shape[1], weight_hh.shape[1], rows.out, columns.out)
    h, c = shaped("h_0", h_0, state_shape).copy(), shaped("c_0", c_0, state_shape).copy()
    y = np.zeros((len(x), *state_shape))
    active = opt.active(*x.shape[:2])
    m_h, m_c, dropout = opt.m_h(y.shape), opt.m_c(y.shape), opt.dropout(state_shape)

    steps = []
    times = range(len(x))
    for step, t in enumerate(reversed(times) if opt.reverse else times):
        b = active[t]
        of_step = options_for(StepOptions, opt) | {
            "zoneout_mask_h": None if m_h is None else m_h[t, b],
            "zoneout_mask_c": None if m_c is None else m_c[t, b],
            "dropout_mask": None if dropout is None else dropout[b],
        }
        h[b], c[b], saved = conv_lstm_step_forward(x[t, b], weight_ih, weight_hh, bias, peephole, h[b], c[b], **of_step)
        y[t, b] = h[b]
        steps.append((t, b, opt.detaches(step), saved))

    arguments = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias": bias, "peephole": peephole}
    parameters = {name: f64(p) for name, p in arguments.items() if p is not None}
    return y, h, c, SavedSequence(parameters, x.shape, state_shape, steps)


def conv_lstm_backward(
    saved: Any,
    dy: ArrayLike | None = None,
    dh_n: ArrayLike | None = None,
    dc_n: ArrayLike | None = None,
    *,
    needs: Iterable[str] | None = None,
    statistics: bool = False,
) -> dict[str, Array]:
    """The gradients of ``conv_lstm_forward``; dy, dh_n and dc_n are those of its results (None: zero).

    Back-propagation through time. A dict of x, weight_ih, weight_hh, bias and peephole (where given), h_0
    and c_0, or of those named in ``needs``. ``statistics`` adds "statistics" [T, 9], see ``step_statistics``.
    """
    s: SavedSequence = saved
    dy = shaped("dy", dy, (s.x_shape[0], *s.state_shape))
    dh, dc = shaped("dh_n", dh_n, s.state_shape).copy(), shaped("dc_n", dc_n, s.state_shape).copy()
    dx = np.zeros(s.x_shape)
    dparameters = {name: np.zeros_like(p) for name, p in s.parameters.items()}
    watched = np.zeros((s.x_shape[0], len(STEP_STATISTICS)))
    for t, b, detached, step in reversed(s.steps):
        if statistics:
            watched[t] = step_statistics(step.gates, dh[b] + dy[t, b], dc[b])
        gradients = conv_lstm_step_backward(step, dh[b] + dy[t, b], dc[b])
        dx[t, b] = gradients["x"]
        dh[b] = 0.0 if detached else gradients["h"]
        dc[b] = 0.0 if detached else gradients["c"]
        for name in dparameters:
            dparameters[name] += gradients[name]
    found = wanted({"x": dx, **dparameters, "h_0": dh, "c_0": dc}, needs)
    return {**found, "statistics": watched} if statistics else found
