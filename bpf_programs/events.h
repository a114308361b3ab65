/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ABI between the BPF programs and the agent: every struct that crosses a map or the ring
 * buffer, and every number that has a name on both sides.
 *
 * Only fixed-width members, fixed arrays and enums with explicit values; padding has a name; no
 * maps and no code.  agent/abi.py is the same in ctypes, and tests/build proves with the compiler
 * that the two agree.
 */
#ifndef CLOUDTASER_EVENTS_H
#define CLOUDTASER_EVENTS_H

/* One way of getting at a secret.  Numbers are fixed for ever; agent/vectors.py names them. */
enum ct_vector {
	CT_PTRACE_ATTACH = 0,
	CT_PTRACE_TRACEME = 1,
	CT_PROCESS_VM_READ = 2,
	CT_PROCESS_VM_WRITE = 3,
	CT_PROC_MEM = 4,
	CT_PROC_ENVIRON = 5,
	CT_PROC_MAPS = 6,
	CT_PROC_STACK = 7,
	CT_PIDFD_GETFD = 8,
};

/* What the configuration asks for. */
enum ct_action {
	CT_DETECT = 0,
	CT_DENY = 1,
	CT_KILL = 2,
};

/* What the hook did, which may be less than what was asked (a tracepoint cannot deny). */
enum ct_outcome {
	CT_DETECTED = 0,
	CT_DENIED = 1,
	CT_KILLED = 2,
};

/* The kind of hook that saw the attempt. */
enum ct_layer {
	CT_LSM = 0,
	CT_FMOD_RET = 1,
	CT_TRACEPOINT = 2,
};

/* Why something that should have been recorded was not; one per-CPU counter each. */
enum ct_loss {
	CT_LOSS_RATE_LIMITED = 0, /* events of an offender beyond its rate: counted, not sent */
	CT_LOSS_RING_FULL = 1, /* no room in the ring buffer */
	CT_LOSS_MEMBERS_FULL = 2, /* a process of a protected tree that did not fit: unprotected */
};

/* The record's kind, first thing the decoder looks at. */
enum ct_kind {
	CT_RECORD_ATTEMPT = 1,
	CT_RECORD_TREE_BEGINS = 2,
	CT_RECORD_TREE_ENDS = 3, /* the wrapper has gone, others of the tree may live on */
	CT_RECORD_CGROUP = 4, /* a cgroup was made where pods and their containers have theirs */
};

/* Which file of /proc the offender reads when the kernel takes another process's mmap lock. */
enum ct_path_class {
	CT_PATH_NONE = 0,
	CT_PATH_CMDLINE = 1, /* ps, top, every monitoring agent: always allowed */
	CT_PATH_PROC_MEM = 2,
	CT_PATH_PROC_ENVIRON = 3,
	CT_PATH_PROC_MAPS = 4,
};

/* Bits of ct_member.flags. */
enum ct_member_flag {
	CT_MEMBER_CANARY = 1, /* the self-test's own target: counted and reported apart */
	CT_MEMBER_EXITED = 2, /* a zombie, or about to be: nothing is left to protect */
	CT_MEMBER_OF_POD = 4, /* the wrapper is one by its pod alone, not by its name */
	CT_MEMBER_UNTOLD = 8, /* its exec is not over, and nobody has been told of the tree */
};

/* What a cgroup is, and what its pod says.  A pod that is not in the map is not known yet. */
enum ct_pod_kind {
	CT_POD_PARENT = 1, /* pods have their cgroups directly under this one */
	CT_POD_UNSAID = 2, /* wrappers are known by name */
	CT_POD_YES = 3, /* the main process of each container is a wrapper */
	CT_POD_NO = 4, /* nothing is protected, whatever it is called */
};

/* Bits of the values of the wrapper-name map. */
enum ct_name_flag {
	CT_NAME_OF_FILE = 1, /* the executable's name in its directory, up to 31 characters */
	CT_NAME_OF_TASK = 2, /* comm: the name exec was called with, up to 15 characters */
};

/* Bits of ct_attempt.flags. */
enum ct_attempt_flag {
	CT_ATTEMPT_COMPAT = 1, /* came through a 32-bit system call */
	CT_ATTEMPT_SELFTEST = 2, /* on the self-test's canary */
	CT_ATTEMPT_SECOND_LINE = 4, /* stopped after the hook that should have seen it first */
};

enum ct_limits {
	CT_MAX_VECTORS = 64,
	CT_OUTCOMES = 3,
	CT_LAYERS = 3,
	CT_BANKS = 2, /* real attempts; the self-test's */
	CT_COUNTERS = 1152, /* banks * vectors * layers * outcomes */
	CT_LOSSES = 3,
	CT_COMM = 16, /* TASK_COMM_LEN */
	CT_NAME = 32, /* an inline dentry name with its NUL, on every kernel */
	CT_EXE_PARTS = 4, /* path components of the offender's executable, the file first */
	CT_PATHS = 16, /* kernel functions whose address range tells a path class */
	CT_MAX_PODS = 4096, /* of a node, with the cgroups above them: far more than kubelet runs */
};

/* A protected tree: its wrapper's pid and start.  Never a pid alone, pids come back. */
struct ct_tree {
	__u64 start_ns; /* task_struct.start_boottime */
	__u32 pid;
	__u32 reserved;
};

/* Value of the map of protected processes; its key is the thread group id in the host's view. */
struct ct_member {
	struct ct_tree tree;
	__u64 start_ns; /* of this process; with slack_ns its identity */
	__u64 slack_ns; /* 0 when the kernel wrote start_ns; one clock tick when /proc did */
	__u64 pod; /* cgroup id of the wrapper's pod; 0: in none */
	__u64 cgroup; /* cgroup id of the wrapper's container, or its own; 0: unknown */
	__u32 flags; /* enum ct_member_flag */
	__u32 reserved;
	char comm[CT_COMM]; /* kept here because some hooks know the target by its inode only */
};

/* Value of the map of pods; its key is the id of the pod's cgroup. */
struct ct_pod {
	__u8 action[CT_MAX_VECTORS]; /* enum ct_action by enum ct_vector, for the pod's trees */
	__u32 kind; /* enum ct_pod_kind */
	__u32 shared_pids; /* 1: no container has a pid namespace of its own */
};

/* Key of the map of wrapper names, padded with NULs. */
struct ct_name {
	char text[CT_NAME];
};

/* An executable file in the host's view; the device as the kernel encodes it (major << 20). */
struct ct_file_id {
	__u64 inode;
	__u32 device;
	__u32 reserved;
};

/* A kernel function's address range, [start, end). */
struct ct_path {
	__u64 start;
	__u64 end;
	__u32 path_class; /* enum ct_path_class */
	__u32 reserved;
};

/* The one value of the map of code paths; unused entries are zero. */
struct ct_paths {
	struct ct_path path[CT_PATHS];
};

/* The one configuration struct.  Written whole, read by every verdict. */
struct ct_config {
	__u8 action[CT_MAX_VECTORS]; /* enum ct_action by enum ct_vector */
	__u64 rate_window_ns;
	__u32 rate_burst; /* events per offender and vector in a window; 0: no limit */
	__u32 layer; /* enum ct_layer: the layer chosen for this node */
	__u32 armed; /* 1 once anything has been protected: nothing is judged before */
	__u32 pods; /* 1: there are pods on this node */
	__u32 hierarchy; /* number of the cgroup hierarchy in which pods are told apart */
	__u32 shared_pods; /* 1: some pod that says yes shares its pid namespace */
	__u32 protect_unknown; /* 1: so is a container that starts before its pod is known */
	__u32 any_parent; /* 1: no cgroup of pods is known yet, and any new one may become it */
};

/* Key of the rate limiter. */
struct ct_rate_key {
	__u32 tgid;
	__u32 vector;
};

struct ct_rate {
	__u64 window_start_ns;
	__u32 seen;
	__u32 reserved;
};

struct ct_header {
	__u64 ktime_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup_id; /* of the container that ran the hook, or the task's own; 0 unknown */
	__u32 kind; /* enum ct_kind */
	__u32 size; /* of the whole record */
};

/* A task as the hook saw it.  Zero or empty where this kernel offers no way to know. */
struct ct_task {
	__u64 start_ns; /* task_struct.start_boottime */
	__u32 tgid;
	__u32 tid;
	__u32 ppid;
	__u32 uid;
	char comm[CT_COMM];
};

/* The other end of a socket. */
struct ct_endpoint {
	__u8 address[16]; /* network order; an IPv4 address is the first four bytes */
	__u16 port; /* host order */
	__u16 family; /* AF_INET, AF_INET6; 0: there is none */
	__u32 protocol; /* IPPROTO_TCP and the like; 0 unknown */
};

struct ct_attempt {
	struct ct_header header;
	__u32 vector; /* enum ct_vector */
	__u32 action; /* enum ct_action: what was asked */
	__u32 outcome; /* enum ct_outcome: what was done */
	__u32 layer; /* enum ct_layer of the hook that did it */
	__u32 flags; /* enum ct_attempt_flag */
	__s32 syscall; /* number in the table that COMPAT names; -1 unknown */
	struct ct_task offender;
	struct ct_task target;
	struct ct_tree tree; /* the target's */
	__u64 target_cgroup; /* of the container that the tree's wrapper is in, or its own */
	__u32 tracer_tgid; /* ptrace-traceme: who traces, or would; 0 elsewhere */
	__u32 reserved;
	char tracer_comm[CT_COMM];
	char exe[CT_EXE_PARTS][CT_NAME]; /* of the offender, file name first, root last */
	char file[CT_NAME]; /* of /proc/P that was opened, for the vectors that are files */
	struct ct_endpoint remote; /* where it would have gone, for the vectors that are sockets */
	__u32 secret; /* number of the registered secret that leaked; 0: none */
	__u32 number; /* what the vector says it is: a signal, a socket's type */
};

/* A tree that began by an exec seen in the kernel, or whose wrapper has gone. */
struct ct_tree_record {
	struct ct_header header;
	struct ct_task wrapper;
	struct ct_tree tree;
	__u64 cgroup; /* of the wrapper's container, or its own */
	__u64 pod; /* cgroup id of its pod; 0: in none */
};

/* A cgroup that has just been made. */
struct ct_cgroup_record {
	struct ct_header header;
	__u64 id;
	__u64 parent;
};

#endif /* CLOUDTASER_EVENTS_H */
