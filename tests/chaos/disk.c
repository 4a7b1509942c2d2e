/* What a process does to the files below one directory: logged, and made to fail on demand.
 *
 * Loaded by LD_PRELOAD. The log tells a replayer what a power cut could have left (power_cut.py);
 * faults come at the N-th call of a kind, once or for ever (disk_faults.py). Both are set up by
 * the environment when the process starts, or by disk_watch() and disk_fault() later.
 *
 *   DISK_ROOT   the directory, absolute and without links
 *   DISK_LOG    where the log goes, outside of it
 *   DISK_FAULT  KIND:ERRNO:N:once|ever[:SUFFIX]   KIND is write or sync, N counts from 1;
 *               only files whose names end in SUFFIX count
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind { WRITE = 1, TRUNCATE, SYNC, CREATE, UNLINK, RENAME, MKDIR, RMDIR, NOTE, FAULT };

struct head {
    uint32_t kind;
    uint32_t extra;   /* bytes that follow */
    uint64_t inode;
    uint64_t offset;  /* or the new length, or a directory */
};

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static size_t root_length;
static int log_handle = -1;

static struct {
    int is_armed, is_sync, number, is_for_ever;
    long left;
    char suffix[64];
} fault;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int is_below(const char *path) {
    return root_length && !strncmp(path, root, root_length)
        && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path of a name. */
static int absolute(int at, const char *name, char *path) {
    char base[PATH_MAX];
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(at == AT_FDCWD ? "/proc/self/cwd" : link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
        if ((size_t)snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
    }
    return is_below(path);
}

/* The path of an open file of ours; the log itself is none. */
static int path_of(int handle, char *path) {
    char link[64];
    if (!root_length || handle == log_handle) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static uint64_t inode_of(int handle) {
    struct stat status;
    return fstat(handle, &status) ? 0 : status.st_ino;
}

static uint64_t inode_at(const char *path) {
    struct stat status;
    return lstat(path, &status) ? 0 : status.st_ino;
}

static void put(const void *data, size_t length) {
    const char *rest = data;
    while (length) {
        ssize_t done = syscall(SYS_write, log_handle, rest, length);
        if (done < 0) { if (errno == EINTR) continue; abort(); }
        rest += done;
        length -= done;
    }
}

static void note(enum kind kind, uint64_t inode, uint64_t offset, const void *data, size_t length) {
    if (log_handle < 0) return;
    int saved = errno;
    struct head head = {kind, (uint32_t)length, inode, offset};
    put(&head, sizeof head);
    put(data, length);
    errno = saved;
}

static void note_path(enum kind kind, uint64_t inode, const char *path) {
    note(kind, inode, 0, path, strlen(path));
}

/* Whether this call is to fail; errno is set then. */
static int fails(int is_sync, const char *path) {
    if (!fault.is_armed || fault.is_sync != is_sync) return 0;
    size_t length = strlen(path), wanted = strlen(fault.suffix);
    if (length < wanted || strcmp(path + length - wanted, fault.suffix)) return 0;
    if (--fault.left > 0 || (fault.left < 0 && !fault.is_for_ever)) return 0;
    note_path(FAULT, is_sync, path);
    errno = fault.number;
    return 1;
}

/* From now on: log what happens below `directory`, to `file`. */
void disk_watch(const char *directory, const char *file) {
    pthread_mutex_lock(&lock);
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    if (log_handle >= 0) syscall(SYS_close, log_handle);
    log_handle = file && *file
        ? (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
        : -1;
    pthread_mutex_unlock(&lock);
}

/* A remark of the process itself, in the same order. */
void disk_note(const char *text) {
    pthread_mutex_lock(&lock);
    note_path(NOTE, 0, text);
    pthread_mutex_unlock(&lock);
}

/* Let the N-th call fail; N = 0: no more of that. How many calls were left to go. */
long disk_fault(int is_sync, int number, long n, int is_for_ever, const char *suffix) {
    pthread_mutex_lock(&lock);
    long left = fault.is_armed ? fault.left : 0;
    fault.is_armed = n > 0;
    fault.is_sync = is_sync;
    fault.number = number;
    fault.left = n;
    fault.is_for_ever = is_for_ever;
    snprintf(fault.suffix, sizeof fault.suffix, "%s", suffix);
    pthread_mutex_unlock(&lock);
    return left;
}

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("DISK_ROOT"), *spec = getenv("DISK_FAULT");
    if (directory) disk_watch(directory, getenv("DISK_LOG"));
    if (!spec) return;
    char kind[16], mode[16], suffix[64] = "";
    int number;
    long n;
    if (sscanf(spec, "%15[a-z]:%d:%ld:%15[a-z]:%63s", kind, &number, &n, mode, suffix) < 4) abort();
    disk_fault(!strcmp(kind, "sync"), number, n, !strcmp(mode, "ever"), suffix);
}

/* A write of `length` bytes at `offset`, done by CALL; logged as it turned out. */
#define WRITING(handle, data, length, offset, CALL) \
    char path[PATH_MAX]; \
    if (!path_of(handle, path)) return CALL; \
    pthread_mutex_lock(&lock); \
    ssize_t done = -1; \
    if (!fails(0, path)) { \
        uint64_t at = (offset); \
        done = CALL; \
        if (done > 0) note(WRITE, inode_of(handle), at, data, done); \
    } \
    int saved = errno; \
    pthread_mutex_unlock(&lock); \
    errno = saved; \
    return done

ssize_t write(int handle, const void *data, size_t length) {
    REAL(write);
    WRITING(handle, data, length, lseek(handle, 0, SEEK_CUR), real(handle, data, length));
}

ssize_t pwrite(int handle, const void *data, size_t length, off_t offset) {
    REAL(pwrite);
    WRITING(handle, data, length, offset, real(handle, data, length, offset));
}

ssize_t pwrite64(int handle, const void *data, size_t length, off64_t offset) {
    REAL(pwrite64);
    WRITING(handle, data, length, offset, real(handle, data, length, offset));
}

/* Anything with a result of 0 that is to be logged when it has worked. */
#define DONE(is_ours, CALL, NOTE) \
    if (!(is_ours)) return CALL; \
    pthread_mutex_lock(&lock); \
    int result = CALL; \
    if (result >= 0) { NOTE; } \
    int saved = errno; \
    pthread_mutex_unlock(&lock); \
    errno = saved; \
    return result

int ftruncate(int handle, off_t length) {
    REAL(ftruncate);
    char path[PATH_MAX];
    DONE(path_of(handle, path), real(handle, length),
         note(TRUNCATE, inode_of(handle), length, "", 0));
}

int ftruncate64(int handle, off64_t length) {
    REAL(ftruncate64);
    char path[PATH_MAX];
    DONE(path_of(handle, path), real(handle, length),
         note(TRUNCATE, inode_of(handle), length, "", 0));
}

int fsync(int handle) {
    REAL(fsync);
    char path[PATH_MAX];
    DONE(path_of(handle, path), fails(1, path) ? -1 : real(handle),
         note_path(SYNC, inode_of(handle), path));
}

int fdatasync(int handle) {
    REAL(fdatasync);
    char path[PATH_MAX];
    DONE(path_of(handle, path), fails(1, path) ? -1 : real(handle),
         note_path(SYNC, inode_of(handle), path));
}

static int note_opened(int handle, const char *path, int was_there, int flags) {
    if (handle < 0) return handle;
    if (!was_there) note_path(CREATE, inode_of(handle), path);
    else if (flags & O_TRUNC) note(TRUNCATE, inode_of(handle), 0, "", 0);
    return handle;
}

#define OPENING(at, name, flags, CALL) \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    char path[PATH_MAX]; \
    if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(at, name, path)) return CALL; \
    pthread_mutex_lock(&lock); \
    uint64_t was = inode_at(path); \
    int handle = note_opened(CALL, path, was != 0, flags); \
    int saved = errno; \
    pthread_mutex_unlock(&lock); \
    errno = saved; \
    return handle

int open(const char *name, int flags, ...) {
    REAL(open);
    OPENING(AT_FDCWD, name, flags, real(name, flags, mode));
}

int open64(const char *name, int flags, ...) {
    REAL(open64);
    OPENING(AT_FDCWD, name, flags, real(name, flags, mode));
}

int openat(int at, const char *name, int flags, ...) {
    REAL(openat);
    OPENING(at, name, flags, real(at, name, flags, mode));
}

int openat64(int at, const char *name, int flags, ...) {
    REAL(openat64);
    OPENING(at, name, flags, real(at, name, flags, mode));
}

int unlink(const char *name) {
    REAL(unlink);
    char path[PATH_MAX];
    uint64_t inode = inode_at(name);
    DONE(absolute(AT_FDCWD, name, path), real(name), note_path(UNLINK, inode, path));
}

int unlinkat(int at, const char *name, int flags) {
    REAL(unlinkat);
    char path[PATH_MAX];
    DONE(absolute(at, name, path), real(at, name, flags),
         note_path(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, path));
}

int rmdir(const char *name) {
    REAL(rmdir);
    char path[PATH_MAX];
    DONE(absolute(AT_FDCWD, name, path), real(name), note_path(RMDIR, 0, path));
}

int mkdir(const char *name, mode_t mode) {
    REAL(mkdir);
    char path[PATH_MAX];
    DONE(absolute(AT_FDCWD, name, path), real(name, mode), note_path(MKDIR, inode_at(path), path));
}

int mkdirat(int at, const char *name, mode_t mode) {
    REAL(mkdirat);
    char path[PATH_MAX];
    DONE(absolute(at, name, path), real(at, name, mode), note_path(MKDIR, inode_at(path), path));
}

/* Both names, one behind the other, a NUL between them. */
static void note_renamed(const char *from, const char *to) {
    char both[2 * PATH_MAX];
    size_t first = strlen(from) + 1, second = strlen(to);
    memcpy(both, from, first);
    memcpy(both + first, to, second);
    note(RENAME, inode_at(to), 0, both, first + second);
}

int rename(const char *old, const char *new) {
    REAL(rename);
    char from[PATH_MAX], to[PATH_MAX];
    DONE(absolute(AT_FDCWD, old, from) && absolute(AT_FDCWD, new, to), real(old, new),
         note_renamed(from, to));
}

int renameat(int old_at, const char *old, int new_at, const char *new) {
    REAL(renameat);
    char from[PATH_MAX], to[PATH_MAX];
    DONE(absolute(old_at, old, from) && absolute(new_at, new, to),
         real(old_at, old, new_at, new), note_renamed(from, to));
}
