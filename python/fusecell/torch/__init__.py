"""fusecell for PyTorch: fused ConvLSTM modules, functions on tensors, clipping.

from fusecell.torch import ConvLSTM2d

lstm = ConvLSTM2d(in_channels=1, hidden_channels=64, kernel_size=3, num_layers=2, batch_first=True)
output, (h_n, c_n) = lstm(torch.randn(4, 10, 1, 64, 64))
"""

from fusecell._extras import require_installed

require_installed("torch", "fusecell.torch")

from fusecell.torch.clip import clip_grad_norm_, clip_grad_value_
from fusecell.torch.conversion import convert, to_plain
from fusecell.torch.functional import conv_lstm, conv_lstm_cell, lstm_gates
from fusecell.torch.modules import ConvLSTM1d, ConvLSTM2d, ConvLSTMCell2d

__all__ = [
    "ConvLSTM1d",
    "ConvLSTM2d",
    "ConvLSTMCell2d",
    "clip_grad_norm_",
    "clip_grad_value_",
    "conv_lstm",
    "conv_lstm_cell",
    "convert",
    "lstm_gates",
    "to_plain",
]
