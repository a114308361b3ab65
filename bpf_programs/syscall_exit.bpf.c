/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tracepoint layer's view of system calls that succeeded: ptrace ATTACH, SEIZE and TRACEME, the
 * open of a member's /proc/P files, pidfd_getfd.
 *
 * Policy: an outsider is killed before the call returns to it.  It cannot be denied here: what is
 *         only to be denied is reported.
 * Hooks:  sys_exit, signal_deliver (raw tracepoints).  At the exit, because then the kernel's own
 *         objects say what happened: the file in the descriptor table, the tracee in the list, never
 *         a path or a pid that could be parsed wrongly or changed meanwhile.
 * Cost:   every system call of every process pays, so the agent attaches it only while something is
 *         protected.  On a node's first wrapper it comes some hundred microseconds after the exec;
 *         from the exec itself on, remote_memory.bpf.c stops reads and stopped tracees' registers.
 * Fails:  open where a read of kernel memory faults.
 * Not covered: opens through io_uring (reads of memory are stopped in remote_memory.bpf.c); a thread
 *         that shares the descriptor table and swaps the descriptor at the very exit of the call; a
 *         helper with that table that reads maps, stack or a stolen descriptor while its sibling
 *         dies.  Memory itself is safe from all three.  Since 7.0, a call for which the kernel skips
 *         the program, as another task was preempted in the middle of it (remote_memory.bpf.c).
 */

#define CT_READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(from))

#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
/* The file behind a descriptor of the caller, as an address. */
static __always_inline u64 ct_file_of(struct task_struct *me, u64 descriptor)
{
	struct fdtable *table = me->files->fdt;
	u64 file = 0;

	if (descriptor < table->max_fds)
		CT_READ(file, (u64)table->fd + 8 * descriptor);
	return file;
}

/* The thread group id of the process behind a struct pid; 0 when it is gone. */
static __always_inline u32 ct_tgid_of_pid(u64 pid)
{
	u64 link = 0;
	u32 tgid = 0;

	if (!pid)
		return 0;
	CT_READ(link, pid + CT_PID_TASKS); /* PIDTYPE_PID is the first list */
	if (link)
		CT_READ(tgid, link - CT_TASK_PID_LINKS + CT_TASK_TGID);
	return tgid;
}

/* A file of /proc/P was opened: whose is it?  Sets the vector. */
static __always_inline u32 ct_opened(struct task_struct *me, struct ct_case *this, u64 descriptor)
{
	struct file *file = (struct file *)ct_file_of(me, descriptor);
	struct super_block *super = 0;
	struct dentry *dentry = 0;
	struct inode *inode = 0;
	u64 magic = 0, pid = 0;
	u32 length = 0, mode = 0;
	int vector;

	if (!file)
		return 0;
	CT_READ(mode, &file->f_mode);
	if (mode & FMODE_PATH)
		return 0;
	CT_READ(inode, &file->f_inode);
	CT_READ(super, &inode->i_sb);
	CT_READ(magic, &super->s_magic);
	if (magic != PROC_SUPER_MAGIC)
		return 0;
	CT_READ(dentry, &file->f_dentry);
	CT_READ(length, &dentry->d_name_len);
	CT_READ(this->file, &dentry->d_inline);
	vector = ct_vector_of_name(*(u64 *)this->file, length);
	if (vector < 0)
		return 0;
	this->file[length & (CT_NAME - 1)] = 0;
	this->vector = vector;
	CT_READ(pid, (u64)inode - CT_PROC_INODE_VFS + CT_PROC_INODE_PID);
	return ct_tgid_of_pid(pid);
}

/* A descriptor was taken from the process behind a pidfd. */
static __always_inline u32 ct_took_descriptor(struct task_struct *me, struct ct_case *this,
					      u64 pidfd)
{
	struct file *file = (struct file *)ct_file_of(me, pidfd);
	struct super_block *super = 0;
	struct inode *inode = 0;
	u64 magic = 0, pid = 0;

	if (!file)
		return 0;
	this->vector = CT_PIDFD_GETFD;
	CT_READ(inode, &file->f_inode);
	CT_READ(super, &inode->i_sb);
	CT_READ(magic, &super->s_magic);
	if (magic == PID_FS_MAGIC)
		CT_READ(pid, &inode->i_private);
	else
		CT_READ(pid, &file->private_data);
	return ct_tgid_of_pid(pid);
}

/* A ptrace request that makes a tracer. */
static __always_inline u32 ct_traced(struct task_struct *me, struct ct_case *this, u64 request)
{
	u32 tgid = 0;

	switch (request) {
	case PTRACE_TRACEME:
		this->vector = CT_PTRACE_TRACEME;
		this->tracer = me->parent;
		return ct_tgid();
	case PTRACE_ATTACH:
	case PTRACE_SEIZE:
		this->vector = CT_PTRACE_ATTACH;
		/* The newest tracee is the first of the list. */
		CT_READ(tgid, (u64)me->ptraced_next - CT_TASK_PTRACE_ENTRY + CT_TASK_TGID);
	}
	return tgid;
}

/* A call that may be an attempt has succeeded. */
static __always_inline void ct_succeeded(struct pt_regs *regs, u32 number, u64 result)
{
	struct ct_case this = { .layer = CT_TRACEPOINT, .syscall = number };
	struct task_struct *me = ct_current_task();
	struct ct_member *member;
	u32 compat = 0;
	u64 first;

#ifdef CT_HAVE_THREAD_STATUS
	compat = me->thread_status & TS_COMPAT;
#endif
	if (compat)
		this.flags = CT_ATTEMPT_COMPAT;
	first = compat ? (u32)regs->bx : regs->di;
	if (number == NR_PIDFD_GETFD)
		this.target_tgid = ct_took_descriptor(me, &this, (u32)first);
	else if (compat ? number == NR32_PTRACE : number == NR64_PTRACE || number == NRX32_PTRACE)
		this.target_tgid = ct_traced(me, &this, first);
	else if (number == NR_OPENAT2 || (compat ? number == NR32_OPEN || number == NR32_OPENAT :
						   number == NR64_OPEN || number == NR64_OPENAT))
		this.target_tgid = ct_opened(me, &this, result);

	member = ct_member_of(this.target_tgid);
	if (member && ct_outsider(this.tracer ? this.tracer->tgid : ct_tgid(), member))
		ct_verdict(&this, member);
}

int syscall_exit(u64 *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	u32 number = (u32)regs->orig_ax & ~X32_SYSCALL;
	u64 thread;

	/* Nearly every call of every process ends in these comparisons. */
	switch (number) {
	case NR64_OPEN:
	case NR32_OPEN:
	case NR32_PTRACE:
	case NR64_PTRACE:
	case NR64_OPENAT:
	case NR32_OPENAT:
	case NR_OPENAT2:
	case NR_PIDFD_GETFD:
	case NRX32_PTRACE:
		if ((s64)ctx[1] >= 0)
			ct_succeeded(regs, number, ctx[1]);
		break;
	case NR64_PROCESS_VM_READV:
	case NR64_PROCESS_VM_WRITEV:
	case NR32_PROCESS_VM_READV:
	case NR32_PROCESS_VM_WRITEV:
	case NRX32_PROCESS_VM_READV:
	case NRX32_PROCESS_VM_WRITEV:
		thread = bpf_get_current_pid_tgid();
		cloudtaser_once.delete(&thread);
	}
	return 0;
}

/*
 * PTRACE_ATTACH has sent its SIGSTOP before the tracer is killed, and a tracee without a tracer would
 * stop for good.  The SIGCONT arrives before the stop has cost it more than a moment.
 */
int undo_stop(u64 *ctx)
{
	struct kernel_siginfo *info = (struct kernel_siginfo *)ctx[1];
	struct ct_config *config;
	struct ct_member *member;
	struct task_struct *me;
	int code = 0;

	if ((int)ctx[0] != SIGSTOP)
		return 0;
	/* Not by a typed load: since 7.0 the verifier takes this pointer for one that may be a number. */
	CT_READ(code, &info->si_code);
	/* Only ptrace sends it in the kernel's name; a person's kill -STOP is left alone. */
	if (code != SI_KERNEL)
		return 0;
	me = ct_current_task();
	member = ct_member_task(me);
	/* A tracer of the tree may stop it.  Another that has attached meanwhile is as good as dead. */
	if (!member || (me->ptrace && !ct_outsider(me->parent->tgid, member)))
		return 0;
	config = ct_configuration();
	if (config && ct_action(config, member, CT_PTRACE_ATTACH) == CT_KILL)
		bpf_send_signal(SIGCONT);
	return 0;
}
#endif
