#pragma once
/// Counts every call of every service, times it, and logs those that failed through our own fault (INTERNAL, UNKNOWN,
/// DATA_LOSS). One interceptor, so that no handler has to think of it. Thread-safe.

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "base/clock.h"
#include "server/web/metrics.h"

namespace optod::services {

/// `metrics` and `clock` must outlive the gRPC server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeRequestMeter(web::Metrics& metrics,
                                                                                        Clock& clock);

}  // namespace optod::services
