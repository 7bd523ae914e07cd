"""Run by test_emulated with FUSECELL_ISA=portable, where the compiler contracts no products and sums on either side.

What is summed in one order by the CPU's direct path and by CUDA's kernels has the same bits; the gradients of weights
and parameters, which are sums over all pixels in parts, agree to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusecell import _dispatch, ops, selftest
from fusecell._cases import ACTIVATIONS, CASES, Results, largest_error, run_case

SUMS_IN_PARTS = {"weight", "weight_ih", "weight_hh", "bias", "peephole"}
ROUNDING = {np.float32: 5e-6, np.float64: 1e-13}
CUDA: Any = selftest.Emulated()


def assert_same_bits(what: str, one: Results, two: Results) -> None:
    for name in one.keys() - SUMS_IN_PARTS:
        assert np.array_equal(one[name], two[name]), f"{what}: {name}"  # 0 and -0 are equal


def check_cases(dtype: Any) -> None:
    for case in CASES:
        arguments = case.arguments(np.random.default_rng(1), dtype)
        one, two = (run_case(module, case, arguments, None) for module in (ops, CUDA))
        assert_same_bits(str(case), one.outputs, two.outputs)
        assert_same_bits(str(case), one.gradients, two.gradients)
        assert largest_error(two.gradients, one.gradients) < ROUNDING[dtype], str(case)


def check_elementwise(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, dy = (3 * rng.standard_normal(10_001)).astype(dtype), rng.standard_normal(10_001).astype(dtype)
    for name in ACTIVATIONS:
        y = ops.activation_forward(name, x)
        assert_same_bits(name, {"y": y}, {"y": CUDA.activation_forward(name, x)})
        one, two = (module.activation_backward(name, x, y, dy) for module in (ops, CUDA))
        assert_same_bits(name, {"dx": one}, {"dx": two})
    results = []
    for module in (ops, CUDA):
        arrays = [x.copy(), dy.copy()]
        module.clip_by_value_(arrays, 1.0)
        module.sgd_update_(arrays, [dy, x], lr=0.1, norm=3.0, max_norm=1.0)
        results.append({str(i): a for i, a in enumerate(arrays)})
    assert_same_bits("lists", *results)


if __name__ == "__main__":
    assert _dispatch.build_info()["isa"] == "portable"
    for dtype in ROUNDING:
        check_cases(dtype)
        check_elementwise(dtype)
