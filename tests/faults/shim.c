/* Counts every durable operation below one folder, and makes the process die or the disk refuse at one of them.
 *
 * Preloaded (LD_PRELOAD) before libc. Nothing is counted until `ew_arm`. A durable operation is one that can change
 * what is found after a restart: creating, writing, syncing, truncating, renaming, linking and removing. At the
 * chosen point the process is ended by SIGKILL before the operation, or after half of a write (a torn write); or the
 * operation fails with ENOSPC, once or from there on.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, TORN, FULL, ONCE };
enum verdict { PASS, HALF, REFUSE };

static char folder[PATH_MAX];
static size_t folder_length;
static int armed, mode, log_fd = -1;
static long at_point, counted;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Arms the shim. `path` must be free of symbolic links; `log` is a descriptor for one line a point, or -1. */
int ew_arm(const char *path, int how, long point, int log) {
    if (strlen(path) >= sizeof folder) return -1;
    strcpy(folder, path);
    folder_length = strlen(folder);
    mode = how, at_point = point, log_fd = log, counted = 0;
    __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
    return 0;
}

long ew_disarm(void) {
    __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
    return counted;
}

/* Nothing fails any more; the count goes on. */
void ew_heal(void) { mode = COUNT; }

long ew_counted(void) { return counted; }

static int below(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int of_fd(int fd, char *out) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, name, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return 1;
}

/* The absolute form of a path that is relative to a folder's descriptor. */
static int of_path(int dir, const char *path, char *out) {
    char base[PATH_MAX];
    if (!path) return 0;
    if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : !of_fd(dir, base)) return 0;
    return snprintf(out, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

/* Counts one operation; says whether it is done, done by half, or refused. May not return. */
static int point(const char *kind, const char *path, const char *other, long length) {
    if (!below(path) && !(other && below(other))) return PASS;
    long n = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (log_fd >= 0) {
        char line[2 * PATH_MAX + 128];
        int size = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\n", n, kind, path, other ? other : "", length);
        syscall(SYS_write, log_fd, line, (size_t)size);
    }
    if (n < at_point || mode == COUNT) return PASS;
    if (mode == KILL && n == at_point) syscall(SYS_kill, getpid(), SIGKILL);
    if (mode == TORN && n == at_point) return HALF;
    if (mode == ONCE && n == at_point) return REFUSE;
    /* A disk that fills up takes a part of the write that fills it. */
    if (mode == FULL) return n == at_point && length > 1 ? HALF : REFUSE;
    return PASS;
}

static int on_fd(const char *kind, int fd, long length) {
    char path[PATH_MAX];
    if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST) || !of_fd(fd, path)) return PASS;
    return point(kind, path, NULL, length);
}

static int on_path(const char *kind, int dir, const char *path) {
    char whole[PATH_MAX];
    if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST) || !of_path(dir, path, whole)) return PASS;
    return point(kind, whole, NULL, 0);
}

static int on_paths(const char *kind, int from_dir, const char *from, int to_dir, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST)) return PASS;
    if (!of_path(from_dir, from, one) || !of_path(to_dir, to, two)) return PASS;
    return point(kind, one, two, 0);
}

static int refused(void) {
    errno = ENOSPC;
    return -1;
}

/* After half a write: the power is gone, or the disk is full. */
static ssize_t halved(ssize_t done) {
    if (mode == TORN) syscall(SYS_kill, getpid(), SIGKILL);
    return done;
}

/* -- creating: only what changes the folder or the file counts, not opening what is there ------------------------ */

static int opens(int dir, const char *path, int flags) {
    if (!(flags & (O_CREAT | O_TRUNC))) return PASS;
    if (!(flags & O_TRUNC) && !(flags & O_EXCL) && faccessat(dir, path, F_OK, 0) == 0) return PASS;
    return on_path("create", dir, path);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t bits = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(name); \
        return opens(AT_FDCWD, path, flags) == REFUSE ? refused() : real(path, flags, bits); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t bits = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(name); \
        return opens(dir, path, flags) == REFUSE ? refused() : real(dir, path, flags, bits); \
    }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name) \
    int name(const char *path, mode_t bits) { \
        REAL(name); \
        return on_path("create", AT_FDCWD, path) == REFUSE ? refused() : real(path, bits); \
    }
CREAT(creat)
CREAT(creat64)

/* -- writing ----------------------------------------------------------------------------------------------------- */

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    switch (on_fd("write", fd, (long)size)) {
    case REFUSE: return refused();
    case HALF: return halved(real(fd, data, size / 2));
    default: return real(fd, data, size);
    }
}

#define PWRITE(name, offset_t) \
    ssize_t name(int fd, const void *data, size_t size, offset_t offset) { \
        REAL(name); \
        switch (on_fd("write", fd, (long)size)) { \
        case REFUSE: return refused(); \
        case HALF: return halved(real(fd, data, size / 2, offset)); \
        default: return real(fd, data, size, offset); \
        } \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static long total(const struct iovec *parts, int count) {
    long size = 0;
    for (int i = 0; i < count; i++) size += (long)parts[i].iov_len;
    return size;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    switch (on_fd("write", fd, total(parts, count))) {
    case REFUSE: return refused();
    case HALF: return halved(count > 1 ? real(fd, parts, count / 2) : write(fd, parts->iov_base, parts->iov_len / 2));
    default: return real(fd, parts, count);
    }
}

#define PWRITEV(name, offset_t) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_t offset) { \
        REAL(name); \
        switch (on_fd("write", fd, total(parts, count))) { \
        case REFUSE: return refused(); \
        case HALF: return halved(real(fd, parts, count > 1 ? count / 2 : count, offset)); \
        default: return real(fd, parts, count, offset); \
        } \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define PWRITEV2(name, offset_t) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_t offset, int flags) { \
        REAL(name); \
        switch (on_fd("write", fd, total(parts, count))) { \
        case REFUSE: return refused(); \
        case HALF: return halved(real(fd, parts, count > 1 ? count / 2 : count, offset, flags)); \
        default: return real(fd, parts, count, offset, flags); \
        } \
    }
PWRITEV2(pwritev2, off_t)
PWRITEV2(pwritev64v2, off64_t)

#define SENDFILE(name, offset_t) \
    ssize_t name(int out, int in, offset_t *offset, size_t size) { \
        REAL(name); \
        switch (on_fd("write", out, (long)size)) { \
        case REFUSE: return refused(); \
        case HALF: return halved(real(out, in, offset, size / 2)); \
        default: return real(out, in, offset, size); \
        } \
    }
extern ssize_t sendfile(int, int, off_t *, size_t);
extern ssize_t sendfile64(int, int, off64_t *, size_t);
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    switch (on_fd("write", out, (long)size)) {
    case REFUSE: return refused();
    case HALF: return halved(real(in, from, out, to, size / 2, flags));
    default: return real(in, from, out, to, size, flags);
    }
}

/* -- syncing and sizing: a killed process loses nothing of the page cache, so a sync need not reach the disk here -- */

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST)) return real(fd); \
        return on_fd("sync", fd, 0) == REFUSE ? refused() : 0; \
    }
SYNC(fsync)
SYNC(fdatasync)

#define FTRUNCATE(name, offset_t) \
    int name(int fd, offset_t size) { \
        REAL(name); \
        return on_fd("truncate", fd, 0) == REFUSE ? refused() : real(fd, size); \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define TRUNCATE(name, offset_t) \
    int name(const char *path, offset_t size) { \
        REAL(name); \
        return on_path("truncate", AT_FDCWD, path) == REFUSE ? refused() : real(path, size); \
    }
TRUNCATE(truncate, off_t)
TRUNCATE(truncate64, off64_t)

#define FALLOCATE(name, offset_t) \
    int name(int fd, int how, offset_t offset, offset_t size) { \
        REAL(name); \
        return on_fd("truncate", fd, 0) == REFUSE ? refused() : real(fd, how, offset, size); \
    }
FALLOCATE(fallocate, off_t)
FALLOCATE(fallocate64, off64_t)

/* It returns its error, and leaves errno alone. */
#define POSIX_FALLOCATE(name, offset_t) \
    int name(int fd, offset_t offset, offset_t size) { \
        REAL(name); \
        return on_fd("truncate", fd, 0) == REFUSE ? ENOSPC : real(fd, offset, size); \
    }
POSIX_FALLOCATE(posix_fallocate, off_t)
POSIX_FALLOCATE(posix_fallocate64, off64_t)

/* -- names ------------------------------------------------------------------------------------------------------- */

int rename(const char *from, const char *to) {
    REAL(rename);
    return on_paths("rename", AT_FDCWD, from, AT_FDCWD, to) == REFUSE ? refused() : real(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    REAL(renameat);
    return on_paths("rename", from_dir, from, to_dir, to) == REFUSE ? refused() : real(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    REAL(renameat2);
    if (on_paths("rename", from_dir, from, to_dir, to) == REFUSE) return refused();
    return real(from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to) {
    REAL(link);
    return on_path("link", AT_FDCWD, to) == REFUSE ? refused() : real(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(linkat);
    return on_path("link", to_dir, to) == REFUSE ? refused() : real(from_dir, from, to_dir, to, flags);
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    return on_path("link", AT_FDCWD, path) == REFUSE ? refused() : real(target, path);
}

int symlinkat(const char *target, int dir, const char *path) {
    REAL(symlinkat);
    return on_path("link", dir, path) == REFUSE ? refused() : real(target, dir, path);
}

int unlink(const char *path) {
    REAL(unlink);
    return on_path("remove", AT_FDCWD, path) == REFUSE ? refused() : real(path);
}

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    return on_path("remove", dir, path) == REFUSE ? refused() : real(dir, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return on_path("remove", AT_FDCWD, path) == REFUSE ? refused() : real(path);
}

int mkdir(const char *path, mode_t bits) {
    REAL(mkdir);
    if (faccessat(AT_FDCWD, path, F_OK, 0) == 0) return real(path, bits);
    return on_path("create", AT_FDCWD, path) == REFUSE ? refused() : real(path, bits);
}

int mkdirat(int dir, const char *path, mode_t bits) {
    REAL(mkdirat);
    if (faccessat(dir, path, F_OK, 0) == 0) return real(dir, path, bits);
    return on_path("create", dir, path) == REFUSE ? refused() : real(dir, path, bits);
}
