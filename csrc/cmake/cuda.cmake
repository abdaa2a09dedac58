# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels, compiled once for whoever links them: target msct_cuda, runtime linked statically.
#
# What `ptxas -v` said of each source file is kept in the build folder, ptxas/*.log.

set(MSCT_CUDA_ARCHITECTURES "80;86;87;89;90;110;120" CACHE STRING
    "Compute capabilities to compile for; the lowest is kept as PTX too, for GPUs not listed")
set(MSCT_NVCC_THREADS "" CACHE STRING "Architectures that one nvcc compiles at a time (default: 1)")

if(NOT CMAKE_CUDA_COMPILER)
  find_program(MSCT_NVCC NAMES "$ENV{CUDACXX}" nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin"
               PATHS /usr/local/cuda/bin)
  if(NOT MSCT_NVCC)
    message(FATAL_ERROR "MSCT_CUDA=ON, but nvcc was not found: install CUDA's toolkit, or set CUDACXX")
  endif()
  set(CMAKE_CUDA_COMPILER "${MSCT_NVCC}")
endif()

# Architectures that this nvcc does not know are left out, and said so.
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch
                OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_VARIABLE why)
if(failed)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} --list-gpu-arch failed: ${why}")
endif()
string(REGEX MATCHALL "compute_[0-9]+" known "${known}")
list(TRANSFORM known REPLACE "compute_" "")
set(MSCT_CUDA_BUILT "")
set(MSCT_CUDA_UNKNOWN "")
foreach(arch IN LISTS MSCT_CUDA_ARCHITECTURES)
  if(NOT arch MATCHES "^[0-9]+$")
    message(FATAL_ERROR "MSCT_CUDA_ARCHITECTURES: ${arch} is no compute capability like 87")
  elseif(arch IN_LIST known)
    list(APPEND MSCT_CUDA_BUILT ${arch})
  elseif(arch EQUAL 110 AND "101" IN_LIST known) # Thor's name in CUDA 12.8 and 12.9
    list(APPEND MSCT_CUDA_BUILT 101)
  else()
    list(APPEND MSCT_CUDA_UNKNOWN ${arch})
  endif()
endforeach()
if(NOT MSCT_CUDA_BUILT)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} knows none of ${MSCT_CUDA_ARCHITECTURES}, only ${known}")
endif()
list(SORT MSCT_CUDA_BUILT COMPARE NATURAL)
if(MSCT_CUDA_UNKNOWN)
  message(STATUS "msct: left out, nvcc does not know them: ${MSCT_CUDA_UNKNOWN}")
endif()
list(TRANSFORM MSCT_CUDA_BUILT APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET MSCT_CUDA_BUILT 0 lowest)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${lowest}-virtual")
message(STATUS "msct: compiling CUDA for ${MSCT_CUDA_BUILT}, with PTX of ${lowest}")

enable_language(CUDA)
if(MSCT_CUDA_TARGET) # another processor's: FindCUDAToolkit would find this machine's
  find_package(Threads REQUIRED)
  set(CUDAToolkit_INCLUDE_DIRS "${MSCT_CUDA_TARGET}/include")
  add_library(msct_cudart INTERFACE)
  target_include_directories(msct_cudart SYSTEM INTERFACE "${MSCT_CUDA_TARGET}/include")
  target_link_libraries(msct_cudart INTERFACE
    "${MSCT_CUDA_TARGET}/lib/libcudart_static.a" Threads::Threads rt ${CMAKE_DL_LIBS})
else()
  find_package(CUDAToolkit REQUIRED)
  add_library(msct_cudart ALIAS CUDA::cudart_static)
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/kernels/*.cu)
if(NOT cuda_sources)
  message(FATAL_ERROR "csrc/kernels holds no .cu file")
endif()
add_library(msct_cuda OBJECT ${cuda_sources})
target_include_directories(msct_cuda PUBLIC csrc)
target_compile_features(msct_cuda PUBLIC cxx_std_17)
target_link_libraries(msct_cuda PUBLIC msct_cudart)
set_target_properties(msct_cuda PROPERTIES
  CUDA_STANDARD 17
  CUDA_EXTENSIONS OFF
  CUDA_RUNTIME_LIBRARY Static
  CUDA_VISIBILITY_PRESET hidden
  POSITION_INDEPENDENT_CODE ON
  CUDA_COMPILER_LAUNCHER "sh;${CMAKE_CURRENT_SOURCE_DIR}/csrc/cmake/ptxas-log.sh;${CMAKE_CURRENT_BINARY_DIR}/ptxas")
target_compile_options(msct_cuda PRIVATE
  -Xptxas=-v -Xcompiler=-Wall,-Wextra,-Wshadow
  $<$<BOOL:${MSCT_NVCC_THREADS}>:--threads=${MSCT_NVCC_THREADS}>)
