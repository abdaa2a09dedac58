// SPDX-License-Identifier: Apache-2.0
// Attention of a modality to itself, less its attention to the other one.
//
// Source: MSCT, "differential cross-attention" (the paper is lam = 1); the contract is that of the
// ONNX operator msct::DifferentialCrossAttention, version 1:
//   out = softmax(scale * q_self * key^T) * value - lam * softmax(scale * q_cross * key^T) * value
#pragma once

#include <cstdint>

#include "kernels/device.h"

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

// The same on a GPU.  All tensors [batch, heads, tokens, dim] of one `type`; every sum, the softmax
// and the difference are in float32, the result is rounded once.
struct DifferentialCrossAttentionCudaParams {
  const void* q_self;
  const void* q_cross;
  const void* key;
  const void* value;
  const float* lam;   // [heads], float32 whatever the type is
  void* out;          // must not overlap an input
  ScalarType type;
  std::int64_t batch;
  std::int64_t heads;
  std::int64_t tokens;  // 1 .. 512
  std::int64_t dim;     // 8, 16, .. 128
  Strides q_self_strides;
  Strides q_cross_strides;
  Strides key_strides;
  Strides value_strides;
  Strides out_strides;
  double scale;
};

// nullptr if the kernels take these params, else why not (static text).  Host only, no CUDA call;
// the pointers are not looked at.
const char* differential_cross_attention_unsupported(const DifferentialCrossAttentionCudaParams& p);

// Launches on `stream`: no allocation, no synchronisation.  nullptr, or what went wrong (static
// text); pointers are of the current device.
const char* differential_cross_attention_cuda(const DifferentialCrossAttentionCudaParams& p,
                                              CUstream_st* stream);

}  // namespace msct
