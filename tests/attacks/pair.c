/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One task opens and may die of it; another one, which never opened anything, reads.
 *
 * A kill that comes after the open is late for a task with the same table of descriptors.
 */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct plan {
	const struct vector *vector;
	const struct target *target;
	struct page *page;
	int fd; /* the number that the next descriptor will have */
};

/* Tries the number until there is a descriptor, or nobody is left to open one. */
static void *read_as_soon_as_open(void *argument)
{
	const struct plan *plan = argument;
	int gone;

	plan->page->reader_ready = 1;
	do {
		gone = plan->page->opener_gone;
		plan->page->error = 0;
		plan->vector->take(plan->target, plan->fd, plan->page);
	} while (plan->page->error == EBADF && !gone);
	return NULL;
}

static struct plan make_plan(const struct vector *vector, const struct target *target,
			     struct page *page)
{
	struct plan plan = { vector, target, page, dup(0) };

	close(plan.fd);
	return plan;
}

static void open_when_reader_is_ready(const struct plan *plan)
{
	while (!plan->page->reader_ready)
		sched_yield();
	if (plan->vector->open(plan->target) < 0)
		plan->page->open_error = errno;
}

/* Processes: two thread groups, both children of the watcher. */
struct statuses open_for_another(const struct vector *vector, const struct target *target,
				 struct page *page)
{
	const long beside_me = CLONE_FILES | CLONE_PARENT | SIGCHLD;
	struct statuses statuses;
	pid_t opener = fork();

	if (!opener) {
		struct plan plan = make_plan(vector, target, page);

		if (!syscall(SYS_clone, beside_me, NULL, NULL, NULL, NULL))
			read_as_soon_as_open(&plan);
		else
			open_when_reader_is_ready(&plan);
		_exit(0);
	}
	waitpid(opener, &statuses.opener, 0);
	page->opener_gone = 1;
	waitpid(-1, &statuses.reader, 0);
	if (WIFEXITED(statuses.reader) && page->error == EBADF)
		statuses.reader = -1;
	return statuses;
}

/* Threads: a kill reaches both, but not at the same moment. */
void open_for_a_thread(const struct vector *vector, const struct target *target, struct page *page)
{
	struct plan plan = make_plan(vector, target, page);
	pthread_t reader;

	if (pthread_create(&reader, NULL, read_as_soon_as_open, &plan))
		return;
	open_when_reader_is_ready(&plan);
	page->opener_gone = 1;
	pthread_join(reader, NULL);
	if (page->open_error)
		page->error = page->open_error;
}
