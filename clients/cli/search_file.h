#pragma once
/// The YAML file of `optoctl search FILE`, read strictly. Pure functions.
///
///   parameters: {prompt: {value: "Answer.", description: "the instruction"}}     # these and the other keys of
///   optimizer: {name: optoprime, llm: default, seed: 1}                          # `optoctl session create FILE`,
///   session: users/root/sessions/s1                                              # or a session that exists
///   workflow:                                # what the server evaluates, in its sandbox (trace/workflow/workflow.h);
///     data: {file: cases.jsonl, limit: 50}   # absent: programs evaluate by AskSearch and TellSearch
///     steps: {...}
///     guide: {...}
///   search: {algorithm: beam, validation_tasks: 10, batch: 4, candidates: 2, proposals: 2, max_steps: 5, target: 0.9}
///
/// Keys of `search` are the fields of SearchSpec (search.proto); beside them `parallel`, evaluations at once, and
/// `timeout` of one evaluation. Rows: the last `validation_tasks` validate, those before train.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optod/v1/search.pb.h"
#include "optod/v1/session.pb.h"

namespace optod::cli {

struct SearchFile {
  std::string session;  ///< "" = a new one by `create`
  v1::CreateSessionRequest create;
  v1::SearchSpec spec;    ///< rows of a data file are not in it yet
  std::string data_file;  ///< relative to the folder of FILE; "" = none
  int64_t limit = 0;      ///< of its rows; 0 = all
};

/// INVALID_ARGUMENT: "FILE:LINE: key: ...".
absl::StatusOr<SearchFile> ParseSearchFile(const std::string& text, const std::string& file_name);

/// Puts the rows of the data file into the spec. INVALID_ARGUMENT: no rows.
absl::Status SetRows(const std::vector<std::string>& rows, SearchFile* file);

}  // namespace optod::cli
