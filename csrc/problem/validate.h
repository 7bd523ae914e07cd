#pragma once
// Every rule about arguments, in one place. Each function reads the inputs and the outputs that are present, throws
// Error at the first breach, and returns the shape of the problem. No backend checks anything again.

#include <string>

#include "problem/backend.h"
#include "problem/conv_lstm.h"
#include "problem/convolution.h"
#include "problem/lstm_gates.h"
#include "problem/rnn.h"

namespace fusecell {

enum class Stage { plan, run };  // plan: only the inputs are there yet; run: the required outputs are, too

Activation activation_from_name(const std::string& argument, const std::string& name);

Conv2dShape validate(const Conv2dForward& args, Stage stage);
Conv2dShape validate(const Conv2dBackward& args, Stage stage);
LstmGatesShape validate(const LstmGatesForward& args, Stage stage);
LstmGatesShape validate(const LstmGatesBackward& args, Stage stage);
ConvLstmShape validate(const ConvLstmForward& args, Stage stage);
ConvLstmShape validate(const ConvLstmBackward& args, Stage stage);
RnnShape validate(const RnnForward& args, Stage stage);
RnnShape validate(const RnnBackward& args, Stage stage);

// The parameters of the activations: finite, at_zero 0, 0.5 or 1.
ActivationParameters<double> activation_parameters(double slope, double alpha, double at_zero);
void expect_rate(const std::string& name, double rate);

void validate(const backend::Update& args);

// For the elementwise ops: a C-contiguous tensor, a floating one, one of the same dtype and shape, a single number.
void expect_contiguous(const std::string& name, const Tensor& tensor);
void expect_floating(const std::string& name, const Tensor& tensor);
void expect_one(const std::string& name, const Tensor& tensor, DType dtype);
void expect_like(const std::string& name, const Tensor& tensor, const Tensor& other, const std::string& other_name);

}  // namespace fusecell
