"""ConvLSTMs as people write them by hand, in many styles: what `fusecell.torch.convert` must recognise, or refuse.

Each class is written from a description of a style, not from anybody's file. `step(x, h, c)` calls a cell in its own
convention and gives (h, c). CELLS and SEQUENCES are to be converted, REFUSED to be left alone with a reason.
"""

from __future__ import annotations

import random
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

I, C, K = 2, 3, 3
SIZE = (5, 4)


class Pair(nn.Module):
    """forward(x, (h, c)) -> (h, c)."""

    def step(self, x, h, c):
        return self(x, (h, c))


# ------------------------------------------------------------------------------------- one convolution over both
class ChunkIFGO(Pair):
    def __init__(self):
        super().__init__()
        self.gates = nn.Conv2d(I + C, 4 * C, K, padding=K // 2)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class SplitIFOG(Pair):
    """Keyword names of its own, a kernel that is not square, no bias, init_hidden."""

    def __init__(self, input_dim=I, hidden_dim=C, kernel_size=(3, 5), bias=False):
        super().__init__()
        self.input_dim, self.hidden_dim, self.kernel_size = input_dim, hidden_dim, kernel_size
        self.padding = kernel_size[0] // 2, kernel_size[1] // 2
        self.conv = nn.Conv2d(
            input_dim + hidden_dim, 4 * hidden_dim, kernel_size=kernel_size, padding=self.padding, bias=bias
        )

    def forward(self, input_tensor, cur_state):
        h_cur, c_cur = cur_state
        combined = self.conv(torch.cat([input_tensor, h_cur], dim=1))
        cc_i, cc_f, cc_o, cc_g = torch.split(combined, self.hidden_dim, dim=1)
        i, f, o, g = torch.sigmoid(cc_i), torch.sigmoid(cc_f), torch.sigmoid(cc_o), torch.tanh(cc_g)
        c_next = f * c_cur + i * g
        return o * torch.tanh(c_next), c_next

    def init_hidden(self, batch_size, image_size):
        zeros = torch.zeros(batch_size, self.hidden_dim, *image_size, device=self.conv.weight.device)
        return zeros, zeros.clone()


class HiddenFirst(nn.Module):
    """cat([h, x]), the order f, i, o, g, an optional state, the output besides the state."""

    def __init__(self):
        super().__init__()
        self.Gates = nn.Conv2d(I + C, 4 * C, K, padding="same")

    def forward(self, input_, prev_state=None):
        if prev_state is None:
            size = (input_.shape[0], C, *input_.shape[2:])
            prev_state = torch.zeros(size, dtype=input_.dtype), torch.zeros(size, dtype=input_.dtype)
        hidden, cell = prev_state
        f, i, o, g = self.Gates(torch.cat((hidden, input_), 1)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return hidden, (hidden, cell)

    def step(self, x, h, c):
        return self(x, (h, c))[1]


class JointSigmoid(nn.Module):
    """Three gates under one sigmoid, slices, lists as states, cell state first, forget bias added in forward."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, K, padding=1)
        self.forget_bias = 1.0

    def forward(self, x, states):
        c, h = states
        z = self.conv(torch.cat([x, h], 1))
        g = z[:, :C].tanh()
        i, f, o = z[:, C : 2 * C].sigmoid(), (z[:, 2 * C : 3 * C] + self.forget_bias).sigmoid(), z[:, 3 * C :].sigmoid()
        c = c * f + g * i
        return [c, o * c.tanh()]

    def step(self, x, h, c):
        c, h = self(x, [c, h])
        return h, c


class Interleaved(nn.Module):
    """Channel 4c + q is gate q of channel c; h and c as two arguments with defaults."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, K, padding=1)

    def forward(self, x, h=None, c=None):
        if h is None:
            h = x.new_zeros(x.size(0), C, x.size(2), x.size(3))
            c = torch.zeros_like(h)
        z = self.conv(torch.cat([x, h], 1))
        z = z.reshape(z.size(0), C, 4, z.size(2), z.size(3))
        g, i, f, o = z.unbind(2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def step(self, x, h, c):
        return self(x, h=h, c=c)


class HardKeras(Pair):
    """The hard sigmoid of Keras 2 and relu."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, K, padding=1)

    @staticmethod
    def hard(x):
        return torch.clamp(0.2 * x + 0.5, 0, 1)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = self.hard(f) * c + self.hard(i) * F.relu(g)
        return self.hard(o) * F.relu(c), c


class Named(nn.Module):
    """States as a named tuple, softsign, F.hardsigmoid, the state first among the arguments."""

    State = namedtuple("State", "h c")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, 1)

    def forward(self, state, x):
        i, f, g, o = self.conv(torch.cat([x, state[0]], 1)).split(C, 1)
        c = F.hardsigmoid(f) * state[1] + F.hardsigmoid(i) * F.softsign(g)
        return {"h": F.hardsigmoid(o) * F.softsign(c), "c": c}

    def step(self, x, h, c):
        out = self((h, c), x)
        return out["h"], out["c"]


class EvenKernel(Pair):
    """A kernel of 2 x 4 with one zero more before than behind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, (2, 4))

    def forward(self, x, state):
        h, c = state
        i, f, o, g = self.conv(F.pad(torch.cat([x, h], 1), (2, 1, 1, 0))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * F.leaky_relu(g, 0.2)
        return torch.sigmoid(o) * F.leaky_relu(c, 0.2), c


# ---------------------------------------------------------------------------------------- separate convolutions
class TwoConvolutions(nn.Module):
    """conv_x with a bias, conv_h without; o, g, f, i; h and c alone as the result."""

    def __init__(self, bias_h=False):
        super().__init__()
        self.conv_x = nn.Sequential(nn.Conv2d(I, 4 * C, 5, padding=2))
        self.conv_h = nn.Sequential(nn.Conv2d(C, 4 * C, K, padding=1, bias=bias_h))

    def forward(self, x_t, h_t, c_t):
        o, g, f, i = torch.split(self.conv_x(x_t) + self.conv_h(h_t), C, dim=1)
        c_new = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_new), c_new

    def step(self, x, h, c):
        return self(x, h, c)


class SplitApart(TwoConvolutions):
    """Each convolution is split before the sum; both biases; a constant in the forget gate; dead weights."""

    def __init__(self):
        super().__init__(bias_h=True)
        self.conv_o = nn.Conv2d(2 * C, C, 1)
        self._forget_bias = 0.7

    def forward(self, x_t, h_t, c_t):
        i_x, f_x, g_x, o_x = torch.split(self.conv_x(x_t), C, dim=1)
        i_h, f_h, g_h, o_h = torch.split(self.conv_h(h_t), C, dim=1)
        c_new = torch.sigmoid(f_x + f_h + self._forget_bias) * c_t
        c_new = c_new + torch.sigmoid(i_x + i_h) * torch.tanh(g_x + g_h)
        return torch.sigmoid(o_x + o_h) * torch.tanh(c_new), c_new


class Strided(Pair):
    """A convolution of x with stride and dilation, so that the state is smaller than x."""

    def __init__(self):
        super().__init__()
        self.conv_x = nn.Conv2d(I, 4 * C, K, stride=2, padding=2, dilation=2)
        self.conv_h = nn.Conv2d(C, 4 * C, K, padding=1)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.conv_x(x) + self.conv_h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class PerGate(nn.Module):
    """Eight convolutions, and peepholes per pixel that are 0 until they are trained."""

    def __init__(self, learned=True):
        super().__init__()
        for gate in "ifco":
            setattr(self, f"Wx{gate}", nn.Conv2d(I, C, K, 1, 1, bias=True))
            setattr(self, f"Wh{gate}", nn.Conv2d(C, C, K, 1, 1, bias=False))
        for gate in "ifo":
            zeros = torch.zeros(1, C, *SIZE)
            setattr(self, f"Wc{gate}", nn.Parameter(zeros) if learned else zeros)

    def forward(self, x, h, c):
        ci = torch.sigmoid(self.Wxi(x) + self.Whi(h) + c * self.Wci)
        cf = torch.sigmoid(self.Wxf(x) + self.Whf(h) + c * self.Wcf)
        cc = cf * c + ci * torch.tanh(self.Wxc(x) + self.Whc(h))
        co = torch.sigmoid(self.Wxo(x) + self.Who(h) + cc * self.Wco)
        return co * torch.tanh(cc), cc

    def step(self, x, h, c):
        return self(x, h, c)


class PlainPeepholes(PerGate):
    """Peepholes that are plain tensors: never trained."""

    def __init__(self):
        super().__init__(learned=False)


class PerGateOnBoth(Pair):
    """Four convolutions over cat([x, h]), two of them with a bias; peepholes per channel on f and o alone."""

    def __init__(self):
        super().__init__()
        self.forget = nn.Conv2d(I + C, C, K, padding=1, bias=False)
        self.update = nn.Conv2d(I + C, C, K, padding=1)
        self.candidate = nn.Conv2d(I + C, C, K, padding=1)
        self.expose = nn.Conv2d(I + C, C, K, padding=1, bias=False)
        self.peep_f = nn.Parameter(torch.zeros(C, 1, 1))
        self.register_buffer("peep_o", torch.full((1, C, 1, 1), 0.1))

    def forward(self, x, hx):
        hidden, cell = hx
        both = torch.cat([x, hidden], 1)
        f = torch.sigmoid(self.forget(both) + self.peep_f * cell)
        u = torch.sigmoid(self.update(both))
        cell = f * cell + u * F.hardtanh(self.candidate(both))
        return torch.sigmoid(self.expose(both) + self.peep_o * cell) * F.hardtanh(cell), cell


class ThreePeepholesInOne(Pair):
    """One [3C] parameter of peepholes, cut by channel, in the order i, f, o."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, K, padding=1)
        self.peephole = nn.Parameter(torch.zeros(3 * C))

    def forward(self, x, state):
        h, c = state
        p_i, p_f, p_o = (p.view(1, -1, 1, 1) for p in self.peephole.chunk(3))
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        new = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        return torch.sigmoid(o + p_o * new) * torch.tanh(new), new


class RawParameters(Pair):
    """F.conv2d on the module's own parameters; biases per channel and, beside one, per pixel."""

    def __init__(self):
        super().__init__()
        for gate in "ifgo":
            self.register_parameter(f"w_x{gate}", nn.Parameter(0.3 * torch.randn(C, I, K, K)))
            self.register_parameter(f"w_h{gate}", nn.Parameter(0.3 * torch.randn(C, C, K, K)))
        self.b_i = nn.Parameter(torch.randn(C))
        self.b_c = nn.Parameter(torch.randn(C))
        self.b_f = nn.Parameter(torch.ones(1, C, 1, 1))
        self.b_g = nn.Parameter(torch.randn(C, *SIZE))

    def forward(self, x, state):
        h, c = state

        def both(gate):
            w_x, w_h = getattr(self, f"w_x{gate}"), getattr(self, f"w_h{gate}")
            return F.conv2d(x, w_x, padding=1) + F.conv2d(h, w_h, padding=1)

        i = torch.sigmoid(both("i") + self.b_i.view(1, -1, 1, 1))
        f = torch.sigmoid(both("f") + self.b_f)
        c = f * c + i * torch.tanh(both("g") + self.b_c[:, None, None] + self.b_g)
        return torch.sigmoid(both("o")) * torch.tanh(c), c


class OneDimension(Pair):
    """A ConvLSTM over [B, C, W]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(I + C, 4 * C, 5, padding=2)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
        return torch.sigmoid(o) * c, c


class GatesBySum(Pair):
    """Both convolutions by F.conv2d on [4C] weights with two biases; the new h besides the state."""

    def __init__(self):
        super().__init__()
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.randn(4 * C, n, K, K)) for n in (I, C))
        self.bias_ih, self.bias_hh = (nn.Parameter(torch.randn(4 * C)) for _ in range(2))

    def forward(self, input, hx):
        h, c = hx
        z = F.conv2d(input, self.weight_ih, self.bias_ih, padding=1) + F.conv2d(
            h, self.weight_hh, self.bias_hh, padding=1
        )
        i, f = torch.sigmoid(z[:, :C]), torch.sigmoid(z[:, C : 2 * C])
        g, o = torch.tanh(z[:, 2 * C : 3 * C]), torch.sigmoid(z[:, 3 * C :])
        c = f * c + i * g
        h = o * torch.tanh(c)
        return h, (h, c)

    def step(self, x, h, c):
        return self(x, (h, c))[1]


class KeywordOnly(ChunkIFGO):
    """The state by name alone."""

    def forward(self, x, *, state):
        return super().forward(x, state)

    def step(self, x, h, c):
        return self(x, state=(h, c))


class FramePeepholes(nn.Module):
    """Peepholes [C, H, W] without the batch, an activation that is chosen by name, positional h and c."""

    def __init__(self, channels=I, activation="relu"):
        super().__init__()
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.conv = nn.Conv2d(channels + C, 4 * C, K, padding="same")
        self.W_ci, self.W_cf, self.W_co = (nn.Parameter(torch.rand(C, *SIZE)) for _ in range(3))

    def forward(self, X, H_prev, C_prev):
        i, f, c, o = torch.chunk(self.conv(torch.cat([X, H_prev], dim=1)), chunks=4, dim=1)
        new = torch.sigmoid(f + self.W_cf * C_prev) * C_prev
        new = new + torch.sigmoid(i + self.W_ci * C_prev) * self.activation(c)
        return torch.sigmoid(o + self.W_co * new) * self.activation(new), new

    def step(self, x, h, c):
        return self(x, h, c)


CELLS = [
    KeywordOnly, GatesBySum, FramePeepholes, ChunkIFGO, SplitIFOG, HiddenFirst, JointSigmoid, Interleaved,
    HardKeras, Named, EvenKernel, TwoConvolutions, SplitApart, Strided, PerGate, PlainPeepholes, PerGateOnBoth,
    ThreePeepholesInOne, RawParameters, OneDimension,
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- to be refused
class Normed(Pair):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(I + C, 4 * C, K, padding=1), nn.GroupNorm(4, 4 * C))

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Variation(Pair):
    """The plain cell, with methods to be varied."""

    groups, padding_mode, dilation = 1, "zeros", 1

    def __init__(self):
        super().__init__()
        options = {"groups": self.groups, "dilation": self.dilation, "padding_mode": self.padding_mode}
        self.conv_x = nn.Conv2d(I, 4 * C, K, padding=1)
        self.conv_h = nn.Conv2d(C, 4 * C, K, padding=self.dilation, **options)

    def activate(self, i, f, g, o):
        return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)

    def new_c(self, i, f, g, c):
        return f * c + i * g

    def new_h(self, o, g, c):
        return o * torch.tanh(c)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.activate(*(self.conv_x(x) + self.conv_h(h)).chunk(4, 1))
        c = self.new_c(i, f, g, c)
        return self.new_h(o, g, c), c


class OutputOfG(Variation):
    def new_h(self, o, g, c):
        return o * g


class Coupled(Variation):
    def new_c(self, i, f, g, c):
        return (1 - i) * c + i * g


class Clipped(Variation):
    def new_c(self, i, f, g, c):
        return (f * c + i * g).clamp(-0.3, 0.3)


class TwoActivations(Variation):
    def new_h(self, o, g, c):
        return o * c


class Dropped(Variation):
    def new_h(self, o, g, c):
        return F.dropout(o * torch.tanh(c), 0.5, self.training)


class Grouped(Variation):
    groups = C


class Circular(Variation):
    padding_mode = "circular"


class Dilated(Variation):
    dilation = 2


class Computed(Variation):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, state):
        h, c = state
        z = self.conv_x(x) + F.conv2d(h, self.conv_h.weight * self.scale, self.conv_h.bias, padding=1)
        i, f, g, o = self.activate(*z.chunk(4, 1))
        c = self.new_c(i, f, g, c)
        return self.new_h(o, g, c), c


class WeightNormed(Variation):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.conv_h)


class OldPeephole(PerGate):
    def forward(self, x, h, c):
        ci = torch.sigmoid(self.Wxi(x) + self.Whi(h) + c * self.Wci)
        cf = torch.sigmoid(self.Wxf(x) + self.Whf(h) + c * self.Wcf)
        co = torch.sigmoid(self.Wxo(x) + self.Who(h) + c * self.Wco)
        c = cf * c + ci * torch.tanh(self.Wxc(x) + self.Whc(h))
        return co * torch.tanh(c), c


class GateSeesG(PerGate):
    """A peephole on the candidate."""

    def forward(self, x, h, c):
        ci = torch.sigmoid(self.Wxi(x) + self.Whi(h) + c * self.Wci)
        cf = torch.sigmoid(self.Wxf(x) + self.Whf(h))
        c = cf * c + ci * torch.tanh(self.Wxc(x) + self.Whc(h) + c * self.Wcf)
        co = torch.sigmoid(self.Wxo(x) + self.Who(h) + c * self.Wco)
        return co * torch.tanh(c), c


class HookedConvLSTM(Variation):
    def __init__(self):
        super().__init__()
        self.conv_x.register_forward_hook(double_output)


def double_output(module, args, output):
    return 2.0 * output


class DifferentKernels(PerGate):
    def __init__(self):
        super().__init__()
        self.Wxo = nn.Conv2d(I, C, 1)


class DataDependentConvLSTM(Variation):
    """Agrees in training alone."""

    def new_h(self, o, g, c):
        return o * torch.tanh(c) * (1.0 if self.training else 1.00001)


class ConvolutionOfC(Variation):
    """A peephole that is a convolution of the cell state."""

    def __init__(self):
        super().__init__()
        self.conv_c = nn.Conv2d(C, C, K, padding=1)

    def forward(self, x, state):
        i, f, g, o = (self.conv_x(x) + self.conv_h(state[0])).chunk(4, 1)
        i, f, g, o = self.activate(i + self.conv_c(state[1]), f, g, o)
        c = self.new_c(i, f, g, state[1])
        return self.new_h(o, g, c), c


class Remembers(Variation):
    """Keeps its last state where others may read it."""

    def forward(self, x, state):
        self.last = super().forward(x, state)
        return self.last


REFUSED = {
    ConvolutionOfC: "conv_c.weight: a convolution sees the cell state",
    Remembers: "its forward keeps tensors in last, as a fused one would not",
    Normed: r"a norm stands between convolution and gates \(group_norm\)",
    OutputOfG: r"h is not o tanh\(c\): the largest difference is \d",
    Coupled: "conv_x.weight: the module's output does not depend on row 3",
    Clipped: r"the new cell state is not f c \+ i g",
    TwoActivations: "the activation of g is tanh, that of the cell state identity: expected one for both",
    Dropped: "dropout inside the cell",
    Grouped: "conv_h.weight: a convolution in 3 groups",
    Circular: "conv_h.weight: the convolution sees an image padded with other values than zeros",
    Dilated: r"conv_h.weight: stride \(1, 1\) and dilation \(2, 2\) in the recurrent convolution, expected 1",
    Computed: r"the weight of a convolution is computed from other tensors \(Mul\)",
    WeightNormed: r"the weight of a convolution is computed from other tensors \(WeightNormInterface\)",
    OldPeephole: "the output gate's peephole looks at the old cell state, expected the new one",
    GateSeesG: "a peephole on the candidate g",
    HookedConvLSTM: "hooks on conv_x, which a fused step would not run",
    DifferentKernels: "the convolutions of x differ in kernel, stride, dilation or padding",
    DataDependentConvLSTM: r"the probe disagrees: outputs differ by .* in evaluation mode",
}


# ------------------------------------------------------------------------------------------------------ sequences
class StackOfCells(nn.Module):
    """Layers in a list, permuted where time comes first, nested lists of outputs and of last states."""

    def __init__(self, batch_first=True, return_all_layers=True, layers=2):
        super().__init__()
        self.batch_first, self.return_all_layers = batch_first, return_all_layers
        self.cell_list = nn.ModuleList([SplitIFOG(C if n else I, C, (3, 3), True) for n in range(layers)])

    def forward(self, input_tensor, hidden_state=None):
        if not self.batch_first:
            input_tensor = input_tensor.permute(1, 0, 2, 3, 4)
        b, seq_len, _, h, w = input_tensor.size()
        if hidden_state is None:
            hidden_state = [cell.init_hidden(b, (h, w)) for cell in self.cell_list]
        layer_output_list, last_state_list = [], []
        current = input_tensor
        for cell, (h, c) in zip(self.cell_list, hidden_state, strict=True):
            inner = []
            for t in range(seq_len):
                h, c = cell(input_tensor=current[:, t, :, :, :], cur_state=[h, c])
                inner.append(h)
            current = torch.stack(inner, dim=1)
            layer_output_list.append(current)
            last_state_list.append([h, c])
        if not self.return_all_layers:
            layer_output_list, last_state_list = layer_output_list[-1:], last_state_list[-1:]
        return layer_output_list, last_state_list


class TimeFirstLast(StackOfCells):
    """Time first, the last layer alone."""

    def __init__(self):
        super().__init__(batch_first=False, return_all_layers=False)


class TimeOutside(nn.Module):
    """For each frame all layers; a list of outputs and the last states, stacked over layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = ChunkIFGO(), PerGateOnBoth()
        self.first.gates = nn.Conv2d(I + I, 4 * I, K, padding=1)

    def forward(self, frames):
        size = frames.shape[1], I, *frames.shape[3:]
        h_1 = c_1 = frames.new_zeros(size)
        h_2 = c_2 = frames.new_zeros(size[0], C, *size[2:])
        outputs = []
        for frame in frames:
            h_1, c_1 = self.first(frame, (h_1, c_1))
            h_2, c_2 = self.second(h_1, (h_2, c_2))
            outputs.append(h_2)
        return outputs, {"h": h_2, "c": c_2, "first": h_1[None]}


class BothWays(nn.Module):
    """One cell forward, one backward, side by side."""

    def __init__(self):
        super().__init__()
        self.ahead, self.back = TwoConvolutions(), TwoConvolutions()

    @staticmethod
    def run(cell, frames):
        h = c = frames[0].new_zeros(frames[0].shape[0], C, *frames[0].shape[2:])
        outputs = []
        for frame in frames:
            h, c = cell(frame, h, c)
            outputs.append(h)
        return outputs

    def forward(self, x):
        frames = list(x.unbind(1))
        ahead, back = self.run(self.ahead, frames), self.run(self.back, frames[::-1])[::-1]
        return torch.cat([torch.stack(ahead, 1), torch.stack(back, 1)], dim=2)


class OwnLoop(nn.Module):
    """A whole sequence in one forward, with a convolution of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, K, padding=1)

    def forward(self, X):
        batch_size, seq_len, _, height, width = X.size()
        output = torch.zeros(batch_size, seq_len, C, height, width, dtype=X.dtype)
        H = torch.zeros(batch_size, C, height, width, dtype=X.dtype)
        S = torch.zeros(batch_size, C, height, width, dtype=X.dtype)
        for t in range(seq_len):
            i, f, o, g = torch.chunk(self.conv(torch.cat([X[:, t], H], dim=1)), 4, dim=1)
            S = torch.sigmoid(f) * S + torch.sigmoid(i) * torch.relu(g)
            H = torch.sigmoid(o) * torch.relu(S)
            output[:, t] = H
        return output


class OwnLoopBias(nn.Module):
    """Raw weights and a bias that is added to the sum."""

    def __init__(self):
        super().__init__()
        self.w_x, self.w_h = (nn.Parameter(torch.randn(4 * C, n, K, K)) for n in (I, C))
        self.b = nn.Parameter(torch.zeros(1, 4 * C, 1, 1))

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], C, *x.shape[3:])
        outputs = []
        for frame in x.unbind(1):
            z = F.conv2d(frame, self.w_x, padding=1) + F.conv2d(h, self.w_h, padding=1) + self.b
            i, f, g, o = z.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1)


class OwnLoopPeepholes(nn.Module):
    """Time first, separate convolutions per gate, peepholes, stacked outputs and the last state."""

    def __init__(self):
        super().__init__()
        for gate in "ifco":
            setattr(self, f"x{gate}", nn.Conv2d(I, C, 5, padding=2))
            setattr(self, f"h{gate}", nn.Conv2d(C, C, K, padding=1, bias=False))
        self.peepholes = nn.ParameterDict({gate: nn.Parameter(torch.zeros(1, C, 1, 1)) for gate in "ifo"})

    def forward(self, inputs, states=None):
        if states is None:
            zeros = inputs.new_zeros(inputs.size(1), C, inputs.size(3), inputs.size(4))
            states = zeros, zeros
        h, c = states
        outputs = []
        for index in range(inputs.size(0)):
            x = inputs[index, ...]
            i = torch.sigmoid(self.xi(x) + self.hi(h) + self.peepholes["i"] * c)
            f = torch.sigmoid(self.xf(x) + self.hf(h) + self.peepholes["f"] * c)
            c = f * c + i * torch.tanh(self.xc(x) + self.hc(h))
            o = torch.sigmoid(self.xo(x) + self.ho(h) + self.peepholes["o"] * c)
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class LastOnly(nn.Module):
    """A cell in a loop, of whose states the last h alone is returned, with a channel of time in front of it."""

    def __init__(self):
        super().__init__()
        self.cell = HiddenFirst()

    def forward(self, x, lengths=None):
        state = None
        for t in range(x.shape[1]):
            h, state = self.cell(x[:, t], state)
        return h


class EncoderToDecoder(nn.Module):
    """A second cell that starts from the first one's last state and sees its outputs."""

    def __init__(self):
        super().__init__()
        self.encoder = ChunkIFGO()
        self.decoder = SplitIFOG(C, C, (3, 3), True)

    def forward(self, x):
        state = (x.new_zeros(x.shape[0], C, *x.shape[3:]),) * 2
        seen, made = [], []
        for frame in x.unbind(1):
            state = self.encoder(frame, state)
            seen.append(state[0])
        for h in seen:
            state = self.decoder(h, state)
            made.append(state[0])
        return torch.stack(made, 1)


class TimeThird(nn.Module):
    """[B, C, T, H, W] in and out, with time in the middle."""

    def __init__(self):
        super().__init__()
        self.cell = FramePeepholes()

    def forward(self, X):
        batch_size, _, seq_len, height, width = X.size()
        output = torch.zeros(batch_size, C, seq_len, height, width, dtype=X.dtype)
        H = S = torch.zeros(batch_size, C, height, width, dtype=X.dtype)
        for time_step in range(seq_len):
            H, S = self.cell(X[:, :, time_step], H, S)
            output[:, :, time_step] = H
        return output


class OwnLayers(nn.Module):
    """Two layers of convolutions of its own, stepped together, in lists of states."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(I + C, 4 * C, K, padding=1), nn.Conv2d(C + 2, 8, 5, padding=2)])

    def forward(self, x):
        h = [x.new_zeros(x.shape[0], n, *x.shape[3:]) for n in (C, 2)]
        c = [state.clone() for state in h]
        outputs = []
        for t in range(x.shape[1]):
            below = x[:, t]
            for layer, conv in enumerate(self.convs):
                i, f, o, g = conv(torch.cat([below, h[layer]], 1)).chunk(4, 1)
                c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
                below = h[layer] = o.sigmoid() * c[layer].tanh()
            outputs.append(below)
        return torch.stack(outputs, 1), h, c


class OwnLength(nn.Module):
    """The number of steps is an argument; inputs and states may be absent; peepholes of a fixed size; time first."""

    def __init__(self):
        super().__init__()
        self._conv = nn.Conv2d(I + C, 4 * C, K, 1, 1)
        self._height, self._width = SIZE
        for gate in "ifo":
            self.register_parameter(f"Wc{gate}", nn.Parameter(torch.zeros(1, C, *SIZE)))

    def forward(self, inputs=None, states=None, seq_len=3):
        if states is None:
            c = torch.zeros(inputs.size(1), C, self._height, self._width, dtype=inputs.dtype)
            h = torch.zeros_like(c)
        else:
            h, c = states
        outputs = []
        for index in range(seq_len):
            x = torch.zeros(h.size(0), I, *SIZE, dtype=h.dtype) if inputs is None else inputs[index, ...]
            i, f, g, o = torch.chunk(self._conv(torch.cat([x, h], dim=1)), 4, dim=1)
            i, f = torch.sigmoid(i + self.Wci * c), torch.sigmoid(f + self.Wcf * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.Wco * c) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


SEQUENCES = [
    OwnLoopBias, TimeThird, OwnLayers, StackOfCells, TimeFirstLast, TimeOutside, BothWays, OwnLoop,
    OwnLoopPeepholes, LastOnly, EncoderToDecoder,
]  # fmt: skip


# --------------------------------------------------------------------------------- cells fused, the loop stays
class FeedsBack(nn.Module):
    """Predictions are fed back: step by step, by its nature."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = ChunkIFGO(), nn.Conv2d(C, I, 1)

    def forward(self, x):
        state = (x.new_zeros(x.shape[0], C, *x.shape[3:]),) * 2
        outputs = []
        for t in range(x.shape[1] + 2):
            state = self.cell(x[:, t] if t < x.shape[1] else outputs[-1], state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs, 1)


class DropsBetween(StackOfCells):
    """Dropout between its layers."""

    def __init__(self):
        super().__init__()
        self.cell_list[1].register_module("noise", None)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_tensor):
        x = input_tensor
        for cell in self.cell_list:
            h, c = cell.init_hidden(x.shape[0], tuple(x.shape[3:]))
            outputs = []
            for frame in x.unbind(1):
                h, c = cell(frame, (h, c))
                outputs.append(self.dropout(h))
            x = torch.stack(outputs, 1)
        return x


class Resets(nn.Module):
    """Forgets its state every second frame."""

    def __init__(self):
        super().__init__()
        self.cell = ChunkIFGO()

    def forward(self, x):
        outputs = []
        for t, frame in enumerate(x.unbind(1)):
            if t % 2 == 0:
                state = (frame.new_zeros(frame.shape[0], C, *frame.shape[2:]),) * 2
            state = self.cell(frame, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)


class Squared(LastOnly):
    """Returns something else than its cells do."""

    def forward(self, x):
        return super().forward(x).square()


class Preprocesses(nn.Module):
    """The cell sees features of the frames."""

    def __init__(self):
        super().__init__()
        self.stem, self.cell = nn.Conv2d(I, I, 1), ChunkIFGO()

    def forward(self, x):
        state = (x.new_zeros(x.shape[0], C, *x.shape[3:]),) * 2
        for frame in x.unbind(1):
            state = self.cell(torch.relu(self.stem(frame)), state)
        return state[0]


class LearnedStart(nn.Module):
    """The first state is a parameter."""

    def __init__(self):
        super().__init__()
        self.cell, self.start = ChunkIFGO(), nn.Parameter(torch.randn(1, C, 1, 1))

    def forward(self, x):
        state = (self.start.expand(x.shape[0], C, *x.shape[3:]),) * 2
        for frame in x.unbind(1):
            state = self.cell(frame, state)
        return state[0]


LOOPS_THAT_STAY = {
    LearnedStart: "cell starts from a state that is neither zero nor another cell's last",
    FeedsBack: "cell is called 6 times for 4 frames",
    DropsBetween: "cell_list.1 sees neither the frames nor the outputs of other cells, step by step",
    Resets: "cell is not given the state that its last step returned",
    Squared: "an output is neither a sequence nor a last state of its cells",
    Preprocesses: "cell sees neither the frames nor the outputs of other cells, step by step",
}


# ------------------------------------------------------------------------------- what is only known once it has run
class LatePeepholes(PerGate):
    """Peepholes are made by init_hidden, for the size of the first image."""

    def __init__(self):
        super().__init__()
        for gate in "ifo":
            delattr(self, f"Wc{gate}")
            setattr(self, f"Wc{gate}", None)

    def init_hidden(self, x):
        if self.Wci is None:
            for gate in "ifo":
                setattr(self, f"Wc{gate}", torch.zeros(1, C, *x.shape[2:], dtype=x.dtype))
        return (torch.zeros(x.shape[0], C, *x.shape[2:], dtype=x.dtype),) * 2


class SameFrame(nn.Module):
    """Shows its cells one image again and again, and collects some of the outputs."""

    def __init__(self, steps=3):
        super().__init__()
        self.steps, self.late = steps, LatePeepholes()

    def forward(self, image):
        h, c = self.late.init_hidden(image)
        for _ in range(self.steps):
            h, c = self.late(image, h, c)
        return h


class LateLoop(OwnLoopBias):
    """Makes its peephole in its first forward."""

    def forward(self, x):
        if not hasattr(self, "p"):
            self.p = torch.zeros(1, C, *x.shape[3:], dtype=x.dtype)
        h = c = x.new_zeros(x.shape[0], C, *x.shape[3:])
        outputs = []
        for frame in x.unbind(1):
            z = F.conv2d(frame, self.w_x, padding=1) + F.conv2d(h, self.w_h, padding=1) + self.b
            i, f, g, o = z.chunk(4, 1)
            c = torch.sigmoid(f + self.p * c) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1)


class DrawsNumbers(FeedsBack):
    """Draws from every generator there is."""

    def forward(self, x):
        return super().forward(x) * random.random() * np.random.rand() * torch.rand(1)  # noqa: NPY002
