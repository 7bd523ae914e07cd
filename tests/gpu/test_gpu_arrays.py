"""Whatever array lies on the GPU is computed on where it lies: CuPy's, torch's through DLPack, and by interface."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from on_gpu import Sequence5D, bits, cupy, digest, normal, wait

from fusecell import ops
from fusecell.ops._arguments import as_array

DTYPES = ["float32", "float64", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch sees no GPU")
    return module


class Interface:
    """Says where its memory is, and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self._array.__cuda_array_interface__
        return interface


def same_as_torch(torch: Any, got: Any, expected: Any) -> bool:
    """The same shape, dtype and bits, read through DLPack, as torch takes it."""
    back = torch.from_dlpack(got)
    return back.dtype == expected.dtype and torch.equal(back, expected)


# --------------------------------------------------------------------------------------------------------- CuPy's
def test_results_are_cupys_where_the_arguments_lie(rng: np.random.Generator) -> None:
    results = Sequence5D(rng).run()
    assert all(isinstance(r, cupy.ndarray) and r.device.id == 0 for r in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_arrays_give_the_same_bits(dtype: str, rng: np.random.Generator) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = normal(rng, 6, 10, dtype=kind)
    view = x[::2, 1::3]
    copy = cupy.asarray(np.ascontiguousarray(x.get()[::2, 1::3]))
    assert bits([ops.activation_forward("tanh", view)]) == bits([ops.activation_forward("tanh", copy)])


def test_memory_that_is_not_aligned_to_16_bytes(rng: np.random.Generator) -> None:
    x = normal(rng, 1025)
    off = x[1:]
    assert bits([ops.activation_forward("tanh", off)]) == [digest(ops.activation_forward("tanh", x).get()[1:])]


def test_strided_gradients_are_clipped_in_place(rng: np.random.Generator) -> None:
    base = normal(rng, 8, 12)
    before = base.get()
    norm = ops.clip_by_global_norm_([base[::2, ::3]], 0.5)
    after = base.get()
    taken = before[::2, ::3].astype(np.float64)
    assert float(norm) == pytest.approx(np.sqrt((taken**2).sum()), rel=1e-12)
    np.testing.assert_allclose(after[::2, ::3], taken * 0.5 / (float(norm) + 1e-6), rtol=1e-6)
    after[::2, ::3] = before[::2, ::3]
    assert np.array_equal(after, before)


# -------------------------------------------------------------------------------------------------------- torch's
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_come_and_go_without_a_copy(torch: Any, dtype: str) -> None:
    x = torch.randn(33, 7, device="cuda").to(getattr(torch, dtype))
    assert as_array("x", x).data.ptr == x.data_ptr()
    y = ops.activation_forward("relu", x)
    assert isinstance(y, cupy.ndarray)
    back = torch.from_dlpack(y)
    assert back.data_ptr() == y.data.ptr
    assert same_as_torch(torch, y, torch.relu(x))


def test_strided_torch_tensors(torch: Any) -> None:
    x = torch.randn(6, 5, 4, device="cuda").permute(2, 0, 1)[:, ::2]
    assert same_as_torch(torch, ops.activation_forward("relu", x), torch.relu(x).contiguous())


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gradients_are_clipped_in_place(torch: Any, dtype: str, strided: bool) -> None:
    base = [torch.randn(n, 3, device="cuda").to(getattr(torch, dtype)) for n in (100, 5000)]
    gradients = [t[::2] for t in base] if strided else base
    wide = [g.double().clone() for g in gradients]
    norm = ops.clip_by_global_norm_(gradients, 1.0)
    expected_norm = torch.sqrt(sum((g**2).sum() for g in wide))
    assert float(norm) == pytest.approx(float(expected_norm), rel=1e-12)
    rounding = {"float64": 1e-12, "float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for got, before in zip(gradients, wide, strict=True):
        torch.testing.assert_close(got.double(), before / (expected_norm + 1e-6), rtol=rounding, atol=1e-7)


def test_torch_and_cupy_in_one_call_give_what_cupy_gives(torch: Any, rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    expected = bits(problem.run())
    problem.x = torch.from_dlpack(problem.x)
    problem.weights[1] = torch.from_dlpack(problem.weights[1])
    assert bits(problem.run()) == expected


def test_what_torch_does_on_another_stream_is_waited_for(torch: Any) -> None:
    x = torch.zeros(1 << 20, device="cuda")
    ops.activation_forward("relu", x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(400_000_000)  # a fifth of a second
        x.fill_(2.0)
        y = ops.activation_forward("relu", x)
    assert (y.get() == 2.0).all()


def test_a_torch_tensor_on_the_host_is_refused(torch: Any) -> None:
    with pytest.raises(TypeError, match=r"x: expected a NumPy array or an array on a GPU, got torch\.Tensor"):
        ops.activation_forward("relu", torch.zeros(3))


# --------------------------------------------------------------------------------------------------- by interface
def test_arrays_that_only_say_where_they_lie(rng: np.random.Generator) -> None:
    x = normal(rng, 5, 77)
    assert as_array("x", Interface(x)).data.ptr == x.data.ptr
    assert bits([ops.activation_forward("tanh", Interface(x))]) == bits([ops.activation_forward("tanh", x)])
    before = x.get().astype(np.float64)
    norm = float(ops.clip_by_global_norm_([Interface(x)], 1.0))
    wait()
    np.testing.assert_allclose(x.get(), before / (norm + 1e-6), rtol=1e-6)
