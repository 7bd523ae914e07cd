#pragma once
// What one backend's module has besides the functions that all have.

#include <pybind11/pybind11.h>

namespace fusecell::bindings {

void define_extras(pybind11::module_& m);

}  // namespace fusecell::bindings
