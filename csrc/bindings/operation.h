#pragma once
// The three functions of an op that keeps something for backward: its plan, forward, backward. `Op` names its argument
// structs, its functions and what its plan says of the outputs.

#include <pybind11/stl.h>

#include <string>

#include "bindings/arguments.h"
#include "bindings/read.h"
#include "problem/validate.h"

namespace fusecell::bindings {

// Where the caller wants it done, and the scratch memory it gives: (pointer, bytes, workers, device, stream).
inline Launch to_launch(const py::tuple& fields) {
  Launch launch;
  launch.scratch = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
  launch.scratch_bytes = fields[1].cast<int64_t>();
  const auto workers = fields[2].cast<int64_t>();
  if (workers < 1 || workers > 1024) value_error("workers", "1 to 1024", std::to_string(workers));
  launch.workers = static_cast<int>(workers);
  launch.device = fields[3].cast<int>();
  launch.stream = reinterpret_cast<void*>(fields[4].cast<uintptr_t>());
  return launch;
}

// The scratch must be what the plan said for this number of workers.
inline void expect_scratch(const Launch& launch, int64_t needed) {
  if (launch.scratch_bytes < needed) {
    value_error("scratch", std::to_string(needed) + " bytes", std::to_string(launch.scratch_bytes));
  }
}

// A plan checks the inputs and says what the caller must allocate: the shapes of the outputs and the bytes of scratch.
template <class Op>
py::dict plan(const py::dict& tensors, const py::dict& options, bool backward, int workers) {
  const auto args = parse<typename Op::Forward>(tensors, options);
  const auto shape = validate(args, Stage::plan);
  py::dict plan;
  Op::describe_outputs(shape, plan);
  plan["scratch"] = backward ? Op::backward_scratch(args, shape, workers) : Op::forward_scratch(args, shape, workers);
  return plan;
}

template <class Op>
void forward(const py::dict& tensors, const py::dict& options, const py::tuple& fields) {
  const auto args = parse<typename Op::Forward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Launch launch = to_launch(fields);
  expect_scratch(launch, Op::forward_scratch(args, shape, launch.workers));
  const py::gil_scoped_release release;
  Op::forward(args, shape, launch);
}

template <class Op>
void backward(const py::dict& tensors, const py::dict& options, const py::tuple& fields) {
  const auto args = parse<typename Op::Backward>(tensors, options);
  const auto shape = validate(args, Stage::run);
  const Launch launch = to_launch(fields);
  expect_scratch(launch, Op::backward_scratch(args, shape, launch.workers));
  const py::gil_scoped_release release;
  Op::backward(args, shape, launch);
}

template <class Op>
void define(py::module_& m, const std::string& name) {
  m.def((name + "_plan").c_str(), &plan<Op>);
  m.def((name + "_forward").c_str(), &forward<Op>);
  m.def((name + "_backward").c_str(), &backward<Op>);
}

}  // namespace fusecell::bindings
