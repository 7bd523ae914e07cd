#pragma once
// From Python to the core: arrays come as (pointer, shape, dtype name) or, where they need not be C-contiguous, with
// their strides in elements as a fourth, grouped by name in a dict; options likewise.
// Every key must be known, so that a misspelt argument is an error and not a default.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "problem/tensor.h"

namespace fusecell::bindings {

namespace py = pybind11;

inline Shape to_shape(const py::handle& object) {
  Shape shape;
  for (const auto& extent : object.cast<py::tuple>()) shape.push_back(extent.cast<int64_t>());
  return shape;
}

inline Tensor to_tensor(const py::handle& object) {
  if (object.is_none()) return {};
  const auto fields = object.cast<py::tuple>();
  Tensor tensor;
  tensor.present = true;
  tensor.data = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
  tensor.shape = to_shape(fields[1]);
  tensor.dtype_given = fields[2].cast<std::string>();
  tensor.dtype = dtype_from_name(tensor.dtype_given);
  if (fields.size() > 3) tensor.strides = to_shape(fields[3]);
  return tensor;
}

inline std::vector<Tensor> to_tensors(const py::sequence& objects) {
  std::vector<Tensor> tensors;
  for (const auto& object : objects) tensors.push_back(to_tensor(object));
  return tensors;
}

class Arguments {
 public:
  explicit Arguments(const py::dict& values) : values_(values) {}

  void take(const char* name, Tensor& to) {
    if (const py::handle value = find(name)) to = to_tensor(value);
  }
  template <class T>
  void take(const char* name, T& to) {
    const py::handle value = find(name);
    if (!value) return;
    try {
      to = value.cast<T>();
    } catch (const py::cast_error&) {
      type_error(name, "a value of another type", py::repr(value).cast<std::string>());
    }
  }
  void take(const char* name, int64_t (&pair)[2]) {
    const py::handle value = find(name);
    if (!value) return;
    const auto given = value.cast<py::tuple>();
    for (size_t i = 0; i < 2; ++i) pair[i] = given[i].cast<int64_t>();
  }

  void expect_all_taken() const {
    if (taken_.size() == values_.size()) return;
    for (const auto& item : values_) {
      const auto name = item.first.cast<std::string>();
      const bool taken = std::find(taken_.begin(), taken_.end(), name) != taken_.end();
      if (!taken) type_error(name, "a known argument", "one that this op does not take");
    }
  }

 private:
  // What is there under a name that is asked for once; null: nothing.
  py::handle find(const char* name) {
    const py::handle value = PyDict_GetItemString(values_.ptr(), name);
    if (value) taken_.push_back(name);
    return value;
  }

  py::dict values_;
  std::vector<const char*> taken_;  // the names that were found
};

}  // namespace fusecell::bindings
