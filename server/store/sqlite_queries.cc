#include "server/store/sqlite_queries.h"

#include <cstddef>

namespace optod::store {
namespace {

constexpr const char* kSql[] = {
#define OPTOD_STORE_SQL(name, sql) sql,
    OPTOD_STORE_QUERIES(OPTOD_STORE_SQL)
#undef OPTOD_STORE_SQL
};

}  // namespace

const char* SqlOf(Query query) { return kSql[static_cast<size_t>(query)]; }

}  // namespace optod::store
