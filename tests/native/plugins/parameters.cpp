// SPDX-License-Identifier: Apache-2.0
// What enqueue hands to the kernels: compiled with the plugins' sources and, in place of the CUDA
// kernels, with the recorders below.  Prints "PASS name" or "FAIL name: why" a line; exits with 1
// if anything failed.
#include "calls.h"
#include "kernels/differential_cross_attention.h"
#include "kernels/multi_scale_key_conv.h"

extern "C" IPluginCreatorInterface* const* getCreators(std::int32_t& count);

namespace {

msct::DifferentialCrossAttentionCudaParams attended;
msct::MultiScaleKeyConvCudaParams convolved;
CUstream_st* stream_given;
int launches = 0;

}  // namespace

namespace msct {

const char* differential_cross_attention_unsupported(const DifferentialCrossAttentionCudaParams&) {
  return nullptr;
}
const char* differential_cross_attention_cuda(const DifferentialCrossAttentionCudaParams& p,
                                              CUstream_st* stream) {
  attended = p;
  stream_given = stream;
  ++launches;
  return nullptr;
}
const char* multi_scale_key_conv_unsupported(const MultiScaleKeyConvCudaParams&) { return nullptr; }
const char* multi_scale_key_conv_cuda(const MultiScaleKeyConvCudaParams& p, CUstream_st* stream) {
  convolved = p;
  stream_given = stream;
  ++launches;
  return nullptr;
}

}  // namespace msct

namespace {

constexpr std::int64_t kB = 3, kH = 8, kT = 51, kD = 40;  // no two alike, none a product of others

bool dense(const msct::Strides& strides) {
  return strides.batch == kH * kT * kD && strides.head == kT * kD && strides.token == kD;
}

// Addresses that are never read, one an input, one the output, one the stream.
struct Call {
  char memory[16];
  std::vector<const void*> inputs;
  void* output = memory + 14;
  cudaStream_t stream = reinterpret_cast<cudaStream_t>(memory + 15);

  bool enqueue(const Plugin& plugin, const Descs& descs) {
    inputs.clear();
    for (std::size_t i = 0; i < descs.size(); ++i) inputs.push_back(memory + i);
    const int before = launches;
    const PluginTensorDesc out = descs[0];
    return runtime_of(plugin)->enqueue(descs.data(), &out, inputs.data(), &output, nullptr,
                                       stream) == 0 &&
           launches == before + 1 && stream_given == stream;
  }
};

msct::ScalarType scalar(DataType type) {
  return type == DataType::kFLOAT  ? msct::ScalarType::kFloat32
         : type == DataType::kHALF ? msct::ScalarType::kFloat16
                                   : msct::ScalarType::kBFloat16;
}

void attention(IPluginCreatorV3One& creator, DataType type) {
  const std::string name = "attention type " + std::to_string(static_cast<int>(type)) + " ";
  const float scale = 0.15811388F;
  const Plugin plugin = create(creator, {{"scale", &scale, PluginFieldType::kFLOAT32, 1}});
  Call call;
  const bool launched = call.enqueue(plugin, attention_inputs(kB, kH, kT, kD, type));
  check(name + "launches once, on the stream", launched);
  const auto& p = attended;
  const auto& in = call.inputs;
  check(name + "Q_self, Q_cross, K, V, lam",
        p.q_self == in[0] && p.q_cross == in[1] && p.key == in[2] && p.value == in[3] &&
            static_cast<const void*>(p.lam) == in[4] && p.out == call.output);
  check(name + "type", p.type == scalar(type));
  check(name + "B, h, T, D", p.batch == kB && p.heads == kH && p.tokens == kT && p.dim == kD);
  check(name + "dense", dense(p.q_self_strides) && dense(p.q_cross_strides) &&
                            dense(p.key_strides) && dense(p.value_strides) &&
                            dense(p.out_strides));
  check(name + "scale", p.scale == static_cast<double>(scale));
}

void convolution(IPluginCreatorV3One& creator, DataType type) {
  const std::string name = "convolution type " + std::to_string(static_cast<int>(type)) + " ";
  const std::int32_t sizes[] = {1, 3, 5, 7};
  const std::int32_t prefix = 2;
  const Plugin plugin = create(creator, {{"kernel_sizes", sizes, PluginFieldType::kINT32, 4},
                                         {"prefix_tokens", &prefix, PluginFieldType::kINT32, 1}});
  Call call;
  const bool launched = call.enqueue(plugin, conv_inputs(kB, kH, kT, kD, type));
  check(name + "launches once, on the stream", launched);
  const auto& p = convolved;
  const auto& in = call.inputs;
  bool same = p.key == in[0] && p.out == call.output;
  for (std::size_t g = 0; g < 4; ++g) {
    same = same && p.weight[g] == in[1 + g] && p.bias[g] == in[5 + g];
    same = same && p.kernel_size[g] == sizes[g];
  }
  check(name + "K, W0..W3, b0..b3, kernel sizes", same);
  check(name + "type", p.type == scalar(type));
  check(name + "B, h, T, D", p.batch == kB && p.heads == kH && p.tokens == kT && p.dim == kD);
  check(name + "dense", dense(p.key_strides) && dense(p.out_strides));
  check(name + "prefix", p.prefix_tokens == prefix);
}

}  // namespace

int main() {
  std::int32_t count = 0;
  IPluginCreatorInterface* const* creators = getCreators(count);
  check("two creators", count == 2);
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    convolution(*static_cast<IPluginCreatorV3One*>(creators[0]), type);
    attention(*static_cast<IPluginCreatorV3One*>(creators[1]), type);
  }
  return failures == 0 ? 0 : 1;
}
