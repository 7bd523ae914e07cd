#pragma once
// The gradients' kernels with channels last by themselves, as numpy's arrays, for tests.

#include <pybind11/pybind11.h>

namespace fusecell::bindings {

void define_tensor_gradient(pybind11::module_& m);

}  // namespace fusecell::bindings
