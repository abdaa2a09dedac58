# SPDX-License-Identifier: Apache-2.0
# The TensorRT plugin library: target msct_plugins, file libmsct_plugins.so.
#
# It needs TensorRT's headers and no library of TensorRT: the process that loads it brings one.
# Headers are looked for in TENSORRT_ROOT, on the system, and in the Python package kernel-lens.

set(MSCT_PLUGINS_REASON "")
set(MSCT_TENSORRT "")
if(NOT MSCT_PLUGINS)
  set(MSCT_PLUGINS_REASON "it was switched off at build time (MSCT_PLUGINS=OFF)")
  return()
endif()

set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "Folder of TensorRT, with include/NvInfer.h")
if(TENSORRT_ROOT)
  find_path(MSCT_TENSORRT_INCLUDE NvInfer.h NO_DEFAULT_PATH
            PATHS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
  if(NOT MSCT_TENSORRT_INCLUDE)
    message(FATAL_ERROR "TENSORRT_ROOT=${TENSORRT_ROOT} holds no NvInfer.h: correct it or unset it")
  endif()
endif()
find_path(MSCT_TENSORRT_INCLUDE NvInfer.h NO_CMAKE_FIND_ROOT_PATH
          PATHS "/usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu" /usr/include /usr/local/include
                ${CUDAToolkit_INCLUDE_DIRS})
if(NOT MSCT_TENSORRT_INCLUDE AND Python_EXECUTABLE)
  # sysconfig as well: under pip's build isolation the import path leaves the environment out.
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import importlib.util, pathlib, sysconfig
spec = importlib.util.find_spec("kernel_lens")
roots = list(spec.submodule_search_locations) if spec else []
roots += [f"{sysconfig.get_path('purelib')}/kernel_lens"]
found = [p for r in roots for p in pathlib.Path(r).glob("include/tensorrt/NvInfer.h")]
print(found[0].parent.as_posix() if found else "", end="")
]]
    OUTPUT_VARIABLE kernel_lens RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE} could not be asked for kernel-lens")
  endif()
  if(kernel_lens)
    set(MSCT_TENSORRT_INCLUDE "${kernel_lens}" CACHE PATH "Folder of NvInfer.h" FORCE)
  endif()
endif()
if(NOT MSCT_TENSORRT_INCLUDE)
  set(MSCT_PLUGINS_REASON "TensorRT's headers were not found at build time (set TENSORRT_ROOT, or pip install --no-deps kernel-lens)")
  if(NOT MSCT_PLUGINS STREQUAL "AUTO")
    message(FATAL_ERROR "MSCT_PLUGINS=ON: ${MSCT_PLUGINS_REASON}")
  endif()
  message(STATUS "msct: no plugin library: ${MSCT_PLUGINS_REASON}")
  return()
endif()

# The version: NV_TENSORRT_MAJOR is a number, or the name of one, and TensorRT-RTX counts from 1.
file(STRINGS "${MSCT_TENSORRT_INCLUDE}/NvInferVersion.h" lines
     REGEX "define +(NV_TENSORRT|TRT)_(MAJOR|MINOR)(_ENTERPRISE|_RTX)? +[0-9]+")
foreach(part MAJOR MINOR)
  if(NOT "${lines}" MATCHES "_${part}(_ENTERPRISE|_RTX)? +([0-9]+)")
    message(FATAL_ERROR "${MSCT_TENSORRT_INCLUDE}/NvInferVersion.h: no version was found in it")
  endif()
  set(version_${part} "${CMAKE_MATCH_2}")
endforeach()
set(MSCT_TENSORRT "${version_MAJOR}.${version_MINOR}")
set(plugin_standard cxx_std_17)
if("${lines}" MATCHES "_MAJOR_RTX")
  string(PREPEND MSCT_TENSORRT "RTX ")
elseif(MSCT_TENSORRT VERSION_LESS 10.0)
  message(FATAL_ERROR "TensorRT ${MSCT_TENSORRT} in ${MSCT_TENSORRT_INCLUDE} has no IPluginV3: 10.0 or "
                      "newer is needed (JetPack 6.1), or MSCT_PLUGINS=OFF")
elseif(MSCT_TENSORRT VERSION_GREATER_EQUAL 11.5)
  set(plugin_standard cxx_std_20)
endif()
message(STATUS "msct: TensorRT ${MSCT_TENSORRT} headers in ${MSCT_TENSORRT_INCLUDE}")

file(GLOB plugin_sources CONFIGURE_DEPENDS csrc/plugins/*.cpp)
if(NOT plugin_sources)
  message(FATAL_ERROR "csrc/plugins holds no .cpp file")
endif()
add_library(msct_plugins SHARED ${plugin_sources})
target_link_libraries(msct_plugins PRIVATE msct_cuda)
target_include_directories(msct_plugins SYSTEM PRIVATE "${MSCT_TENSORRT_INCLUDE}")
target_compile_features(msct_plugins PRIVATE ${plugin_standard})
set_target_properties(msct_plugins PROPERTIES
  CXX_EXTENSIONS OFF
  CXX_VISIBILITY_PRESET hidden
  VISIBILITY_INLINES_HIDDEN ON
  POSITION_INDEPENDENT_CODE ON
  SKIP_BUILD_RPATH ON)
target_compile_options(msct_plugins PRIVATE -Wall -Wextra -Wshadow)
# Nothing of the static CUDA runtime is shown, and nothing is left for a library of TensorRT to fill.
target_link_options(msct_plugins PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,defs)
install(TARGETS msct_plugins LIBRARY DESTINATION runtime)
