/* The CNI plugin, as the container runtime runs it on a node, chained after the one that connects pods to the network.
 *
 * It needs nothing of the host: linked statically, it hands what it was given (the environment's CNI_ variables, the standard input,
 * the pod's network namespace as an open file) to the node's agent, `xds cni`, and prints what that answers. What needs no
 * agent is answered here: a pod can be taken away while the agent is not there.
 *
 * Where the agent does not answer, ADD fails, the kubelet tries again, and no pod runs that is not captured. Pods of namespaces that
 * never have proxies do not wait: what mends a cluster must be able to start.
 *
 * To the agent: variables, each ended by a zero byte; a zero byte; the standard input. From it: the exit status as one digit; then
 * what is to be printed. CNI specification 1.1.0. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SOCKET
#define SOCKET "/run/xds-cni/agent.sock"
#endif
#define SECONDS 60
#define MAX_BYTES (4 << 20)

enum { INVALID_ENVIRONMENT = 4, IO_FAILURE = 5, INVALID_CONFIGURATION = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

static const char *const NEVER[] = {"kube-system", "kube-public", "kube-node-lease", "local-path-storage", "istio-system"};

struct bytes {
    char *data;
    size_t size;
};

static int failed(int code, const char *message, const char *details)
{
    printf("{\"cniVersion\": \"1.0.0\", \"code\": %d, \"msg\": \"%s\", \"details\": \"%s\"}\n", code, message, details);
    return 1;
}

static int append(struct bytes *to, const char *data, size_t size)
{
    if (size > MAX_BYTES - to->size)
        return -1;
    char *grown = realloc(to->data, to->size + size + 1);
    if (grown == NULL)
        return -1;
    memcpy(grown + to->size, data, size);
    to->data = grown;
    to->size += size;
    to->data[to->size] = 0;
    return 0;
}

static int read_all(int file, struct bytes *to)
{
    char buffer[16384];
    for (;;) {
        ssize_t n = read(file, buffer, sizeof buffer);
        if (n == 0)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || append(to, buffer, (size_t)n) < 0)
            return -1;
    }
}

static int connected(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    struct timeval patience = {.tv_sec = SECONDS};
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0)
        return -1;
    setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(agent, (struct sockaddr *)&address, sizeof address) < 0) {
        int reason = errno;
        close(agent);
        errno = reason;
        return -1;
    }
    return agent;
}

/* Send `question`, and with its first byte the open file `passed`, unless that is negative. */
static int ask(int agent, const struct bytes *question, int passed)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {.iov_base = question->data, .iov_len = question->size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &passed, sizeof(int));
    }
    while (part.iov_len > 0) {
        ssize_t n = sendmsg(agent, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        part.iov_base = (char *)part.iov_base + n;
        part.iov_len -= (size_t)n;
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
    return shutdown(agent, SHUT_WR);
}

/* Whether CNI_ARGS (KEY=VALUE;...) says that the pod is of a namespace that never has proxies. */
static int is_left_alone(const char *arguments)
{
    static const char key[] = "K8S_POD_NAMESPACE=";
    while (arguments != NULL && *arguments != 0) {
        size_t length = strcspn(arguments, ";");
        if (length >= sizeof key - 1 && strncmp(arguments, key, sizeof key - 1) == 0) {
            const char *name = arguments + sizeof key - 1;
            for (size_t i = 0; i < sizeof NEVER / sizeof *NEVER; i++)
                if (strlen(NEVER[i]) == length - (sizeof key - 1) && strncmp(name, NEVER[i], strlen(NEVER[i])) == 0)
                    return 1;
            return 0;
        }
        arguments += length + (arguments[length] == ';');
    }
    return 0;
}

static const char *after_string(const char *at) /* `at` is behind the opening quote; NULL where there is no closing one */
{
    for (; *at != 0; at++) {
        if (*at == '\\' && at[1] != 0)
            at++;
        else if (*at == '"')
            return at + 1;
    }
    return NULL;
}

/* Print the object `prevResult` of the configuration, which is JSON: what the plugin before this one has made. */
static int pass_on(const struct bytes *configuration)
{
    static const char key[] = "\"prevResult\"";
    const char *begin = NULL;
    int depth = 0;
    for (const char *at = configuration->data ? configuration->data : ""; *at != 0;) {
        if (*at == '"') {
            const char *end = after_string(at + 1);
            if (end == NULL)
                break;
            if (depth == 1 && (size_t)(end - at) == sizeof key - 1 && memcmp(at, key, sizeof key - 1) == 0) {
                const char *value = end + strspn(end, " \t\r\n");
                if (*value == ':') {
                    value += 1 + strspn(value + 1, " \t\r\n");
                    begin = *value == '{' ? value : NULL;
                    end = value;
                }
            }
            at = end;
            continue;
        }
        if (*at == '{' || *at == '[')
            depth++;
        else if (*at == '}' || *at == ']') {
            depth--;
            if (begin != NULL && depth == 1) {
                fwrite(begin, 1, (size_t)(at + 1 - begin), stdout);
                putchar('\n');
                return 0;
            }
        }
        at++;
    }
    return failed(INVALID_CONFIGURATION, "there is no prevResult", "this plugin is to be chained after one that makes a network");
}

static int through_agent(int adding, const struct bytes *configuration, int passed)
{
    struct bytes question = {0}, answer = {0};
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, "CNI_", 4) == 0 && append(&question, *variable, strlen(*variable) + 1) < 0)
            return failed(IO_FAILURE, "out of memory", "");
    if (append(&question, "", 1) < 0 || append(&question, configuration->data, configuration->size) < 0)
        return failed(IO_FAILURE, "out of memory", "");
    int agent = connected();
    if (agent < 0) {
        if (adding && is_left_alone(getenv("CNI_ARGS")))
            return pass_on(configuration);
        return failed(adding ? TRY_AGAIN : NOT_AVAILABLE, "the node's agent (DaemonSet xds-cni) does not answer at " SOCKET, strerror(errno));
    }
    if (ask(agent, &question, passed) < 0 || read_all(agent, &answer) < 0 || answer.size < 1)
        return failed(TRY_AGAIN, "the node's agent (DaemonSet xds-cni) gave no answer", strerror(errno));
    fwrite(answer.data + 1, 1, answer.size - 1, stdout);
    return answer.data[0] == '0' ? 0 : 1;
}

static int run(void)
{
    struct bytes configuration = {0};
    const char *command = getenv("CNI_COMMAND");
    if (command == NULL)
        return failed(INVALID_ENVIRONMENT, "CNI_COMMAND is not set", "this is a CNI plugin: a container runtime runs it");
    if (strcmp(command, "VERSION") == 0) {
        puts("{\"cniVersion\": \"1.1.0\", \"supportedVersions\": [\"0.3.0\", \"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"]}");
        return 0;
    }
    if (strcmp(command, "DEL") == 0 || strcmp(command, "GC") == 0)
        return 0; /* all that was made goes with the pod's network namespace */
    if (append(&configuration, "", 0) < 0 || read_all(STDIN_FILENO, &configuration) < 0)
        return failed(IO_FAILURE, "the standard input cannot be read", strerror(errno));
    int adding = strcmp(command, "ADD") == 0, checking = strcmp(command, "CHECK") == 0, passed = -1;
    if (!adding && !checking && strcmp(command, "STATUS") != 0)
        return failed(INVALID_ENVIRONMENT, "CNI_COMMAND must be ADD, CHECK, DEL, GC, STATUS or VERSION", "");
    if (adding || checking) {
        const char *namespace = getenv("CNI_NETNS");
        if (namespace == NULL || *namespace == 0)
            return failed(INVALID_ENVIRONMENT, "CNI_NETNS is not set", "");
        if ((passed = open(namespace, O_RDONLY | O_CLOEXEC)) < 0)
            return failed(INVALID_ENVIRONMENT, "the network namespace CNI_NETNS cannot be opened", strerror(errno));
    }
    return through_agent(adding, &configuration, passed);
}

int main(void)
{
    int status = run();
    return fflush(stdout) == 0 ? status : 1;
}
