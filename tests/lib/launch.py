"""Starting the helper in every odd way, for test_options and test_startup.

A Place is a directory that any user may enter, with the helper's program in
it, and all processes that were started there. Nothing here may start a
helper without a socket path of the test's own (it would use the machine's
default one), wait without a limit, or leave a process behind: orphans are
adopted by the test's process while a Place exists, and killed at its end.
"""
import contextlib
import ctypes
import fcntl
import os
import pwd
import resource
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections import namedtuple

import pytest

from helper import program
from prclient import Client

SYS_RAWIO, SETGID, SETUID, SETPCAP = 17, 6, 7, 8
PR_SET_CHILD_SUBREAPER, PR_CAPBSET_DROP = 36, 24
NOBODY = pwd.getpwnam('nobody')

Result = namedtuple('Result', 'status out err')
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def status_of(pid):
    """/proc/PID/status as a dictionary; sets as numbers."""
    with open('/proc/%s/status' % pid) as f:
        fields = dict(line.rstrip('\n').split(':', 1) for line in f)
    return {name: int(value, 16) if name.startswith('Cap')
            else value.split() for name, value in fields.items()}


def is_root():
    have = status_of(os.getpid())['CapEff']
    want = (SYS_RAWIO, SETGID, SETUID, SETPCAP)
    return os.geteuid() == 0 and all(have >> cap & 1 for cap in want)


needs_root = pytest.mark.skipif(
    not is_root(), reason='needs root with CAP_SYS_RAWIO and CAP_SET*')


def children(pid):
    found = []
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/stat' % name) as f:
                fields = f.read().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(name))
    return found


def descriptors(pid):
    """What each descriptor of a process is, which may close them meanwhile."""
    found = {}
    for number in os.listdir('/proc/%d/fd' % pid):
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = os.readlink('/proc/%d/fd/%s' % (pid, number))
    return found


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.005)


def become(uid=None, groups=None, without=(), only=None):
    """A preexec_fn: capabilities that exec shall not give, then the ids."""
    def change():
        for cap in range(64):
            if cap in without or (only is not None and cap not in only):
                prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)
        if groups is not None or uid is not None:
            os.setgroups(groups or [])
        if uid is not None:
            os.setgid(NOBODY.pw_gid)
            os.setuid(uid)
    return change


def as_user():
    """What makes the helper an ordinary user's, if the test is root's."""
    return become(uid=NOBODY.pw_uid) if os.geteuid() == 0 else None


def lock_owner(path):
    """The pid that holds a write lock on path; 0 if nobody does."""
    layout = 'hhqqi0q'
    with open(path) as f:
        lock = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(layout, fcntl.fcntl(f, fcntl.F_GETLK, lock))
    return 0 if answer[0] == fcntl.F_UNLCK else answer[4]


def accepts(path):
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
        return True
    except OSError:
        return False
    finally:
        probe.close()


class Place:
    def __init__(self):
        self.holder = tempfile.TemporaryDirectory(prefix='prh')
        self.dir = self.holder.name
        os.chmod(self.dir, 0o755)
        self.binary = shutil.copy(program('HELPER', 'qemu-pr-helper'),
                                  self.dir + '/qemu-pr-helper')
        self.open_dir = self.dir + '/any'       # where any user may write
        os.mkdir(self.open_dir)
        os.chmod(self.open_dir, 0o777)
        self.socket = self.open_dir + '/s'
        self.pid_file = self.open_dir + '/p'
        self.log_path = self.dir + '/log'
        self.before = children(os.getpid())
        self.processes = []

    def close(self):
        """Tells all to stop first: of a process that is killed while it forks,
        as for who has only looked if it accepts, Linux 6.12 of User-mode Linux
        dies."""
        for pid in self.orphans():
            os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            wait_until(self.have_ended, 2)
        for process in self.processes:
            process.kill()
            process.wait()
        wait_until(self.no_orphans)
        self.holder.cleanup()

    def orphans(self):
        return [p for p in children(os.getpid()) if p not in self.before]

    def have_ended(self):
        for process in self.processes:
            process.poll()
        for pid in self.orphans():
            os.waitpid(pid, os.WNOHANG)
        return not self.orphans()

    def no_orphans(self):
        for pid in self.orphans():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return not self.orphans()

    def command(self, options, path):
        path = self.socket if path is None else path
        return [self.binary] + (['-k', path] if path else []) + list(options)

    def run(self, *options, path=None, seconds=20, **popen):
        """Run the helper to its end; with path='' without -k."""
        with tempfile.TemporaryFile() as out, \
                tempfile.TemporaryFile() as err:
            popen = {'stdin': subprocess.DEVNULL, 'stdout': out,
                     'stderr': err, **popen}
            process = subprocess.Popen(self.command(options, path), **popen)
            self.processes.append(process)
            status = process.wait(seconds)
            out.seek(0)
            err.seek(0)
            return Result(status, out.read().decode(), err.read().decode())

    def begin(self, *options, path=None, wait=True, **popen):
        """Start the helper and wait until it accepts."""
        with open(self.log_path, 'ab') as log:
            popen = {'stdin': subprocess.DEVNULL,
                     'stdout': subprocess.DEVNULL, 'stderr': log, **popen}
            process = subprocess.Popen(self.command(options, path), **popen)
        self.processes.append(process)
        if wait:
            wait_until(lambda: accepts(path or self.socket)
                       or process.poll() is not None)
            assert process.poll() is None, self.log()
        return process

    def log(self):
        with open(self.log_path, errors='replace') as f:
            return f.read()

    def client(self, path=None):
        return Client(path or self.socket)

    def serves(self, path=None):
        """True if a client gets its hello."""
        with self.client(path) as client:
            return client.features is not None

    def session(self, process):
        """The pid of the one session, while its client is connected."""
        wait_until(lambda: len(children(process.pid)) == 1)
        return children(process.pid)[0]


def stop(process, number=signal.SIGTERM, seconds=20):
    process.send_signal(number)
    return process.wait(seconds)


@pytest.fixture
def place():
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    here = Place()
    yield here
    here.close()
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# Root's processes have no limit; nobody else has this user's number.
A_USER = ('-u', str(100000 + os.getpid())) if os.geteuid() == 0 else ()


def limit_processes(helper, limit):
    """RLIMIT_NPROC of main, which may be another user's."""
    ours = os.getresuid()
    os.setresuid(int(status_of(helper.pid)['Uid'][0]), -1, -1)
    try:
        hard = resource.prlimit(helper.pid, resource.RLIMIT_NPROC)[1]
        resource.prlimit(helper.pid, resource.RLIMIT_NPROC,
                         (hard if limit is None else limit, hard))
    finally:
        os.setresuid(*ours)


def no_more_processes(helper):
    """The helper can fork() no more, as long as no process of its ends."""
    uid, count = status_of(helper.pid)['Uid'][0], 0
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            status = status_of(name)
        except OSError:
            continue
        if status['Uid'][0] == uid:
            count += int(status['Threads'][0])
    limit_processes(helper, count)


def lingering():
    """A TCP socket whose last close() blocks for a minute, and its peer."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)
        sender = socket.create_connection(listener.getsockname())
        receiver = listener.accept()[0]
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                      struct.pack('ii', 1, 60))
    return sender, receiver
