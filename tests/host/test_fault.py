"""Every system call of the helper is made to fail, wherever it is made.

The helper under test is linked with tests/lib/fault.c. Each scenario starts it,
talks to it as several clients would, and stops it. It runs once undisturbed,
to learn which calls are made where, and then once for each call and errno
with that call failing. EXPECTED says what must come of it; the names there
are the libc function, the helper's function that calls it and, if that has
several such calls, which of them in the order of the program.

This must never pass over a call: one that is not in EXPECTED, a failure that
was not met, and a call in the program that no scenario makes are failures of
the test. No time is compared with anything but a limit of many seconds, and,
where the helper is to wait before it tries again, with half of what it waits.
"""
import bisect
import collections
import contextlib
import ctypes
import errno as e
import glob
import grp
import mmap
import os
import pathlib
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time

import pytest

import fake_multipathd as multipathd
import sim
from helper import BUILD, program
from launch import (NOBODY, PR_SET_CHILD_SUBREAPER, children, descriptors,
                    is_root, prctl, wait_until)
from prclient import (CHECK_CONDITION, CLEAR, GOOD, READ_KEYS,
                      REGISTER_AND_IGNORE, RELEASE, RESERVE, Client, Closed,
                      parameters, pr_in, pr_out, sense_code)

FAULT_HELPER = program('FAULT_HELPER', os.path.join(BUILD,
                                                    'fault/qemu-pr-helper'))
OBJECTS = os.path.dirname(FAULT_HELPER)
OURS = glob.glob(OBJECTS + '/*.o') + glob.glob(OBJECTS + '/multipath/*.o')
KEY = 0xa11ce

# What may come of a call that fails.
SAME = 'same'       # no client notices
START = 'start'     # no start: a message, exit status 1
CLOSED = 'closed'   # one connection is closed, all else is as usual
PERHAPS = 'same, or closed'     # at the wrong time: too late for a client
AGAIN = 'again'     # no client notices; the helper says that it tries again
LEFT = 'left'       # the socket's name stays behind at exit
LOST = 'B/08/00'    # and tried again, the command works
FAILS = 'same, or B/08/00'      # as it is one path of two, or the last
REFUSED = 'same, or 5/20/00'    # of a map that has no UUID, or no alias
# or the sense data, or the status, of one reply

PATHS = (1, 2)      # of the multipath map
SHORT = -1          # instead of an errno: it moves only one byte
CRASH = 4095        # likewise: the process dies of it

# What a call's errnos come to, as many as the code tells apart and another.
EXPECTED = {
    # Whoever calls it.
    'close': {SAME: (e.EINTR, e.EIO)},
    # log.c
    'fstat log_open': {SAME: (e.EIO,)},
    'open log_open': {SAME: (e.ENXIO, e.EACCES, e.EMFILE)},
    'dup2 log_open': {SAME: (e.EINTR, e.EMFILE)},
    'clock_gettime head_write': {SAME: (e.EINVAL,)},
    'ppoll line_write': {SAME: (e.ENOMEM, e.EINTR)},
    'write line_write': {SAME: (e.EAGAIN, e.EPIPE, e.ENOSPC, SHORT)},
    'send line_write': {SAME: (e.EAGAIN, e.EPIPE, e.ENOBUFS, SHORT)},
    'socket log_syslog_open': {SAME: (e.EMFILE, e.EAFNOSUPPORT)},
    'connect syslog_connect': {SAME: (e.ENOENT, e.EACCES, e.ECONNREFUSED)},
    # options.c
    'open id_find': {START: (e.ENOENT, e.EACCES)},
    'read line_read': {START: (e.EIO, e.EISDIR)},
    'open trace_open': {START: (e.ENOENT, e.EROFS, e.ENXIO)},
    # report.c
    'fstat device_name': {SAME: (e.EIO,)},
    # daemon.c
    'fcntl daemon_open_standard_fds': {SAME: (e.EBADF,)},
    'open daemon_open_standard_fds': {START: (e.EMFILE, e.ENOENT)},
    'pipe2 daemon_background': {START: (e.EMFILE, e.ENFILE)},
    'syscall process_fork (start)': {START: (e.EAGAIN, e.ENOMEM)},
    'signal daemon_background': {SAME: (e.EINVAL,)},
    'setsid daemon_background': {SAME: (e.EPERM,)},
    'read daemon_background': {SAME: (e.EINTR,)},
    'waitpid daemon_background': {START: (e.EINTR, e.ECHILD)},
    'open daemon_background_ready': {SAME: (e.ENOENT, e.EACCES)},
    'dup daemon_background_ready': {START: (e.EMFILE, e.EBADF)},
    'chdir daemon_background_ready': {START: (e.EACCES,)},
    'dup2 daemon_background_ready': {SAME: (e.EINTR, e.EIO)},
    # Its stderr is not the caller's any more.
    'write daemon_background_ready': {"exit status 1, ''": (e.EIO,)},
    'open daemon_pid_file': {START: (e.EACCES, e.EROFS, e.ENOSPC)},
    'fcntl daemon_pid_file': {START: (e.EAGAIN, e.EACCES, e.ENOLCK)},
    'fstat daemon_pid_file': {START: (e.EIO,)},
    'stat daemon_pid_file': {SAME: (e.ENOENT,), START: (e.EIO,)},
    'ftruncate daemon_pid_file': {START: (e.EIO, e.EROFS)},
    'pwrite daemon_pid_file': {START: (e.ENOSPC, e.EIO, SHORT)},
    # listen.c
    'getsockopt passed_option': {START: (e.ENOTSOCK, e.EBADF)},
    'fcntl listen_activated': {START: (e.EBADF,)},
    'listen listen_activated': {SAME: (e.EACCES, e.EINVAL)},
    'setsockopt listen_activated': {SAME: (e.ENOPROTOOPT, e.EINVAL)},
    'socket listen_open': {START: (e.EMFILE, e.EAFNOSUPPORT)},
    'stat listen_open': {SAME: (e.EACCES, e.ENOENT)},
    'open place_clear': {SAME: (e.ENOENT,), START: (e.EIO, e.EMFILE)},
    'fstat place_clear': {SAME: (e.EIO,)},      # it is looked at again
    'stat place_clear': {SAME: (e.ENOENT,)},    # there is no /proc
    'unlink place_clear': {START: (e.EACCES, e.EROFS)},
    'rename place_clear': {START: (e.EACCES, e.EROFS)},
    'bind listen_open': {SAME: (e.EADDRINUSE,), START: (e.EACCES, e.ENOSPC)},
    'lstat listen_open': {LEFT: (e.ENOENT, e.EIO)},
    'listen listen_open': {START: (e.EADDRINUSE, e.EOPNOTSUPP)},
    'lstat is_file': {LEFT: (e.ENOENT, e.EACCES)},
    'unlink listen_remove': {LEFT: (e.ENOENT, e.EACCES, e.EROFS)},
    'send notify_send': {SAME: (e.ECONNREFUSED, e.ENOBUFS, e.EAGAIN)},
    # prhelper.c
    'signal main': {SAME: (e.EINVAL,)},
    'sigprocmask signals_set_up': {START: (e.EINVAL,)},
    'sigaction signals_set_up': {START: (e.EINVAL,)},
    'mmap table': {START: (e.ENOMEM, e.EPERM)},
    'getrlimit descriptors_limit': {SAME: (e.EFAULT,)},
    'setrlimit descriptors_limit': {SAME: (e.EPERM, e.EINVAL)},
    'fcntl descriptor_high': {START: (e.EMFILE, e.EINVAL)},
    'madvise supervisor_set_up': {SAME: (e.EINVAL, e.ENOMEM)},
    'socketpair supervisor_set_up': {START: (e.EMFILE, e.ENFILE)},
    'pipe2 supervisor_set_up': {START: (e.EMFILE, e.ENFILE)},
    'ppoll events_wait': {SAME: (e.EINTR, e.ENOMEM, e.EINVAL)},
    'nanosleep events_wait': {SAME: (e.EINTR,)},
    'clock_gettime clock_us': {PERHAPS: (e.EPERM,)},
    # privdrop.c
    'syscall privdrop': {START: (e.EPERM, e.ENOSYS)},
    'stat privdrop': {SAME: (e.ENOENT, e.EACCES)},
    'prctl bounding_set_empty': {SAME: (e.EINVAL, e.EPERM)},
    'getgroups privdrop': {SAME: (e.EINVAL,)},
    'setgroups privdrop': {SAME: (e.EPERM, e.ENOSYS)},
    'setresgid privdrop': {START: (e.EPERM, e.EAGAIN)},
    'setresuid privdrop': {START: (e.EPERM, e.EAGAIN)},
    'setrlimit privdrop': {START: (e.EPERM, e.EINVAL)},
    'prctl privdrop': {START: (e.EPERM, e.EINVAL)},
    # multipath/worker.c
    'socketpair multipath_ask': {LOST: (e.EMFILE, e.ENFILE)},
    'sendmsg work_put': {LOST: (e.EAGAIN, e.ETOOMANYREFS, e.EPIPE)},
    'recvmsg worker_answer': {LOST: (e.EINTR, e.ENOMEM)},
    'recvmsg work_take': {SAME: (e.EINTR, e.EAGAIN, e.ENOMEM)},
    'setrlimit descriptors_seal': {CLOSED: (e.EPERM, e.EINVAL)},
    'fcntl map_lock': {SAME: (e.EAGAIN, e.EACCES), LOST: (e.ENOLCK,)},
    'send work_do': {LOST: (e.EPIPE, e.ENOBUFS)},
    'write worker_run': {SAME: (e.EINTR, e.EPIPE)},
    'madvise worker_start 1': {AGAIN: (e.ENOMEM,)},
    'madvise worker_start 2': {SAME: (e.ENOMEM,)},
    'kill workers_check': {SAME: (e.ESRCH, e.EPERM)},
    # sysfs.c, multipath/map.c
    'open sysfs_list': {LOST: (e.ENOENT, e.EMFILE)},
    'syscall sysfs_list': {LOST: (e.ENOENT, e.EIO)},
    'open path_open': {SAME: (e.ENXIO, e.EMFILE)},     # and tried again
    'fstat path_open': {SAME: (e.EIO,)},
    'nanosleep map_wait': {SAME: (e.EINTR,)},
    # multipath/multipathd.c
    'ppoll receive': {FAILS: (e.ENOMEM,)},
    'send exchange': {FAILS: (e.EPIPE, SHORT)},
    'recv receive': {SAME: (SHORT,), FAILS: (e.ECONNRESET,)},
    # sandbox.c: what the kernel does not have is done without
    'syscall sandbox_main': {SAME: (e.ENOSYS, e.EOPNOTSUPP, e.EPERM)},
    'syscall landlock_restrict': {SAME: (e.EMFILE, e.EPERM, e.E2BIG)},
    'open landlock_restrict': {SAME: (e.EACCES, e.ENOENT, e.EMFILE)},
    'syscall sandbox_enter': {SAME: (e.ENOSYS, e.EACCES, e.EINVAL)},
    'syscall sandbox_enter (session)': {SAME: (e.EINVAL,),
                                         CLOSED: (e.ENOMEM, e.EACCES)},
    # supervisor.c
    'syscall process_fork': {AGAIN: (e.EAGAIN, e.ENOMEM)},
    'prctl session_begin': {SAME: (e.EINVAL,)},
    'getppid session_begin': {AGAIN: (e.ENOSYS,)},
    'accept4': {AGAIN: (e.EAGAIN, e.EMFILE, e.ENFILE, e.ENOMEM,
                        e.ECONNABORTED, e.EPERM)},
    'write session_begin': {CLOSED: (e.EAGAIN, e.EPIPE)},
    'syscall descriptors_close_except': {SAME: (e.ENOSYS, e.EINVAL)},
    'read reports_read': {SAME: (e.EAGAIN, e.EINTR, SHORT)},
    'waitpid children_reap': {SAME: (e.EINTR, e.ECHILD)},
    'kill session_leave': {SAME: (e.ESRCH, e.EPERM)},
    'kill sessions_check': {SAME: (e.ESRCH, e.EPERM)},
    'kill sessions_kill': {SAME: (e.ESRCH, e.EPERM)},
    # sockets.c, for listen.c, client.c and multipathd.c
    'socket socket_connect': {SAME: (e.EMFILE,)},
    'connect socket_connect': {SAME: (e.ECONNREFUSED, e.ENOENT, e.EACCES,
                                      e.EAGAIN)},
    'nanosleep is_in_time': {SAME: (e.EINTR,)},
    'getsockopt socket_peer': {SAME: (e.EINVAL, e.ENOTCONN)},
    # client.c
    'prctl client_busy': {SAME: (e.EINVAL,)},
    'recvmsg client_receive': {SAME: (e.EAGAIN, e.EINTR, SHORT),
                               CLOSED: (e.ECONNRESET, e.ENOMEM)},
    'send client_send': {SAME: (e.EAGAIN, e.EINTR, SHORT),
                         CLOSED: (e.EPIPE, e.ECONNRESET, e.ENOBUFS)},
    # sg_io.c
    'fcntl is_open': {'5/20/00': (e.EBADF, e.EINVAL)},
    'fstat sg_io_vet': {'B/00/06': (e.EBADF, e.EIO), '4/44/00': (e.ENOMEM,)},
    'stat sysfs_has': {SAME: (e.EACCES, e.ENOENT)},
    'stat sysfs_is': {SAME: (e.EACCES, e.ENOENT)},
    'ioctl sg_io_execute': {
        'status 28': (e.EDOM,), 'status 18': (e.EBADE,),
        '4/44/00': (e.EREMOTEIO, e.ENOMEM, e.ENODEV), '3/11/00': (e.ENODATA,),
        '2/3A/00': (e.ENOMEDIUM,), '5/24/00': (e.EINVAL,),
        '7/27/07': (e.ENOSPC,),
        'B/00/06': (e.EIO, e.ENOTTY, e.EPERM, e.EACCES, e.EINTR)},
}

Site = collections.namedtuple('Site', 'name offset generation role')


class Program:
    """Where in the program under test which function is called."""

    def __init__(self, path):
        symbols = [line.split() for line in self.tool('nm', '-n', path)]
        text = [(int(s[0], 16), s[2]) for s in symbols
                if len(s) == 3 and s[1] in 'tT']
        self.starts, self.names = zip(*text)
        self.anchor = dict((n, a) for a, n in text)['fault_anchor']
        self.sanitized = any('__asan_init' in s for s in symbols)
        self.ours = {line.split()[2] for o in OURS
                     for line in self.tool('nm', '--defined-only', o)
                     if line.split()[1] in 'tTRD'}
        self.offsets = self.read_calls(path)

    @staticmethod
    def tool(*command):
        return subprocess.run(command, check=True, text=True,
                              stdout=subprocess.PIPE).stdout.splitlines()

    def read_calls(self, path):
        """The name of each call, by the address that it returns to."""
        found, call = collections.defaultdict(list), None
        for line in self.tool('objdump', '-d', '--no-show-raw-insn', path):
            instruction = re.match(r' *([0-9a-f]+):\t(.*)', line)
            if not instruction:
                continue
            address = int(instruction.group(1), 16)
            if call:
                caller = self.names[bisect.bisect(self.starts, address - 1)
                                    - 1]
                if caller in self.ours:
                    found[call, caller].append(address - self.anchor)
            call = re.search('<__wrap_([a-z0-9_]+?)(64)?>',
                             instruction.group(2))
            call = call and call.group(1)
        names = {}
        for (call, caller), offsets in found.items():
            for number, offset in enumerate(offsets, 1):
                names[offset] = call + ' ' + caller + (
                    ' %d' % number if len(offsets) > 1 else '')
        return names


class Table:
    """The table of fault.c: what is called where, and what shall fail."""
    ENTRY, SITES = struct.Struct('=qIIIiII'), 1024
    CALLS, RULE, HITS = 8, 12, 24       # offsets; RULE is first, count, error

    def __init__(self, path):
        self.path = str(path)
        with open(path, 'w+b') as f:
            f.truncate(self.ENTRY.size * self.SITES)
            self.pages = mmap.mmap(f.fileno(), 0)
        self.indexes = {}

    def reset(self):
        for i in range(self.SITES):
            base = i * self.ENTRY.size
            if self.pages[base:base + 8] == bytes(8):
                break
            struct.pack_into('=5I', self.pages, base + self.CALLS,
                             *[0] * 5)

    def entries(self):
        """(offset, generation) and calls of each entry."""
        for i in range(self.SITES):
            key, calls = self.ENTRY.unpack_from(self.pages,
                                                i * self.ENTRY.size)[:2]
            if key == 0:
                break
            self.indexes[key >> 8, (key & 255) - 1] = i
            yield (key >> 8, (key & 255) - 1), calls

    def calls(self, where):
        return dict(self.entries()).get(where, 0)

    def arm(self, where, error, first=1, count=1):
        if where not in self.indexes:
            list(self.entries())
        if where not in self.indexes:       # it has never been called so far
            i = len(self.indexes)
            self.indexes[where] = i
            struct.pack_into('=q', self.pages, i * self.ENTRY.size,
                             where[0] * 256 + where[1] + 1)
        struct.pack_into('=IIi', self.pages, self.indexes[where]
                         * self.ENTRY.size + self.RULE, first, count, error)

    def hits(self, where):
        return struct.unpack_from('=I', self.pages, self.indexes[where]
                                  * self.ENTRY.size + self.HITS)[0]


class Scenario:
    """A way to start and use the helper, with some calls failing anyway."""

    def __init__(self, name, *options, main=0, stderr='file', broken=None,
                 outcomes=None, only=None, env=None, **features):
        self.name, self.options, self.main = name, options, main
        self.stderr, self.env = stderr, env or {}
        self.broken = broken or {}      # call: (errno, first, count)
        self.outcomes = outcomes or {}  # what is not as in EXPECTED
        self.only = only                # a pattern: no other call fails here
        self.features = features

    def __getattr__(self, name):
        return self.features.get(name, False)


class Run:
    """One start of the helper, and what was odd in its life."""

    def __init__(self, tools, scenario, rules=()):
        self.scenario, self.odd = scenario, []
        self.program, self.table, self.target = tools.program, tools.table, \
            tools.target
        self.dir, self.tools, self.main = tools.dir, tools, None
        self.disk, self.other = tools.disk, tools.other
        self.map, self.root, self.mpd = tools.map, tools.root, tools.mpd
        self.path = self.dir + '/s'
        self.table.reset()
        for name, (error, first, count) in scenario.broken.items():
            where = tools.where(name, scenario)
            if scenario.mapped:
                where = where[0], 1     # a worker or session, not main
            self.table.arm(where, error, first, count)
        for rule in rules:
            self.table.arm(*rule)

    # ---- The life of a helper ---------------------------------------------
    def live(self):
        with contextlib.ExitStack() as stack:
            self.prepare(stack)
            try:
                self.start()
                if self.main:
                    if self.scenario.mapped:
                        self.talk_of_map()
                    else:
                        self.talk()
                    self.stop()
            except (AssertionError, OSError) as error:
                self.odd.append('in %s: %s' % (
                    error.__traceback__.tb_next.tb_frame.f_code.co_name,
                    error))
            finally:
                self.clean()
        return self

    def prepare(self, stack):
        for name in os.listdir(self.dir):
            os.unlink(os.path.join(self.dir, name))
        os.chmod(self.dir, 0o755 if self.scenario.ours else 0o777)
        self.target.reset()
        self.mpd.reset()
        self.mpd.maps = [multipathd.Map('dm-0', 'mpatha', {
            sim.disk_name(n): self.target.nexus(n) for n in PATHS})]
        for n in PATHS:
            self.target.nexus(n).initiator = 1
            self.root.state(n, 'running')
        self.notify = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.notify.bind(self.dir + '/notify')
        if self.scenario.stale:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(self.path)
        if self.scenario.in_the_way:
            open(self.path, 'w').close()
        self.listener = None
        if self.scenario.activated or self.scenario.alive:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(self.path)
            listener.listen()
            self.listener = listener if self.scenario.activated else None
        self.make_stderr(stack)

    def make_stderr(self, stack):
        if self.scenario.stderr == 'socket':
            read, write = socket.socketpair()
            self.log_read = stack.enter_context(read).fileno()
            self.log_write = stack.enter_context(write).fileno()
        elif self.scenario.stderr == 'pipe':
            self.log_read, self.log_write = os.pipe()
            stack.callback(os.close, self.log_read)
            stack.callback(os.close, self.log_write)
        else:
            with open(self.dir + '/log', 'w+b') as log:
                self.log_read = os.dup(log.fileno())
            self.log_write = os.open(self.dir + '/log',
                                     os.O_WRONLY | os.O_APPEND)
            stack.callback(os.close, self.log_read)
            stack.callback(os.close, self.log_write)
        os.set_blocking(self.log_read, False)
        self.text = ''

    def log(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.log_read, 65536)
                if not data:
                    break
                self.text += data.decode(errors='replace')
        # What an ordinary user is told at every start is no outcome.
        if is_root():
            return self.text
        return re.sub(r'.*( no CAP_SYS_RAWIO| cannot empty the capability '
                      r'bounding| cannot clear the suppl).*\n', '', self.text)

    def start(self):
        command = [FAULT_HELPER, *self.scenario.options]
        env = dict(self.target.env, FAULT_STATE=self.table.path)
        if self.scenario.notify:
            env['NOTIFY_SOCKET'] = self.dir + '/notify'
        if self.scenario.mapped:
            env.update(self.root.env, MULTIPATH_SOCKET_NAME=self.mpd.address)
        env.update(self.scenario.env)
        if self.listener:
            command = ['/bin/sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 '
                       'exec "$@"', 'sh'] + command
        else:
            command += ['-k', self.path]
        if self.scenario.pid_file:
            with open(self.dir + '/events', 'w') as f:
                f.write('*')
            command += ['-f', self.dir + '/pid', '-T',
                        'file=%s/first,events=%s/events,file=%s/trace'
                        % (self.dir, self.dir, self.dir)]
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.log_write,
            preexec_fn=self.listener and self.pass_listener
            or self.scenario.preexec or None, close_fds=not self.listener)
        ready = self.tools.where('ppoll events_wait', self.scenario)
        wait_until(lambda: process.poll() is not None
                   or not self.scenario.background and self.table.calls(ready))
        if process.poll() is None:
            self.main = process.pid
        elif process.returncode == 0 and self.scenario.background:
            with open(self.dir + '/pid') as f:
                self.main = int(f.read())
            wait_until(lambda: self.table.calls(ready))
        elif process.returncode == 1 and 'qemu-pr-helper: ' in self.log():
            self.odd.append(START)
        else:
            self.odd.append('exit status %d, %r' % (process.returncode,
                                                    self.log()))
        self.process = process

    def pass_listener(self):
        os.dup2(self.listener.fileno(), 3)

    def stop(self):
        """With one client connected, idle or with a command at its disk."""
        nexus = self.target.nexus(0)
        client = self.connected()
        if self.scenario.hanging:
            nexus.hold = 1
            client.send(pr_in(READ_KEYS), [self.disk])
            nexus.wait_in_flight(1)
        os.kill(self.main, signal.SIGTERM)
        status = []
        wait_until(lambda: status or self.exited(status))
        self.expect(0, lambda: os.waitstatus_to_exitcode(status[0]))
        nexus.hold = 0
        if self.scenario.hanging:
            with contextlib.suppress(Closed):
                client.reply()      # of a session that could not be killed
        wait_until(lambda: not self.live_children(os.getpid()))
        self.expect(True, client.closed)
        client.close()
        if not self.listener and os.path.exists(self.path):
            self.odd.append(LEFT)

    def exited(self, status):
        if self.process.pid == self.main:
            if self.process.poll() is not None:
                code = self.process.returncode
                status.append(code << 8 if code >= 0 else -code)
        else:
            pid, code = os.waitpid(self.main, os.WNOHANG)
            if pid:
                status.append(code)
        return status

    def clean(self):
        """Nobody may be left; nobody will be left."""
        self.target.nexus(0).hold = 0
        with contextlib.suppress(AssertionError):   # it may be dying
            wait_until(lambda: not self.live_children(os.getpid()), 2)
        with contextlib.suppress(ChildProcessError):
            while True:                 # a child's children become ours
                for pid in self.live_children(os.getpid()):
                    if 'process left' not in self.odd:
                        self.odd.append('process left')
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(-1, os.WNOHANG)
        crash = re.search('.*(?:of signal |Sanitizer|runtime error).*',
                          self.log())
        if crash:
            self.odd.append(crash.group())

    # ---- What clients see -------------------------------------------------
    def expect(self, wanted, action):
        """Whatever else comes of it is odd, and then tried again."""
        for _ in range(4):
            try:
                got = action()
            except (Closed, BrokenPipeError, ConnectionResetError):
                got = CLOSED
                self.settle()
            except (TimeoutError, socket.timeout):
                got = 'stuck'
            if got == wanted:
                return
            self.odd.append(got)
            if got == 'stuck':
                return

    def connected(self):
        clients = []
        self.expect(True, lambda: clients.append(
            Client(self.path, timeout=15)) is None)
        return clients[-1]

    def answer(self, action):
        """What a request on a connection came to; reconnects if need be."""
        if self.client is None:
            self.client = Client(self.path, timeout=15)
        try:
            reply = action(self.client)
        except (Closed, OSError):
            self.client.close()
            self.client = None
            raise
        assert not reply.payload or reply.status == GOOD
        if reply.status == CHECK_CONDITION:
            return sense_code(reply.sense)
        assert not any(reply.sense)
        if reply.status != GOOD:
            return 'status %02x' % reply.status
        return reply.payload

    def live_children(self, pid):
        with open('/proc/%d/task/%d/children' % (pid, pid)) as f:
            pids = [int(p) for p in f.read().split()]
        found = []
        for child in pids:
            with contextlib.suppress(OSError):
                with open('/proc/%d/stat' % child) as f:
                    if f.read().rpartition(')')[2].split()[0] not in 'ZX':
                        found.append(child)
        return found

    def settle(self):
        """Main has heard of the end of every session but our client's."""
        if not self.scenario.single:
            wait_until(lambda: len(self.live_children(self.main))
                       <= (self.client is not None))

    def fds(self):
        """How many the process has that serves the only client."""
        pids = self.live_children(self.main) or [self.main]
        return len(os.listdir('/proc/%d/fd' % pids[0]))

    def talk(self):
        keys = struct.pack('>IIQ', 1, 8, KEY)
        self.target.generation = 0
        main_fds = len(os.listdir('/proc/%d/fd' % self.main))
        self.client = None
        self.expect(struct.pack('>II', 0, 0), lambda: self.answer(
            lambda c: c.read_in(self.disk, READ_KEYS)))
        self.expect(b'', lambda: self.answer(self.register))
        self.target.generation = 1
        self.expect(keys, lambda: self.answer(
            lambda c: c.read_in(self.disk, READ_KEYS)))
        assert self.target.nexus(0).key == KEY
        self.expect('5/20/00', lambda: self.answer(
            lambda c: c.read_in(self.other, READ_KEYS)))
        self.expect(self.tools.fds.setdefault(self.scenario.name, self.fds()),
                    self.fds)
        self.expect('violation', self.violate)
        self.settle()
        self.expect('evicted', self.evict)
        self.client.close()
        self.client = None
        self.settle()
        if self.scenario.single:        # hears of it only by and by
            self.expect(True, lambda: self.answer_fresh(keys))
        wait_until(lambda: len(os.listdir('/proc/%d/fd' % self.main))
                   == main_fds)

    def talk_of_map(self):
        """A life of reservations, with a path that has gone in it."""
        def out(action, key, new_key=0, flags=0):
            cdb = pr_out(action, type_=1 if action != REGISTER_AND_IGNORE
                         else 0)
            self.expect(b'', lambda: self.answer(lambda c: c.request(
                cdb, self.map, parameters(key, new_key, flags))))

        self.client = None
        if self.scenario.mute:
            self.hang_without_a_word()
        out(REGISTER_AND_IGNORE, 0, KEY)
        out(REGISTER_AND_IGNORE, 0, KEY, flags=4)       # ALL_TG_PT
        assert {self.target.nexus(n).key for n in PATHS} == {KEY}
        self.expect(KEY, lambda: struct.unpack('>8xQ', self.answer(
            lambda c: c.read_in(self.map, READ_KEYS))[:16])[0])
        for n in PATHS:
            if self.scenario.slow:
                self.target.nexus(n).answer(
                    CHECK_CONDITION, sense=bytes.fromhex(
                        '700002000000000a000000000407'), driver_status=8)
        out(RESERVE, KEY)
        if self.scenario.slow:
            self.mpd.on('resume', 'fail', count=1)
            self.mpd.on('getprkey', 'timeout', count=1)
        holder = self.target.lun(0).holder
        self.root.state(holder, 'offline')
        self.target.nexus(holder).dm_failed = 1
        out(RELEASE, KEY)
        assert self.target.lun(0).type == 0
        assert not self.mpd.maps[0].suspended
        self.root.state(holder, 'running')
        self.target.nexus(holder).dm_failed = 0
        out(REGISTER_AND_IGNORE, 0, KEY)
        out(CLEAR, KEY)
        assert {self.target.nexus(n).key for n in PATHS} == {0}
        assert self.mpd.maps[0].prflag == 'unset'
        self.client.close()
        self.client = None
        self.settle()

    def hang_without_a_word(self):
        """Main cannot tell this worker from one that takes no command."""
        for n in PATHS:
            self.target.nexus(n).hold = 1
        self.expect(LOST, lambda: self.answer(
            lambda c: c.read_in(self.map, READ_KEYS)))
        for n in PATHS:
            self.target.nexus(n).hold = 0

    def answer_fresh(self, keys):
        with Client(self.path, timeout=15) as client:
            return client.read_in(self.disk, READ_KEYS).payload == keys

    def register(self, client):
        return client.request(pr_out(REGISTER_AND_IGNORE), self.disk,
                              parameters(0, KEY))

    def violate(self):
        with Client(self.path, timeout=15) as client:
            client.send(pr_in(READ_KEYS)[:8], [self.disk])
            client.send(pr_in(READ_KEYS)[8:], [self.disk])
            return 'violation' if client.closed() else 'served'

    def evict(self):
        """A third client, where two may be."""
        if not self.scenario.crowded:
            return 'evicted'
        with Client(self.path, timeout=15) as second, \
                Client(self.path, timeout=15) as third:
            old = [self.client.sock, second.sock]
            gone = select.select(old, [], [], 15)[0]
            assert third.read_in(self.disk, READ_KEYS).status == GOOD
            return 'evicted' if len(gone) == 1 else 'all stay'


# ---- The scenarios ----------------------------------------------------------

def few_fds():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, limit[1]))


ONE = (1, 1)        # the first call, once
TWO_CLIENTS = ('-v', '--max-clients=2')
SCENARIOS = [
    Scenario('sessions', *TWO_CLIENTS, stderr='pipe', crowded=True),
    Scenario('single process', '--max-clients=2', '--single-process',
             stderr='socket', crowded=True, single=True, preexec=few_fds,
             only='descriptors_limit|client_|events_wait|line_write|'
                  'socket_peer|clock'),
    Scenario('background', '-v', '-d', main=1, background=True, notify=True,
             stale=True, pid_file=True,
             only='daemon|trace|line_read|notify|listen|alive|socket|syslog|^close|'
                  '^write line_write 1|place|fork 1', outcomes={
                 # What is there and cannot be seen is not replaced.
                 'lstat listen_open 1': {START: (e.ENOENT, e.EIO)},
                 'unlink listen_open': {START: (e.EACCES, e.EROFS)}}),
    Scenario('closed stdin', '-v', preexec=lambda: os.close(0),
             only='daemon_open_standard_fds'),
    Scenario('activated', '-v', activated=True, stderr='pipe',
             only='passed_option|listen_activated'),
    Scenario('background, no start', '-d', main=1, background=True,
             pid_file=True, fails=True, only='waitpid',
             broken={'listen listen_open': (e.EIO, *ONE)}),
    Scenario('no /dev/null', '-d', main=1, background=True, pid_file=True,
             only='dup daemon',
             broken={'open daemon_background_ready': (e.ENOENT, *ONE)}),
    Scenario('another helper there', alive=True, fails=True,
             only='getsockopt|nanosleep is_in_time',
             broken={'connect socket_connect': (e.EAGAIN, *ONE)},
             outcomes={'nanosleep is_in_time': {START: (e.EINTR,)}}),
    Scenario('another helper there, that cannot be asked', alive=True,
             fails=True, ours=True, only='^$',
             broken={'connect socket_connect': (e.ENOMEM, *ONE)}),
    Scenario('another that starts at the same time', ours=True, fails=True,
             only='^$', broken={'lstat is_file': (e.ENOENT, *ONE)}),
    Scenario('a file at the path', in_the_way=True, only='rename'),
    Scenario('a PID file that is replaced all the time', pid_file=True,
             fails=True, only='^$',
             broken={'stat daemon_pid_file': (e.ENOENT, 1, 9999)}),
    Scenario('nobody to notify', '-v', notify=True, only='^close socket_c',
             broken={'connect socket_connect': (e.ECONNREFUSED, *ONE)}),
    Scenario('blocking stderr, replaced PID file', '-v', stderr='pipe',
             pid_file=True, only='ppoll line_write|close daemon_pid_file',
             broken={'open log_open': (e.ENXIO, *ONE),
                     'stat daemon_pid_file': (e.ENOENT, *ONE)}),
    Scenario('short of memory', '-v', only='nanosleep|setgroups',
             broken={'ppoll events_wait 2': (e.ENOMEM, 2, 1),
                     'getgroups privdrop': (e.EINVAL, *ONE)}),
    Scenario('deaf sessions', *TWO_CLIENTS, crowded=True, only='sessions_check',
             broken={'kill session_leave': (e.EPERM, *ONE)}),
    Scenario('multipath', '-v', mapped=True,
             only='^(?!nanosleep).*(worker|work_|map|multipath|path|sysfs|'
                  'socket_connect|name_connect|socket_peer|exchange| receive)',
             outcomes={
                      # Of multipathd.
                      'socket socket_connect': {FAILS: (e.EMFILE,)},
                      'connect socket_connect': {SAME: (e.EAGAIN,),
                                                 FAILS: (e.ECONNREFUSED,)},
                      # Of multipathd, unless it is the client's.
                      'getsockopt socket_peer': {FAILS: (e.EINVAL,)},
                      # Of the map, as of which each run has the first two.
                      'stat sysfs_has': {'B/00/06': (e.EACCES, e.ENOENT)},
                      'open sysfs_line': {REFUSED: (e.ENOENT, e.EMFILE)},
                      'read sysfs_line': {REFUSED: (e.ENODEV, SHORT)}}),
    Scenario('multipath, mute worker', '-v', mapped=True, mute=True,
             only='workers_check', usual=[
                 'qemu-pr-helper: a command on a multipath map died of '
                 'signal 9'], broken={'write worker_run': (e.EPIPE, *ONE)}),
    Scenario('multipath, slow', '-v', mapped=True, slow=True,
             only='nanosleep|^close (descriptors|name|socket|path|worker)',
             usual=[LOST],
             broken={'syscall descriptors_close_except': (e.ENOSYS, 1, 9999),
                     'connect socket_connect': (e.EAGAIN, *ONE),
                     'getsockopt socket_peer': (e.EINVAL, 2, 1),
                     'fstat path_open': (e.EIO, *ONE),
                     'fcntl map_lock': (e.EAGAIN, *ONE),
                     # The node of an open path is another disk's by now.
                     'stat sysfs_has': (e.ENOENT, 14, 1)}),
    Scenario('a command that never ends', '-v', '--stop-timeout=0',
             hanging=True, only='sessions_kill'),
    Scenario('another user', '-v', '-u', 'nobody', '-g',
             grp.getgrgid(NOBODY.pw_gid).gr_name, root=True,
             only='id_find|privdrop|bounding|groups', outcomes={
                 'prctl bounding_set_empty 1': {START: (e.EPERM, e.EINVAL)},
                 'setgroups privdrop': {START: (e.EPERM, e.ENOSYS)}}),
]


def expected(name, role, scenario):
    """The row of EXPECTED, the most specific that there is."""
    bare = re.sub(r' \d+$', '', name)
    for row in (scenario.outcomes, EXPECTED):
        for key in (name + role, bare + role, name, bare, bare.split()[0]):
            if key in row:
                return row[key]
    raise AssertionError('%s is a call that EXPECTED does not have' % name)


class Tools:
    """What all runs share."""

    def __init__(self, directory):
        self.dir = str(directory / 'run')
        os.mkdir(self.dir)
        os.chmod(self.dir, 0o777)
        self.program = Program(FAULT_HELPER)
        self.table = Table(directory / 'table')
        self.target = sim.Target(directory / 'sim')
        self.target.env.update(
            ASAN_OPTIONS='log_path=%s/log' % self.dir,
            UBSAN_OPTIONS='log_path=%s/log' % self.dir)
        self.disks = sim.Disks(directory)
        self.disk = self.disks.open(0)
        self.other = os.open(sim.device(directory / 'other', 300, 0),
                             os.O_RDWR)
        self.map = os.open(sim.device(directory / 'map', sim.Root.MAJOR, 0),
                           os.O_RDWR)
        self.root = sim.Root(directory / 'root')
        for n in PATHS:
            self.root.disk(n)
        self.root.map(0, PATHS, 'mpatha')
        self.mpd = multipathd.Multipathd(str(directory / 'm'), self.target)
        self.mpd.start()
        self.fds, self.pairs, self.met, self.runs = {}, set(), set(), 0
        self.done = set()

    def where(self, name, scenario):
        """The key of main's calls of that name, of the first if many."""
        for offset, found in self.program.offsets.items():
            if found in (name, name + ' 1'):
                return offset, scenario.main
        raise AssertionError('the program does not call ' + name)

    def learn(self, scenario):
        """One undisturbed run; returns what it called, and how often."""
        run = Run(self, scenario).live()
        assert run.odd == ([START] if scenario.fails
                           else scenario.usual or []), (run.odd, run.text)
        calls = {where: calls for where, calls in self.table.entries()
                 if calls and where[0] in self.program.offsets}
        self.met |= {where[0] for where in calls}
        return calls

    def fail(self, scenario, where, error, first, count, outcome):
        """One run with one call failing; returns what was wrong with it."""
        begin = time.monotonic()
        run = Run(self, scenario, [(where, error, first, count)]).live()
        self.runs += 1
        wrong = []
        if time.monotonic() - begin < 0.05 * (count - 1):
            wrong.append('it does not back off')
        if not self.table.hits(where):
            wrong.append('it was not called')
        odd = run.odd
        for usual in scenario.usual or []:
            if usual in odd:
                odd.remove(usual)
        if outcome in (SAME, AGAIN):
            wrong += odd
        elif outcome == PERHAPS and odd in ([], [CLOSED]) \
                or outcome == FAILS and odd in ([], [LOST]) \
                or outcome == REFUSED and odd in ([], ['5/20/00']):
            pass
        elif ', '.join(map(str, odd)) != outcome:
            wrong.append('%r' % odd)
        if outcome == AGAIN and 'trying again' not in run.text:
            wrong.append('not a word')
        if sum(calls for _, calls in self.table.entries()) > 20000:
            wrong.append('it spins')
        return wrong


def landlock_is_missing():
    libc = ctypes.CDLL(None)
    return libc.syscall(444, None, ctypes.c_size_t(0), 1) < 1


@pytest.fixture(scope='module')
def tools():
    if not os.path.exists(FAULT_HELPER):
        pytest.skip('make fault has not built %s' % FAULT_HELPER)
    before = children(os.getpid())
    assert before == [], before
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix='prh') as directory:
        os.chmod(directory, 0o755)      # for the helper of another user
        tools = Tools(pathlib.Path(directory))
        yield tools
        tools.disks.close()
        os.close(tools.other)
        os.close(tools.map)
        tools.mpd.stop()
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize('scenario', SCENARIOS, ids=lambda s: s.name)
def test_each_call_that_fails_comes_to_what_it_should(tools, scenario):
    if scenario.root and not is_root():
        pytest.skip('needs root with CAP_SYS_RAWIO and CAP_SET*')
    wrong, tried = [], set()
    tools.done.add(scenario.name)
    for where, calls in tools.learn(scenario).items():
        name = tools.program.offsets[where[0]]
        role = ' (session)' if where[1] > scenario.main \
            else ' (start)' * (where[1] < scenario.main)
        if not re.search(scenario.only or '', name):
            continue
        tried.add(name)
        most = 4 if 'client_' in name else 2
        # How often the second is called, time tells; the others are too late
        # for a client that is closed anyway.
        if re.search('ioctl|ppoll events_wait 1|setrlimit descriptors_seal|'
                     'nanosleep|sandbox_enter', name):
            most = 1
        for outcome, errors in expected(name, role, scenario).items():
            for error in errors:
                tools.pairs.add((where[0], role, error))
                for first in range(1, min(calls, most) + 1):
                    count = 5 if (outcome, first) == (AGAIN, 1) else 1
                    found = tools.fail(scenario, where, error, first, count,
                                       outcome)
                    if found:
                        wrong.append('%s%s, call %d, %s: not %s but %s' % (
                            name, role, first, e.errorcode.get(error, error),
                            outcome, '; '.join(map(str, found))))
    assert not wrong, '\n' + '\n'.join(wrong)
    assert tried or scenario.only == '^$', 'no call is named so'


def test_a_session_that_dies_before_it_has_its_client(tools):
    """That is no error of accept(), nor has it a client to be named."""
    where = [(offset, 1) for offset, name in tools.program.offsets.items()
             if name.startswith('accept4 ') and 'client_accept' not in name]
    run = Run(tools, Scenario('dying', '-v'), [(where[0], CRASH, 1, 1)]).live()
    assert tools.table.hits(where[0]) == 1
    words, = run.odd
    assert re.search(r'session \d+ that had no client yet died of signal \d+$',
                     words)
    assert 'accept' not in run.text and 'pid 0' not in run.text


@pytest.mark.skipif(not is_root(), reason='needs root to look')
def test_a_session_without_close_range_has_nothing_of_main(tools):
    """Though main's own have higher numbers than all that it was started
    with."""
    where = tools.where('syscall descriptors_close_except',
                        Scenario('many', main=1))
    path = tools.dir + '/many'

    def many():
        for number in range(3, 600):
            os.dup2(0, number)

    def own(pid):
        return [link for link in descriptors(pid).values()
                if re.match('socket|pipe', link)]

    tools.table.reset()
    tools.table.arm(where, e.ENOSYS, 1, 9999)
    helper = subprocess.Popen(
        [FAULT_HELPER, '-k', path], preexec_fn=many, close_fds=False,
        env=dict(tools.target.env, FAULT_STATE=tools.table.path),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: os.path.exists(path) and tools.table.calls(
            tools.where('ppoll events_wait', Scenario('many'))))
        with Client(path):
            session, = children(helper.pid)
            wait_until(lambda: len(own(session)) == 2)  # client and queue
    finally:
        helper.terminate()
        assert helper.wait(20) == 0
    assert tools.table.hits(where)


def test_no_call_was_left_out(tools, capsys):
    never = {name for offset, name in tools.program.offsets.items()
             if offset not in tools.met}
    with capsys.disabled():
        print('\nfault injection: %d (call, errno) pairs at %d calls, in %d '
              'runs; not reached: %s' % (
                  len(tools.pairs), len(tools.met), tools.runs,
                  ', '.join(sorted(never)) or 'none'))
    if len(tools.done) < len([s for s in SCENARIOS if is_root()
                              or not s.root]):
        pytest.skip('not all scenarios were run')
    excused = [] if is_root() else ['id_find', 'groups', 'privdrop']
    if tools.program.sanitized:
        excused += ['sandbox', 'landlock']
    elif landlock_is_missing():
        excused += ['landlock']
    assert not [name for name in never
                if not any(word in name for word in excused)]


def test_each_system_call_can_be_made_to_fail(tools):
    # The C library's functions that make no system call, or cannot fail.
    harmless = re.compile(
        '_|(mem|str|sig(add|del|empty|fill)|getopt|opt|getenv|unsetenv|'
        'get(e?uid|pid)$|exit$|v?snprintf$|dprintf$|gmtime|gnu_dev_)')
    wrapped = set()
    for line in tools.program.tool('nm', '--defined-only',
                                   OBJECTS + '/tests/lib/fault.o'):
        wrapped.add(line.split()[2].replace('__wrap_', ''))
    left = {line.split()[-1] for o in OURS
            for line in tools.program.tool('nm', '-u', o)}
    assert not {name for name in left - wrapped - tools.program.ours
                if not harmless.match(name)}
