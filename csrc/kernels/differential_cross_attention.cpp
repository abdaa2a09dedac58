// SPDX-License-Identifier: Apache-2.0
#include "kernels/differential_cross_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace msct {
namespace {

// weights[j] = softmax_j(scale * <query, key_j>)
template <typename T>
void attention_weights(const T* query, const T* key, std::int64_t tokens, std::int64_t dim,
                       double scale, std::vector<double>& weights) {
  double highest = -std::numeric_limits<double>::infinity();
  for (std::int64_t j = 0; j < tokens; ++j) {
    const T* key_row = key + j * dim;
    double dot = 0.0;
    for (std::int64_t d = 0; d < dim; ++d) {
      dot += static_cast<double>(query[d]) * static_cast<double>(key_row[d]);
    }
    weights[static_cast<std::size_t>(j)] = dot * scale;
    highest = std::max(highest, dot * scale);
  }
  double total = 0.0;
  for (double& weight : weights) {
    weight = std::exp(weight - highest);
    total += weight;
  }
  for (double& weight : weights) weight /= total;
}

}  // namespace

template <typename T>
void differential_cross_attention_cpu(const DifferentialCrossAttentionParams<T>& p) {
  const std::int64_t plane = p.tokens * p.dim;
  std::vector<double> self(static_cast<std::size_t>(p.tokens));
  std::vector<double> cross(static_cast<std::size_t>(p.tokens));
  for (std::int64_t bh = 0; bh < p.batch * p.heads; ++bh) {
    const double lam = static_cast<double>(p.lam[bh % p.heads]);
    const T* key = p.key + bh * plane;
    const T* value = p.value + bh * plane;
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const std::int64_t row = bh * plane + t * p.dim;
      attention_weights(p.q_self + row, key, p.tokens, p.dim, p.scale, self);
      attention_weights(p.q_cross + row, key, p.tokens, p.dim, p.scale, cross);
      for (std::int64_t d = 0; d < p.dim; ++d) {
        double sum = 0.0;  // both terms share the value: their weights are subtracted first
        for (std::int64_t j = 0; j < p.tokens; ++j) {
          const auto at = static_cast<std::size_t>(j);
          sum += (self[at] - lam * cross[at]) * static_cast<double>(value[j * p.dim + d]);
        }
        p.out[row + d] = static_cast<T>(sum);
      }
    }
  }
}

template void differential_cross_attention_cpu<float>(
    const DifferentialCrossAttentionParams<float>&);
template void differential_cross_attention_cpu<double>(
    const DifferentialCrossAttentionParams<double>&);

}  // namespace msct
