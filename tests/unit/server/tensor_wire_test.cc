// Tensor messages written and read without copies.

#include "server/services/tensor_streams.h"

#include "server/services/tensor_wire.h"
#include "tensor_streams_testing.h"

namespace optod::services {
namespace {
std::vector<grpc::Slice> Split(const std::string& bytes, size_t first, size_t second) {
  std::vector<grpc::Slice> out;
  out.emplace_back(bytes.substr(0, first));
  out.emplace_back(bytes.substr(first, second - first));
  out.emplace_back(bytes.substr(second));
  return out;
}

TEST(TensorWire, ChunksParseHoweverTheyAreCut) {
  v1::PushParametersRequest request;
  request.mutable_chunk()->set_offset(300);
  request.mutable_chunk()->set_crc32c(0xdeadbeef);
  request.mutable_chunk()->set_data("hello world");
  const std::string bytes = request.SerializeAsString();
  for (size_t a = 0; a <= bytes.size(); ++a) {
    for (size_t b = a; b <= bytes.size(); ++b) {
      const auto slices = Split(bytes, a, b);
      ChunkView chunk;
      ASSERT_TRUE(ParseChunk(slices, 2, &chunk));
      EXPECT_EQ(chunk.offset, 300u);
      EXPECT_EQ(chunk.crc32c, 0xdeadbeefu);
      ASSERT_EQ(chunk.size, 11u);
      chunk.offset = 0;
      chunk.crc32c = Crc32c("hello world");
      FlatReceiver receiver;
      ASSERT_TRUE(receiver.Start(11).ok());
      ASSERT_TRUE(receiver.Add(slices, chunk).ok());
      EXPECT_EQ(std::memcmp(receiver.buffer()->data(), "hello world", 11), 0);
    }
  }
  for (size_t n = 0; n < bytes.size(); ++n) {  // truncated: left to protobuf, which refuses
    ChunkView chunk;
    EXPECT_FALSE(ParseChunk(Split(bytes.substr(0, n), n / 2, n), 2, &chunk)) << n;
  }
  ChunkView chunk;
  EXPECT_FALSE(ParseChunk(Split(bytes + bytes, 1, 2), 2, &chunk));  // the field twice
  EXPECT_FALSE(ParseChunk(Split(bytes, 1, 2), 3, &chunk));          // another field
}

TEST(TensorWire, SentChunksAreOrdinaryMessages) {
  auto buffer = engine::TensorBuffer::Make(1000);
  for (size_t i = 0; i < 1000; ++i) buffer->data()[i] = static_cast<std::byte>(i * 7);
  FlatSender sender(buffer, {{10, 0}, {20, 130}, {500, 77}, {999, 1}}, 2, 64);
  std::string got, want;
  for (const auto& [begin, size] : std::vector<std::pair<size_t, size_t>>{{20, 130}, {500, 77}, {999, 1}})
    want.append(reinterpret_cast<const char*>(buffer->data()) + begin, size);
  while (!sender.done()) {
    v1::PullParametersResponse response;
    ASSERT_TRUE(ParseMessage(sender.Next(), &response).ok());
    EXPECT_EQ(response.chunk().offset(), got.size());
    EXPECT_LE(response.chunk().data().size(), 64u);
    got += response.chunk().data();
  }
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace optod::services
