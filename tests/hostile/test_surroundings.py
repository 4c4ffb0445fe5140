"""Cases 301 to 399: limits, signals, clocks, file systems, standard error.

Everything around the helper fails it here, one thing at a time: it must say
so, wait or end as its manual says, and be as before once all is well again.

Nothing here may mount anything that other processes see, change a clock, or
send a signal to a process that it did not start.
"""
import contextlib
import ctypes
import os
import pty
import resource
import signal
import socket
import subprocess
import threading
import time
import tty

import pytest

from launch import NOBODY, status_of
from prclient import REGISTER, Client, Closed, parameters, pr_out
from victim import (BINARY, PATIENCE, READ, begin, checked,  # noqa: F401
                    connected, cpu_time, ended, libc, needs_root, option,
                    shared, victim, wait_until)

CLONE_NEWNS, MS_RDONLY, MS_PRIVATE = 0x20000, 1, 0x4000 | 1 << 18
OUT = pr_out(REGISTER)


@contextlib.contextmanager
def limited(victim, name, value):
    """The helper (not its sessions) under another soft limit."""
    number = getattr(resource, 'RLIMIT_' + name)
    soft, hard = resource.prlimit(victim.pid, number)
    resource.prlimit(victim.pid, number, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(victim.pid, number, (soft, hard))


def switches(pid):
    """How often it has begun to wait: that counts on a busy machine, too."""
    return int(status_of(pid)['voluntary_ctxt_switches'][0])


def newcomer_waits(victim, change):
    """While it lasts a newcomer is not served, then it is."""
    with change:
        late = victim.client(hello=False, timeout=PATIENCE)
        used, switched = cpu_time(victim.pid), switches(victim.pid)
        for _ in range(20):
            assert victim.bystander.request(READ, victim.disk) \
                == victim.usual
            time.sleep(0.05)
        assert cpu_time(victim.pid) - used < 0.2
        assert switches(victim.pid) - switched < 200
    with late:
        late.read(4)
        late.send(bytes(4))
        assert late.request(READ, victim.disk) == victim.usual


# ---- Limits -----------------------------------------------------------------

def test_301_no_free_descriptor(begin):
    """Newcomers wait, without spinning, until there is one."""
    victim = begin()
    used = {int(fd) for fd in os.listdir('/proc/%d/fd' % victim.pid)}
    free = min(set(range(len(used) + 1)) - used)
    newcomer_waits(victim, limited(victim, 'NOFILE', free))
    victim.unharmed()


@pytest.mark.parametrize('spare', [0, 1, 2, 3])
def test_302_no_descriptor_for_the_request(begin, spare):
    """With so many free, each client is served, closed, or waits."""
    victim = begin()
    used = {int(fd) for fd in os.listdir('/proc/%d/fd' % victim.pid)}
    free = sorted(set(range(len(used) + 9)) - used)
    with limited(victim, 'NOFILE', free[spare]):
        for client in connected(victim, 5, hello=False):
            client.sock.settimeout(0.2)
            with contextlib.suppress(OSError, Closed), client:
                client.read(4)
                client.send(bytes(4))
                assert client.request(READ, victim.disk) == victim.usual
    victim.unharmed()


def test_303_no_free_process(begin):
    """Newcomers wait, without spinning, until there may be another."""
    root = os.geteuid() == 0        # there is no such limit for root
    victim = begin(*(['-u', 'nobody'] if root else []))
    try:
        if root:                    # its owner may set it
            os.setresuid(NOBODY.pw_uid, -1, -1)
        newcomer_waits(victim, limited(victim, 'NPROC', 1))
    finally:
        if root:
            os.setresuid(0, -1, -1)
    victim.unharmed()


@pytest.mark.parametrize('name', ['AS', 'DATA', 'STACK', 'MEMLOCK'])
def test_304_no_more_memory(begin, name):
    """It needs no more than it has: 100 clients are served."""
    victim = begin()
    with limited(victim, name, 4096):
        crowd = connected(victim, 100)
        for client in crowd:
            assert client.request(READ, victim.disk) == victim.usual
            client.close()
        victim.serves()
    victim.unharmed()


def test_305_log_that_may_not_grow(begin):
    """RLIMIT_FSIZE stops the log, not the helper (SIGXFSZ)."""
    victim = begin()
    with limited(victim, 'FSIZE', 1):
        for _ in range(3):
            client, pid = victim.session(lambda: connected(victim, 1)[0])
            if pid != victim.pid:
                os.kill(pid, signal.SIGKILL)    # main logs that
            with client, contextlib.suppress(OSError):
                client.send(bytes(16))
        victim.serves()
    victim.unharmed()


@pytest.mark.parametrize('name', ['SIGPENDING', 'CORE', 'MSGQUEUE'])
def test_306_other_limits_of_nothing(begin, name):
    """They change nothing: clients come, go and are forgotten."""
    victim = begin()
    with limited(victim, name, 0):
        for client in connected(victim, 50):
            assert client.request(READ, victim.disk) == victim.usual
            client.close()
        victim.unharmed()


# ---- Signals ----------------------------------------------------------------

def test_307_signal_storm(victim):
    """10,000 requests in a storm of signals: each is answered once."""
    done = threading.Event()
    processes = [victim.pid, *victim.sessions()]
    storm = [signal.SIGCHLD, signal.SIGPIPE, signal.SIGCONT, signal.SIGURG,
             signal.SIGWINCH, signal.SIGSTOP, signal.SIGCONT]
    sent = [0]

    def blow():
        while not done.is_set():
            for number in storm:
                for pid in processes:
                    os.kill(pid, number)
                sent[0] += 1
                time.sleep(0.0002)
        for pid in processes:
            os.kill(pid, signal.SIGCONT)

    before = victim.nexus.commands
    thread = threading.Thread(target=blow)
    thread.start()
    try:
        for _ in range(10000):
            assert victim.bystander.request(READ, victim.disk) \
                == victim.usual
    finally:
        done.set()
        thread.join()
    if victim.has_disk():
        assert victim.nexus.commands - before == 10000
    assert sent[0] > 500


STAGES = {'connected': 0, 'hello': 2, 'idle': 4, 'cdb': 11, 'list': 20,
          'inside-list': 30, 'reply': 44}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT,
                                    signal.SIGHUP])
@pytest.mark.parametrize('stage', STAGES)
def test_308_stop_at_every_stage(begin, number, stage):
    """Exit status 0, no socket, and no process is left; a reply is whole."""
    victim = begin()
    stream = bytes(4) + OUT + parameters()
    with victim.client(hello=False, timeout=PATIENCE) as client:
        client.read(4)
        client.send(stream[:min(4, STAGES[stage])])
        if STAGES[stage] > 4:
            client.send(stream[4:STAGES[stage]], [victim.disk])
        if stage == 'reply':
            head = client.read(1)
        sessions = victim.sessions()
        assert victim.stop(number) == 0
        if stage == 'reply':
            assert len(head + client.read(103)) == 104
        else:
            assert client.closed()
    assert not os.path.exists(victim.path)
    assert ended(sessions)


def test_309_stop_with_a_command_at_the_disk(begin):
    """It ends first, and its reply is read."""
    victim = begin()
    if not victim.has_disk():
        pytest.skip('this helper has no simulated disk')
    with victim.client(timeout=PATIENCE) as client:
        with victim.nexus.hanging():
            client.send(READ, [victim.disk])
            victim.nexus.wait_in_flight(1)
            victim.process.terminate()
            wait_until(lambda: not os.path.exists(victim.path))
        assert client.reply() == victim.usual
    assert victim.stop() == 0


def test_310_every_stop_signal_at_once(begin):
    """100 of them are one."""
    victim = begin()
    with contextlib.suppress(ProcessLookupError):
        for _ in range(33):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(victim.pid, number)
    assert victim.stop() == 0
    assert not os.path.exists(victim.path)


def test_311_stop_while_clients_rush_in(begin):
    """Exit status 0, and no process is left."""
    victim = begin()
    done = threading.Event()

    def rush():
        while not done.is_set():
            with contextlib.suppress(OSError, Closed):
                Client(victim.path, timeout=PATIENCE).close()
    threads = [threading.Thread(target=rush) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        sessions = victim.sessions()
        assert victim.stop() == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert ended(sessions)


def test_312_killed(begin):
    """SIGKILL takes all of it along, and the next helper can start."""
    victim = begin()
    crowd = connected(victim, 50)
    sessions = victim.sessions()
    victim.process.kill()
    for client in crowd:
        assert client.closed()
        client.close()
    assert ended(sessions)
    begin(socket_path=victim.path).unharmed()


def test_313_stopped_and_continued(victim):
    """While it is stopped newcomers wait, and are served afterwards."""
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        late = Client(victim.path, hello=False, timeout=PATIENCE)
        time.sleep(0.1)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    with late:
        late.read(4)
        late.send(bytes(4))
        assert late.request(READ, victim.disk) == victim.usual


def test_314_sessions_killed_one_after_the_other(victim):
    """Costs each of them its own client, and nobody else."""
    for number in (signal.SIGKILL, signal.SIGTERM) * 10:
        client, pid = victim.session(lambda: connected(victim, 1)[0])
        if pid == victim.pid:
            pytest.skip('this helper has no process for each client')
        with client:
            os.kill(pid, number)
            assert client.closed()


# ---- Clocks -----------------------------------------------------------------

def test_315_the_clock_in_use_cannot_be_set():
    """CLOCK_MONOTONIC has no way to jump: only another clock could."""
    with pytest.raises(OSError):
        time.clock_settime(time.CLOCK_MONOTONIC,
                           time.clock_gettime(time.CLOCK_MONOTONIC))


def test_316_time_passes_while_the_helper_does_not_run(begin):
    """As in a frozen cgroup: who has sent its request in time is served."""
    victim = begin(*option('--client-timeout', 1))
    client, pid = victim.session(lambda: connected(victim, 1)[0])
    with client:
        client.send(READ[:5], [victim.disk])
        assert client.drained()
        os.kill(pid, signal.SIGSTOP)
        client.send(READ[5:])
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        assert client.request(READ, victim.disk) == victim.usual
    victim.unharmed()


@needs_root
@pytest.mark.parametrize('offset', [10 ** 9, 4 * 10 ** 9])
def test_317_clock_that_is_a_hundred_years_on(begin, offset):
    """In a time namespace: deadlines are still where they should be."""
    def enter():
        checked(libc.unshare(0x80))             # CLONE_NEWTIME: of children
        with open('/proc/self/timens_offsets', 'w') as f:
            f.write('monotonic %d 0\n' % offset)
        ns = os.open('/proc/self/ns/time_for_children', os.O_RDONLY)
        checked(libc.setns(ns, 0x80))
        os.close(ns)
    victim = begin(*option('--client-timeout', 1), preexec_fn=enter)
    with victim.client(timeout=PATIENCE) as client:
        client.send(READ[:5], [victim.disk])
        assert client.closed()
    victim.unharmed()


# ---- File systems -----------------------------------------------------------

def starts(directory, *options, path=None, **popen):
    """(exit status, stderr) of a helper that should not start."""
    result = subprocess.run(
        [BINARY, '-k', path or str(directory / 'socket'), *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, timeout=20, **popen)
    return result.returncode, result.stderr.decode()


def tmpfs(directory, options='', flags=0):
    """A preexec_fn: such a file system there, for this process alone."""
    def mount():
        checked(libc.unshare(CLONE_NEWNS))
        checked(libc.mount(b'none', b'/', None, ctypes.c_ulong(MS_PRIVATE),
                           None))
        checked(libc.mount(b'none', str(directory).encode(), b'tmpfs',
                           ctypes.c_ulong(flags), options.encode()))
    return mount


def full(directory):
    """A preexec_fn: no byte is free there, but names are."""
    def fill():
        tmpfs(directory, 'size=4096')()
        with open(directory / 'filler', 'wb') as f:
            f.write(bytes(4096))
    return fill


def assert_says(result, *texts):
    status, message = result
    assert status == 1
    assert message.startswith('qemu-pr-helper: ')
    assert any(text in message for text in texts), message


@needs_root
@pytest.mark.parametrize('background', [[], ['-d']])
def test_318_no_space_for_the_pid_file(tmp_path, background):
    """ENOSPC: an error that names the file, and exit status 1."""
    place = tmp_path / 'full'
    place.mkdir()
    result = starts(tmp_path, '-f', str(place / 'pid'), *background,
                    preexec_fn=full(place))
    assert_says(result, str(place / 'pid'))
    assert 'No space left' in result[1]


@needs_root
@pytest.mark.parametrize('of', ['socket', 'pid'])
def test_319_no_name_left(tmp_path, of):
    """ENOSPC for the name of the socket or the PID file."""
    place = tmp_path / 'full'
    place.mkdir()
    where = {'socket': tmp_path, 'pid': tmp_path, of: place}
    assert_says(starts(tmp_path, '-f', str(where['pid'] / 'pid'),
                       path=str(where['socket'] / 'socket'),
                       preexec_fn=tmpfs(place, 'nr_inodes=1')),
                'No space left')


@needs_root
@pytest.mark.parametrize('of', ['socket', 'pid'])
def test_320_read_only_file_system(tmp_path, of):
    """EROFS: an error, and exit status 1."""
    place = tmp_path / 'fixed'
    place.mkdir()
    where = {'socket': tmp_path, 'pid': tmp_path, of: place}
    assert_says(starts(tmp_path, '-f', str(where['pid'] / 'pid'),
                       path=str(where['socket'] / 'socket'),
                       preexec_fn=tmpfs(place, flags=MS_RDONLY)),
                'Read-only file system')


@pytest.mark.parametrize('of', ['socket', 'pid'])
def test_321_no_right_to_the_directory(tmp_path, of):
    """EACCES (an ordinary user's): an error, and exit status 1."""
    def become():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
    closed, opened = tmp_path / 'closed', tmp_path / 'open'
    for place, mode in ((closed, 0o555), (opened, 0o777)):
        place.mkdir()
        place.chmod(mode)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() != 'root' and os.geteuid() == 0:
            break
        if not parent.stat().st_mode & 1 and os.geteuid() == 0:
            parent.chmod(parent.stat().st_mode | 0o11)
    where = {'socket': opened, 'pid': opened, of: closed}
    assert_says(starts(tmp_path, '-f', str(where['pid'] / 'pid'),
                       path=str(where['socket'] / 'socket'),
                       preexec_fn=become), 'Permission denied')


@pytest.mark.parametrize('of', ['socket', 'pid'])
@pytest.mark.parametrize('kind, message', [
    ('gone/x', 'No such file'), ('file/x', 'Not a directory'),
    ('circle/x', 'Too many levels'), ('y' * 300, 'too long'),
    ('.', 'directory')])
def test_322_paths_that_lead_nowhere(tmp_path, of, kind, message):
    """An error that says why, and exit status 1."""
    (tmp_path / 'file').touch()
    (tmp_path / 'circle').symlink_to('circle')
    bad = str(tmp_path) + '/' + kind
    status, text = starts(tmp_path, '-f', bad if of == 'pid'
                          else str(tmp_path / 'pid'),
                          path=bad if of == 'socket' else None)
    assert status == 1 and text.startswith('qemu-pr-helper: ')
    assert message in text or of == 'socket'


def serves_and_stops(victim):
    """What it has must go on without the names, until it is stopped."""
    assert victim.bystander.request(READ, victim.disk) == victim.usual
    assert victim.stop() == 0


@pytest.mark.parametrize('how', ['socket', 'directory', 'renamed', 'pid'])
def test_323_names_that_disappear(begin, tmp_path, how):
    """Clients are served on, and stopping is no error."""
    place = tmp_path / 'place'
    place.mkdir()
    victim = begin('-f', str(place / 'pid'),
                   socket_path=str(place / 'socket'))
    if how == 'renamed':
        place.rename(tmp_path / 'other')
        victim.path = str(tmp_path / 'other' / 'socket')
        victim.unharmed()
    if how in ('socket', 'directory'):
        os.unlink(victim.path)
    if how in ('pid', 'directory'):
        os.unlink(place / 'pid')
    if how == 'directory':
        place.rmdir()
    serves_and_stops(victim)


def test_324_directory_that_another_helper_has_taken(begin, tmp_path):
    """Who stops leaves alone what is there now."""
    place = tmp_path / 'place'
    place.mkdir()
    victim = begin(socket_path=str(place / 'socket'))
    place.rename(tmp_path / 'other')
    place.mkdir()
    other = begin(socket_path=str(place / 'socket'))
    serves_and_stops(victim)
    other.unharmed()


def test_325_started_in_a_directory_that_is_gone(begin, tmp_path):
    """It does not need one."""
    def leave():
        gone = tmp_path / 'gone'
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
    begin(preexec_fn=leave).unharmed()


@needs_root
def test_326_neither_proc_nor_sys(begin):
    """Both empty: it starts, and serves."""
    def hide():
        tmpfs('/proc')()
        tmpfs('/sys')()
    begin(preexec_fn=hide).unharmed()


# ---- Standard error ---------------------------------------------------------

def misbehave(victim, times=50):
    """So that there is something to log, of sessions and of main."""
    for _ in range(times):
        with contextlib.suppress(OSError, Closed):
            with victim.client(timeout=PATIENCE) as client:
                client.send(bytes(16))
                client.closed()
    client, pid = victim.session(lambda: connected(victim, 1)[0])
    if pid != victim.pid:
        os.kill(pid, signal.SIGKILL)
    client.close()


def filled(fd):
    os.set_blocking(fd, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, bytes(size))
    os.set_blocking(fd, True)
    return fd


def stopped_terminal():
    """As after ^S; also returns the other end, to be kept."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    checked(libc.tcflow(slave, 0))
    return slave, master


def full_pipe():
    reader, writer = os.pipe()
    return filled(writer), reader


def full_stream():
    ours, theirs = [s.detach() for s in socket.socketpair()]
    return filled(theirs), ours


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return (writer,)


def full_device():
    return (os.open('/dev/full', os.O_WRONLY),)


@pytest.mark.parametrize('make', [full_pipe, full_stream, stopped_terminal,
                                  broken_pipe, full_device],
                         ids=lambda make: make.__name__)
def test_327_standard_error_that_takes_nothing(begin, make):
    """What cannot be logged is lost, and delays nobody."""
    fds = make()
    try:
        victim = begin(stderr=fds[0])
        misbehave(victim)
        victim.unharmed()
        assert victim.stop() == 0
    finally:
        for fd in fds:
            os.close(fd)


@needs_root
def test_328_log_on_a_file_system_that_is_full(begin, tmp_path):
    """ENOSPC for each line: lost, and no harm."""
    place = tmp_path / 'full'
    place.mkdir()

    def log_there():
        full(place)()
        os.dup2(os.open(place / 'log', os.O_WRONLY | os.O_CREAT), 2)
    victim = begin(preexec_fn=log_there)
    misbehave(victim)
    victim.unharmed()


@needs_root
def test_329_client_of_another_pid_namespace(victim):
    """A client that has no process number here is served like others."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            checked(libc.unshare(0x20000000 | 0x10000000))  # pid, user
            child = os.fork()
            if child:
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            else:
                with Client(victim.path, timeout=PATIENCE) as client:
                    assert client.request(READ, victim.disk) == victim.usual
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
