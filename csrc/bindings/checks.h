// SPDX-License-Identifier: Apache-2.0
// What both halves of runtime._native say about shapes.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace msct::bindings {

using Shape = std::vector<pybind11::ssize_t>;

inline std::string text(const Shape& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return out + "]";
}

inline void expect_shape(const std::string& name, const Shape& shape, const Shape& expected) {
  if (shape != expected) {
    throw pybind11::value_error(name + " has shape " + text(shape) + ", expected " + text(expected));
  }
}

// [batch, heads, tokens, dim], none of them zero.
inline void expect_heads(const std::string& name, const Shape& shape) {
  if (shape.size() != 4) {
    throw pybind11::value_error(name + " must be [batch, heads, tokens, dim], not " + text(shape));
  }
  for (const auto size : shape) {
    if (size < 1) throw pybind11::value_error(name + " is empty");
  }
}

// What the key convolution asks of its parameters, wherever it runs.
inline void expect_key_conv(const Shape& key, std::size_t weights, std::size_t biases,
                            const std::vector<std::int64_t>& kernel_sizes,
                            std::int64_t prefix_tokens) {
  if (key[1] % 4 != 0) {
    throw pybind11::value_error("heads must be a multiple of 4, not " + std::to_string(key[1]));
  }
  if (weights != 4 || biases != 4 || kernel_sizes.size() != 4) {
    throw pybind11::value_error("weights, biases and kernel_sizes must have 4 entries each");
  }
  if (prefix_tokens < 0 || prefix_tokens > key[2]) {
    throw pybind11::value_error("prefix_tokens must be from 0 to " + std::to_string(key[2]) +
                                ", not " + std::to_string(prefix_tokens));
  }
  for (const auto size : kernel_sizes) {
    if (size < 1 || size % 2 == 0) {
      throw pybind11::value_error("kernel sizes must be odd and positive, not " +
                                  std::to_string(size));
    }
  }
}

// The CUDA half (cuda.cpp), compiled in where the package was built with MSCT_CUDA=ON.
void bind_cuda(pybind11::module_& m);

}  // namespace msct::bindings
