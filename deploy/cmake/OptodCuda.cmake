# OPTOD_WITH_CUDA: whether the kernels of cuda/ are built. AUTO builds them where nvcc and the toolkit's libraries are, and not under
# sanitizers (nvcc's host code does not take them).
set(OPTOD_WITH_CUDA OFF)
if(NOT OPTOD_CUDA STREQUAL "OFF" AND NOT (OPTOD_CUDA STREQUAL "AUTO" AND OPTOD_SANITIZE))
  include(CheckLanguage)
  check_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(CMAKE_CUDA_COMPILER AND TARGET CUDA::cublas AND TARGET CUDA::cusolver)
    set(OPTOD_WITH_CUDA ON)
  elseif(NOT OPTOD_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "OPTOD_CUDA=${OPTOD_CUDA}: nvcc, cuBLAS or cuSOLVER is not here")
  endif()
endif()
message(STATUS "CUDA kernels: ${OPTOD_WITH_CUDA}")
