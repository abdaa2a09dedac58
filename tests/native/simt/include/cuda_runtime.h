// SPDX-License-Identifier: Apache-2.0
// Stands in for the CUDA runtime's C++ header when kernels are compiled for the SIMT machine.  The
// declarations of its C functions are the toolkit's own; runner.cpp defines those that are used.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#include "simt.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __forceinline__
#define __forceinline__ inline

inline int min(int a, int b) { return a < b ? a : b; }

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::wait_for_block({file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  if (mask != 0xffffffffu) simt::fail("only whole warps are emulated", {file, line});
  simt::wait_for_warp({file, line});
}

inline float __shfl_xor_sync(unsigned mask, float value, int lane_mask,
                             const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (mask != 0xffffffffu) simt::fail("only whole warps are emulated", {file, line});
  const unsigned char* all = simt::exchange("a shuffle", &value, sizeof value, {file, line});
  const unsigned lane = threadIdx.x % simt::kWarp ^ static_cast<unsigned>(lane_mask);
  float result;
  std::memcpy(&result, all + lane * simt::kSlot, sizeof result);
  return result;
}

namespace simt {
cudaError_t check_launch(const void* kernel, const cudaLaunchConfig_t& config);
}  // namespace simt

template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute which, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), which, value);
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  const cudaError_t status = simt::check_launch(reinterpret_cast<const void*>(kernel), *config);
  if (status != cudaSuccess) return status;
  simt::launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes,
               [&] { kernel(args...); });
  return cudaSuccess;
}
