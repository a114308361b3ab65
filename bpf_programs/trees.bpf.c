/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Follows protected trees: whatever a member forks is a member, whatever is called like a wrapper
 * becomes the root of a tree at its exec, before its first instruction.
 *
 * Hooks: sched_process_fork, sched_process_exec, sched_process_exit, sched_process_free (raw
 *        tracepoints, all layers).
 * Fails: open.  A member that does not fit into the map is not protected; it is counted as
 *        members_full, and the agent says so.
 * Decides, too: a process that is being traced by an outsider and execs a wrapper is killed
 *        (ptrace-traceme), as its tracer would own the secrets.
 * Not covered: descendants that were re-parented before protection began (the agent's scan).
 */

/* Whether the exec that the current task has just made of this file makes it a wrapper. */
static __always_inline int ct_is_wrapper(struct dentry *dentry, struct ct_file_id *file)
{
	struct ct_name name = {};
	u32 *flags;

	if (cloudtaser_wexe.lookup(file))
		return 1;
	ct_dentry_name(dentry, name.text);
	flags = cloudtaser_name.lookup(&name);
	if (flags && *flags & CT_NAME_OF_FILE)
		return 1;
	/*
	 * A link or a script goes by the name that exec was given, which is comm by now.  By the helper,
	 * which pads it; the kernel itself has not always.
	 */
	__builtin_memset(&name, 0, sizeof(name));
	bpf_get_current_comm(name.text, CT_COMM);
	flags = cloudtaser_name.lookup(&name);
	return flags && *flags & CT_NAME_OF_TASK;
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
	cloudtaser_ring.ringbuf_submit(record, 0);
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

int tree_exec(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct linux_binprm *bprm = (struct linux_binprm *)ctx[2];
	struct dentry *dentry = bprm->file->f_dentry;
	struct inode *inode = bprm->file->f_inode;
	struct ct_file_id file = { .inode = inode->i_ino, .device = inode->i_sb->s_dev };
	u64 start = task->group_leader->start_boottime;
	struct ct_member *member;
	struct task_struct *tracer;
	u32 tgid = task->tgid;

	if (cloudtaser_xexe.lookup(&file))
		cloudtaser_xpid.update(&tgid, &start);
	else if (cloudtaser_xpid.lookup(&tgid))
		cloudtaser_xpid.delete(&tgid);

	member = ct_member_task(task);
	if (member) {
		ct_copy_comm(member->comm, task);
	} else if (ct_is_wrapper(dentry, &file)) {
		struct ct_member root = {
			.tree = { .start_ns = start, .pid = tgid },
			.start_ns = start,
		};
		struct ct_config *config = ct_configuration();

		ct_copy_comm(root.comm, task);
		if (cloudtaser_memb.update(&tgid, &root)) {
			ct_count_loss(CT_LOSS_MEMBERS_FULL);
			return 0;
		}
		if (config)
			config->armed = 1;
		ct_tree_record(CT_RECORD_TREE_BEGINS, task, &root);
		member = ct_member_of(tgid);
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
	if (member->tree.pid == task->tgid && !(member->flags & CT_MEMBER_CANARY))
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
