/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One place for what happens to an attempt: decide, count, report, kill.
 *
 * A hook finds out that an outsider makes an attempt on a member and calls ct_verdict(); what it
 * returns is what the hook returns.  The verdict depends on the configuration alone: never on the
 * ring buffer, on the rate limit, or on user space being there.
 */

/* What a hook knows about an attempt. */
struct ct_case {
	u32 vector;
	u32 layer; /* of the hook */
	u32 flags; /* enum ct_attempt_flag */
	s32 syscall;
	u32 target_tgid;
	u32 target_tid; /* 0: the hook does not know which thread */
	u32 tracer_tgid;
	struct task_struct *tracer; /* ptrace-traceme */
	char file[CT_NAME]; /* of /proc/P */
	struct ct_endpoint remote;
	u32 secret;
	u32 number;
};

/*
 * Notes the system call that the current thread is in; -1 where nothing tells.  Without the helper
 * only the calls that syscall_entry.bpf.c watches are known, and `watched` says that it is one.
 */
static __always_inline void ct_note_syscall(struct ct_case *this, int watched)
{
#if defined(CT_HAVE_GET_CURRENT_TASK_BTF) && defined(CT_HAVE_TASK_PT_REGS)
	struct task_struct *me = ct_current_task();
	struct pt_regs *regs = ct_task_pt_regs(me);

#ifdef CT_HAVE_THREAD_STATUS
	if (me->thread_status & TS_COMPAT)
		this->flags |= CT_ATTEMPT_COMPAT;
#endif
	this->syscall = (s32)regs->orig_ax;
#else
	u64 thread = bpf_get_current_pid_tgid();
	u32 *entered = watched ? cloudtaser_sysc.lookup(&thread) : 0;

	this->syscall = -1;
	if (!entered)
		return;
	if (*entered & CT_NOTED_COMPAT)
		this->flags |= CT_ATTEMPT_COMPAT;
	this->syscall = *entered & ~CT_NOTED_COMPAT;
#endif
}

static __always_inline struct ct_config *ct_configuration(void)
{
	int zero = 0;

	return cloudtaser_conf.lookup(&zero);
}

/* What is asked for an attempt on this member: by its pod where that is known, else by the node. */
static __always_inline u32 ct_action(const struct ct_config *config, const struct ct_member *target,
				     u32 vector)
{
	struct ct_pod *pod = 0;
	u64 id;

	if (vector >= CT_MAX_VECTORS)
		return CT_DETECT;
	if (target && target->pod) {
		id = target->pod;
		pod = cloudtaser_pods.lookup(&id);
	}
	return pod ? pod->action[vector] : config->action[vector];
}

/*
 * Whether the caller has been killed already, by another agent that watches the same node while one
 * replaces the other: one attempt is one kill.  Only tracepoints need to ask: a function whose value was
 * changed by one program is not shown to the next.
 */
static __always_inline int ct_is_dying(void)
{
#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
	return !!(ct_current_task()->pending_signals & 1ULL << (SIGKILL - 1));
#else
	return 0;
#endif
}

/* Whether the offender may send one more event about this vector. */
static __always_inline int ct_within_rate(const struct ct_config *config, u32 tgid, u32 vector)
{
	struct ct_rate_key key = { .tgid = tgid, .vector = vector };
	u64 now = bpf_ktime_get_ns();
	struct ct_rate *rate;

	if (!config->rate_burst)
		return 1;
	rate = cloudtaser_rate.lookup(&key);
	if (!rate) {
		struct ct_rate first = { .window_start_ns = now, .seen = 1 };

		cloudtaser_rate.update(&key, &first);
		return 1;
	}
	if (now - rate->window_start_ns >= config->rate_window_ns) {
		rate->window_start_ns = now;
		rate->seen = 1;
		return 1;
	}
	/* Two threads of one offender may both pass here: an event more, and each is counted. */
	return rate->seen++ < config->rate_burst;
}

static __always_inline void ct_header(struct ct_header *header, u32 kind, u32 size)
{
	header->ktime_ns = bpf_ktime_get_ns();
	header->cgroup_id = ct_current_cgroup();
	header->kind = kind;
	header->size = size;
}

/* The offender's executable as up to four path components: the file's name first. */
static __always_inline void ct_offender_exe(struct ct_attempt *attempt)
{
#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
	struct mm_struct *mm = ct_current_task()->mm;
	struct file *file = mm ? mm->exe_file : 0;
	struct dentry *dentry, *parent;

	if (!file)
		return;
	dentry = file->f_dentry;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CT_EXE_PARTS; i++) {
		ct_dentry_name(dentry, attempt->exe[i]);
		parent = dentry->d_parent;
		if (parent == dentry)
			return;
		dentry = parent;
	}
#endif
}

static __always_inline void ct_offender(struct ct_attempt *attempt)
{
	u64 thread = bpf_get_current_pid_tgid();

	attempt->offender.tgid = thread >> 32;
	attempt->offender.tid = (u32)thread;
	attempt->offender.uid = (u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(attempt->offender.comm, CT_COMM);
#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
	struct task_struct *me = ct_current_task();

	attempt->offender.start_ns = me->group_leader->start_boottime;
	attempt->offender.ppid = me->real_parent->tgid;
#endif
	ct_offender_exe(attempt);
}

static __always_inline void ct_report(const struct ct_config *config, const struct ct_case *this,
				      const struct ct_member *target, u32 action, u32 outcome)
{
	struct ct_attempt *attempt;

	if (!ct_within_rate(config, ct_tgid(), this->vector)) {
		ct_count_loss(CT_LOSS_RATE_LIMITED);
		return;
	}
	attempt = cloudtaser_ring.ringbuf_reserve(sizeof(struct ct_attempt));
	if (!attempt) {
		ct_count_loss(CT_LOSS_RING_FULL);
		return;
	}
	__builtin_memset(attempt, 0, sizeof(*attempt));
	ct_header(&attempt->header, CT_RECORD_ATTEMPT, sizeof(*attempt));
	attempt->vector = this->vector;
	attempt->action = action;
	attempt->outcome = outcome;
	attempt->layer = this->layer;
	attempt->flags = this->flags;
	attempt->syscall = this->syscall;
	ct_offender(attempt);
	if (target) {
		attempt->target.tgid = this->target_tgid;
		attempt->target.tid = this->target_tid;
		attempt->target.start_ns = target->start_ns;
		attempt->tree = target->tree;
		attempt->target_cgroup = target->cgroup;
		__builtin_memcpy(attempt->target.comm, target->comm, CT_COMM);
		if (target->flags & CT_MEMBER_CANARY)
			attempt->flags |= CT_ATTEMPT_SELFTEST;
	}
	if (this->tracer) {
		attempt->tracer_tgid = this->tracer->tgid;
		ct_copy_comm(attempt->tracer_comm, this->tracer);
	}
	__builtin_memcpy(attempt->file, this->file, CT_NAME);
	attempt->remote = this->remote;
	attempt->secret = this->secret;
	attempt->number = this->number;
	cloudtaser_ring.ringbuf_submit(attempt, 0);
}

/*
 * What becomes of the attempt: 0, or -EPERM after counting, reporting and, where asked, killing.
 * `target` is NULL where the member can no longer be told (proc_files.bpf.c); nobody is killed then.
 *
 * A hook that stands behind the one which judges this vector first sets CT_ATTEMPT_SECOND_LINE: it
 * must not count what that one has counted and let through, so it speaks only where it stops something.
 */
static __always_inline int ct_verdict(const struct ct_case *this, const struct ct_member *target)
{
	struct ct_config *config = ct_configuration();
	u32 action, outcome, bank, slot;
	u64 *count;

	if (!config)
		return 0;
	action = ct_action(config, target, this->vector);
	outcome = action;
	if (outcome == CT_KILLED && !target)
		outcome = CT_DENIED;
	if (outcome == CT_DENIED && this->layer == CT_TRACEPOINT)
		outcome = CT_DETECTED;
	if (outcome == CT_DETECTED && this->flags & CT_ATTEMPT_SECOND_LINE)
		return 0;
	if (outcome == CT_KILLED && this->layer == CT_TRACEPOINT && ct_is_dying())
		return -EPERM;

	bank = target && target->flags & CT_MEMBER_CANARY;
	slot = ((bank * CT_MAX_VECTORS + this->vector) * CT_LAYERS + this->layer) * CT_OUTCOMES +
	       outcome;
	count = cloudtaser_cntr.lookup(&slot);
	if (count)
		__sync_fetch_and_add(count, 1);
	ct_report(config, this, target, action, outcome);
	if (outcome == CT_KILLED)
		bpf_send_signal(SIGKILL);
	return outcome == CT_DETECTED ? 0 : -EPERM;
}
