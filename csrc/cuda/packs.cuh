#pragma once
// Which 16 bytes a thread takes, where an array is walked from its begin to its end; and arrays whose type is known at
// run time only.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device.cuh"

namespace fusecell::cuda {

// V elements from `first` on, or as many as there are. aligned: whether those of a multiple of V are.
template <int V>
FUSECELL_DEVICE Span span_at(int64_t first, int64_t end, bool aligned) {
  const int count = end - first < V ? int(end - first) : V;
  return {count, aligned && count == V};
}

// f(first element, span) for this lane's share of begin .. end: packs of V elements, dealt out to kLanes lanes in turn.
template <int V, int kLanes, class F>
FUSECELL_DEVICE void for_packs(int64_t begin, int64_t end, int lane, bool aligned, F&& f) {
  for (int64_t first = begin + lane * V; first < end; first += kLanes * V) f(first, span_at<V>(first, end, aligned));
}

// Of the values that kLanes neighbouring lanes hold; the same bits in each, since fold(a, b) is fold(b, a).
template <int kLanes, class T, class Fold>
FUSECELL_DEVICE T fold_lanes(T value, Fold&& fold) {
  static_assert(kLanes <= 32);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = fold(value, device::shuffle_xor(value, distance));
  }
  return value;
}

// -------------------------------------------------------------------------------------------- a type at run time
enum class Stored : uint8_t { float32, float64, bfloat16, float16 };

// Op<the type that is stored>::run(arguments...). No generic lambda: CUDA 12's NVRTC takes one for a host function.
template <template <class> class Op, class... Arguments>
FUSECELL_DEVICE void with_stored(Stored stored, Arguments&&... arguments) {
  switch (stored) {
    case Stored::float32:
      return Op<float>::run(arguments...);
    case Stored::float64:
      return Op<double>::run(arguments...);
    case Stored::bfloat16:
      return Op<bfloat16>::run(arguments...);
    case Stored::float16:
      return Op<float16>::run(arguments...);
  }
}

}  // namespace fusecell::cuda
