// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels' callers need to say: element types, strides, a stream.  No CUDA header.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t is CUstream_st*

namespace msct {

enum class ScalarType : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// Of a [batch, heads, tokens, dim] tensor, in elements.  The stride of dim is 1.
struct Strides {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t token;
};

constexpr Strides dense_strides(std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
  return Strides{heads * tokens * dim, tokens * dim, dim};
}

}  // namespace msct
