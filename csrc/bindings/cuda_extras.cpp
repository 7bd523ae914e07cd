// Nothing but what every module of the CUDA backend has.

#include "bindings/extras.h"
#include "bindings/gpu.h"

namespace fusecell::bindings {

void define_extras(pybind11::module_& m) { define_gpu(m); }

}  // namespace fusecell::bindings
