// SPDX-License-Identifier: Apache-2.0
// Attention of a modality to itself, less its attention to the other one.
//
// Source: MSCT, "differential cross-attention" (the paper is lam = 1); the contract is that of the
// ONNX operator msct::DifferentialCrossAttention, version 1:
//   out = softmax(scale * q_self * key^T) * value - lam * softmax(scale * q_cross * key^T) * value
#pragma once

#include <cstdint>

namespace msct {

// All tensors are dense and row-major; T is float or double.
template <typename T>
struct DifferentialCrossAttentionParams {
  const T* q_self;    // [batch, heads, tokens, dim]
  const T* q_cross;   // [batch, heads, tokens, dim]
  const T* key;       // [batch, heads, tokens, dim]
  const T* value;     // [batch, heads, tokens, dim]
  const float* lam;   // [heads], float32 whatever T is
  T* out;             // [batch, heads, tokens, dim], must not overlap an input
  std::int64_t batch;
  std::int64_t heads;
  std::int64_t tokens;
  std::int64_t dim;
  double scale;       // usually 1 / sqrt(dim)
};

// CPU reference: one thread, softmax and sums in double.  The caller has checked the shapes; the
// only failure is std::bad_alloc for 2 * tokens doubles of workspace.
template <typename T>
void differential_cross_attention_cpu(const DifferentialCrossAttentionParams<T>& params);

extern template void differential_cross_attention_cpu<float>(
    const DifferentialCrossAttentionParams<float>&);
extern template void differential_cross_attention_cpu<double>(
    const DifferentialCrossAttentionParams<double>&);

}  // namespace msct
