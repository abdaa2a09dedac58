// SPDX-License-Identifier: Apache-2.0
// runtime._native: the CUDA kernels over raw device pointers.  A tensor is runtime.backends.native's
// DeviceTensor (pointer, shape, strides in elements, dtype); all that can be told without looking at
// device memory is checked here, in one line.  Nothing allocates, copies or waits.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "kernels/differential_cross_attention.h"
#include "kernels/multi_scale_key_conv.h"

namespace py = pybind11;

namespace msct::bindings {
namespace {

struct Tensor {
  std::uintptr_t pointer;
  Shape shape;
  Shape strides;  // elements
  std::string dtype;
};

Tensor tensor_of(const std::string& name, const py::handle& from) {
  Tensor tensor{from.attr("pointer").cast<std::uintptr_t>(), from.attr("shape").cast<Shape>(),
                from.attr("strides").cast<Shape>(), from.attr("dtype").cast<std::string>()};
  if (tensor.pointer == 0) throw py::value_error(name + " is a null pointer");
  if (tensor.strides.size() != tensor.shape.size()) {
    throw py::value_error(name + " has " + std::to_string(tensor.shape.size()) +
                          " dimensions but " + std::to_string(tensor.strides.size()) + " strides");
  }
  return tensor;
}

ScalarType type_of(const std::string& name, const Tensor& tensor) {
  if (tensor.dtype == "float32") return ScalarType::kFloat32;
  if (tensor.dtype == "float16") return ScalarType::kFloat16;
  if (tensor.dtype == "bfloat16") return ScalarType::kBFloat16;
  throw py::type_error(name + " has type " + tensor.dtype +
                       ", expected float32, float16 or bfloat16");
}

void expect_type(const std::string& name, const Tensor& tensor, const std::string& expected) {
  if (tensor.dtype != expected) {
    throw py::type_error(name + " has type " + tensor.dtype + ", expected " + expected);
  }
}

void expect_dense(const std::string& name, const Tensor& tensor) {
  py::ssize_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] > 1 && tensor.strides[i] != stride) {
      throw py::value_error(name + " must be contiguous, its strides are " + text(tensor.strides));
    }
    stride *= tensor.shape[i];
  }
}

// The strides of [batch, heads, tokens, dim], whose last dimension lies element by element.
Strides strides_of(const std::string& name, const Tensor& tensor) {
  if (tensor.shape[3] > 1 && tensor.strides[3] != 1) {
    throw py::value_error(name + " must have stride 1 over its last dimension, not " +
                          std::to_string(tensor.strides[3]));
  }
  return {tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

void expect_writable(const Tensor& out, const std::vector<const Tensor*>& inputs) {
  for (std::size_t i = 0; i < 3; ++i) {
    if (out.shape[i] > 1 && out.strides[i] == 0) {
      throw py::value_error("out must not repeat memory, its strides are " + text(out.strides));
    }
  }
  for (const Tensor* input : inputs) {
    if (input->pointer == out.pointer) {
      throw py::value_error("out must not be one of the inputs");
    }
  }
}

const void* read(const Tensor& tensor) { return reinterpret_cast<const void*>(tensor.pointer); }
void* written(const Tensor& tensor) { return reinterpret_cast<void*>(tensor.pointer); }
CUstream_st* stream_of(std::uintptr_t handle) { return reinterpret_cast<CUstream_st*>(handle); }

void launched(const char* op, const char* problem) {
  if (problem != nullptr) throw std::runtime_error(std::string(op) + ": " + problem);
}

void supported(const char* problem) {
  if (problem != nullptr) throw py::value_error(problem);  // it names the op
}

void key_conv(const py::object& key_in, const std::vector<py::object>& weights_in,
              const std::vector<py::object>& biases_in, const py::object& out_in,
              const std::vector<std::int64_t>& kernel_sizes, std::int64_t prefix_tokens,
              std::uintptr_t stream) {
  const Tensor key = tensor_of("key", key_in);
  const Tensor out = tensor_of("out", out_in);
  expect_heads("key", key.shape);
  expect_key_conv(key.shape, weights_in.size(), biases_in.size(), kernel_sizes, prefix_tokens);
  MultiScaleKeyConvCudaParams params{};
  params.type = type_of("key", key);
  expect_shape("out", out.shape, key.shape);
  expect_type("out", out, key.dtype);
  expect_writable(out, {&key});
  for (std::size_t g = 0; g < kKeyConvGroups; ++g) {
    const std::string at = "[" + std::to_string(g) + "]";
    const Tensor weight = tensor_of("weights" + at, weights_in[g]);
    const Tensor bias = tensor_of("biases" + at, biases_in[g]);
    const py::ssize_t heads = key.shape[1] / kKeyConvGroups, size = kernel_sizes[g];
    expect_shape("weights" + at, weight.shape, {heads, heads, size, size});
    expect_shape("biases" + at, bias.shape, {heads});
    expect_type("weights" + at, weight, key.dtype);
    expect_type("biases" + at, bias, key.dtype);
    expect_dense("weights" + at, weight);
    expect_dense("biases" + at, bias);
    params.weight[g] = read(weight);
    params.bias[g] = read(bias);
    params.kernel_size[g] = size;
  }
  params.key = read(key);
  params.out = written(out);
  params.batch = key.shape[0];
  params.heads = key.shape[1];
  params.tokens = key.shape[2];
  params.dim = key.shape[3];
  params.prefix_tokens = prefix_tokens;
  params.key_strides = strides_of("key", key);
  params.out_strides = strides_of("out", out);
  supported(multi_scale_key_conv_unsupported(params));
  launched("MultiScaleKeyConv", multi_scale_key_conv_cuda(params, stream_of(stream)));
}

void cross_attention(const py::object& q_self_in, const py::object& q_cross_in,
                     const py::object& key_in, const py::object& value_in,
                     const py::object& lam_in, const py::object& out_in, double scale,
                     std::uintptr_t stream) {
  const Tensor q_self = tensor_of("q_self", q_self_in);
  const Tensor q_cross = tensor_of("q_cross", q_cross_in);
  const Tensor key = tensor_of("key", key_in);
  const Tensor value = tensor_of("value", value_in);
  const Tensor lam = tensor_of("lam", lam_in);
  const Tensor out = tensor_of("out", out_in);
  expect_heads("q_self", q_self.shape);
  DifferentialCrossAttentionCudaParams params{};
  params.type = type_of("q_self", q_self);
  const auto like_q_self = [&](const char* name, const Tensor& tensor) {
    expect_shape(name, tensor.shape, q_self.shape);
    expect_type(name, tensor, q_self.dtype);
  };
  like_q_self("q_cross", q_cross);
  like_q_self("key", key);
  like_q_self("value", value);
  like_q_self("out", out);
  expect_shape("lam", lam.shape, {q_self.shape[1]});
  expect_type("lam", lam, "float32");
  expect_dense("lam", lam);
  if (!std::isfinite(scale)) throw py::value_error("scale must be finite");
  expect_writable(out, {&q_self, &q_cross, &key, &value, &lam});
  params.q_self = read(q_self);
  params.q_cross = read(q_cross);
  params.key = read(key);
  params.value = read(value);
  params.lam = static_cast<const float*>(read(lam));
  params.out = written(out);
  params.batch = q_self.shape[0];
  params.heads = q_self.shape[1];
  params.tokens = q_self.shape[2];
  params.dim = q_self.shape[3];
  params.scale = scale;
  params.q_self_strides = strides_of("q_self", q_self);
  params.q_cross_strides = strides_of("q_cross", q_cross);
  params.key_strides = strides_of("key", key);
  params.value_strides = strides_of("value", value);
  params.out_strides = strides_of("out", out);
  supported(differential_cross_attention_unsupported(params));
  launched("DifferentialCrossAttention",
           differential_cross_attention_cuda(params, stream_of(stream)));
}

// (name, major, minor) of every GPU; empty without a driver or a GPU.  Creates no context.
py::list devices() {
  py::list found;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) break;
    found.append(py::make_tuple(std::string(properties.name), properties.major, properties.minor));
  }
  static_cast<void>(cudaGetLastError());  // "no device" is an answer here, not an error to keep
  return found;
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_devices", &devices);
  m.def("multi_scale_key_conv_cuda", &key_conv, py::arg("key"), py::arg("weights"),
        py::arg("biases"), py::arg("out"), py::arg("kernel_sizes"), py::arg("prefix_tokens"),
        py::arg("stream"));
  m.def("differential_cross_attention_cuda", &cross_attention, py::arg("q_self"),
        py::arg("q_cross"), py::arg("key"), py::arg("value"), py::arg("lam"), py::arg("out"),
        py::arg("scale"), py::arg("stream"));
}

}  // namespace msct::bindings
