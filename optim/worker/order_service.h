#pragma once
/// optod.v1.OrderService over one recorded study: the answers of the process that the server starts for the questions
/// about it. Synchronous; calls may overlap. Knows gRPC and optim/order, not LibTorch: the model comes from a function.

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "optim/order_job/files.h"
#include "optim/order_job/spec.h"
#include "optod/v1/order.grpc.pb.h"

namespace optod::worker {

/// What the folder of a sample_order job holds (optim/order_job/run.h), and how to get its model.
struct OrderFolder {
  std::string path;
  std::string name;  ///< users/U/jobs/J
  order::SampleOrderSpec spec;
  std::shared_ptr<const order::Model> model;
  std::vector<order::NamedPart> tensors;  ///< of the parameters; empty: one tensor `parameters`
};

class OrderService final : public v1::OrderService::Service {
 public:
  OrderService(Fs& fs, OrderFolder folder) : fs_(fs), folder_(std::move(folder)) {}

  grpc::Status GetStudy(grpc::ServerContext*, const v1::GetStudyRequest*, v1::OrderStudy*) override;
  grpc::Status EstimateOrder(grpc::ServerContext*, const v1::EstimateOrderRequest*, v1::OrderEstimate*) override;
  grpc::Status EstimateOrders(
      grpc::ServerContext*, grpc::ServerReaderWriter<v1::EstimateOrdersResponse, v1::EstimateOrdersRequest>*) override;
  grpc::Status SearchOrders(grpc::ServerContext*, const v1::SearchOrdersRequest*,
                            grpc::ServerWriter<v1::SearchOrdersResponse>*) override;
  grpc::Status EstimateMatrix(grpc::ServerContext*, const v1::EstimateMatrixRequest*,
                              grpc::ServerWriter<v1::EstimateMatrixResponse>*) override;
  grpc::Status ExportOrder(grpc::ServerContext*, const v1::ExportOrderRequest*,
                           grpc::ServerWriter<v1::OrderChunk>*) override;

  /// Since the last call ended; 0 while one is under way.
  std::chrono::milliseconds Idle() const;

 private:
  using Expected = google::protobuf::Map<std::string, std::string>;
  class Call;

  /// The study as it is on the disk now: read again until it is complete. FAILED_PRECONDITION when it is not recorded,
  /// or when `expected` differs from what is.
  absl::StatusOr<std::shared_ptr<order::Study>> Open(const Expected& expected);
  absl::StatusOr<double> Reference(order::Study& study, const order::Metric& metric);

  absl::Status Describe(const v1::GetStudyRequest& request, v1::OrderStudy* out);
  absl::Status One(const v1::EstimateOrderRequest& request, const order::Control& control, v1::OrderEstimate* out);
  absl::Status Export(const v1::ExportOrderRequest& request, const std::function<bool(const v1::OrderChunk&)>& send);

  Fs& fs_;
  const OrderFolder folder_;
  std::mutex mutex_;
  std::shared_ptr<order::Study> study_;
  std::map<std::string, double> references_;  // by metric
  std::atomic<int> calls_{0};
  std::atomic<std::chrono::steady_clock::rep> ended_{std::chrono::steady_clock::now().time_since_epoch().count()};
};

}  // namespace optod::worker
