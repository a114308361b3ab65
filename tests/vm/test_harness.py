"""A guest is what the kernel tests take it for, and its end is told for what it was."""

import pytest

from tests.vm import guest, kernels
from tests.vm.boots import ADVISED

pytestmark = pytest.mark.timeout(400)

WHAT_TESTS_NEED = """
set -ex
uname -r
grep -w bpf /sys/kernel/security/lsm
grep -F '[confidentiality]' /sys/kernel/security/lockdown
test -r /sys/kernel/btf/vmlinux
test "$(stat -f -c %T /sys/fs/bpf)" = bpf_fs
test "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs
grep -w _stext /proc/kallsyms
touch /tmp/t /run/t "$TMPDIR/t"
python -c 'import socket; socket.create_server(("127.0.0.1", 0))'
echo 'int main(void) { return sizeof(void *); }' > "$TMPDIR/m32.c"
gcc -m32 -o "$TMPDIR/m32" "$TMPDIR/m32.c"
"$TMPDIR/m32" || test $? = 4
python -c 'import bcc'
exit 7
"""


def run(release, script, share, timeout_s=120):
    kernel = kernels.ensure(release)
    return guest.run(kernel, append=ADVISED, command=["sh", "-c", script], share=share, timeout_s=timeout_s)


@pytest.mark.parametrize("release", kernels.RELEASES)
def test_guest_has_what_the_kernel_tests_need(release, tmp_path):
    result = run(release, WHAT_TESTS_NEED, tmp_path)

    assert result.exit_code == 7, result.log_text
    assert kernels.ensure(release).version in result.log_text


def test_command_that_is_too_slow_is_ended_inside(tmp_path):
    assert run("bookworm", "sleep 1000", tmp_path, timeout_s=1).exit_code == 124


def test_dead_kernel_is_no_failed_command(tmp_path):
    with pytest.raises(guest.GuestPanickedError, match="sysrq triggered crash"):
        run("bookworm", "echo c > /proc/sysrq-trigger", tmp_path)


def test_guest_that_stops_answering_is_no_failed_command(tmp_path, monkeypatch):
    monkeypatch.setattr(guest, "ANSWER_S", 5)

    with pytest.raises(guest.GuestHungError):
        run("bookworm", "kill -STOP $PPID; sleep 1000", tmp_path, timeout_s=1)
