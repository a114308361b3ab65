/* SPDX-License-Identifier: Apache-2.0 */
/* Other ways to open the same file of /proc/P. */
#define _GNU_SOURCE
#include "attack.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int by(const struct target *target, const char *door)
{
	return !strcmp(target->door, door);
}

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	perror(what);
	exit(EXIT_FAILURE);
}

/* Mounts are made in a namespace of our own, so they go with us. */
static void mount_privately(void)
{
	must(unshare(CLONE_NEWNS), "unshare");
	must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
	must(mount("tmpfs", "/mnt", "tmpfs", 0, NULL), "mount a tmpfs");
}

/* What a door needs is made once by the watcher, before the trials. */
void prepare_door(struct target *target)
{
	static char path[PATH_MAX];

	target->proc = "/proc";
	if (by(target, "other-proc-mount")) {
		mount_privately();
		must(mount("proc", "/mnt", "proc", 0, NULL), "mount a procfs");
		target->proc = "/mnt";
	} else if (by(target, "bind-mount")) {
		mount_privately();
		snprintf(path, sizeof(path), "/proc/%d/%s", target->pid, target->file);
		must(mknod("/mnt/file", S_IFREG | 0600, 0), "mknod");
		must(mount(path, "/mnt/file", NULL, MS_BIND, NULL), "bind mount");
	} else if (by(target, "symlink")) {
		mount_privately();
		snprintf(path, sizeof(path), "/proc/%d", target->pid);
		must(symlink(path, "/mnt/link"), "symlink");
	}
}

static int open_relative(const char *directory, const char *name, int flags)
{
	return openat(open(directory, O_PATH | O_DIRECTORY), name, flags);
}

/* An O_PATH descriptor reads nothing; opening it again through its link does. */
static int reopen(const char *path, int flags)
{
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", open(path, O_PATH));
	return open(link, flags);
}

static int open_with_openat2(const char *path, int flags)
{
	struct open_how how = { .flags = (unsigned int)flags };

	return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

int open_by_door(const struct target *target, const char *name, int flags)
{
	char directory[64], path[128];

	snprintf(directory, sizeof(directory), "%s/%d", target->proc, target->pid);
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	if (by(target, "thread"))
		snprintf(path, sizeof(path), "%s/task/%d/%s", directory, target->tid, name);
	else if (by(target, "thread-as-process"))
		snprintf(path, sizeof(path), "%s/%d/%s", target->proc, target->tid, name);
	else if (by(target, "symlink"))
		snprintf(path, sizeof(path), "/mnt/link/%s", name);
	else if (by(target, "bind-mount"))
		snprintf(path, sizeof(path), "/mnt/file");

	if (by(target, "inherited"))
		return target->inherited;
	if (by(target, "dirfd"))
		return open_relative(directory, name, flags);
	if (by(target, "reopen"))
		return reopen(path, flags);
	if (by(target, "openat2"))
		return open_with_openat2(path, flags);
	if (by(target, "io-uring"))
		return ring_open(path, flags);
	if (by(target, "open"))
		return syscall(SYS_open, path, flags);
	return open(path, flags);
}

ssize_t read_by_door(const struct target *target, int fd, void *buffer, size_t size, off_t offset)
{
	if (by(target, "io-uring"))
		return ring_read(fd, buffer, size, offset);
	return pread(fd, buffer, size, offset);
}
