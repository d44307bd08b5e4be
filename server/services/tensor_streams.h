#pragma once
/// The calls of SessionService that carry tensors, as raw ByteBuffer methods: PushParameters, PullParameters,
/// PullState, ExportState, ImportState, StepStream.
///
///   wire message = small protobuf head + `bytes data` (last field of TensorChunk)
///   reading: the head is parsed by hand across slices; the data is copied once, from gRPC's slices into its place in a
///            pooled buffer
///   writing: head slice + a slice that refers to the pooled buffer; nothing is copied
///
/// Ordinary protobuf clients work unchanged. Checks: chunks in order without gaps (INVALID_ARGUMENT names the expected
/// offset), crc32c when not 0 and sha256 when given (DATA_LOSS), total_bytes equal to the layout's, no chunk above 4
/// MiB. Flow control: StartRead pauses while more than `window_bytes` of a stream are received and not yet applied.
/// Threading: a reactor's callbacks come one at a time from gRPC; nothing in them blocks; steps, hashing and files run
/// on the engine's pool.
///
/// SessionService is implemented by a class deriving from SessionServiceBase, whose raw methods return what the
/// Make functions give:
///
///   RawBidiReactor* StepStream(grpc::CallbackServerContext* context) override {
///     auto caller = Authenticate(context);
///     if (!caller.ok()) return RefuseBidi(ToGrpc(caller.status(), context));
///     return MakeStepStream(engine_, *caller, [context](const absl::Status& s) { return ToGrpc(s, context); });
///   }

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>

#include "optod/v1/session.grpc.pb.h"
#include "server/engine/engine.h"

namespace optod::services {

// Every other method by the ordinary callback API. (The generated CallbackService cannot be the base: its StepStream
// and the raw one differ in the return type alone.)
namespace internal {
using S = v1::SessionService;
using Unary1 = S::WithCallbackMethod_CreateSession<
    S::WithCallbackMethod_GetSession<S::WithCallbackMethod_ListSessions<S::WithCallbackMethod_UpdateSession<
        S::WithCallbackMethod_DeleteSession<S::WithCallbackMethod_UndeleteSession<S::Service>>>>>>;
using Unary2 = S::WithCallbackMethod_Ask<
    S::WithCallbackMethod_Tell<S::WithCallbackMethod_AskTellStream<S::WithCallbackMethod_ListVersions<
        S::WithCallbackMethod_GetVersion<S::WithCallbackMethod_Rollback<S::WithCallbackMethod_ForkSession<
            S::WithCallbackMethod_ExportSession<S::WithCallbackMethod_ListOptimizers<
                S::WithCallbackMethod_DescribeMemory<Unary1>>>>>>>>>>;
}  // namespace internal
using SessionServiceBase = v1::SessionService::WithRawCallbackMethod_PushParameters<
    v1::SessionService::WithRawCallbackMethod_PullParameters<v1::SessionService::WithRawCallbackMethod_PullState<
        v1::SessionService::WithRawCallbackMethod_ExportState<v1::SessionService::WithRawCallbackMethod_ImportState<
            v1::SessionService::WithRawCallbackMethod_StepStream<internal::Unary2>>>>>>;

using RawReadReactor = grpc::ServerReadReactor<grpc::ByteBuffer>;
using RawWriteReactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;
using RawBidiReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

/// absl::Status -> grpc::Status, asked once a call at most: services/status.h with the call's context.
using ToGrpcStatus = std::function<grpc::Status(const absl::Status&)>;

struct StreamOptions {
  size_t window_bytes = 64u << 20;  ///< received and not yet applied, per stream
  size_t chunk_bytes = 1u << 20;    ///< of what is sent
  bool local_peer = false;          ///< the caller is on this machine: shared memory may be used
};

/// `response` is filled before the call finishes. The engine must outlive the call.
RawReadReactor* MakePushParameters(engine::Engine& engine, const engine::Caller& caller, grpc::ByteBuffer* response,
                                   ToGrpcStatus to_grpc, StreamOptions options = {});
RawWriteReactor* MakePullParameters(engine::Engine& engine, const engine::Caller& caller,
                                    const grpc::ByteBuffer* request, ToGrpcStatus to_grpc, StreamOptions options = {});
RawWriteReactor* MakePullState(engine::Engine& engine, const engine::Caller& caller, const grpc::ByteBuffer* request,
                               ToGrpcStatus to_grpc, StreamOptions options = {});
RawWriteReactor* MakeExportState(engine::Engine& engine, const engine::Caller& caller, const grpc::ByteBuffer* request,
                                 ToGrpcStatus to_grpc, StreamOptions options = {});
RawReadReactor* MakeImportState(engine::Engine& engine, const engine::Caller& caller, grpc::ByteBuffer* response,
                                ToGrpcStatus to_grpc);
RawBidiReactor* MakeStepStream(engine::Engine& engine, const engine::Caller& caller, ToGrpcStatus to_grpc,
                               StreamOptions options = {});

/// Reactors that end at once with `status` (authentication failed, draining).
RawReadReactor* RefuseRead(grpc::Status status);
RawWriteReactor* RefuseWrite(grpc::Status status);
RawBidiReactor* RefuseBidi(grpc::Status status);

}  // namespace optod::services
