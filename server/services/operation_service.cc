#include "optod/v1/operation.grpc.pb.h"
#include "server/services/trace_service.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

class OperationService final : public v1::OperationService::CallbackService {
 public:
  OperationService(engine::Operations& operations, const auth::Authenticator& authenticator)
      : operations_(operations), authenticator_(authenticator) {}

#define OPTOD_UNARY(Method, Verb, Request, Response)                                                                               \
  grpc::ServerUnaryReactor* Method(grpc::CallbackServerContext* context, const v1::Request* request, v1::Response* response) override { \
    return RunUnary(authenticator_, context, response, [&](const engine::Caller& caller, engine::Done<v1::Response> done) {        \
      operations_.Verb(caller, *request, std::move(done));                                                                         \
    });                                                                                                                            \
  }
  OPTOD_UNARY(GetOperation, Get, GetOperationRequest, Operation)
  OPTOD_UNARY(ListOperations, List, ListOperationsRequest, ListOperationsResponse)
  OPTOD_UNARY(WaitOperation, Wait, WaitOperationRequest, Operation)
  OPTOD_UNARY(CancelOperation, Cancel, CancelOperationRequest, Operation)
#undef OPTOD_UNARY

 private:
  engine::Operations& operations_;
  const auth::Authenticator& authenticator_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOperationService(engine::Operations& operations, const auth::Authenticator& authenticator) {
  return std::make_unique<OperationService>(operations, authenticator);
}

}  // namespace optod::services
