#define OPTOD_ORDER_TABLE kScalar
#define OPTOD_ORDER_NAME "scalar"
#include "optim/order/kernels_body.h"
