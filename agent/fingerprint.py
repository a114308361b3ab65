"""What is kept of a secret: enough to know it again in a buffer, not enough to get it back.

The process that holds a secret computes this itself (`agent.client`); neither the agent nor the kernel ever
sees the secret's bytes. What a dump of all of it would let somebody do is in docs/secrets.md.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

# A tree's secrets, their lengths in bytes, and the destinations of one.
MOST_SECRETS = 64
SHORTEST, LONGEST = 8, 4096
MOST_DESTINATIONS = 8
# The pair of bytes that the programs look for begins within the secret's first bytes.
LATEST_ANCHOR = 12
LONGEST_NAME = 128

# The key of a node: 16 bytes for the hash of the whole, 8 for the check, 2 that mask the pairs.
KEY_BYTES = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a secret may be sent: a network, and a port or any (0)."""

    network: IPv4Network | IPv6Network
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A secret as the programs know it.

    With the key's parts `hash_key`, `check_key` (a little-endian number, made odd) and `mask`, and `pair(i)`
    the bytes i and i + 1 as a little-endian number: `pairs` are `pair(anchor) ^ mask` and
    `pair(anchor + 1) ^ mask`; `check` the highest 8 of the lowest 64 bits of `check_key` times the eight
    bytes from min(anchor, length - 8) on as a little-endian number; `hash` the lowest 32 bits of
    SipHash-2-4 of the whole.
    """

    length: int
    anchor: int
    pairs: tuple[int, int]
    check: int
    hash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One registered secret of a tree. Without `allowed` destinations a send of it is only reported."""

    name: str
    fingerprint: Fingerprint
    allowed: tuple[Destination, ...] = ()
