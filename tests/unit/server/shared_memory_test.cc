// Gradients and parameters through memory that client and server share.

#include "server/services/tensor_streams.h"

#include "optim/rules/half.h"
#include "tensor_streams_testing.h"

namespace optod::services {
namespace {

using ::testing::HasSubstr;
TEST_F(TensorStreams, SharedMemoryGivesTheSameBitsAsChunks) {
  for (const v1::DType values_dtype : {v1::DTYPE_UNSPECIFIED, v1::DTYPE_BF16}) {
    Create(3'000'000);
    ASSERT_TRUE(Push().ok());
    ASSERT_TRUE(inside_->Fork("s", 0, "t").ok());
    const size_t bytes = Bytes().size(), values_at = (64 + bytes + 63) / 64 * 64;
    const size_t back = values_dtype == v1::DTYPE_BF16 ? bytes / 2 : bytes;
    ClientMemory memory(values_at + back);
    memory.offer.set_values_offset(values_at);
    v1::StepStreamOpen open;
    *open.mutable_shared_memory() = memory.offer;
    open.set_values_dtype(values_dtype);
    Stream stream(*stub_, /*return_values=*/true, open);
    ASSERT_TRUE(stream.opened.shared_memory()) << stream.opened.shared_memory_refused();
    for (int64_t step = 0; step < 3; ++step) {
      const std::string gradient = GradientBytes(3'000'006, step);
      if (step == 1) {  // chunks still work on such a stream
        stream.Send(step + 1, step, gradient, 1'000'000);
        ASSERT_TRUE(stream.Applied());
        EXPECT_EQ(stream.Values(back).size(), back);
        continue;
      }
      std::memcpy(memory.data + 64, gradient.data(), gradient.size());
      v1::StepStreamRequest begin = Begin(step + 1, bytes);
      begin.mutable_begin()->set_base_version(step);
      begin.mutable_begin()->set_in_shared_memory(true);
      stream.stream->Write(begin);
      stream.stream->Write(Commit(step + 1));
      ASSERT_TRUE(stream.Applied()) << stream.Finish().error_message();
      v1::StepStreamResponse response;
      ASSERT_TRUE(stream.stream->Read(&response));
      EXPECT_EQ(response.in_memory().bytes(), back);
      const auto want = *inside_->Parameters("s", step + 1);
      if (values_dtype == v1::DTYPE_UNSPECIFIED) {
        EXPECT_EQ(std::memcmp(memory.data + values_at, want.data(), bytes), 0) << step;
      } else {
        for (size_t i = 0; i < want.size(); i += 977) {
          uint16_t bits;
          std::memcpy(&bits, memory.data + values_at + 2 * i, 2);
          ASSERT_EQ(bits, optim::half::ToBf16(want[i])) << i;
        }
      }
    }
    ASSERT_TRUE(stream.Finish().ok());
    for (int64_t step = 0; step < 3; ++step) {
      v1::TellRequest tell;
      tell.set_session("t");
      tell.mutable_gradients()->set_base_version(step);
      const std::string gradient = GradientBytes(3'000'006, step);
      for (const auto& [name, shape, at, size] :
           {std::tuple<const char*, std::vector<int64_t>, size_t, size_t>{"w", {2, 3}, 0, 24},
            {"b", {3'000'000}, 24, 12'000'000}}) {
        v1::Tensor* tensor = tell.mutable_gradients()->add_gradients();
        engine::SpecToProto({name, optim::DType::kF32, shape}, tensor->mutable_spec());
        tensor->set_data(gradient.substr(at, size));
      }
      ASSERT_TRUE(inside_->Tell(tell).ok());
    }
    EXPECT_EQ(*inside_->Parameters("s"), *inside_->Parameters("t"));
    Restart();
  }
}

struct MemoryCase {
  const char* name;
  std::function<void(v1::SharedMemory*)> spoil;
  const char* message;
};
const MemoryCase kMemories[] = {
    {"nonce", [](v1::SharedMemory* m) { m->set_nonce(std::string(32, 'x')); }, "nonce: is not what the memory holds"},
    {"short_nonce", [](v1::SharedMemory* m) { m->set_nonce("n"); }, "nonce: 1 bytes; must be 32"},
    {"no_process", [](v1::SharedMemory* m) { m->set_pid(0x7fffffff); }, "is no memory of a client on this machine"},
    {"stdin", [](v1::SharedMemory* m) { m->set_fd(0); }, "is no memory of a client on this machine"},
    {"negative", [](v1::SharedMemory* m) { m->set_fd(-1); }, "pid and fd must be those of a process"},
    {"too_large", [](v1::SharedMemory* m) { m->set_total_bytes(1 << 20); },
     "total_bytes: 1048576; the memory has 4096"},
    {"enormous", [](v1::SharedMemory* m) { m->set_total_bytes(UINT64_MAX); }, "at most"},
    {"unaligned", [](v1::SharedMemory* m) { m->set_values_offset(100); }, "values_offset: 100; must be a multiple"},
    {"in_header", [](v1::SharedMemory* m) { m->set_values_offset(0); }, "values_offset: 0; must be"},
    {"past_end", [](v1::SharedMemory* m) { m->set_values_offset(1 << 20); }, "values_offset: 1048576; must be"},
    {"no_room", [](v1::SharedMemory* m) { m->set_values_offset(4096); }, "the parameters need 40 at 4096"},
};

TEST_F(TensorStreams, SharedMemoryThatCannotBeUsedIsRefusedAndChunksGoOn) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  ClientMemory memory(4096);
  memory.offer.set_values_offset(1024);
  ClientMemory unsealed(4096, F_SEAL_GROW), stranger(4096, F_SEAL_SHRINK, "other");
  int64_t seq = 0;
  auto refused = [&](const char* name, const v1::SharedMemory& offer, const char* message) {
    v1::StepStreamOpen open;
    *open.mutable_shared_memory() = offer;
    Stream stream(*stub_, /*return_values=*/true, open);
    EXPECT_FALSE(stream.opened.shared_memory()) << name;
    EXPECT_THAT(stream.opened.shared_memory_refused(), HasSubstr(message)) << name;
    stream.Send(seq + 1, seq, GradientBytes(10, seq));
    ASSERT_TRUE(stream.Applied()) << name;
    ++seq;
    EXPECT_EQ(stream.Values(40).size(), 40u);
    EXPECT_TRUE(stream.Finish().ok());
  };
  for (const MemoryCase& c : kMemories) {
    v1::SharedMemory offer = memory.offer;
    c.spoil(&offer);
    refused(c.name, offer, c.message);
  }
  unsealed.offer.set_values_offset(1024);
  refused("unsealed", unsealed.offer, "must be sealed with F_SEAL_SHRINK");
  stranger.offer.set_values_offset(1024);
  refused("stranger", stranger.offer, "is no memory of a client");
  service_->far_ = true;
  refused("far", memory.offer, "the client is on another machine");
}

TEST_F(TensorStreams, AStepLargerThanTheSharedMemoryIsRefused) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  ClientMemory memory(4096);
  memory.offer.set_values_offset(64);
  v1::StepStreamOpen open;
  *open.mutable_shared_memory() = memory.offer;
  Stream stream(*stub_, true, open);
  ASSERT_TRUE(stream.opened.shared_memory()) << stream.opened.shared_memory_refused();
  v1::StepStreamRequest begin = Begin(1, 40);
  begin.mutable_begin()->set_in_shared_memory(true);
  stream.stream->Write(begin);
  EXPECT_THAT(stream.Finish().error_message(), HasSubstr("the shared memory has room for 0"));
}

TEST(SharedMemoryPeers, OnlyThisMachine) {
  for (const char* peer :
       {"unix:/run/optod.sock", "unix:", "ipv4:127.0.0.1:4711", "ipv6:[::1]:4711", "ipv6:%5B::1%5D:4711"})
    EXPECT_TRUE(IsLocalPeer(peer)) << peer;
  for (const char* peer : {"ipv4:10.0.0.1:4711", "ipv6:[2001:db8::1]:4711", "", "ipv4:12.7.0.0:1", "uds:unix:"})
    EXPECT_FALSE(IsLocalPeer(peer)) << peer;
}

}  // namespace
}  // namespace optod::services
