// SPDX-License-Identifier: Apache-2.0
// runtime._native: the CPU kernels over NumPy arrays.  Shapes and types are checked here and only
// here, each with a one-line ValueError or TypeError; the kernels trust their params.  The CUDA
// kernels are in cuda.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "kernels/differential_cross_attention.h"
#include "kernels/multi_scale_key_conv.h"

namespace py = pybind11;

namespace {

using msct::bindings::expect_heads;
using msct::bindings::expect_key_conv;
using msct::bindings::Shape;

Shape shape_of(const py::array& array) {
  return Shape(array.shape(), array.shape() + array.ndim());
}

void expect_shape(const std::string& name, const py::array& array, const Shape& expected) {
  msct::bindings::expect_shape(name, shape_of(array), expected);
}

// A dense view of `array`; strided and reversed inputs are copied, other types are refused.
template <typename T>
py::array_t<T> dense(const char* name, const py::array& array) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(std::string(name) + " has type " +
                         py::cast<std::string>(py::str(array.dtype())) + ", expected " +
                         py::cast<std::string>(py::str(py::dtype::of<T>())));
  }
  return py::array_t<T, py::array::c_style>::ensure(array);
}

struct Dims {
  py::ssize_t batch, heads, tokens, dim;
};

Dims dims_of(const char* name, const py::array& array) {
  expect_heads(name, shape_of(array));
  return {array.shape(0), array.shape(1), array.shape(2), array.shape(3)};
}

template <typename T>
py::array_t<T> key_conv(const py::array& key_in, const std::vector<py::array>& weights_in,
                        const std::vector<py::array>& biases_in,
                        const std::vector<std::int64_t>& kernel_sizes,
                        std::int64_t prefix_tokens) {
  const Dims n = dims_of("key", key_in);
  constexpr auto groups = static_cast<std::size_t>(msct::kKeyConvGroups);
  expect_key_conv(shape_of(key_in), weights_in.size(), biases_in.size(), kernel_sizes,
                  prefix_tokens);
  const py::array_t<T> key = dense<T>("key", key_in);
  py::array_t<T> out({n.batch, n.heads, n.tokens, n.dim});

  msct::MultiScaleKeyConvParams<T> params{};
  std::array<py::array_t<T>, groups> weights, biases;  // keep dense copies alive over the call
  for (std::size_t g = 0; g < groups; ++g) {
    const std::int64_t size = kernel_sizes[g];
    const py::ssize_t group_heads = n.heads / msct::kKeyConvGroups;
    const std::string at = "[" + std::to_string(g) + "]";
    expect_shape("weights" + at, weights_in[g], {group_heads, group_heads, size, size});
    expect_shape("biases" + at, biases_in[g], {group_heads});
    weights[g] = dense<T>(("weights" + at).c_str(), weights_in[g]);
    biases[g] = dense<T>(("biases" + at).c_str(), biases_in[g]);
    params.weight[g] = weights[g].data();
    params.bias[g] = biases[g].data();
    params.kernel_size[g] = size;
  }
  params.key = key.data();
  params.out = out.mutable_data();
  params.batch = n.batch;
  params.heads = n.heads;
  params.tokens = n.tokens;
  params.dim = n.dim;
  params.prefix_tokens = prefix_tokens;
  {
    py::gil_scoped_release release;
    msct::multi_scale_key_conv_cpu(params);
  }
  return out;
}

template <typename T>
py::array_t<T> cross_attention(const py::array& q_self_in, const py::array& q_cross_in,
                               const py::array& key_in, const py::array& value_in,
                               const py::array& lam_in, double scale) {
  const Dims n = dims_of("q_self", q_self_in);
  const Shape expected = {n.batch, n.heads, n.tokens, n.dim};
  expect_shape("q_cross", q_cross_in, expected);
  expect_shape("key", key_in, expected);
  expect_shape("value", value_in, expected);
  expect_shape("lam", lam_in, {n.heads});
  if (!std::isfinite(scale)) throw py::value_error("scale must be finite");
  const py::array_t<T> q_self = dense<T>("q_self", q_self_in);
  const py::array_t<T> q_cross = dense<T>("q_cross", q_cross_in);
  const py::array_t<T> key = dense<T>("key", key_in);
  const py::array_t<T> value = dense<T>("value", value_in);
  const py::array_t<float> lam = dense<float>("lam", lam_in);
  py::array_t<T> out({n.batch, n.heads, n.tokens, n.dim});

  msct::DifferentialCrossAttentionParams<T> params{};
  params.q_self = q_self.data();
  params.q_cross = q_cross.data();
  params.key = key.data();
  params.value = value.data();
  params.lam = lam.data();
  params.out = out.mutable_data();
  params.batch = n.batch;
  params.heads = n.heads;
  params.tokens = n.tokens;
  params.dim = n.dim;
  params.scale = scale;
  {
    py::gil_scoped_release release;
    msct::differential_cross_attention_cpu(params);
  }
  return out;
}

bool is_double(const char* name, const py::array& array) {
  if (py::isinstance<py::array_t<double>>(array)) return true;
  if (py::isinstance<py::array_t<float>>(array)) return false;
  throw py::type_error(std::string(name) + " has type " +
                       py::cast<std::string>(py::str(array.dtype())) +
                       ", expected float32 or float64");
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ kernels of the two custom ops; use runtime.backends.native, which says when they are absent.";

  m.def(
      "multi_scale_key_conv",
      [](const py::array& key, const std::vector<py::array>& weights,
         const std::vector<py::array>& biases, const std::vector<std::int64_t>& kernel_sizes,
         std::int64_t prefix_tokens) -> py::array {
        return is_double("key", key)
                   ? py::array(key_conv<double>(key, weights, biases, kernel_sizes, prefix_tokens))
                   : py::array(key_conv<float>(key, weights, biases, kernel_sizes, prefix_tokens));
      },
      py::arg("key"), py::arg("weights"), py::arg("biases"), py::arg("kernel_sizes"),
      py::arg("prefix_tokens"));

  m.def(
      "differential_cross_attention",
      [](const py::array& q_self, const py::array& q_cross, const py::array& key,
         const py::array& value, const py::array& lam, double scale) -> py::array {
        return is_double("q_self", q_self)
                   ? py::array(cross_attention<double>(q_self, q_cross, key, value, lam, scale))
                   : py::array(cross_attention<float>(q_self, q_cross, key, value, lam, scale));
      },
      py::arg("q_self"), py::arg("q_cross"), py::arg("key"), py::arg("value"), py::arg("lam"),
      py::arg("scale"));

  // Compute capabilities that CUDA kernels were compiled for, as "87".
#ifdef MSCT_CUDA_ARCHITECTURES
  m.attr("CUDA_ARCHITECTURES") = py::str(MSCT_CUDA_ARCHITECTURES).attr("split")(",");
  msct::bindings::bind_cuda(m);
#else
  m.attr("CUDA_ARCHITECTURES") = py::list();
#endif
}
