#include "clients/cli/optimize/candidate_tree.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/fs.h"
#include "base/status.h"
#include "clients/cli/optimize/python_function.h"

namespace optod::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxValueBytes = 1 << 20;  // session.proto: Value.text

bool IsUtf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t n = lead < 0x80                   ? 1
                     : lead >= 0xc2 && lead < 0xe0 ? 2
                     : lead >= 0xe0 && lead < 0xf0 ? 3
                     : lead >= 0xf0 && lead < 0xf5 ? 4
                                                   : 0;
    if (n == 0 || i + n > text.size()) return false;
    for (size_t k = 1; k < n; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return false;
    i += n;
  }
  return true;
}

absl::Status Named(const std::string& parameter, const absl::Status& status) {
  return absl::Status(status.code(), Cat("parameters.", parameter, ": ", std::string(status.message())));
}

std::string SizeText(int64_t bytes) { return Cat((bytes + (1 << 19)) >> 20, " MiB"); }

// A scalar of the YAML file as it must be written for `value`.
std::string YamlScalar(const ParameterEntry& entry, const std::string& value) {
  if (entry.type != ValueType::kText) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else
      out += c;
  }
  return out + "\"";
}

// Where the scalar that begins at `begin` ends: quoted, or plain up to a comment, a flow sign or the line's end.
size_t ScalarEnd(const std::string& text, size_t begin) {
  const char quote = text[begin];
  if (quote == '"' || quote == '\'') {
    for (size_t i = begin + 1; i < text.size(); ++i) {
      if (quote == '"' && text[i] == '\\')
        ++i;
      else if (text[i] == quote && quote == '\'' && i + 1 < text.size() && text[i + 1] == quote)
        ++i;
      else if (text[i] == quote)
        return i + 1;
    }
    return text.size();
  }
  size_t end = begin;
  while (end < text.size() && text[end] != '\n' && text[end] != ',' && text[end] != '}' && text[end] != ']' &&
         !(text[end] == '#' && text[end - 1] == ' '))
    ++end;
  while (end > begin && (text[end - 1] == ' ' || text[end - 1] == '\r' || text[end - 1] == '\t')) --end;
  return end;
}

size_t ByteOf(const std::string& text, int line, int column) {
  size_t at = 0;
  for (int i = 0; i < line; ++i) at = text.find('\n', at) + 1;
  return at + static_cast<size_t>(column);
}

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

}  // namespace

bool MatchesPattern(const std::string& pattern, const std::string& text) {
  size_t p = 0, t = 0, star = std::string::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == text[t] || (pattern[p] == '?' && text[t] != '/')))
      ++p, ++t;
    else if (p < pattern.size() && pattern[p] == '*')
      star = p++, resume = t;
    else if (star != std::string::npos && text[resume] != '/')
      p = star + 1, t = ++resume;
    else
      return false;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

absl::StatusOr<CandidateTree> CandidateTree::Open(const std::string& folder, const std::string& file_name,
                                                  const std::string& file_text, const OptimizeFile& file,
                                                  TreeLimits limits) {
  CandidateTree tree;
  tree.folder_ = folder;
  tree.file_name_ = file_name;
  tree.file_text_ = file_text;
  tree.parameters_ = file.parameters;
  tree.exclude_ = file.evaluate.exclude;
  tree.limits_ = limits;
  for (const ParameterEntry& entry : file.parameters) {
    if (entry.kind == ParameterEntry::Kind::kValue) {
      tree.start_[entry.name] = entry.value;
      continue;
    }
    if (!tree.files_.count(entry.path)) {
      auto text = PosixFs().ReadFile((fs::path(folder) / entry.path).string());
      if (!text.ok()) return Named(entry.name, NotFound("file: ", entry.path, " cannot be read"));
      if (text->size() > kMaxValueBytes)
        return Named(entry.name, InvalidArgument("file: ", entry.path, " is larger than 1 MiB"));
      if (!IsUtf8(*text)) return Named(entry.name, InvalidArgument("file: ", entry.path, " is not UTF-8 text"));
      tree.files_[entry.path] = *std::move(text);
    }
    const std::string& text = tree.files_[entry.path];
    if (entry.kind == ParameterEntry::Kind::kFile) {
      tree.start_[entry.name] = text;
      continue;
    }
    auto function = GetFunction(text, entry.function);
    if (!function.ok())
      return Named(entry.name, absl::Status(function.status().code(),
                                            Cat(entry.path, ": ", std::string(function.status().message()))));
    tree.start_[entry.name] = *std::move(function);
  }
  return tree;
}

absl::StatusOr<std::vector<FileChange>> CandidateTree::Changes(const Values& values, bool with_inline) const {
  std::map<std::string, std::string> after = files_;
  std::string yaml = file_text_;
  std::vector<const ParameterEntry*> inline_entries;
  for (const ParameterEntry& entry : parameters_) {
    const auto value = values.find(entry.name);
    if (value == values.end() || value->second == start_.at(entry.name)) continue;
    if (entry.kind == ParameterEntry::Kind::kFile) after[entry.path] = value->second;
    if (entry.kind == ParameterEntry::Kind::kFunction) {
      auto replaced = ReplaceFunction(after[entry.path], entry.function, value->second);
      if (!replaced.ok()) return Named(entry.name, replaced.status());
      after[entry.path] = *std::move(replaced);
    }
    if (entry.kind == ParameterEntry::Kind::kValue && with_inline && entry.value_line >= 0)
      inline_entries.push_back(&entry);
  }
  // Last place first, so that earlier places stay where they are.
  std::sort(inline_entries.begin(), inline_entries.end(), [](const ParameterEntry* a, const ParameterEntry* b) {
    return std::pair(a->value_line, a->value_column) > std::pair(b->value_line, b->value_column);
  });
  for (const ParameterEntry* entry : inline_entries) {
    const size_t begin = ByteOf(yaml, entry->value_line, entry->value_column);
    yaml.replace(begin, ScalarEnd(yaml, begin) - begin, YamlScalar(*entry, values.at(entry->name)));
  }
  std::vector<FileChange> changes;
  for (const auto& [path, text] : after)
    if (text != files_.at(path)) changes.push_back({path, files_.at(path), text});
  if (yaml != file_text_) changes.push_back({file_name_, file_text_, yaml});
  std::sort(changes.begin(), changes.end(), [](const FileChange& a, const FileChange& b) { return a.path < b.path; });
  return changes;
}

std::vector<std::string> CandidateTree::NotWritable(const Values& values) const {
  std::vector<std::string> names;
  for (const ParameterEntry& entry : parameters_) {
    const auto value = values.find(entry.name);
    if (entry.kind == ParameterEntry::Kind::kValue && entry.value_line < 0 && value != values.end() &&
        value->second != start_.at(entry.name))
      names.push_back(entry.name);
  }
  return names;
}

bool CandidateTree::Excluded(const std::string& relative) const {
  const std::string name = fs::path(relative).filename().string();
  if (name == ".git") return true;
  return std::any_of(exclude_.begin(), exclude_.end(), [&](const std::string& given) {
    const std::string pattern = fs::path(given).lexically_normal().string();
    const std::string trimmed =
        pattern.size() > 1 && pattern.back() == '/' ? pattern.substr(0, pattern.size() - 1) : pattern;
    return MatchesPattern(trimmed, relative) || MatchesPattern(trimmed, name);
  });
}

absl::Status CandidateTree::Materialise(const Values& values, const std::string& target) const {
  ASSIGN_OR_RETURN(const std::vector<FileChange> changes, Changes(values, false));
  int64_t bytes = 0, files = 0;
  std::map<std::string, int64_t> by_top;
  const fs::path root = folder_.empty() ? "." : folder_, copy = target;
  std::error_code error;
  fs::create_directories(copy, error);
  if (error) return Internal("copy: the temporary folder cannot be made: ", error.message());
  fs::recursive_directory_iterator it(root, fs::directory_options::none, error), end;
  while (!error && it != end) {
    const fs::directory_entry entry = *it;
    const fs::path relative = entry.path().lexically_relative(root);
    const bool link = entry.is_symlink(error);
    // The copy may lie inside the folder (TMPDIR): never copy it into itself.
    const bool skip = Excluded(relative.string()) ||
                      fs::absolute(entry.path()).lexically_normal() == fs::absolute(copy).lexically_normal();
    if (skip) {
      it.disable_recursion_pending();
    } else if (link) {
      fs::copy_symlink(entry.path(), copy / relative, error);
    } else if (entry.is_directory(error)) {
      fs::create_directory(copy / relative, entry.path(), error);
    } else if (entry.is_regular_file(error)) {
      const auto size = static_cast<int64_t>(entry.file_size(error));
      bytes += size;
      by_top[relative.begin()->string()] += size;
      if (bytes > limits_.max_bytes || ++files > limits_.max_files) {
        const auto largest = std::max_element(by_top.begin(), by_top.end(),
                                              [](const auto& a, const auto& b) { return a.second < b.second; });
        return ResourceExhausted("copy: the folder has more than ", SizeText(limits_.max_bytes), " or ",
                                 limits_.max_files, " files (largest so far: ", largest->first, ", ",
                                 SizeText(largest->second),
                                 "); name what the command does not need in evaluate.exclude");
      }
      fs::copy_file(entry.path(), copy / relative, error);
    }
    if (error) return Internal("copy: ", relative.string(), ": ", error.message());
    it.increment(error);
  }
  if (error) return Internal("copy: the folder cannot be read: ", error.message());
  for (const FileChange& change : changes) {
    // A parameter's file may be a link: the copy gets a file of its own, never writes through it.
    const fs::path path = copy / change.path;
    const auto permissions = fs::status(root / change.path, error).permissions();
    fs::create_directories(path.parent_path(), error);
    fs::remove(path, error);
    std::ofstream out(path, std::ios::binary);
    out << change.after;
    if (!out.flush()) return Internal("copy: ", change.path, " cannot be written");
    fs::permissions(path, permissions, error);
  }
  return absl::OkStatus();
}

absl::Status CandidateTree::WriteBack(const Values& values) const {
  ASSIGN_OR_RETURN(const std::vector<FileChange> changes, Changes(values, true));
  for (const FileChange& change : changes) {
    auto now = PosixFs().ReadFile((fs::path(folder_) / change.path).string());
    if (!now.ok() || *now != change.before)
      return FailedPrecondition("write: ", change.path, " has changed since it was read; nothing was written");
  }
  for (const FileChange& change : changes) {
    std::error_code error;
    fs::path path = fs::path(folder_) / change.path;
    if (fs::is_symlink(path, error)) path = fs::canonical(path, error);
    const int mode = static_cast<int>(fs::status(path, error).permissions()) & 0777;
    RETURN_IF_ERROR(PosixFs().WriteFileAtomic(path.string(), Bytes(change.after), mode ? mode : 0644));
  }
  return absl::OkStatus();
}

}  // namespace optod::cli
