#include "fault_vfs.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <random>

namespace optod::store {
namespace {

constexpr size_t kSector = 512;

/// What SQLite allocates for an open file; the real VFS's file follows it in memory.
struct FaultFile {
  sqlite3_file base;
  FaultVfs* owner;
  std::shared_ptr<FaultVfs::FileState>* state;  ///< null: not tracked (temporary files)
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

FaultFile* Of(sqlite3_file* file) { return reinterpret_cast<FaultFile*>(file); }
sqlite3_file* Real(sqlite3_file* file) { return Of(file)->real(); }
FaultVfs* OwnerOf(sqlite3_vfs* vfs) { return static_cast<FaultVfs*>(vfs->pAppData); }

int Close(sqlite3_file* file) {
  const int code = Real(file)->pMethods->xClose(Real(file));
  delete Of(file)->state;
  return code;
}

int Read(sqlite3_file* file, void* data, int size, sqlite3_int64 offset) {
  if (const int code = Of(file)->owner->OnRead(); code != SQLITE_OK) return code;
  return Real(file)->pMethods->xRead(Real(file), data, size, offset);
}

int Write(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
  if (Of(file)->state != nullptr) {
    const int code = Of(file)->owner->OnChange(
        **Of(file)->state, {offset, std::string(static_cast<const char*>(data), static_cast<size_t>(size)), false});
    if (code != SQLITE_OK) return code;
  }
  return Real(file)->pMethods->xWrite(Real(file), data, size, offset);
}

int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  if (Of(file)->state != nullptr) {
    const int code = Of(file)->owner->OnChange(**Of(file)->state, {size, "", true});
    if (code != SQLITE_OK) return code;
  }
  return Real(file)->pMethods->xTruncate(Real(file), size);
}

int Sync(sqlite3_file* file, int) {
  return Of(file)->state != nullptr ? Of(file)->owner->OnSync(**Of(file)->state) : SQLITE_OK;
}

// The rest goes to the real file.
int FileSize(sqlite3_file* f, sqlite3_int64* size) { return Real(f)->pMethods->xFileSize(Real(f), size); }
int Lock(sqlite3_file* f, int level) { return Real(f)->pMethods->xLock(Real(f), level); }
int Unlock(sqlite3_file* f, int level) { return Real(f)->pMethods->xUnlock(Real(f), level); }
int CheckLock(sqlite3_file* f, int* out) { return Real(f)->pMethods->xCheckReservedLock(Real(f), out); }
int Control(sqlite3_file* f, int op, void* arg) {
  return op == SQLITE_FCNTL_SIZE_HINT
             ? SQLITE_NOTFOUND
             : Real(f)->pMethods->xFileControl(Real(f), op, arg);  // a hint would grow the file unseen
}
int SectorSize(sqlite3_file* f) { return Real(f)->pMethods->xSectorSize(Real(f)); }
int Device(sqlite3_file* f) { return Real(f)->pMethods->xDeviceCharacteristics(Real(f)); }
int ShmMap(sqlite3_file* f, int page, int size, int extend, void volatile** out) {
  return Real(f)->pMethods->xShmMap(Real(f), page, size, extend, out);
}
int ShmLock(sqlite3_file* f, int offset, int n, int flags) {
  return Real(f)->pMethods->xShmLock(Real(f), offset, n, flags);
}
void ShmBarrier(sqlite3_file* f) { Real(f)->pMethods->xShmBarrier(Real(f)); }
int ShmUnmap(sqlite3_file* f, int remove) { return Real(f)->pMethods->xShmUnmap(Real(f), remove); }

// Version 2: shared memory for WAL, no memory mapping of the database (it would go around Read).
const sqlite3_io_methods kMethods = {2,       Close,      Read,      Write,   Truncate,   Sync,   FileSize,
                                     Lock,    Unlock,     CheckLock, Control, SectorSize, Device, ShmMap,
                                     ShmLock, ShmBarrier, ShmUnmap,  nullptr, nullptr};

int Open(sqlite3_vfs* vfs, const char* path, sqlite3_file* file, int flags, int* out_flags) {
  FaultVfs* owner = OwnerOf(vfs);
  FaultFile* fault = Of(file);
  *fault = FaultFile{{nullptr}, owner, nullptr};
  const bool tracked =
      path != nullptr && (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL)) != 0;
  if (tracked) fault->state = new std::shared_ptr<FaultVfs::FileState>(owner->StateOf(path));
  const int code = owner->real()->xOpen(owner->real(), path, fault->real(), flags, out_flags);
  if (code == SQLITE_OK) {
    fault->base.pMethods = &kMethods;
  } else {
    delete fault->state;
  }
  return code;
}

int Delete(sqlite3_vfs* vfs, const char* path, int) {
  FaultVfs* owner = OwnerOf(vfs);
  if (const int code = owner->OnRead(); code != SQLITE_OK) return code;
  owner->Forget(path);
  return owner->real()->xDelete(owner->real(), path, 0);
}

}  // namespace

FaultVfs::FaultVfs(const std::string& name) : name_(name), real_(sqlite3_vfs_find(nullptr)) {
  vfs_ = *real_;  // everything that is not about files is the real one's; its functions take the real vfs or ignore the
                  // argument
  vfs_.pNext = nullptr;
  vfs_.zName = name_.c_str();
  vfs_.pAppData = this;
  vfs_.szOsFile = static_cast<int>(sizeof(FaultFile)) + real_->szOsFile;
  vfs_.xOpen = Open;
  vfs_.xDelete = Delete;
  sqlite3_vfs_register(&vfs_, 0);
}

FaultVfs::~FaultVfs() { sqlite3_vfs_unregister(&vfs_); }

int64_t FaultVfs::calls() {
  std::lock_guard lock(mutex_);
  return calls_;
}

void FaultVfs::FailAt(int64_t n, int write_code, int sync_code) {
  std::lock_guard lock(mutex_);
  fail_at_ = calls_ + n;
  write_code_ = write_code;
  sync_code_ = sync_code;
}

void FaultVfs::SetFull(bool full) {
  std::lock_guard lock(mutex_);
  full_ = full;
}

void FaultVfs::CrashAt(int64_t n, uint64_t seed) {
  std::lock_guard lock(mutex_);
  crash_at_ = calls_ + n;
  seed_ = seed;
}

void FaultVfs::Disarm() {
  std::lock_guard lock(mutex_);
  calls_ = fail_at_ = crash_at_ = 0;
  full_ = crashed_ = false;
  files_.clear();
  images_.clear();
}

bool FaultVfs::crashed() {
  std::lock_guard lock(mutex_);
  return crashed_;
}

std::shared_ptr<FaultVfs::FileState> FaultVfs::StateOf(const std::string& path) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<FileState>& state = files_[path];
  if (state == nullptr) {
    state = std::make_shared<FileState>();
    std::ifstream in(path, std::ios::binary);
    state->durable.assign(std::istreambuf_iterator<char>(in), {});
    state->size = static_cast<int64_t>(state->durable.size());
  }
  return state;
}

void FaultVfs::Forget(const std::string& path) {
  std::lock_guard lock(mutex_);
  files_.erase(path);
}

int FaultVfs::Count(int code) {  // mutex_ held
  if (crashed_) return SQLITE_IOERR;
  ++calls_;
  if (calls_ == crash_at_) {
    Crash();
    return SQLITE_IOERR;
  }
  return calls_ == fail_at_ ? code : SQLITE_OK;
}

int FaultVfs::OnChange(FileState& file, Change change) {
  std::lock_guard lock(mutex_);
  const int64_t end = change.offset + static_cast<int64_t>(change.data.size());
  if (crash_at_ == calls_ + 1)
    file.pending.push_back(change);  // the write under way at the crash may arrive, or a part of it
  if (const int code = Count(write_code_); code != SQLITE_OK) return code;
  if (full_ && !change.truncate && end > file.size) return SQLITE_FULL;
  file.size = change.truncate ? change.offset : std::max(file.size, end);
  file.pending.push_back(std::move(change));
  return SQLITE_OK;
}

namespace {

void Apply(const FaultVfs::Change& change, std::string* bytes) {
  if (change.truncate) {
    bytes->resize(static_cast<size_t>(change.offset));
    return;
  }
  const size_t end = static_cast<size_t>(change.offset) + change.data.size();
  if (bytes->size() < end) bytes->resize(end);
  std::memcpy(bytes->data() + change.offset, change.data.data(), change.data.size());
}

}  // namespace

int FaultVfs::OnSync(FileState& file) {
  std::lock_guard lock(mutex_);
  if (const int code = Count(sync_code_); code != SQLITE_OK) return code;
  for (const Change& change : file.pending) Apply(change, &file.durable);
  file.pending.clear();
  return SQLITE_OK;
}

int FaultVfs::OnRead() {
  std::lock_guard lock(mutex_);
  return crashed_ ? SQLITE_IOERR : SQLITE_OK;
}

void FaultVfs::Crash() {
  crashed_ = true;
  std::mt19937_64 random(seed_);
  const double kKeep[] = {0.0, 0.1, 0.5, 0.9, 1.0};
  const double keep = kKeep[random() % std::size(kKeep)];
  const auto kept = [&] { return std::uniform_real_distribution<>()(random) < keep; };
  for (const auto& [path, file] : files_) {
    std::string image = file->durable;
    for (const Change& change : file->pending) {
      if (change.truncate) {
        if (kept()) Apply(change, &image);
        continue;
      }
      for (size_t at = 0; at < change.data.size();) {
        const size_t offset = static_cast<size_t>(change.offset) + at;
        const size_t size = std::min(change.data.size() - at, kSector - offset % kSector);
        if (kept()) Apply({static_cast<int64_t>(offset), change.data.substr(at, size), false}, &image);
        at += size;
      }
    }
    images_[path] = std::move(image);
  }
}

void FaultVfs::WriteImages(const std::string& folder) {
  std::lock_guard lock(mutex_);
  std::filesystem::create_directories(folder);
  for (const auto& [path, image] : images_) {
    std::ofstream out(std::filesystem::path(folder) / std::filesystem::path(path).filename(), std::ios::binary);
    out.write(image.data(), static_cast<std::streamsize>(image.size()));
  }
}

}  // namespace optod::store
