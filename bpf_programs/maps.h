/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map.  A map's kernel name is its name here: 15 characters at most, cloudtaser_ first, so
 * that an operator can grep for it.
 *
 * The sizes that the configuration decides come as -D from validated integers:
 * CT_MAX_PROCESSES, CT_RING_PAGES.
 */

/* The configuration; written whole by the agent, read by every verdict. */
BPF_ARRAY(cloudtaser_conf, struct ct_config, 1);

/* Protected processes by thread group id.  Full: the process is not protected, and it is counted. */
BPF_HASH(cloudtaser_memb, u32, struct ct_member, CT_MAX_PROCESSES);

/* What makes a process a wrapper at its exec: the name it has, or its file. */
BPF_TABLE("hash", struct ct_name, u32, cloudtaser_name, 256);
BPF_TABLE("hash", struct ct_file_id, u32, cloudtaser_wexe, 256);

/* Exempt executables, and the running processes that execute them. */
BPF_TABLE("hash", struct ct_file_id, u32, cloudtaser_xexe, 1024);
BPF_HASH(cloudtaser_xpid, u32, u64, 16384);

/*
 * Which process an inode of procfs belongs to (thread group id by inode address).  The kernel tells
 * us on every path walk, just before the open, so an evicted entry is back in time; what is opened
 * without a walk and not found is refused (proc_files.bpf.c).
 */
BPF_TABLE("lru_hash", u64, u32, cloudtaser_inod, 16384);

/*
 * Pods by the id of their cgroup, and the cgroups above them.  Full: the pod stays unknown, and its
 * containers are protected until they end; the agent says so.
 */
BPF_HASH(cloudtaser_pods, u64, struct ct_pod, CT_MAX_PODS);

/* The main process of each container that shares its pid namespace, by the container's cgroup id. */
BPF_HASH(cloudtaser_main, u64, u32, CT_MAX_PODS);

/* System call of a thread, where the kernel has no helper that tells it (syscall_entry.bpf.c). */
BPF_TABLE("lru_hash", u64, u32, cloudtaser_sysc, 4096);

/* Threads whose present process_vm_readv or writev has been counted: it may take the lock again. */
BPF_TABLE("lru_hash", u64, u32, cloudtaser_once, 4096);

/* Counters: the truth for metrics, right even when records are lost. */
BPF_TABLE("percpu_array", u32, u64, cloudtaser_cntr, CT_COUNTERS);
BPF_TABLE("percpu_array", u32, u64, cloudtaser_loss, CT_LOSSES);

/* Events sent of late by (offender, vector).  An evicted entry means an event more, not one less. */
BPF_TABLE("lru_hash", struct ct_rate_key, struct ct_rate, cloudtaser_rate, 8192);

/* Address ranges of the kernel functions that tell what a remote access is for. */
BPF_ARRAY(cloudtaser_path, struct ct_paths, 1);

/* Records to the agent. */
BPF_RINGBUF_OUTPUT(cloudtaser_ring, CT_RING_PAGES);
