// SPDX-License-Identifier: Apache-2.0
// msct::DifferentialCrossAttention(Q_self, Q_cross, K, V [B, h, T, D], lam [h]; scale)
//   -> [B, h, T, D]
#include "kernels/differential_cross_attention.h"

#include "plugins/plugin_common.h"

namespace msct::plugin {
namespace {

using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

enum : std::int32_t { kQSelf, kQCross, kKey, kValue, kLam };

constexpr Input kInputs[] = {
    {"Q_self", 4, "[B, h, T, D]"}, {"Q_cross", 4, "[B, h, T, D]"}, {"K", 4, "[B, h, T, D]"},
    {"V", 4, "[B, h, T, D]"},      {"lam", 1, "[h]", true},
};

class DifferentialCrossAttention final : public Plugin {
 public:
  static constexpr char kName[] = "DifferentialCrossAttention";

  static const PluginFieldCollection& declared_fields() {
    static const PluginField fields[] = {{"scale", nullptr, PluginFieldType::kFLOAT32, 1}};
    static const PluginFieldCollection collection{1, fields};
    return collection;
  }

  explicit DifferentialCrossAttention(const Fields& fields)
      : DifferentialCrossAttention(fields.number("scale")) {
    refuse_values(differential_cross_attention_unsupported(
        params(ScalarType::kFloat32, {4, {1, 1, 1, 8}})));
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    nvinfer1::IPluginV3* copy = nullptr;
    guarded(kName, [&] { copy = new DifferentialCrossAttention(scale_); });
    return copy;
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

  std::int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                       const void* const* inputs, void* const* outputs, void*,
                       cudaStream_t stream) noexcept override {
    return guarded(kName, [&] {
      check(input_descs);
      auto p = params(scalar_type(input_descs[kQSelf].type), input_descs[kQSelf].dims);
      p.q_self = inputs[kQSelf];
      p.q_cross = inputs[kQCross];
      p.key = inputs[kKey];
      p.value = inputs[kValue];
      p.lam = static_cast<const float*>(inputs[kLam]);
      p.out = outputs[0];
      refuse_shape(input_descs[kQSelf].dims, differential_cross_attention_cuda(p, stream));
    });
  }

 private:
  explicit DifferentialCrossAttention(float scale)
      : Plugin(kName, kInputs, "scale=" + real(scale)), scale_(scale) {}

  void check_shapes(const PluginTensorDesc* inputs) const override {
    const Dims& dims = inputs[kQSelf].dims;
    for (const std::int32_t i : {kQCross, kKey, kValue}) expect_shape(inputs, i, dims, "Q_self");
    expect_shape(inputs, kLam, {1, {dims.d[1]}}, "Q_self");
    const ScalarType type = scalar_type(inputs[kQSelf].type);
    refuse_shape(dims, differential_cross_attention_unsupported(params(type, dims)));
  }

  // Of dense tensors [B, h, T, D]; the pointers are left null.
  DifferentialCrossAttentionCudaParams params(ScalarType type, const Dims& dims) const {
    DifferentialCrossAttentionCudaParams p{};
    p.type = type;
    p.batch = dims.d[0];
    p.heads = dims.d[1];
    p.tokens = dims.d[2];
    p.dim = dims.d[3];
    const Strides dense = dense_strides(p.heads, p.tokens, p.dim);
    p.q_self_strides = dense;
    p.q_cross_strides = dense;
    p.key_strides = dense;
    p.value_strides = dense;
    p.out_strides = dense;
    p.scale = static_cast<double>(scale_);
    return p;
  }

  const float scale_;
  const PluginField serialized_field_{"scale", &scale_, PluginFieldType::kFLOAT32, 1};
  const PluginFieldCollection serialized_{1, &serialized_field_};
};

}  // namespace

nvinfer1::IPluginCreatorInterface& differential_cross_attention_creator() {
  static Creator<DifferentialCrossAttention> creator;
  return creator;
}

}  // namespace msct::plugin
