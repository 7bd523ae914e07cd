// The emulation's controls, for tests: which engine, when copies arrive, in which order threads run.

#include "bindings/emulated_gradient.h"
#include "bindings/extras.h"
#include "bindings/gpu.h"
#include "cuda/tensor_choice.h"
#include "emulation/controls.h"

namespace fusecell::bindings {

void define_extras(pybind11::module_& m) {
  namespace py = pybind11;
  define_gpu(m);
  define_tensor_gradient(m);
  // As the environment variable FUSECELL_EMULATION has it, and whether a graph is being captured.
  m.def("set_controls", [](const std::string& text, bool capturing) {
    emulation::Controls controls = emulation::parse_controls(text);
    controls.capturing = capturing;
    emulation::set_controls(controls);
  });
  m.def("statistics", [] {
    const auto statistics = emulation::statistics();
    py::dict result;
    result["launches"] = statistics.launches;
    result["blocks"] = statistics.blocks;
    result["barriers"] = statistics.barriers;
    result["shuffles"] = statistics.shuffles;
    result["matrix_loads"] = statistics.matrix_loads;
    result["matrix_products"] = statistics.matrix_products;
    result["warpgroup_products"] = statistics.warpgroup_products;
    result["async_copies"] = statistics.async_copies;
    result["bulk_copies"] = statistics.bulk_copies;
    return result;
  });
  // What a convolution on tensor cores takes: rows and pixels of a tile, stages, bytes of shared memory, warpgroups.
  m.def(
      "tensor_choice",
      [](int64_t groups, int64_t pixels, int element_bytes, int shared, bool hopper, int64_t fewest) {
        const cuda::Architecture gpu = {shared, hopper};
        const cuda::TileSize size = cuda::tile_size(groups, pixels, fewest);
        const int buffers = cuda::tensor_buffers(size, gpu);
        return py::make_tuple(size.rows(), size.pixels(), buffers, cuda::tensor_shared_bytes(size, buffers),
                              cuda::by_warpgroups(size, element_bytes, gpu));
      },
      py::kw_only(), py::arg("groups"), py::arg("pixels"), py::arg("element_bytes") = 2, py::arg("shared") = 228 << 10,
      py::arg("hopper") = false, py::arg("fewest") = 132);
  m.def("launched_kernels", &emulation::launched_kernels);
  m.def("last_fault", &emulation::last_fault);
  m.def("reset_statistics", &emulation::reset_statistics);
}

}  // namespace fusecell::bindings
