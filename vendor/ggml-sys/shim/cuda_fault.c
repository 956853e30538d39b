#include "cuda_fault.h"

#include <cuda_runtime_api.h>

#include <dlfcn.h>
#include <stdio.h>

int ph_cuda_version(void) {
    return CUDART_VERSION;
}

int ph_cuda_fault(char * message, size_t size) {
    // The runtime has one code for a driver that is old and for one that is not there.
    void * driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) {
        snprintf(message, size, "%s", dlerror());
        return PH_CUDA_NO_DRIVER;
    }
    dlclose(driver);
    int               count  = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    snprintf(message, size, "%s", cudaGetErrorString(status));
    switch (status) {
        case cudaSuccess:                 break;
        case cudaErrorInsufficientDriver: return PH_CUDA_OLD_DRIVER;
        case cudaErrorNoDevice:           return PH_CUDA_NO_CARD;
        default:                          return PH_CUDA_FAILS;
    }
    if (count == 0) {
        return PH_CUDA_NO_CARD;
    }
    const char * problem = ph_cublas_problem();
    if (problem) {
        snprintf(message, size, "%s", problem);
        return PH_CUDA_NO_CUBLAS;
    }
    return PH_CUDA_WORKS;
}
