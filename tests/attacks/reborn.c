/* SPDX-License-Identifier: Apache-2.0 */
/* reborn PID COMMAND...: runs COMMAND in a child that gets the pid PID, which must be free. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	pid_t wanted = argc > 2 ? atoi(argv[1]) : 0;
	struct clone_args arguments = {
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)&wanted,
		.set_tid_size = 1,
	};
	int status;
	long pid;

	if (!wanted)
		return 2;
	/* A pid whose process has been reaped may be held for a moment more. */
	do
		pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
	while (pid < 0 && errno == EEXIST);
	if (pid < 0) {
		perror("clone3");
		return 1;
	}
	if (!pid) {
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	waitpid((pid_t)pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
