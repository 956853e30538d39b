// Included before every CUDA source of ggml's (see build/cuda.rs): its calls of allocators go to stand-ins that keep the
// account.
//
// Not seen: what the driver takes for its context and for the code of kernels, and what cuBLAS allocates of itself.
#pragma once

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t ph_cuda_malloc(void ** data, size_t size);
cudaError_t ph_cuda_malloc_managed(void ** data, size_t size, unsigned int flags);
cudaError_t ph_cuda_free(void * data);
cudaError_t ph_cuda_host_alloc(void ** data, size_t size, unsigned int flags);
cudaError_t ph_cuda_free_host(void * data);

#ifdef __cplusplus
}
#endif

#ifndef PH_ACCOUNT_CUDA
#define cudaMalloc(data, size)               ph_cuda_malloc((void **) (data), size)
#define cudaMallocManaged(data, size)        ph_cuda_malloc_managed((void **) (data), size, cudaMemAttachGlobal)
#define cudaFree(data)                       ph_cuda_free(data)
#define cudaMallocHost(data, size)           ph_cuda_host_alloc((void **) (data), size, cudaHostAllocDefault)
#define cudaHostAlloc(data, size, flags)     ph_cuda_host_alloc((void **) (data), size, flags)
#define cudaFreeHost(data)                   ph_cuda_free_host(data)
#endif
