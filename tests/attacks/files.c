/* SPDX-License-Identifier: Apache-2.0 */
/* The attacks that are files of /proc/P: mem, environ, maps and its kin, stack and its kin. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is(const struct target *target, const char *file)
{
	return !strcmp(target->file, file);
}

static int open_file(const struct target *target)
{
	int flags = O_RDONLY;

	if (is(target, "clear_refs"))
		flags = O_WRONLY;
	else if (!strcmp(target->way, "write"))
		flags = O_RDWR;
	else if (is(target, "map_files"))
		flags = O_RDONLY | O_DIRECTORY;
	return open_by_door(target, target->file, flags);
}

/* mem: the secret's bytes, or a changed byte where the target and the watcher both see it. */
static ssize_t take_memory(const struct target *target, int fd, struct page *page)
{
	char changed;

	if (strcmp(target->way, "write"))
		return read_by_door(target, fd, page->loot, strlen(target->secret),
				    target->address);
	changed = scratch[0] + 1;
	return pwrite(fd, &changed, 1, target->scratch_address);
}

/* Everything else is real as soon as one byte of it arrives. */
static ssize_t take_content(const struct target *target, int fd, struct page *page)
{
	size_t size = 0;
	ssize_t got;

	do {
		got = read_by_door(target, fd, page->loot + size, sizeof(page->loot) - size, size);
		size += got > 0 ? got : 0;
	} while (got > 0 && size < sizeof(page->loot));
	return got < 0 && !size ? -1 : (ssize_t)size;
}

static void take(const struct target *target, int fd, struct page *page)
{
	ssize_t got;

	if (is(target, "mem"))
		got = take_memory(target, fd, page);
	else if (is(target, "map_files"))
		got = syscall(SYS_getdents64, fd, page->loot, sizeof(page->loot));
	else if (is(target, "clear_refs"))
		got = write(fd, "1", 1);
	else if (is(target, "pagemap"))
		got = read_by_door(target, fd, page->loot, 8, (off_t)(target->address / 4096 * 8));
	else
		got = take_content(target, fd, page);
	page->got = got;
	if (got < 0)
		page->error = errno;
}

const struct vector proc_file = { .name = "proc-", .open = open_file, .take = take };
