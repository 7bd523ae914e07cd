// CUDA's runtime functions. Like CUDA's, each remembers its error for the calling thread's cudaGetLastError; unlike
// there, a failed launch does not spoil those that follow.

#include <cstring>
#include <utility>

#include "emulation/api/cuda_runtime_api.h"
#include "emulation/controls.h"

namespace {

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const ErrorText* find(cudaError_t error) {
  for (const ErrorText& entry : kErrors) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t give(int* target, int value) {
  if (!target) return remember(cudaErrorInvalidValue);
  *target = value;
  return cudaSuccess;
}

constexpr int kVersion = 13000;

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* entry = find(error);
  return entry ? entry->name : "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* entry = find(error);
  return entry ? entry->text : "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDevice(int* device) { return give(device, 0); }
cudaError_t cudaSetDevice(int device) { return remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) { return give(count, 1); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return give(value, 2);
    case cudaDevAttrComputeCapabilityMajor:
      return give(value, fusecell::emulation::controls().tensor_cores ? 9 : 7);
    case cudaDevAttrComputeCapabilityMinor:
      return give(value, 0);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return give(value, 228 << 10);
  }
  return remember(cudaErrorInvalidValue);
}

cudaError_t cudaRuntimeGetVersion(int* version) { return give(version, kVersion); }
cudaError_t cudaDriverGetVersion(int* version) { return give(version, kVersion); }

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return remember(cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  if (!target || !source) return remember(cudaErrorInvalidValue);
  std::memmove(target, source, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  if (!target) return remember(cudaErrorInvalidValue);
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  if (!status) return remember(cudaErrorInvalidValue);
  *status = fusecell::emulation::controls().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return remember(fusecell::emulation::controls().capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t fusecell::emulation::launch_and_remember(const Kernel& kernel) {
  if (inside_kernel()) return remember(cudaErrorNotSupported);
  if (!valid(kernel)) return remember(cudaErrorInvalidConfiguration);
  return remember(run(kernel) ? cudaSuccess : cudaErrorLaunchFailure);
}
