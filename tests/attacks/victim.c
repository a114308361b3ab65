/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process worth attacking: it holds a secret in its memory, its environment and a memfd.
 *
 * It says where in one JSON line, then does what the lines on its standard input ask for and answers
 * each with one line, so that nobody has to sleep.  Its descendants die with it.
 */
#define _GNU_SOURCE
#include "victim.h"

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
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	AROUND = 1 << 20, /* bytes that can be read where the secret is */
};

char *secret;
char *program;

static char *scratch; /* a page that whoever maps scratch_path sees */
static char *scratch_path;
static int secret_fd;
static volatile pid_t thread_id;

static void *wait_for_ever(void *unused)
{
	(void)unused;
	thread_id = (pid_t)syscall(SYS_gettid);
	while (pause())
		;
	return NULL;
}

/* A forked process has one thread until it starts another, like this. */
void start_thread(void)
{
	pthread_t thread;

	thread_id = 0;
	if (pthread_create(&thread, NULL, wait_for_ever, NULL))
		abort();
	while (!thread_id)
		sched_yield();
}

static void hide_secret(void)
{
	const char *given = getenv("VICTIM_SECRET");

	secret = mmap(NULL, AROUND, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
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
void say(const char *what, pid_t pid)
{
	dprintf(STDOUT_FILENO,
		"{\"answer\": \"%s\", \"pid\": %d, \"tid\": %d, \"address\": %lu, \"scratch_address\": %lu, "
		"\"fd\": %d, \"secret\": \"%s\"}\n",
		what, pid, thread_id, (unsigned long)secret, (unsigned long)scratch, secret_fd,
		secret);
}

static void write_secret(void)
{
	int fd = open("/dev/null", O_WRONLY);

	say(write(fd, secret, SECRET) == SECRET ? "worked" : "failed", getpid());
	close(fd);
}

static void obey(const char *command)
{
	if (!strcmp(command, "exit"))
		exit(0);
	else if (!strcmp(command, "trace-own-child"))
		with_own_child(trace);
	else if (!strcmp(command, "process-vm-own-child"))
		with_own_child(read_with_process_vm);
	else if (!strcmp(command, "mem-own-child"))
		with_own_child(read_with_mem);
	else if (!strcmp(command, "write-secret"))
		write_secret();
	else if (!strcmp(command, "ping"))
		say("pong", getpid());
	else if (!strcmp(command, "vfork"))
		spawn_with_vfork(getpid());
	else
		spawn(command);
}

/* For traceme.c: tells where the secret is, and stops where a tracer can read it. */
static void be_traced(int ask, int answer)
{
	struct {
		uint64_t address;
		int64_t error;
	} confession = { .address = (uintptr_t)secret };

	if (ask && ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		confession.error = errno;
	if (write(answer, &confession, sizeof(confession)) == sizeof(confession))
		raise(SIGSTOP);
	exit(0);
}

int main(int argc, char **argv)
{
	char line[64];

	program = getenv("VICTIM_EXECS") ? getenv("VICTIM_EXECS") : argv[0];
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
