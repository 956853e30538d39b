/* Whether this Windows has what Rust's standard library takes random numbers from. */
#include <windows.h>

int main(void) {
    HMODULE library = LoadLibraryW(L"bcryptprimitives.dll");
    return library && GetProcAddress(library, "ProcessPrng") ? 0 : 1;
}
