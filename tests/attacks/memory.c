/* SPDX-License-Identifier: Apache-2.0 */
/* The attacks that are one system call on a process: ptrace, process_vm_*, pidfd_getfd. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t aim(const struct target *target)
{
	return strcmp(target->door, "thread") ? target->pid : target->tid;
}

/* Stops the target, as every debugger does, and lets go of it again if it lives to do so. */
static void attach(const struct target *target, struct page *page)
{
	int seize = !strcmp(target->way, "seize");
	size_t length = strlen(target->secret);
	struct user_regs_struct registers;
	pid_t tid = aim(target);

	if (ptrace(seize ? PTRACE_SEIZE : PTRACE_ATTACH, tid, NULL, NULL) < 0) {
		page->error = errno;
		return;
	}
	if (seize)
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	waitpid(tid, NULL, __WALL);
	if (!ptrace(PTRACE_GETREGS, tid, NULL, &registers))
		page->got = 1;
	for (size_t at = 0; at < length; at += sizeof(long)) {
		errno = 0;
		long word = ptrace(PTRACE_PEEKDATA, tid, (void *)(target->address + at), NULL);

		if (!errno)
			memcpy(page->loot + at, &word, sizeof(word));
	}
	ptrace(PTRACE_DETACH, tid, NULL, NULL);
}

/* Only the secret's own bytes are worth showing to the watcher. */
static void vm_read(const struct target *target, struct page *page)
{
	static char rest[MOST_BYTES];
	size_t length = strlen(target->secret);
	size_t size = target->size > length ? target->size : length;
	struct iovec here[] = { { page->loot, length }, { rest, size - length } };
	struct iovec there = { (void *)target->address, size };

	if (process_vm_readv(aim(target), here, 2, &there, 1, 0) < 0)
		page->error = errno;
}

/* The scratch page is the watcher's too, so it sees a write that happened. */
static void vm_write(const struct target *target, struct page *page)
{
	char changed = scratch[0] + 1;
	struct iovec here = { &changed, 1 };
	struct iovec there = { (void *)target->scratch_address, 1 };

	if (process_vm_writev(aim(target), &here, 1, &there, 1, 0) < 0)
		page->error = errno;
}

static int take_descriptor(const struct target *target)
{
	return syscall(SYS_pidfd_getfd, target->pidfd, target->fd, 0);
}

static void read_descriptor(const struct target *target, int fd, struct page *page)
{
	page->got = pread(fd, page->loot, strlen(target->secret), 0);
	if (page->got < 0)
		page->error = errno;
}

const struct vector ptrace_attach = { .name = "ptrace-attach", .call = attach };
const struct vector process_vm_read = { .name = "process-vm-read", .call = vm_read };
const struct vector process_vm_write = { .name = "process-vm-write", .call = vm_write };
const struct vector pidfd_getfd = {
	.name = "pidfd-getfd",
	.open = take_descriptor,
	.take = read_descriptor,
};
