// SPDX-License-Identifier: Apache-2.0
// Stands in for csrc/kernels/intrinsics.cuh: the same functions on the SIMT machine, with the
// fragment layouts of the PTX ISA.  Memory is read and written here, in instrumented code and by
// the lane that gave the address, so that sanitizers see who touched what.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace msct {

struct alignas(16) Bytes16 {
  std::uint64_t low, high;
};

inline void* dynamic_shared() { return simt::shared_memory(); }

inline void require_16_aligned(const void* address, const char* what, simt::Site site) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) simt::fail(what, site);
}

inline void require_shared(const void* address, simt::Site site) {
  const auto* at = static_cast<const unsigned char*>(address);
  const unsigned char* first = simt::shared_memory();
  if (at < first || at + 16 > first + simt::shared_bytes()) {
    simt::fail("an address is not in the block's shared memory", site);
  }
}

// The destination holds NaN from here to the matching wait.
inline void copy_async_16(void* shared, const void* global, bool valid,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const simt::Site site{file, line};
  require_16_aligned(shared, "an asynchronous copy to an address not aligned to 16 bytes", site);
  require_16_aligned(global, "an asynchronous copy from an address not aligned to 16 bytes", site);
  require_shared(shared, site);
  *static_cast<Bytes16*>(shared) = {~0ull, ~0ull};
  simt::remember_copy({shared, valid ? global : nullptr});
  simt::count_copy();
}

inline void copy_async_wait() {
  simt::Copy copy{};
  while (simt::take_copy(copy)) {
    Bytes16 bytes{0, 0};
    if (copy.from != nullptr) bytes = *static_cast<const Bytes16*>(copy.from);
    *static_cast<Bytes16*>(copy.to) = bytes;
  }
}

// All 32 rows of a matrix load, as the lanes handed them in.
inline const unsigned char* matrix_rows(const char* what, const void* row, simt::Site site) {
  require_16_aligned(row, "a matrix row not aligned to 16 bytes", site);
  require_shared(row, site);
  struct {
    Bytes16 bytes;
    std::uint64_t address;
  } mine{*static_cast<const Bytes16*>(row), reinterpret_cast<std::uintptr_t>(row)};
  const unsigned char* all = simt::exchange(what, &mine, sizeof mine, site);
  if (threadIdx.x % simt::kWarp == 0) {
    bool conflict = false;
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;  // groups of four banks, 16 bytes
      for (unsigned r = 0; r < 8; ++r) {
        std::uint64_t address;
        std::memcpy(&address, all + (matrix * 8 + r) * simt::kSlot + sizeof(Bytes16),
                    sizeof address);
        banks |= 1u << (address / 16 % 8);
      }
      conflict |= banks != 0xff;
    }
    simt::count_matrix_load(conflict);
  }
  return all;
}

inline std::uint16_t matrix_element(const unsigned char* all, unsigned matrix, unsigned row,
                                    unsigned column) {
  std::uint16_t value;
  std::memcpy(&value, all + (matrix * 8 + row) * simt::kSlot + column * 2, sizeof value);
  return value;
}

inline void load_matrices(std::uint32_t (&fragment)[4], const void* row,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const unsigned char* all = matrix_rows("a matrix load", row, {file, line});
  const unsigned lane = threadIdx.x % simt::kWarp;
  for (unsigned m = 0; m < 4; ++m) {
    fragment[m] = matrix_element(all, m, lane / 4, lane % 4 * 2) |
                  static_cast<std::uint32_t>(matrix_element(all, m, lane / 4, lane % 4 * 2 + 1))
                      << 16;
  }
}

inline void load_matrices_transposed(std::uint32_t (&fragment)[4], const void* row,
                                     const char* file = __builtin_FILE(),
                                     int line = __builtin_LINE()) {
  const unsigned char* all = matrix_rows("a transposed matrix load", row, {file, line});
  const unsigned lane = threadIdx.x % simt::kWarp;
  for (unsigned m = 0; m < 4; ++m) {
    fragment[m] = matrix_element(all, m, lane % 4 * 2, lane / 4) |
                  static_cast<std::uint32_t>(matrix_element(all, m, lane % 4 * 2 + 1, lane / 4))
                      << 16;
  }
}

inline float exp2_approximate(float x) {
  const float power = std::exp2(x);
  return power < 1.17549435e-38f ? 0.0f : power;  // NaN passes
}

template <typename Element>
float element_value(std::uint32_t bits) {
  const auto narrow = static_cast<std::uint16_t>(bits);
  if constexpr (std::is_same_v<Element, __half>) {
    return __half2float(__half(__half_raw{narrow}));
  } else {
    return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{narrow}));
  }
}

// a[i], i = 0 .. 7: row g for i in {0, 1, 4, 5}, else g + 8; column 2t + i % 2, plus 8 for i >= 4.
// b[i], i = 0 .. 3: row 2t + i % 2, plus 8 for i >= 2; column g.
template <typename Element>
void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  float mine[12];
  for (int i = 0; i < 8; ++i) mine[i] = element_value<Element>(a[i / 2] >> (i % 2 * 16));
  mine[8] = element_value<Element>(b0);
  mine[9] = element_value<Element>(b0 >> 16);
  mine[10] = element_value<Element>(b1);
  mine[11] = element_value<Element>(b1 >> 16);
  const unsigned char* all = simt::exchange("a multiply-add", mine, sizeof mine, {file, line});
  const unsigned lane = threadIdx.x % simt::kWarp;
  if (lane == 0) simt::count_multiply_add();
  const auto handed_in = [all](unsigned from, unsigned i) {
    return reinterpret_cast<const float*>(all + from * simt::kSlot)[i];
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8;
    const unsigned column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned t = k % 8 / 2;
      const float x = handed_in(row % 8 * 4 + t, k / 8 * 4 + row / 8 * 2 + k % 2);
      const float y = handed_in(column * 4 + t, 8 + k / 8 * 2 + k % 2);
      sum[i] += x * y;
    }
  }
}

}  // namespace msct
