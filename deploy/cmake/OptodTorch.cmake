# Finds LibTorch for the training worker, and for nothing else: the server never links it.
#   OPTOD_TORCH = auto | debian | wheel | off
#     debian  libtorch-dev of the distribution
#     wheel   the `torch` package of a Python environment; OPTOD_TORCH_ROOT names its folder (.../site-packages/torch), else build/venv is searched
#     auto    a wheel when one is found, else Debian's, else no worker
# Sets OPTOD_TORCH_FOUND (the kind, or FALSE) and makes the target optod_torch. Both kinds are linked as plain libraries, not through their own
# CMake packages: those add global flags, and a wheel built for CUDA asks for a CUDA toolkit that computing on the CPU does not need.
set(OPTOD_TORCH auto CACHE STRING "LibTorch of the training worker: auto, debian, wheel or off")
set(OPTOD_TORCH_ROOT "" CACHE PATH "Folder of the torch package of a Python environment")
set_property(CACHE OPTOD_TORCH PROPERTY STRINGS auto debian wheel off)
if(NOT OPTOD_TORCH MATCHES "^(auto|debian|wheel|off)$")
  message(FATAL_ERROR "OPTOD_TORCH: \"${OPTOD_TORCH}\" is not one of auto, debian, wheel, off")
endif()

set(OPTOD_TORCH_FOUND FALSE)
function(optod_try_wheel)
  set(roots ${OPTOD_TORCH_ROOT})
  if(NOT roots)
    file(GLOB roots ${CMAKE_SOURCE_DIR}/build/venv/lib/python3*/site-packages/torch)
  endif()
  foreach(root IN LISTS roots)
    if(EXISTS ${root}/lib/libtorch_cpu.so AND EXISTS ${root}/include/ATen/core/Tensor.h)
      set(OPTOD_TORCH_FOUND wheel PARENT_SCOPE)
      set(OPTOD_TORCH_INCLUDE ${root}/include ${root}/include/torch/csrc/api/include PARENT_SCOPE)
      set(OPTOD_TORCH_LIBRARIES ${root}/lib/libtorch_cpu.so ${root}/lib/libc10.so PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()
function(optod_try_debian)
  find_library(OPTOD_TORCH_CPU torch_cpu PATHS /usr/lib PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE} NO_DEFAULT_PATH)
  find_library(OPTOD_TORCH_C10 c10 PATHS /usr/lib PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE} NO_DEFAULT_PATH)
  find_path(OPTOD_TORCH_HEADERS ATen/core/Tensor.h PATHS /usr/include NO_DEFAULT_PATH)
  if(OPTOD_TORCH_CPU AND OPTOD_TORCH_C10 AND OPTOD_TORCH_HEADERS)
    set(OPTOD_TORCH_FOUND debian PARENT_SCOPE)
    set(OPTOD_TORCH_INCLUDE ${OPTOD_TORCH_HEADERS} ${OPTOD_TORCH_HEADERS}/torch/csrc/api/include PARENT_SCOPE)
    set(OPTOD_TORCH_LIBRARIES ${OPTOD_TORCH_CPU} ${OPTOD_TORCH_C10} PARENT_SCOPE)
  endif()
endfunction()

if(OPTOD_TORCH MATCHES "auto|wheel")
  optod_try_wheel()
endif()
if(NOT OPTOD_TORCH_FOUND AND OPTOD_TORCH MATCHES "auto|debian")
  optod_try_debian()
endif()
if(OPTOD_SANITIZE STREQUAL "thread" AND OPTOD_TORCH STREQUAL "auto")
  set(OPTOD_TORCH_FOUND FALSE)  # its OpenMP run time is not instrumented: every parallel loop would be reported
endif()

if(OPTOD_TORCH_FOUND)
  message(STATUS "LibTorch (${OPTOD_TORCH_FOUND}): ${OPTOD_TORCH_LIBRARIES}; building optod-worker")
  add_library(optod_torch INTERFACE)
  target_include_directories(optod_torch SYSTEM INTERFACE ${OPTOD_TORCH_INCLUDE})
  target_link_libraries(optod_torch INTERFACE ${OPTOD_TORCH_LIBRARIES})
  # Registration of kernels happens in constructors that no symbol refers to.
  target_link_options(optod_torch INTERFACE -Wl,--no-as-needed)
elseif(OPTOD_TORCH MATCHES "debian|wheel")
  message(FATAL_ERROR "OPTOD_TORCH=${OPTOD_TORCH}: not found (Debian: package libtorch-dev; wheel: set OPTOD_TORCH_ROOT)")
else()
  message(STATUS "LibTorch: not found or off; optod-worker is LEFT OUT, training jobs will fail to start (deploy/install-deps.sh --build installs it)")
endif()
