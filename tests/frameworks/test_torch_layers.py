"""SimpleRNN, BatchNorm, the optimisers and the L2 penalty against PyTorch's own, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fusecell import losses, ops, optim
from fusecell.layers import BatchNorm, SimpleRNN

torch = pytest.importorskip("torch")


def tensor(array, grad=False):
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def assert_same(got, expected, rtol=1e-12):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * max(1e-300, np.abs(expected).max()))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (1, 1, 1, 1), (50, 1, 3, 2), (4, 17, 20, 40)])
def test_simple_rnn(activation, bias, shape, rng):
    T, B, I, C = shape
    layer = SimpleRNN(I, C, activation=activation, bias=bias, rng=rng, dtype=np.float64)
    for array in layer.parameters().values():
        array += 0.1 * rng.standard_normal(array.shape)
    theirs = torch.nn.RNN(I, C, nonlinearity=activation, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for name, array in layer.parameters().items():
            getattr(theirs, name.replace("bias_l0", "bias_ih_l0")).copy_(torch.from_numpy(array))
        if bias:
            theirs.bias_hh_l0.zero_()
    x, h_0 = rng.standard_normal((T, B, I)), rng.standard_normal((B, C))
    dy, dh_n = rng.standard_normal((T, B, C)), rng.standard_normal((B, C))
    tx, th = tensor(x, True), tensor(h_0[None], True)
    y, h_n = theirs(tx, th)
    torch.autograd.backward([y, h_n], [torch.from_numpy(dy), torch.from_numpy(dh_n[None])])
    assert_same(layer.forward(x, h_0), y)
    assert_same(layer.final_state, h_n[0])
    assert_same(layer.backward(dy, dh_n), tx.grad)
    assert_same(layer.dstate, th.grad[0])
    found = layer.gradients()
    assert_same(found["weight_ih_l0"], theirs.weight_ih_l0.grad)
    assert_same(found["weight_hh_l0"], theirs.weight_hh_l0.grad)
    if bias:
        assert_same(found["bias_l0"], theirs.bias_ih_l0.grad)


PHI = {
    "identity": lambda a: a,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda a: torch.nn.functional.leaky_relu(a, 0.3),
    "elu": lambda a: torch.nn.functional.elu(a, 0.7),
    "softplus": lambda a: torch.nn.functional.softplus(a, threshold=100),  # linear above 20 by default
    "hard_sigmoid": lambda a: torch.nn.functional.relu6(a + 3) / 6,  # its own hardsigmoid rounds 1/6 to float32
    "hard_sigmoid_keras2": lambda a: torch.clamp(0.2 * a + 0.5, 0, 1),
    "hard_tanh": torch.nn.functional.hardtanh,
    "softsign": torch.nn.functional.softsign,
}


@pytest.mark.parametrize("activation", PHI)
def test_any_activation_and_the_statistics(activation, rng):
    """The statistics are of gradients that autograd keeps at every step."""
    x, wi, wh, b, h_0 = (rng.standard_normal(s) for s in ((5, 3, 2), (4, 2), (4, 4), (4,), (3, 4)))
    leaves = [tensor(a, True) for a in (x, wi, wh, b, h_0)]
    tx, twi, twh, tb, h = leaves
    steps = []
    for t in range(5):
        h = PHI[activation](tx[t] @ twi.T + h @ twh.T + tb)
        h.retain_grad()
        steps.append(h)
    dy = rng.standard_normal((5, 3, 4))
    torch.stack(steps).backward(torch.from_numpy(dy))
    y, _, saved = ops.rnn_forward(x, wi, wh, b, h_0, activation=activation, slope=0.3, alpha=0.7)
    assert_same(y, torch.stack(steps))
    found = ops.rnn_backward(saved, dy, statistics=True)
    table = found.pop("statistics")
    for gradient, leaf in zip(found.values(), leaves, strict=True):
        assert_same(gradient, leaf.grad)
    assert_same(table[:, 1], torch.stack([torch.sum(h.grad**2) for h in steps]))


@pytest.mark.parametrize(("axis", "shape"), [(-1, (8, 5)), (-3, (4, 5, 3, 2))])
def test_batch_norm(axis, shape, rng):
    layer = BatchNorm(5, axis=axis, momentum=0.3, eps=1e-3, dtype=np.float64)
    make = torch.nn.BatchNorm1d if axis == -1 else torch.nn.BatchNorm2d
    theirs = make(5, momentum=0.3, eps=1e-3, dtype=torch.float64)
    for array, own in zip(layer.parameters().values(), (theirs.weight, theirs.bias), strict=True):
        array += 0.5 * rng.standard_normal(5)
        own.data.copy_(torch.from_numpy(array))
    for training in (True, True, False):
        layer.training = training
        theirs.train(training)
        theirs.zero_grad()
        x, dy = 3 + 2 * rng.standard_normal(shape), rng.standard_normal(shape)
        tx = tensor(x, True)
        y = theirs(tx)
        y.backward(torch.from_numpy(dy))
        assert_same(layer.forward(x), y)
        assert_same(layer.backward(dy), tx.grad, rtol=1e-11)
        assert_same(layer.gradients()["scale"], theirs.weight.grad)
        assert_same(layer.gradients()["shift"], theirs.bias.grad)
        assert_same(layer.buffers()["running_mean"], theirs.running_mean)
        assert_same(layer.buffers()["running_variance"], theirs.running_var)


OPTIMISERS = {
    "nesterov": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "nesterov and decay": (
        optim.SGD,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    ),
    "adamw by default": (optim.AdamW, torch.optim.AdamW, {}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(name, rng):
    ours, theirs, options = OPTIMISERS[name]
    own = {"weight": rng.standard_normal((3, 4)), "bias": rng.standard_normal(3)}
    leaves = {n: tensor(a, True) for n, a in own.items()}
    mine, other = ours(own, **({"lr": 1e-3} | options)), theirs(leaves.values(), **options)
    for _ in range(10):
        gradients = {n: rng.standard_normal(a.shape) for n, a in own.items()}
        for n, leaf in leaves.items():
            leaf.grad = tensor(gradients[n])
        mine.step(gradients)
        other.step()
    for n, leaf in leaves.items():
        assert_same(own[n], leaf)


def test_an_l2_penalty_is_twice_a_weight_decay(rng):
    own = {"weight": rng.standard_normal((3, 4)), "bias": rng.standard_normal(3)}
    leaves = {n: tensor(a, True) for n, a in own.items()}
    groups = [{"params": [leaves["weight"]], "weight_decay": 0.2}, {"params": [leaves["bias"]]}]
    mine, other = optim.SGD(own, 0.1), torch.optim.SGD(groups, 0.1)
    for _ in range(5):
        gradients = {n: rng.standard_normal(a.shape) for n, a in own.items()}
        for n, leaf in leaves.items():
            leaf.grad = tensor(gradients[n])
        other.step()
        value, penalty = losses.l2_penalty(own, 0.1)
        assert value == pytest.approx(0.1 * float(np.sum(own["weight"] ** 2)))
        mine.step(losses.add_gradients(gradients, penalty))
    for n, leaf in leaves.items():
        assert_same(own[n], leaf)
