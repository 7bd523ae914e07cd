#pragma once
// A plain recurrent network, forward and backward. Arguments are validated; memory and scratch as problem/backend.h
// says.

#include <cstdint>

#include "problem/backend.h"
#include "problem/rnn.h"

namespace fusecell::cpu {

int64_t rnn_forward_scratch(const RnnForward& args, const RnnShape& shape, int workers);
int64_t rnn_backward_scratch(const RnnForward& args, const RnnShape& shape, int workers);
void rnn_forward(const RnnForward& args, const RnnShape& shape, const Launch& launch);
void rnn_backward(const RnnBackward& args, const RnnShape& shape, const Launch& launch);

}  // namespace fusecell::cpu
