#pragma once
// Norms, clipping and optimisers over lists of arrays: as many arrays a launch as kernel arguments hold (4 KB), and of
// all of them chunks of one size, a block each. Which thread meets which element depends on the arrays' sizes alone.

#include <cuda_runtime.h>

#include <cstdint>

#include "base/scalar.h"
#include "cell/activation.h"
#include "cell/math.h"
#include "cell/update.h"
#include "cuda/device.cuh"
#include "cuda/packs.cuh"

namespace fusecell::cuda {

// Elements a block: 61 blocks for half a million of them, and still only a thousand partial norms for eight million.
constexpr int64_t kListChunk = 8192;

// Arrays of one size and dtype that belong together.
template <int kArrays>
struct ListEntry {
  void* data[kArrays];
  int64_t size;
  uint32_t first_block;
  Stored stored;
  bool aligned;
};

template <int kArrays, int kEntries>
struct TensorList {
  static constexpr int kCapacity = kEntries;
  using Entry = ListEntry<kArrays>;
  Entry entry[kEntries];
  int count;
};

using ArrayList = TensorList<1, 160>;  // 24 bytes each
using UpdateList = TensorList<4, 80>;  // 48: value, gradient, first and second slot

template <class List>
FUSECELL_DEVICE const typename List::Entry& entry_of_block(const List& list) {
  int low = 0, high = list.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (list.entry[middle].first_block <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return list.entry[low];
}

// f(first element, span) for this thread's share of this block's chunk of the entry.
template <class S, int kArrays, class F>
FUSECELL_DEVICE void for_chunk(const ListEntry<kArrays>& entry, F&& f) {
  const int64_t begin = int64_t(blockIdx.x - entry.first_block) * kListChunk;
  const int64_t end = entry.size - begin < kListChunk ? entry.size : begin + kListChunk;
  for_packs<kPack<S>, kThreads>(begin, end, int(threadIdx.x), entry.aligned, f);
}

// ------------------------------------------------------------------------------------------------------------ norms
enum class NormKind : int { one, two, infinity, largest_number };  // backend::Norm

// What a part of the arrays adds to the norm. `medium` alone counts, but for the two-norm of float64: there the squares
// that would overflow or lose bits are summed apart, scaled (Blue, "A portable Fortran program to find the Euclidean
// norm of a vector", 1978; the limits are LAPACK's).
struct NormPart {
  double big, medium, small;
};
constexpr double kBig = 0x1p486, kBigScale = 0x1p-538, kSmall = 0x1p-511, kSmallScale = 0x1p537;

FUSECELL_DEVICE double larger(double a, double b) { return a != a || b <= a ? a : b; }  // a NaN is kept

FUSECELL_DEVICE NormPart fold_parts(NormKind kind, const NormPart& a, const NormPart& b) {
  if (kind == NormKind::one || kind == NormKind::two) return {a.big + b.big, a.medium + b.medium, a.small + b.small};
  return {0, larger(a.medium, b.medium), 0};
}

FUSECELL_DEVICE void add_square(NormPart& part, float x) { part.medium += double(x) * double(x); }
FUSECELL_DEVICE void add_square(NormPart& part, double x) {
  const double size = abs_(x);
  if (size > kBig) {
    part.big += (size * kBigScale) * (size * kBigScale);
  } else if (size < kSmall) {
    part.small += (size * kSmallScale) * (size * kSmallScale);
  } else {
    part.medium += size * size;  // a NaN comes here
  }
}

template <NormKind kKind, class A>
FUSECELL_DEVICE void add_term(NormPart& part, A x) {
  if constexpr (kKind == NormKind::one) part.medium += double(abs_(x));
  if constexpr (kKind == NormKind::two) add_square(part, x);
  if constexpr (kKind == NormKind::infinity) part.medium = larger(part.medium, double(abs_(x)));
  if constexpr (kKind == NormKind::largest_number) part.medium = larger(part.medium, x == x ? double(abs_(x)) : 0.0);
}

template <NormKind kKind, class S>
FUSECELL_DEVICE void add_chunk(NormPart& part, const ListEntry<1>& entry) {
  const S* const data = static_cast<const S*>(entry.data[0]);
  for_chunk<S>(entry, [&](int64_t first, const Span& span) {
    Accumulate<S> x[kPack<S>];
    load(data + first, span, x);  // 0, which adds nothing, where there is no element
#pragma unroll
    for (int j = 0; j < kPack<S>; ++j) add_term<kKind>(part, x[j]);
  });
}

template <class S>
struct NormOfChunk {
  static __device__ __forceinline__ void run(NormPart& part, const ListEntry<1>& entry, NormKind kind) {
    switch (kind) {
      case NormKind::one:
        return add_chunk<NormKind::one, S>(part, entry);
      case NormKind::two:
        return add_chunk<NormKind::two, S>(part, entry);
      case NormKind::infinity:
        return add_chunk<NormKind::infinity, S>(part, entry);
      case NormKind::largest_number:
        return add_chunk<NormKind::largest_number, S>(part, entry);
    }
  }
};

// Of all the block's threads, in thread 0.
FUSECELL_DEVICE NormPart fold_block(NormKind kind, NormPart part) {
  FUSECELL_SHARED(NormPart, of_warp, kThreads / 32);
  for (int distance = 16; distance > 0; distance /= 2) {
    const NormPart other = {device::shuffle_xor(part.big, distance), device::shuffle_xor(part.medium, distance),
                            device::shuffle_xor(part.small, distance)};
    part = fold_parts(kind, part, other);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = part;
  __syncthreads();
  if (threadIdx.x != 0) return part;
  for (int warp = 1; warp < kThreads / 32; ++warp) part = fold_parts(kind, part, of_warp[warp]);
  return part;
}

struct NormPartialsArgs {
  ArrayList list;
  NormPart* parts;  // one a block
  NormKind kind;
};

__global__ void __launch_bounds__(kThreads) norm_partials(const NormPartialsArgs args) {
  const ListEntry<1>& entry = entry_of_block(args.list);
  NormPart part = {0, 0, 0};
  with_stored<NormOfChunk>(entry.stored, part, entry, args.kind);
  part = fold_block(args.kind, part);
  if (threadIdx.x == 0) args.parts[blockIdx.x] = part;
}

FUSECELL_DEVICE double root_of(const NormPart& part) {
  if (part.big > 0) return square_root(part.big + part.medium * kBigScale * kBigScale) / kBigScale;
  if (part.small > 0 && part.medium < 0x1p-100) {  // above it the small ones are less than half an ulp
    return square_root(part.medium * kSmallScale * kSmallScale + part.small) / kSmallScale;
  }
  return square_root(part.medium);
}

struct NormFinishArgs {
  const NormPart* parts;
  int64_t count;
  double* out;
  NormKind kind;
};

// One block, in the order of the parts.
__global__ void __launch_bounds__(kThreads) norm_finish(const NormFinishArgs args) {
  NormPart part = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < args.count; i += kThreads) part = fold_parts(args.kind, part, args.parts[i]);
  part = fold_block(args.kind, part);
  if (threadIdx.x == 0) *args.out = args.kind == NormKind::two ? root_of(part) : part.medium;
}

// --------------------------------------------------------------------------------------------------------- clipping
enum class Rescale : int { clip_to_norm, clamp, divide_if_above };

struct RescaleArgs {
  ArrayList list;
  const double *norm, *largest;
  double limit;  // max_norm, the limit, the threshold
  Rescale op;
};

// x times before, times factor, rounded to what x is computed in after each: what was too small is raised first.
struct RescaleFactors {
  double before, factor;
};

FUSECELL_DEVICE RescaleFactors rescale_factors(const RescaleArgs& args) {
  if (args.op == Rescale::clip_to_norm) return {1.0, clip_coefficient(*args.norm, args.limit)};
  if (args.op == Rescale::clamp || !(*args.largest > args.limit)) return {1.0, 1.0};
  const double before = *args.norm < kSmallestDivisor ? kSmallDivisorScale : 1.0;
  return {before, 1.0 / (*args.norm * before)};
}

template <class A>
FUSECELL_DEVICE A rescaled(const RescaleFactors& by, A x) {
  if (by.before != 1.0) x = A(double(x) * by.before);
  return A(double(x) * by.factor);  // a factor below float's range still works
}

template <class S, class F>
FUSECELL_DEVICE void change_chunk(const ListEntry<1>& entry, F&& f) {
  S* const data = static_cast<S*>(entry.data[0]);
  for_chunk<S>(entry, [&](int64_t first, const Span& span) {
    Accumulate<S> x[kPack<S>];
    load(data + first, span, x);
#pragma unroll
    for (int j = 0; j < kPack<S>; ++j) x[j] = f(x[j]);
    store(data + first, span, x);
  });
}

template <class S>
struct RescaleChunk {
  using A = Accumulate<S>;
  static __device__ __forceinline__ void run(const RescaleArgs& args, const RescaleFactors& by,
                                             const ListEntry<1>& entry) {
    if (args.op == Rescale::clamp) {
      const A limit = A(args.limit);
      change_chunk<S>(entry, [=](A x) { return clamp(x, -limit, limit); });
    } else {
      change_chunk<S>(entry, [=](A x) { return rescaled(by, x); });
    }
  }
};

__global__ void __launch_bounds__(kThreads) rescale(const RescaleArgs args) {
  const RescaleFactors by = rescale_factors(args);
  if (args.op != Rescale::clamp && by.before == 1.0 && by.factor == 1.0) return;
  const ListEntry<1>& entry = entry_of_block(args.list);
  with_stored<RescaleChunk>(entry.stored, args, by, entry);
}

// ------------------------------------------------------------------------------------------------------- optimisers
struct UpdateArgs {
  UpdateList list;
  UpdateParameters<double> parameters;
  const double* norm;   // null: no clipping
  const int64_t* step;  // null: parameters.step
  UpdateRule rule;
};

// Once for all the block's threads: two powers and three divisions in float64, which some GPUs do at 1/64 of the rate.
template <class A>
FUSECELL_DEVICE const UpdateFactors<A>& shared_factors(const UpdateArgs& args) {
  FUSECELL_SHARED(UpdateFactors<A>, factors, 1);
  if (threadIdx.x == 0) {
    const double coefficient = args.norm ? clip_coefficient(*args.norm, args.parameters.max_norm) : 1.0;
    const int64_t step = args.step ? *args.step : args.parameters.step;
    factors[0] = update_factors<A>(args.rule, args.parameters, coefficient, step);
  }
  __syncthreads();
  return factors[0];
}

template <class S, UpdateRule kRule>
FUSECELL_DEVICE void update_chunk(const UpdateArgs& args, const ListEntry<4>& entry) {
  using A = Accumulate<S>;
  constexpr int V = kPack<S>;
  const UpdateParameters<A> parameters = as_scalar<A>(args.parameters);
  const UpdateFactors<A> factors = shared_factors<A>(args);
  S* const values = static_cast<S*>(entry.data[0]);
  const S* const gradients = static_cast<const S*>(entry.data[1]);
  A *const firsts = static_cast<A*>(entry.data[2]), *const seconds = static_cast<A*>(entry.data[3]);
  for_chunk<S>(entry, [&](int64_t at, const Span& span) {
    A value[V], gradient[V], first[V] = {}, second[V] = {};
    load(values + at, span, value);
    load(gradients + at, span, gradient);
    if (firsts) load(firsts + at, span, first);
    if (seconds) load(seconds + at, span, second);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] = update_element(kRule, parameters, factors, value[j], gradient[j], first[j], second[j]);
    }
    store(values + at, span, value);
    if (firsts) store(firsts + at, span, first);
    if (seconds) store(seconds + at, span, second);
  });
}

template <class S>
struct UpdateChunk {
  static __device__ __forceinline__ void run(const UpdateArgs& args, const ListEntry<4>& entry) {
    if (args.rule == UpdateRule::adam) {
      update_chunk<S, UpdateRule::adam>(args, entry);
    } else {
      update_chunk<S, UpdateRule::sgd>(args, entry);
    }
  }
};

__global__ void __launch_bounds__(kThreads) update(const UpdateArgs args) {
  const ListEntry<4>& entry = entry_of_block(args.list);
  with_stored<UpdateChunk>(entry.stored, args, entry);
}

static_assert(sizeof(NormPartialsArgs) <= 4096 && sizeof(RescaleArgs) <= 4096 && sizeof(UpdateArgs) <= 4096,
              "what every CUDA takes as kernel arguments");

}  // namespace fusecell::cuda
