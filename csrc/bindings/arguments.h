#pragma once
// From Python to the core: arrays come as (pointer, shape, dtype name) or, where they need not be C-contiguous, with
// their strides in elements as a fourth, grouped by name in a dict; options likewise.
// Every key must be known, so that a misspelt argument is an error and not a default.

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <set>
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
    if (seen(name)) to = to_tensor(values_[name]);
  }
  template <class T>
  void take(const char* name, T& to) {
    if (!seen(name)) return;
    try {
      to = values_[name].cast<T>();
    } catch (const py::cast_error&) {
      type_error(name, "a value of another type", py::repr(values_[name]).cast<std::string>());
    }
  }
  void take(const char* name, int64_t (&pair)[2]) {
    if (!seen(name)) return;
    const auto given = values_[name].cast<py::tuple>();
    for (size_t i = 0; i < 2; ++i) pair[i] = given[i].cast<int64_t>();
  }

  void expect_all_taken() const {
    for (const auto& item : values_) {
      const auto name = item.first.cast<std::string>();
      if (!taken_.count(name)) type_error(name, "a known argument", "one that this op does not take");
    }
  }

 private:
  bool seen(const char* name) {
    taken_.insert(name);
    return values_.contains(name);
  }

  py::dict values_;
  std::set<std::string> taken_;
};

}  // namespace fusecell::bindings
