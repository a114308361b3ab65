/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stops every copy out of a member's memory by another process, whatever the way to it was.
 *
 * Policy: an outsider that takes a member's mmap lock in order to read or write its memory is
 *         killed.  The signal is pending before get_user_pages looks, which gives up on it, so
 *         nothing is copied.
 * Hooks:  mmap_lock_start_locking, mmap_lock_acquire_returned and sched_wait_task (raw tracepoints
 *         with direct loads only: they load under lockdown=confidentiality, and stand behind LSM and
 *         fmod_ret as a second line).
 * Fails:  open for a code path that is not in the table of the agent: what takes the lock for other
 *         reasons (userfaultfd, swap, accounting) must not be hit.
 * Not covered: kernels before 5.11, which have no such tracepoint; memory copied by a BPF program.
 *
 * The lock is watched twice, before it is taken and after: since 7.0 a task can be preempted inside a
 * tracepoint's program, and the kernel skips that program for every other task that comes by on the
 * same processor meanwhile.  The other of the two is then still there.
 *
 * Which file of /proc is being read is told by the kernel's own call stack, against the addresses of
 * the functions that read them: cmdline, which every ps reads, takes the same lock as mem.  Unlike a
 * path or a descriptor, the stack cannot change under us.
 */

#define CT_FRAMES 14 /* from the tracepoint out to the read of the file there are 6 to 10 */

#if defined(CT_HAVE_MM_OWNER) && defined(CT_HAVE_TASK_PT_REGS)
/* The vector of the file of /proc that the kernel is reading, -1 for any other reason. */
static __always_inline int ct_vector_of_stack(void *ctx)
{
	u64 frames[CT_FRAMES] = {};
	int zero = 0;
	struct ct_paths *paths = cloudtaser_path.lookup(&zero);
	int size = bpf_get_stack(ctx, frames, sizeof(frames), 0);
	u32 path_class = CT_PATH_NONE;

	if (!paths || size <= 0)
		return -1;
	for (int i = 0; i < CT_FRAMES && !path_class; i++) {
		for (int j = 0; j < CT_PATHS; j++) {
			struct ct_path *path = &paths->path[j];

			if (!path->end)
				break;
			if (frames[i] >= path->start && frames[i] < path->end) {
				path_class = path->path_class;
				break;
			}
		}
	}
	switch (path_class) {
	case CT_PATH_PROC_MEM:
		return CT_PROC_MEM;
	case CT_PATH_PROC_ENVIRON:
		return CT_PROC_ENVIRON;
	case CT_PATH_PROC_MAPS:
		return CT_PROC_MAPS;
	}
	return -1; /* CT_PATH_CMDLINE among them */
}

/* Whether the kernel works on a ring of io_uring: in the call that submits, or in a worker. */
static __always_inline int ct_in_ring(struct task_struct *me, const struct ct_case *this)
{
	return me->flags & PF_IO_WORKER || this->syscall == NR_IO_URING_ENTER;
}

/*
 * Whether this system call was counted when it took the lock before: one call takes it for each range
 * and again after a fault.  The mark goes at the exit.  It only keeps a call from being counted twice;
 * what is to be stopped is stopped each time.
 */
static __always_inline int ct_counted_already(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 marked = 1;

	if (cloudtaser_once.lookup(&thread))
		return 1;
	cloudtaser_once.update(&thread, &marked);
	return 0;
}

/* An outsider takes the lock of a member's memory. */
static __always_inline void ct_remote_access(void *ctx, struct task_struct *me,
					     struct task_struct *owner, struct ct_member *member,
					     int again)
{
	struct ct_case this = {
		.layer = CT_TRACEPOINT,
		.flags = CT_ATTEMPT_SECOND_LINE,
		.target_tgid = owner->tgid,
	};
	struct ct_config *config = ct_configuration();
	int first_line = config && config->layer == CT_TRACEPOINT && !again;
	int vector;

	ct_note_syscall(&this, 0);
	vector = ct_is_ptrace(&this) ? CT_PTRACE_ATTACH : (int)ct_vector_of_syscall(&this);
	if (vector == CT_PROCESS_VM_READ || vector == CT_PROCESS_VM_WRITE) {
		/* The only hook that sees these on the tracepoint layer: there it is the first. */
		if (first_line && !ct_counted_already())
			this.flags &= ~CT_ATTEMPT_SECOND_LINE;
	} else if (!ct_is_ptrace(&this)) {
		vector = ct_vector_of_stack(ctx);
		/* Nor does any other see what io_uring opens and reads. */
		if (first_line && ct_in_ring(me, &this))
			this.flags &= ~CT_ATTEMPT_SECOND_LINE;
	}
	if (vector < 0)
		return;
	this.vector = vector;
	ct_verdict(&this, member);
}

static __always_inline int ct_memory_lock(u64 *ctx, int again)
{
	struct mm_struct *mm = (struct mm_struct *)ctx[0];
	struct task_struct *me = ct_current_task();
	struct task_struct *owner;
	struct ct_member *member;

	if (me->mm == mm)
		return 0; /* nearly every call ends here */
	owner = mm->owner;
	if (!owner || !me->mm || me->flags & PF_KTHREAD)
		return 0;
	member = ct_target(owner);
	if (member && ct_outsider(me->tgid, member))
		ct_remote_access(ctx, me, owner, member, again);
	return 0;
}

int remote_memory(u64 *ctx)
{
	return ct_memory_lock(ctx, 0);
}

int remote_memory_again(u64 *ctx)
{
	return ct_memory_lock(ctx, 1);
}
#endif

#ifdef CT_HAVE_TASK_PT_REGS
/*
 * Fires when the caller waits for another task to stop: for each ptrace request on a stopped tracee,
 * so that a tracer nobody saw attach cannot read registers twice, and for a read of /proc/P/syscall.
 */
int wait_for_stop(u64 *ctx)
{
	struct task_struct *target = (struct task_struct *)ctx[0];
	struct task_struct *me = ct_current_task();
	struct ct_case this = { .layer = CT_TRACEPOINT };
	struct ct_member *member = ct_target(target);

	if (!member || me->flags & PF_KTHREAD || !ct_outsider(me->tgid, member))
		return 0;
	this.target_tgid = target->tgid;
	this.target_tid = target->pid;
	this.flags = CT_ATTEMPT_SECOND_LINE;
	ct_note_syscall(&this, 0);
	this.vector = ct_is_ptrace(&this) ? CT_PTRACE_ATTACH : CT_PROC_STACK;
	ct_verdict(&this, member);
	return 0;
}
#endif
