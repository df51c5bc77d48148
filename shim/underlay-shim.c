/* underlay-shim: hands one CNI call to the resident daemon and prints what comes back.
 *
 * It knows bytes, not CNI: argv[0] names the plugin, the CNI_* environment and standard input go out as one frame over
 * RUN_DIR/underlay.sock, the answer's bytes go to standard output. Alone it does only what cannot wait for a daemon:
 * VERSION, a clear error, and DEL, which goes to RUN_DIR/spool and succeeds, so that no pod hangs in Terminating.
 *
 *   request  "UND1" | u32 length | plugin NUL { KEY=VALUE NUL } NUL standard input      (numbers are little-endian)
 *   answer   "UND1" | u32 length | u8 exit status, standard output
 *
 * No stdio, no allocation, no locale: exec, round trip and exit take less than a millisecond.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef WAIT_MS
#define WAIT_MS 5000     /* for a daemon that is being restarted */
#define ANSWER_MS 120000 /* also for standard input and output */
#define DEL_MS 60000     /* then the spool takes over */
#endif
#define RETRY_MS 20
#define LIMIT (4u << 20) /* of a payload, either way */
#define HEAD 8u
#define CHUNK 4096 /* PIPE_BUF: after POLLOUT so much goes out without blocking, on a pipe and a socket alike */

/* `underlay install` writes another run directory behind the mark of the copy that it lays. */
#define MARK "UNDERLAY-RUN-DIR="
static const char run_dir_slot[256] __attribute__((used)) = MARK "/run/underlay";

struct text { /* always ends in NUL; what does not fit is cut off */
    size_t len;
    char at[8192];
};

struct fault {
    int code, err; /* of the CNI specification; errno or 0 */
    const char *what, *where, *hint;
};

extern char **environ;
static unsigned char frame[HEAD + LIMIT], answer[HEAD + LIMIT];
static size_t frame_len = HEAD;

static void put(struct text *t, const char *s)
{
    for (; *s && t->len + 1 < sizeof t->at; s++) t->at[t->len++] = *s;
    t->at[t->len] = 0;
}

static void put_number(struct text *t, uint64_t value, int width)
{
    char digits[21], *at = digits + 20;
    for (*at = 0; width-- > 0 || value; value /= 10) *--at = (char)('0' + value % 10);
    put(t, at);
}

/* At most 300 bytes of s, as the inside of a JSON string; bytes beyond ASCII are shown as Latin-1. */
static void put_json(struct text *t, const char *s)
{
    static const char hex[] = "0123456789abcdef";
    for (int left = 300; *s && left; s++, left--) {
        unsigned char c = (unsigned char)*s;
        char escaped[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], 0}, plain[] = {*s, 0};
        put(t, c < 32 || c > 126 || c == '"' || c == '\\' ? escaped : plain);
    }
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* One read or write (by way: POLLIN or POLLOUT) as soon as fd is ready, or -1 and errno, ETIMEDOUT among them. */
static ssize_t move(int fd, short way, void *at, size_t len, int64_t deadline)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = way};
        int64_t left = deadline - now_ms();
        ssize_t n = poll(&p, 1, left > 0 ? (int)left : 0);
        if (n == 0) return errno = ETIMEDOUT, -1;
        if (n > 0) n = way == POLLIN ? read(fd, at, len) : write(fd, at, len < CHUNK ? len : CHUNK);
        if (n >= 0 || (errno != EINTR && errno != EAGAIN)) return n;
    }
}

static int write_all(int fd, const void *data, size_t len, int64_t deadline)
{
    for (ssize_t n; len; data = (const char *)data + n, len -= (size_t)n)
        if ((n = move(fd, POLLOUT, (void *)data, len, deadline)) < 0) return -1;
    return 0;
}

static int print(int fd, const char *s, int status)
{
    return write_all(fd, s, strlen(s), now_ms() + ANSWER_MS) ? 1 : status;
}

static int refuse(const char *plugin, struct fault f)
{
    struct text t = {0};
    put(&t, "{\"cniVersion\":\"1.0.0\",\"code\":"), put_number(&t, (uint64_t)f.code, 1);
    put(&t, ",\"msg\":\""), put_json(&t, plugin), put(&t, ": "), put_json(&t, f.what), put_json(&t, f.where);
    if (f.err) put(&t, ": "), put_json(&t, strerror(f.err));
    put(&t, "\",\"details\":\""), put_json(&t, f.hint), put(&t, "\"}\n");
    return print(1, t.at, 1);
}

static int append(const char *s)
{
    if (strlen(s) >= sizeof frame - frame_len) return -1;
    frame_len = (size_t)(stpcpy((char *)frame + frame_len, s) - (char *)frame) + 1;
    return 0;
}

static int frame_environment(const char *plugin)
{
    int full = append(plugin);
    for (char **e = environ; e && *e && !full; e++)
        if (!strncmp(*e, "CNI_", 4) && strchr(*e, '=')) full = append(*e);
    return full || append("");
}

/* Returns 0 at the end of standard input, 1 when there is more than fits, -1 and errno. */
static ssize_t frame_stdin(int64_t deadline)
{
    unsigned char beyond;
    while (frame_len < sizeof frame) {
        ssize_t n = move(0, POLLIN, frame + frame_len, sizeof frame - frame_len, deadline);
        if (n <= 0) return n;
        frame_len += (size_t)n;
    }
    return move(0, POLLIN, &beyond, 1, deadline);
}

/* Connects; a full backlog is waited for, an absent daemon only if patient (its coming is no event to wait for). */
static int dial(const char *path, int patient)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path) return errno = ENAMETOOLONG, -1;
    strcpy(to.sun_path, path);
    int64_t deadline = now_ms() + WAIT_MS, left;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (fd >= 0 && (left = deadline - now_ms()) > 0) {
        struct timeval limit = {left / 1000, left % 1000 * 1000};
        if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit)) return -1;
        if (!connect(fd, (struct sockaddr *)&to, sizeof to)) return fd;
        if (errno == EINTR || errno == EAGAIN) continue;
        if (!patient || (errno != ENOENT && errno != ECONNREFUSED)) return -1;
        poll(NULL, 0, RETRY_MS);
    }
    return -1;
}

/* Sends the frame and reads the answer; returns the length of its payload, or 0 and a fault. */
static size_t exchange(int fd, const char *path, int64_t deadline, struct fault *f)
{
    size_t have = 0, need = HEAD;
    *f = (struct fault){11, 0, "the daemon broke off at ", path, "The runtime calls again; see the daemon's log."};
    /* A daemon that refuses a frame may answer and close before it has read the whole: its answer counts. */
    if (write_all(fd, frame, frame_len, deadline) && errno != EPIPE && errno != ECONNRESET) return f->err = errno, 0;
    while (have < need) {
        ssize_t n = move(fd, POLLIN, answer + have, sizeof answer - have, deadline);
        if (n < 0) return f->err = errno, 0;
        if (n == 0) return 0;
        have += (size_t)n;
        if (need > HEAD || have < HEAD) continue;
        uint32_t size = answer[4] | (uint32_t)answer[5] << 8 | (uint32_t)answer[6] << 16 | (uint32_t)answer[7] << 24;
        need = memcmp(answer, "UND1", 4) || !size || size > LIMIT ? 0 : HEAD + size;
    }
    if (have == need) return need - HEAD;
    *f = (struct fault){5, 0, "no valid answer came from ", path, "Shim and daemon differ: use `underlay install`."};
    return 0;
}

/* Keeps a DEL for the daemon's next start: a file is there as a whole or not at all. */
static int spool(const char *run_dir)
{
    struct text path = {0}, name = {0};
    struct timespec t;
    put(&path, run_dir), put(&path, "/spool/");
    for (char *slash = path.at; (slash = strchr(slash + 1, '/')); *slash = '/') *slash = 0, mkdir(path.at, 0700);
    clock_gettime(CLOCK_REALTIME, &t);
    put(&name, "."), put_number(&name, (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec, 20);
    put(&name, "-"), put_number(&name, (uint64_t)getpid(), 1), put(&name, ".del");
    int dir = open(path.at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = dir < 0 ? -1 : openat(dir, name.at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    if (!write_all(fd, frame, frame_len, now_ms() + DEL_MS) && !fsync(fd) && !renameat(dir, name.at, dir, name.at + 1))
        return fsync(dir);
    int reason = errno;
    return unlinkat(dir, name.at, 0), errno = reason, -1;
}

static int lose(const char *plugin, const char *why)
{
    struct text t = {0};
    put_json(&t, plugin), put(&t, ": DEL did not reach the daemon: "), put(&t, why);
    put(&t, "; its reclaim loop will find the sandbox gone\n");
    return print(2, t.at, 0), 0;
}

int main(int argc, char **argv)
{
    const char *verb = NULL, *run_dir = run_dir_slot + sizeof MARK - 1, *plugin = argc > 0 ? argv[0] : "";
    __asm__("" : "+r"(run_dir)); /* the compiler must read the slot, not recall what it was compiled with */
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 0; fd < 3; fd++) /* else a file of ours would take the place of a closed standard stream */
        if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", O_RDWR);
    if (strrchr(plugin, '/')) plugin = strrchr(plugin, '/') + 1;
    for (char **e = environ; e && *e; e++) /* of two equal variables the last counts, here as in the daemon */
        if (!strncmp(*e, "CNI_COMMAND=", 12)) verb = *e + 12;
    if (!verb) return print(2, "underlay: a CNI plugin for container runtimes; CNI_COMMAND is not set\n", 0);
    if (!strcmp(verb, "VERSION"))
        return print(1, "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\","
                        "\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", 0);
    int del = !strcmp(verb, "DEL"), status = !strcmp(verb, "STATUS");
    int64_t patience = del ? DEL_MS : ANSWER_MS;
    struct fault f = {4, 0, "the CNI_* environment is larger than 4 MiB", "", "Make CNI_ARGS shorter."};
    if (frame_environment(plugin)) return del ? lose(plugin, f.what) : refuse(plugin, f);
    size_t bare = frame_len, size = 0;
    ssize_t more = frame_stdin(now_ms() + patience);
    if (more) f = (struct fault){7, 0, "the network configuration is larger than 4 MiB", "", "Make it smaller."};
    if (more < 0) f = (struct fault){5, errno, "cannot read standard input", "", "The runtime writes it."};
    if (more && !del) return refuse(plugin, f);
    if (more) frame_len = bare; /* DEL works from the ledger: the daemon needs no more than the environment */
    for (int i = 0; i < 4; i++) frame[i] = (unsigned char)"UND1"[i], frame[4 + i] = (frame_len - HEAD) >> 8 * i & 255;
    struct text path = {0};
    put(&path, run_dir), put(&path, "/underlay.sock");
    int fd = dial(path.at, !del && !status);
    int absent = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR;
    f = (struct fault){absent ? 11 : 5, errno, "no daemon at ", path.at, "Start `underlay daemon`, or see its log."};
    if (fd >= 0) size = exchange(fd, path.at, now_ms() + patience, &f);
    if (size) return write_all(1, answer + HEAD + 1, size - 1, now_ms() + patience) ? 1 : answer[HEAD];
    if (del) return spool(run_dir) ? lose(plugin, strerror(errno)) : 0;
    if (status) f.code = 50;
    return refuse(plugin, f);
}
