#define OPTOD_KERNEL_TABLE kKernelsScalar
#define OPTOD_KERNEL_NAME "scalar"
#include "optim/rules/kernels_body.h"
