"""cloudtaser-ebpf: keeps the secrets in a process's memory where they belong."""

__version__ = "0.1.0"
