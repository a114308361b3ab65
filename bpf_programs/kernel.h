/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's own constants and the few helpers that older compilers' headers lack.  The kernel's
 * structs come from its BTF (agent/btf.py), in <linux/types.h>.
 */
#define EPERM 1
#define SIGKILL 9
#define SIGCONT 18
#define SIGSTOP 19
#define SI_KERNEL 0x80

#define PROC_SUPER_MAGIC 0x9fa0
#define PID_FS_MAGIC 0x50494446 /* pidfds are files of their own file system since 6.9 */

#define PF_KTHREAD 0x00200000
#define PF_IO_WORKER 0x00000010
#define FMODE_PATH 0x4000 /* opened with O_PATH: a name, not the content */

/* The mode of ptrace_access_check: what is wanted, and by which credentials. */
#define PTRACE_MODE_ATTACH 0x02
#define PTRACE_MODE_FSCREDS 0x08 /* procfs; system calls ask with the real credentials */

#define PTRACE_TRACEME 0
#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206

/* signal_struct.flags: the first process of a pid namespace. */
#define SIGNAL_UNKILLABLE 0x40

/* thread_info.status: inside a 32-bit system call. */
#define TS_COMPAT 0x0002
/* Set in the number of an x32 system call. */
#define X32_SYSCALL 0x40000000

/* A start time that came from /proc is cut to a clock tick (USER_HZ, 100 on every architecture we run on). */
#define CT_TICK_NS 9999999

/* System calls, 64-bit and 32-bit table. */
#define NR64_OPEN 2
#define NR64_PTRACE 101
#define NR64_OPENAT 257
#define NR64_PROCESS_VM_READV 310
#define NR64_PROCESS_VM_WRITEV 311
#define NR32_OPEN 5
#define NR32_PTRACE 26
#define NR32_OPENAT 295
#define NR32_PROCESS_VM_READV 347
#define NR32_PROCESS_VM_WRITEV 348
#define NRX32_PTRACE 521
#define NRX32_PROCESS_VM_READV 539
#define NRX32_PROCESS_VM_WRITEV 540
/* In our own notes of system calls: from the 32-bit table. */
#define CT_NOTED_COMPAT 0x40000000U
/* One number for both tables since 5.0. */
#define NR_IO_URING_ENTER 426
#define NR_OPENAT2 437
#define NR_PIDFD_GETFD 438

#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
static struct task_struct *(*ct_current_task)(void) = (void *)CT_HAVE_GET_CURRENT_TASK_BTF;
#endif
#ifdef CT_HAVE_TASK_PT_REGS
static struct pt_regs *(*ct_task_pt_regs)(struct task_struct *) = (void *)CT_HAVE_TASK_PT_REGS;
#endif

/* The caller's thread group id in the host's view. */
static __always_inline u32 ct_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}
