// SPDX-License-Identifier: Apache-2.0
// The keys of multi-scale self-attention: each quarter of the heads looks at its own neighbourhood.
//
// Source: MSCT, "multi-scale self-attention"; the contract is that of the ONNX operator
// msct::MultiScaleKeyConv, version 1.
#pragma once

#include <cstdint>

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

}  // namespace msct
