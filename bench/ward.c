/* SPDX-License-Identifier: Apache-2.0 */
/* The process that is protected, or under another name is not: says that it runs, and waits for its end. */
#include <unistd.h>

int main(void)
{
	char byte;

	if (write(STDOUT_FILENO, "runs\n", 5) != 5)
		return 1;
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
