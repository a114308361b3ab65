/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Debuggers that need not attach, as the tracee hands itself over.
 *
 * way self: a wrapper asks to be traced by its parent, us.
 * way exec: our child asks, then becomes a wrapper.
 * way seize: we seize our child, then it becomes a wrapper.
 * In each we are the tracer and read the wrapper's secret where it stops.
 */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

/* What victim.c, started with `traced`, writes before it stops. */
struct confession {
	uint64_t address; /* of its secret */
	int64_t error; /* errno of its own PTRACE_TRACEME */
};

static void become_wrapper(const struct target *target, int may_go, int answer)
{
	int self = !strcmp(target->way, "self");
	char number[16], byte;

	snprintf(number, sizeof(number), "%d", answer);
	if (!strcmp(target->way, "exec") && ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		_exit(2);
	if (!strcmp(target->way, "seize") && read(may_go, &byte, 1) != 1)
		_exit(2);
	execl(target->program, target->program, "traced", self ? "ask" : "stop", number, NULL);
	_exit(3);
}

static void read_confession(int answer, struct confession *confession, struct page *page)
{
	if (read(answer, confession, sizeof(*confession)) == sizeof(*confession))
		page->error = (int)confession->error;
}

static void loot_stopped(const struct target *target, pid_t pid, uint64_t address,
			 struct page *page)
{
	for (size_t at = 0; at < strlen(target->secret); at += sizeof(long)) {
		errno = 0;
		long word = ptrace(PTRACE_PEEKDATA, pid, (void *)(uintptr_t)(address + at), NULL);

		if (!errno)
			memcpy(page->loot + at, &word, sizeof(word));
	}
}

/* Follows the wrapper to its own SIGSTOP, where it holds the secret, and lets it end there. */
static int follow(const struct target *target, pid_t pid, int answer, struct page *page)
{
	struct confession confession = { 0 };
	int status;

	for (;;) {
		waitpid(pid, &status, WUNTRACED);
		if (!WIFSTOPPED(status))
			break;
		if (WSTOPSIG(status) != SIGSTOP) {
			ptrace(PTRACE_CONT, pid, NULL, NULL);
			continue;
		}
		read_confession(answer, &confession, page);
		loot_stopped(target, pid, confession.address, page);
		kill(pid, SIGTERM);
		ptrace(PTRACE_DETACH, pid, NULL, NULL);
		kill(pid, SIGCONT);
	}
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM)
		status = 0;
	return status;
}

int trace_a_wrapper(const struct target *target, struct page *page)
{
	int may_go[2], answer[2], status;
	pid_t pid;

	setenv("VICTIM_SECRET", target->secret, 1);
	if (pipe2(may_go, O_CLOEXEC) || pipe(answer))
		abort();
	fcntl(answer[0], F_SETFD, FD_CLOEXEC);
	pid = fork();
	if (!pid)
		become_wrapper(target, may_go[0], answer[1]);
	if (!strcmp(target->way, "seize") && ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
		abort();
	if (write(may_go[1], "", 1) != 1)
		abort();
	status = follow(target, pid, answer[0], page);
	close(may_go[0]);
	close(may_go[1]);
	close(answer[0]);
	close(answer[1]);
	return status;
}
