// SPDX-License-Identifier: Apache-2.0
// One launch for all four groups.  A block makes 16 tokens of one head: it brings its group's input
// planes (with the halo of its kernel size, zeros where there is nothing to see) and its weights to
// shared memory, as many input heads at a time as fit, and a thread makes 4 tokens of one column.
#include "kernels/multi_scale_key_conv.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/element.cuh"
#include "kernels/intrinsics.cuh"

namespace msct {
namespace {

constexpr std::int64_t kMaxTokens = 512;
constexpr std::int64_t kMaxDim = 128;
constexpr std::int64_t kMaxKernelSize = 31;
constexpr int kTileTokens = 16;
constexpr int kStrip = 4;  // tokens of a thread
constexpr int kMaxThreads = kTileTokens / kStrip * static_cast<int>(kMaxDim);

struct Args {
  const void* key;
  const void* weight[kKeyConvGroups];
  const void* bias[kKeyConvGroups];
  void* out;
  Strides key_strides, out_strides;
  int heads, tokens, dim, prefix;
  int token_tiles;
  int kernel_size[kKeyConvGroups];
  int heads_at_once[kKeyConvGroups];
};

// Floats of shared memory for one input head: its plane with halo, and its weights.
constexpr std::int64_t floats_per_head(std::int64_t dim, std::int64_t size) {
  return (kTileTokens + size - 1) * (dim + size - 1) + size * size;
}

// sum[r] += the window at rows r .. r + size - 1 of `plane`; `taps` is [size, size].
// kSize 0: the size is known at run time only.
template <int kSize>
__device__ __forceinline__ void add_head(float (&sum)[kStrip], const float* plane, int width,
                                         const float* taps, int size) {
  if constexpr (kSize > 0) {
#pragma unroll 1  // a column's loads and taps are enough to keep the pipeline full
    for (int j = 0; j < kSize; ++j) {
#pragma unroll
      for (int i = 0; i < kStrip + kSize - 1; ++i) {
        const float x = plane[i * width + j];
#pragma unroll
        for (int r = 0; r < kStrip; ++r) {
          if (i - r >= 0 && i - r < kSize) sum[r] = fmaf(x, taps[(i - r) * kSize + j], sum[r]);
        }
      }
    }
  } else {
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) {
        const float tap = taps[i * size + j];
#pragma unroll
        for (int r = 0; r < kStrip; ++r) {
          sum[r] = fmaf(plane[(i + r) * width + j], tap, sum[r]);
        }
      }
    }
  }
}

template <typename Element>
__global__ void __launch_bounds__(kMaxThreads, 1) key_conv(const Args args) {
  const int tile = static_cast<int>(blockIdx.x) % args.token_tiles;
  const int plane_index = static_cast<int>(blockIdx.x) / args.token_tiles;
  const int batch = plane_index / args.heads;
  const int head = plane_index % args.heads;
  const int group_heads = args.heads / kKeyConvGroups;
  const int group = head / group_heads;

  // Fixed indices: a run-time index would copy the arrays of the arguments to local memory.
  const Element* weight = nullptr;
  const Element* bias = nullptr;
  int size = 1;
  int heads_at_once = 1;
#pragma unroll
  for (int g = 0; g < kKeyConvGroups; ++g) {
    if (g == group) {
      weight = static_cast<const Element*>(args.weight[g]);
      bias = static_cast<const Element*>(args.bias[g]);
      size = args.kernel_size[g];
      heads_at_once = args.heads_at_once[g];
    }
  }
  const int half = size / 2;
  const int rows = kTileTokens + 2 * half;
  const int width = args.dim + 2 * half;
  const int first_token = tile * kTileTokens;
  const int group_head = head - group * group_heads;
  weight += static_cast<std::int64_t>(group_head) * group_heads * size * size;
  const Element* key = static_cast<const Element*>(args.key) + batch * args.key_strides.batch;

  float* planes = static_cast<float*>(dynamic_shared());   // [heads_at_once, rows, width]
  float* taps = planes + heads_at_once * rows * width;     // [heads_at_once, size, size]

  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int column = thread % args.dim;
  const int strip = thread / args.dim * kStrip;            // first of this thread's tokens
  const bool works = strip < kTileTokens;                  // threads are rounded up to warps

  float sum[kStrip] = {};
  for (int first_head = 0; first_head < group_heads; first_head += heads_at_once) {
    const int heads_here = min(heads_at_once, group_heads - first_head);
    if (first_head > 0) __syncthreads();  // nobody uses the previous heads any more
    for (int i = thread / kWarp; i < heads_here * rows; i += threads / kWarp) {  // one row a warp
      const int token = first_token - half + i % rows;
      const Element* from =
          key + (group * group_heads + first_head + i / rows) * args.key_strides.head +
          token * args.key_strides.token;
      const bool seen = token >= args.prefix && token < args.tokens;
      for (int x = thread % kWarp; x < width; x += kWarp) {
        const int d = x - half;
        planes[i * width + x] = seen && d >= 0 && d < args.dim ? to_float(from[d]) : 0.0f;
      }
    }
    for (int i = thread; i < heads_here * size * size; i += threads) {
      taps[i] = to_float(weight[first_head * size * size + i]);
    }
    __syncthreads();
    if (works) {
      for (int h = 0; h < heads_here; ++h) {
        const float* plane = planes + (h * rows + strip) * width + column;
        const float* head_taps = taps + h * size * size;
        switch (size) {
          case 1: add_head<1>(sum, plane, width, head_taps, size); break;
          case 3: add_head<3>(sum, plane, width, head_taps, size); break;
          case 5: add_head<5>(sum, plane, width, head_taps, size); break;
          case 7: add_head<7>(sum, plane, width, head_taps, size); break;
          default: add_head<0>(sum, plane, width, head_taps, size); break;
        }
      }
    }
  }
  if (!works) return;

  const float offset = to_float(bias[group_head]);
  const Element* untouched = key + head * args.key_strides.head + column;
  Element* out = static_cast<Element*>(args.out) + batch * args.out_strides.batch +
                 head * args.out_strides.head + column;
#pragma unroll
  for (int r = 0; r < kStrip; ++r) {
    const int token = first_token + strip + r;
    if (token >= args.tokens) continue;
    out[token * args.out_strides.token] = token < args.prefix
                                              ? untouched[token * args.key_strides.token]
                                              : from_float<Element>(sum[r] + offset);
  }
}

using Params = MultiScaleKeyConvCudaParams;

template <typename Element>
const char* launch_type(const Params& p, cudaStream_t stream) {
  Args args{};
  args.key = p.key;
  args.out = p.out;
  args.key_strides = p.key_strides;
  args.out_strides = p.out_strides;
  args.heads = static_cast<int>(p.heads);
  args.tokens = static_cast<int>(p.tokens);
  args.dim = static_cast<int>(p.dim);
  args.prefix = static_cast<int>(p.prefix_tokens);
  args.token_tiles = static_cast<int>((p.tokens + kTileTokens - 1) / kTileTokens);
  std::int64_t shared_floats = 0;
  for (int g = 0; g < kKeyConvGroups; ++g) {
    constexpr std::int64_t available = kSharedWithoutAsking / sizeof(float);
    static_assert(floats_per_head(kMaxDim, kMaxKernelSize) <= available, "one head always fits");
    const std::int64_t per_head = floats_per_head(p.dim, p.kernel_size[g]);
    const std::int64_t at_once = std::min(available / per_head, p.heads / kKeyConvGroups);
    args.weight[g] = p.weight[g];
    args.bias[g] = p.bias[g];
    args.kernel_size[g] = static_cast<int>(p.kernel_size[g]);
    args.heads_at_once[g] = static_cast<int>(at_once);
    shared_floats = std::max(shared_floats, at_once * per_head);
  }
  const int busy = kTileTokens / kStrip * args.dim;
  return launch(key_conv<Element>, p.batch * p.heads * args.token_tiles,
                (busy + kWarp - 1) / kWarp * kWarp,
                static_cast<std::size_t>(shared_floats) * sizeof(float), stream, args);
}

}  // namespace

const char* multi_scale_key_conv_unsupported(const Params& p) {
  if (p.type != ScalarType::kFloat32 && p.type != ScalarType::kFloat16 &&
      p.type != ScalarType::kBFloat16) {
    return "MultiScaleKeyConv: the type must be float32, float16 or bfloat16";
  }
  if (p.batch < 1) return "MultiScaleKeyConv: batch must be at least 1";
  if (p.heads < kKeyConvGroups || p.heads % kKeyConvGroups != 0) {
    return "MultiScaleKeyConv: heads must be a multiple of 4";
  }
  if (p.tokens < 1 || p.tokens > kMaxTokens) {
    return "MultiScaleKeyConv: tokens must be from 1 to 512";
  }
  if (p.dim < 8 || p.dim > kMaxDim || p.dim % 8 != 0) {
    return "MultiScaleKeyConv: the head dimension must be a multiple of 8, at most 128";
  }
  for (const std::int64_t size : p.kernel_size) {
    if (size < 1 || size > kMaxKernelSize || size % 2 == 0) {
      return "MultiScaleKeyConv: kernel sizes must be odd, from 1 to 31";
    }
  }
  if (p.prefix_tokens < 0 || p.prefix_tokens > p.tokens) {
    return "MultiScaleKeyConv: prefix_tokens must be from 0 to the number of tokens";
  }
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const std::int64_t tiles = (p.tokens + kTileTokens - 1) / kTileTokens;
  if (p.batch > most || p.heads > most || p.batch > most / p.heads / tiles) {
    return "MultiScaleKeyConv: batch * heads is too large for one launch";
  }
  return nullptr;
}

const char* multi_scale_key_conv_cuda(const Params& p, CUstream_st* stream) {
  if (const char* reason = multi_scale_key_conv_unsupported(p)) return reason;
  switch (p.type) {
    case ScalarType::kFloat16: return launch_type<__half>(p, stream);
    case ScalarType::kBFloat16: return launch_type<__nv_bfloat16>(p, stream);
    case ScalarType::kFloat32: break;
  }
  return launch_type<float>(p, stream);
}

}  // namespace msct
