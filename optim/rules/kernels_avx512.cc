#define OPTOD_KERNEL_TABLE kKernelsAvx512
#define OPTOD_KERNEL_NAME "avx512"
#define OPTOD_VECTOR_LANES 16
#include "optim/rules/kernels_body.h"
