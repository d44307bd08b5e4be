#pragma once
/// What optoctl prints: aligned tables for people, JSON documents for programs. Everything goes to stdout; errors go to
/// stderr.

#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>

#include <string>
#include <vector>

namespace optod::cli {

/// Rows of cells under a heading; columns as wide as their widest cell (characters, not bytes), the last one free. No
/// rows: "none".
std::string Table(const std::vector<std::string>& heading, const std::vector<std::vector<std::string>>& rows);

/// "name  value" lines, names padded. Empty values are left out.
std::string Fields(const std::vector<std::pair<std::string, std::string>>& fields);

/// A message as one line of JSON with the proto's own field names; fields with default values are there too.
std::string ToJson(const google::protobuf::Message& message);

/// "2026-01-31 12:00:00Z"; "" when absent (0).
std::string TimeText(const google::protobuf::Timestamp& time);

/// 1536 -> "1.5 KiB".
std::string BytesText(int64_t bytes);

/// The last part of a resource name: users/u/sessions/s -> s.
std::string ShortName(const std::string& resource);

/// `text` on one line, at most `width` characters.
std::string OneLine(const std::string& text, size_t width);

}  // namespace optod::cli
