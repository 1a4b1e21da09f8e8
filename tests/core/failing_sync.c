/* LD_PRELOAD: fsync and fdatasync fail as the file named by FAIL_SYNC says: "EIO" or "ENOSPC"; no file: they work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int failing(void) {
    const char *name = getenv("FAIL_SYNC");
    FILE *file = name ? fopen(name, "r") : NULL;
    int first;
    if (!file) return 0;
    first = fgetc(file) == 'E' ? fgetc(file) : 0;
    fclose(file);
    errno = first == 'N' ? ENOSPC : EIO;
    return first != 0;
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return failing() ? -1 : real(fd);
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return failing() ? -1 : real(fd);
}
