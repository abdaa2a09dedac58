// SPDX-License-Identifier: Apache-2.0
#include "kernels/multi_scale_key_conv.h"

#include <algorithm>

namespace msct {
namespace {

// One output value: a size x size window around (t, d) in every head of the group.  Positions
// outside the plane and prefix tokens count as zero.
template <typename T>
double convolve_at(const T* group_key, const T* weight, const MultiScaleKeyConvParams<T>& p,
                   std::int64_t size, std::int64_t t, std::int64_t d) {
  const std::int64_t half = size / 2;
  const std::int64_t group_heads = p.heads / kKeyConvGroups;
  const std::int64_t t_first = std::max(t - half, p.prefix_tokens);
  const std::int64_t t_last = std::min(t + half, p.tokens - 1);
  const std::int64_t d_first = std::max<std::int64_t>(d - half, 0);
  const std::int64_t d_last = std::min(d + half, p.dim - 1);
  double sum = 0.0;
  for (std::int64_t head = 0; head < group_heads; ++head) {
    const T* plane = group_key + head * p.tokens * p.dim;    // [tokens, dim]
    const T* taps = weight + head * size * size;             // [size, size]
    for (std::int64_t ti = t_first; ti <= t_last; ++ti) {
      const T* row = plane + ti * p.dim;
      const T* tap_row = taps + (ti - t + half) * size - d + half;
      for (std::int64_t di = d_first; di <= d_last; ++di) {
        sum += static_cast<double>(row[di]) * static_cast<double>(tap_row[di]);
      }
    }
  }
  return sum;
}

}  // namespace

template <typename T>
void multi_scale_key_conv_cpu(const MultiScaleKeyConvParams<T>& p) {
  const std::int64_t group_heads = p.heads / kKeyConvGroups;
  const std::int64_t plane = p.tokens * p.dim;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (int g = 0; g < kKeyConvGroups; ++g) {
      const std::int64_t size = p.kernel_size[g];
      const std::int64_t group_at = (b * p.heads + g * group_heads) * plane;
      const T* group_key = p.key + group_at;
      for (std::int64_t head = 0; head < group_heads; ++head) {
        const T* key = group_key + head * plane;
        const T* weight = p.weight[g] + head * group_heads * size * size;
        const double bias = static_cast<double>(p.bias[g][head]);
        T* out = p.out + group_at + head * plane;
        std::copy(key, key + p.prefix_tokens * p.dim, out);
        for (std::int64_t t = p.prefix_tokens; t < p.tokens; ++t) {
          for (std::int64_t d = 0; d < p.dim; ++d) {
            out[t * p.dim + d] =
                static_cast<T>(bias + convolve_at(group_key, weight, p, size, t, d));
          }
        }
      }
    }
  }
}

template void multi_scale_key_conv_cpu<float>(const MultiScaleKeyConvParams<float>&);
template void multi_scale_key_conv_cpu<double>(const MultiScaleKeyConvParams<double>&);

}  // namespace msct
