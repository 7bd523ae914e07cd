#pragma once
// The scalar types of the arrays. Every kernel is a template on the scalar; this is where a run-time type becomes one.

#include <string>
#include <type_traits>

namespace fusecell {

enum class DType { float32, float64, int64, uint8, unknown };

inline DType dtype_from_name(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "int64") return DType::int64;
  if (name == "uint8") return DType::uint8;
  return DType::unknown;
}

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
    case DType::unknown:
      break;
  }
  return "unknown";
}

// Calls f with a value of the scalar type that `dtype` names. The caller has checked that it is a floating type.
template <class F>
auto with_scalar(DType dtype, F&& f) {
  return dtype == DType::float64 ? f(double{}) : f(float{});
}

}  // namespace fusecell
