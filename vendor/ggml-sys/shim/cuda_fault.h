// What CUDA needs of the system beside its runtime, which is in the program: the driver, a card, cuBLAS.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Why no card can compute: Rust's cuda::Fault.
enum ph_cuda_fault {
    PH_CUDA_WORKS      = 0,
    PH_CUDA_NO_DRIVER  = 1, // libcuda.so.1 is not there
    PH_CUDA_OLD_DRIVER = 2, // it is older than the toolkit that this was compiled with
    PH_CUDA_NO_CARD    = 3, // it finds none
    PH_CUDA_FAILS      = 4, // otherwise
    PH_CUDA_NO_CUBLAS  = 5, // there is a card, and the library cannot be loaded
};

// Says in `message`, of at most size - 1 bytes and a NUL, what the system does.
int ph_cuda_fault(char * message, size_t size);

// The version of the toolkit: 1000 times the major and ten times the minor number.
int ph_cuda_version(void);

// Why cuBLAS cannot be called, or NULL. Loads it when it is first called.
const char * ph_cublas_problem(void);

#ifdef __cplusplus
}
#endif
