#include "clients/cpp/orders.h"

#include "base/status.h"
#include "clients/cpp/channel.h"
#include "clients/cpp/client_impl.h"
#include "optod/v1/order.grpc.pb.h"

namespace optod::client {

using Stub = v1::OrderService::Stub;

struct OrderClient::Impl {
  Impl(const ClientOptions& options, const std::shared_ptr<grpc::Channel>& channel)
      : client(options, channel), stub(v1::OrderService::NewStub(channel)) {}
  ClientImpl client;
  std::unique_ptr<Stub> stub;

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    for (int attempt = 1;; ++attempt) {
      grpc::ClientContext context;
      client.Prepare(&context, std::chrono::milliseconds(0));  // a retraining takes as long as it takes
      Response response;
      const absl::Status status = ToAbsl((*stub.*method)(&context, request, &response), context);
      if (status.ok()) return response;
      if (!ShouldRetry(client.options.retry, attempt, status)) return status;
      client.clock().SleepFor(RetryWait(client.options.retry, attempt, 0.5, RetryAfter(status)));
    }
  }

  template <typename Request, typename Response>
  absl::Status ReadAll(std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*,
                                                                                     const Request&),
                       const Request& request, const std::function<absl::Status(const Response&)>& sink) {
    grpc::ClientContext context;
    client.Prepare(&context, std::chrono::milliseconds(0));
    const auto reader = (*stub.*method)(&context, request);
    Response response;
    while (reader->Read(&response)) {
      if (const absl::Status status = sink(response); !status.ok()) {
        context.TryCancel();
        reader->Finish();
        return status;
      }
    }
    return ToAbsl(reader->Finish(), context);
  }
};

absl::StatusOr<std::unique_ptr<OrderClient>> OrderClient::Connect(const ClientOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, OpenChannel(options));
  return std::unique_ptr<OrderClient>(new OrderClient(std::make_unique<Impl>(options, channel)));
}
OrderClient::OrderClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OrderClient::~OrderClient() = default;

absl::StatusOr<v1::OrderStudy> OrderClient::GetStudy(const v1::GetStudyRequest& request) {
  return impl_->Call(&Stub::GetStudy, request);
}
absl::StatusOr<v1::OrderEstimate> OrderClient::EstimateOrder(const v1::EstimateOrderRequest& request) {
  return impl_->Call(&Stub::EstimateOrder, request);
}
absl::Status OrderClient::SearchOrders(const v1::SearchOrdersRequest& request,
                                       const std::function<absl::Status(const v1::SearchOrdersResponse&)>& sink) {
  return impl_->ReadAll<v1::SearchOrdersRequest, v1::SearchOrdersResponse>(&Stub::SearchOrders, request, sink);
}
absl::Status OrderClient::EstimateMatrix(const v1::EstimateMatrixRequest& request,
                                         const std::function<absl::Status(const v1::EstimateMatrixResponse&)>& sink) {
  return impl_->ReadAll<v1::EstimateMatrixRequest, v1::EstimateMatrixResponse>(&Stub::EstimateMatrix, request, sink);
}
absl::Status OrderClient::ExportOrder(const v1::ExportOrderRequest& request,
                                      const std::function<absl::Status(const v1::OrderChunk&)>& sink) {
  return impl_->ReadAll<v1::ExportOrderRequest, v1::OrderChunk>(&Stub::ExportOrder, request, sink);
}

absl::Status OrderClient::EstimateOrders(const std::function<bool(v1::EstimateOrdersRequest*)>& next,
                                         const std::function<absl::Status(const v1::EstimateOrdersResponse&)>& sink) {
  grpc::ClientContext context;
  impl_->client.Prepare(&context, std::chrono::milliseconds(0));
  const auto stream = impl_->stub->EstimateOrders(&context);
  absl::Status refused;
  v1::EstimateOrdersRequest request;
  v1::EstimateOrdersResponse response;
  while (refused.ok() && next(&request)) {
    if (!stream->Write(request) || !stream->Read(&response)) break;
    refused = sink(response);
    request.Clear();
  }
  if (!refused.ok()) context.TryCancel();
  stream->WritesDone();
  const absl::Status status = ToAbsl(stream->Finish(), context);
  return refused.ok() ? status : refused;
}

}  // namespace optod::client
