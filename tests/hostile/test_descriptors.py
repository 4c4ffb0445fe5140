"""Cases 201 to 299: descriptors of every kind of file that is no SCSI disk.

Each is sent with PERSISTENT RESERVE IN and OUT: it must be refused, closed
by the time of the reply, and delay nobody, whatever the kernel does when the
helper looks at it or closes it.

Nothing here may change a device of this machine: what is opened is opened,
sent and closed. What this kernel or user cannot have is skipped.
"""
import contextlib
import ctypes
import fcntl
import os
import platform
import pty
import select
import socket
import struct
import subprocess
import sys
import tty

import pytest

from launch import lingering, lock_owner, needs_root
from prclient import REGISTER, Client, pr_out
from victim import (PATIENCE, READ, begin, checked,  # noqa: F401
                    libc, option, refused, shared, victim)

OUT = pr_out(REGISTER)
X86 = platform.machine() == 'x86_64'
USERFAULTFD, BPF, PERF = (323, 321, 298) if X86 else (282, 280, 241)
IO_URING, FSOPEN, OPEN_TREE, LANDLOCK, MEMFD_SECRET = 425, 430, 428, 444, 447


def syscall(number, *arguments):
    return checked(libc.syscall(number, *[
        ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]))


def opened(path, flags=os.O_RDONLY):
    return lambda *_: os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY
                              | os.O_CLOEXEC)


def regular(victim, directory):
    return os.open(directory / 'file', os.O_RDWR | os.O_CREAT)


def unlinked(victim, directory):
    return os.open(directory, os.O_RDWR | os.O_TMPFILE)


def sealed(victim, directory):
    fd = os.memfd_create('memory', os.MFD_ALLOW_SEALING)
    checked(libc.fcntl(fd, 1033, 15))           # F_ADD_SEALS, all
    return fd


def link(victim, directory):
    os.symlink('nowhere', directory / 'link')
    return os.open(directory / 'link', os.O_PATH | os.O_NOFOLLOW)


def fifo(victim, directory):
    os.mkfifo(directory / 'fifo')
    return os.open(directory / 'fifo', os.O_RDWR)


def pipe(which):
    def make(victim, directory):
        ends = os.pipe()
        os.close(ends[1 - which])
        return ends[which]
    return make


def listening(victim, directory):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / 'socket'))
    sock.listen()
    return sock.detach()


def helpers_socket(victim, directory):
    return os.open(victim.path, os.O_PATH)


def another_connection(victim, directory):
    return Client(victim.path).sock.detach()


def sockets_in_a_circle(victim, directory):
    """Each is in the other's queue; nobody else has them once we let go."""
    a, b = socket.socketpair()
    for to, what in ((a, a), (b, b), (a, b), (b, a)):
        socket.send_fds(to, [b'.'], [what.fileno()])
    b.close()
    return a.detach()


def chain_of_sockets(victim, directory):
    """A socket that holds a socket that holds a socket ..."""
    inner = os.open('/dev/null', os.O_RDWR)
    for _ in range(200):
        a, b = socket.socketpair()
        socket.send_fds(a, [b'.'], [inner])
        os.close(inner)
        a.close()
        inner = b.detach()
    return inner


def full_socket(victim, directory):
    a, b = socket.socketpair()
    a.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            a.send(bytes(4096))
    b.close()
    return a.detach()


def epoll(victim, directory):
    """Nested, and watching a socket of the helper's."""
    inner, outer = select.epoll(), select.epoll()
    with victim.client() as client:
        inner.register(client.sock)
        outer.register(inner)
        return os.dup(outer.fileno())


def signalfd(victim, directory):
    return checked(libc.signalfd(-1, ctypes.create_string_buffer(128), 0))


def pidfd(of_helper):
    return lambda victim, _: os.pidfd_open(victim.pid if of_helper
                                           else os.getpid())


def fanotify(victim, directory):
    """A permission group: what it watches waits for its answer."""
    fd = checked(libc.fanotify_init(4, os.O_RDONLY))    # FAN_CLASS_CONTENT
    (directory / 'watched').touch()
    checked(libc.fanotify_mark(fd, 1, ctypes.c_uint64(0x30000), -100,
                               str(directory / 'watched').encode()))
    return fd


def userfaultfd(victim, directory):
    return syscall(USERFAULTFD, os.O_CLOEXEC | 1)


def io_uring(victim, directory):
    return syscall(IO_URING, 8, ctypes.create_string_buffer(120))


def bpf(victim, directory):
    map_array = struct.pack('=5I', 2, 4, 8, 1, 0).ljust(128, b'\0')
    return syscall(BPF, 0, map_array, 72)


def perf(victim, directory):
    event = struct.pack('=II', 1, 112).ljust(112, b'\0')
    return syscall(PERF, event, 0, -1, -1, 0)


def message_queue(victim, directory):
    rt = ctypes.CDLL('librt.so.1', use_errno=True)
    name = b'/hostile%d' % os.getpid()
    fd = checked(rt.mq_open(name, os.O_RDWR | os.O_CREAT, 0o600, None))
    rt.mq_unlink(name)
    return fd


def pty_end(which):
    def make(victim, directory):
        """Stopped by ^S, and with nobody at the other end."""
        ends = pty.openpty()
        tty.setraw(ends[1])
        checked(libc.tcflow(ends[1], 0))
        os.close(ends[1 - which])
        return ends[which]
    return make


def of_helper(name, flags=os.O_RDONLY):
    return lambda victim, _: os.open('/proc/%d/%s' % (victim.pid, name), flags)


KINDS = [
    (201, 'regular', regular),
    (202, 'unlinked', unlinked),
    (203, 'sealed', sealed),
    (204, 'directory', opened('/', os.O_DIRECTORY)),
    (205, 'path', opened('/', os.O_PATH)),
    (206, 'path-of-device', opened('/dev/null', os.O_PATH)),
    (207, 'link', link),
    (208, 'fifo', fifo),
    (209, 'pipe-reader', pipe(0)),
    (210, 'pipe-writer', pipe(1)),
    (211, 'listening', listening),
    (212, 'helpers-socket', helpers_socket),
    (213, 'another-connection', another_connection),
    (214, 'sockets-in-a-circle', sockets_in_a_circle),
    (215, 'chain-of-sockets', chain_of_sockets),
    (216, 'full-socket', full_socket),
    (217, 'epoll', epoll),
    (218, 'eventfd', lambda *_: os.eventfd(0)),
    (219, 'signalfd', signalfd),
    (220, 'timerfd', lambda *_: checked(libc.timerfd_create(1, 0))),
    (221, 'inotify', lambda *_: checked(libc.inotify_init1(0))),
    (222, 'fanotify', fanotify),
    (223, 'pidfd', pidfd(False)),
    (224, 'pidfd-of-helper', pidfd(True)),
    (225, 'userfaultfd', userfaultfd),
    (226, 'io-uring', io_uring),
    (227, 'bpf', bpf),
    (228, 'perf', perf),
    (229, 'message-queue', message_queue),
    (230, 'memfd-secret', lambda *_: syscall(MEMFD_SECRET, 0)),
    (231, 'landlock', lambda *_: syscall(LANDLOCK, struct.pack('=Q', 1), 8, 0)),
    (232, 'fsopen', lambda *_: syscall(FSOPEN, b'tmpfs', 0)),
    (233, 'open-tree', lambda *_: syscall(OPEN_TREE, -100, b'/', 1)),
    (234, 'pty-master', pty_end(0)),
    (235, 'pty-slave', pty_end(1)),
    (236, 'ptmx', opened('/dev/ptmx', 2)),
    (237, 'tty', opened('/dev/tty', 2)),
    (238, 'null', opened('/dev/null', 2)),
    (239, 'zero', opened('/dev/zero', 2)),
    (240, 'full', opened('/dev/full', 2)),
    (241, 'random', opened('/dev/random', 2)),
    (242, 'fuse', opened('/dev/fuse', 2)),
    (243, 'kvm', opened('/dev/kvm', 2)),
    (244, 'loop-control', opened('/dev/loop-control', 2)),
    (245, 'loop', opened('/dev/loop0')),
    (246, 'kmsg', opened('/dev/kmsg')),
    (247, 'own-memory', opened('/proc/self/mem', 2)),
    (248, 'helpers-memory', of_helper('mem', 2)),
    (249, 'helpers-environment', of_helper('environ')),
    (250, 'helpers-proc', of_helper('')),
    (251, 'helpers-mounts', of_helper('ns/mnt')),
    (252, 'net-namespace', opened('/proc/self/ns/net')),
    (253, 'user-namespace', opened('/proc/self/ns/user')),
    (254, 'pagemap', opened('/proc/self/pagemap')),
    (255, 'sysfs', opened('/sys/power/state')),
    (256, 'path-of-shm', opened('/dev/shm', os.O_PATH)),
]


def assert_refused(victim, fd):
    """With both commands; takes over the descriptor."""
    with victim.client(timeout=PATIENCE) as client:
        assert refused(client.request(READ, fd))
        client.send(OUT, [fd])
        os.close(fd)
        client.send(bytes(24))
        assert refused(client.reply())


@pytest.mark.parametrize('make', [
    pytest.param(make, id='%d-%s' % (number, name))
    for number, name, make in KINDS])
def test_2xx_kinds_of_files(victim, tmp_path, make):
    """It is refused, and its last reference goes with the request."""
    try:
        fd = make(victim, tmp_path)
        a, b = socket.socketpair()
        with a, b:
            socket.send_fds(a, [b'.'], [fd])    # some cannot be
    except OSError as error:
        pytest.skip('cannot be had here: %s' % error)
    assert_refused(victim, fd)


def test_260_sockets_of_every_family(victim):
    """All that this kernel and user can make are refused."""
    made = 0
    for family in range(46):
        for kind in range(1, 11):
            with contextlib.suppress(OSError):
                fd = socket.socket(family, kind, 0).detach()
                made += 1
                assert_refused(victim, fd)
    assert made > 5


def test_261_the_clients_own_socket(victim):
    """Sent over itself, it keeps neither the client nor the helper alive."""
    for _ in range(50):
        with victim.client(timeout=PATIENCE) as client:
            reply = client.request(READ, client.sock.fileno())
            assert refused(reply)
            client.send(READ, [client.sock.fileno()])
    with victim.client(hello=False) as client:
        client.send(bytes(3), [client.sock.fileno()] * 200)


def test_262_each_others_sockets(victim):
    """Two clients that are in each other's queues unwind when they leave."""
    with victim.client() as a, victim.client() as b:
        for _ in range(20):
            a.send(READ, [b.sock.fileno()])
            b.send(READ, [a.sock.fileno()])


def test_263_socket_whose_close_lingers(victim):
    """A TCP socket that blocks close() for a minute delays nobody."""
    sender, receiver = lingering()
    client = victim.client(timeout=PATIENCE)
    # So that the helper's is the last reference, it must wait for the CDB.
    client.send(READ[:8], [sender.fileno()])
    sender.close()
    client.send(READ[8:])
    try:
        victim.serves()
        client.close()
        victim.serves()
    finally:
        receiver.close()
        client.close()


@contextlib.contextmanager
def hanging_file(opcode):
    """A descriptor of a file that hangs whoever makes that FUSE request."""
    ours, theirs = socket.socketpair()
    script = os.path.join(os.path.dirname(__file__), 'hang_fs.py')
    process = subprocess.Popen([sys.executable, script, str(opcode)],
                               stdin=theirs)
    theirs.close()
    fd = -1
    try:
        ours.settimeout(PATIENCE)
        fd, = socket.recv_fds(ours, 1, 1)[1]
        assert ours.recv(1) == b'.'     # from now on it hangs
        yield fd
    finally:
        process.kill()
        process.wait()
        ours.close()
        with contextlib.suppress(OSError):      # ENOTCONN: it is dead
            os.close(fd)


@needs_root
@pytest.mark.parametrize('number, opcode', [
    pytest.param(264, 3, id='264-getattr'),
    pytest.param(265, 25, id='265-close'),
    pytest.param(266, 39, id='266-ioctl')])
def test_26x_file_that_hangs_whoever_asks_it(victim, number, opcode):
    """fstat, close or ioctl on a FUSE file that never answers."""
    with hanging_file(opcode) as fd:
        with victim.client(timeout=PATIENCE) as client:
            client.send(READ, [fd])
            client.send(OUT, [fd])
            client.send(bytes(24))
            victim.serves()
            client.close()
            victim.serves()


@needs_root
@pytest.mark.parametrize('number, opcode', [
    pytest.param(267, 3, id='267-getattr'),
    pytest.param(268, 25, id='268-close')])
def test_26x_stop_while_a_file_hangs(begin, number, opcode):
    """SIGTERM ends the helper although one client's descriptor hangs."""
    victim = begin(*option('--stop-timeout', 1))
    with hanging_file(opcode) as fd, victim.client() as client:
        client.send(READ, [fd])
        victim.serves()
        assert victim.stop(seconds=40) == 0
        assert not os.path.exists(victim.path)


def test_269_the_pid_file_itself(begin, tmp_path):
    """Closing a descriptor of the PID file does not give up its lock."""
    path = str(tmp_path / 'pid')
    victim = begin('-f', path)
    assert lock_owner(path) == victim.pid
    assert_refused(victim, os.open(path, os.O_RDWR))
    assert lock_owner(path) == victim.pid
    victim.unharmed()


def test_270_descriptor_that_changes_under_the_helper(victim):
    """Flags that the client changes meanwhile change nothing but its own."""
    reader, writer = os.pipe()
    with victim.client(timeout=PATIENCE) as client:
        for _ in range(200):
            client.send(READ, [writer])
            os.set_blocking(writer, not os.get_blocking(writer))
            assert refused(client.reply())
    os.close(writer)
    assert os.read(reader, 1) == b''        # ours was the last: theirs closed
    os.close(reader)


def test_271_descriptors_owned_by_signals(victim):
    """A descriptor that sends SIGIO at each change disturbs nobody."""
    a, b = socket.socketpair()
    fcntl.fcntl(a, fcntl.F_SETOWN, victim.pid)
    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    with victim.client(timeout=PATIENCE) as client:
        for _ in range(200):
            client.send(READ, [a.fileno()])
            assert refused(client.reply())
        victim.serves()
    a.close()
    b.close()
