// SPDX-License-Identifier: Apache-2.0
// Each kernel is right but for the line with a comment.  tests/native/test_simt.py has the list of
// who must find what, in the same order.
#include "faulty.h"

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/element.cuh"
#include "kernels/intrinsics.cuh"

namespace {

using msct::dynamic_shared;
using msct::launch;

struct Args {
  float* out;
};

__device__ float* shared_floats() { return static_cast<float*>(dynamic_shared()); }

// 0: right, the mirror of the thread numbers; proves that what follows fails for its mistake alone.
__global__ void mirror(const Args args) {
  shared_floats()[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  args.out[threadIdx.x] = shared_floats()[63 - threadIdx.x];
}

__global__ void race(const Args args) {
  shared_floats()[threadIdx.x] = static_cast<float>(threadIdx.x);
  // no barrier
  args.out[threadIdx.x] = shared_floats()[63 - threadIdx.x];
}

__global__ void race_on_reuse(const Args args) {
  shared_floats()[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  const float mirrored = shared_floats()[63 - threadIdx.x];
  shared_floats()[threadIdx.x] = mirrored;  // others may still be reading
  args.out[threadIdx.x] = mirrored;
}

__global__ void race_of_blocks(const Args args) {
  args.out[threadIdx.x] = static_cast<float>(blockIdx.x);  // both blocks
}

__global__ void warp_shuffle_is_no_barrier(const Args args) {
  const unsigned lane = threadIdx.x % 32;
  shared_floats()[threadIdx.x] = static_cast<float>(threadIdx.x);
  const float zero = __shfl_xor_sync(0xffffffffu, 0.0f, 1);  // orders no memory
  args.out[threadIdx.x] = shared_floats()[threadIdx.x - lane + (31 - lane)] + zero;
}

__global__ void global_overrun(const Args args) {
  args.out[threadIdx.x + 1] = 0.0f;  // thread 63
}

__global__ void shared_overrun(const Args args) {
  shared_floats()[threadIdx.x + 1] = 0.0f;  // thread 63
  args.out[threadIdx.x] = 0.0f;
}

__global__ void missing_wait(const Args args) {
  auto* from = reinterpret_cast<float*>(dynamic_shared());
  if (threadIdx.x < 16) {
    msct::copy_async_16(from + threadIdx.x * 4, args.out + threadIdx.x * 4, true);
  }
  __syncthreads();  // no copy_async_wait() before it
  const float value = from[threadIdx.x];
  msct::copy_async_wait();
  args.out[threadIdx.x] = value;
}

__global__ void never_waited(const Args args) {
  if (threadIdx.x == 0) msct::copy_async_16(dynamic_shared(), args.out, true);
}

__global__ void misaligned_copy(const Args args) {
  msct::copy_async_16(dynamic_shared(), args.out + 1, true);
  msct::copy_async_wait();
}

__global__ void divergent_barriers(const Args args) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();  // another one
  }
  args.out[threadIdx.x] = 0.0f;
}

__global__ void early_exit(const Args args) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  args.out[threadIdx.x] = 0.0f;
}

__global__ void divergent_warp(const Args args) {
  float x = 1.0f;
  if (threadIdx.x % 2 == 0) x = __shfl_xor_sync(0xffffffffu, x, 2);  // half of the lanes
  args.out[threadIdx.x] = x;
}

__global__ void uninitialised_shared(const Args args) {
  args.out[threadIdx.x] = shared_floats()[threadIdx.x];  // nobody wrote it
}

__global__ void bank_conflicts(const Args args) {
  for (unsigned i = threadIdx.x; i < 64 * 32; i += 64) shared_floats()[i] = 0.0f;
  __syncthreads();
  std::uint32_t fragment[4];
  msct::load_matrices(fragment, shared_floats() + threadIdx.x % 32 * 32);  // pitch 128 bytes
  args.out[threadIdx.x] = static_cast<float>(fragment[0]);
}

}  // namespace

const char* faulty(int which, float* out) {
  struct Case {
    void (*kernel)(Args);
    int blocks;
    std::size_t shared_bytes;
  };
  constexpr std::size_t floats = 64 * sizeof(float);
  const Case cases[] = {
      {mirror, 1, floats},
      {race, 1, floats},
      {race_on_reuse, 1, floats},
      {race_of_blocks, 2, floats},
      {warp_shuffle_is_no_barrier, 1, floats},
      {global_overrun, 1, floats},
      {shared_overrun, 1, floats},
      {missing_wait, 1, floats},
      {never_waited, 1, floats},
      {misaligned_copy, 1, floats},
      {divergent_barriers, 1, floats},
      {early_exit, 1, floats},
      {divergent_warp, 1, floats},
      {uninitialised_shared, 1, floats},
      {bank_conflicts, 1, 64 * 32 * sizeof(float)},
      {mirror, 1, 49 * 1024 + 200 * 1024},  // more shared memory than any device allows
  };
  const Case& chosen = cases[which];
  return launch(chosen.kernel, chosen.blocks, 64, chosen.shared_bytes, nullptr, Args{out});
}
