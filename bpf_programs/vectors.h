/* SPDX-License-Identifier: GPL-2.0-only */
/* Which vector an attempt is, by the file of /proc/P or the system call. */

#define CT_NAME8(a, b, c, d, e, f, g, h)                                                           \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 |             \
	 (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)

/*
 * The vector that opening a file of this name in /proc/P is; -1 where it is none.  The first eight
 * characters tell them apart.
 */
static __always_inline int ct_vector_of_name(u64 first, u32 length)
{
	if (length < 8)
		first &= (1ULL << (8 * length)) - 1;
	switch (first) {
	case CT_NAME8('m', 'e', 'm', 0, 0, 0, 0, 0):
		return CT_PROC_MEM;
	case CT_NAME8('e', 'n', 'v', 'i', 'r', 'o', 'n', 0):
		return CT_PROC_ENVIRON;
	case CT_NAME8('m', 'a', 'p', 's', 0, 0, 0, 0):
	case CT_NAME8('s', 'm', 'a', 'p', 's', 0, 0, 0):
	case CT_NAME8('s', 'm', 'a', 'p', 's', '_', 'r', 'o'): /* smaps_rollup */
	case CT_NAME8('n', 'u', 'm', 'a', '_', 'm', 'a', 'p'): /* numa_maps */
	case CT_NAME8('m', 'a', 'p', '_', 'f', 'i', 'l', 'e'): /* map_files */
	case CT_NAME8('p', 'a', 'g', 'e', 'm', 'a', 'p', 0):
	case CT_NAME8('a', 'u', 'x', 'v', 0, 0, 0, 0):
	case CT_NAME8('c', 'l', 'e', 'a', 'r', '_', 'r', 'e'): /* clear_refs */
		return CT_PROC_MAPS;
	case CT_NAME8('s', 't', 'a', 'c', 'k', 0, 0, 0):
	case CT_NAME8('s', 'y', 's', 'c', 'a', 'l', 'l', 0):
	case CT_NAME8('p', 'e', 'r', 's', 'o', 'n', 'a', 'l'): /* personality */
		return CT_PROC_STACK;
	}
	return -1;
}

static __always_inline int ct_is_ptrace(const struct ct_case *this)
{
	if (this->flags & CT_ATTEMPT_COMPAT)
		return this->syscall == NR32_PTRACE;
	return this->syscall == NR64_PTRACE || this->syscall == (NRX32_PTRACE | X32_SYSCALL);
}

/* Which vector an ATTACH by a system call is: they all look alike to the check. */
static __always_inline u32 ct_vector_of_syscall(const struct ct_case *this)
{
	int compat = this->flags & CT_ATTEMPT_COMPAT;

	switch (this->syscall & ~X32_SYSCALL) {
	case NR_PIDFD_GETFD:
		return CT_PIDFD_GETFD;
	case NR64_PROCESS_VM_READV:
	case NRX32_PROCESS_VM_READV:
		return compat ? CT_PTRACE_ATTACH : CT_PROCESS_VM_READ;
	case NR64_PROCESS_VM_WRITEV:
	case NRX32_PROCESS_VM_WRITEV:
		return compat ? CT_PTRACE_ATTACH : CT_PROCESS_VM_WRITE;
	case NR32_PROCESS_VM_READV:
		return compat ? CT_PROCESS_VM_READ : CT_PTRACE_ATTACH;
	case NR32_PROCESS_VM_WRITEV:
		return compat ? CT_PROCESS_VM_WRITE : CT_PTRACE_ATTACH;
	}
	return CT_PTRACE_ATTACH;
}

/*
 * A file of /proc asks for ATTACH at the open (mem) or at the read (stack, syscall).  The open was
 * judged by its inode already; what arrives here was opened before protection began, or handed over.
 */
static __always_inline u32 ct_vector_of_file(const struct ct_case *this)
{
	int compat = this->flags & CT_ATTEMPT_COMPAT;

	switch (this->syscall) {
	case NR_OPENAT2:
		return CT_PROC_MEM;
	case NR64_OPEN:
	case NR64_OPENAT:
		return compat ? CT_PROC_STACK : CT_PROC_MEM;
	case NR32_OPEN:
	case NR32_OPENAT:
		return compat ? CT_PROC_MEM : CT_PROC_STACK;
	}
	return CT_PROC_STACK;
}
