/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decides whether a process may get at a member through the kernel's one access check: ptrace,
 * process_vm_readv and process_vm_writev, pidfd_getfd, and the files of /proc that ask at the read.
 *
 * Policy: an outsider who wants ATTACH is refused; READ is not judged here, because links under
 *         /proc/P, which runc exec and nsenter need, ask for nothing more.
 * Hooks:  ptrace_access_check, ptrace_traceme; each as LSM and as fmod_ret.
 * Fails:  open where the configuration map cannot be read, which cannot happen once it is loaded.
 * Not covered: a tracer that attached before protection began; files of /proc that ask for READ
 *         (proc_files.bpf.c).
 *
 * An fmod_ret program can be preempted where the kernel is preemptible, and then the kernel skips it
 * for every other task that comes by on the same processor.  So each is there twice; what the first has
 * refused is not shown to the second, which stays silent on what the first has let through.  LSM programs
 * are never skipped.
 */

static __always_inline int ct_ptrace_access(struct task_struct *child, u32 mode, u32 layer,
					    u32 flags)
{
	struct ct_case this = { .layer = layer, .flags = flags };
	struct ct_member *member;

	if (!(mode & PTRACE_MODE_ATTACH))
		return 0;
	member = ct_target(child);
	if (!member || !ct_outsider(ct_tgid(), member))
		return 0;
	this.target_tgid = child->tgid;
	this.target_tid = child->pid;
	if (mode & PTRACE_MODE_FSCREDS) {
		ct_note_syscall(&this, 0);
		this.vector = ct_vector_of_file(&this);
		this.flags |= CT_ATTEMPT_SECOND_LINE;
	} else {
		ct_note_syscall(&this, 1);
		this.vector = ct_vector_of_syscall(&this);
	}
	return ct_verdict(&this, member);
}

/* The caller asks to be traced by its parent: a member may be, by a parent of its own tree. */
static __always_inline int ct_ptrace_traceme(struct task_struct *parent, u32 layer, u32 flags)
{
	struct ct_case this = {
		.vector = CT_PTRACE_TRACEME,
		.layer = layer,
		.flags = flags,
		.tracer = parent,
	};
	u32 tgid = ct_tgid();
	struct ct_member *member = ct_member_of(tgid);

	if (!member || !ct_outsider(parent->tgid, member))
		return 0;
	ct_note_syscall(&this, 1);
	this.target_tgid = tgid;
	this.target_tid = (u32)bpf_get_current_pid_tgid();
	return ct_verdict(&this, member);
}

int lsm_ptrace_access(u64 *ctx)
{
	int earlier = (int)ctx[2];

	return earlier ? earlier :
			 ct_ptrace_access((struct task_struct *)ctx[0], (u32)ctx[1], CT_LSM, 0);
}

int fmod_ptrace_access(u64 *ctx)
{
	int earlier = (int)ctx[2];

	return earlier ?
		       earlier :
		       ct_ptrace_access((struct task_struct *)ctx[0], (u32)ctx[1], CT_FMOD_RET, 0);
}

int lsm_ptrace_traceme(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier : ct_ptrace_traceme((struct task_struct *)ctx[0], CT_LSM, 0);
}

int fmod_ptrace_traceme(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier : ct_ptrace_traceme((struct task_struct *)ctx[0], CT_FMOD_RET, 0);
}

int fmod_ptrace_access_again(u64 *ctx)
{
	int earlier = (int)ctx[2];

	return earlier ? earlier :
			 ct_ptrace_access((struct task_struct *)ctx[0], (u32)ctx[1], CT_FMOD_RET,
					  CT_ATTEMPT_SECOND_LINE);
}

int fmod_ptrace_traceme_again(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier :
			 ct_ptrace_traceme((struct task_struct *)ctx[0], CT_FMOD_RET,
					   CT_ATTEMPT_SECOND_LINE);
}
