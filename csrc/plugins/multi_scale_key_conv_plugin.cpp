// SPDX-License-Identifier: Apache-2.0
// msct::MultiScaleKeyConv(K [B, h, T, D], W0..W3 [h/4, h/4, k, k], b0..b3 [h/4];
//                         kernel_sizes, prefix_tokens)
//   -> [B, h, T, D]
#include "kernels/multi_scale_key_conv.h"

#include <algorithm>

#include "plugins/plugin_common.h"

namespace msct::plugin {
namespace {

using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr std::int32_t kKey = 0;
constexpr std::int32_t kFirstWeight = 1;
constexpr std::int32_t kFirstBias = kFirstWeight + kKeyConvGroups;

constexpr Input kInputs[] = {
    {"K", 4, "[B, h, T, D]"},        {"W0", 4, "[h/4, h/4, k, k]"}, {"W1", 4, "[h/4, h/4, k, k]"},
    {"W2", 4, "[h/4, h/4, k, k]"},   {"W3", 4, "[h/4, h/4, k, k]"}, {"b0", 1, "[h/4]"},
    {"b1", 1, "[h/4]"},              {"b2", 1, "[h/4]"},            {"b3", 1, "[h/4]"},
};

class MultiScaleKeyConv final : public Plugin {
 public:
  static constexpr char kName[] = "MultiScaleKeyConv";
  using Sizes = std::array<std::int32_t, kKeyConvGroups>;

  static const PluginFieldCollection& declared_fields() {
    static const PluginField fields[] = {
        {"kernel_sizes", nullptr, PluginFieldType::kINT32, kKeyConvGroups},
        {"prefix_tokens", nullptr, PluginFieldType::kINT32, 1},
    };
    static const PluginFieldCollection collection{2, fields};
    return collection;
  }

  explicit MultiScaleKeyConv(const Fields& fields)
      : MultiScaleKeyConv(fields.four_integers("kernel_sizes"), fields.integer("prefix_tokens")) {
    const std::int64_t tokens = std::max(1, prefix_tokens_);  // the fewest that hold the prefix
    refuse_values(multi_scale_key_conv_unsupported(
        params(ScalarType::kFloat32, {4, {1, kKeyConvGroups, tokens, 8}})));
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    nvinfer1::IPluginV3* copy = nullptr;
    guarded(kName, [&] { copy = new MultiScaleKeyConv(kernel_sizes_, prefix_tokens_); });
    return copy;
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

  std::int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                       const void* const* inputs, void* const* outputs, void*,
                       cudaStream_t stream) noexcept override {
    return guarded(kName, [&] {
      check(input_descs);
      auto p = params(scalar_type(input_descs[kKey].type), input_descs[kKey].dims);
      p.key = inputs[kKey];
      for (std::int32_t g = 0; g < kKeyConvGroups; ++g) {
        p.weight[g] = inputs[kFirstWeight + g];
        p.bias[g] = inputs[kFirstBias + g];
      }
      p.out = outputs[0];
      refuse_shape(input_descs[kKey].dims, multi_scale_key_conv_cuda(p, stream));
    });
  }

 private:
  MultiScaleKeyConv(const Sizes& kernel_sizes, std::int32_t prefix_tokens)
      : Plugin(kName, kInputs, summary(kernel_sizes, prefix_tokens)),
        kernel_sizes_(kernel_sizes),
        prefix_tokens_(prefix_tokens) {}

  static std::string summary(const Sizes& sizes, std::int32_t prefix_tokens) {
    const Dims all{kKeyConvGroups, {sizes[0], sizes[1], sizes[2], sizes[3]}};
    return "kernel_sizes=" + text(all) + " prefix_tokens=" + text(prefix_tokens);
  }

  void check_shapes(const PluginTensorDesc* inputs) const override {
    const Dims& dims = inputs[kKey].dims;
    const ScalarType type = scalar_type(inputs[kKey].type);
    refuse_shape(dims, multi_scale_key_conv_unsupported(params(type, dims)));
    const std::int64_t group = dims.d[1] / kKeyConvGroups;  // the heads divide by it
    for (std::int32_t g = 0; g < kKeyConvGroups; ++g) {
      const std::int64_t size = kernel_sizes_[static_cast<std::size_t>(g)];
      expect_shape(inputs, kFirstWeight + g, {4, {group, group, size, size}},
                   "K and kernel_sizes");
      expect_shape(inputs, kFirstBias + g, {1, {group}}, "K");
    }
  }

  // Of dense tensors [B, h, T, D]; the pointers are left null.
  MultiScaleKeyConvCudaParams params(ScalarType type, const Dims& dims) const {
    MultiScaleKeyConvCudaParams p{};
    p.type = type;
    p.batch = dims.d[0];
    p.heads = dims.d[1];
    p.tokens = dims.d[2];
    p.dim = dims.d[3];
    for (std::int32_t g = 0; g < kKeyConvGroups; ++g) {
      p.kernel_size[g] = kernel_sizes_[static_cast<std::size_t>(g)];
    }
    p.prefix_tokens = prefix_tokens_;
    p.key_strides = dense_strides(p.heads, p.tokens, p.dim);
    p.out_strides = p.key_strides;
    return p;
  }

  const Sizes kernel_sizes_;
  const std::int32_t prefix_tokens_;
  const PluginField serialized_fields_[2] = {
      {"kernel_sizes", kernel_sizes_.data(), PluginFieldType::kINT32, kKeyConvGroups},
      {"prefix_tokens", &prefix_tokens_, PluginFieldType::kINT32, 1},
  };
  const PluginFieldCollection serialized_{2, serialized_fields_};
};

}  // namespace

nvinfer1::IPluginCreatorInterface& multi_scale_key_conv_creator() {
  static Creator<MultiScaleKeyConv> creator;
  return creator;
}

}  // namespace msct::plugin
