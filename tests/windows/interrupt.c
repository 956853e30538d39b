/* Runs a program, presses Ctrl-C after some milliseconds, and ends as the program does: interrupt MILLISECONDS PROGRAM ARGUMENT... */
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>
#include <windows.h>

/* The command line behind its first `count` words, none of which has spaces or quotes. */
static wchar_t *behind(wchar_t *line, int count) {
    for (; count > 0; count--) {
        line += wcscspn(line, L" ");
        line += wcsspn(line, L" ");
    }
    return line;
}

int main(int argc, char **argv) {
    STARTUPINFOW start = {0};
    PROCESS_INFORMATION process;
    DWORD code = 1;

    if (argc < 3) return 2;
    /* Signals reach those who share a console. */
    if (GetConsoleWindow() == NULL) AllocConsole();
    start.cb = sizeof start;
    if (!CreateProcessW(NULL, behind(GetCommandLineW(), 2), NULL, NULL, TRUE, 0, NULL, NULL, &start, &process)) {
        fprintf(stderr, "cannot start %s: error %lu\n", argv[2], GetLastError());
        return 1;
    }
    Sleep(atoi(argv[1]));
    if (WaitForSingleObject(process.hProcess, 0) == WAIT_OBJECT_0) {
        fprintf(stderr, "%s ended before Ctrl-C\n", argv[2]);
        return 1;
    }
    /* Not this process. Set when the other has begun, since it would be inherited. */
    SetConsoleCtrlHandler(NULL, TRUE);
    if (!GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0)) fprintf(stderr, "no Ctrl-C: error %lu\n", GetLastError());
    if (WaitForSingleObject(process.hProcess, 60000) != WAIT_OBJECT_0) {
        fprintf(stderr, "%s goes on after Ctrl-C\n", argv[2]);
        TerminateProcess(process.hProcess, 1);
        return 1;
    }
    GetExitCodeProcess(process.hProcess, &code);
    return (int)code;
}
