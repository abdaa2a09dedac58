# SPDX-License-Identifier: Apache-2.0
# Toolchain file: the plugin library for 64-bit Arm (Jetson, Grace), compiled on x86-64.
#
# nvcc runs here; CUDA's headers and its static runtime for the target are those of the Python
# wheels nvidia-cuda-runtime, -crt and -cccl for aarch64, unpacked into MSCT_CUDA_TARGET
# (include/, lib/).  `make native-aarch64` does all of it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MSCT_CUDA_TARGET)
if(NOT EXISTS "${MSCT_CUDA_TARGET}/lib/libcudart_static.a")
  message(FATAL_ERROR "MSCT_CUDA_TARGET=${MSCT_CUDA_TARGET} holds no lib/libcudart_static.a")
endif()
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_FLAGS
    "-I${MSCT_CUDA_TARGET}/include -isystem ${MSCT_CUDA_TARGET}/include/cccl -L${MSCT_CUDA_TARGET}/lib"
    CACHE STRING "Flags of nvcc")
