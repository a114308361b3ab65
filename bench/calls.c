/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times system calls.
 *
 * Usage: calls FILE PROGRAM
 *
 * Each line of standard input is "CASE CALLS ROUNDS PID"; the answer is one line with the nanoseconds
 * that each round of so many calls took.  FILE is opened and closed, PROGRAM is executed, and PID is
 * the process whose command line is read.  One process answers for as long as the benchmark lasts, so
 * that nothing of its own (addresses, caches) differs between what is compared.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static const char *file;
static char *program;
static int cmdline = -1;

static void give_up(const char *what)
{
	perror(what);
	exit(1);
}

static void call_getppid(void)
{
	syscall(SYS_getppid);
}

static void open_and_close(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		give_up(path);
	close(fd);
}

static void open_file(void)
{
	open_and_close(file);
}

static void open_proc(void)
{
	open_and_close("/proc/self/status");
}

static void spawn(void)
{
	char *arguments[] = { program, NULL };
	char *environment[] = { NULL };
	pid_t pid = fork();
	int status;

	if (!pid) {
		execve(program, arguments, environment);
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		give_up(program);
}

static void map_page(void)
{
	volatile char *page =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		give_up("mmap");
	*page = 1;
	munmap((void *)page, PAGE);
}

static void read_cmdline(void)
{
	char byte;

	if (pread(cmdline, &byte, 1, 0) != 1)
		give_up("cmdline");
}

static const struct {
	const char *name;
	void (*call)(void);
} cases[] = {
	{ "getppid", call_getppid }, { "open-file", open_file }, { "open-proc-self", open_proc },
	{ "spawn", spawn },          { "map-page", map_page },   { "read-cmdline", read_cmdline },
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t round_of(void (*call)(void), long calls)
{
	uint64_t began = now_ns();

	for (long i = 0; i < calls; i++)
		call();
	return now_ns() - began;
}

static void measure(void (*call)(void), long calls, long rounds)
{
	round_of(call, calls / 10 + 1); /* warms caches, and is not told */
	for (long i = 0; i < rounds; i++)
		printf("%lu ", (unsigned long)round_of(call, calls));
	putchar('\n');
	fflush(stdout);
}

/* A child on another processor costs something else than one on ours: leave nothing to chance. */
static void stay_on_this_processor(void)
{
	cpu_set_t here;

	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	if (sched_setaffinity(0, sizeof(here), &here))
		give_up("sched_setaffinity");
}

int main(int argc, char **argv)
{
	char line[128], name[32], path[32];
	long calls, rounds;
	int pid;

	if (argc != 3)
		return 2;
	file = argv[1];
	program = argv[2];
	stay_on_this_processor();
	while (fgets(line, sizeof(line), stdin)) {
		void (*call)(void) = NULL;

		if (sscanf(line, "%31s %ld %ld %d", name, &calls, &rounds, &pid) != 4)
			return 2;
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
			if (!strcmp(name, cases[i].name))
				call = cases[i].call;
		if (!call)
			return 2;
		snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
		cmdline = open(path, O_RDONLY | O_CLOEXEC);
		if (cmdline < 0)
			give_up(path);
		measure(call, calls, rounds);
		close(cmdline);
	}
	return 0;
}
