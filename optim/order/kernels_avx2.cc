#define OPTOD_ORDER_TABLE kAvx2
#define OPTOD_ORDER_NAME "avx2"
#include "optim/order/kernels_body.h"
