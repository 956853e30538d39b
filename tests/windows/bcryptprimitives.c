/* A stand-in for a library that some Wines lack, for tests. */
#include <windows.h>

/* Of advapi32: RtlGenRandom by its documentation, and by no header of mingw-w64's. */
BOOLEAN WINAPI SystemFunction036(PVOID buffer, ULONG size);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) {
    SIZE_T done;
    for (done = 0; done < size;) {
        ULONG piece = size - done > 65536 ? 65536 : (ULONG)(size - done);
        if (!SystemFunction036(data + done, piece)) return FALSE;
        done += piece;
    }
    return TRUE;
}
