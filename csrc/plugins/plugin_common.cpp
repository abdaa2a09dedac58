// SPDX-License-Identifier: Apache-2.0
#include "plugins/plugin_common.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>

namespace msct::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

// PluginFieldType::kINT64, by number: parsers and Python send it, not every 10.x header names it.
constexpr auto kInt64Field = static_cast<PluginFieldType>(10);

const char* name_of(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT16: return "float16";
    case PluginFieldType::kFLOAT32: return "float32";
    case PluginFieldType::kFLOAT64: return "float64";
    case PluginFieldType::kINT8: return "int8";
    case PluginFieldType::kINT16: return "int16";
    case PluginFieldType::kINT32: return "int32";
    case PluginFieldType::kCHAR: return "char";
    case PluginFieldType::kDIMS: return "dims";
    default: return type == kInt64Field ? "int64" : "of another type";
  }
}

bool has_unknown(const Dims& dims) {
  return std::any_of(dims.d, dims.d + dims.nbDims, [](std::int64_t extent) { return extent < 0; });
}

// A kernel's text begins with its operator's name; so does a line of the log.
std::string without_name(const char* reason, const char* name) {
  const std::string start = std::string(name) + ": ";
  return std::strncmp(reason, start.c_str(), start.size()) == 0 ? reason + start.size() : reason;
}

const PluginField* find(const PluginFieldCollection& fields, const char* name) {
  const auto* last = fields.fields + fields.nbFields;
  const auto* at = std::find_if(fields.fields, last, [name](const PluginField& field) {
    return std::strcmp(field.name, name) == 0;
  });
  return at == last ? nullptr : at;
}

}  // namespace

const char* name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "float32";
    case DataType::kHALF: return "float16";
    case DataType::kBF16: return "bfloat16";
    case DataType::kINT8: return "int8";
    case DataType::kINT32: return "int32";
    case DataType::kINT64: return "int64";
    case DataType::kBOOL: return "bool";
    case DataType::kUINT8: return "uint8";
    default: return "another type";
  }
}

std::string text(std::int64_t number) {
  char out[24];
  std::snprintf(out, sizeof out, "%lld", static_cast<long long>(number));
  return out;
}

std::string real(float number) {
  char out[24];
  std::snprintf(out, sizeof out, "%.9g", static_cast<double>(number));
  return out;
}

std::string text(const Dims& dims) {
  std::string out = "[";
  for (std::int32_t i = 0; i < dims.nbDims; ++i) {
    out += (i ? ", " : "") + text(dims.d[i]);
  }
  return out + "]";
}

ScalarType scalar_type(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return ScalarType::kFloat32;
    case DataType::kHALF: return ScalarType::kFloat16;
    case DataType::kBF16: return ScalarType::kBFloat16;
    default: throw Error(std::string("inputs cannot be ") + name_of(type));
  }
}

// ---- fields -------------------------------------------------------------------------------------

Fields::Fields(const PluginFieldCollection* given, const PluginFieldCollection& declared)
    : given_(given == nullptr ? PluginFieldCollection{} : *given) {
  std::string known;
  for (std::int32_t i = 0; i < declared.nbFields; ++i) {
    known += std::string(i ? ", " : "") + declared.fields[i].name;
  }
  for (std::int32_t i = 0; i < given_.nbFields; ++i) {
    const char* name = given_.fields[i].name;
    if (name == nullptr || find(declared, name) == nullptr) {
      throw Error("field '" + std::string(name == nullptr ? "" : name) +
                  "' is unknown; its fields are " + known);
    }
    if (find(given_, name) != &given_.fields[i]) {
      throw Error("field '" + std::string(name) + "' is given twice");
    }
  }
}

const PluginField& Fields::field(const char* name, std::int32_t length,
                                 const char* expected) const {
  const PluginField* found = find(given_, name);
  if (found == nullptr) {
    throw Error("field '" + std::string(name) + "' is missing; it is " + expected);
  }
  if (found->length != length || found->data == nullptr) {
    throw Error("field '" + std::string(name) + "' has " +
                text(found->data == nullptr ? 0 : found->length) + " values, not " +
                expected);
  }
  return *found;
}

float Fields::number(const char* name) const {
  const PluginField& found = field(name, 1, "one float32");
  if (found.type != PluginFieldType::kFLOAT32) {
    throw Error("field '" + std::string(name) + "' is " + name_of(found.type) +
                ", not one float32");
  }
  float value;
  std::memcpy(&value, found.data, sizeof value);
  return value;
}

std::int32_t Fields::integer(const char* name) const {
  return integer_at(field(name, 1, "one integer"), 0);
}

std::array<std::int32_t, 4> Fields::four_integers(const char* name) const {
  const PluginField& found = field(name, 4, "four integers");
  return {integer_at(found, 0), integer_at(found, 1), integer_at(found, 2), integer_at(found, 3)};
}

std::int32_t Fields::integer_at(const PluginField& found, std::int32_t at) const {
  if (found.type == PluginFieldType::kINT32) {
    std::int32_t value;
    std::memcpy(&value, static_cast<const std::int32_t*>(found.data) + at, sizeof value);
    return value;
  }
  if (found.type != kInt64Field) {
    throw Error("field '" + std::string(found.name) + "' is " + name_of(found.type) +
                ", not int32 or int64");
  }
  std::int64_t value;
  std::memcpy(&value, static_cast<const std::int64_t*>(found.data) + at, sizeof value);
  if (value < std::numeric_limits<std::int32_t>::min() ||
      value > std::numeric_limits<std::int32_t>::max()) {
    throw Error("field '" + std::string(found.name) + "' is out of range: " +
                text(value));
  }
  return static_cast<std::int32_t>(value);
}

// ---- checks -------------------------------------------------------------------------------------

void Plugin::check_count(std::int32_t inputs, std::int32_t outputs) const {
  if (inputs != input_count_ || outputs != 1) {
    throw Error("it has " + text(input_count_) + " inputs and 1 output, not " +
                text(inputs) + " and " + text(outputs));
  }
}

void Plugin::check_rank(std::int32_t input, std::int32_t rank) const {
  if (rank != inputs_[input].rank) {
    throw Error(std::string(inputs_[input].name) + " has rank " + text(rank) +
                "; it must be " + inputs_[input].axes);
  }
}

void Plugin::check_type(std::int32_t input, DataType type, DataType first) const {
  const char* name = inputs_[input].name;
  if (inputs_[input].float32) {
    if (type != DataType::kFLOAT) {
      throw Error(std::string(name) + " is " + name_of(type) + "; it must be float32 always");
    }
  } else if (!is_scalar_type(type)) {
    throw Error(std::string(name) + " is " + name_of(type) +
                "; it must be float32, float16 or bfloat16");
  } else if (type != first) {
    throw Error(std::string(name) + " is " + name_of(type) + " and " + inputs_[0].name + " is " +
                name_of(first) + "; they must have one type");
  }
}

void Plugin::check(const PluginTensorDesc* inputs) const {
  for (std::int32_t i = 0; i < input_count_; ++i) {
    check_rank(i, inputs[i].dims.nbDims);
    check_type(i, inputs[i].type, inputs[0].type);
    if (inputs[i].format != TensorFormat::kLINEAR) {
      throw Error(std::string(inputs_[i].name) + " must have the linear format");
    }
  }
  check_shapes(inputs);
}

void Plugin::expect_shape(const PluginTensorDesc* inputs, std::int32_t input, const Dims& expected,
                          const char* owner) const {
  const Dims& dims = inputs[input].dims;
  if (dims.nbDims != expected.nbDims || !std::equal(dims.d, dims.d + dims.nbDims, expected.d)) {
    throw Error(std::string(inputs_[input].name) + " is " + text(dims) + "; with " + owner +
                " it must be " + text(expected));
  }
}

void Plugin::refuse_values(const char* reason) const {
  if (reason != nullptr) throw Error(summary_ + "; " + without_name(reason, name_));
}

void Plugin::refuse_shape(const Dims& dims, const char* reason) const {
  if (reason == nullptr) return;
  throw Error(std::string(inputs_[0].name) + " is " + text(dims) + "; " +
              without_name(reason, name_));
}

// ---- what TensorRT calls ------------------------------------------------------------------------

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

std::int32_t Plugin::getOutputDataTypes(DataType* output_types, std::int32_t output_count,
                                        const DataType* input_types,
                                        std::int32_t input_count) const noexcept {
  return guarded(name_, [&] {
    check_count(input_count, output_count);
    for (std::int32_t i = 0; i < input_count_; ++i) check_type(i, input_types[i], input_types[0]);
    output_types[0] = input_types[0];
  });
}

std::int32_t Plugin::getOutputShapes(const DimsExprs* inputs, std::int32_t input_count,
                                     const DimsExprs*, std::int32_t, DimsExprs* outputs,
                                     std::int32_t output_count, nvinfer1::IExprBuilder&) noexcept {
  return guarded(name_, [&] {
    check_count(input_count, output_count);
    for (std::int32_t i = 0; i < input_count_; ++i) check_rank(i, inputs[i].nbDims);
    outputs[0] = inputs[0];
  });
}

// The entries after `position` have no meaning yet: only those up to it are read.
bool Plugin::supportsFormatCombination(std::int32_t position,
                                       const DynamicPluginTensorDesc* in_out,
                                       std::int32_t input_count,
                                       std::int32_t output_count) noexcept {
  if (input_count != input_count_ || output_count != 1 || position < 0 ||
      position > input_count_) {
    return false;
  }
  const PluginTensorDesc& asked = in_out[position].desc;
  if (asked.format != TensorFormat::kLINEAR) return false;
  if (position == 0) return is_scalar_type(asked.type);
  const bool float32 = position < input_count_ && inputs_[position].float32;
  return asked.type == (float32 ? DataType::kFLOAT : in_out[0].desc.type);
}

// Every bound of the profile that is known must be a problem that the kernels take.
std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs,
                                     std::int32_t input_count, const DynamicPluginTensorDesc*,
                                     std::int32_t output_count) noexcept {
  return guarded(name_, [&] {
    check_count(input_count, output_count);
    for (const auto bound : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt,
                             &DynamicPluginTensorDesc::max}) {
      std::array<PluginTensorDesc, kMaxInputs> at_bound{};
      bool known = true;
      for (std::int32_t i = 0; i < input_count_; ++i) {
        PluginTensorDesc& desc = at_bound[static_cast<std::size_t>(i)];
        desc = inputs[i].desc;
        desc.dims = inputs[i].*bound;
        known = known && !has_unknown(desc.dims);
      }
      if (known) check(at_bound.data());
    }
  });
}

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count,
                                   const PluginTensorDesc*, std::int32_t output_count) noexcept {
  return guarded(name_, [&] {
    check_count(input_count, output_count);
    check(inputs);
  });
}

}  // namespace msct::plugin
