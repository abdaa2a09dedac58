// SPDX-License-Identifier: Apache-2.0
// Two kernels.  Both take K and V once for the two score sets and keep the softmax of a row as a
// running maximum, sum and weighted sum over tiles of keys (FlashAttention, Dao et al., 2022), in
// float32; neither writes anything but `out`, and neither depends on the order of blocks or warps.
//
//   attention_mma    float16 and bfloat16 on sm_80 and later, 16-byte aligned rows.  A pair of
//                    warps shares 16 query rows: one attends with q_self, the other with q_cross,
//                    on the same tiles of K and V in shared memory; at the end they meet for the
//                    difference.
//   attention_plain  everything else: any strides, any device, no tensor cores; float32 products.
#include "kernels/differential_cross_attention.h"

#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/element.cuh"
#include "kernels/intrinsics.cuh"

namespace msct {
namespace {

constexpr std::int64_t kMaxTokens = 512;
constexpr std::int64_t kMaxDim = 128;
constexpr int kChunk = 8;         // 16-bit elements in 16 bytes; dim is a multiple of it
constexpr double kLog2E = 1.4426950408889634;

struct Args {
  const void* q_self;
  const void* q_cross;
  const void* key;
  const void* value;
  const float* lam;
  void* out;
  Strides q_self_strides, q_cross_strides, key_strides, value_strides, out_strides;
  int heads, tokens, dim;
  int row_blocks;     // blocks that share one head
  float scale_log2e;  // exp(scale * x) = exp2(scale_log2e * x)
};

// The plane [tokens, dim] of one head.
template <typename Element>
__device__ __forceinline__ const Element* plane(const void* base, const Strides& strides, int batch,
                                                int head) {
  return static_cast<const Element*>(base) + batch * strides.batch + head * strides.head;
}

// Exponents are taken relative to the highest score so far; where all were -inf, relative to 0.
__device__ __forceinline__ float reference_score(float highest) {
  return highest == -INFINITY ? 0.0f : highest;
}

// ---------------------------------------------------------------------------------------------
// Tensor cores
// ---------------------------------------------------------------------------------------------

constexpr int kMmaRows = 16;   // query rows of a pair of warps
constexpr int kMmaKeys = 64;   // keys of a tile
constexpr int kMaxPairs = 4;   // pairs of warps in a block

// Elements from one row of a tile to the next: an odd number of 16-byte chunks, so that the eight
// rows of an 8x8 matrix lie in different banks.
template <int D>
constexpr int kPitch = D + kChunk;

// Starts the copy of rows first .. first + 63 into `tile` [64][pitch]; zeros beyond tokens and dim.
template <typename Element, int D>
__device__ __forceinline__ void start_tile(Element* tile, const Element* source,
                                           std::int64_t token_stride, int first, const Args& args) {
  constexpr int chunks = D / kChunk;
  for (int i = static_cast<int>(threadIdx.x); i < kMmaKeys * chunks;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / chunks;
    const int column = i % chunks * kChunk;
    const bool valid = first + row < args.tokens && column < args.dim;
    const Element* from = valid ? source + (first + row) * token_stride + column : source;
    copy_async_16(tile + row * kPitch<D> + column, from, valid);
  }
}

// Two neighbouring elements of a query row as one register, zero where there is none.
template <typename Element>
__device__ __forceinline__ std::uint32_t query_pair(const Element* row, int column, bool valid) {
  return valid ? *reinterpret_cast<const std::uint32_t*>(row + column) : 0u;
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// One warp's attention of 16 query rows.  A lane holds parts of two rows, lane / 4 and that + 8
// (index `half`), as the accumulators of multiply_add lay them out.
template <typename Element, int D>
struct WarpAttention {
  std::uint32_t query[D / 16][4];      // fragments a of multiply_add
  float sum[D / 8][4] = {};            // exp-weighted values, [16 rows, D]
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};       // of the weights; this lane's columns only until finish()

  __device__ __forceinline__ void load_query(const Element* source, std::int64_t token_stride,
                                             int row, int lane, const Args& args) {
    const int upper = row + lane / 4;
    const int lower = upper + 8;
    const Element* upper_row = source + upper * token_stride;
    const Element* lower_row = source + lower * token_stride;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const int left = k * 16 + lane % 4 * 2;
      const int right = left + 8;
      query[k][0] = query_pair(upper_row, left, upper < args.tokens && left < args.dim);
      query[k][1] = query_pair(lower_row, left, lower < args.tokens && left < args.dim);
      query[k][2] = query_pair(upper_row, right, upper < args.tokens && right < args.dim);
      query[k][3] = query_pair(lower_row, right, lower < args.tokens && right < args.dim);
    }
  }

  // Takes in one tile of keys and values, of which the first `keys` (>= 1) exist.
  __device__ __forceinline__ void add_tile(const Element* key_tile, const Element* value_tile,
                                           int keys, int lane, const Args& args) {
    // Scores [16 rows, 64 keys].  The matrices of a load: keys 0-7 and 8-15, each dims 0-7, 8-15.
    float score[kMmaKeys / 8][4] = {};
    const Element* key_row = key_tile + (lane % 8 + lane / 16 * 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int j = 0; j < kMmaKeys / 16; ++j) {
        std::uint32_t fragment[4];
        load_matrices(fragment, key_row + j * 16 * kPitch<D> + k * 16);
        multiply_add<Element>(score[2 * j], query[k], fragment[0], fragment[1]);
        multiply_add<Element>(score[2 * j + 1], query[k], fragment[2], fragment[3]);
      }
    }

    float highest_here[2] = {highest[0], highest[1]};
#pragma unroll
    for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool exists = n * 8 + lane % 4 * 2 + i % 2 < keys;
        score[n][i] = exists ? score[n][i] * args.scale_log2e : -INFINITY;
        highest_here[i / 2] = fmaxf(highest_here[i / 2], score[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest_here[half] = quad_max(highest_here[half]);
      const float rescale = exp2_approximate(highest[half] - reference_score(highest_here[half]));
      highest[half] = highest_here[half];
      total[half] *= rescale;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        sum[n][2 * half] *= rescale;
        sum[n][2 * half + 1] *= rescale;
      }
    }
#pragma unroll
    for (int n = 0; n < kMmaKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] = exp2_approximate(score[n][i] - reference_score(highest[i / 2]));
        total[i / 2] += score[n][i];
      }
    }

    // The accumulators of two neighbouring score matrices are the fragments a of the next product.
    // The matrices of a load: dims 0-7 and 8-15, each keys 0-7, 8-15, transposed.
    const Element* value_row = value_tile + lane % 16 * kPitch<D> + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < kMmaKeys / 16; ++j) {
      const float(&left)[4] = score[2 * j];
      const float(&right)[4] = score[2 * j + 1];
      const std::uint32_t weight[4] = {pack<Element>(left[0], left[1]),
                                       pack<Element>(left[2], left[3]),
                                       pack<Element>(right[0], right[1]),
                                       pack<Element>(right[2], right[3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        std::uint32_t fragment[4];
        load_matrices_transposed(fragment, value_row + j * 16 * kPitch<D> + n * 16);
        multiply_add<Element>(sum[2 * n], weight, fragment[0], fragment[1]);
        multiply_add<Element>(sum[2 * n + 1], weight, fragment[2], fragment[3]);
      }
    }
  }

  // sum becomes factor * attention.
  __device__ __forceinline__ void finish(float factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float share = factor / quad_sum(total[half]);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        sum[n][2 * half] *= share;
        sum[n][2 * half + 1] *= share;
      }
    }
  }
};

// A block is 1 .. 4 pairs of warps; shared memory holds one (K, V) pair of tiles, or two if there
// is more than one tile: the next is on its way while this one is used.
template <typename Element, int D>
__global__ void __launch_bounds__(kMaxPairs * 2 * kWarp) attention_mma(const Args args) {
  constexpr int tile_elements = kMmaKeys * kPitch<D>;
  Element* tiles = static_cast<Element*>(dynamic_shared());  // [stage][K, V][64][pitch]

  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int pair = static_cast<int>(threadIdx.x) / (2 * kWarp);
  const bool is_cross = static_cast<int>(threadIdx.x) / kWarp % 2 == 1;
  const int pairs = static_cast<int>(blockDim.x) / (2 * kWarp);
  const int plane_index = static_cast<int>(blockIdx.x) / args.row_blocks;
  const int batch = plane_index / args.heads;
  const int head = plane_index % args.heads;
  const int row = (static_cast<int>(blockIdx.x) % args.row_blocks * pairs + pair) * kMmaRows;

  const Element* key = plane<Element>(args.key, args.key_strides, batch, head);
  const Element* value = plane<Element>(args.value, args.value_strides, batch, head);
  start_tile<Element, D>(tiles, key, args.key_strides.token, 0, args);
  start_tile<Element, D>(tiles + tile_elements, value, args.value_strides.token, 0, args);

  WarpAttention<Element, D> attention;
  const Strides& query_strides = is_cross ? args.q_cross_strides : args.q_self_strides;
  const void* query = is_cross ? args.q_cross : args.q_self;
  attention.load_query(plane<Element>(query, query_strides, batch, head), query_strides.token, row,
                       lane, args);

  int stage = 0;
  for (int first = 0; first < args.tokens; first += kMmaKeys) {
    copy_async_wait();
    __syncthreads();  // this tile is there for all, and nobody uses the previous one any more
    const int next = first + kMmaKeys;
    if (next < args.tokens) {
      Element* other = tiles + (1 - stage) * 2 * tile_elements;
      start_tile<Element, D>(other, key, args.key_strides.token, next, args);
      start_tile<Element, D>(other + tile_elements, value, args.value_strides.token, next, args);
    }
    if (row < args.tokens) {  // the same for a whole warp
      const Element* tile = tiles + stage * 2 * tile_elements;
      attention.add_tile(tile, tile + tile_elements, args.tokens - first, lane, args);
    }
    stage = 1 - stage;
  }
  __syncthreads();  // the tiles are free

  // The two warps of a pair hold their results in the same places: lane by lane, value by value.
  float* exchange = static_cast<float*>(dynamic_shared()) + pair * kMmaRows * D;
  if (row < args.tokens) {
    attention.finish(is_cross ? args.lam[head] : 1.0f);
    if (is_cross) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) exchange[(n * 4 + i) * kWarp + lane] = attention.sum[n][i];
      }
    }
  }
  __syncthreads();
  if (row >= args.tokens || is_cross) return;

  Element* out = static_cast<Element*>(args.out) + batch * args.out_strides.batch +
                 head * args.out_strides.head;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int out_row = row + lane / 4 + half * 8;
    if (out_row >= args.tokens) continue;
    Element* to = out + out_row * args.out_strides.token;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (column >= args.dim) continue;
      const int at = n * 4 + 2 * half;
      const float left = attention.sum[n][2 * half] - exchange[at * kWarp + lane];
      const float right = attention.sum[n][2 * half + 1] - exchange[(at + 1) * kWarp + lane];
      *reinterpret_cast<std::uint32_t*>(to + column) = pack<Element>(left, right);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Plain
// ---------------------------------------------------------------------------------------------

constexpr int kPlainWarps = 4;
constexpr int kPlainKeys = kWarp;           // keys of a tile: one a lane
constexpr int kPlainRows = 2;               // query rows of a warp
constexpr int kPlainSets = 2 * kPlainRows;  // a warp's queries: self and cross of each row
constexpr int kPlainBlockRows = kPlainWarps * kPlainRows;

template <int D>
struct PlainShared {
  float key[kPlainKeys][D + 4];  // padded: 16-byte loads of eight lanes hit different banks
  float value[kPlainKeys][D];
  float query[kPlainWarps][kPlainSets][D];
  float weight[kPlainWarps][kPlainSets][kPlainKeys];
};

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ float4 load4(const float* four) {
  return *reinterpret_cast<const float4*>(four);
}

// A warp works on two query rows.  For the scores a lane has one key; for the weighted sum it has
// every 32nd column.
template <typename Element, int D>
__global__ void __launch_bounds__(kPlainWarps * kWarp, 1) attention_plain(const Args args) {
  constexpr int columns = (D + kWarp - 1) / kWarp;  // of a lane
  auto& shared = *static_cast<PlainShared<D>*>(dynamic_shared());

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int plane_index = static_cast<int>(blockIdx.x) / args.row_blocks;
  const int batch = plane_index / args.heads;
  const int head = plane_index % args.heads;
  const int row = static_cast<int>(blockIdx.x) % args.row_blocks * kPlainBlockRows +
                  warp * kPlainRows;

  const Element* key = plane<Element>(args.key, args.key_strides, batch, head);
  const Element* value = plane<Element>(args.value, args.value_strides, batch, head);
  for (int s = 0; s < kPlainSets; ++s) {  // row 0 self, row 0 cross, row 1 self, row 1 cross
    const bool is_cross = s % 2 == 1;
    const Strides& strides = is_cross ? args.q_cross_strides : args.q_self_strides;
    const int query_row = row + s / 2;
    const Element* query =
        plane<Element>(is_cross ? args.q_cross : args.q_self, strides, batch, head) +
        query_row * strides.token;
    for (int d = lane; d < D; d += kWarp) {
      const bool valid = query_row < args.tokens && d < args.dim;
      shared.query[warp][s][d] = valid ? to_float(query[d]) : 0.0f;
    }
  }

  float sum[kPlainSets][columns] = {};
  float highest[kPlainSets];
  float total[kPlainSets] = {};  // of this lane's weights
#pragma unroll
  for (int s = 0; s < kPlainSets; ++s) highest[s] = -INFINITY;

  for (int first = 0; first < args.tokens; first += kPlainKeys) {
    __syncthreads();  // nobody uses the previous tile any more
    for (int i = thread; i < kPlainKeys * D; i += kPlainWarps * kWarp) {
      const int r = i / D;
      const int d = i % D;
      const bool valid = first + r < args.tokens && d < args.dim;
      shared.key[r][d] = valid ? to_float(key[(first + r) * args.key_strides.token + d]) : 0.0f;
      shared.value[r][d] =
          valid ? to_float(value[(first + r) * args.value_strides.token + d]) : 0.0f;
    }
    __syncthreads();

    float score[kPlainSets] = {};
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
      const float4 k = load4(&shared.key[lane][d]);
#pragma unroll
      for (int s = 0; s < kPlainSets; ++s) {
        const float4 q = load4(&shared.query[warp][s][d]);
        score[s] = fmaf(q.x, k.x, score[s]);
        score[s] = fmaf(q.y, k.y, score[s]);
        score[s] = fmaf(q.z, k.z, score[s]);
        score[s] = fmaf(q.w, k.w, score[s]);
      }
    }
#pragma unroll
    for (int s = 0; s < kPlainSets; ++s) {
      score[s] = first + lane < args.tokens ? score[s] * args.scale_log2e : -INFINITY;
      const float highest_here = fmaxf(highest[s], warp_max(score[s]));
      const float rescale = exp2f(highest[s] - reference_score(highest_here));
      const float weight = exp2f(score[s] - reference_score(highest_here));
      highest[s] = highest_here;
      total[s] = total[s] * rescale + weight;
      shared.weight[warp][s][lane] = weight;
#pragma unroll
      for (int c = 0; c < columns; ++c) sum[s][c] *= rescale;
    }
    __syncwarp();
    float tile_sum[kPlainSets][columns] = {};  // on two levels: 512 terms in one sum lose digits
#pragma unroll 1
    for (int j = 0; j < kPlainKeys; j += 4) {
      float4 weight[kPlainSets];
#pragma unroll
      for (int s = 0; s < kPlainSets; ++s) weight[s] = load4(&shared.weight[warp][s][j]);
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const int d = D >= kWarp ? lane + c * kWarp : lane % D;
        const float v0 = shared.value[j][d];
        const float v1 = shared.value[j + 1][d];
        const float v2 = shared.value[j + 2][d];
        const float v3 = shared.value[j + 3][d];
#pragma unroll
        for (int s = 0; s < kPlainSets; ++s) {
          tile_sum[s][c] = fmaf(weight[s].x, v0, tile_sum[s][c]);
          tile_sum[s][c] = fmaf(weight[s].y, v1, tile_sum[s][c]);
          tile_sum[s][c] = fmaf(weight[s].z, v2, tile_sum[s][c]);
          tile_sum[s][c] = fmaf(weight[s].w, v3, tile_sum[s][c]);
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kPlainSets; ++s) {
#pragma unroll
      for (int c = 0; c < columns; ++c) sum[s][c] += tile_sum[s][c];
    }
  }

#pragma unroll
  for (int s = 0; s < kPlainSets; ++s) total[s] = warp_sum(total[s]);
  const float lam = args.lam[head];
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    if (row + r >= args.tokens) continue;
    Element* out = static_cast<Element*>(args.out) + batch * args.out_strides.batch +
                   head * args.out_strides.head + (row + r) * args.out_strides.token;
    const float self_share = 1.0f / total[2 * r];
    const float cross_share = lam / total[2 * r + 1];
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const int d = lane + c * kWarp;
      if (d >= args.dim) continue;
      out[d] = from_float<Element>(sum[2 * r][c] * self_share - sum[2 * r + 1][c] * cross_share);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Host
// ---------------------------------------------------------------------------------------------

using Params = DifferentialCrossAttentionCudaParams;

Args kernel_args(const Params& p, std::int64_t row_blocks) {
  Args args{};
  args.q_self = p.q_self;
  args.q_cross = p.q_cross;
  args.key = p.key;
  args.value = p.value;
  args.lam = p.lam;
  args.out = p.out;
  args.q_self_strides = p.q_self_strides;
  args.q_cross_strides = p.q_cross_strides;
  args.key_strides = p.key_strides;
  args.value_strides = p.value_strides;
  args.out_strides = p.out_strides;
  args.heads = static_cast<int>(p.heads);
  args.tokens = static_cast<int>(p.tokens);
  args.dim = static_cast<int>(p.dim);
  args.row_blocks = static_cast<int>(row_blocks);
  args.scale_log2e = static_cast<float>(p.scale * kLog2E);
  return args;
}

std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

// Every row starts on 16 bytes.  The stride of a dimension of one is never used.
bool rows_are_aligned(const void* base, const Strides& strides, const Params& p) {
  return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 &&
         (p.batch == 1 || strides.batch % kChunk == 0) &&
         (p.heads == 1 || strides.head % kChunk == 0) &&
         (p.tokens == 1 || strides.token % kChunk == 0);
}

struct Device {
  int capability;  // 80 for 8.0
  int processors;
};

cudaError_t current_device(Device& device) {
  int index = 0, major = 0, minor = 0;
  cudaError_t status = cudaGetDevice(&index);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  }
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  }
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, index);
  }
  device.capability = 10 * major + minor;
  return status;
}

// The code that this device runs, its own or what its driver makes of older PTX, has tensor cores.
bool built_with_tensor_cores_for(int capability) {
  constexpr int built_for[] = {__CUDA_ARCH_LIST__};  // ascending, 800 for sm_80
  int chosen = 0;
  for (const int arch : built_for) {
    if (arch <= 10 * capability) chosen = arch;
  }
  return chosen >= 800;
}

// Pairs of warps a block: as many as leave every multiprocessor a block, for they share the tiles.
int pairs_per_block(std::int64_t planes, std::int64_t row_tiles, int processors) {
  std::int64_t pairs = row_tiles < kMaxPairs ? row_tiles : kMaxPairs;
  while (pairs > 1 && planes * divide_up(row_tiles, pairs) < processors) --pairs;
  return static_cast<int>(divide_up(row_tiles, divide_up(row_tiles, pairs)));  // none without rows
}

template <typename Element, int D>
const char* launch_mma(const Params& p, int processors, cudaStream_t stream) {
  constexpr std::size_t stage_bytes = 2 * kMmaKeys * kPitch<D> * sizeof(Element);
  static_assert(kMaxPairs * kMmaRows * D * sizeof(float) <= stage_bytes,
                "the results of all pairs fit where the tiles were");
  static_assert(2 * stage_bytes <= 99 * 1024, "sm_86, sm_89 and sm_120 have no more for a block");
  const std::int64_t row_tiles = divide_up(p.tokens, kMmaRows);
  const int pairs = pairs_per_block(p.batch * p.heads, row_tiles, processors);
  const std::int64_t row_blocks = divide_up(row_tiles, pairs);
  return launch(attention_mma<Element, D>, p.batch * p.heads * row_blocks, pairs * 2 * kWarp,
                (p.tokens > kMmaKeys ? 2 : 1) * stage_bytes, stream, kernel_args(p, row_blocks));
}

template <typename Element, int D>
const char* launch_plain(const Params& p, cudaStream_t stream) {
  static_assert(sizeof(PlainShared<D>) <= kSharedWithoutAsking, "runs on any device");
  const std::int64_t row_blocks = divide_up(p.tokens, kPlainBlockRows);
  return launch(attention_plain<Element, D>, p.batch * p.heads * row_blocks, kPlainWarps * kWarp,
                sizeof(PlainShared<D>), stream, kernel_args(p, row_blocks));
}

template <typename Element, int D>
const char* launch_dim(const Params& p, cudaStream_t stream) {
  if constexpr (sizeof(Element) == 2) {
    Device device{};
    const cudaError_t status = current_device(device);
    if (status != cudaSuccess) return cudaGetErrorString(status);
    const bool aligned = rows_are_aligned(p.q_self, p.q_self_strides, p) &&
                         rows_are_aligned(p.q_cross, p.q_cross_strides, p) &&
                         rows_are_aligned(p.key, p.key_strides, p) &&
                         rows_are_aligned(p.value, p.value_strides, p) &&
                         rows_are_aligned(p.out, p.out_strides, p);
    if (aligned && built_with_tensor_cores_for(device.capability)) {
      return launch_mma<Element, D>(p, device.processors, stream);
    }
  }
  return launch_plain<Element, D>(p, stream);
}

template <typename Element>
const char* launch_type(const Params& p, cudaStream_t stream) {
  if (p.dim <= 16) return launch_dim<Element, 16>(p, stream);
  if (p.dim <= 32) return launch_dim<Element, 32>(p, stream);
  if (p.dim <= 64) return launch_dim<Element, 64>(p, stream);
  if (p.dim <= 96) return launch_dim<Element, 96>(p, stream);
  return launch_dim<Element, 128>(p, stream);
}

}  // namespace

const char* differential_cross_attention_unsupported(const Params& p) {
  if (p.type != ScalarType::kFloat32 && p.type != ScalarType::kFloat16 &&
      p.type != ScalarType::kBFloat16) {
    return "DifferentialCrossAttention: the type must be float32, float16 or bfloat16";
  }
  if (p.batch < 1 || p.heads < 1) {
    return "DifferentialCrossAttention: batch and heads must be at least 1";
  }
  if (p.tokens < 1 || p.tokens > kMaxTokens) {
    return "DifferentialCrossAttention: tokens must be from 1 to 512";
  }
  if (p.dim < kChunk || p.dim > kMaxDim || p.dim % kChunk != 0) {
    return "DifferentialCrossAttention: the head dimension must be a multiple of 8, at most 128";
  }
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (p.batch > most || p.heads > most ||
      p.batch > most / p.heads / divide_up(p.tokens, kPlainBlockRows)) {
    return "DifferentialCrossAttention: batch * heads is too large for one launch";
  }
  if (!(p.scale - p.scale == 0.0)) return "DifferentialCrossAttention: scale must be finite";
  return nullptr;
}

const char* differential_cross_attention_cuda(const Params& p, CUstream_st* stream) {
  if (const char* reason = differential_cross_attention_unsupported(p)) return reason;
  switch (p.type) {
    case ScalarType::kFloat16: return launch_type<__half>(p, stream);
    case ScalarType::kBFloat16: return launch_type<__nv_bfloat16>(p, stream);
    case ScalarType::kFloat32: break;
  }
  return launch_type<float>(p, stream);
}

}  // namespace msct
