/* Holds a file open, as programs do that show it: others may read it and not replace it. hold FILE: says "held", and ends when its input does. */
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

int main(int argc, char **argv) {
    wchar_t *name = wcschr(GetCommandLineW(), L' ');
    HANDLE file;

    if (argc != 2 || name == NULL) return 2;
    name += wcsspn(name, L" ");
    file = CreateFileW(name, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE) {
        fprintf(stderr, "cannot open %s: error %lu\n", argv[1], GetLastError());
        return 1;
    }
    puts("held");
    fflush(stdout);
    while (getchar() != EOF) {}
    CloseHandle(file);
    return 0;
}
