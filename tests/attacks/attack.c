/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attack KEY=VALUE... makes one kind of attack on a process again and again, and says what came of
 * it in one JSON line.  tests/kernel/attack.py gives the arguments and reads the answer.
 */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	HANGS_AFTER_SECONDS =
		60, /* an attacker that takes longer is an error, emulation included */
};

volatile char *scratch;

static struct tally {
	long attempts, killed, denied, leaked, other;
	int last_status, last_error; /* of what counts as other */
} tally;

static void read_argument(struct target *target, const char *argument)
{
	const struct {
		const char *key;
		const char **text;
		unsigned long *address;
		long *number;
		int *small;
	} keys[] = {
		{ "vector", .text = &target->vector },
		{ "door", .text = &target->door },
		{ "way", .text = &target->way },
		{ "file", .text = &target->file },
		{ "secret", .text = &target->secret },
		{ "scratch_file", .text = &target->scratch_file },
		{ "program", .text = &target->program },
		{ "address", .address = &target->address },
		{ "size", .address = &target->size },
		{ "scratch_address", .address = &target->scratch_address },
		{ "trials", .number = &target->trials },
		{ "repeat", .number = &target->repeat },
		{ "pid", .small = &target->pid },
		{ "tid", .small = &target->tid },
		{ "fd", .small = &target->fd },
		{ "inherited", .small = &target->inherited },
	};
	const char *value = strchr(argument, '=');

	for (size_t i = 0; value && i < sizeof(keys) / sizeof(keys[0]); i++) {
		size_t length = strlen(keys[i].key);

		if (strncmp(argument, keys[i].key, length) || argument[length] != '=')
			continue;
		if (keys[i].text)
			*keys[i].text = value + 1;
		else if (keys[i].address)
			*keys[i].address = strtoul(value + 1, NULL, 0);
		else if (keys[i].number)
			*keys[i].number = strtol(value + 1, NULL, 0);
		else
			*keys[i].small = (int)strtol(value + 1, NULL, 0);
		return;
	}
	fprintf(stderr, "unknown argument: %s\n", argument);
	exit(2);
}

/* Everything that is not one of these is a file of /proc/P. */
static const struct vector *find_vector(const struct target *target)
{
	static const struct vector *const all[] = {
		&ptrace_attach,
		&process_vm_read,
		&process_vm_write,
		&pidfd_getfd,
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i]->name, target->vector))
			return all[i];
	return &proc_file;
}

static void attack_once(const struct vector *vector, const struct target *target, struct page *page)
{
	int fd;

	if (vector->call) {
		vector->call(target, page);
		return;
	}
	if (!strcmp(target->door, "threads")) {
		open_for_a_thread(vector, target, page);
		return;
	}
	fd = vector->open(target);
	if (fd < 0) {
		page->error = errno;
		return;
	}
	vector->take(target, fd, page);
	if (fd != target->inherited)
		close(fd);
}

static int run_alone(const struct vector *vector, const struct target *target, struct page *page)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		alarm(HANGS_AFTER_SECONDS);
		for (long i = 0; i < target->repeat; i++)
			attack_once(vector, target, page);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return status;
}

/* Whether anything of the target's arrived; every directory holds . and .., 24 bytes each. */
static int arrived(const struct target *target, const struct page *page, char scratch_before)
{
	size_t nothing = strcmp(target->file, "map_files") ? 0 : 48;

	for (size_t at = nothing; at < sizeof(page->loot); at++)
		if (page->loot[at])
			return 1;
	return page->got > (long)nothing || scratch[0] != scratch_before;
}

static void count(const struct target *target, int status, int error)
{
	tally.attempts += target->repeat;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
		tally.killed++;
	} else if (WIFEXITED(status) && (error == EPERM || error == EACCES)) {
		tally.denied++;
	} else if (!WIFEXITED(status) || WEXITSTATUS(status) || error) {
		tally.other++;
		tally.last_status = status;
		tally.last_error = error;
	}
}

static void try_once(const struct vector *vector, const struct target *target, struct page *page)
{
	char scratch_before = scratch[0];

	memset(page, 0, sizeof(*page));
	if (!strcmp(target->vector, "ptrace-traceme")) {
		int status = trace_a_wrapper(target, page);

		count(target, status, page->error);
	} else if (!strcmp(target->door, "shared-files")) {
		struct statuses statuses = open_for_another(vector, target, page);

		count(target, statuses.opener, page->open_error);
		if (statuses.reader != -1)
			count(target, statuses.reader, page->error);
	} else {
		int status = run_alone(vector, target, page);

		count(target, status, page->error);
	}
	tally.leaked += arrived(target, page, scratch_before);
}

static void *map_shared(int fd, size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	if (memory != MAP_FAILED)
		return memory;
	perror("mmap");
	exit(EXIT_FAILURE);
}

int main(int argc, char **argv)
{
	struct target target = {
		.vector = "",
		.door = "plain",
		.way = "",
		.file = "",
		.secret = "",
		.trials = 1,
		.repeat = 1,
		.inherited = -1,
	};
	struct page *page = map_shared(-1, sizeof(*page));

	for (int i = 1; i < argc; i++)
		read_argument(&target, argv[i]);
	scratch = map_shared(target.scratch_file ? open(target.scratch_file, O_RDWR) : -1, 4096);
	target.pidfd = syscall(SYS_pidfd_open, target.pid, 0);
	prepare_door(&target);
	for (long i = 0; i < target.trials; i++)
		try_once(find_vector(&target), &target, page);
	printf("{\"vector\": \"%s\", \"attempts\": %ld, \"killed\": %ld, \"denied\": %ld, "
	       "\"leaked\": %ld, \"other\": %ld, \"last_status\": %d, \"last_error\": %d}\n",
	       target.vector, tally.attempts, tally.killed, tally.denied, tally.leaked, tally.other,
	       tally.last_status, tally.last_error);
	return 0;
}
