"""The definition of every fusecell op: NumPy, float64, plain loops.

Written to be read and to be right, not to be fast. It shares no code with the rest of fusecell, so that
an error of the kernels cannot hide in it; every faster backend is tested against it. Names and signatures
are those of ``fusecell.ops`` with three differences: arguments of any real dtype are taken and float64
comes out, there is no ``save``, and the clip family and the updates are pure (new arrays come back).

One step of the cell, ``*`` a cross-correlation, every other product elementwise, (h', c') the state
before the step:

    z = W_ih * x + W_hh * h' + b               four blocks of C channels, in the order i, f, g, o
    i = sigma(z_i + p_i c')    f = sigma(z_f + p_f c')    g = phi(z_g)
    C = f c' + i g             o = sigma(z_o + p_o C)     H = o phi(C)
    c = m_c c' + (1 - m_c) C   h = m_h h' + (1 - m_h) H

Sources: the LSTM with forget gate, Gers, Schmidhuber and Cummins, "Learning to Forget" (2000);
peepholes (p), Gers, Schraudolph and Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks"
(2002); the convolutional cell, Shi et al., "Convolutional LSTM Network" (2015); zoneout (m), Krueger et
al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations" (2016); one recurrent dropout
mask for all steps, Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
Neural Networks" (2016), on h' alone as in Keras; truncated back-propagation through time, Williams and
Peng (1990); the random numbers, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).

Every adjoint stands directly under its function. Letters of shapes: T steps, B samples, C channels of
the state, H x W its size. What does not fit raises ValueError and names the argument, what was expected
and what came; an unknown option or a wrong kind of number raises TypeError.
"""

from ._activations import activation_backward, activation_forward, softmax_backward, softmax_forward
from ._clipping import clip_by_global_norm_, clip_by_norm_, clip_by_value_, clip_if_any_exceeds_, global_norm
from ._convolution import conv2d_backward, conv2d_forward
from ._gates import lstm_gates_backward, lstm_gates_forward
from ._options import GateOptions, SequenceOptions, StepOptions
from ._philox import bernoulli
from ._sequence import conv_lstm_backward, conv_lstm_forward, conv_lstm_step_backward, conv_lstm_step_forward
from ._statistics import STEP_STATISTICS
from ._updates import adam_update_, sgd_update_

__all__ = [
    "STEP_STATISTICS",
    "GateOptions",
    "SequenceOptions",
    "StepOptions",
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
    "sgd_update_",
    "softmax_backward",
    "softmax_forward",
]
