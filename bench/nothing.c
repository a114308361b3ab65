/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmark forks and executes: a static program that does nothing. */

int main(void)
{
	return 0;
}
