"""The functional API: every op of fusecell, forward and backward, on NumPy arrays and on arrays on a GPU.

NumPy arrays are computed on by the CPU; CuPy arrays, and any that speak DLPack or __cuda_array_interface__, by the GPU
they lie on, on CuPy's current stream; results are arrays of the same library, from a GPU CuPy's. `rnn_forward` and
`rnn_backward` are for NumPy arrays alone.

Arrays that are computed on share one dtype: float32 or float64; on a GPU bfloat16 and float16, too, with sums in
float32, and cell states (c, c_0, c_n and their gradients) that are float32 arrays. Any strides are accepted: an input
that is not C-contiguous, aligned and in native byte order is copied first (in-place ops copy the result back). Outputs
are new arrays. A bad argument raises TypeError or ValueError that names it, says what was expected and what came, and
nothing is changed. `fusecell.reference` holds the definition of each op in plain NumPy; the formulas are those of
Shi et al. 2015 (ConvLSTM), Gers and Schmidhuber 2000 (peepholes), Krueger et al. 2016 (zoneout).

Options of the cell, the same for every op that has one (keyword only):

| option | meaning |
|---|---|
| `stride`, `dilation` | of the input convolution: int or (h, w) |
| `padding` | of the input convolution: "same", "valid" (as Keras), int, (h, w) or ((low, high), (low, high)) |
| `recurrent_activation` | σ: "sigmoid", "hard_sigmoid" (torch, Keras 3), "hard_sigmoid_keras2" (Keras 2) |
| `activation` | φ: "tanh", "relu", "leaky_relu", "hard_tanh", "softsign", "identity" |
| `slope` | of leaky_relu |
| `relu_at_zero` | the derivative of relu at exactly 0: 0, 0.5 or 1 |
| `lengths` | [B] integers: step t of sample b takes place iff t < lengths[b]; padding affects nothing |
| `reverse` | run t = T-1 .. 0; y stays in original time order |
| `truncation` | k > 0: the state that enters step k, 2k, ... of the direction is detached in backward |
| `zoneout_h`, `zoneout_c` | rates at which the old state is kept; in training by random masks, else by expectation |
| `zoneout_mask_h`, `zoneout_mask_c` | [T, B, C, H, W] uint8 or bool, 1 keeps the old state; in place of random ones |
| `recurrent_dropout` | rate; in training one inverted mask on h' in the recurrent convolution, for all t |
| `dropout_mask` | [B, C, H, W], dtype of x; in place of a random one |
| `training`, `seed`, `offset` | whether random masks are drawn, and the Philox stream (see `bernoulli`) |
"""

from __future__ import annotations

from fusecell.ops.activations import activation_backward, activation_forward, softmax_backward, softmax_forward
from fusecell.ops.clipping import clip_by_global_norm_, clip_by_norm_, clip_by_value_, clip_if_any_exceeds_, global_norm
from fusecell.ops.conv2d import conv2d_backward, conv2d_forward
from fusecell.ops.conv_lstm import (
    STEP_STATISTICS,
    SavedConvLSTM,
    conv_lstm_backward,
    conv_lstm_forward,
    conv_lstm_step_backward,
    conv_lstm_step_forward,
)
from fusecell.ops.lstm_gates import SavedGates, lstm_gates_backward, lstm_gates_forward
from fusecell.ops.masks import bernoulli
from fusecell.ops.rnn import RNN_STEP_STATISTICS, SavedRNN, rnn_backward, rnn_forward
from fusecell.ops.updates import adam_update_, sgd_update_

__all__ = [
    "RNN_STEP_STATISTICS",
    "STEP_STATISTICS",
    "SavedConvLSTM",
    "SavedGates",
    "SavedRNN",
    "activation_backward",
    "activation_forward",
    "adam_update_",
    "bernoulli",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
    "clip_if_any_exceeds_",
    "conv2d_backward",
    "conv2d_forward",
    "conv_lstm_backward",
    "conv_lstm_forward",
    "conv_lstm_step_backward",
    "conv_lstm_step_forward",
    "global_norm",
    "lstm_gates_backward",
    "lstm_gates_forward",
    "rnn_backward",
    "rnn_forward",
    "sgd_update_",
    "softmax_backward",
    "softmax_forward",
]
