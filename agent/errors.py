"""Every exception of the agent, and the exit code that each one means.

::

    AgentError                 exit 1: failed while running
    ├── ConfigError            exit 2: bad configuration or usage, every mistake listed
    ├── NodeError              exit 3: this node cannot enforce what is asked
    │   ├── BtfError           the kernel's type information is missing or unreadable
    │   └── LoadError          the kernel or the compiler refused a program
    ├── KubeError              the API server, or the way to it, is not as it must be; protection goes on
    └── SelfTestError          exit 4: a vector did not hold and require-effective is set

Each message is one line that tells the operator what to change. Foreign exceptions are translated
where they arise, by the one module that talks to the library in question.
"""

from typing import ClassVar


class AgentError(Exception):
    """Anything the agent says about itself instead of a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(AgentError):
    """One or more mistakes in flags, environment or the configuration file."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *mistakes: str) -> None:
        """Take every mistake at once, so that the operator mends them in one go."""
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


class NodeError(AgentError):
    """This node lacks something that enforcement needs."""

    exit_code: ClassVar[int] = 3


class BtfError(NodeError):
    """The kernel's BTF is absent, unreadable or without a type that every layer needs."""


class LoadError(NodeError):
    """A program did not compile, load or attach."""


class KubeError(AgentError):
    """The API server cannot be reached, refuses, or says what cannot be understood.

    `status` is the HTTP status of its answer, None where there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SelfTestError(AgentError):
    """A vector that should be stopped was not."""

    exit_code: ClassVar[int] = 4
