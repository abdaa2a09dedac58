// SPDX-License-Identifier: Apache-2.0
// Runs one kernel launch on the SIMT machine: a request on standard input, counts and the output
// tensor's storage on standard output.  machine.py writes the request.  Exit status: 0; 3 the
// machine found a fault; 4 the kernel refused; 2 a bad request; or a sanitizer's own.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "cuda_runtime.h"
#include "faulty.h"
#include "kernels/differential_cross_attention.h"
#include "kernels/multi_scale_key_conv.h"

namespace simt {
namespace {

std::map<const void*, int> allowed_shared;

// Bytes of shared memory that a block can be allowed, as the CUDA programming guide has them.
int most_shared(int capability) {
  switch (capability) {
    case 75: return 64 * 1024;
    case 86: case 89: case 120: return 99 * 1024;
    case 80: case 87: return 163 * 1024;
    default: return 227 * 1024;
  }
}

}  // namespace

cudaError_t check_launch(const void* kernel, const cudaLaunchConfig_t& config) {
  const auto found = allowed_shared.find(kernel);
  const std::size_t allowed =
      found == allowed_shared.end() ? 48 * 1024 : static_cast<std::size_t>(found->second);
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  if (config.dynamicSmemBytes > allowed || block.x < 1 || block.x > 1024 || grid.x < 1 ||
      grid.x > 0x7fffffffu || grid.y * grid.z != 1 || block.y * block.z != 1) {
    return cudaErrorInvalidConfiguration;
  }
  return cudaSuccess;
}

}  // namespace simt

// What the launch code of the kernels asks of the runtime.

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = simt::machine().capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = simt::machine().capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = simt::machine().processors; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize ||
      value > simt::most_shared(simt::machine().capability)) {
    return cudaErrorInvalidValue;
  }
  simt::allowed_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return "the SIMT machine refused the launch"; }

namespace {

[[noreturn]] void bad_request(const char* what) {
  std::fprintf(stderr, "runner: %s\n", what);
  std::_Exit(2);
}

void read_bytes(void* to, std::size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) bad_request("the request ends early");
}

template <typename T>
T read_value() {
  T value;
  read_bytes(&value, sizeof value);
  return value;
}

// A heap block of just the tensor's size, so that a sanitizer sees one byte beyond it.
struct Tensor {
  unsigned char* bytes = nullptr;
  std::size_t size = 0;
};

Tensor read_tensor() {
  Tensor tensor;
  tensor.size = static_cast<std::size_t>(read_value<std::int64_t>());
  tensor.bytes = static_cast<unsigned char*>(std::malloc(tensor.size));
  read_bytes(tensor.bytes, tensor.size);
  return tensor;
}

msct::Strides read_strides() {
  msct::Strides strides{};
  strides.batch = read_value<std::int64_t>();
  strides.head = read_value<std::int64_t>();
  strides.token = read_value<std::int64_t>();
  return strides;
}

// The tensor's first element is `offset` elements into its storage.
void* at(const Tensor& tensor, std::int64_t offset, msct::ScalarType type) {
  return tensor.bytes + offset * (type == msct::ScalarType::kFloat32 ? 4 : 2);
}

Tensor run_attention(const char*& refused) {
  msct::DifferentialCrossAttentionCudaParams p{};
  p.type = static_cast<msct::ScalarType>(read_value<std::int64_t>());
  p.batch = read_value<std::int64_t>();
  p.heads = read_value<std::int64_t>();
  p.tokens = read_value<std::int64_t>();
  p.dim = read_value<std::int64_t>();
  p.scale = read_value<double>();
  msct::Strides* strides[] = {&p.q_self_strides, &p.q_cross_strides, &p.key_strides,
                              &p.value_strides, &p.out_strides};
  Tensor tensors[5];
  void* first[5];
  for (int i = 0; i < 5; ++i) {
    const auto offset = read_value<std::int64_t>();
    *strides[i] = read_strides();
    tensors[i] = read_tensor();
    first[i] = at(tensors[i], offset, p.type);
  }
  const Tensor lam = read_tensor();
  p.q_self = first[0];
  p.q_cross = first[1];
  p.key = first[2];
  p.value = first[3];
  p.out = first[4];
  p.lam = reinterpret_cast<const float*>(lam.bytes);
  refused = msct::differential_cross_attention_cuda(p, nullptr);
  return tensors[4];
}

Tensor run_key_conv(const char*& refused) {
  msct::MultiScaleKeyConvCudaParams p{};
  p.type = static_cast<msct::ScalarType>(read_value<std::int64_t>());
  p.batch = read_value<std::int64_t>();
  p.heads = read_value<std::int64_t>();
  p.tokens = read_value<std::int64_t>();
  p.dim = read_value<std::int64_t>();
  p.prefix_tokens = read_value<std::int64_t>();
  for (std::int64_t& size : p.kernel_size) size = read_value<std::int64_t>();
  const auto key_offset = read_value<std::int64_t>();
  p.key_strides = read_strides();
  const Tensor key = read_tensor();
  const auto out_offset = read_value<std::int64_t>();
  p.out_strides = read_strides();
  const Tensor out = read_tensor();
  for (const void*& weight : p.weight) weight = read_tensor().bytes;
  for (const void*& bias : p.bias) bias = read_tensor().bytes;
  p.key = at(key, key_offset, p.type);
  p.out = at(out, out_offset, p.type);
  refused = msct::multi_scale_key_conv_cuda(p, nullptr);
  return out;
}

}  // namespace

int main() {
  const auto op = read_value<std::int64_t>();
  simt::machine().order = static_cast<simt::Order>(read_value<std::int64_t>());
  simt::machine().seed = read_value<std::uint64_t>();
  simt::machine().capability = static_cast<int>(read_value<std::int64_t>());
  simt::machine().processors = static_cast<int>(read_value<std::int64_t>());
  const char* refused = nullptr;
  Tensor out;
  switch (op) {
    case 0: out = run_attention(refused); break;
    case 1: out = run_key_conv(refused); break;
    case 2: {
      const auto which = read_value<std::int64_t>();
      out = read_tensor();
      refused = faulty(static_cast<int>(which), reinterpret_cast<float*>(out.bytes));
      break;
    }
    default: bad_request("no such kernel");
  }
  if (refused != nullptr) {
    std::fprintf(stderr, "%s\n", refused);
    return 4;
  }
  const simt::Counts& n = simt::counts();
  const std::int64_t counts[] = {n.blocks,        n.threads_per_block, n.shared_bytes,
                                 n.barriers,      n.multiply_adds,     n.matrix_loads,
                                 n.bank_conflicts, n.async_copies};
  std::fwrite(counts, sizeof counts, 1, stdout);
  std::fwrite(out.bytes, 1, out.size, stdout);
  return 0;
}
