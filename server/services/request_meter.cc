#include "server/services/request_meter.h"

#include <grpcpp/support/status.h>

#include "server/log/log.h"

namespace optod::services {
namespace {

/// Lives as long as its call.
class RequestMeter final : public grpc::experimental::Interceptor {
 public:
  RequestMeter(web::Metrics& metrics, Clock& clock, const char* method)
      : metrics_(metrics), clock_(clock), method_(method), start_ns_(clock.NowMonotonicNs()) {
    metrics_.RequestStarted(method_);
  }
  ~RequestMeter() override {
    metrics_.RequestDone(method_, code_, std::chrono::nanoseconds(clock_.NowMonotonicNs() - start_ns_));
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      grpc::Status status = methods->GetSendStatus();
      code_ = status.error_code();
      if (code_ == grpc::INTERNAL || code_ == grpc::UNKNOWN || code_ == grpc::DATA_LOSS) {
        // DATA_LOSS may be a client's wrong checksum as well as a damaged file of ours.
        log::Write(code_ == grpc::DATA_LOSS ? log::Level::kWarn : log::Level::kError, "call_failed",
                   {{"method", method_}, {"code", static_cast<int>(code_)}, {"message", status.error_message()}});
      }
    }
    methods->Proceed();
  }

 private:
  web::Metrics& metrics_;
  Clock& clock_;
  const char* const method_;
  const int64_t start_ns_;
  grpc::StatusCode code_ = grpc::CANCELLED;  // what a call is that ends without a status
};

class Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  Factory(web::Metrics& metrics, Clock& clock) : metrics_(metrics), clock_(clock) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new RequestMeter(metrics_, clock_, info->method());
  }

 private:
  web::Metrics& metrics_;
  Clock& clock_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeRequestMeter(web::Metrics& metrics,
                                                                                        Clock& clock) {
  return std::make_unique<Factory>(metrics, clock);
}

}  // namespace optod::services
