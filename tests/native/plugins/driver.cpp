// SPDX-License-Identifier: Apache-2.0
// Drives the plugin library as TensorRT does, with no TensorRT library: its plugin headers are
// interfaces only.
//
//   driver LIBRARY [no-gpu]
//
// Prints "PASS name" or "FAIL name: why" a line; exits with 1 if anything failed.  "no-gpu" says
// that there is no GPU, so that a right call of enqueue must come back with an error.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "calls.h"

// The library's allocations, too: it takes the first that are exported, and this program exports
// these.  Not inlined: GCC would see a free() of what new gave.
#define NOINLINE __attribute__((noinline))
static std::atomic<long> allocations{0};
NOINLINE void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
NOINLINE void operator delete(void* memory) noexcept { std::free(memory); }
NOINLINE void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

struct Recorder : ILogger {
  void log(Severity severity, const char* message) noexcept override {
    worst = std::min(worst, static_cast<int>(severity));
    text += std::string(message) + "\n";
  }
  std::string text;
  int worst = 9;
} recorder;

struct Finder : ILoggerFinder {
  ILogger* findLogger() override { return &recorder; }
} finder;

// `call` must fail and leave exactly one line, an error of `plugin` that contains `expected`.
void refused(const std::string& name, const char* plugin, const std::string& expected,
             const std::function<bool()>& call) {
  recorder.text.clear();
  recorder.worst = 9;
  if (call()) return report(name, "it was accepted");
  const std::string& line = recorder.text;
  const std::string start = std::string("msct::") + plugin + ": ";
  if (line.find('\n') + 1 != line.size()) return report(name, "not one line: " + line);
  if (line.rfind(start, 0) != 0 || line.find(expected) == std::string::npos) {
    return report(name, "the log says: " + line);
  }
  check(name, recorder.worst == static_cast<int>(ILogger::Severity::kERROR));
}

void accepted(const std::string& name, const std::function<bool()>& call) {
  recorder.text.clear();
  const bool good = call();
  report(name, good && recorder.text.empty() ? "" : "refused: " + recorder.text);
}

bool on_shape_change(const Plugin& plugin, const Descs& inputs) {
  const PluginTensorDesc out = inputs[0];
  return runtime_of(plugin)->onShapeChange(inputs.data(), static_cast<std::int32_t>(inputs.size()),
                                           &out, 1) == 0;
}

bool configure(const Plugin& plugin, const Descs& min, const Descs& max) {
  std::vector<DynamicPluginTensorDesc> all;
  for (std::size_t i = 0; i < min.size(); ++i) {
    DynamicPluginTensorDesc one{};
    one.desc = max[i];
    for (std::int32_t k = 0; k < one.desc.dims.nbDims; ++k) {
      if (min[i].dims.d[k] != max[i].dims.d[k]) one.desc.dims.d[k] = -1;
    }
    one.min = min[i].dims;
    one.opt = min[i].dims;
    one.max = max[i].dims;
    all.push_back(one);
  }
  const DynamicPluginTensorDesc out = all[0];
  return build_of(plugin)->configurePlugin(all.data(), static_cast<std::int32_t>(all.size()), &out,
                                           1) == 0;
}

bool enqueue(const Plugin& plugin, const Descs& inputs) {
  const PluginTensorDesc out = inputs[0];
  static char memory[64];  // never read: no kernel starts where this is called
  const std::vector<const void*> from(inputs.size(), memory);
  void* to = memory;
  return runtime_of(plugin)->enqueue(inputs.data(), &out, from.data(), &to, nullptr, nullptr) == 0;
}

// Positions are asked in turn, each with whatever lies behind it in memory: poison here.
bool takes_types(const Plugin& plugin, const std::vector<DataType>& types,
                 TensorFormat format = TensorFormat::kLINEAR) {
  const auto inputs = static_cast<std::int32_t>(types.size()) - 1;
  std::vector<DynamicPluginTensorDesc> all(types.size());
  std::memset(static_cast<void*>(all.data()), 0xA5, all.size() * sizeof all[0]);
  for (std::size_t i = 0; i < types.size(); ++i) {
    all[i] = {};
    all[i].desc = desc(dims({1}), types[i]);
    all[i].desc.format = format;
    if (!build_of(plugin)->supportsFormatCombination(static_cast<std::int32_t>(i), all.data(),
                                                     inputs, 1)) {
      return false;
    }
  }
  return true;
}

struct Extent : IDimensionExpr {};
struct Builder : IExprBuilder {};

bool output_shapes(const Plugin& plugin, const Descs& inputs, std::string& why) {
  static Extent extents[9][Dims::MAX_DIMS];
  std::vector<DimsExprs> from(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    from[i].nbDims = inputs[i].dims.nbDims;
    for (std::int32_t k = 0; k < from[i].nbDims; ++k) from[i].d[k] = &extents[i][k];
  }
  DimsExprs to{};
  Builder builder;
  if (build_of(plugin)->getOutputShapes(from.data(), static_cast<std::int32_t>(from.size()),
                                        nullptr, 0, &to, 1, builder) != 0) {
    return false;
  }
  why = to.nbDims == 4 ? "" : "the output has another rank";
  for (std::int32_t k = 0; k < 4; ++k) {
    if (to.d[k] != &extents[0][k]) why = "the output has not the first input's shape";
  }
  return true;
}

// What holds of both plugins, given a right set of inputs.
void common(const std::string& op, IPluginCreatorV3One& creator, const Plugin& plugin,
            const Descs& right, const std::function<Descs(DataType)>& of_type, bool gpu) {
  const auto inputs = static_cast<std::int32_t>(right.size());
  const char* name = creator.getPluginName();
  auto* core = static_cast<IPluginV3OneCore*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  check(op + " names", std::string(core->getPluginName()) == op && op == name &&
                           !std::strcmp(core->getPluginVersion(), "1") &&
                           !std::strcmp(core->getPluginNamespace(), "msct") &&
                           !std::strcmp(creator.getPluginVersion(), "1") &&
                           !std::strcmp(creator.getPluginNamespace(), "msct"));
  check(op + " interfaces",
        !std::strcmp(build_of(plugin)->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") &&
            !std::strcmp(runtime_of(plugin)->getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME") &&
            !std::strcmp(core->getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE"));
  check(op + " one output", build_of(plugin)->getNbOutputs() == 1);
  check(op + " no tactics", build_of(plugin)->getNbTactics() == 0);
  const DynamicPluginTensorDesc none{};
  check(op + " no workspace",
        build_of(plugin)->getWorkspaceSize(&none, inputs, &none, 1) == 0);

  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    const std::string typed = op + " type " + std::to_string(static_cast<int>(type));
    const Descs descs = of_type(type);
    std::vector<DataType> types;
    for (const PluginTensorDesc& one : descs) types.push_back(one.type);
    DataType out = DataType::kBOOL;
    accepted(typed + " output type", [&] {
      return build_of(plugin)->getOutputDataTypes(&out, 1, types.data(), inputs) == 0 &&
             out == type;
    });
    accepted(typed + " shapes", [&] { return on_shape_change(plugin, descs); });
    types.push_back(type);
    check(typed + " formats", takes_types(plugin, types));
    check(typed + " only linear", !takes_types(plugin, types, TensorFormat::kCHW4) &&
                                      !takes_types(plugin, types, TensorFormat::kHWC8));
    for (std::size_t i = 0; i < types.size(); ++i) {  // another type at any one position
      std::vector<DataType> wrong = types;
      wrong[i] = wrong[i] == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF;
      check(typed + " mixed at " + std::to_string(i), !takes_types(plugin, wrong));
      wrong[i] = DataType::kINT8;
      check(typed + " int8 at " + std::to_string(i), !takes_types(plugin, wrong));
    }
  }
  {
    std::vector<DataType> types(right.size(), DataType::kINT32);
    DataType out = DataType::kBOOL;
    refused(op + " int32", name, "int32; it must be float32, float16 or bfloat16", [&] {
      return build_of(plugin)->getOutputDataTypes(&out, 1, types.data(), inputs) == 0;
    });
    refused(op + " too few inputs", name, "inputs and 1 output, not", [&] {
      return build_of(plugin)->getOutputDataTypes(&out, 1, types.data(), inputs - 1) == 0;
    });
  }

  std::string why;
  accepted(op + " output shape", [&] { return output_shapes(plugin, right, why); });
  report(op + " output shape is the first input's", why);
  for (std::size_t i = 0; i < right.size(); ++i) {
    Descs wrong = right;
    wrong[i].dims = dims({2, 3});
    const std::string at = " rank 2 at " + std::to_string(i);
    refused(op + at, name, "has rank 2; it must be [", [&] {
      return output_shapes(plugin, wrong, why);
    });
    refused(op + at + " at run time", name, "has rank 2; it must be [",
            [&] { return on_shape_change(plugin, wrong); });
  }
  Descs strange = right;
  strange[0].format = TensorFormat::kCHW4;
  refused(op + " format at run time", name, "must have the linear format",
          [&] { return on_shape_change(plugin, strange); });

  accepted(op + " profile", [&] { return configure(plugin, right, right); });
  Descs open = right;
  open[0].dims.d[0] = -1;
  accepted(op + " unknown bounds wait", [&] { return configure(plugin, open, open); });

  // Fields come back in the runtime phase, from a clone too, and outlive what they came from.
  Plugin copy(runtime_of(plugin)->attachToContext(nullptr));
  check(op + " attachToContext clones", copy && copy.get() != plugin.get() &&
                                            build_of(copy) != build_of(plugin));
  Plugin second(copy->clone());
  const std::string summary = build_of(plugin)->getMetadataString();
  copy.reset();
  Plugin restored = create(creator, fields_of(second), TensorRTPhase::kRUNTIME);
  check(op + " serialised", restored && build_of(restored)->getMetadataString() == summary);
  check(op + " timing id is the fields'",
        build_of(restored)->getTimingCacheID() == summary && !summary.empty());
  const auto before = fields_of(plugin);
  const auto after = fields_of(restored);
  bool same = before.size() == after.size();
  for (std::size_t i = 0; same && i < before.size(); ++i) {
    same = !std::strcmp(before[i].name, after[i].name) && before[i].type == after[i].type &&
           before[i].length == after[i].length && before[i].data != after[i].data &&
           !std::memcmp(before[i].data, after[i].data,
                        static_cast<std::size_t>(4 * before[i].length));
  }
  check(op + " fields come back", same);
  const PluginFieldCollection* declared = creator.getFieldNames();
  same = declared->nbFields == static_cast<std::int32_t>(before.size());
  for (std::size_t i = 0; same && i < before.size(); ++i) {
    same = !std::strcmp(declared->fields[i].name, before[i].name) &&
           declared->fields[i].type == before[i].type;
  }
  check(op + " fields are declared", same);
  for (std::size_t i = 0; i < before.size(); ++i) {
    std::vector<PluginField> fields = before;
    fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i));
    const std::string field = std::string("field '") + before[i].name + "'";
    refused(op + " without " + field, name, field + " is missing",
            [&] { return create(creator, fields) != nullptr; });
    fields = before;
    fields[i].type = PluginFieldType::kFLOAT64;
    refused(op + " wrong type of " + field, name, field + " is float64, not",
            [&] { return create(creator, fields) != nullptr; });
    fields = before;
    fields[i].length += 1;
    refused(op + " wrong length of " + field, name, field + " has ",
            [&] { return create(creator, fields) != nullptr; });
    fields = before;
    fields[i].data = nullptr;
    refused(op + " no data of " + field, name, field + " has 0 values",
            [&] { return create(creator, fields) != nullptr; });
    fields = before;
    fields.push_back(before[i]);
    refused(op + " twice " + field, name, field + " is given twice",
            [&] { return create(creator, fields) != nullptr; });
  }
  std::vector<PluginField> more = before;
  more.emplace_back("temperature", before[0].data, before[0].type, before[0].length);
  refused(op + " unknown field", name, "field 'temperature' is unknown; its fields are ",
          [&] { return create(creator, more) != nullptr; });
  refused(op + " null fields", name, "is missing", [&] {
    return Plugin(creator.createPlugin("a layer", nullptr, TensorRTPhase::kBUILD)) != nullptr;
  });

  // The same checks run in enqueue, where nothing may be allocated.
  const long allocated = allocations;
  const bool good = on_shape_change(plugin, right);
  check(op + " no allocation", good && right.size() > 0 && allocations == allocated);
  strange = right;
  strange.back().dims.d[0] += 1;  // no kernel sees this: it gets pointers
  refused(op + " enqueue says no", name, "it must be [", [&] { return enqueue(plugin, strange); });
  if (!gpu) {
    refused(op + " enqueue without a GPU", name, " is [2, ",
            [&] { return enqueue(plugin, right); });
  }
}

void attention(IPluginCreatorV3One& creator, bool gpu) {
  const std::string op = "DifferentialCrossAttention";
  const char* name = creator.getPluginName();
  const float scale = 0.17677669F;
  const Plugin plugin = create(creator, {{"scale", &scale, PluginFieldType::kFLOAT32, 1}});
  if (!plugin) return report(op + " create", "it was refused: " + recorder.text);
  const Descs right = attention_inputs();
  const auto of_type = [](DataType type) { return attention_inputs(2, 4, 51, 32, type); };
  common(op, creator, plugin, right, of_type, gpu);
  check(op + " scale", *static_cast<const float*>(fields_of(plugin)[0].data) == scale);

  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF}) {
    refused(op + " scale " + std::to_string(bad), name, "scale must be finite", [&] {
      return create(creator, {{"scale", &bad, PluginFieldType::kFLOAT32, 1}}) != nullptr;
    });
  }
  for (const std::int64_t t : {1, 2, 51, 150, 511, 512}) {
    for (const std::int64_t d : {8, 16, 24, 32, 64, 96, 120, 128}) {
      for (const std::int64_t h : {1, 3, 4, 8}) {
        accepted(op + " T " + std::to_string(t) + " D " + std::to_string(d) + " h " +
                     std::to_string(h),
                 [&] { return on_shape_change(plugin, attention_inputs(3, h, t, d)); });
      }
    }
  }
  for (const std::int64_t d : {0, 4, 20, 136}) {
    refused(op + " D " + std::to_string(d), name, "multiple of 8, at most 128",
            [&] { return on_shape_change(plugin, attention_inputs(1, 4, 51, d)); });
  }
  for (const std::int64_t t : {0, 513, 600}) {
    refused(op + " T " + std::to_string(t), name, "tokens must be from 1 to 512",
            [&] { return on_shape_change(plugin, attention_inputs(1, 4, t, 32)); });
  }
  refused(op + " profile to 600", name, "Q_self is [2, 4, 600, 32]; tokens must be", [&] {
    return configure(plugin, right, attention_inputs(2, 4, 600, 32));
  });
  for (std::size_t i = 1; i < 4; ++i) {
    Descs wrong = right;
    wrong[i].dims.d[2] = 50;
    refused(op + " shape of input " + std::to_string(i), name,
            "is [2, 4, 50, 32]; with Q_self it must be [2, 4, 51, 32]",
            [&] { return on_shape_change(plugin, wrong); });
  }
  Descs wrong = right;
  wrong[4].dims.d[0] = 1;
  refused(op + " lam a head", name, "lam is [1]; with Q_self it must be [4]",
          [&] { return on_shape_change(plugin, wrong); });
  wrong = right;
  wrong[4].type = DataType::kHALF;
  refused(op + " lam float16", name, "lam is float16; it must be float32 always",
          [&] { return on_shape_change(plugin, wrong); });
  wrong = right;
  wrong[2].type = DataType::kFLOAT;
  refused(op + " mixed types", name, "K is float32 and Q_self is float16; they must have one type",
          [&] { return on_shape_change(plugin, wrong); });
}

void convolution(IPluginCreatorV3One& creator, bool gpu) {
  const std::string op = "MultiScaleKeyConv";
  const char* name = creator.getPluginName();
  const auto with = [&](std::vector<std::int32_t> sizes, std::int32_t prefix) {
    return create(creator, {{"kernel_sizes", sizes.data(), PluginFieldType::kINT32,
                             static_cast<std::int32_t>(sizes.size())},
                            {"prefix_tokens", &prefix, PluginFieldType::kINT32, 1}});
  };
  const Plugin plugin = with({1, 3, 5, 7}, 1);
  if (!plugin) return report(op + " create", "it was refused: " + recorder.text);
  const Descs right = conv_inputs();
  const auto of_type = [](DataType type) { return conv_inputs(2, 8, 51, 64, type); };
  common(op, creator, plugin, right, of_type, gpu);
  check(op + " summary", std::string(build_of(plugin)->getMetadataString()) ==
                             "kernel_sizes=[1, 3, 5, 7] prefix_tokens=1");

  const std::int64_t wide[] = {1, 3, 5, 7};
  const std::int64_t one = 1;
  const Plugin from_64 = create(creator, {{"prefix_tokens", &one, PluginFieldType::kINT64, 1},
                                          {"kernel_sizes", wide, PluginFieldType::kINT64, 4}});
  check(op + " int64 fields", from_64 && !std::strcmp(build_of(from_64)->getMetadataString(),
                                                      build_of(plugin)->getMetadataString()));
  const std::int64_t huge[] = {1, 3, 5, std::int64_t{7} << 32};
  refused(op + " int64 out of range", name, "'kernel_sizes' is out of range: 30064771072", [&] {
    return create(creator, {{"prefix_tokens", &one, PluginFieldType::kINT64, 1},
                            {"kernel_sizes", huge, PluginFieldType::kINT64, 4}}) != nullptr;
  });
  for (const std::int32_t size : {-1, 0, 2, 33}) {
    refused(op + " kernel size " + std::to_string(size), name, "kernel sizes must be odd",
            [&] { return with({1, 3, size, 7}, 1) != nullptr; });
  }
  refused(op + " prefix -1", name, "prefix_tokens must be",
          [&] { return with({1, 3, 5, 7}, -1) != nullptr; });
  accepted(op + " no prefix", [&] { return on_shape_change(with({1, 3, 5, 7}, 0), right); });
  refused(op + " prefix beyond the tokens", name, "prefix_tokens must be",
          [&] { return on_shape_change(with({1, 3, 5, 7}, 52), right); });

  for (const std::int64_t t : {1, 2, 51, 512}) {
    for (const std::int64_t d : {8, 24, 64, 128}) {
      for (const std::int64_t h : {4, 8, 12}) {
        accepted(op + " T " + std::to_string(t) + " D " + std::to_string(d) + " h " +
                     std::to_string(h),
                 [&] { return on_shape_change(plugin, conv_inputs(3, h, t, d)); });
      }
    }
  }
  for (const std::int64_t h : {0, 2, 6}) {
    refused(op + " heads " + std::to_string(h), name, "heads must be a multiple of 4",
            [&] { return on_shape_change(plugin, conv_inputs(1, h, 51, 64)); });
  }
  for (const std::int64_t d : {0, 20, 136}) {
    refused(op + " D " + std::to_string(d), name, "multiple of 8, at most 128",
            [&] { return on_shape_change(plugin, conv_inputs(1, 4, 51, d)); });
  }
  refused(op + " T 600", name, "tokens must be from 1 to 512",
          [&] { return on_shape_change(plugin, conv_inputs(1, 4, 600, 64)); });
  refused(op + " profile to 600", name, "K is [2, 8, 600, 64]; tokens must be",
          [&] { return configure(plugin, right, conv_inputs(2, 8, 600, 64)); });
  Descs wrong = right;
  std::swap(wrong[2], wrong[3]);
  refused(op + " weights", name,
          "W1 is [2, 2, 5, 5]; with K and kernel_sizes it must be [2, 2, 3, 3]",
          [&] { return on_shape_change(plugin, wrong); });
  wrong = right;
  wrong[7].dims.d[0] = 8;
  refused(op + " biases", name, "b2 is [8]; with K it must be [2]",
          [&] { return on_shape_change(plugin, wrong); });
  wrong = right;
  wrong[8].type = DataType::kFLOAT;
  refused(op + " mixed types", name, "b3 is float32 and K is float16; they must have one type",
          [&] { return on_shape_change(plugin, wrong); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "driver LIBRARY [no-gpu]\n"), 2;
  const bool gpu = argc < 3 || std::strcmp(argv[2], "no-gpu") != 0;
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  using GetCreators = IPluginCreatorInterface* const* (*)(std::int32_t&);
  using SetFinder = void (*)(ILoggerFinder*);
  const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  const auto set_finder = reinterpret_cast<SetFinder>(dlsym(library, "setLoggerFinder"));
  if (get_creators == nullptr || set_finder == nullptr) {
    return std::fprintf(stderr, "%s\n", dlerror()), 2;
  }

  std::int32_t count = 0;
  IPluginCreatorInterface* const* creators = get_creators(count);
  check("two creators", count == 2);
  std::vector<IPluginCreatorV3One*> ones;
  for (std::int32_t i = 0; i < count; ++i) {
    check("creator " + std::to_string(i) + " is V3ONE",
          !std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
    ones.push_back(static_cast<IPluginCreatorV3One*>(creators[i]));
  }
  set_finder(&finder);
  convolution(*ones[0], gpu);
  attention(*ones[1], gpu);

  // No logger: the line goes to stderr, which the caller of this program reads.
  set_finder(nullptr);
  recorder.text.clear();
  check("refused without a logger", create(*ones[1], {}) == nullptr && recorder.text.empty());
  check("unloads", dlclose(library) == 0 && dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) == nullptr);
  return failures == 0 ? 0 : 1;
}
