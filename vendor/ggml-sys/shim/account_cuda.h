// Included before every CUDA source of ggml's (see build/cuda.rs): its calls of allocators go to stand-ins that keep the
// account.
//
// Not seen: what the driver takes for its context and for the code of kernels, and what cuBLAS allocates of itself. The first and the
// last are measured before anything is planned: ph_cuda_card.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t ph_cuda_malloc(void ** data, size_t size);
cudaError_t ph_cuda_malloc_managed(void ** data, size_t size, unsigned int flags);
cudaError_t ph_cuda_free(void * data);
cudaError_t ph_cuda_host_alloc(void ** data, size_t size, unsigned int flags);
cudaError_t ph_cuda_free_host(void * data);

// The driver, looked up when it is first called: a binary that links it would start only where there is one.
CUresult ph_cuGetErrorString(CUresult error, const char ** text);
CUresult ph_cuDeviceGet(CUdevice * device, int ordinal);
CUresult ph_cuDeviceGetAttribute(int * value, CUdevice_attribute attribute, CUdevice device);
CUresult ph_cuMemGetAllocationGranularity(size_t * bytes, const CUmemAllocationProp * prop, CUmemAllocationGranularity_flags flags);
CUresult ph_cuMemCreate(CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp * prop, unsigned long long flags);
CUresult ph_cuMemRelease(CUmemGenericAllocationHandle handle);
CUresult ph_cuMemAddressReserve(CUdeviceptr * start, size_t size, size_t alignment, CUdeviceptr wanted, unsigned long long flags);
CUresult ph_cuMemAddressFree(CUdeviceptr start, size_t size);
CUresult ph_cuMemMap(CUdeviceptr start, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags);
CUresult ph_cuMemUnmap(CUdeviceptr start, size_t size);
CUresult ph_cuMemSetAccess(CUdeviceptr start, size_t size, const CUmemAccessDesc * access, size_t count);

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

#define cuGetErrorString              ph_cuGetErrorString
#define cuDeviceGet                   ph_cuDeviceGet
#define cuDeviceGetAttribute          ph_cuDeviceGetAttribute
#define cuMemGetAllocationGranularity ph_cuMemGetAllocationGranularity
#define cuMemCreate                   ph_cuMemCreate
#define cuMemRelease                  ph_cuMemRelease
#define cuMemAddressReserve           ph_cuMemAddressReserve
#define cuMemAddressFree              ph_cuMemAddressFree
#define cuMemMap                      ph_cuMemMap
#define cuMemUnmap                    ph_cuMemUnmap
#define cuMemSetAccess                ph_cuMemSetAccess
#endif
