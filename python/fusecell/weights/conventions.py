"""The table of known conventions: one `Convention` for each framework or repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from fusecell.weights.convention import Convention, Tensor

_NORM = "a norm between convolution and gates depends on the data, and fusecell's cell has none"
_BOTH: tuple[Literal["weight_ih", "weight_hh"], ...] = ("weight_ih", "weight_hh")
_ACTIVATION = frozenset({"activation", "slope"})

_FUSECELL = Convention(
    name="fusecell",
    order="ifgo",
    tensors=(
        Tensor("weight_ih{layer}", "weight_ih", "GO I *"),
        Tensor("weight_hh{layer}", "weight_hh", "GO I *"),
        Tensor("bias{layer}", "bias", "GO *"),
        Tensor("peephole{layer}", "peephole", "GO *"),
    ),
)
_NDRPLZ = Convention(
    name="ndrplz",
    order="ifog",
    tensors=(Tensor("conv.weight", "weight", "GO I *"), Tensor("conv.bias", "bias", "GO")),
    choices=frozenset(),
    odd=_BOTH,
    layers="cell_list.{l}.",
)
_AUTOMAN000 = Convention(
    name="automan000",
    order="ifco",
    tensors=(
        Tensor("Wx{gate}.weight", "weight_ih", "O I *"),
        Tensor("Wx{gate}.bias", "bias", "O"),
        Tensor("Wh{gate}.weight", "weight_hh", "O I *"),
        Tensor("Wc{gate}", "peephole", "1 O +"),
    ),
    choices=frozenset(),
    odd=_BOTH,
    layers="cell{l}.",
)
_JHHUANG96 = replace(
    _NDRPLZ,
    name="jhhuang96",
    order="ifgo",
    tensors=(Tensor("conv.0.weight", "weight", "GO I *"), Tensor("conv.0.bias", "bias", "GO")),
    refused={"conv.1.*": _NORM},
    layers="rnn{l}.",
)
_HZZONE = Convention(
    name="hzzone",
    order="ifco",
    tensors=(
        Tensor("_conv.weight", "weight", "GO I *"),
        Tensor("_conv.bias", "bias", "GO"),
        Tensor("Wc{gate}", "peephole", "1 O +"),
    ),
    choices=frozenset(),
    odd=_BOTH,
    layers="rnn{l}.",
)
_OPENSTL = Convention(
    name="openstl",
    order="ifgo",
    tensors=(Tensor("conv_x.0.weight", "weight_ih", "GO I *"), Tensor("conv_h.0.weight", "weight_hh", "GO I *")),
    choices=frozenset(),
    odd=_BOTH,
    refused={"conv_x.1.*": _NORM, "conv_h.1.*": _NORM},
    unused=("conv_o.*", "conv_last.*"),
    layers="cell_list.{l}.",
)
_KERAS = Convention(
    name="keras",
    order="ifco",
    tensors=(
        Tensor("kernel", "weight_ih", "* I GO", position=0),
        Tensor("recurrent_kernel", "weight_hh", "* I GO", position=1),
        Tensor("bias", "bias", "GO", position=2),
    ),
    options={"padding": "valid"},
    unused=("seed_generator/*",),  # the state of recurrent dropout: some versions save it, some do not
    layers="{l}/",
)
_FLAX = Convention(
    name="flax",
    order="igfo",
    tensors=(
        Tensor("ih/kernel", "weight_ih", "* I GO"),
        Tensor("ih/bias", "bias", "GO"),
        Tensor("hh/kernel", "weight_hh", "* I GO"),
        Tensor("hh/bias", "bias", "GO"),
    ),
    forget_bias=1.0,
    state="ch",
    choices=frozenset(),
    layers="ConvLSTMCell_{l}/",
    nested="all",
)
_HAIKU = Convention(
    name="haiku",
    order="igfo",
    tensors=(
        Tensor("input_to_hidden/w", "weight_ih", "* I GO"),
        Tensor("input_to_hidden/b", "bias", "GO"),
        Tensor("hidden_to_hidden/w", "weight_hh", "* I GO"),
        Tensor("hidden_to_hidden/b", "bias", "GO"),
    ),
    forget_bias=1.0,
    choices=frozenset(),
    layers="conv2_dlstm_{l}/",
    nested="last",
)


def _mxnet(name: str, kernel: str) -> Convention:
    return Convention(
        name=name,
        order="ifco",
        tensors=(
            Tensor("i2h_weight", "weight_ih", kernel),
            Tensor("h2h_weight", "weight_hh", kernel),
            Tensor("i2h_bias", "bias", "GO"),
            Tensor("h2h_bias", "bias", "GO"),
        ),
        options={"padding": 0},
        choices=_ACTIVATION | {"padding", "dilation"},
        odd=("weight_hh",),
        separators="./_",
    )


_TF1 = Convention(
    name="tf1",
    order="igfo",
    tensors=(Tensor("kernel", "weight", "* I GO"), Tensor("biases", "bias", "GO")),
    forget_bias=1.0,
    state="ch",
    choices=frozenset(),
    layers="cell_{l}/conv_lstm_cell/",
)
_CARLTHOME = Convention(
    name="carlthome",
    order="jifo",
    tensors=(
        Tensor("kernel", "weight", "* I GO"),
        Tensor("bias", "bias", "GO"),
        Tensor("W_c{gate}", "peephole", "+ O"),
    ),
    forget_bias=1.0,
    state="ch",
    choices=_ACTIVATION,
    refused={"LayerNorm*": _NORM},
    layers="cell_{l}/",
)
_HASTE = Convention(
    name="haste",
    order="igfo",
    tensors=(
        Tensor("kernel", "weight_ih", "I GO"),
        Tensor("recurrent_kernel", "weight_hh", "I GO"),
        Tensor("bias", "bias", "GO"),
    ),
    choices=frozenset(),
)
_FLASHRNN = Convention(
    name="flashrnn",
    order="ifzo",
    tensors=(
        Tensor("W", "weight_ih", "GO I"),  # outside of flashrnn: the linear layer that makes its Wx
        Tensor("R", "weight_hh", "G 1 O I"),
        Tensor("b", "bias", "G 1 O"),
    ),
    choices=frozenset(),
)
_TORCH = Convention(
    name="torch",
    order="ifgo",
    tensors=(
        Tensor("weight_ih{layer}", "weight_ih", "GO I"),
        Tensor("weight_hh{layer}", "weight_hh", "GO I"),
        Tensor("bias_ih{layer}", "bias", "GO"),
        Tensor("bias_hh{layer}", "bias", "GO"),
    ),
    choices=frozenset(),
    refused={"weight_hr*": "fusecell's cell has no projection (proj_size) of h"},
)
_CHAINER = Convention(
    name="chainer",
    order="aifo",
    tensors=(
        Tensor("upward/W", "weight_ih", "OG I *"),
        Tensor("upward/b", "bias", "OG"),
        Tensor("lateral/W", "weight_hh", "OG I *"),
    ),
    state="ch",
    layers="{l}/",
)
_BLOCKS = Convention(
    name="blocks",
    order="ifco",
    tensors=(
        Tensor("W_x", "weight_ih", "GO I *"),
        Tensor("W_h", "weight_hh", "GO I *"),
        Tensor("b", "bias", "GO *"),
        Tensor("W_c", "peephole", "GO *"),
    ),
)

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            _FUSECELL,
            _NDRPLZ,
            replace(_NDRPLZ, name="torchgeo"),
            replace(_NDRPLZ, name="metnet", choices=_ACTIVATION),
            _AUTOMAN000,
            _JHHUANG96,
            _HZZONE,
            _OPENSTL,
            _KERAS,
            replace(_KERAS, name="keras2", options={"padding": "valid", "recurrent_activation": "hard_sigmoid_keras2"}),
            _FLAX,
            _HAIKU,
            _mxnet("mxnet", "GO I *"),
            _mxnet("mxnet_nhwc", "GO * I"),
            _TF1,
            _CARLTHOME,
            _HASTE,
            _FLASHRNN,
            _TORCH,
            _CHAINER,
            _BLOCKS,
        )
    }
)
"""By name. `dataclasses.replace` makes a variant: `replace(CONVENTIONS["tf1"], forget_bias=0.0)`."""
