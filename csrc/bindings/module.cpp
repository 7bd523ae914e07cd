// The table of contents of a backend's module. Compiled once per backend; fusecell._dispatch is its only user.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/extras.h"
#include "bindings/operation.h"
#include "bindings/read.h"
#include "problem/backend.h"
#include "problem/validate.h"

namespace fusecell::bindings {
namespace {

// --------------------------------------------------------------------------------- conv2d, lstm_gates and conv_lstm
struct Conv2d {
  using Forward = Conv2dForward;
  using Backward = Conv2dBackward;
  static constexpr auto forward_scratch = backend::conv2d_forward_scratch;
  static constexpr auto backward_scratch = backend::conv2d_backward_scratch;
  static constexpr auto forward = backend::conv2d_forward;
  static constexpr auto backward = backend::conv2d_backward;

  static void describe_outputs(const Conv2dShape& shape, py::dict& plan) {
    plan["y"] = Shape{shape.batch, shape.conv.out_channels, shape.conv.out[0], shape.conv.out[1]};
    plan["algorithm"] = algorithm_name(shape.algorithm);
  }
};

struct LstmGates {
  using Forward = LstmGatesForward;
  using Backward = LstmGatesBackward;
  static constexpr auto forward_scratch = backend::lstm_gates_forward_scratch;
  static constexpr auto backward_scratch = backend::lstm_gates_backward_scratch;
  static constexpr auto forward = backend::lstm_gates_forward;
  static constexpr auto backward = backend::lstm_gates_backward;

  static void describe_outputs(const LstmGatesShape& shape, py::dict& plan) {
    plan["cell_dtype"] = dtype_name(state_dtype(shape.dtype));
  }
};

struct ConvLstm {
  using Forward = ConvLstmForward;
  using Backward = ConvLstmBackward;
  static constexpr auto forward_scratch = backend::conv_lstm_forward_scratch;
  static constexpr auto backward_scratch = backend::conv_lstm_backward_scratch;
  static constexpr auto forward = backend::conv_lstm_forward;
  static constexpr auto backward = backend::conv_lstm_backward;

  static void describe_outputs(const ConvLstmShape& shape, py::dict& plan) {
    const int64_t H = shape.input.out[0], W = shape.input.out[1];
    plan["state"] = Shape{shape.batch, shape.channels, H, W};
    plan["y"] = Shape{shape.steps, shape.batch, shape.channels, H, W};
    plan["cell_dtype"] = dtype_name(state_dtype(shape.dtype));
    plan["gates"] = Shape{shape.steps, shape.batch, 4 * shape.channels, H, W};
    plan["channels_last"] = on_tensor_cores(shape.algorithm);  // how c and gates had best lie
    plan["statistics_parts"] = backend::conv_lstm_statistics_parts(shape);
    plan["algorithm"] = algorithm_name(shape.algorithm);
  }
};

// ----------------------------------------------------------------------------------------------------- elementwise
void activation_forward(const std::string& name, const py::tuple& x_fields, const py::tuple& y_fields, double slope,
                        double alpha, const py::tuple& launch_fields) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields);
  const Activation kind = activation_from_name("name", name);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  const auto parameters = activation_parameters(slope, alpha, 0.0);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::activation_forward(kind, parameters, x, y, launch);
}

void activation_backward(const std::string& name, const py::tuple& x_fields, const py::tuple& y_fields,
                         const py::tuple& dy_fields, const py::tuple& dx_fields, double slope, double alpha,
                         double at_zero, const py::tuple& launch_fields) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields), dy = to_tensor(dy_fields), dx = to_tensor(dx_fields);
  const Activation kind = activation_from_name("name", name);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  expect_like("dy", dy, x, "x");
  expect_like("dx", dx, x, "x");
  const auto parameters = activation_parameters(slope, alpha, at_zero);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::activation_backward(kind, parameters, x, y, dy, dx, launch);
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

void softmax_forward(const py::tuple& x_fields, const py::tuple& y_fields, int64_t axis,
                     const py::tuple& launch_fields) {
  const Tensor x = to_tensor(x_fields), y = to_tensor(y_fields);
  expect_floating("x", x);
  expect_like("y", y, x, "x");
  const Line line = line_along(x, axis);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::softmax_forward(x, y, line.extent, line.stride, launch);
}

void softmax_backward(const py::tuple& y_fields, const py::tuple& dy_fields, const py::tuple& dx_fields, int64_t axis,
                      const py::tuple& launch_fields) {
  const Tensor y = to_tensor(y_fields), dy = to_tensor(dy_fields), dx = to_tensor(dx_fields);
  expect_floating("y", y);
  expect_like("dy", dy, y, "y");
  expect_like("dx", dx, y, "y");
  const Line line = line_along(y, axis);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::softmax_backward(y, dy, dx, line.extent, line.stride, launch);
}

// ---------------------------------------------------------------------------------------------- norms and clipping
std::vector<Tensor> to_floating(const std::string& name, const py::sequence& fields) {
  std::vector<Tensor> tensors = to_tensors(fields);
  for (size_t i = 0; i < tensors.size(); ++i) expect_floating(name + "[" + std::to_string(i) + "]", tensors[i]);
  return tensors;
}

backend::Norm to_norm(double norm_type, bool numbers_only) {
  if (std::isinf(norm_type) && norm_type > 0) {
    return numbers_only ? backend::Norm::largest_number : backend::Norm::infinity;
  }
  if (norm_type == 1.0) return backend::Norm::one;
  if (norm_type == 2.0) return backend::Norm::two;
  value_error("norm_type", "1, 2 or inf", std::to_string(norm_type));
}

int64_t norm_scratch(const py::sequence& fields) { return backend::norm_scratch(to_floating("gradients", fields)); }

void norm(const py::sequence& fields, double norm_type, bool numbers_only, const py::tuple& out,
          const py::tuple& launch_fields) {
  const std::vector<Tensor> tensors = to_floating("gradients", fields);
  const backend::Norm kind = to_norm(norm_type, numbers_only);
  const Tensor result = to_tensor(out);
  expect_one("out", result, DType::float64);
  const Launch launch = to_launch(launch_fields);
  expect_scratch(launch, backend::norm_scratch(tensors));
  const py::gil_scoped_release release;
  backend::norm(tensors, kind, result, launch);
}

void clip_to_norm(const py::sequence& fields, const py::tuple& norm_fields, double max_norm,
                  const py::tuple& launch_fields) {
  const std::vector<Tensor> tensors = to_floating("gradients", fields);
  const Tensor norm = to_tensor(norm_fields);
  expect_one("norm", norm, DType::float64);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::clip_to_norm(tensors, norm, max_norm, launch);
}

void clamp(const py::sequence& fields, double limit, const py::tuple& launch_fields) {
  const std::vector<Tensor> tensors = to_floating("gradients", fields);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::clamp(tensors, limit, launch);
}

void divide_if_above(const py::sequence& fields, const py::tuple& norm_fields, const py::tuple& largest_fields,
                     double threshold, const py::tuple& launch_fields) {
  const std::vector<Tensor> tensors = to_floating("gradients", fields);
  const Tensor norm = to_tensor(norm_fields), largest = to_tensor(largest_fields);
  expect_one("norm", norm, DType::float64);
  expect_one("largest", largest, DType::float64);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::divide_if_above(tensors, norm, largest, threshold, launch);
}

// ------------------------------------------------------------------------------------------------------- optimisers
void update(const std::string& rule, const py::sequence& values, const py::sequence& gradients,
            const py::sequence& first, const py::sequence& second, const py::dict& parameters, const py::object& norm,
            const py::object& step, const py::tuple& launch_fields) {
  backend::Update args;
  args.rule = rule == "adam" ? UpdateRule::adam : UpdateRule::sgd;
  args.values = to_floating("parameters", values);
  args.gradients = to_tensors(gradients);
  args.first = to_tensors(first);
  args.second = to_tensors(second);
  read_options(parameters, args.parameters);
  args.norm = to_tensor(norm);
  args.step = to_tensor(step);
  validate(args);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::update(args, launch);
}

void bernoulli(const py::tuple& fields, double rate, uint64_t seed, uint64_t offset, uint32_t stream,
               const py::object& counter_fields, const py::tuple& launch_fields) {
  const Tensor out = to_tensor(fields), counter = to_tensor(counter_fields);
  if (out.dtype != DType::uint8) type_error("out", "dtype uint8", out.dtype_given);
  expect_contiguous("out", out);
  expect_rate("rate", rate);
  if (counter.present) expect_one("offset", counter, DType::int64);
  const Launch launch = to_launch(launch_fields);
  const py::gil_scoped_release release;
  backend::bernoulli(out, rate, seed, offset, stream, counter, launch);
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
        case fusecell::Error::Kind::runtime:
          return pybind11::set_error(PyExc_RuntimeError, error.what());
      }
    }
  });

  bindings::define<bindings::Conv2d>(m, "conv2d");
  bindings::define<bindings::LstmGates>(m, "lstm_gates");
  bindings::define<bindings::ConvLstm>(m, "conv_lstm");
  m.def("activation_forward", &bindings::activation_forward);
  m.def("activation_backward", &bindings::activation_backward);
  m.def("softmax_forward", &bindings::softmax_forward);
  m.def("softmax_backward", &bindings::softmax_backward);
  m.def("norm_scratch", &bindings::norm_scratch);
  m.def("norm", &bindings::norm);
  m.def("clip_to_norm", &bindings::clip_to_norm);
  m.def("clamp", &bindings::clamp);
  m.def("divide_if_above", &bindings::divide_if_above);
  m.def("update", &bindings::update);
  m.def("bernoulli", &bindings::bernoulli);
  bindings::define_extras(m);
}
