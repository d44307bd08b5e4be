#pragma once
/// Services that the API declares and this release does not have: every call is UNIMPLEMENTED and says so, instead of
/// half working.

#include <memory>

namespace grpc {
class Service;
}

namespace optod::services {

/// "JobService: worker jobs are not part of this release". Callers are not authenticated: the answer says nothing about
/// anybody.
std::unique_ptr<grpc::Service> MakeUnimplementedJobService();

}  // namespace optod::services
