// SPDX-License-Identifier: Apache-2.0
// A small SIMT machine for one block at a time: the kernels' own sources, compiled by a C++
// compiler, run on it without a GPU.
//
// A GPU thread is a fiber; all fibers of a block run on one operating-system thread and give way
// only where they wait: at a block barrier, a warp barrier or a warp-wide instruction.  The order
// in which they go on is forward, reverse or random.  A block that cannot go on, or whose threads
// wait at different places, ends the program with a message.  Built with ThreadSanitizer, every
// fiber is a thread of its own to it and only barriers order them, so it finds races in shared
// memory; built with AddressSanitizer, shared memory is a heap block of just the size asked for.
//
// What it is not: a timing model, a model of the memory hierarchy, or a check of PTX itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

constexpr int kWarp = 32;

enum class Order { kForward, kReverse, kRandom };

struct Machine {
  int capability = 80;  // 80 for 8.0
  int processors = 16;
  Order order = Order::kForward;
  std::uint64_t seed = 0;
};

struct Counts {
  std::int64_t blocks = 0;
  std::int64_t threads_per_block = 0;  // of the last launch
  std::int64_t shared_bytes = 0;       // of the last launch
  std::int64_t barriers = 0;           // arrivals of a whole block
  std::int64_t multiply_adds = 0;      // of a warp
  std::int64_t matrix_loads = 0;       // of a warp
  std::int64_t bank_conflicts = 0;     // matrix loads in which two rows share banks
  std::int64_t async_copies = 0;       // of a thread
};

Machine& machine();
const Counts& counts();
void count_copy();
void count_matrix_load(bool bank_conflict);
void count_multiply_add();

struct Index {
  unsigned x = 0, y = 1, z = 1;
};

struct Site {
  const char* file;
  int line;
};

[[noreturn]] void fail(const char* what, Site site = {"", 0});

// Runs `body` as every thread of every block.
void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes,
            const std::function<void()>& body);

// For the running thread:
unsigned char* shared_memory();
std::size_t shared_bytes();
void wait_for_block(Site site);
void wait_for_warp(Site site);

// Every lane of the warp hands in up to 64 bytes and gets all 32 of them, 64 bytes apart.  `what`
// names the instruction; lanes that meet in different ones have diverged.
constexpr std::size_t kSlot = 64;
const unsigned char* exchange(const char* what, const void* mine, std::size_t bytes, Site site);

// Copies under way, of the running thread.
struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
};
void remember_copy(const Copy& copy);
bool take_copy(Copy& copy);  // the oldest, false if there is none

}  // namespace simt

// Of the running thread, under the names that CUDA gives them.
extern simt::Index threadIdx, blockIdx, blockDim, gridDim;
