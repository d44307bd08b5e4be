#pragma once
/// Questions about a recorded study of the sample order (optod/v1/order.proto, whose comments are the manual). The job
/// that records one is submitted with Client::CreateJob. Thread-safe; errors and retries as Client's.

#include <functional>
#include <memory>

#include "clients/cpp/client.h"
#include "optod/v1/order.pb.h"

namespace optod::client {

class OrderClient {
 public:
  /// INVALID_ARGUMENT: an address that is neither HOST:PORT nor unix:PATH.
  static absl::StatusOr<std::unique_ptr<OrderClient>> Connect(const ClientOptions& options);
  ~OrderClient();

  /// Sent again when the study's process went away meanwhile (UNAVAILABLE).
  absl::StatusOr<v1::OrderStudy> GetStudy(const v1::GetStudyRequest& request);
  absl::StatusOr<v1::OrderEstimate> EstimateOrder(const v1::EstimateOrderRequest& request);

  /// Any number of orders: `next` fills the next request and returns false when there is none; `sink` gets one answer a
  /// request. Lock-step, one stream.
  absl::Status EstimateOrders(const std::function<bool(v1::EstimateOrdersRequest*)>& next,
                              const std::function<absl::Status(const v1::EstimateOrdersResponse&)>& sink);
  /// Every answer until the last; an error of `sink` ends the call.
  absl::Status SearchOrders(const v1::SearchOrdersRequest& request,
                            const std::function<absl::Status(const v1::SearchOrdersResponse&)>& sink);
  absl::Status EstimateMatrix(const v1::EstimateMatrixRequest& request,
                              const std::function<absl::Status(const v1::EstimateMatrixResponse&)>& sink);
  absl::Status ExportOrder(const v1::ExportOrderRequest& request,
                           const std::function<absl::Status(const v1::OrderChunk&)>& sink);

 private:
  struct Impl;
  explicit OrderClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::client
