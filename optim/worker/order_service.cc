#include "optim/worker/order_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "base/status.h"
#include "optim/order/matrix.h"
#include "optim/order/orders.h"
#include "optim/order/search.h"
#include "optim/order_job/run.h"
#include "optim/order_job/stop_watch.h"

namespace optod::worker {
namespace {

using Clock = std::chrono::steady_clock;
using order::Metric;
using order::Order;
using order::Study;

constexpr size_t kChunk = 1 << 20;
constexpr int kMostOrders = 4096;

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

// ---- from the wire

Order OrderOf(const v1::SampleOrder& order) { return {order.batches().begin(), order.batches().end()}; }

Metric MetricOf(const v1::OrderMetric& message) {
  Metric metric;
  metric.perplexity = message.perplexity();
  if (message.batches().empty() && message.evaluations().empty()) return metric;
  metric.data.clear();
  for (const int batch : message.batches()) metric.data.push_back(order::Batch(batch));
  for (const int set : message.evaluations()) metric.data.push_back(order::Evaluation(set));
  return metric;
}

absl::StatusOr<order::EstimateOptions> OptionsOf(const v1::OrderEstimateOptions& message) {
  order::EstimateOptions options;
  options.calibrate = !message.uncalibrated();
  if (message.has_expansion()) {
    if (message.expansion() < 0 || message.expansion() > 2)
      return InvalidArgument("options.expansion: ", message.expansion(), "; must be 0, 1 or 2");
    options.expansion = message.expansion();
  }
  switch (message.moments()) {
    case v1::OrderEstimateOptions::MOMENTS_UNSPECIFIED:
    case v1::OrderEstimateOptions::REPLAY:
      break;
    case v1::OrderEstimateOptions::REFERENCE:
      options.moments = order::Moments::kReference;
      break;
    default:
      return InvalidArgument("options.moments: ", static_cast<int>(message.moments()), " is no choice");
  }
  return options;
}

absl::StatusOr<order::LossMode> LossOf(const v1::OrderEstimateOptions& message) {
  if (message.loss() == v1::OrderEstimateOptions::LINEAR) return order::LossMode::kLinear;
  if (message.loss() == v1::OrderEstimateOptions::FORWARD ||
      message.loss() == v1::OrderEstimateOptions::LOSS_UNSPECIFIED)
    return order::LossMode::kForward;
  return InvalidArgument("options.loss: ", static_cast<int>(message.loss()), " is no choice");
}

void SetOrder(const Order& order, v1::SampleOrder* out) { out->mutable_batches()->Assign(order.begin(), order.end()); }

absl::StatusOr<order::SearchOptions> SearchOf(const v1::SearchOrdersRequest& request) {
  order::SearchOptions options;
  if (request.method() < 0 || request.method() > v1::SearchOrdersRequest::LOCAL)
    return InvalidArgument("method: ", static_cast<int>(request.method()), " is no choice");
  if (request.method() == v1::SearchOrdersRequest::LOCAL) options.method = order::SearchMethod::kLocal;
  for (const auto& [field, value, most] : {std::tuple{"population", request.population(), 100'000},
                                           {"generations", request.generations(), 100'000},
                                           {"tournament", request.tournament(), 100'000}}) {
    if (value < 0 || value > most) return InvalidArgument(field, ": ", value, "; must be in 0..", most);
  }
  if (request.population() > 0) options.population = request.population();
  if (request.generations() > 0) options.generations = request.generations();
  options.tournament = request.tournament() > 0 ? request.tournament() : std::min(3, options.population);
  if (request.has_crossover()) options.crossover = request.crossover();
  if (request.has_mutation()) options.mutation = request.mutation();
  options.elitism = request.has_elitism() ? request.elitism() : std::min(2, options.population - 1);
  options.seed = request.seed();
  for (const auto& order : request.start()) options.start.push_back(OrderOf(order));
  options.metric = MetricOf(request.metric());
  options.retrain_best = request.retrain_best();
  ASSIGN_OR_RETURN(options.estimate, OptionsOf(request.options()));
  ASSIGN_OR_RETURN(options.mode, LossOf(request.options()));
  return options;
}

std::string KeyOf(const Metric& metric) {
  std::string key = metric.perplexity ? "p" : "l";
  for (const order::DataRef& data : metric.data)
    key += Cat(data.part == order::DataRef::Part::kBatch ? " b" : " e", data.index);
  return key;
}

std::map<std::string, std::string> LinesOf(const order::StudyOptions& options) {
  std::map<std::string, std::string> values;
  std::istringstream in(ToText(options));
  for (std::string line; std::getline(in, line);)
    values[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  return values;
}

double Distance(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

}  // namespace

/// Counts a call for Idle, and stops its work when the caller is gone.
class OrderService::Call {
 public:
  Call(OrderService& service, grpc::ServerContext* context)
      : service_(service), watch_([context] { return context != nullptr && context->IsCancelled(); }) {
    ++service_.calls_;
  }
  ~Call() {
    service_.ended_ = Clock::now().time_since_epoch().count();
    --service_.calls_;
  }
  order::Control control() const { return {{}, watch_.token()}; }

 private:
  OrderService& service_;
  order::StopWatch watch_;
};

std::chrono::milliseconds OrderService::Idle() const {
  if (calls_ > 0) return std::chrono::milliseconds(0);
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch() -
                                                               Clock::duration(ended_.load()));
}

absl::StatusOr<std::shared_ptr<Study>> OrderService::Open(const Expected& expected) {
  const std::lock_guard lock(mutex_);
  const std::string directory = folder_.path + "/study";
  if (study_ == nullptr || !study_->complete()) {
    absl::StatusOr<std::unique_ptr<Study>> study = Study::Open(fs_, directory, folder_.model);
    if (absl::IsNotFound(study.status())) return FailedPrecondition("study: nothing is recorded yet");
    if (!study.ok()) return study.status();
    if (!(*study)->recorded()) return FailedPrecondition("study: the reference run is not recorded yet");
    study_ = *std::move(study);
  }
  if (expected.empty()) return study_;
  std::map<std::string, std::string> values = LinesOf(study_->options());
  for (const auto& [key, value] : expected) values[key] = value;
  absl::StatusOr<order::StudyOptions> asked = order::ParseStudyOptions(values);
  if (!asked.ok()) return InvalidArgument("expected.", std::string(asked.status().message()));
  RETURN_IF_ERROR(Study::Open(fs_, directory, nullptr, &*asked).status());
  return study_;
}

absl::StatusOr<double> OrderService::Reference(Study& study, const Metric& metric) {
  const std::string key = KeyOf(metric);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = references_.find(key); found != references_.end()) return found->second;
  }
  ASSIGN_OR_RETURN(const double value, study.Measure(metric, study.trajectory().Row(study.positions())));
  const std::lock_guard lock(mutex_);
  return references_[key] = value;
}

// ---- GetStudy

absl::Status OrderService::Describe(const v1::GetStudyRequest& request, v1::OrderStudy* out) {
  ASSIGN_OR_RETURN(const auto study, Open(request.expected()));
  out->set_study(folder_.name);
  for (const auto& [key, value] : LinesOf(study->options())) (*out->mutable_options())[key] = value;
  out->set_model(folder_.model->fingerprint());
  out->set_parameters(static_cast<int64_t>(study->parameters()));
  out->set_batches(study->batches());
  out->set_positions(study->positions());
  out->set_evaluations(folder_.model->evaluations());
  out->set_precision_bits(folder_.model->precision() == order::Precision::kFloat32 ? 32 : 64);
  out->set_complete(study->complete());
  out->set_files_filled(study->terms().filled());
  out->set_files(study->terms().layout().segments());
  SetOrder(study->reference_order(), out->mutable_reference_order());
  out->mutable_lr()->Assign(study->lr().begin(), study->lr().end());
  if (request.decode_errors()) {
    ASSIGN_OR_RETURN(const std::vector<double> errors, study->terms().DecodeErrors());
    out->mutable_decode_errors()->Assign(errors.begin(), errors.end());
  }
  ASSIGN_OR_RETURN(const order::Cost cost, study->PredictCost());
  out->mutable_cost()->set_terms_bytes(cost.terms_bytes);
  out->mutable_cost()->set_reference_bytes(cost.reference_bytes);
  out->mutable_cost()->set_gradients(cost.gradients);
  out->mutable_cost()->set_hessian_products(cost.hessian_products);
  out->mutable_cost()->set_decoded_bytes(cost.decoded_bytes);
  if (folder_.model->evaluations() == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double loss, Reference(*study, {}));
  out->set_reference_loss(loss);
  return absl::OkStatus();
}

grpc::Status OrderService::GetStudy(grpc::ServerContext* context, const v1::GetStudyRequest* request,
                                    v1::OrderStudy* response) {
  const Call call(*this, context);
  return ToGrpc(Describe(*request, response));
}

// ---- estimates

absl::Status OrderService::One(const v1::EstimateOrderRequest& request, const order::Control& control,
                               v1::OrderEstimate* out) {
  ASSIGN_OR_RETURN(const auto study, Open(request.expected()));
  ASSIGN_OR_RETURN(const order::EstimateOptions options, OptionsOf(request.options()));
  ASSIGN_OR_RETURN(const order::LossMode loss, LossOf(request.options()));
  const Metric metric = MetricOf(request.metric());
  const Order order = OrderOf(request.order());
  ASSIGN_OR_RETURN(const double reference, Reference(*study, metric));
  const auto begin = Clock::now();
  ASSIGN_OR_RETURN(const auto parameters, study->Estimate(std::span(&order, 1), options, control));
  out->set_seconds(SecondsSince(begin));
  ASSIGN_OR_RETURN(const auto values, study->Losses(std::span(&order, 1), metric, loss, options, control));
  out->set_value(values[0]);
  const std::vector<double> end = study->trajectory().Row(study->positions());
  out->set_reference_value(reference);
  out->set_distance(Distance(parameters[0], end));
  if (!request.retrain()) return absl::OkStatus();
  const auto training = Clock::now();
  ASSIGN_OR_RETURN(const order::TrainingRun run, study->Retrain(order, control));
  out->set_retrain_seconds(SecondsSince(training));
  ASSIGN_OR_RETURN(const double retrained, study->Measure(metric, run.parameters));
  out->set_retrained(retrained);
  const double moved = Distance(end, run.parameters);
  out->set_error(moved > 0.0 ? Distance(parameters[0], run.parameters) / moved : 0.0);
  return absl::OkStatus();
}

grpc::Status OrderService::EstimateOrder(grpc::ServerContext* context, const v1::EstimateOrderRequest* request,
                                         v1::OrderEstimate* response) {
  const Call call(*this, context);
  return ToGrpc(One(*request, call.control(), response));
}

grpc::Status OrderService::EstimateOrders(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::EstimateOrdersResponse, v1::EstimateOrdersRequest>* stream) {
  const Call call(*this, context);
  v1::EstimateOrdersRequest first, request;
  if (!stream->Read(&request)) return ToGrpc(InvalidArgument("stream: it has no request"));
  first = request;
  first.clear_orders();
  const auto work = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto study, Open(first.expected()));
    ASSIGN_OR_RETURN(const order::EstimateOptions options, OptionsOf(first.options()));
    ASSIGN_OR_RETURN(const order::LossMode loss, LossOf(first.options()));
    const Metric metric = MetricOf(first.metric());
    do {
      if (request.orders_size() > kMostOrders)
        return InvalidArgument("orders: ", request.orders_size(), " in one request; at most ", kMostOrders);
      std::vector<Order> orders;
      for (const auto& order : request.orders()) orders.push_back(OrderOf(order));
      const auto begin = Clock::now();
      ASSIGN_OR_RETURN(const auto values, study->Losses(orders, metric, loss, options, call.control()));
      v1::EstimateOrdersResponse response;
      response.mutable_values()->Assign(values.begin(), values.end());
      response.set_seconds(SecondsSince(begin));
      if (!stream->Write(response)) return absl::CancelledError("the caller is gone");
    } while (stream->Read(&request));
    return absl::OkStatus();
  };
  return ToGrpc(work());
}

// ---- search and matrix

grpc::Status OrderService::SearchOrders(grpc::ServerContext* context, const v1::SearchOrdersRequest* request,
                                        grpc::ServerWriter<v1::SearchOrdersResponse>* writer) {
  const Call call(*this, context);
  const auto work = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto study, Open(request->expected()));
    ASSIGN_OR_RETURN(const order::SearchOptions options, SearchOf(*request));
    v1::SearchOrdersResponse response;
    response.set_generations(options.generations);
    order::Control control = call.control();
    control.progress = [&](int64_t done, int64_t, double) {
      response.set_generation(static_cast<int32_t>(done));
      if (done < options.generations) writer->Write(response);
    };
    ASSIGN_OR_RETURN(const order::SearchResult found, order::SearchOrder(*study, fs_, options, control));
    response.set_generation(options.generations);
    v1::SearchOrdersResult& result = *response.mutable_result();
    SetOrder(found.order, result.mutable_order());
    result.set_estimated(found.estimated);
    if (found.retrained) result.set_retrained(*found.retrained);
    result.mutable_best()->Assign(found.best.begin(), found.best.end());
    result.mutable_mean()->Assign(found.mean.begin(), found.mean.end());
    result.set_evaluations(found.evaluations);
    writer->Write(response);
    return absl::OkStatus();
  };
  return ToGrpc(work());
}

grpc::Status OrderService::EstimateMatrix(grpc::ServerContext* context, const v1::EstimateMatrixRequest* request,
                                          grpc::ServerWriter<v1::EstimateMatrixResponse>* writer) {
  const Call call(*this, context);
  const auto work = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto study, Open(request->expected()));
    order::MatrixOptions options;
    options.memorisation = !request->generalisation();
    options.metric = MetricOf(request->metric());
    ASSIGN_OR_RETURN(options.estimate, OptionsOf(request->options()));
    ASSIGN_OR_RETURN(const order::LossMode loss, LossOf(request->options()));
    if (loss != order::LossMode::kForward) return InvalidArgument("options.loss: LINEAR; a matrix takes FORWARD");
    options.spot_checks = request->spot_checks();
    options.seed = request->seed();
    const auto begin = Clock::now();
    auto told = begin;
    order::Control control = call.control();
    control.progress = [&](int64_t, int64_t, double) {
      if (Clock::now() - told < std::chrono::seconds(1)) return;
      told = Clock::now();
      v1::EstimateMatrixResponse so_far;
      so_far.set_seconds(SecondsSince(begin));
      writer->Write(so_far);
    };
    ASSIGN_OR_RETURN(const order::Matrix matrix,
                     order::EstimateMatrix(*study, options, OrderOf(request->base()), control));
    v1::EstimateMatrixResponse response;
    response.set_seconds(SecondsSince(begin));
    response.set_batches(matrix.batches);
    response.mutable_values()->Assign(matrix.values.begin(), matrix.values.end());
    for (const order::SpotCheck& check : matrix.spots) {
      auto* spot = response.add_spots();
      spot->set_batch(check.batch);
      spot->set_position(check.position);
      spot->set_estimated(check.estimated);
      spot->set_retrained(check.retrained);
    }
    response.set_pearson(matrix.confidence.pearson);
    response.set_spearman(matrix.confidence.spearman);
    response.set_l1(matrix.confidence.l1);
    response.set_mse(matrix.confidence.mse);
    writer->Write(response);
    return absl::OkStatus();
  };
  return ToGrpc(work());
}

// ---- export

namespace {

/// Sends a file in chunks as it is made.
class ChunkedFile {
 public:
  ChunkedFile(int64_t total, const std::function<bool(const v1::OrderChunk&)>& send) : total_(total), send_(send) {}

  absl::Status Add(const std::string& bytes) {
    waiting_ += bytes;
    while (waiting_.size() >= kChunk) RETURN_IF_ERROR(Send(kChunk));
    return absl::OkStatus();
  }
  absl::Status End() { return waiting_.empty() ? absl::OkStatus() : Send(waiting_.size()); }

 private:
  absl::Status Send(size_t size) {
    v1::OrderChunk chunk;
    chunk.set_offset(offset_);
    chunk.set_data(waiting_.substr(0, size));
    chunk.set_total_bytes(total_);
    waiting_.erase(0, size);
    offset_ += static_cast<int64_t>(size);
    return send_(chunk) ? absl::OkStatus() : absl::CancelledError("the caller is gone");
  }

  const int64_t total_;
  const std::function<bool(const v1::OrderChunk&)>& send_;
  std::string waiting_;
  int64_t offset_ = 0;
};

}  // namespace

absl::Status OrderService::Export(const v1::ExportOrderRequest& request,
                                  const std::function<bool(const v1::OrderChunk&)>& send) {
  ASSIGN_OR_RETURN(const auto study, Open(request.expected()));
  ASSIGN_OR_RETURN(const order::EstimateOptions options, OptionsOf(request.options()));
  if (request.format() < 0 || request.format() > v1::ExportOrderRequest::NPY)
    return InvalidArgument("format: ", static_cast<int>(request.format()), " is no choice");
  const bool narrow = folder_.model->precision() == order::Precision::kFloat32;
  const auto n = static_cast<int64_t>(study->parameters());
  const int64_t rows = request.trajectory() ? study->positions() + 1 : 1;
  std::vector<std::vector<double>> path;
  if (request.has_order() && request.trajectory()) {
    ASSIGN_OR_RETURN(path, study->Path(OrderOf(request.order()), options));
  } else if (request.has_order()) {
    const Order order = OrderOf(request.order());
    ASSIGN_OR_RETURN(path, study->Estimate(std::span(&order, 1), options));
  }
  const std::vector<int64_t> shape = request.trajectory() ? std::vector<int64_t>{rows, n} : std::vector<int64_t>{n};
  std::vector<order::NamedPart> parts = folder_.tensors;
  if (request.trajectory()) parts = {{"trajectory", shape}};
  if (parts.empty()) parts = {{"parameters", shape}};
  const std::string header = request.format() == v1::ExportOrderRequest::NPY
                                 ? order::NpyHeader(shape, narrow ? "<f4" : "<f8")
                                 : order::SafetensorsHeader(parts, narrow);
  ChunkedFile file(static_cast<int64_t>(header.size()) + rows * n * (narrow ? 4 : 8), send);
  RETURN_IF_ERROR(file.Add(header));
  for (int64_t row = 0; row < rows; ++row) {
    std::string bytes;
    const int t = request.trajectory() ? static_cast<int>(row) : study->positions();
    order::AppendNumbers(path.empty() ? study->trajectory().Row(t) : path[static_cast<size_t>(row)], narrow, &bytes);
    RETURN_IF_ERROR(file.Add(bytes));
  }
  return file.End();
}

grpc::Status OrderService::ExportOrder(grpc::ServerContext* context, const v1::ExportOrderRequest* request,
                                       grpc::ServerWriter<v1::OrderChunk>* writer) {
  const Call call(*this, context);
  return ToGrpc(Export(*request, [&](const v1::OrderChunk& chunk) { return writer->Write(chunk); }));
}

}  // namespace optod::worker
