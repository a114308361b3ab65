/* SPDX-License-Identifier: Apache-2.0 */
/* A victim is one process, and its relatives, which do nothing but hold the same secret. */
#ifndef VICTIM_H
#define VICTIM_H

#include <sys/types.h>

enum {
	SECRET = 32, /* hexadecimal digits */
};

extern char *secret; /* below 4 GiB, where a 32-bit attacker can point too */
extern char *program; /* what a descendant becomes that execs */

void say(const char *what, pid_t pid);
void start_thread(void);

/* relatives.c */
void live_as(const char *what);
void spawn(const char *how);
void spawn_with_vfork(pid_t parent);
void with_own_child(int (*act)(pid_t));
int trace(pid_t pid);
int read_with_process_vm(pid_t pid);
int read_with_mem(pid_t pid);

#endif
