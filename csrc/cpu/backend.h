#pragma once
// What the bindings call. Arguments are validated; scratch has at least the bytes that the *_scratch function of the
// same shape and number of workers asks for. Nothing here allocates but a few small tables on the heap.

#include <cstdint>
#include <vector>

#include "cell/activation.h"
#include "problem/conv_lstm.h"
#include "problem/convolution.h"
#include "problem/lstm_gates.h"

namespace fusecell::cpu {

int64_t conv2d_forward_scratch(const Conv2dShape& shape, int workers);
int64_t conv2d_backward_scratch(const Conv2dShape& shape, int workers);
void conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, void* scratch, int workers);
void conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, void* scratch, int workers);

int64_t lstm_gates_backward_scratch(const LstmGatesShape& shape);
void lstm_gates_forward(const LstmGatesForward& args, const LstmGatesShape& shape, int workers);
void lstm_gates_backward(const LstmGatesBackward& args, const LstmGatesShape& shape, void* scratch, int workers);

int64_t conv_lstm_forward_scratch(const ConvLstmShape& shape, int workers);
int64_t conv_lstm_backward_scratch(const ConvLstmShape& shape, int workers);
void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, void* scratch, int workers);
void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, void* scratch, int workers);

// Elementwise: x, y, dy and dx are alike.
void activation_forward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                        const Tensor& y, int workers);
void activation_backward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                         const Tensor& y, const Tensor& dy, const Tensor& dx, int workers);
// Over the axis of `extent` values that lie `stride` elements apart.
void softmax_forward(const Tensor& x, const Tensor& y, int64_t extent, int64_t stride, int workers);
void softmax_backward(const Tensor& y, const Tensor& dy, const Tensor& dx, int64_t extent, int64_t stride, int workers);

enum class Norm { one, two, infinity };
double norm(const std::vector<Tensor>& tensors, Norm kind, int workers);
bool any_above(const Tensor& tensor, double threshold, int workers);
void scale(const Tensor& tensor, double factor, int workers);
void clamp(const Tensor& tensor, double limit, int workers);

// 1 with the given probability, else 0; see cell/philox.h.
void bernoulli(const Tensor& out, double rate, uint64_t seed, uint64_t offset, uint32_t stream, int workers);

}  // namespace fusecell::cpu
