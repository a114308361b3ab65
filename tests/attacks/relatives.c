/* SPDX-License-Identifier: Apache-2.0 */
/* The victim's descendants, and what a process may do to its own child. */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* A descendant dies with its parent, unless that is gone before it could say so. */
static void die_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
}

/* What a descendant does: it has a thread, says so, and waits to die. */
void live_as(const char *what)
{
	start_thread();
	say(what, getpid());
	for (;;)
		pause();
}

static void become(const char *what)
{
	execl(program, program, "descendant", what, NULL);
	_exit(127);
}

void spawn_with_vfork(pid_t parent)
{
	if (vfork())
		return;
	die_with(parent);
	become("vfork");
}

void spawn(const char *how)
{
	int in_namespace = !strcmp(how, "namespace"), grandchild = !strcmp(how, "grandchild");
	pid_t parent = getpid(), pid;

	pid = (pid_t)syscall(SYS_clone, SIGCHLD | (in_namespace ? CLONE_NEWPID : 0), NULL, NULL,
			     NULL, NULL);
	if (pid) {
		/* What it thinks its pid is says nothing out here, so the parent speaks for it. */
		if (in_namespace)
			say(how, pid);
		return;
	}
	if (strcmp(how, "orphan"))
		die_with(in_namespace ? 0 : parent);
	if (!strcmp(how, "exec"))
		become(how);
	parent = getpid();
	if (in_namespace || (grandchild && fork()))
		for (;;)
			pause();
	if (grandchild)
		die_with(parent);
	live_as(how);
}

/* A child that holds the same secret at the same place. */
static pid_t copy_myself(void)
{
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid;
	die_with(parent);
	for (;;)
		pause();
}

/* A debugger of one's own child, as a runtime with a crash handler is. */
int trace(pid_t pid)
{
	long word;

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL) < 0 || waitpid(pid, NULL, __WALL) < 0)
		return 0;
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, secret, NULL);
	if (errno || ptrace(PTRACE_DETACH, pid, NULL, NULL) < 0)
		return 0;
	return !memcmp(&word, secret, sizeof(word));
}

int read_with_process_vm(pid_t pid)
{
	char copy[SECRET];
	struct iovec here = { copy, sizeof(copy) }, there = { secret, sizeof(copy) };

	return process_vm_readv(pid, &here, 1, &there, 1, 0) == SECRET &&
	       !memcmp(copy, secret, SECRET);
}

int read_with_mem(pid_t pid)
{
	char copy[SECRET], path[64];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	got = pread(fd, copy, sizeof(copy), (off_t)(uintptr_t)secret);
	close(fd);
	return got == SECRET && !memcmp(copy, secret, SECRET);
}

void with_own_child(int (*act)(pid_t))
{
	pid_t pid = copy_myself();
	int worked = act(pid);

	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	say(worked ? "worked" : "failed", getpid());
}
