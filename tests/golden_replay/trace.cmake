# Replay of tests/golden/trace: comparison (trace_compare) and the replay through the library (trace_replay).
optod_include_root(golden_replay_headers tests/golden_replay)
add_library(optod_golden_trace STATIC ${CMAKE_CURRENT_LIST_DIR}/trace_compare.cc ${CMAKE_CURRENT_LIST_DIR}/trace_replay.cc)
target_include_directories(optod_golden_trace PUBLIC ${OPTOD_INCLUDE_ROOT}/tests)
target_link_libraries(optod_golden_trace PUBLIC optod_trace nlohmann_json::nlohmann_json PRIVATE optod_base)
