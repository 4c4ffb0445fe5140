"""The sandbox: what main and a session can no longer do, tried from inside.

The simulated disk makes a system call of the test's choice in the middle of
a command, as an attacker's code would. Nothing here may take the filter's
list from the source: what must not be possible stands here by name, and
what must be possible is shown by all other tests, which run under the filter.
"""
import contextlib
import ctypes
import errno
import os
import re
import resource
import socket
import struct
import subprocess
import time

import pytest

import sim
from container import NUMBER, default_seccomp
from helper import program
from launch import descriptors, wait_until
from prclient import GOOD, READ_KEYS, Closed

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')

# Numbers of MACHINES; -100 is AT_FDCWD.
CALLS = {
    'openat': ((257, 56, 295), (-100, 0, 0)),
    'socket': ((41, 198, 359), (1, 1, 0)),
    'socket that is no Unix socket': ((41, 198, 359), (2, 1, 0)),
    'socketpair that is no Unix socket': ((53, 199, 360), (2, 1, 0)),
    'connect': ((42, 203, 362), (2, 0, 0)),
    'bind': ((49, 200, 361), (2, 0, 0)),
    'execve': ((59, 221, 11), (0, 0, 0)),
    'execveat': ((322, 281, 358), (2, 0, 0)),
    'clone': ((56, 220, 120), (17, 0, 0)),
    'clone3': ((435, 435, 435), (0, 0, 0)),
    'kill': ((62, 129, 37), (1, 0, 0)),
    'tgkill': ((234, 131, 270), (1, 1, 0)),
    'ptrace': ((101, 117, 26), (0, 0, 0)),
    'prlimit64': ((302, 261, 340), (0, 7, 0)),
    'prctl': ((157, 167, 172), (4, 1, 0)),
    'accept4': ((288, 242, 364), (2, 0, 0)),
    'unlinkat': ((263, 35, 301), (-100, 0, 0)),
    'mmap': ((9, 222, 192), (0, 4096, 7)),
    'mprotect': ((10, 226, 125), (0, 4096, 7)),
    'dup': ((32, 23, 41), (2, 0, 0)),
    'setresuid': ((117, 147, 208), (0, 0, 0)),
    'process_vm_readv': ((310, 270, 347), (1, 0, 0)),
    'io_uring_setup': ((425, 425, 425), (1, 0, 0)),
    'pidfd_getfd': ((438, 438, 438), (1, 0, 0)),
    'bpf': ((321, 280, 357), (0, 0, 0)),
    'mount': ((165, 40, 21), (0, 0, 0)),
    'ioctl that is not SG_IO': ((16, 29, 54), (0, 0x5401, 0)),
    'ioctl SG_SCSI_RESET': ((16, 29, 54), (0, 0x2284, 0)),
    'fcntl that is not F_GETFL': ((72, 25, 221), (2, 4, 0)),
    'write to another descriptor': ((1, 64, 4), (0, 0, 0)),
    'ftruncate': ((77, 46, 93), (2, 0)),
    'lseek': ((8, 62, 19), (2, 0, 0)),
    'sendto with an address': ((44, 206, 369), (2, sim.IN_SENSE, 1, 0,
                                                sim.IN_SENSE, 16)),
    'sendmsg to another descriptor': ((46, 211, 370), (2, sim.IN_SENSE, 0)),
}
# Main forks, accepts and ends sessions; its workers open devices and talk to
# multipathd. So it may do these.
MAINS = {'kill', 'accept4', 'unlinkat', 'write to another descriptor',
         'openat', 'socket', 'connect', 'prlimit64'}

# e_machine of the program's ELF header, in the order of the numbers above.
MACHINES = [62, 183, 3]     # x86-64, aarch64, i386

NETLINK_AUDIT = 9


def machine():
    with open(SIM_HELPER, 'rb') as f:
        return struct.unpack('<18xH', f.read(20))[0]


MACHINE = machine()
if MACHINE == 183:          # which has no fork()
    MAINS.add('clone')
pytestmark = pytest.mark.skipif(
    MACHINE not in MACHINES
    or 'anitized' in SIM_HELPER, reason='a build without the sandbox')


def number(call):
    return CALLS[call][0][MACHINES.index(MACHINE)]


@pytest.fixture
def helper(start, target):
    return lambda *options: start(SIM_HELPER, '-v', *options, env=target.env)


def status(pid, field):
    with open('/proc/%d/status' % pid) as f:
        return [line.split(':')[1].strip() for line in f
                if line.startswith(field + ':')][0]


def test_main_has_one_filter_and_a_session_two(helper):
    main = helper()
    with main.client() as client:
        client.read_in(os.open(os.devnull, os.O_RDWR), READ_KEYS)
        assert status(main.pid, 'Seccomp') == '2'
        main.wait_sessions(1)   # there was one that looked if main is ready
        session, = main.sessions()
        for pid, filters in (main.pid, '1'), (session, '2'):
            assert status(pid, 'Seccomp_filters') == filters


@pytest.mark.parametrize('call', CALLS)
def test_forbidden_call_kills_the_session_only(helper, target, disks, call):
    main, fd = helper(), disks.open()
    nexus = target.nexus(0)
    with main.client() as bystander, main.client() as client:
        nexus.make_call(number(call), *CALLS[call][1])
        with pytest.raises(Closed):
            client.read_in(fd, READ_KEYS)
        assert nexus.call == 0 and nexus.call_errno == -1
        assert main.wait_log('of signal 31: it made a system call that the '
                             'sandbox forbids')
        assert 'pid %d ' % os.getpid() in main.log()
        nexus.in_flight = 0
        assert bystander.read_in(fd, READ_KEYS).status == GOOD
        with main.client() as again:
            assert again.read_in(fd, READ_KEYS).status == GOOD


@pytest.mark.parametrize('call', [sim.ABORT, sim.SMASHED])
def test_an_abort_does_not_look_like_a_forbidden_call(helper, target, disks,
                                                      call):
    main, fd = helper(), disks.open()
    target.nexus(0).make_call(call)
    with main.client() as client, pytest.raises(Closed):
        client.read_in(fd, READ_KEYS)
    main.wait_log('of signal ')
    assert 'of signal 31' not in main.log()
    assert 'sandbox' not in main.log()
    if call == sim.SMASHED and '\0GLIBC_2' in programs_text():
        assert 'stack smashing detected' in main.log()


def programs_text():
    with open(SIM_HELPER, 'rb') as f:
        return f.read().decode('latin1')


@pytest.mark.parametrize('call', sorted(set(CALLS) - MAINS))
def test_forbidden_call_fails_in_main(helper, target, disks, call):
    main, fd = helper('--single-process'), disks.open()
    nexus = target.nexus(0)
    nexus.make_call(number(call), *CALLS[call][1])
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
        assert nexus.call_errno == errno.ENOSYS
        assert client.read_in(fd, READ_KEYS).status == GOOD


@pytest.fixture
def kernel_log():
    """Reads what the kernel has logged since."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_AUDIT).close()
        fd = os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        pytest.skip('this kernel logs no system calls: ' + error.strerror)
    if os.path.exists('/run/auditd.pid'):
        pytest.skip('auditd takes what the kernel logs')
    os.lseek(fd, 0, os.SEEK_END)

    def read():
        text = ''
        with contextlib.suppress(BlockingIOError):
            while True:
                text += os.read(fd, 8192).decode(errors='replace')
        return text
    yield read
    os.close(fd)


@pytest.mark.parametrize('mode', [[], ['--single-process']])
def test_the_kernel_logs_a_forbidden_call(helper, target, disks, kernel_log,
                                          mode):
    main, fd, text = helper(*mode), disks.open(), ''
    end = time.monotonic() + 60     # it takes ten of them in five seconds
    while not re.search(r'type=1326 .*syscall=%d ' % number('mprotect'), text):
        assert time.monotonic() < end, text
        target.nexus(0).make_call(number('mprotect'), *CALLS['mprotect'][1])
        with main.client() as client, contextlib.suppress(Closed):
            client.read_in(fd, READ_KEYS)
        time.sleep(0.2)
        text += kernel_log()


@pytest.mark.parametrize('mode', [[], ['--single-process']])
def test_what_it_does_is_not_forbidden(helper, disks, kernel_log, mode):
    main, fd = helper(*mode), disks.open()
    for _ in range(3):
        with main.client() as client:
            assert client.read_in(fd, READ_KEYS).status == GOOD
    time.sleep(0.5)     # the kernel's log is not the last to know
    assert ' pid=%d ' % main.pid not in kernel_log()


def test_a_session_gets_no_descriptor_of_the_queues_number(helper, disks):
    """Of any other, sendmsg() could talk to anybody."""
    main, fd = helper(), disks.open()
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
        main.wait_sessions(1)
        session, = main.sessions()
        numbers = sorted(map(int, os.listdir('/proc/%d/fd' % session)))
        with open('/proc/%d/limits' % session) as f:
            limit = re.search('Max open files +(\\d+) +(\\d+)', f.read())
        assert list(map(int, limit.groups())) == [numbers[-1]] * 2
        assert numbers[-1] >= 500 and len(numbers) == 5


def trace_fd(pid, path):
    return next(fd for fd, link in descriptors(pid).items() if link == path)


def test_a_session_writes_to_the_trace_file(helper, target, disks, tmp_path):
    path, fd = str(tmp_path / 'trace'), disks.open()
    main, nexus = helper('-T', 'request,file=' + path), target.nexus(0)
    with main.client() as client:
        file = trace_fd(main.pid, path)
        nexus.sense = b'from inside'
        nexus.make_call(number('write to another descriptor'), file,
                        sim.IN_SENSE, 11)
        assert client.read_in(fd, READ_KEYS).status == GOOD
        assert nexus.call_errno == 0
        session, = main.sessions()
        assert trace_fd(session, path) == file
        with open(path) as f:
            text = f.read()
        with open('/proc/%d/limits' % session) as f:
            assert file >= int(re.search('open files +\\d+ +(\\d+)',
                                         f.read()).group(1)) >= 500
        assert ' request: ' in text and text.endswith('from inside')
        # What goes to the next one is another's.
        nexus.make_call(number('write to another descriptor'), file + 1,
                        sim.IN_SENSE, 11)
        with pytest.raises(Closed):
            client.read_in(fd, READ_KEYS)
    assert main.wait_log('of signal 31')


@pytest.mark.parametrize('call', ['openat', 'ftruncate', 'lseek'])
def test_a_session_does_nothing_else_to_the_trace_file(
        helper, target, disks, tmp_path, call):
    path, fd = str(tmp_path / 'trace'), disks.open()
    main, nexus = helper('-T', 'request,file=' + path), target.nexus(0)
    with main.client() as client:
        nexus.sense = os.fsencode(path)
        file = trace_fd(main.pid, path)
        nexus.make_call(number(call), *{'openat': (-100, sim.IN_SENSE, 1),
                                        'ftruncate': (file, 0),
                                        'lseek': (file, 0, 0)}[call])
        with pytest.raises(Closed):
            client.read_in(fd, READ_KEYS)
    assert main.wait_log('of signal 31')
    assert os.path.getsize(path) > 0


def landlock_version():
    """The kernel's; 0: it has none."""
    return max(0, ctypes.CDLL(None).syscall(444, None, 0, 1))


def remove(main, nexus, fd, path):
    """Main itself unlinks a file; returns the errno."""
    nexus.sense = os.fsencode(path)
    nexus.make_call(number('unlinkat'), -100, sim.IN_SENSE, 0)
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
    return nexus.call_errno


@pytest.mark.skipif(landlock_version() < 1, reason='no Landlock here')
@pytest.mark.parametrize('sandbox', ['on', 'off'])
def test_main_removes_files_beside_its_socket_only(helper, target, disks,
                                                   tmp_path, sandbox):
    main = helper('--single-process', '--sandbox=' + sandbox)
    beside = os.path.join(os.path.dirname(main.path), 'beside')
    elsewhere = str(tmp_path / 'elsewhere')
    for path in beside, elsewhere:
        with open(path, 'w'):
            pass
    nexus, fd = target.nexus(0), disks.open()
    assert remove(main, nexus, fd, beside) == 0
    assert remove(main, nexus, fd, elsewhere) == (
        errno.EACCES if sandbox == 'on' else 0)


@pytest.mark.skipif(landlock_version() < 1, reason='no Landlock here')
@pytest.mark.parametrize('sandbox', ['on', 'off'])
@pytest.mark.parametrize('path, flags, allowed', [
    ('/etc/hostname', os.O_RDONLY, False), ('/proc/self/stat', os.O_RDONLY,
                                            False),
    ('/sys/kernel/mm', os.O_RDONLY, True), ('/dev/null', os.O_RDONLY, True),
    ('/dev/null', os.O_RDWR, False), ('/dev', os.O_RDONLY, False)])
def test_main_opens_nothing_but_to_read_in_sys_and_dev(
        helper, target, disks, sandbox, path, flags, allowed):
    main, fd = helper('--single-process', '--sandbox=' + sandbox), disks.open()
    nexus = target.nexus(0)
    nexus.sense = os.fsencode(path)
    nexus.make_call(number('openat'), -100, sim.IN_SENSE, flags)
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
    assert nexus.call_errno == (0 if allowed or sandbox == 'off'
                                else errno.EACCES)


@pytest.mark.skipif(landlock_version() < 1, reason='no Landlock here')
def test_a_kernel_that_has_landlock_is_not_said_to_have_none(start, target):
    """It may fail for another reason: too few descriptors."""
    logs = []
    for limit in range(4, 24):
        helper = start(SIM_HELPER, '-v', '--single-process', env=target.env,
                       wait=False, preexec_fn=lambda: resource.setrlimit(
                           resource.RLIMIT_NOFILE, (limit, limit)))
        wait_until(lambda: helper.process.poll() is not None
                   or status(helper.pid, 'Seccomp') == '2')
        helper.stop()
        logs += [line for line in helper.log().splitlines()
                 if 'Landlock' in line]
    assert logs and not any('no Landlock' in line for line in logs)
    assert all('Too many open files' in line            # musl's is the other
               or 'No file descriptors available' in line for line in logs)


@pytest.mark.skipif(landlock_version() < 6, reason='no Landlock of Linux 6.12')
@pytest.mark.parametrize('sandbox', ['on', 'off'])
def test_main_signals_no_other_process(helper, target, disks, sandbox):
    main, fd = helper('--single-process', '--sandbox=' + sandbox), disks.open()
    nexus = target.nexus(0)
    nexus.make_call(number('kill'), os.getpid(), 0, 0)
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
    assert nexus.call_errno == (errno.EPERM if sandbox == 'on' else 0)


# A forbidden call by another of its numbers: openat in the x32 ABI, socket in
# i386's socketcall.
SECOND = {62: 0x40000000 | 257, 3: 102}


@pytest.mark.skipif(MACHINE not in SECOND, reason='has one number for each')
def test_call_by_another_number_kills_the_session(helper, target, disks):
    main, fd = helper(), disks.open()
    target.nexus(0).make_call(SECOND[MACHINE], 1, 0, 0)
    with main.client() as client, pytest.raises(Closed):
        client.read_in(fd, READ_KEYS)
    assert main.wait_log('of signal 31')


def test_without_sandbox_the_call_is_made(helper, target, disks):
    main, fd = helper('--sandbox=off'), disks.open()
    nexus = target.nexus(0)
    nexus.make_call(number('openat'), -100, 0, 0)
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == GOOD
    assert nexus.call_errno == errno.EFAULT
    assert status(main.pid, 'Seccomp') == '0'


def test_sandbox_takes_on_and_off_only():
    run = subprocess.run([SIM_HELPER, '--sandbox=maybe'], timeout=20,
                         capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr == (
        "qemu-pr-helper: --sandbox: 'maybe' is neither on nor off\n")


# In a container. ------------------------------------------------------------

def test_a_containers_usual_filter_takes_nothing_from_it(start, target, disks):
    """Which is Kubernetes' RuntimeDefault: all that the helper asks of the
    kernel, Landlock included, is on that list."""
    with open(SIM_HELPER, 'rb') as f:
        machine = struct.unpack('<H', f.read(20)[18:])[0]
    if not NUMBER or machine != 62:
        pytest.skip('the list is for x86-64, and by its kernel headers')
    logs = []
    for seccomp in None, default_seccomp:
        helper = start(SIM_HELPER, '-v', env=target.env, preexec_fn=seccomp)
        with helper.client() as client:
            assert client.read_in(disks.open(0), READ_KEYS).status == GOOD
        helper.wait_sessions(0)
        assert helper.stop() == 0
        logs.append([line.partition('Z ')[2] for line    # after the time
                     in helper.log().splitlines() if 'client pid' not in line])
    assert logs[0] == logs[1]
