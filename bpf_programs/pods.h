/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which pod and container a task is in, told by the kernel's own cgroups: of the unified hierarchy, or
 * on cgroup v1 of one controller's, which the agent names with CT_PODS_ON_<CONTROLLER>.
 */
#if defined(CT_PODS_ON_MEMORY)
#define CT_PODS_SUBSYS CT_SUBSYS_MEMORY
#elif defined(CT_PODS_ON_PIDS)
#define CT_PODS_SUBSYS CT_SUBSYS_PIDS
#elif defined(CT_PODS_ON_CPU)
#define CT_PODS_SUBSYS CT_SUBSYS_CPU
#endif

/* A container may make cgroups below its own, systemd in a container does; nobody makes more. */
#define CT_CGROUP_LEVELS 12

struct ct_home {
	u64 cgroup; /* of the container; where there is none, of the task */
	u64 pod; /* cgroup id of the pod; 0: in none */
	struct ct_pod *known; /* NULL: the pod is not known yet */
};

static __always_inline struct cgroup *ct_cgroup_of(struct task_struct *task)
{
#ifdef CT_PODS_SUBSYS
	struct cgroup_subsys_state **states = &task->cgroups->subsys;

	return states[CT_PODS_SUBSYS]->cgroup;
#else
	return task->cgroups->dfl_cgrp;
#endif
}

/* From the task's cgroup up to the first that the agent knows: a pod's, or one that pods are under. */
static __always_inline void ct_home_of(struct task_struct *task, struct ct_home *home)
{
	struct cgroup *cgroup = ct_cgroup_of(task);
	u64 id = cgroup->kn->id, below = 0, two_below = 0;
	struct cgroup_subsys_state *up;
	struct ct_pod *found;

	home->cgroup = id;
	home->pod = 0;
	home->known = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CT_CGROUP_LEVELS; i++) {
		id = cgroup->kn->id;
		found = cloudtaser_pods.lookup(&id);
		if (found) {
			if (found->kind == CT_POD_PARENT) {
				home->pod = below;
				below = two_below;
			} else {
				home->pod = id;
				home->known = found;
			}
			if (below)
				home->cgroup = below;
			return;
		}
		up = cgroup->up;
		if (!up)
			return;
		cgroup = up->cgroup;
		two_below = below;
		below = id;
	}
}

/* The id of the caller's container's cgroup, or its own; 0 where this kernel offers no way to know. */
static __always_inline u64 ct_current_cgroup(void)
{
#ifdef CT_HAVE_GET_CURRENT_TASK_BTF
	struct ct_home home;

	ct_home_of(ct_current_task(), &home);
	return home.cgroup;
#elif !defined(CT_PODS_SUBSYS)
	return bpf_get_current_cgroup_id();
#else
	return 0;
#endif
}
