/* SPDX-License-Identifier: GPL-2.0-only */
/* Who is protected, who is an outsider, and which names and files the kernel's objects carry. */

/* The member that this thread group id is; NULL for everything that is not protected. */
static __always_inline struct ct_member *ct_member_of(u32 tgid)
{
	return cloudtaser_memb.lookup(&tgid);
}

/*
 * The member that a task belongs to, any thread of it.  The start time must fit too: the pid of a
 * dead member may have come back as somebody else's.
 */
static __always_inline struct ct_member *ct_member_task(struct task_struct *task)
{
	struct ct_member *member = ct_member_of(task->tgid);

	if (member && task->group_leader->start_boottime - member->start_ns <= member->slack_ns)
		return member;
	return 0;
}

/*
 * The same for the target of an attempt.  A fork is in the table of pids, with a copy of its parent's
 * memory, some instructions before the tracepoint that makes it a member; so a task that has never
 * run counts as its parent.  Only as a target: an orphan that somebody started inside the container
 * has the wrapper as its parent, too, and must not become a member by that.
 */
static __always_inline struct ct_member *ct_target(struct task_struct *task)
{
	struct ct_member *member = ct_member_task(task);

	if (member || task->nvcsw || task->nivcsw)
		return member;
	return ct_member_task(task->real_parent);
}

static __always_inline int ct_same_tree(const struct ct_member *a, const struct ct_member *b)
{
	return a->tree.pid == b->tree.pid && a->tree.start_ns == b->tree.start_ns;
}

/* Whether a process is neither of the target's tree nor exempt. */
static __always_inline int ct_outsider(u32 tgid, const struct ct_member *target)
{
	struct ct_member *self = ct_member_of(tgid);

	if (self && ct_same_tree(self, target))
		return 0;
	return !cloudtaser_xpid.lookup(&tgid);
}

static __always_inline void ct_count_loss(u32 loss)
{
	u64 *count = cloudtaser_loss.lookup(&loss);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/*
 * A dentry's name, NUL-terminated and cut to CT_NAME.  Only a name stored inside the dentry can be
 * had by a direct load; a longer one (32 characters and more) reads as "?".
 */
static __always_inline void ct_dentry_name(struct dentry *dentry, char *name)
{
	u64 *words = (u64 *)name;
	u32 length = dentry->d_name_len;

	if (length >= CT_NAME) {
		words[0] = '?';
		words[1] = words[2] = words[3] = 0;
		return;
	}
	/* What follows the name in the dentry is left over from an earlier one. */
#define CT_WORD(i)                                                                                 \
	words[i] = length >= 8 * (i + 1) ? dentry->d_inline[i] :                                   \
		   length > 8 * i ? dentry->d_inline[i] & ((1ULL << (8 * (length - 8 * i))) - 1) : \
				    0
	CT_WORD(0);
	CT_WORD(1);
	CT_WORD(2);
	CT_WORD(3);
#undef CT_WORD
}

static __always_inline void ct_copy_comm(char *to, const struct task_struct *task)
{
	((u64 *)to)[0] = ((u64 *)task->comm)[0];
	((u64 *)to)[1] = ((u64 *)task->comm)[1];
}
