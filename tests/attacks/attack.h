/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the attacks share.
 *
 * An attack is made by a child that is expected to die; what it got lies in a page that it shares
 * with the watcher, its parent, so a read that happened is seen even if the reader was killed
 * straight after it.
 */
#ifndef ATTACK_H
#define ATTACK_H

#include <stddef.h>
#include <sys/types.h>

/* What is attacked, from the command line. */
enum {
	MOST_BYTES = 1 << 20, /* that the target has at the address of its secret */
};

struct target {
	const char *vector;
	const char *door; /* the way to the same place: plain, thread, shared-files, ... */
	const char *way; /* for vectors that are more than one request: attach, seize, ... */
	const char *file; /* in /proc/P, for the vectors that are files */
	const char *secret;
	const char *scratch_file; /* mapped shared by the target at scratch_address */
	const char *program; /* a wrapper to start, for ptrace-traceme */
	const char *proc; /* where procfs is mounted */
	unsigned long address; /* of the secret in the target's memory */
	unsigned long scratch_address;
	long trials;
	long repeat; /* calls made by each child */
	unsigned long size; /* bytes that one process_vm_readv asks for; the secret's own if 0 */
	pid_t pid;
	pid_t tid; /* a thread of the target that is not its first */
	int fd; /* the target's descriptor of a file that holds the secret */
	int pidfd; /* ours, of the target */
	int inherited; /* our descriptor of a file of /proc/P that was opened for us */
};

/* Shared by attacker and watcher. */
struct page {
	char loot[16384];
	long got; /* what the last call returned: bytes, or 1 for a success that has none */
	int error; /* errno of the call that failed */
	int open_error; /* the same for the process that opens for another one */
	volatile int reader_ready; /* the other one is waiting for the descriptor */
	volatile int opener_gone;
};

/*
 * A vector is either one call, or a call that yields a descriptor and one that takes what is
 * behind it; only the second kind can come through other doors.
 */
struct vector {
	const char *name;
	void (*call)(const struct target *target, struct page *page);
	int (*open)(const struct target *target);
	void (*take)(const struct target *target, int fd, struct page *page);
};

extern const struct vector ptrace_attach, process_vm_read, process_vm_write, pidfd_getfd;
extern const struct vector proc_file;

/* doors.c */
void prepare_door(struct target *target);
int open_by_door(const struct target *target, const char *name, int flags);
ssize_t read_by_door(const struct target *target, int fd, void *buffer, size_t size, off_t offset);

/* ring.c: io_uring without liburing; both return -1 and set errno like the call they stand for */
int ring_open(const char *path, int flags);
ssize_t ring_read(int fd, void *buffer, size_t size, off_t offset);

/* traceme.c: one trial, in which the watcher itself is the tracer; returns the wait status */
int trace_a_wrapper(const struct target *target, struct page *page);

/* pair.c: two tasks with one table of descriptors; returns the wait statuses, -1 for no reader */
struct statuses {
	int opener;
	int reader;
};

struct statuses open_for_another(const struct vector *vector, const struct target *target,
				 struct page *page);
void open_for_a_thread(const struct vector *vector, const struct target *target, struct page *page);

/* attack.c: a page that the target and we have mapped, which shows a write that happened */
extern volatile char *scratch;

#endif
