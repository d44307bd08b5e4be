# optod_library(NAME FOLDER dir SOURCES ... [PUBLIC ...] [PRIVATE ...])
#   One static library `optod_NAME` for one folder. Files include each other as "trace/graph/graph.h"; a target sees only its own
#   folder and the folders of the libraries it links, because each library publishes an include root that holds one link to its folder.
#   An include that has no arrow in the architecture therefore fails to compile.
function(optod_include_root name folder)
  set(root ${CMAKE_BINARY_DIR}/include/${name})
  get_filename_component(parent ${root}/${folder} DIRECTORY)
  file(MAKE_DIRECTORY ${parent})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/${folder} ${root}/${folder} SYMBOLIC)
  set(OPTOD_INCLUDE_ROOT ${root} PARENT_SCOPE)
endfunction()

function(optod_library name)
  cmake_parse_arguments(A "" "FOLDER" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  optod_include_root(${name} ${A_FOLDER})
  if(A_SOURCES)
    add_library(optod_${name} STATIC ${A_SOURCES})
    target_include_directories(optod_${name} PUBLIC ${OPTOD_INCLUDE_ROOT})
    target_link_libraries(optod_${name} PUBLIC ${A_PUBLIC} PRIVATE ${A_PRIVATE})
  else()
    add_library(optod_${name} INTERFACE)
    target_include_directories(optod_${name} INTERFACE ${OPTOD_INCLUDE_ROOT})
    target_link_libraries(optod_${name} INTERFACE ${A_PUBLIC})
  endif()
endfunction()

# optod_test(NAME SOURCES ... DEPS ... [LABELS ...]): one GoogleTest executable, each case a ctest case.
function(optod_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE OPTOD_GOLDEN_DIR="${CMAKE_SOURCE_DIR}/tests/golden"
    OPTOD_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 TEST_PREFIX "${name}/"
    PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}")
endfunction()
