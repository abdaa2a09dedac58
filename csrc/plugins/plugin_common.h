// SPDX-License-Identifier: Apache-2.0
// What the TensorRT plugins share: errors in TensorRT's log, fields, types, shapes, and the part of
// IPluginV3 that is the same for each of them.
//
// One source for TensorRT 10.0 to 11 and TensorRT-RTX: only interfaces that 10.0 has are used, and
// nothing is linked against the library, so one binary registers in either.  Inside, an error is an
// exception with one line of text; `guarded` turns it into a line of the log and a status at every
// call that comes from TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/device.h"

// TensorRT-RTX counts its versions from 1 and marks its headers with TRT_MAJOR_RTX.
#if !defined(TRT_MAJOR_RTX) && NV_TENSORRT_MAJOR < 10
#error "the plugins need IPluginV3: TensorRT 10.0 or later, or TensorRT-RTX"
#endif

namespace msct::plugin {

constexpr char kNamespace[] = "msct";
constexpr char kVersion[] = "1";

// An error's one line in the log of the TensorRT that called, or on stderr where it has none.
void log_error(const char* plugin, const char* what) noexcept;
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs `body` for TensorRT.  0, or 1 and a line in the log: no exception crosses the ABI.
template <typename Body>
std::int32_t guarded(const char* plugin, Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return 0;
  } catch (const std::exception& error) {
    log_error(plugin, error.what());
  } catch (...) {
    log_error(plugin, "an unknown exception");
  }
  return 1;
}

const char* name_of(nvinfer1::DataType type);
// Not std::to_string: it leaves unique symbols behind, which keep a library from being unloaded.
std::string text(std::int64_t number);
std::string real(float number);
std::string text(const nvinfer1::Dims& dims);  // "[1, 4, 51, 32]"
ScalarType scalar_type(nvinfer1::DataType type);  // of the three that the kernels take, else Error

constexpr bool is_scalar_type(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF ||
         type == nvinfer1::DataType::kBF16;
}

// The fields of createPlugin: those that `declared` lists, each once, and no other; the build phase
// and the runtime phase (where they come from getFieldsToSerialize) are read alike.
class Fields {
 public:
  Fields(const nvinfer1::PluginFieldCollection* given,
         const nvinfer1::PluginFieldCollection& declared);

  float number(const char* name) const;
  std::int32_t integer(const char* name) const;
  std::array<std::int32_t, 4> four_integers(const char* name) const;

 private:
  const nvinfer1::PluginField& field(const char* name, std::int32_t length,
                                     const char* expected) const;
  std::int32_t integer_at(const nvinfer1::PluginField& field, std::int32_t at) const;

  const nvinfer1::PluginFieldCollection given_;
};

struct Input {
  const char* name;      // of the ONNX operator's input
  std::int32_t rank;
  const char* axes;      // of that rank, for messages
  bool float32 = false;  // always, whatever type the first input has
};

constexpr std::int32_t kMaxInputs = 9;

// A plugin with one output, of the shape and type of its first input.  Tensors are linear (dense
// and row-major); one type for all inputs, but for those that are float32 always.  There is no
// state between calls: enqueue reads shapes and types from the descriptions it is given, so clones
// and contexts share nothing, and no workspace.  The kernels choose their own variant: no tactics.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  ~Plugin() noexcept override = default;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept final;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept final { return name_; }
  const char* getPluginVersion() const noexcept final { return kVersion; }
  const char* getPluginNamespace() const noexcept final { return kNamespace; }

  // IPluginV3OneBuild
  std::int32_t getNbOutputs() const noexcept final { return 1; }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t output_count,
                                  const nvinfer1::DataType* input_types,
                                  std::int32_t input_count) const noexcept final;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs* shape_inputs,
                               std::int32_t shape_input_count, nvinfer1::DimsExprs* outputs,
                               std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept final;
  bool supportsFormatCombination(std::int32_t position,
                                 const nvinfer1::DynamicPluginTensorDesc* in_out,
                                 std::int32_t input_count,
                                 std::int32_t output_count) noexcept final;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept final;
  // The shapes and formats are in the key already, so what is left is the fields' values.  With an
  // id a timing cache may keep what was measured for a layer (null: never cached).
  const char* getTimingCacheID() noexcept final { return summary_.c_str(); }
  const char* getMetadataString() noexcept final { return summary_.c_str(); }

  // IPluginV3OneRuntime
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs,
                             std::int32_t output_count) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept final {
    return clone();
  }

 protected:
  // `inputs` are static; `summary` names the fields' values.
  template <std::int32_t N>
  Plugin(const char* name, const Input (&inputs)[N], std::string summary)
      : name_(name), inputs_(inputs), input_count_(N), summary_(std::move(summary)) {
    static_assert(N <= kMaxInputs, "configurePlugin holds kMaxInputs descriptions");
  }
  Plugin(const Plugin&) = delete;  // clone() makes a new one: fields to serialise point into this
  Plugin& operator=(const Plugin&) = delete;

  // Throws Error unless the kernels take inputs of these shapes, whose ranks, types and formats are
  // right already.
  virtual void check_shapes(const nvinfer1::PluginTensorDesc* inputs) const = 0;

  // Throws Error unless the input has the shape `expected`, which follows from `owner`.
  void expect_shape(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input,
                    const nvinfer1::Dims& expected, const char* owner) const;
  // Throws Error where a kernel gives a reason (not null): about the fields' values alone, or about
  // the shape of the first input.
  void refuse_values(const char* reason) const;
  void refuse_shape(const nvinfer1::Dims& dims, const char* reason) const;
  // The checks of onShapeChange, for enqueue: on descriptions that are right they allocate nothing.
  void check(const nvinfer1::PluginTensorDesc* inputs) const;

 private:
  void check_count(std::int32_t inputs, std::int32_t outputs) const;
  void check_rank(std::int32_t input, std::int32_t rank) const;
  void check_type(std::int32_t input, nvinfer1::DataType type, nvinfer1::DataType first) const;

  const char* name_;
  const Input* inputs_;
  std::int32_t input_count_;
  std::string summary_;
};

// P has kName, declared_fields() and P(const Fields&).
template <typename P>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    nvinfer1::IPluginV3* plugin = nullptr;
    guarded(P::kName, [&] { plugin = new P(Fields(fields, P::declared_fields())); });
    return plugin;
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    return &P::declared_fields();
  }
  const char* getPluginName() const noexcept override { return P::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

nvinfer1::IPluginCreatorInterface& multi_scale_key_conv_creator();
nvinfer1::IPluginCreatorInterface& differential_cross_attention_creator();

}  // namespace msct::plugin
