// Prints what shim/cuda_fault.c finds where CUDA's runtime has one card: a stand-in for it, since none may be here.

#include "cuda_fault.h"

#include <cuda_runtime_api.h>

#include <stdio.h>

cudaError_t CUDARTAPI cudaGetDeviceCount(int * count) {
    *count = 1;
    return cudaSuccess;
}

const char * CUDARTAPI cudaGetErrorString(cudaError_t status) {
    return status == cudaSuccess ? "no error" : "an error";
}

int main(void) {
    char      message[512];
    const int fault = ph_cuda_fault(message, sizeof(message));
    printf("%d %s\n", fault, message);
    return 0;
}
