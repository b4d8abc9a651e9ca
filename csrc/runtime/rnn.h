// The arithmetic of recurrent cells, one table of functions for each instruction set.
#pragma once

#include <cstdint>

namespace edgec::rnn {

enum class Function : int32_t {
  kSigmoid,
  kTanh,
  kRelu,
  kAffine,
  kLeakyRelu,
  kThresholdedRelu,
  kScaledTanh,
  kHardSigmoid,
  kElu,
  kSoftsign,
  kSoftplus,
};

struct Activation {
  Function function = Function::kSigmoid;
  float alpha = 0, beta = 0;
};

// One step of one batch element. Gate g's inputs are x[g * hidden + i] + r[g * hidden + i] + bias[g * hidden + i].
struct Cell {
  int64_t hidden = 0;
  const float *x = nullptr, *r = nullptr, *bias = nullptr;
  const float* extra_bias = nullptr;  // GRU with linear_before_reset: the recurrent bias of h
  const float* peephole = nullptr;    // LSTM: i, o, f; or null
  const Activation* activations = nullptr;
  float clip = 0;       // 0: none
  bool option = false;  // LSTM: input_forget; GRU: linear_before_reset
  float *h = nullptr, *c = nullptr;
  float* reset_h = nullptr;  // GRU: reset * h
};

struct Ops {
  // out[b * out_stride + row] = w[row, :k] . v[b * v_stride, :k] for rows of [begin, end)
  void (*dots)(const float* w, int64_t begin, int64_t end, int64_t k, const float* v, int64_t v_stride, int64_t batch,
               float* out, int64_t out_stride);
  void (*lstm)(const Cell&);
  void (*gru_reset)(const Cell&);  // reset_h = reset * h
  void (*gru)(const Cell&);
  void (*plain)(const Cell&);
};

const Ops& best_ops();

}  // namespace edgec::rnn
