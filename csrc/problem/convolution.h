#pragma once
// A 2-D cross-correlation: out[o] = sum over i, kh, kw of weight[o, i, kh, kw] * in[i, oh * stride + kh * dilation -
// pad].

#include <cstdint>
#include <string>

#include "problem/tensor.h"

namespace fusecell {

// tensor_cores: those of a GPU, on 16-bit elements; tf32: the same on float32, rounded to TF32.
enum class Algorithm { direct, winograd, bfloat16, tensor_cores, tf32 };

inline const char* algorithm_name(Algorithm algorithm) {
  constexpr const char* kNames[] = {"direct", "winograd", "bfloat16", "tensor_cores", "tf32"};
  return kNames[static_cast<int>(algorithm)];
}

inline bool on_tensor_cores(Algorithm algorithm) {
  return algorithm == Algorithm::tensor_cores || algorithm == Algorithm::tf32;
}

struct ConvolutionOptions {
  int64_t stride[2] = {1, 1};
  int64_t dilation[2] = {1, 1};
  std::string padding = "same";          // "same", "valid" or "explicit"
  int64_t pad[2][2] = {{0, 0}, {0, 0}};  // [h, w][low, high], read when padding is "explicit"
  std::string algorithm = "auto";        // or an Algorithm's name; a ConvLSTM's: of the state's convolution too
};

struct ConvolutionShape {
  int64_t in_channels = 0, out_channels = 0;
  int64_t in[2] = {0, 0}, out[2] = {0, 0}, kernel[2] = {1, 1}, stride[2] = {1, 1}, dilation[2] = {1, 1};
  int64_t pad_low[2] = {0, 0};

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t in_pixels() const { return in[0] * in[1]; }
  int64_t out_pixels() const { return out[0] * out[1]; }
};

// What keeps an algorithm that knows neither stride nor dilation from computing this; empty: nothing.
inline std::string step_obstacle(const ConvolutionShape& conv) {
  if (conv.stride[0] != 1 || conv.stride[1] != 1) return "stride " + to_string({conv.stride[0], conv.stride[1]});
  if (conv.dilation[0] == 1 && conv.dilation[1] == 1) return "";
  return "dilation " + to_string({conv.dilation[0], conv.dilation[1]});
}

struct Conv2dForward {
  Tensor x, weight, bias;  // [B, I, H, W], [O, I, kh, kw], [O] or absent
  ConvolutionOptions options;
  Tensor y;  // [B, O, H', W']
};

struct Conv2dBackward : Conv2dForward {
  Tensor dy;                  // y of the forward is not read
  Tensor dx, dweight, dbias;  // each may be absent: then it is not computed
};

struct Conv2dShape {
  DType dtype;
  int64_t batch;
  ConvolutionShape conv;
  Algorithm algorithm = Algorithm::direct;  // that the options came to
};

}  // namespace fusecell
