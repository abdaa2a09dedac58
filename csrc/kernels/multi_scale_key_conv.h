// SPDX-License-Identifier: Apache-2.0
// The keys of multi-scale self-attention: each quarter of the heads looks at its own neighbourhood.
//
// Source: MSCT, "multi-scale self-attention"; the contract is that of the ONNX operator
// msct::MultiScaleKeyConv, version 1.
#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace msct {

constexpr int kKeyConvGroups = 4;

// All tensors are dense and row-major; T is float or double.  G = heads / 4.
template <typename T>
struct MultiScaleKeyConvParams {
  const T* key;                        // [batch, heads, tokens, dim]
  const T* weight[kKeyConvGroups];     // [G (out), G (in), size, size], the last two over (tokens, dim)
  const T* bias[kKeyConvGroups];       // [G]
  T* out;                              // [batch, heads, tokens, dim], must not overlap an input
  std::int64_t batch;
  std::int64_t heads;                  // a multiple of 4
  std::int64_t tokens;                 // includes the prefix
  std::int64_t dim;
  std::int64_t kernel_size[kKeyConvGroups];  // odd
  std::int64_t prefix_tokens;          // 0 .. tokens; copied as they are, seen by no convolution
};

// CPU reference: one thread, sums in double, so its float result is as good as the type allows.
// The caller has checked the shapes; there is no other failure.
template <typename T>
void multi_scale_key_conv_cpu(const MultiScaleKeyConvParams<T>& params);

extern template void multi_scale_key_conv_cpu<float>(const MultiScaleKeyConvParams<float>&);
extern template void multi_scale_key_conv_cpu<double>(const MultiScaleKeyConvParams<double>&);

// The same on a GPU: sums in float32, the result rounded once.  Weights and biases have the `type`
// of the key and are dense.
struct MultiScaleKeyConvCudaParams {
  const void* key;                     // [batch, heads, tokens, dim]
  const void* weight[kKeyConvGroups];  // [G (out), G (in), size, size]
  const void* bias[kKeyConvGroups];    // [G]
  void* out;                           // [batch, heads, tokens, dim], must not overlap an input
  ScalarType type;
  std::int64_t batch;
  std::int64_t heads;                  // a multiple of 4
  std::int64_t tokens;                 // 1 .. 512, includes the prefix
  std::int64_t dim;                    // 8, 16, .. 128
  std::int64_t kernel_size[kKeyConvGroups];  // odd
  std::int64_t prefix_tokens;          // 0 .. tokens
  Strides key_strides;
  Strides out_strides;
};

// nullptr if the kernel takes these params, else why not (static text).  Host only, no CUDA call;
// the pointers are not looked at.
const char* multi_scale_key_conv_unsupported(const MultiScaleKeyConvCudaParams& p);

// Launches on `stream`: no allocation, no synchronisation.  nullptr, or what went wrong (static
// text); pointers are of the current device.
const char* multi_scale_key_conv_cuda(const MultiScaleKeyConvCudaParams& p, CUstream_st* stream);

}  // namespace msct
