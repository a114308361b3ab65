/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tells the agent of each new cgroup that is a pod's or a container's, so that it knows whose they are
 * before anything runs in them.
 *
 * Policy: none: it reports.  What runs in a pod that the agent does not know yet is decided at the
 *         exec, in trees.bpf.c, and never depends on the agent having read this.
 * Hooks:  cgroup_mkdir (raw tracepoint, all layers).
 * Fails:  open: a record that does not fit into the ring is found by the agent's next look.
 * Not covered: cgroups that a container makes inside its own.
 */

static __always_inline int ct_above_pods(u64 id)
{
	struct ct_pod *found = cloudtaser_pods.lookup(&id);

	return found && found->kind == CT_POD_PARENT;
}

int pod_mkdir(u64 *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx[0];
	struct ct_config *config = ct_configuration();
	struct ct_cgroup_record *record;
	struct cgroup_subsys_state *up = cgroup->up;
	struct cgroup *parent;
	u64 parent_id;

	if (!config || !config->pods || !up || cgroup->root->hierarchy_id != config->hierarchy)
		return 0;
	parent = up->cgroup;
	parent_id = parent->kn->id;
	if (!config->any_parent && !ct_above_pods(parent_id)) {
		up = parent->up;
		if (!up || !ct_above_pods(up->cgroup->kn->id))
			return 0;
	}
	record = cloudtaser_ring.ringbuf_reserve(sizeof(struct ct_cgroup_record));
	if (!record) {
		ct_count_loss(CT_LOSS_RING_FULL);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	ct_header(&record->header, CT_RECORD_CGROUP, sizeof(*record));
	record->id = cgroup->kn->id;
	record->parent = parent_id;
	cloudtaser_ring.ringbuf_submit(record, 0);
	return 0;
}
