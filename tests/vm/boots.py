"""What is booted: each kernel with each choice of boot options, and the layers tested in that boot."""

from dataclasses import dataclass

# The boot that is advised for nodes: the BPF LSM is on, and the kernel keeps its own memory to itself.
ADVISED = "lsm=lockdown,capability,bpf lockdown=confidentiality"
# The boot that is found where nobody asked for the BPF LSM.
WITHOUT_BPF = "lsm=lockdown,capability"


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One row: a release's kernel, its command line, and the layers to test one after the other.

    `cluster`: an agent in Kubernetes mode with real containers is tested, too, which takes minutes more.
    """

    release: str
    append: str
    layers: tuple[str, ...]
    cluster: bool = False

    @property
    def name(self) -> str:
        """Return a name fit for a folder and a test, as in bookworm-lsm."""
        return "-".join((self.release, *self.layers))


# The longest first, so that the last to run is short.
BOOTS = (
    Boot(release="bookworm", append=WITHOUT_BPF, layers=("fmod_ret", "tracepoint")),
    Boot(release="bullseye", append=ADVISED, layers=("lsm",)),
    Boot(release="sid", append=ADVISED, layers=("lsm",), cluster=True),
    Boot(release="sid", append=WITHOUT_BPF, layers=("fmod_ret",), cluster=True),
    Boot(release="trixie", append=ADVISED, layers=("lsm",)),
    Boot(release="bookworm", append=ADVISED, layers=("lsm",), cluster=True),
)
