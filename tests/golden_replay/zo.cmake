add_library(optod_golden_zo STATIC zo_replay.cc)
target_include_directories(optod_golden_zo PUBLIC ${OPTOD_GOLDEN_REPLAY_ROOT})
target_link_libraries(optod_golden_zo PUBLIC optod_zo PRIVATE optod_base nlohmann_json::nlohmann_json)
