# Replay of tests/golden/trace: comparison (trace_compare) and the replay through the library (trace_replay).
optod_include_root(golden_replay_headers tests/golden_replay)
add_library(optod_golden_trace STATIC ${CMAKE_CURRENT_LIST_DIR}/trace_compare.cc ${CMAKE_CURRENT_LIST_DIR}/trace_replay.cc)
target_include_directories(optod_golden_trace PUBLIC ${OPTOD_INCLUDE_ROOT}/tests)
# Through a running server.
add_library(optod_golden_trace_server STATIC ${CMAKE_CURRENT_LIST_DIR}/trace_server_replay.cc)
target_include_directories(optod_golden_trace_server PUBLIC ${OPTOD_INCLUDE_ROOT}/tests)
target_link_libraries(optod_golden_trace_server PUBLIC optod_golden_trace PkgConfig::HTTPLIB nlohmann_json::nlohmann_json PRIVATE optod_base optod_cli optod_client)
target_link_libraries(optod_golden_trace PUBLIC optod_trace nlohmann_json::nlohmann_json PRIVATE optod_base)
