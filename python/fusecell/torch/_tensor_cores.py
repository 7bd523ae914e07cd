"""What is known of a call before its plan: whether a GPU's tensor cores compute it, and torch's switch for TF32."""

from __future__ import annotations

import torch
from torch import Tensor

from fusecell import _dispatch
from fusecell._typing import Algorithm
from fusecell.torch import _memory


def on_tensor_cores(x: Tensor, algorithm: str) -> bool:
    """Whether the core will take tensor cores for a sequence, as its plan says: for tensors that have no memory.

    A name that asks for them is taken at its word, since the call itself refuses what it cannot do.
    """
    backend = _memory.place_of(x.device).backend
    if backend == "cpu" or algorithm not in ("auto", "tensor_cores", "tf32"):
        return False
    return algorithm != "auto" or (x.dtype in _memory.HALF and _there_are(backend))


def _there_are(backend: str) -> bool:
    """Assumed without kernels to ask: a program is traced or exported for another machine."""
    try:
        return _dispatch.tensor_cores(backend)
    except _dispatch.NoCudaKernelsError:
        return True


def algorithm_of_float32(device_type: str) -> Algorithm:
    """What "auto" is for float32: on a GPU TF32 if torch's own convolutions may take it now, else the direct one.

    Decided where a call is made or traced: torch.compile takes the answer for a constant.
    """
    backend = "cuda" if device_type == "cuda" else _dispatch.host_place().backend
    if backend == "cpu":
        return "auto"
    return "tf32" if torch_allows_tf32() and _there_are(backend) else "direct"


# What torch.compiler.assume_constant_result sets, without the two seconds that importing torch's compiler takes.
algorithm_of_float32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def torch_allows_tf32() -> bool:
    """Whether torch's own convolutions of float32 on a GPU may round what they read to TF32."""
    of_convolutions = getattr(torch.backends.cudnn, "conv", None)
    if of_convolutions is None:  # before torch 2.9; from then on the older name raises where both were used
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(of_convolutions.fp32_precision == "tf32")
