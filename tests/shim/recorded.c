/* Linked to the shim with --wrap: tells the calls that make a spool file last, in order, on standard error; the call
 * named in FAIL fails as a broken disk lets it fail. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int __real_fsync(int fd);
int __real_renameat(int from, const char *old, int to, const char *new);
int __wrap_fsync(int fd);
int __wrap_renameat(int from, const char *old, int to, const char *new);

static int fails(const char *call)
{
    const char *wanted = getenv("FAIL");
    if (write(2, call, strlen(call)) < 0 || write(2, "\n", 1) < 0) abort();
    return wanted && !strcmp(wanted, call) ? (errno = EIO, 1) : 0;
}

int __wrap_fsync(int fd)
{
    struct stat is;
    if (fstat(fd, &is)) abort();
    return fails(S_ISDIR(is.st_mode) ? "dir-fsync" : "fsync") ? -1 : __real_fsync(fd);
}

int __wrap_renameat(int from, const char *old, int to, const char *new)
{
    return fails("rename") ? -1 : __real_renameat(from, old, to, new);
}
