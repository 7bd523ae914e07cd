// The CPU's threads and instruction sets, and the op that no other backend has.

#include <pybind11/stl.h>

#include "bindings/extras.h"
#include "bindings/operation.h"
#include "cpu/isa.h"
#include "cpu/rnn.h"
#include "cpu/thread_pool.h"

namespace fusecell::bindings {
namespace {

struct Rnn {
  using Forward = RnnForward;
  using Backward = RnnBackward;
  static constexpr auto forward_scratch = cpu::rnn_forward_scratch;
  static constexpr auto backward_scratch = cpu::rnn_backward_scratch;
  static constexpr auto forward = cpu::rnn_forward;
  static constexpr auto backward = cpu::rnn_backward;

  static void describe_outputs(const RnnShape& shape, py::dict& plan) {
    plan["y"] = Shape{shape.steps, shape.batch, shape.channels};
    plan["h_n"] = Shape{shape.batch, shape.channels};
    plan["keeps_a"] = shape.keeps_a();
  }
};

py::dict build_info() {
  py::dict info;
  info["version"] = FUSECELL_VERSION;
  info["compiler"] = FUSECELL_COMPILER;
  info["sanitize"] = FUSECELL_SANITIZE;
  info["cuda"] = FUSECELL_CUDA_BUILD;
  info["isa"] = cpu::kernels().name;
  info["isas_built"] = cpu::built_isas();
  info["isas_usable"] = cpu::usable_isas();
  info["default_num_threads"] = cpu::default_num_threads();
  return info;
}

py::dict pool_statistics() {
  const auto statistics = cpu::pool_statistics();
  py::dict result;
  result["parallel_regions"] = statistics.parallel_regions;
  result["most_workers"] = statistics.most_workers;
  return result;
}

// NumPy's array interface, version 3, up to what is read of it.
struct ArrayInterface {
  int two, dimensions;
  char kind;
  int itemsize, flags;
  Py_intptr_t *shape, *strides;
  void* data;
};

// Where a NumPy array lies; its own attribute `ctypes.data` takes five times as long, and a call asks a dozen times.
uintptr_t address(const py::object& array) {
  const auto interface = array.attr("__array_struct__").cast<py::capsule>();
  return reinterpret_cast<uintptr_t>(interface.get_pointer<ArrayInterface>()->data);
}

}  // namespace

void define_extras(py::module_& m) {
  cpu::kernels();       // a bad FUSECELL_ISA is an error at import
  cpu::emulates_amx();  // so is a bad FUSECELL_EMULATE_AMX
  define<Rnn>(m, "rnn");
  m.def("address", &address);
  m.def("set_num_threads", &cpu::set_num_threads);
  m.def("get_num_threads", &cpu::num_threads);
  m.def("pool_statistics", &pool_statistics);
  m.def("reset_pool_statistics", &cpu::reset_pool_statistics);
  m.def("build_info", &build_info);
  m.def("amx", &cpu::amx);
}

}  // namespace fusecell::bindings
