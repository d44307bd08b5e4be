// What a step stream's opening and commit may ask for, and what is refused.

#include "server/services/tensor_streams.h"

#include "tensor_streams_testing.h"

namespace optod::services {
namespace {

using ::testing::HasSubstr;
struct FormCase {
  const char* name;
  std::function<void(v1::StepStreamBegin*, v1::StepStreamCommit*)> spoil;
  const char* message;
};
const FormCase kForms[] = {
    {"lr_negative", [](auto*, auto* commit) { commit->add_lr(-1); }, "commit.lr[0]: -1 must be a finite number >= 0"},
    {"lr_nan", [](auto*, auto* commit) { commit->add_lr(std::nan("")); }, "must be a finite number"},
    {"lr_two",
     [](auto*, auto* commit) {
       commit->add_lr(1);
       commit->add_lr(1);
     },
     "lr: 2 rates; the optimizer has one parameter group"},
    {"absent_outside", [](auto* begin, auto*) { begin->add_absent(2); }, "absent: 2 is no tensor; the layout has 2"},
    {"absent_negative", [](auto* begin, auto*) { begin->add_absent(-1); }, "absent: -1 follows -1; must ascend"},
    {"absent_twice",
     [](auto* begin, auto*) {
       begin->add_absent(1);
       begin->add_absent(1);
     },
     "absent: 1 follows 1; must ascend"},
    {"absent_all",
     [](auto* begin, auto*) {
       begin->add_absent(0);
       begin->add_absent(1);
     },
     "absent: names every tensor"},
    {"extra_dtype", [](auto* begin, auto*) { begin->add_extra()->set_name("x"); },
     "extra[0] \"x\": dtype is missing or unknown"},
    {"extra_huge",
     [](auto* begin, auto*) {
       engine::SpecToProto({"x", optim::DType::kF32, {1ll << 62}}, begin->add_extra());
     },
     "extra[0] \"x\": shape is too large"},
    {"extra_negative",
     [](auto* begin, auto*) {
       engine::SpecToProto({"x", optim::DType::kF32, {-3}}, begin->add_extra());
     },
     "has a negative size"},
    {"extra_sum",
     [](auto* begin, auto*) {
       for (int i = 0; i < 1 << 17; ++i)
         engine::SpecToProto({std::to_string(i), optim::DType::kF32, {1ll << 46}}, begin->add_extra());
     },
     "extra: more than 1125899906842624 bytes"},
    {"extra_twice",
     [](auto* begin, auto*) {
       for (int i = 0; i < 2; ++i) engine::SpecToProto({"x", optim::DType::kF32, {0}}, begin->add_extra());
     },
     "extra[1] \"x\": given twice"},
    {"memory_without", [](auto* begin, auto*) { begin->set_in_shared_memory(true); },
     "begin.in_shared_memory: the stream was opened without"},
    {"dtype", [](auto* begin, auto*) { begin->set_dtype(v1::DTYPE_I8); }, "dtype: int8; tensor \"w\" takes float32"},
};

TEST_F(TensorStreams, SpoiltFormsEndTheStreamAndChangeNothing) {
  Create(4);
  ASSERT_TRUE(Push().ok());
  for (const FormCase& c : kForms) {
    Stream stream(*stub_);
    v1::StepStreamRequest begin = Begin(1, 40), commit = Commit(1);
    c.spoil(begin.mutable_begin(), commit.mutable_commit());
    stream.stream->Write(begin);
    stream.stream->Write(Chunk(0, 40));
    stream.stream->Write(commit);
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.name << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message)) << c.name;
    EXPECT_EQ(inside_->Get("s")->version_count(), 1) << c.name;
  }
}

// ---- shared memory

}  // namespace
}  // namespace optod::services
