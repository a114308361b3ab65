/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process worth attacking: it holds a secret in its memory, its environment and a memfd.
 *
 * It says where in one JSON line, then does what the lines on its standard input ask for and answers
 * each with one line, so that nobody has to sleep.  Its descendants die with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	SECRET = 32, /* hexadecimal digits */
};

static char *secret; /* below 4 GiB, where a 32-bit attacker can point too */
static char *scratch; /* a page that whoever maps scratch_path sees */
static char *scratch_path;
static char *program;
static int secret_fd;
static volatile pid_t thread_id;

static void *wait_for_ever(void *ready)
{
	thread_id = (pid_t)syscall(SYS_gettid);
	pthread_barrier_wait(ready);
	while (pause())
		;
	return NULL;
}

/* A forked process has one thread until it starts another, like this. */
static void start_thread(void)
{
	pthread_barrier_t ready;
	pthread_t thread;

	pthread_barrier_init(&ready, NULL, 2);
	if (pthread_create(&thread, NULL, wait_for_ever, &ready))
		abort();
	pthread_barrier_wait(&ready);
}

static void hide_secret(void)
{
	const char *given = getenv("VICTIM_SECRET");

	secret = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
		      -1, 0);
	if (secret == MAP_FAILED)
		abort();
	if (given) {
		snprintf(secret, SECRET + 1, "%s", given);
	} else {
		unsigned char bytes[SECRET / 2];

		if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
			abort();
		for (size_t i = 0; i < sizeof(bytes); i++)
			snprintf(secret + 2 * i, 3, "%02x", bytes[i]);
	}
	secret_fd = memfd_create("secret", MFD_CLOEXEC);
	if (write(secret_fd, secret, SECRET) != SECRET)
		abort();
}

static void share_scratch(void)
{
	int fd = scratch_path ? open(scratch_path, O_RDWR) : -1;

	scratch = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_32BIT | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
	if (scratch == MAP_FAILED)
		abort();
	if (fd >= 0)
		close(fd);
}

/* One write, so that lines of several processes do not mix. */
static void say(const char *what, pid_t pid)
{
	dprintf(STDOUT_FILENO,
		"{\"answer\": \"%s\", \"pid\": %d, \"tid\": %d, \"address\": %lu, \"scratch_address\": %lu, "
		"\"fd\": %d, \"secret\": \"%s\"}\n",
		what, pid, thread_id, (unsigned long)secret, (unsigned long)scratch, secret_fd,
		secret);
}

/* What a descendant does: it has a thread, says so, and waits to die with its parent. */
static void live_as(const char *what)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	start_thread();
	say(what, getpid());
	for (;;)
		pause();
}

static void become(const char *what)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execl("/proc/self/exe", program, "descendant", what, NULL);
	_exit(127);
}

static void spawn(const char *how)
{
	pid_t pid;

	if (!strcmp(how, "vfork")) {
		pid = vfork();
		if (!pid)
			become(how);
		return;
	}
	if (!strcmp(how, "namespace")) {
		/* Its own view of its pid says nothing out here, so the parent speaks for it. */
		pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL, NULL);
		if (pid) {
			say(how, pid);
			return;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	pid = fork();
	if (pid)
		return;
	if (!strcmp(how, "exec"))
		become(how);
	if (!strcmp(how, "grandchild") && fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	live_as(how);
}

/* A debugger of one's own child, as a runtime with a crash handler is. */
static void trace_own_child(void)
{
	pid_t pid = fork();
	long word;

	if (!pid)
		for (;;)
			pause();
	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL) < 0)
		goto failed;
	waitpid(pid, NULL, __WALL);
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, secret, NULL);
	if (errno || memcmp(&word, secret, sizeof(word)))
		goto failed;
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	say("traced", getpid());
	return;
failed:
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	say(strerror(errno), getpid());
}

static void read_own_child(void)
{
	char copy[SECRET] = "", path[64];
	struct iovec here = {copy, sizeof(copy)}, there = {secret, sizeof(copy)};
	pid_t pid = fork();
	int fd;

	if (!pid)
		for (;;)
			pause();
	if (process_vm_readv(pid, &here, 1, &there, 1, 0) != SECRET)
		say("process_vm_readv failed", getpid());
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	if (pread(fd, copy, sizeof(copy), (off_t)(uintptr_t)secret) != SECRET)
		say("pread failed", getpid());
	close(fd);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	say(memcmp(copy, secret, SECRET) ? "not the secret" : "read", getpid());
}

static void obey(const char *command)
{
	if (!strcmp(command, "exit"))
		exit(0);
	else if (!strcmp(command, "trace-own-child"))
		trace_own_child();
	else if (!strcmp(command, "read-own-child"))
		read_own_child();
	else if (!strcmp(command, "write-secret"))
		say(write(open("/dev/null", O_WRONLY), secret, SECRET) == SECRET ? "written" : "",
		    getpid());
	else if (!strcmp(command, "ping"))
		say("pong", getpid());
	else
		spawn(command);
}

/* For traceme.c: tells where the secret is, and stops where a tracer can read it. */
static void be_traced(int ask, int answer)
{
	struct {
		uint64_t address;
		int64_t error;
	} confession = {.address = (uintptr_t)secret};

	if (ask && ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		confession.error = errno;
	if (write(answer, &confession, sizeof(confession)) == sizeof(confession))
		raise(SIGSTOP);
	exit(0);
}

int main(int argc, char **argv)
{
	char line[64];

	program = argv[0];
	scratch_path = getenv("VICTIM_SCRATCH");
	hide_secret();
	share_scratch();
	if (argc == 4 && !strcmp(argv[1], "traced"))
		be_traced(!strcmp(argv[2], "ask"), atoi(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "descendant"))
		live_as(argv[2]);
	start_thread();
	say("ready", getpid());
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		obey(line);
	}
	return 0;
}
