#define OPTOD_KERNEL_TABLE kKernelsAvx2
#define OPTOD_KERNEL_NAME "avx2"
#define OPTOD_VECTOR_LANES 8
#include "optim/rules/kernels_body.h"
