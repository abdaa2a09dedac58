// SPDX-License-Identifier: Apache-2.0
// The three element types of the kernels, to and from float32, and the launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/device.h"

namespace msct {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Element>
__device__ __forceinline__ Element from_float(float x) {
  if constexpr (std::is_same_v<Element, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Two values of a 16-bit type in one register, `low` in the low half.
template <typename Element>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  static_assert(sizeof(Element) == 2, "two 16-bit values make a register");
  if constexpr (std::is_same_v<Element, __half>) {
    const __half2_raw pair = __floats2half2_rn(low, high);
    return static_cast<std::uint32_t>(pair.y) << 16 | pair.x;
  } else {
    const __nv_bfloat162_raw pair = __floats2bfloat162_rn(low, high);
    return static_cast<std::uint32_t>(pair.y) << 16 | pair.x;
  }
}

constexpr int kWarp = 32;
constexpr std::size_t kSharedWithoutAsking = 48 * 1024;  // bytes a block gets on any device

// Launches without waiting.  nullptr, or the CUDA runtime's own (static) text.
template <typename Args>
const char* launch(void (*kernel)(Args), std::int64_t blocks, int threads,
                   std::size_t shared_bytes, cudaStream_t stream, const Args& args) {
  cudaError_t status = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {  // no stream work: allowed during capture
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
  }
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    status = cudaLaunchKernelEx(&config, kernel, args);
  }
  if (status == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());  // reported here, so not left for the next caller to find
  return cudaGetErrorString(status);
}

}  // namespace msct
