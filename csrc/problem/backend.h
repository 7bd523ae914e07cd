#pragma once
// What the bindings call, and every backend implements: the CPU's in cpu/, the GPU's in cuda/. A module is linked with
// one of them. Arguments are validated. A call enqueues its work on the launch's stream (or does it at once, on a CPU),
// allocates no array, and finds in `scratch` at least the bytes that the *_scratch function of the same arguments asks
// for.

#include <cstdint>
#include <string>
#include <vector>

#include "cell/activation.h"
#include "cell/update.h"
#include "problem/conv_lstm.h"
#include "problem/convolution.h"
#include "problem/lstm_gates.h"

namespace fusecell {

struct Launch {
  void* scratch = nullptr;
  int64_t scratch_bytes = 0;
  int workers = 1;         // threads of a CPU
  int device = 0;          // number of the GPU
  void* stream = nullptr;  // cudaStream_t
};

namespace backend {

// Whether the host may read the arrays, whether float16 and bfloat16 can be computed on, whether convolutions know
// Winograd's algorithm, and whether every GPU has tensor cores that they know (from sm_80 on).
struct Traits {
  bool host_memory, half_precision, winograd, tensor_cores;
};
Traits traits();

// What keeps convolutions from products of bfloat16; empty: nothing. Asks the system for the registers that they take.
std::string bfloat16_obstacle();

int64_t conv2d_forward_scratch(const Conv2dForward& args, const Conv2dShape& shape, int workers);
int64_t conv2d_backward_scratch(const Conv2dForward& args, const Conv2dShape& shape, int workers);
void conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch);
void conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch);

int64_t lstm_gates_forward_scratch(const LstmGatesForward& args, const LstmGatesShape& shape, int workers);
int64_t lstm_gates_backward_scratch(const LstmGatesForward& args, const LstmGatesShape& shape, int workers);
void lstm_gates_forward(const LstmGatesForward& args, const LstmGatesShape& shape, const Launch& launch);
void lstm_gates_backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch);

int64_t conv_lstm_forward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape, int workers);
int64_t conv_lstm_backward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape, int workers);
// In how many parts a step's statistics come, each of which is one task's or thread block's.
int64_t conv_lstm_statistics_parts(const ConvLstmShape& shape);
void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch);
void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch);

// Elementwise: x, y, dy and dx are alike.
void activation_forward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                        const Tensor& y, const Launch& launch);
void activation_backward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                         const Tensor& y, const Tensor& dy, const Tensor& dx, const Launch& launch);
// Over the axis of `extent` values that lie `stride` elements apart.
void softmax_forward(const Tensor& x, const Tensor& y, int64_t extent, int64_t stride, const Launch& launch);
void softmax_backward(const Tensor& y, const Tensor& dy, const Tensor& dx, int64_t extent, int64_t stride,
                      const Launch& launch);

// The norm of all the tensors together, as one float64 in `out`. largest_number: infinity's, but NaN counts as 0.
enum class Norm { one, two, infinity, largest_number };
int64_t norm_scratch(const std::vector<Tensor>& tensors);
void norm(const std::vector<Tensor>& tensors, Norm kind, const Tensor& out, const Launch& launch);

// In place, over every tensor of a list. The numbers that decide are float64[1], where the arrays are.
void clip_to_norm(const std::vector<Tensor>& tensors, const Tensor& norm, double max_norm, const Launch& launch);
void clamp(const std::vector<Tensor>& tensors, double limit, const Launch& launch);
// x / norm, where largest > threshold.
void divide_if_above(const std::vector<Tensor>& tensors, const Tensor& norm, const Tensor& largest, double threshold,
                     const Launch& launch);

// One step of an optimiser over lists of tensors that are alike; see cell/update.h.
struct Update {
  UpdateRule rule;
  UpdateParameters<double> parameters;
  std::vector<Tensor> values, gradients, first, second;  // first and second: empty where the rule has none
  Tensor norm;                                           // absent: no clipping
  Tensor step;                                           // int64[1]; absent: parameters.step
};
void update(const Update& args, const Launch& launch);

// 1 with the given probability, else 0; see cell/philox.h. counter: int64[1] where `out` is, added to the offset as the
// numbers are drawn; may be absent.
void bernoulli(const Tensor& out, double rate, uint64_t seed, uint64_t offset, uint32_t stream, const Tensor& counter,
               const Launch& launch);

}  // namespace backend
}  // namespace fusecell
