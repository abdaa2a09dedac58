// SPDX-License-Identifier: Apache-2.0
// How a plugin's message reaches the log of the TensorRT that calls it.
//
// TensorRT 11 and TensorRT-RTX 1.5 derived ILoggerFinder and ILogger from IVersionedInterface,
// which moved findLogger() and log() in their tables of virtual functions.  A plugin library may
// be compiled with older or newer headers than the library that loads it has, so these two, and
// only these, are called by their place in the table: it follows from that library's version.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>

#include "plugins/plugin_common.h"

namespace msct::plugin {
namespace {

using Severity = nvinfer1::ILogger::Severity;
using FindLogger = void* (*)(void* finder);
using Log = void (*)(void* logger, Severity severity, const char* message);

// findLogger() and log() were first in their tables; then four of IVersionedInterface came before
// them: getAPILanguage, getInterfaceInfo and the two entries of the destructor.
constexpr int kSlotUntil10 = 0;
constexpr int kSlotFrom11 = 4;

// An object begins with the address of its table (Itanium C++ ABI: Linux on x86-64 and AArch64).
template <typename Function>
Function virtual_function(void* object, int slot) {
  void* const* table = *static_cast<void* const* const*>(object);
  return reinterpret_cast<Function>(table[slot]);
}

// Of the registry that loaded this library last; it outlives the plugins.
std::atomic<void*> logger_finder{nullptr};
std::atomic<bool> from_11{false};

constexpr bool headers_from_11() {
#if defined(TRT_MAJOR_RTX)
  return TRT_MAJOR_RTX > 1 || TRT_MINOR_RTX >= 5;
#else
  return NV_TENSORRT_MAJOR >= 11;
#endif
}

// The version of the library that a finder belongs to; that of the headers where it has none.
bool is_from_11(void* finder) {
  Dl_info owner{};
  const void* functions = *static_cast<const void* const*>(finder);
  if (dladdr(functions, &owner) == 0 || owner.dli_fname == nullptr) return headers_from_11();
  void* library = dlopen(owner.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return headers_from_11();
  using Version = std::int32_t (*)();
  const auto major = reinterpret_cast<Version>(dlsym(library, "getInferLibMajorVersion"));
  const auto minor = reinterpret_cast<Version>(dlsym(library, "getInferLibMinorVersion"));
  dlclose(library);  // it stays loaded: it is the caller
  if (major == nullptr || minor == nullptr) return headers_from_11();
  const bool rtx = major() < 8;  // TensorRT-RTX counts from 1, plugins of this kind began with 10
  return rtx ? major() > 1 || minor() >= 5 : major() >= 11;
}

// False where the caller has no logger.
bool log_to_tensorrt(const char* line) {
  void* finder = logger_finder.load();
  if (finder == nullptr) return false;
  const int slot = from_11.load() ? kSlotFrom11 : kSlotUntil10;
  void* logger = virtual_function<FindLogger>(finder, slot)(finder);
  if (logger == nullptr) return false;
  virtual_function<Log>(logger, slot)(logger, Severity::kERROR, line);
  return true;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  if (finder != nullptr) from_11.store(is_from_11(finder));
  logger_finder.store(finder);
}

void log_error(const char* plugin, const char* what) noexcept {
  char line[1024];  // no allocation: this may be about memory
  std::snprintf(line, sizeof line, "%s::%s: %s", kNamespace, plugin, what);
  bool logged = false;
  try {
    logged = log_to_tensorrt(line);
  } catch (...) {
  }
  if (!logged) std::fprintf(stderr, "%s\n", line);
}

}  // namespace msct::plugin
