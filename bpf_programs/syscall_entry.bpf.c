/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Remembers which of the system calls that ask for ATTACH a thread is in, on kernels that have no
 * bpf_task_pt_regs (before 5.15): the access check itself cannot tell them apart.
 *
 * Policy: none; it only names what ptrace.bpf.c judges.
 * Hooks:  fentry on the entry points of these calls, so that no other call pays.
 * Not covered: nothing is judged here.
 * Fails:  an evicted note makes a process_vm_readv count as ptrace-attach, with that one's action.
 *
 * A note is never stale where it is read: every way to an ATTACH check by a system call passes one
 * of these entries first.
 */

static __always_inline int ct_entered(u32 syscall)
{
	u64 thread = bpf_get_current_pid_tgid();

	cloudtaser_sysc.update(&thread, &syscall);
	return 0;
}

#define CT_ENTRY(name, number)                                                                     \
	int name(u64 *ctx)                                                                         \
	{                                                                                          \
		return ct_entered(number);                                                         \
	}

CT_ENTRY(enter_ptrace_64, NR64_PTRACE)
CT_ENTRY(enter_ptrace_32, NR32_PTRACE | CT_NOTED_COMPAT)
CT_ENTRY(enter_vm_read_64, NR64_PROCESS_VM_READV)
CT_ENTRY(enter_vm_read_32, NR32_PROCESS_VM_READV | CT_NOTED_COMPAT)
CT_ENTRY(enter_vm_write_64, NR64_PROCESS_VM_WRITEV)
CT_ENTRY(enter_vm_write_32, NR32_PROCESS_VM_WRITEV | CT_NOTED_COMPAT)
CT_ENTRY(enter_getfd_64, NR_PIDFD_GETFD)
CT_ENTRY(enter_getfd_32, NR_PIDFD_GETFD | CT_NOTED_COMPAT)
