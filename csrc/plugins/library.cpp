// SPDX-License-Identifier: Apache-2.0
// The library's two symbols, which IPluginRegistry::loadLibrary looks up.  The registry refuses a
// library if one of its creators is registered already: a second loadLibrary returns null and
// changes nothing.
#include "plugins/plugin_common.h"

#define MSCT_EXPORT extern "C" __attribute__((visibility("default")))

MSCT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  msct::plugin::set_logger_finder(finder);
}

MSCT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &msct::plugin::multi_scale_key_conv_creator(),
      &msct::plugin::differential_cross_attention_creator(),
  };
  count = 2;
  return creators;
}
