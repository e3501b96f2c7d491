/* Faults of system calls, for LD_PRELOAD: writes that are short or fail, and syncs, renames and removals that fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static unsigned long long state;
static unsigned one_in;
static unsigned long counts[8];

/* Arm the faults: one call in `rate` fails. A rate of 0 disarms them. */
void faults_arm(unsigned long long seed, unsigned rate) { state = seed * 2 + 1; one_in = rate; }
unsigned long faults_count(int kind) { return counts[kind]; }

static unsigned draw(void) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (unsigned)(state >> 11);
}
static int fails(int kind) {
    if (!one_in || draw() % one_in) return 0;
    counts[kind]++;
    errno = draw() % 2 ? ENOSPC : EIO;
    return 1;
}

typedef ssize_t (*pwrite_t)(int, const void *, size_t, off_t);
static ssize_t faulty_pwrite(const char *name, int fd, const void *data, size_t size, off_t offset) {
    pwrite_t real = (pwrite_t)dlsym(RTLD_NEXT, name);
    if (one_in && size > 1 && draw() % one_in == 0) { counts[1]++; size = 1 + draw() % (size - 1); }
    else if (fails(0)) return -1;
    return real(fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return faulty_pwrite("pwrite", fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return faulty_pwrite("pwrite64", fd, data, size, offset); }

int fsync(int fd) {
    if (fails(2)) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int renameat(int a, const char *from, int b, const char *to) {
    if (fails(3)) return -1;
    return ((int (*)(int, const char *, int, const char *))dlsym(RTLD_NEXT, "renameat"))(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    /* A compaction makes one such call among hundreds of others. */
    if (one_in && draw() % 4 == 0) { counts[4]++; errno = draw() % 2 ? EXDEV : EIO; return -1; }
    return ((int (*)(int, const char *, int, const char *, unsigned))dlsym(RTLD_NEXT, "renameat2"))(a, from, b, to, flags);
}
int unlinkat(int fd, const char *name, int flags) {
    if (fails(5)) return -1;
    return ((int (*)(int, const char *, int))dlsym(RTLD_NEXT, "unlinkat"))(fd, name, flags);
}
int mkdirat(int fd, const char *name, mode_t mode) {
    if (fails(6)) return -1;
    return ((int (*)(int, const char *, mode_t))dlsym(RTLD_NEXT, "mkdirat"))(fd, name, mode);
}
