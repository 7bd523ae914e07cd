#pragma once
// Every launch and every call of the CUDA runtime goes through here: checked, on the caller's device and stream.

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/scalar.h"
#include "cuda/cell_pack.cuh"
#include "cuda/devices.h"
#include "cuda/packs.cuh"
#include "problem/backend.h"

namespace fusecell::cuda {

// Throws Error (memory, or runtime) that carries the op's name and the CUDA error's.
inline void check(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // it is reported once: the next call starts clean
  const auto kind = status == cudaErrorMemoryAllocation ? Error::Kind::memory : Error::Kind::runtime;
  throw Error(kind, std::string(op) + ": CUDA error " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// Where an op runs. The device is made current for as long as this lives.
class Context {
 public:
  Context(const char* op, const Launch& launch) : op_(op), stream_(static_cast<cudaStream_t>(launch.stream)) {
    check(op, cudaGetDevice(&before_));
    if (launch.device != before_) check(op, cudaSetDevice(launch.device));
    device_ = launch.device;
  }
  ~Context() {
    if (device_ != before_) (void)cudaSetDevice(before_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // `name` is what a profiler or a fault calls the kernel. The arguments are what the kernel takes, exactly.
  template <class... Args>
  void run(const char* name, void (*kernel)(Args...), dim3 grid, Args... args) const {
    run_with_shared(name, kernel, grid, 0, args...);
  }

  // The same with so many bytes of dynamic shared memory.
  template <class... Args>
  void run_with_shared(const char* name, void (*kernel)(Args...), dim3 grid, int shared_bytes, Args... args) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const auto bytes = static_cast<size_t>(shared_bytes);
#if defined(FUSECELL_EMULATED)
    check_launch(name, emulation::launch_with_shared(name, kernel, grid, dim3(kBlock), bytes, stream_, args...));
#else
    const auto function = reinterpret_cast<const void*>(kernel);
    allow_shared(name, function, shared_bytes);
    void* pointers[] = {static_cast<void*>(&args)...};
    check_launch(name, cudaLaunchKernel(function, grid, dim3(kBlock), pointers, bytes, stream_));
#endif
  }

  // The same, and the launch may begin before the one before it on the stream has ended, if `overlaps`: the kernel
  // waits for that itself.
  template <class... Args>
  void run_overlapping(bool overlaps, const char* name, void (*kernel)(Args...), dim3 grid, int shared_bytes,
                       Args... args) const {
    constexpr int kGraphsRecordIt = 12030;  // drivers from CUDA 12.3 on
    const bool can_overlap = overlaps && on_hopper() && driver_version() >= kGraphsRecordIt;
    if (!can_overlap) return run_with_shared(name, kernel, grid, shared_bytes, args...);
#if defined(FUSECELL_EMULATED)
    run_with_shared(name, kernel, grid, shared_bytes, args...);
#else
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const auto function = reinterpret_cast<const void*>(kernel);
    if (!can_wait(name, function)) return run_with_shared(name, kernel, grid, shared_bytes, args...);
    allow_shared(name, function, shared_bytes);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(kBlock);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    void* pointers[] = {static_cast<void*>(&args)...};
    check_launch(name, cudaLaunchKernelExC(&config, function, pointers));
#endif
  }

  // Whether the device has Hopper's own instructions, and they are wanted.
  bool on_hopper() const {
    return hopper_wanted() && attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
           attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  }

  // Of the device it runs on.
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check(op_, cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }

  void copy(void* to, const void* from, int64_t bytes) const {
    if (bytes == 0) return;
    check(op_, cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
  }
  void zero(void* to, int64_t bytes) const {
    if (bytes == 0) return;
    check(op_, cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_));
  }

 private:
  static constexpr unsigned kBlock = 256;                // kThreads of device.cuh
  static constexpr int kSharedWithoutAsking = 32 << 10;  // 48 KiB, what a kernel has statically included

#if !defined(FUSECELL_EMULATED)
  // Only ever raised, as another thread may be about to launch with what it asked for.
  void allow_shared(const char* name, const void* function, int bytes) const {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, int> most;
    if (bytes <= kSharedWithoutAsking) return;
    const std::lock_guard held(mutex);
    int& allowed = most[{function, device_}];
    if (bytes <= allowed) return;
    check_launch(name, cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    allowed = bytes;
  }

  // Whether the kernel was compiled for a GPU that can wait for the launch before. PTX of an older one is not.
  bool can_wait(const char* name, const void* function) const {
    cudaFuncAttributes attributes{};
    check_launch(name, cudaFuncGetAttributes(&attributes, function));
    return attributes.ptxVersion >= 90;
  }
#endif

  void check_launch(const char* name, cudaError_t status) const {
    if (status != cudaSuccess) check((std::string(op_) + ", kernel " + name).c_str(), status);
  }

  const char* op_;
  cudaStream_t stream_;
  int before_ = 0, device_ = 0;
};

constexpr int64_t kMostGridRows = 65535;  // along a grid's second axis

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for n threads in all, along x.
inline dim3 grid_for(int64_t n) {
  const int64_t blocks = ceil_div(n, 256);
  if (blocks > 0x7FFFFFFF) throw Error(Error::Kind::value, "arrays", "at most 2^39 elements", std::to_string(n));
  return dim3(static_cast<unsigned>(blocks));
}

// Whether 16-byte accesses may be used: every pointer that is there is aligned, and rows keep it so.
template <class... Pointers>
bool all_aligned(int64_t row_bytes, const Pointers*... pointers) {
  return row_bytes % 16 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// The same of images, along their pixels or their channels; those that are no neighbours there are read and written one
// by one. Along channels a pack has 4, along pixels 16 bytes.
template <class T>
bool aligned(const Frames<T>& frames, Along along = Along::pixels) {
  const Strides& by = frames.by;
  const int64_t bytes = along == Along::pixels ? 16 : 4 * int64_t(sizeof(T));
  const int64_t neighbours = along == Along::pixels ? by.pixel : by.channel;
  const int64_t others = along == Along::pixels ? by.channel : by.pixel;
  const auto whole = [bytes](int64_t elements) { return elements * int64_t(sizeof(T)) % bytes == 0; };
  return !frames.data || neighbours != 1 ||
         (reinterpret_cast<uintptr_t>(frames.data) % static_cast<uintptr_t>(bytes) == 0 && whole(by.time) &&
          whole(by.batch) && whole(others));
}

inline Stored stored_as(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return Stored::float64;
    case DType::bfloat16:
      return Stored::bfloat16;
    case DType::float16:
      return Stored::float16;
    default:
      return Stored::float32;
  }
}

// X(S) for every element type.
#define FUSECELL_FOR_EACH_STORAGE(X) X(float) X(double) X(bfloat16) X(float16)
// Those that tensor cores take; float is rounded to TF32.
#define FUSECELL_FOR_EACH_TENSOR_STORAGE(X) X(float) X(bfloat16) X(float16)

template <class F>
auto with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float16:
      return f(float16{});
    case DType::bfloat16:
      return f(bfloat16{});
    default:
      return f(float{});
  }
}

}  // namespace fusecell::cuda
