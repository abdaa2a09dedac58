// SPDX-License-Identifier: Apache-2.0
// What the programs here share: results by name, plugins, descriptions of their inputs.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

inline int failures = 0;

inline void report(const std::string& name, const std::string& why) {
  if (why.empty()) {
    std::printf("PASS %s\n", name.c_str());
  } else {
    std::printf("FAIL %s: %s\n", name.c_str(), why.c_str());
    ++failures;
  }
}

inline void check(const std::string& name, bool good) {
  report(name, good ? "" : "it does not hold");
}

using Plugin = std::unique_ptr<IPluginV3>;

inline IPluginV3OneBuild* build_of(const Plugin& plugin) {
  return static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

inline IPluginV3OneRuntime* runtime_of(const Plugin& plugin) {
  return static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

inline Plugin create(IPluginCreatorV3One& creator, const std::vector<PluginField>& fields,
                     TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginFieldCollection all{static_cast<std::int32_t>(fields.size()), fields.data()};
  return Plugin(creator.createPlugin("a layer", &all, phase));
}

inline std::vector<PluginField> fields_of(const Plugin& plugin) {
  const PluginFieldCollection* all = runtime_of(plugin)->getFieldsToSerialize();
  return {all->fields, all->fields + all->nbFields};
}

inline Dims dims(std::initializer_list<std::int64_t> extents) {
  Dims out{};
  for (const std::int64_t extent : extents) out.d[out.nbDims++] = extent;
  return out;
}

inline PluginTensorDesc desc(const Dims& shape, DataType type = DataType::kHALF) {
  PluginTensorDesc out{};
  out.dims = shape;
  out.type = type;
  out.format = TensorFormat::kLINEAR;
  out.scale = 1.0F;
  return out;
}

using Descs = std::vector<PluginTensorDesc>;

// Inputs that are right for each operator, to be spoilt.
inline Descs attention_inputs(std::int64_t b = 2, std::int64_t h = 4, std::int64_t t = 51,
                              std::int64_t d = 32, DataType type = DataType::kHALF) {
  Descs out(4, desc(dims({b, h, t, d}), type));
  out.push_back(desc(dims({h}), DataType::kFLOAT));
  return out;
}

inline Descs conv_inputs(std::int64_t b = 2, std::int64_t h = 8, std::int64_t t = 51,
                         std::int64_t d = 64, DataType type = DataType::kHALF) {
  Descs out{desc(dims({b, h, t, d}), type)};
  for (const std::int64_t k : {1, 3, 5, 7}) out.push_back(desc(dims({h / 4, h / 4, k, k}), type));
  for (int g = 0; g < 4; ++g) out.push_back(desc(dims({h / 4}), type));
  return out;
}
