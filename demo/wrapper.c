/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sample wrapper: it was given a secret in its environment, keeps a copy in its memory and uses
 * it when told to.
 *
 * It says where the copy is, so that the attackers know all that a determined one would find out.
 * It never says the secret itself.  It ends when its standard input does.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

int main(void)
{
	const char *given = getenv("DEMO_SECRET");
	/* Stands for whom the secret is meant for. */
	int backend = open("/dev/null", O_WRONLY | O_CLOEXEC);
	char line[16];
	char *secret;
	size_t length;

	if (!given || backend < 0)
		return 1;
	length = strnlen(given, PAGE - 1);
	secret = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (secret == MAP_FAILED)
		return 1;
	memcpy(secret, given, length);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%lu\n", (unsigned long)secret);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "use\n") && write(backend, secret, length) != (ssize_t)length)
			return 1;
		puts("done");
	}
	return 0;
}
