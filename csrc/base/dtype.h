#pragma once
// The scalar types of the arrays, by name. Every kernel is a template on the scalar; base/scalar.h has those that C++
// lacks.

#include <string>

namespace fusecell {

enum class DType { float32, float64, float16, bfloat16, int64, uint8, unknown };

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
    case DType::unknown:
      break;
  }
  return "unknown";
}

inline DType dtype_from_name(const std::string& name) {
  for (DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int64, DType::uint8}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  return DType::unknown;
}

inline bool is_half_precision(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// Cell states, their gradients and all sums: float32 where the arrays hold 16 bits.
inline DType state_dtype(DType dtype) { return is_half_precision(dtype) ? DType::float32 : dtype; }

// Calls f with a value of the scalar type that `dtype` names. The caller has checked that it is one of the two.
template <class F>
auto with_scalar(DType dtype, F&& f) {
  return dtype == DType::float64 ? f(double{}) : f(float{});
}

}  // namespace fusecell
