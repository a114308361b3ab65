/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Follows protected trees: whatever a member forks is a member, whatever is called like a wrapper
 * becomes the root of a tree at its exec, before its first instruction; and so does the main process
 * of each container of a pod that says yes, or that is not known yet.
 *
 * Hooks: sched_process_fork, task_rename, sched_process_exec, sched_process_exit,
 *        sched_process_free (raw tracepoints, all layers).
 * Fails: open.  A member that does not fit into the map is not protected; it is counted as
 *        members_full, and the agent says so.
 * Decides, too: a process that is being traced by an outsider and execs a wrapper is killed
 *        (ptrace-traceme), as its tracer would own the secrets.
 * Not covered: a wrapper that is one by the name of a link or script alone is protected some
 *        instructions later than others, when its memory can be had already;
 *        descendants that were re-parented before protection began (the agent's scan); what a
 *        container's runtime holds before the exec: environment and arguments, never the secrets that
 *        a wrapper fetches; in a pod with a shared pid namespace that is not known yet, all but its
 *        first process; since 7.0, a fork or exec for which the kernel skips the program, as another
 *        task was preempted in the middle of it on the same processor (remote_memory.bpf.c).
 */

/* Whether a program of this file makes the task that executes it a wrapper. */
static __always_inline int ct_is_wrapper(struct dentry *dentry, struct ct_file_id *file)
{
	struct ct_name name = {};
	u32 *flags;

	if (cloudtaser_wexe.lookup(file))
		return 1;
	ct_dentry_name(dentry, name.text);
	flags = cloudtaser_name.lookup(&name);
	return flags && *flags & CT_NAME_OF_FILE;
}

/*
 * Whether the name that the current task has since its exec does.  A link or a script goes by the name
 * that exec was given.  By the helper, which pads it; the kernel itself has not always.
 */
static __always_inline int ct_is_called_wrapper(void)
{
	struct ct_name name = {};
	u32 *flags;

	bpf_get_current_comm(name.text, CT_COMM);
	flags = cloudtaser_name.lookup(&name);
	return flags && *flags & CT_NAME_OF_TASK;
}

/* How a task that is no member may become a wrapper by its exec. */
enum ct_candidate {
	CT_NO_CANDIDATE,
	CT_FIRST_OF_NAMESPACE, /* process 1 of a container's own pid namespace */
	CT_IN_CONTAINER, /* started from outside of a container; the first is its main process */
};

static __always_inline int ct_candidate(struct task_struct *task, const struct ct_config *config)
{
	/* One below the node's: in a namespace further down only the container itself starts processes. */
	if (task->signal->flags & SIGNAL_UNKILLABLE && task->thread_pid->level == 1)
		return CT_FIRST_OF_NAMESPACE;
	/*
	 * The runtime, which starts it, is outside of the container's mounts.  So is what the runtime
	 * makes of itself before it enters them.
	 */
	if (config->shared_pods && task->nsproxy->mnt_ns != task->real_parent->nsproxy->mnt_ns)
		return CT_IN_CONTAINER;
	return CT_NO_CANDIDATE;
}

/* Whether this candidate is the main process of a container whose main process is a wrapper. */
static __always_inline int ct_by_pod(const struct ct_config *config, const struct ct_home *home,
				     int candidate, u32 tgid)
{
	u64 container = home->cgroup;

	if (!home->pod)
		return 0;
	if (!home->known)
		return config->protect_unknown && candidate == CT_FIRST_OF_NAMESPACE;
	if (home->known->kind != CT_POD_YES)
		return 0;
	if (!home->known->shared_pids)
		return candidate == CT_FIRST_OF_NAMESPACE;
	/* Process 1 of a shared namespace is nobody's: it only holds the namespace. */
	return candidate == CT_IN_CONTAINER && !cloudtaser_main.insert(&container, &tgid);
}

static __always_inline void ct_tree_record(u32 kind, struct task_struct *wrapper,
					   const struct ct_member *member)
{
	struct ct_tree_record *record =
		cloudtaser_ring.ringbuf_reserve(sizeof(struct ct_tree_record));

	if (!record) {
		ct_count_loss(CT_LOSS_RING_FULL);
		return;
	}
	__builtin_memset(record, 0, sizeof(*record));
	ct_header(&record->header, kind, sizeof(*record));
	record->wrapper.start_ns = member->start_ns;
	record->wrapper.tgid = wrapper->tgid;
	record->wrapper.tid = wrapper->pid;
	record->wrapper.ppid = wrapper->real_parent->tgid;
	ct_copy_comm(record->wrapper.comm, wrapper);
	record->tree = member->tree;
	record->cgroup = member->cgroup;
	record->pod = member->pod;
	cloudtaser_ring.ringbuf_submit(record, 0);
}

/* The task is the root of a tree from now on; NULL where it does not fit. */
static __always_inline struct ct_member *ct_tree_begins(struct ct_config *config,
							struct task_struct *task,
							const struct ct_home *home, u32 flags)
{
	u64 start = task->group_leader->start_boottime;
	u32 tgid = task->tgid;
	struct ct_member root = {
		.tree = { .start_ns = start, .pid = tgid },
		.start_ns = start,
		.pod = home->pod,
		.cgroup = home->cgroup,
		.flags = flags,
	};

	ct_copy_comm(root.comm, task);
	if (cloudtaser_memb.update(&tgid, &root)) {
		ct_count_loss(CT_LOSS_MEMBERS_FULL);
		return 0;
	}
	config->armed = 1;
	return ct_member_of(tgid);
}

/* The same for a task that executes a program, if that makes it a wrapper; it is not told of yet. */
static __always_inline struct ct_member *ct_wrapper_begins(struct ct_config *config,
							   struct task_struct *task, int named)
{
	int candidate = config->pods ? ct_candidate(task, config) : CT_NO_CANDIDATE;
	struct ct_home home = {};

	if (!named && candidate == CT_NO_CANDIDATE)
		return 0;
	ct_home_of(task, &home);
	if (home.known && home.known->kind == CT_POD_NO)
		return 0;
	if (!named && !ct_by_pod(config, &home, candidate, task->tgid))
		return 0;
	return ct_tree_begins(config, task, &home,
			      CT_MEMBER_UNTOLD | (named ? 0 : CT_MEMBER_OF_POD));
}

/* The task is alive but has not run yet: it is a member, or known not to be, from its first step. */
int tree_fork(u64 *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx[0];
	struct task_struct *child = (struct task_struct *)ctx[1];
	struct ct_member *member;
	u32 from = parent->tgid, tgid = child->tgid;
	u64 start = child->start_boottime;

	if (child->pid != tgid)
		return 0; /* a thread */
	member = ct_member_task(parent);
	if (member) {
		struct ct_member copy = *member;

		copy.start_ns = start;
		copy.slack_ns = 0;
		if (cloudtaser_memb.update(&tgid, &copy))
			ct_count_loss(CT_LOSS_MEMBERS_FULL);
	} else if (ct_member_of(tgid)) {
		cloudtaser_memb.delete(&tgid); /* a dead member's pid has come back */
	}
	if (cloudtaser_xpid.lookup(&from))
		cloudtaser_xpid.update(&tgid, &start);
	else if (cloudtaser_xpid.lookup(&tgid))
		cloudtaser_xpid.delete(&tgid);
	return 0;
}

/*
 * In the middle of an exec: the new memory is in place, and nobody else gets at it before the exec has
 * got further (exec_update_lock).  So whoever finds this memory finds a member; at sched_process_exec
 * an attacker who waited for that lock may have pages of it already, and read them at leisure.
 */
int tree_rename(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct ct_config *config = ct_configuration();
	struct mm_struct *mm = task->mm;
	struct ct_file_id file = {};
	struct inode *inode;

	/* Else somebody renames a task that runs: it has had code since its exec. */
	if (!config || !mm || mm->start_code || ct_member_task(task))
		return 0;
	inode = mm->exe_file->f_inode;
	file.inode = inode->i_ino;
	file.device = inode->i_sb->s_dev;
	ct_wrapper_begins(config, task, ct_is_wrapper(mm->exe_file->f_dentry, &file));
	return 0;
}

int tree_exec(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct linux_binprm *bprm = (struct linux_binprm *)ctx[2];
	struct dentry *dentry = bprm->file->f_dentry;
	struct inode *inode = bprm->file->f_inode;
	struct ct_file_id file = { .inode = inode->i_ino, .device = inode->i_sb->s_dev };
	u64 start = task->group_leader->start_boottime;
	struct ct_config *config = ct_configuration();
	struct ct_member *member;
	struct task_struct *tracer;
	u32 tgid = task->tgid;

	if (cloudtaser_xexe.lookup(&file))
		cloudtaser_xpid.update(&tgid, &start);
	else if (cloudtaser_xpid.lookup(&tgid))
		cloudtaser_xpid.delete(&tgid);

	member = ct_member_task(task);
	if (!member && config)
		member = ct_wrapper_begins(config, task,
					   ct_is_wrapper(dentry, &file) || ct_is_called_wrapper());
	if (member) {
		ct_copy_comm(member->comm, task);
		if (member->flags & CT_MEMBER_UNTOLD) {
			member->flags &= ~CT_MEMBER_UNTOLD;
			ct_tree_record(CT_RECORD_TREE_BEGINS, task, member);
		}
	}
	if (!member || !task->ptrace)
		return 0;
	tracer = task->parent;
	if (ct_outsider(tracer->tgid, member)) {
		struct ct_case this = {
			.vector = CT_PTRACE_TRACEME,
			.layer = CT_TRACEPOINT,
			.target_tgid = tgid,
			.target_tid = task->pid,
			.tracer = tracer,
		};

		ct_note_syscall(&this, 0);
		ct_verdict(&this, member);
	}
	return 0;
}

/*
 * The last thread of a process goes.  Since 6.16 its memory goes only after this, so it stays a member
 * until it is reaped; but it counts no more, since a zombie may wait for its parent for ever.
 */
int tree_exit(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct ct_member *member;

	if (task->signal->live)
		return 0;
	member = ct_member_task(task);
	if (!member || member->flags & CT_MEMBER_EXITED)
		return 0;
	member->flags |= CT_MEMBER_EXITED;
	if (member->tree.pid == task->tgid &&
	    !(member->flags & (CT_MEMBER_CANARY | CT_MEMBER_UNTOLD)))
		ct_tree_record(CT_RECORD_TREE_ENDS, task, member);
	return 0;
}

/* The process was reaped: its pid may come back from now on. */
int tree_free(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct ct_member *member;
	u32 tgid = task->tgid;
	u64 *exempt;

	if (task->pid != tgid)
		return 0;
	exempt = cloudtaser_xpid.lookup(&tgid);
	if (exempt && task->start_boottime - *exempt <= CT_TICK_NS)
		cloudtaser_xpid.delete(&tgid);
	member = ct_member_of(tgid);
	if (!member || task->start_boottime - member->start_ns > member->slack_ns)
		return 0; /* the pid is somebody else's by now */
	cloudtaser_memb.delete(&tgid);
	return 0;
}
