#define OPTOD_KERNEL_TABLE kKernelsAvx512
#define OPTOD_KERNEL_NAME "avx512"
#include "optim/rules/kernels_body.h"
