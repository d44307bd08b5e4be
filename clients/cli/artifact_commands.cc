// optoctl artifact put FILE | get NAME | list
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "base/sha256.h"
#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

std::string Describe(const v1::Artifact& artifact) {
  return Fields({{"name", artifact.name()},
                 {"sha256", artifact.sha256()},
                 {"size", BytesText(artifact.size_bytes())},
                 {"file", artifact.display_name()},
                 {"type", artifact.media_type()},
                 {"created", TimeText(artifact.create_time())}});
}

// The next piece of a file; empty at its end.
absl::StatusOr<std::string> NextPiece(std::ifstream& in) {
  std::string piece(kPieceBytes, '\0');
  in.read(piece.data(), static_cast<std::streamsize>(piece.size()));
  piece.resize(static_cast<size_t>(in.gcount()));
  if (in.bad()) return DataLoss("the file cannot be read to its end");
  return piece;
}

int Put(App& app, const std::string& path, const std::string& media_type) {
  std::ifstream in(path, std::ios::binary);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (!in || error) return app.Usage(path + ": cannot be read");
  Sha256 hash;
  while (true) {
    auto piece = NextPiece(in);
    if (!piece.ok()) return app.Usage(path + ": " + std::string(piece.status().message()));
    if (piece->empty()) break;
    hash.Update(*piece);
  }
  in.clear();
  in.seekg(0);
  v1::WriteArtifactHeader header;
  header.set_display_name(std::filesystem::path(path).filename().string());
  header.set_media_type(media_type);
  header.set_size_bytes(static_cast<int64_t>(size));
  header.set_sha256(hash.FinishHex());
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Artifact artifact, client->WriteArtifact(header, [&] { return NextPiece(in); }));
  return app.Print(artifact, Describe(artifact));
}

// A bare hash means the caller's own artifact; the server names them in full.
absl::StatusOr<std::string> FullName(client::Client& client, const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  ASSIGN_OR_RETURN(const v1::ServerInfo info, client.GetServerInfo({}));
  return Cat("users/", ShortName(info.user()), "/artifacts/", name);
}

int Get(App& app, const std::string& name, const std::string& output) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::GetArtifactRequest get;
  RUN_OR_FAIL(*get.mutable_name(), FullName(*client, name));
  RUN_OR_FAIL(const v1::Artifact artifact, client->GetArtifact(get));
  const std::string path = output.empty() ? std::filesystem::path(artifact.display_name()).filename().string() : output;
  const bool to_stdout = path == "-";
  if (to_stdout && app.json) return app.Usage("--output - and --json exclude each other");
  const std::string partial = path + ".part";
  std::ofstream file;
  if (!to_stdout) file.open(partial, std::ios::binary);
  if (!to_stdout && !file) return app.Usage(path + ": cannot be written; give another place by --output");
  std::ostream& out = to_stdout ? std::cout : file;
  Sha256 hash;
  v1::ReadArtifactRequest read;
  read.set_name(artifact.name());
  absl::Status status = client->ReadArtifact(read, [&](const std::string& piece) -> absl::Status {
    hash.Update(piece);
    out.write(piece.data(), static_cast<std::streamsize>(piece.size()));
    return out ? absl::OkStatus() : ResourceExhausted(path, ": cannot be written");
  });
  out.flush();
  if (status.ok() && hash.FinishHex() != artifact.sha256())
    status = DataLoss(artifact.name(), ": the bytes do not have this hash");
  std::error_code error;
  if (!to_stdout) {
    file.close();
    if (status.ok())
      std::filesystem::rename(partial, path, error);
    else
      std::filesystem::remove(partial, error);
  }
  if (!status.ok()) return app.Fail(status);
  if (error) return app.Usage(path + ": cannot be written");
  return to_stdout ? kExitDone : app.Print(artifact, Cat(path, "  ", BytesText(artifact.size_bytes()), "\n"));
}

int List(App& app) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListArtifactsRequest request;
  v1::ListArtifactsResponse all;
  do {
    RUN_OR_FAIL(const v1::ListArtifactsResponse page, client->ListArtifacts(request));
    all.MergeFrom(page);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  std::vector<std::vector<std::string>> rows;
  for (const v1::Artifact& a : all.artifacts())
    rows.push_back({a.sha256(), BytesText(a.size_bytes()), TimeText(a.create_time()), a.display_name()});
  return app.Print(all, Table({"SHA256", "SIZE", "CREATED", "FILE"}, rows));
}

}  // namespace

void AddArtifactCommands(CLI::App& root, App& app) {
  auto* artifact = root.add_subcommand("artifact", "files kept by the server, named by their SHA-256");
  artifact->require_subcommand(1);
  struct Flags {
    std::string argument, output, media_type = "application/octet-stream";
  };
  auto flags = std::make_shared<Flags>();
  auto* put = artifact->add_subcommand("put", "upload a file");
  put->add_option("file", flags->argument)->required();
  put->add_option("--media-type", flags->media_type)->capture_default_str();
  put->callback(
      [&app, flags] { app.command = [&app, flags] { return Put(app, flags->argument, flags->media_type); }; });
  auto* get = artifact->add_subcommand("get", "download a file");
  get->add_option("name", flags->argument, "SHA-256 or full name")->required();
  get->add_option("-o,--output", flags->output, "where to; - = stdout (default: its own file name)");
  get->callback([&app, flags] { app.command = [&app, flags] { return Get(app, flags->argument, flags->output); }; });
  auto* list = artifact->add_subcommand("list", "all files of the caller");
  list->callback([&app] { app.command = [&app] { return List(app); }; });
}

}  // namespace optod::cli
