#include "base/thread_pool.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

namespace optod {

struct ThreadPool::Impl {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Task> queue;
  bool stopping = false;
  std::vector<std::thread> threads;

  void Run() {
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      Task task = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      task();
      task = nullptr;  // destroyed outside the lock
      lock.lock();
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  for (int i = 0; i < threads; ++i) impl_->threads.emplace_back([impl = impl_.get()] { impl->Run(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wake.notify_all();
  for (auto& thread : impl_->threads) thread.join();
}

void ThreadPool::Post(Task task) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->queue.push_back(std::move(task));
  }
  impl_->wake.notify_one();
}

int ThreadPool::threads() const { return static_cast<int>(impl_->threads.size()); }

struct Strand::Impl : std::enable_shared_from_this<Strand::Impl> {
  explicit Impl(ThreadPool& p) : pool(p) {}
  ThreadPool& pool;
  std::mutex mutex;
  std::deque<Task> queue;
  bool running = false;

  void Drain() {
    // A strand that never empties gives the thread back after a while, so that its neighbours run too.
    for (int i = 0; i < 64; ++i) {
      Task task;
      {
        std::lock_guard lock(mutex);
        if (queue.empty()) {
          running = false;
          return;
        }
        task = std::move(queue.front());
        queue.pop_front();
      }
      task();
    }
    pool.Post([self = shared_from_this()] { self->Drain(); });
  }
};

Strand::Strand(ThreadPool& pool) : impl_(std::make_shared<Impl>(pool)) {}
Strand::~Strand() = default;

void Strand::Post(Task task) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->queue.push_back(std::move(task));
    if (impl_->running) return;
    impl_->running = true;
  }
  impl_->pool.Post([impl = impl_] { impl->Drain(); });
}

struct Timers::Impl {
  explicit Impl(ThreadPool& p) : pool(p) {}
  ThreadPool& pool;
  std::mutex mutex;
  std::condition_variable wake;
  using Key = std::pair<std::chrono::steady_clock::time_point, uint64_t>;
  std::map<Key, Task> due;
  std::unordered_map<uint64_t, Key> keys;
  uint64_t next = 1;
  bool stopping = false;
  std::thread thread;

  void Run() {
    std::unique_lock lock(mutex);
    while (!stopping) {
      if (due.empty()) {
        wake.wait(lock);
        continue;
      }
      auto first = due.begin();
      if (first->first.first > std::chrono::steady_clock::now()) {
        const auto when = first->first.first;  // a copy: Cancel may free the entry while wait_until still reads it
        wake.wait_until(lock, when);
        continue;
      }
      Task task = std::move(first->second);
      keys.erase(first->first.second);
      due.erase(first);
      lock.unlock();
      pool.Post(std::move(task));
      lock.lock();
    }
  }
};

Timers::Timers(ThreadPool& pool) : impl_(std::make_unique<Impl>(pool)) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->Run(); });
}

Timers::~Timers() { Stop(); }

void Timers::Stop() {
  std::map<Impl::Key, Task> dropped;  // destroyed outside the lock
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    dropped.swap(impl_->due);
    impl_->keys.clear();
  }
  impl_->wake.notify_all();
  if (impl_->thread.joinable()) impl_->thread.join();
}

uint64_t Timers::After(std::chrono::nanoseconds delay, Task task) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->stopping) return 0;
  const uint64_t handle = impl_->next++;
  Impl::Key key{std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(delay), handle};
  impl_->keys[handle] = key;
  impl_->due.emplace(key, std::move(task));
  impl_->wake.notify_all();
  return handle;
}

void Timers::Cancel(uint64_t handle) {
  Task dropped;
  std::lock_guard lock(impl_->mutex);
  auto it = impl_->keys.find(handle);
  if (it == impl_->keys.end()) return;
  auto due = impl_->due.find(it->second);
  dropped = std::move(due->second);
  impl_->due.erase(due);
  impl_->keys.erase(it);
}

}  // namespace optod
