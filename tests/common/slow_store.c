/* An artifact store that takes its time: preloaded into a process, it makes every opening and renaming of a file below a folder
   `artifacts` last SLOW_STORE_SECONDS, for as long as the file SLOW_STORE_WHILE is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void dawdle(const char *path) {
    const char *seconds = getenv("SLOW_STORE_SECONDS"), *flag = getenv("SLOW_STORE_WHILE");
    if (seconds && flag && strstr(path, "/artifacts/") && access(flag, F_OK) == 0)
        usleep((useconds_t)(atof(seconds) * 1e6));
}

static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    dawdle(path);
    if (!real)
        real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    dawdle(to);
    if (!real)
        real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}
