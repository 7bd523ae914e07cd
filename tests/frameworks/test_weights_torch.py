"""fusecell.weights against torch.nn.LSTM and LSTMCell, and modules with the keys of the repositories people copy.

The modules here are written from the conventions' descriptions: their parameters' names, what they concatenate, the
order in which they split. Their state_dict() is what a checkpoint of the original holds.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fusecell import ops, weights  # noqa: E402

T, B, CIN, C, H, W = 3, 2, 3, 2, 5, 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def conv(inputs, outputs, kernel, bias=True):
    return nn.Conv2d(inputs, outputs, kernel, padding=tuple(k // 2 for k in kernel), bias=bias, dtype=torch.float64)


def image(*shape):
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64))


class Ndrplz(nn.Module):
    def __init__(self, inputs, kernel):
        super().__init__()
        self.conv = conv(inputs + C, 4 * C, kernel)

    def forward(self, x, h, c):
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), C, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Automan000(nn.Module):
    def __init__(self, inputs, kernel):
        super().__init__()
        for gate in "ifco":
            setattr(self, f"Wx{gate}", conv(inputs, C, kernel))
            setattr(self, f"Wh{gate}", conv(C, C, kernel, bias=False))
        # Tensors, not parameters: they are 0 for ever and in no state_dict
        self.Wci = self.Wcf = self.Wco = torch.zeros(1, C, H, W, dtype=torch.float64)

    def forward(self, x, h, c):
        i = torch.sigmoid(self.Wxi(x) + self.Whi(h) + c * self.Wci)
        f = torch.sigmoid(self.Wxf(x) + self.Whf(h) + c * self.Wcf)
        c = f * c + i * torch.tanh(self.Wxc(x) + self.Whc(h))
        return torch.sigmoid(self.Wxo(x) + self.Who(h) + c * self.Wco) * torch.tanh(c), c


class Hzzone(nn.Module):
    def __init__(self, inputs, kernel):
        super().__init__()
        self._conv = conv(inputs + C, 4 * C, kernel)
        self.Wci, self.Wcf, self.Wco = image(1, C, H, W), image(1, C, H, W), image(1, C, H, W)

    def forward(self, x, h, c):
        i, f, g, o = torch.chunk(self._conv(torch.cat([x, h], dim=1)), 4, dim=1)
        c, old = torch.sigmoid(f + self.Wcf * c) * c, c
        c = c + torch.sigmoid(i + self.Wci * old) * torch.tanh(g)
        return torch.sigmoid(o + self.Wco * c) * torch.tanh(c), c


class Jhhuang96(nn.Module):
    def __init__(self, inputs, kernel, norm=False):
        super().__init__()
        self.conv = nn.Sequential(conv(inputs + C, 4 * C, kernel), *([nn.GroupNorm(2, 4 * C)] if norm else []))

    def forward(self, x, h, c):
        i, f, g, o = torch.split(self.conv(torch.cat([x, h], dim=1)), C, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class OpenSTL(nn.Module):
    def __init__(self, inputs, kernel, norm=False):
        super().__init__()

        def of(n, m):
            layers = [conv(n, m * C, kernel, bias=False), *([nn.LayerNorm([m * C, H, W])] if norm else [])]
            return nn.Sequential(*layers)

        self.conv_x, self.conv_h, self.conv_o = of(inputs, 4), of(C, 4), of(2 * C, 1)
        self.conv_last = conv(2 * C, C, (1, 1), bias=False)

    def forward(self, x, h, c):
        i, f, g, o = torch.split(self.conv_x(x) + self.conv_h(h), C, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Stack(nn.Module):
    """Two cells under the names that the repository gives its layers."""

    def __init__(self, kind, names, kernel):
        super().__init__()
        cells = [kind(CIN, kernel), kind(C, kernel)]
        if "." in names:
            setattr(self, names.split(".")[0], nn.ModuleList(cells))
        else:
            for l, cell in enumerate(cells):
                self.add_module(names.format(l), cell)
        self.cells = lambda: cells  # not registered twice

    def forward(self, x, states):
        final = []
        for cell, (h, c) in zip(self.cells(), states, strict=True):
            y = []
            for x_t in x:
                h, c = cell(x_t, h, c)
                y.append(h)
            x = torch.stack(y)
            final.append((h, c))
        return x, final


MODULES = {
    "ndrplz": (Ndrplz, "cell_list.{}"),
    "automan000": (Automan000, "cell{}"),
    "hzzone": (Hzzone, "rnn{}"),
    "jhhuang96": (Jhhuang96, "rnn{}"),
    "openstl": (OpenSTL, "cell_list.{}"),
}
UNUSED_OF_OPENSTL = pytest.mark.filterwarnings("ignore:.*conv_o.0.weight.*not used:UserWarning")


def run_ours(cells, x, states):
    final = []
    for cell, (h, c) in zip(cells, states, strict=True):
        x, *last, _ = ops.conv_lstm_forward(x, **cell.arguments(), h_0=h, c_0=c)
        final.append(last)
    return x, final


def compare(net, cells, rng, shape=(H, W)):
    x = rng.standard_normal((T, B, CIN, *shape))
    states = [[rng.standard_normal((B, C, *shape)) for _ in "hc"] for _ in cells]
    y, final = run_ours(cells, x, states)
    with torch.no_grad():
        expected, last = net(torch.tensor(x), [[torch.tensor(a) for a in state] for state in states])
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    for state, e in zip(final, last, strict=True):
        for a, b in zip(state, e, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@UNUSED_OF_OPENSTL
@pytest.mark.parametrize("kernel", [(3, 5), (1, 1)])
@pytest.mark.parametrize("name", MODULES)
def test_into_fusecell_and_back(name, kernel, rng):
    net = Stack(*MODULES[name], kernel)
    cells = weights.load(net.state_dict(), name)
    assert len(cells) == 2
    compare(net, cells, rng)
    back = weights.dump(cells, name)
    own = net.state_dict()
    assert set(back) == {key for key in own if "conv_o" not in key and "conv_last" not in key}
    for key, array in back.items():
        np.testing.assert_array_equal(array, own[key].numpy(), err_msg=key)


@UNUSED_OF_OPENSTL
@pytest.mark.parametrize("name", MODULES)
def test_into_the_module(name, rng):
    holds = {tensor.holds for tensor in weights.CONVENTIONS[name].tensors}
    has_peepholes = "peephole" in holds and name != "automan000"
    cells = [
        weights.ConvLSTMWeights(
            rng.standard_normal((4 * C, inputs, 3, 3)),
            rng.standard_normal((4 * C, C, 3, 3)),
            rng.standard_normal(4 * C) if "bias" in holds else None,
            rng.standard_normal((3 * C, H, W)) if has_peepholes else None,
        )
        for inputs in (CIN, C)
    ]
    net = Stack(*MODULES[name], (3, 3))
    given = {key: torch.tensor(array) for key, array in weights.dump(cells, name).items()}
    result = net.load_state_dict(given, strict=False)
    assert not result.unexpected_keys
    assert all("conv_o" in key or "conv_last" in key for key in result.missing_keys)
    compare(net, cells, rng)


def test_peepholes_that_are_in_no_state_dict(rng):
    """automan000's, handed over with the rest, as attributes of the cell."""
    net = Stack(Automan000, "cell{}", (3, 3))
    source = dict(net.state_dict())
    for l, cell in enumerate(net.cells()):
        for gate in "ifo":
            setattr(cell, f"Wc{gate}", torch.tensor(rng.standard_normal((1, C, H, W))))
            source[f"cell{l}.Wc{gate}"] = getattr(cell, f"Wc{gate}")
    compare(net, weights.load(source, "automan000"), rng)


@pytest.mark.parametrize(("name", "keys"), [("jhhuang96", "conv.1.weight"), ("openstl", "conv_x.1.weight")])
def test_norms_are_refused(name, keys):
    cell = MODULES[name][0](CIN, (3, 3), norm=True)
    with pytest.raises(ValueError, match=f"{keys}, .*: expected none, since a norm between convolution and gates"):
        weights.load(cell.state_dict(), name)


def test_parameters_that_require_grad():
    """Not a state_dict: NumPy cannot read these, and torch says what to call."""
    with pytest.raises(TypeError, match=r"conv.weight: expected what np.asarray takes, got Parameter \(.*detach"):
        weights.load(dict(Ndrplz(CIN, (3, 3)).named_parameters()), "ndrplz")


@pytest.mark.parametrize("bias", [True, False])
def test_lstm(bias, rng):
    """Two layers, two directions: a dense LSTM is a ConvLSTM with 1x1 kernels on 1x1 images."""
    net = nn.LSTM(CIN, C, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    cells = weights.load(net.state_dict(), "torch")
    assert [cell.name for cell in cells] == ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    x = rng.standard_normal((T, B, CIN))
    h, c = rng.standard_normal((2, 4, B, C))
    y = x[..., None, None]
    for l in range(2):
        both = [
            ops.conv_lstm_forward(
                y, **cells[n].arguments(), h_0=h[n, ..., None, None], c_0=c[n, ..., None, None], reverse=n % 2 == 1
            )[0]
            for n in (2 * l, 2 * l + 1)
        ]
        y = np.concatenate(both, axis=2)
    expected = net(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))[0].detach().numpy()
    np.testing.assert_allclose(y[..., 0, 0], expected, rtol=0, atol=1e-12)

    other = nn.LSTM(CIN, C, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    back = weights.dump(cells, "torch", bidirectional=True)
    other.load_state_dict({key: torch.tensor(array) for key, array in back.items()})
    found = other(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_lstm_cell(rng):
    cell = nn.LSTMCell(CIN, C, dtype=torch.float64)
    [found] = weights.load(cell.state_dict(), "torch")
    x, h, c = (rng.standard_normal((B, n)) for n in (CIN, C, C))
    expected = [a.detach().numpy() for a in cell(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))]
    h_n, c_n, _ = ops.conv_lstm_step_forward(
        x[..., None, None], **found.arguments(), h=h[..., None, None], c=c[..., None, None]
    )
    np.testing.assert_allclose(h_n[..., 0, 0], expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(c_n[..., 0, 0], expected[1], rtol=0, atol=1e-13)
    cell.load_state_dict({key: torch.tensor(array) for key, array in weights.dump(found, "torch").items()})
    again = cell(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))[0].detach().numpy()
    np.testing.assert_allclose(again, expected[0], rtol=0, atol=1e-14)


def test_projections_are_refused():
    with pytest.raises(ValueError, match=r"weight_hr_l0: expected none, since fusecell's cell has no projection"):
        weights.load(nn.LSTM(CIN, C, proj_size=1).state_dict(), "torch")
