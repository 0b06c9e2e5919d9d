/*
 * Faults of a disk, for one process: preloaded before libc, it makes calls on the books' files fail
 * as a control file says, and logs each call. Built by tests/support/faults.rs.
 *
 * $TOLLGATE_FAULTS/control is read at every call; each line is
 *     CALL ACTION [N [PART]]
 * CALL: write, fdatasync, fsync, open, rename, ftruncate, fallocate, unlink, or any.
 * ACTION: ENOSPC, EIO, EINTR, short, delay (N ms), kill (before the Nth call of the process that
 * matches), wait (until the file says something else). With PART only calls on files whose path has
 * it. EINTR fails every other call. A call that is made is logged with its result.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls, interruptions;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_books(const char *path) { return path && strstr(path, "/books") != NULL; }

static const char *path_of(int fd, char *buffer, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, size - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

static int file_of(const char *name, int flags) {
    const char *dir = getenv("TOLLGATE_FAULTS");
    char path[4096];
    if (!dir) return -1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return REAL(open)(path, flags | O_CLOEXEC, 0600);
}

static void note(const char *call, const char *path, long result) {
    char line[4300];
    int fd = file_of("log", O_WRONLY | O_APPEND | O_CREAT);
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %s %ld\n", call, path, result);
    if (REAL(write)(fd, line, length) < 0) { /* a log that cannot be written tells nothing */ }
    REAL(close)(fd);
}

static void rest(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* What the control file says of this call: 0 to go on, else the errno; *count may be lowered. */
static int decide(const char *call, const char *path, size_t *count) {
    int result = 0, counted = 0;
again:;
    char text[1024] = "", *lines = text;
    int fd = file_of("control", O_RDONLY);
    if (fd < 0) return 0;
    ssize_t length = REAL(read)(fd, text, sizeof text - 1);
    REAL(close)(fd);
    text[length < 0 ? 0 : length] = 0;
    pthread_mutex_lock(&lock);
    if (!counted++) calls++;
    for (char *line; (line = strsep(&lines, "\n"));) {
        char on[32] = "", action[32] = "", part[64] = "";
        long number = 0;
        if (sscanf(line, "%31s %31s %ld %63s", on, action, &number, part) < 2) continue;
        if ((strcmp(on, "any") && strcmp(on, call)) || !strstr(path, part)) continue;
        if (!strcmp(action, "kill") && calls >= number) {
            note("killed", path, calls);
            raise(SIGKILL);
        } else if (!strcmp(action, "EIO")) {
            result = EIO;
        } else if (!strcmp(action, "ENOSPC")) {
            result = ENOSPC;
        } else if (!strcmp(action, "EINTR")) {
            if (interruptions++ % 2 == 0) result = EINTR;
        } else if (!strcmp(action, "short")) {
            if (count && *count > 1) *count = *count / 2;
        } else if (!strcmp(action, "delay")) {
            pthread_mutex_unlock(&lock);
            rest(number);
            pthread_mutex_lock(&lock);
        } else if (!strcmp(action, "wait")) {
            pthread_mutex_unlock(&lock);
            rest(5);
            goto again;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

#define FAIL(call, path, error) \
    do { note(call, path, -(error)); errno = (error); return -1; } while (0)

ssize_t write(int fd, const void *bytes, size_t count) {
    char buffer[4096];
    if (getenv("TOLLGATE_FAULTS") && is_books(path_of(fd, buffer, sizeof buffer))) {
        int error = decide("write", buffer, &count);
        if (error) FAIL("write", buffer, error);
        ssize_t result = REAL(write)(fd, bytes, count);
        note("write", buffer, result);
        return result;
    }
    return REAL(write)(fd, bytes, count);
}

static int on_file(const char *call, int fd, int (*real)(int)) {
    char buffer[4096];
    if (!is_books(path_of(fd, buffer, sizeof buffer))) return real(fd);
    int error = decide(call, buffer, NULL);
    if (error) FAIL(call, buffer, error);
    int result = real(fd);
    note(call, buffer, result);
    return result;
}

int fsync(int fd) { return on_file("fsync", fd, REAL(fsync)); }
int fdatasync(int fd) { return on_file("fdatasync", fd, REAL(fdatasync)); }

static int truncated(int fd, off64_t length) {
    char buffer[4096];
    if (is_books(path_of(fd, buffer, sizeof buffer))) {
        int error = decide("ftruncate", buffer, NULL);
        if (error) FAIL("ftruncate", buffer, error);
        note("ftruncate", buffer, length);
    }
    return REAL(ftruncate64)(fd, length);
}
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }
int ftruncate(int fd, off_t length) { return truncated(fd, length); }

static int reserved(int fd, int mode, off64_t offset, off64_t length) {
    char buffer[4096];
    if (is_books(path_of(fd, buffer, sizeof buffer))) {
        int error = decide("fallocate", buffer, NULL);
        if (error) FAIL("fallocate", buffer, error);
        note("fallocate", buffer, length);
    }
    return REAL(fallocate64)(fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    return reserved(fd, mode, offset, length);
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
    return reserved(fd, mode, offset, length);
}

static int opened(const char *path, int flags, mode_t mode) {
    /* Only what changes something: readers are many, and nothing of them is recovered from. */
    if (is_books(path) && (flags & (O_CREAT | O_TRUNC))) {
        int error = decide("open", path, NULL);
        if (error) FAIL("open", path, error);
        int result = REAL(open64)(path, flags, mode);
        note("open", path, result < 0 ? -errno : 0);
        return result;
    }
    return REAL(open64)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return opened(path, flags, mode);
}

int rename(const char *from, const char *to) {
    if (is_books(to)) {
        int error = decide("rename", to, NULL);
        if (error) FAIL("rename", to, error);
        int result = REAL(rename)(from, to);
        note("rename", to, result);
        return result;
    }
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    if (is_books(path)) {
        int error = decide("unlink", path, NULL);
        if (error) FAIL("unlink", path, error);
        int result = REAL(unlink)(path);
        note("unlink", path, result < 0 ? -errno : 0);
        return result;
    }
    return REAL(unlink)(path);
}
