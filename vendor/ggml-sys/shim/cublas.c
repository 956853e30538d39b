// cuBLAS, looked up when it is first needed: a program that links it would start only where it is. ggml's CUDA backend calls
// the functions below and no others, which the linker checks.

#include "cuda_fault.h"

#include <cublas_v2.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define TEXT_OF(value) #value
#define TEXT(value)    TEXT_OF(value)
#define LIBRARY        "libcublas.so." TEXT(CUBLAS_VER_MAJOR)

// Name, parameters, arguments.
#define PRODUCT_PARAMETERS cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k
#define PRODUCT            handle, transa, transb, m, n, k
#define STAND_INS(X)                                                                                                      \
    X(cublasCreate_v2, (cublasHandle_t * handle), (handle))                                                               \
    X(cublasDestroy_v2, (cublasHandle_t handle), (handle))                                                                \
    X(cublasSetMathMode, (cublasHandle_t handle, cublasMath_t mode), (handle, mode))                                      \
    X(cublasSetStream_v2, (cublasHandle_t handle, cudaStream_t stream), (handle, stream))                                 \
    X(cublasSetWorkspace_v2, (cublasHandle_t handle, void * data, size_t size), (handle, data, size))                     \
    X(cublasSgemm_v2,                                                                                                     \
      (PRODUCT_PARAMETERS, const float * alpha, const float * a, int lda, const float * b, int ldb, const float * beta,   \
       float * c, int ldc),                                                                                               \
      (PRODUCT, alpha, a, lda, b, ldb, beta, c, ldc))                                                                     \
    X(cublasSgemmBatched,                                                                                                 \
      (PRODUCT_PARAMETERS, const float * alpha, const float * const a[], int lda, const float * const b[], int ldb,       \
       const float * beta, float * const c[], int ldc, int count),                                                        \
      (PRODUCT, alpha, a, lda, b, ldb, beta, c, ldc, count))                                                              \
    X(cublasSgemmStridedBatched,                                                                                          \
      (PRODUCT_PARAMETERS, const float * alpha, const float * a, int lda, long long a_step, const float * b, int ldb,     \
       long long b_step, const float * beta, float * c, int ldc, long long c_step, int count),                            \
      (PRODUCT, alpha, a, lda, a_step, b, ldb, b_step, beta, c, ldc, c_step, count))                                      \
    X(cublasGemmEx,                                                                                                       \
      (PRODUCT_PARAMETERS, const void * alpha, const void * a, cudaDataType a_type, int lda, const void * b,              \
       cudaDataType b_type, int ldb, const void * beta, void * c, cudaDataType c_type, int ldc,                           \
       cublasComputeType_t compute, cublasGemmAlgo_t algorithm),                                                          \
      (PRODUCT, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm))                         \
    X(cublasGemmBatchedEx,                                                                                                \
      (PRODUCT_PARAMETERS, const void * alpha, const void * const a[], cudaDataType a_type, int lda,                      \
       const void * const b[], cudaDataType b_type, int ldb, const void * beta, void * const c[], cudaDataType c_type,    \
       int ldc, int count, cublasComputeType_t compute, cublasGemmAlgo_t algorithm),                                      \
      (PRODUCT, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, count, compute, algorithm))                  \
    X(cublasGemmStridedBatchedEx,                                                                                         \
      (PRODUCT_PARAMETERS, const void * alpha, const void * a, cudaDataType a_type, int lda, long long a_step,            \
       const void * b, cudaDataType b_type, int ldb, long long b_step, const void * beta, void * c, cudaDataType c_type,  \
       int ldc, long long c_step, int count, cublasComputeType_t compute, cublasGemmAlgo_t algorithm),                    \
      (PRODUCT, alpha, a, a_type, lda, a_step, b, b_type, ldb, b_step, beta, c, c_type, ldc, c_step, count, compute,      \
       algorithm))                                                                                                        \
    X(cublasStrsmBatched,                                                                                                 \
      (cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,                      \
       cublasDiagType_t diag, int m, int n, const float * alpha, const float * const a[], int lda, float * const b[],     \
       int ldb, int count),                                                                                               \
      (handle, side, uplo, trans, diag, m, n, alpha, a, lda, b, ldb, count))

// The library's own functions; set once, before the first call of any.
static struct {
#define MEMBER(name, parameters, arguments) __typeof__(&name) name;
    STAND_INS(MEMBER)
    __typeof__(&cublasGetStatusString) cublasGetStatusString;
} real;

// Why it cannot be called; empty where it can.
static char problem[512];

// By its name, as the system finds libraries; then beside this program, or this library of pinhole's.
static void * open_library(void) {
    void * library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library) {
        return library;
    }
    snprintf(problem, sizeof(problem), "%s", dlerror());
    Dl_info here;
    if (!dladdr(&real, &here) || !here.dli_fname || !strrchr(here.dli_fname, '/')) {
        return NULL;
    }
    char      path[4096];
    const int folder = (int) (strrchr(here.dli_fname, '/') - here.dli_fname);
    if (snprintf(path, sizeof(path), "%.*s/" LIBRARY, folder, here.dli_fname) >= (int) sizeof(path)) {
        return NULL;
    }
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void * find(void * library, const char * name) {
    void * function = dlsym(library, name);
    if (!function) {
        snprintf(problem, sizeof(problem), "%s is without %s", LIBRARY, name);
    }
    return function;
}

static void load(void) {
    void * library = open_library();
    if (!library) {
        return;
    }
    problem[0] = '\0';
#define LOOK_UP(name, parameters, arguments) real.name = (__typeof__(&name)) find(library, #name);
    STAND_INS(LOOK_UP)
    real.cublasGetStatusString = (__typeof__(&cublasGetStatusString)) find(library, "cublasGetStatusString");
}

const char * ph_cublas_problem(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return problem[0] ? problem : NULL;
}

// Not even called where there is a problem, since the device is refused before; a status becomes an error all the same.
#define STAND_IN(name, parameters, arguments)                                                                             \
    cublasStatus_t CUBLASWINAPI name parameters {                                                                         \
        return ph_cublas_problem() ? CUBLAS_STATUS_NOT_INITIALIZED : real.name arguments;                                 \
    }
STAND_INS(STAND_IN)

const char * CUBLASWINAPI cublasGetStatusString(cublasStatus_t status) {
    const char * text = ph_cublas_problem();
    return text ? text : real.cublasGetStatusString(status);
}
