#define OPTOD_ORDER_TABLE kAvx512
#define OPTOD_ORDER_NAME "avx512"
#include "optim/order/kernels_body.h"
