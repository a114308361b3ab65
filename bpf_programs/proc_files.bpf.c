/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decides whether a process may open a file of a member's /proc/P: mem, environ, maps and the like.
 *
 * Policy: the open is refused to an outsider.  At the file, not at the access check behind it: from
 *         6.15 on a holder of CAP_PERFMON passes that check for everything that asks for READ.
 * Hooks:  task_to_inode (whose inode is it? the kernel says so on each path walk) and file_open; as
 *         LSM, and as fentry and fmod_ret.
 * Fails:  closed.  A file of such a name whose process is not known, because its inode was evicted
 *         and it is opened without a path walk (a link under /proc/self/fd), is refused, and
 *         reported without a target.
 * Not covered: descriptors that were opened before protection began (remote_memory.bpf.c sees their
 *         reads of memory).
 */

static __always_inline void ct_remember_inode(struct task_struct *task, struct inode *inode)
{
	u64 key = (u64)inode;
	u32 tgid = task->tgid;
	u32 *known;

	/* A fork that has not run yet may not be a member yet: see ct_target(). */
	if (!task->nvcsw && !task->nivcsw && !ct_member_of(tgid) && ct_target(task))
		tgid = task->real_parent->tgid;
	known = cloudtaser_inod.lookup(&key);
	if (!known || *known != tgid)
		cloudtaser_inod.update(&key, &tgid);
}

/* A file of procfs whose name is a vector's is opened. */
static __always_inline int ct_proc_file_open(struct inode *inode, struct dentry *dentry, u32 vector,
					     u32 layer, u32 flags)
{
	struct ct_case this = { .layer = layer, .vector = vector, .flags = flags };
	struct ct_config *config = ct_configuration();
	struct ct_member *member = 0;
	u32 tgid = ct_tgid();
	u64 key = (u64)inode;
	u32 *owner;

	if (!config || !config->armed)
		return 0;
	owner = cloudtaser_inod.lookup(&key);
	if (owner) {
		member = ct_member_of(*owner);
		if (!member || !ct_outsider(tgid, member))
			return 0;
		this.target_tgid = *owner;
	} else if (cloudtaser_xpid.lookup(&tgid)) {
		return 0;
	}
	ct_dentry_name(dentry, this.file);
	ct_note_syscall(&this, 0);
	return ct_verdict(&this, member);
}

/* Every open of every process comes through here: what fails for nearly all is tested first. */
static __always_inline int ct_file_open(struct file *file, u32 layer, u32 flags)
{
	struct inode *inode = file->f_inode;
	struct dentry *dentry;
	int vector;

	if (inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return 0;
	dentry = file->f_dentry;
	vector = ct_vector_of_name(dentry->d_inline[0], dentry->d_name_len);
	return vector < 0 ? 0 : ct_proc_file_open(inode, dentry, vector, layer, flags);
}

int lsm_task_to_inode(u64 *ctx)
{
	ct_remember_inode((struct task_struct *)ctx[0], (struct inode *)ctx[1]);
	return 0;
}

int fmod_task_to_inode(u64 *ctx)
{
	ct_remember_inode((struct task_struct *)ctx[0], (struct inode *)ctx[1]);
	return 0;
}

int lsm_file_open(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier : ct_file_open((struct file *)ctx[0], CT_LSM, 0);
}

int fmod_file_open(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier : ct_file_open((struct file *)ctx[0], CT_FMOD_RET, 0);
}

/* Where the kernel skipped the one before: see ptrace.bpf.c. */
int fmod_file_open_again(u64 *ctx)
{
	int earlier = (int)ctx[1];

	return earlier ? earlier :
			 ct_file_open((struct file *)ctx[0], CT_FMOD_RET, CT_ATTEMPT_SECOND_LINE);
}
