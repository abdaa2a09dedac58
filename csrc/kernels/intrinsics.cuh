// SPDX-License-Identifier: Apache-2.0
// What CUDA C++ has no portable spelling for: tensor cores, matrix loads, asynchronous copies and
// dynamic shared memory.  All inline assembly of the kernels is here; tests replace this header by
// one that emulates it.
//
// Source: PTX ISA, "Matrix multiply-accumulate operation using mma instruction" (m16n8k16),
// "ldmatrix", "cp.async", "ex2".  The tensor-core part needs sm_80; on older targets it compiles to
// a trap, and the launch code never takes that path there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace msct {

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ void* dynamic_shared() {
  extern __shared__ uint4 dynamic_shared_bytes[];
  return dynamic_shared_bytes;
}

// Starts a copy of 16 bytes from global to shared memory, both 16-byte aligned.  With `valid` false
// nothing is read and zeros are written.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const std::uint64_t from = __cvta_generic_to_global(global);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  __trap();
#endif
}

// Waits for all copies that this thread has started.  A barrier shows them to other threads.
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  __trap();
#endif
}

// Four 8x8 matrices of 16-bit values; lanes 8i .. 8i+7 give the addresses of the rows of matrix i,
// each 16 bytes, 16-byte aligned, in shared memory.  Lane l gets elements 2(l%4), 2(l%4)+1 of row
// l/4 of matrix i in fragment[i].
__device__ __forceinline__ void load_matrices(std::uint32_t (&fragment)[4], const void* row) {
#if __CUDA_ARCH__ >= 800
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(from)
               : "memory");
#else
  __trap();
#endif
}

// The same, each matrix transposed: elements of rows 2(l%4), 2(l%4)+1 in column l/4.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&fragment)[4],
                                                         const void* row) {
#if __CUDA_ARCH__ >= 800
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(from)
               : "memory");
#else
  __trap();
#endif
}

// 2 to the x, to about 2^-22; results below the smallest normal number are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// sum [16, 8] += a [16, 16] * b [16, 8], sums in float32.  With g = lane / 4, t = lane % 4:
//   a: (g, 2t) (g, 2t+1) | (g+8, 2t) .. | (g, 2t+8) .. | (g+8, 2t+8) ..    one register each
//   b: (2t, g) (2t+1, g) | (2t+8, g) (2t+9, g)
//   sum: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
// `Element` only says which 16-bit type the registers of a and b hold.
template <typename Element>
__device__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<__half>(float (&sum)[4], const std::uint32_t (&a)[4],
                                                     std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&sum)[4],
                                                            const std::uint32_t (&a)[4],
                                                            std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

}  // namespace msct
