// The table of contents of a backend's module. Compiled once per backend; fusecell._dispatch is its only user.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/read.h"
#include "cpu/backend.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "problem/validate.h"

namespace fusecell::bindings {
namespace {

namespace backend = fusecell::cpu;

// --------------------------------------------------------------------------------------------------------- scratch
// The caller's scratch: (pointer, bytes, workers).
struct Scratch {
  void* data;
  int64_t bytes;
  int workers;

  explicit Scratch(const py::tuple& fields)
      : data(reinterpret_cast<void*>(fields[0].cast<uintptr_t>())), bytes(fields[1].cast<int64_t>()) {
    const auto given = fields[2].cast<int64_t>();
    if (given < 1 || given > 1024) value_error("workers", "1 to 1024", std::to_string(given));
    workers = static_cast<int>(given);
  }

  // Its size must be what the plan said for this number of workers.
  void expect(int64_t needed) const {
    if (bytes < needed) value_error("scratch", std::to_string(needed) + " bytes", std::to_string(bytes));
  }
};

// ---------------------------------------------------------------------------------------------------------- conv2d
// A plan checks the inputs and says what the caller must allocate: the shapes of the outputs and the bytes of scratch.
py::dict conv2d_plan(const py::dict& tensors, const py::dict& options, bool backward, int workers) {
  const auto shape = validate(parse<Conv2dForward>(tensors, options), Stage::plan);
  py::dict plan;
  plan["y"] = Shape{shape.batch, shape.conv.out_channels, shape.conv.out[0], shape.conv.out[1]};
  plan["scratch"] =
      backward ? backend::conv2d_backward_scratch(shape, workers) : backend::conv2d_forward_scratch(shape, workers);
  return plan;
}

void conv2d_forward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<Conv2dForward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  space.expect(backend::conv2d_forward_scratch(shape, space.workers));
  const py::gil_scoped_release release;
  backend::conv2d_forward(args, shape, space.data, space.workers);
}

void conv2d_backward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<Conv2dBackward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  space.expect(backend::conv2d_backward_scratch(shape, space.workers));
  const py::gil_scoped_release release;
  backend::conv2d_backward(args, shape, space.data, space.workers);
}

// ------------------------------------------------------------------------------------------------------ lstm_gates
py::dict lstm_gates_plan(const py::dict& tensors, const py::dict& options, bool backward, int /*workers*/) {
  const auto shape = validate(parse<LstmGatesForward>(tensors, options), Stage::plan);
  py::dict plan;
  plan["scratch"] = backward ? backend::lstm_gates_backward_scratch(shape) : 0;
  return plan;
}

void lstm_gates_forward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<LstmGatesForward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  const py::gil_scoped_release release;
  backend::lstm_gates_forward(args, shape, space.workers);
}

void lstm_gates_backward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<LstmGatesBackward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  space.expect(backend::lstm_gates_backward_scratch(shape));
  const py::gil_scoped_release release;
  backend::lstm_gates_backward(args, shape, space.data, space.workers);
}

// ------------------------------------------------------------------------------------------------------- conv_lstm
py::dict conv_lstm_plan(const py::dict& tensors, const py::dict& options, bool backward, int workers) {
  const auto shape = validate(parse<ConvLstmForward>(tensors, options), Stage::plan);
  const int64_t H = shape.input.out[0], W = shape.input.out[1];
  py::dict plan;
  plan["state"] = Shape{shape.batch, shape.channels, H, W};
  plan["y"] = Shape{shape.steps, shape.batch, shape.channels, H, W};
  plan["gates"] = Shape{shape.steps, shape.batch, 4 * shape.channels, H, W};
  plan["scratch"] = backward ? backend::conv_lstm_backward_scratch(shape, workers)
                             : backend::conv_lstm_forward_scratch(shape, workers);
  return plan;
}

void conv_lstm_forward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<ConvLstmForward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  space.expect(backend::conv_lstm_forward_scratch(shape, space.workers));
  const py::gil_scoped_release release;
  backend::conv_lstm_forward(args, shape, space.data, space.workers);
}

void conv_lstm_backward(const py::dict& tensors, const py::dict& options, const py::tuple& scratch) {
  const auto args = parse<ConvLstmBackward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Scratch space(scratch);
  space.expect(backend::conv_lstm_backward_scratch(shape, space.workers));
  const py::gil_scoped_release release;
  backend::conv_lstm_backward(args, shape, space.data, space.workers);
}

// ----------------------------------------------------------------------------------------------------- elementwise
void activation_forward(const std::string& name, const py::tuple& x_fields, const py::tuple& y_fields, double slope,
                        double alpha, int workers) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields);
  const Activation kind = activation_from_name("name", name);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  const auto parameters = activation_parameters(slope, alpha, 0.0);
  const py::gil_scoped_release release;
  backend::activation_forward(kind, parameters, x, y, workers);
}

void activation_backward(const std::string& name, const py::tuple& x_fields, const py::tuple& y_fields,
                         const py::tuple& dy_fields, const py::tuple& dx_fields, double slope, double alpha,
                         double at_zero, int workers) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields), dy = to_tensor(dy_fields), dx = to_tensor(dx_fields);
  const Activation kind = activation_from_name("name", name);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  expect_like("dy", dy, x, "x");
  expect_like("dx", dx, x, "x");
  const auto parameters = activation_parameters(slope, alpha, at_zero);
  const py::gil_scoped_release release;
  backend::activation_backward(kind, parameters, x, y, dy, dx, workers);
}

struct Line {
  int64_t extent, stride;
};

Line line_along(const Tensor& x, int64_t axis) {
  const auto rank = static_cast<int64_t>(x.shape.size());
  if (rank == 0) value_error("axis", "an array of at least one dimension", "one of none");
  if (axis < -rank || axis >= rank) {
    value_error("axis", "from " + std::to_string(-rank) + " to " + std::to_string(rank - 1), std::to_string(axis));
  }
  if (axis < 0) axis += rank;
  int64_t stride = 1;
  for (int64_t a = axis + 1; a < rank; ++a) stride *= x.shape[static_cast<size_t>(a)];
  return {x.shape[static_cast<size_t>(axis)], stride};
}

void softmax_forward(const py::tuple& x_fields, const py::tuple& y_fields, int64_t axis, int workers) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  const Line line = line_along(x, axis);
  const py::gil_scoped_release release;
  backend::softmax_forward(x, y, line.extent, line.stride, workers);
}

void softmax_backward(const py::tuple& y_fields, const py::tuple& dy_fields, const py::tuple& dx_fields, int64_t axis,
                      int workers) {
  const Tensor y = to_tensor(y_fields), dy = to_tensor(dy_fields), dx = to_tensor(dx_fields);
  expect_floating("y", y);
  expect_like("dy", dy, y, "y");
  expect_like("dx", dx, y, "y");
  const Line line = line_along(y, axis);
  const py::gil_scoped_release release;
  backend::softmax_backward(y, dy, dx, line.extent, line.stride, workers);
}

// -------------------------------------------------------------------------------------------------------- clipping
std::vector<Tensor> to_gradients(const py::sequence& fields) {
  std::vector<Tensor> tensors = to_tensors(fields);
  for (size_t i = 0; i < tensors.size(); ++i) expect_floating("gradients[" + std::to_string(i) + "]", tensors[i]);
  return tensors;
}

backend::Norm to_norm(double norm_type) {
  if (norm_type == 1.0) return backend::Norm::one;
  if (norm_type == 2.0) return backend::Norm::two;
  if (std::isinf(norm_type) && norm_type > 0) return backend::Norm::infinity;
  value_error("norm_type", "1, 2 or inf", std::to_string(norm_type));
}

double global_norm(const py::sequence& fields, double norm_type, int workers) {
  const std::vector<Tensor> tensors = to_gradients(fields);
  const backend::Norm kind = to_norm(norm_type);
  const py::gil_scoped_release release;
  return backend::norm(tensors, kind, workers);
}

bool any_above(const py::tuple& fields, double threshold, int workers) {
  const Tensor tensor = to_gradients(py::make_tuple(fields)).front();
  const py::gil_scoped_release release;
  return backend::any_above(tensor, threshold, workers);
}

void scale(const py::tuple& fields, double factor, int workers) {
  const Tensor tensor = to_gradients(py::make_tuple(fields)).front();
  const py::gil_scoped_release release;
  backend::scale(tensor, factor, workers);
}

void clamp(const py::tuple& fields, double limit, int workers) {
  const Tensor tensor = to_gradients(py::make_tuple(fields)).front();
  const py::gil_scoped_release release;
  backend::clamp(tensor, limit, workers);
}

void bernoulli(const py::tuple& fields, double rate, uint64_t seed, uint64_t offset, uint32_t stream, int workers) {
  const Tensor out = to_tensor(fields);
  if (out.dtype != DType::uint8) type_error("out", "dtype uint8", out.dtype_given);
  expect_rate("rate", rate);
  const py::gil_scoped_release release;
  backend::bernoulli(out, rate, seed, offset, stream, workers);
}

// ------------------------------------------------------------------------------------------------------------ info
py::dict build_info() {
  py::dict info;
  info["version"] = FUSECELL_VERSION;
  info["compiler"] = FUSECELL_COMPILER;
  info["sanitize"] = FUSECELL_SANITIZE;
  info["isa"] = backend::kernels().name;
  info["isas_built"] = backend::built_isas();
  info["isas_usable"] = backend::usable_isas();
  info["default_num_threads"] = backend::default_num_threads();
  return info;
}

py::dict pool_statistics() {
  const auto statistics = backend::pool_statistics();
  py::dict result;
  result["parallel_regions"] = statistics.parallel_regions;
  result["most_workers"] = statistics.most_workers;
  return result;
}

}  // namespace
}  // namespace fusecell::bindings

PYBIND11_MODULE(FUSECELL_MODULE, m, pybind11::mod_gil_not_used()) {
  namespace bindings = fusecell::bindings;
  m.doc() = "A fusecell backend. Private: use fusecell.ops.";
  pybind11::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const fusecell::Error& error) {
      switch (error.kind()) {
        case fusecell::Error::Kind::value:
          return pybind11::set_error(PyExc_ValueError, error.what());
        case fusecell::Error::Kind::type:
          return pybind11::set_error(PyExc_TypeError, error.what());
        case fusecell::Error::Kind::memory:
          return pybind11::set_error(PyExc_MemoryError, error.what());
      }
    }
  });
  fusecell::cpu::kernels();  // a bad FUSECELL_ISA is an error at import

  m.def("conv2d_plan", &bindings::conv2d_plan);
  m.def("conv2d_forward", &bindings::conv2d_forward);
  m.def("conv2d_backward", &bindings::conv2d_backward);
  m.def("lstm_gates_plan", &bindings::lstm_gates_plan);
  m.def("lstm_gates_forward", &bindings::lstm_gates_forward);
  m.def("lstm_gates_backward", &bindings::lstm_gates_backward);
  m.def("conv_lstm_plan", &bindings::conv_lstm_plan);
  m.def("conv_lstm_forward", &bindings::conv_lstm_forward);
  m.def("conv_lstm_backward", &bindings::conv_lstm_backward);
  m.def("activation_forward", &bindings::activation_forward);
  m.def("activation_backward", &bindings::activation_backward);
  m.def("softmax_forward", &bindings::softmax_forward);
  m.def("softmax_backward", &bindings::softmax_backward);
  m.def("global_norm", &bindings::global_norm);
  m.def("any_above", &bindings::any_above);
  m.def("scale", &bindings::scale);
  m.def("clamp", &bindings::clamp);
  m.def("bernoulli", &bindings::bernoulli);

  m.def("set_num_threads", &fusecell::cpu::set_num_threads);
  m.def("get_num_threads", &fusecell::cpu::num_threads);
  m.def("pool_statistics", &bindings::pool_statistics);
  m.def("reset_pool_statistics", &fusecell::cpu::reset_pool_statistics);
  m.def("build_info", &bindings::build_info);
}
