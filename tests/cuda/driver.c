// A stand-in for NVIDIA's driver, as far as CUDA's runtime asks before there is a card: of version VERSION, and without cards.

#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NO_DEVICE = 100, NOT_FOUND = 500 };

int cuInit(unsigned flags) {
    (void) flags;
    return NO_DEVICE;
}

int cuDriverGetVersion(int * version) {
    *version = VERSION;
    return SUCCESS;
}

int cuGetExportTable(const void ** table, const void * id) {
    (void) id;
    *table = NULL;
    return NOT_INITIALIZED;
}

int cuGetProcAddress_v2(const char * name, void ** function, int version, uint64_t flags, void * found) {
    (void) version, (void) flags, (void) found;
    static const struct {
        const char * name;
        void *       function;
    } known[] = {
        { "cuInit", (void *) cuInit },
        { "cuDriverGetVersion", (void *) cuDriverGetVersion },
        { "cuGetExportTable", (void *) cuGetExportTable },
        { "cuGetProcAddress", (void *) cuGetProcAddress_v2 },
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *function = known[i].function;
            return SUCCESS;
        }
    }
    *function = NULL;
    return NOT_FOUND;
}

int cuGetProcAddress(const char * name, void ** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
