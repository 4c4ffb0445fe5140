"""From start to exit: sockets, activation, signals, privileges, descriptors.

The helper under test is the real program, started as service managers,
libvirt, containers and shells start it, as root and as an ordinary user.
Nothing here may need SCSI, or assert anything about how long a step takes.
What is not tested, because nothing outside can see it: that LISTEN_PID and
its like leave the environment (/proc/PID/environ shows what exec passed).
"""
import contextlib
import fcntl
import grp
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from launch import (NOBODY, SETGID, SETPCAP, SETUID, SYS_RAWIO, accepts,
                    as_user, become, children, lock_owner, needs_root, place,
                    status_of, stop, wait_until)
from prclient import READ_KEYS, Client

RAWIO = 1 << SYS_RAWIO
KINDS = {'unix': (socket.AF_UNIX, socket.SOCK_STREAM),
         'datagram': (socket.AF_UNIX, socket.SOCK_DGRAM),
         'packets': (socket.AF_UNIX, socket.SOCK_SEQPACKET),
         'tcp': (socket.AF_INET, socket.SOCK_STREAM)}


def listener(path, backlog=8):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(backlog)
    return sock


def inode(path):
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None     # for a moment, when a socket takes another's place


# The socket of our own. ----------------------------------------

@pytest.mark.parametrize('umask', [0o000, 0o077, 0o117, 0o022])
def test_the_mode_of_the_socket_follows_the_umask(place, umask):
    place.begin(preexec_fn=lambda: os.umask(umask))
    assert os.stat(place.socket).st_mode & 0o7777 == 0o777 & ~umask


def test_a_stale_socket_is_replaced(place):
    listener(place.socket).close()
    assert not accepts(place.socket)
    place.begin()
    assert place.serves()


def test_a_killed_helpers_socket_is_replaced(place):
    assert stop(place.begin(), signal.SIGKILL) == -signal.SIGKILL
    assert os.path.exists(place.socket)
    wait_until(lambda: not accepts(place.socket))   # a session's last moment
    place.begin()
    assert place.serves()


def test_who_has_no_descriptor_to_look_with_says_so(place):
    listener(place.socket).close()
    result = place.run('--single-process', preexec_fn=lambda:
                       resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)))
    assert result.status == 1 and 'cannot look at' in result.err, result


@pytest.mark.parametrize('user', ['same', 'ordinary'])
def test_a_live_socket_is_refused_and_untouched(place, user):
    who = as_user() if user == 'ordinary' else None
    place.begin(preexec_fn=who)
    before = inode(place.socket)
    result = place.run(preexec_fn=who)
    assert result.status == 1 and place.socket in result.err, result
    assert inode(place.socket) == before
    assert place.serves()


@needs_root
def test_a_live_socket_of_a_helper_that_gave_up_root_is_refused(place):
    place.begin('-u', 'nobody')
    assert place.run().status == 1
    assert place.serves()


def fill(listening):
    """Connect to it until nobody else can."""
    queued = []
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        queued.append(client)
        try:
            client.connect(listening.getsockname())
        except BlockingIOError:
            return queued


DIRECTORIES = [0o777, 0o1777, 0o775, 0o757,
               pytest.param('theirs', marks=needs_root)]
OURS = [0o755, 0o700]


def directory(place, kind):
    if kind == 'theirs':
        os.chown(place.open_dir, NOBODY.pw_uid, NOBODY.pw_gid)
    os.chmod(place.open_dir, 0o755 if kind == 'theirs' else kind)


def put_file(path):
    with open(path, 'w') as f:
        f.write('dear')


def put_directory(path):
    os.mkdir(path)
    put_file(path + '/file')


IN_THE_WAY = {'file': put_file, 'directory': put_directory, 'fifo': os.mkfifo,
              'symlink': lambda path: os.symlink('/no/where', path),
              'socket': lambda path: listener(path).close(),
              'datagram': lambda path: socket.socket(
                  socket.AF_UNIX, socket.SOCK_DGRAM).bind(path)}


@pytest.mark.parametrize('what', IN_THE_WAY)
@pytest.mark.parametrize('where', DIRECTORIES)
def test_what_others_put_at_the_path_does_not_keep_us(place, what, where):
    IN_THE_WAY[what](place.socket)
    directory(place, where)
    is_socket = what in ('socket', 'datagram')
    process = place.begin(wait=False)
    wait_until(lambda: accepts(place.socket) or process.poll() is not None)
    assert process.poll() is None, place.log()
    assert place.serves()
    # What is no socket is still there, and the log says where.
    others = sorted(set(os.listdir(place.open_dir)) - {'s'})
    assert len(others) == (not is_socket)
    if not is_socket:
        aside = os.path.join(place.open_dir, others[0])
        assert "%s is no socket: renaming it to %s" % (
            place.socket, aside) in place.log()
        if what in ('file', 'directory'):
            with open(aside + '/file' * (what == 'directory')) as f:
                assert f.read() == 'dear'
    assert stop(process) == 0
    # Root has no power over their directory left by then.
    assert os.path.lexists(place.socket) == (where == 'theirs')


@pytest.mark.parametrize('what', ['file', 'directory', 'fifo', 'symlink'])
@pytest.mark.parametrize('where', OURS)
def test_what_only_we_can_have_put_there_is_not_touched(place, what, where):
    IN_THE_WAY[what](place.socket)
    directory(place, where)
    before = inode(place.socket)
    result = place.run()
    assert result.status == 1 and 'is no socket' in result.err, result
    assert inode(place.socket) == before
    assert os.listdir(place.open_dir) == ['s']


@pytest.mark.parametrize('where', OURS)
def test_a_listener_with_a_full_backlog_is_alive(place, where):
    directory(place, where)
    with listener(place.socket, 0) as full:
        queued, before = fill(full), inode(place.socket)
        result = place.run()
        assert result.status == 1 and place.socket in result.err, result
        assert inode(place.socket) == before
        for client in queued:
            client.close()


@pytest.mark.parametrize('kind', ['DGRAM', 'SEQPACKET'])
def test_a_socket_of_another_type_is_another_program_s(place, kind):
    with socket.socket(socket.AF_UNIX, getattr(socket, 'SOCK_' + kind)) as sock:
        sock.bind(place.socket)
        directory(place, OURS[0])
        before = inode(place.socket)
        result = place.run()
        assert result.status == 1 and place.socket in result.err, result
        assert inode(place.socket) == before
    assert place.begin() and place.serves()     # now it is nobody's


@pytest.mark.parametrize('where', DIRECTORIES)
def test_a_full_backlog_is_no_sign_of_life_where_others_can_write(place,
                                                                  where):
    directory(place, where)
    with listener(place.socket, 0) as full:
        queued, before = fill(full), inode(place.socket)
        process = place.begin(wait=False)
        wait_until(lambda: inode(place.socket) not in (None, before)
                   and accepts(place.socket)
                   or process.poll() is not None)
        assert process.poll() is None, place.log()
        assert place.serves()
        for client in queued:
            client.close()


def test_a_backlog_that_is_full_for_a_moment_is_a_helpers(place):
    """Where others can write, too: one of ours takes who waits."""
    with listener(place.socket, 0) as full:
        queued = fill(full)
        process = place.begin(wait=False)
        time.sleep(0.2)
        for _ in queued[:-1]:
            queued.append(full.accept()[0])
        assert process.wait(20) == 1
        assert 'another process listens there' in place.log()
        for client in queued:
            client.close()


def test_a_path_that_is_taken_again_and_again(place):
    """Who owns the directory does not give up; nor do we, at once."""
    stopped = threading.Event()

    def take():
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                os.close(os.open(place.socket, os.O_CREAT | os.O_EXCL))

    thread = threading.Thread(target=take)
    thread.start()
    try:
        place.begin()
    finally:
        stopped.set()
        thread.join()
    assert place.serves()


def test_a_name_that_changes_leads_to_no_other_listener(place):
    """Who owns the directory makes a stale socket a link to some listener of
    ours, such as the system's bus, when we have looked at it."""
    with listener(place.dir + '/alive'):
        stale, link = place.dir + '/stale', place.dir + '/link'
        listener(stale).close()
        os.symlink(place.dir + '/alive', link)
        stopped = threading.Event()

        def swap():
            while not stopped.is_set():
                for what in stale, link:
                    os.link(what, place.dir + '/new', follow_symlinks=False)
                    os.rename(place.dir + '/new', place.socket)

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            for _ in range(40):
                done = place.run('-d', '-f', place.dir + '/p')
                assert done.status == 0, done.err
                with open(place.dir + '/p') as f:
                    os.kill(int(f.read()), signal.SIGTERM)
                wait_until(place.have_ended)
        finally:
            stopped.set()
            thread.join()


@needs_root
@pytest.mark.parametrize('ours, theirs', [(None, NOBODY.pw_uid),
                                          (NOBODY.pw_uid, None), (1, 2)])
def test_a_listener_of_another_user_is_replaced(place, ours, theirs):
    """The directory may be writable to whoever wants to be in the way."""
    def who(uid):
        return None if uid is None else become(uid=uid)
    other = place.begin(preexec_fn=who(theirs))
    os.chmod(place.socket, 0o777)
    before = inode(place.socket)
    process = place.begin(preexec_fn=who(ours), wait=False)
    wait_until(lambda: process.poll() is not None
               or inode(place.socket) not in (None, before)
               and accepts(place.socket))
    assert process.poll() is None, place.log()
    assert stop(other) == 0
    assert place.serves()                       # it has left ours alone
    assert stop(process) == 0
    assert not os.path.exists(place.socket)


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize('number', SIGNALS)
@pytest.mark.parametrize('options', [[], ['--single-process']])
def test_a_signal_ends_all_and_removes_the_socket(place, number, options):
    process = place.begin(*options)
    with place.client() as first, place.client() as second:
        assert stop(process, number) == 0
        assert first.closed() and second.closed()
    assert os.listdir(place.open_dir) == []


@pytest.mark.parametrize('number', SIGNALS)
def test_signals_that_the_parent_has_blocked_or_ignored_work(place, number):
    def prepare():
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    process = place.begin(preexec_fn=prepare)
    assert place.serves()
    assert stop(process, number) == 0
    assert not os.path.exists(place.socket)


def test_sigchld_that_the_parent_has_ignored_leaves_no_zombies(place):
    process = place.begin(
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    for _ in range(5):
        assert place.serves()
    wait_until(lambda: children(process.pid) == [])
    assert stop(process) == 0


@pytest.mark.parametrize('options', [[], ['--single-process']])
def test_children_that_are_not_its_own_leave_no_zombies(place, options):
    """As the first process of a container it gets some."""
    def prepare():
        if os.fork() == 0:
            os.execvp('sleep', ['sleep', '1'])
    process = place.begin(*options, preexec_fn=prepare)
    wait_until(lambda: children(process.pid) == [])
    assert stop(process) == 0


@pytest.mark.parametrize('by', ['file', 'socket', 'directory'])
def test_what_has_replaced_the_socket_stays_at_exit(place, by):
    process = place.begin()
    os.rename(place.socket, place.socket + '.old')
    if by == 'file':
        open(place.socket, 'w').close()
    elif by == 'socket':
        listener(place.socket).close()
    else:
        os.mkdir(place.socket)
    before = inode(place.socket)
    assert stop(process) == 0
    assert inode(place.socket) == before


def test_a_socket_that_is_gone_at_exit_is_no_error(place):
    process = place.begin()
    os.unlink(place.socket)
    assert stop(process) == 0
    assert place.log().count('\n') <= 1         # of the start


def test_a_socket_that_cannot_be_removed_at_exit_is_no_error(place):
    """Root has no power over the directory's mode left by then."""
    for _ in range(2):
        process = place.begin()
        os.chmod(place.open_dir, 0o555)
        try:
            assert stop(process) == 0
        finally:
            os.chmod(place.open_dir, 0o777)
        assert os.path.exists(place.socket)     # and the next start copes


@needs_root
def test_the_socket_in_a_directory_of_another_user(place):
    """As KubeVirt has it: uid 107 owns the directory, root starts us."""
    os.chown(place.open_dir, 107, 107)
    os.chmod(place.open_dir, 0o755)
    for _ in range(2):
        process = place.begin()
        assert place.serves()
        assert stop(process) == 0


# The socket of a service manager. ----------------------------------------

ACTIVATE = '''
exec 3<&0 </dev/null
export LISTEN_FDS="$1" LISTEN_FDNAMES=x
if [ "$2" = self ]; then LISTEN_PID=$$; else LISTEN_PID=$2; fi
export LISTEN_PID
[ "$3" = closed ] && exec 3<&-
shift 3
exec "$@"'''


def activated(place, passed, *options, fds='1', pid='self', kind='', **popen):
    """Start the helper with passed as its fd 3, without -k."""
    arguments = [place.binary, *options]
    command = ['sh', '-c', ACTIVATE, 'sh', fds, pid, kind] + arguments
    with open(place.log_path, 'ab') as log:
        process = subprocess.Popen(command, stdin=passed, stderr=log,
                                   stdout=subprocess.DEVNULL, **popen)
    place.processes.append(process)
    return process


@pytest.mark.parametrize('options', [[], ['--single-process'], ['-v']])
def test_an_activated_helper_serves_the_passed_socket(place, options):
    with listener(place.socket) as passed:
        process = activated(place, passed, *options)
        assert place.serves() and place.serves()
        assert process.poll() is None
        assert stop(process) == 0
        assert os.path.exists(place.socket)     # not ours to remove
        assert accepts(place.socket)


def test_a_client_that_waits_is_served_after_activation(place):
    with listener(place.socket) as passed:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(place.socket)
        activated(place, passed)
        assert len(sock.recv(4)) == 4
        sock.close()


def test_an_activated_daemon_serves_the_passed_socket(place):
    with listener(place.socket) as passed:
        caller = activated(place, passed, '-d', '-f', place.pid_file)
        assert caller.wait(20) == 0, place.log()
        with open(place.pid_file) as f:
            pid = int(f.read())
        assert lock_owner(place.pid_file) == pid
        assert place.serves()


@pytest.mark.parametrize('fds, pid', [('0', 'self'), ('1', '1'), ('1', ''),
                                      ('', 'self'), ('2', '999999999'),
                                      (' 1', 'self'), ('-1', 'self'),
                                      ('9' * 30 + 'x', 'self'), ('1', 'x')])
def test_variables_that_are_not_for_us_are_ignored(place, fds, pid):
    path = place.open_dir + '/own'
    with listener(place.socket) as passed:
        process = activated(place, passed, '-k', path, fds=fds, pid=pid)
        wait_until(lambda: accepts(path) or process.poll() is not None)
        assert process.poll() is None, place.log()
        assert place.serves(path)
        waiting = Client(place.socket, hello=False, timeout=0.3)
        with waiting, pytest.raises(TimeoutError):
            waiting.read(1)                     # nobody serves that one
        assert stop(process) == 0
        assert not os.path.exists(path)


def test_more_than_one_socket_is_an_error(place):
    with listener(place.socket) as passed:
        assert activated(place, passed, fds='2').wait(20) == 1
    assert 'LISTEN_FDS > 1' in place.log()


def test_a_path_and_a_passed_socket_are_an_error(place):
    with listener(place.socket) as passed:
        process = activated(place, passed, '-k', place.socket + '2')
        assert process.wait(20) == 1
    assert ("qemu-pr-helper: Unix socket can't be set when using socket "
            'activation' in place.log())
    assert not os.path.exists(place.socket + '2')


@pytest.mark.parametrize('kind', ['datagram', 'idle unix', 'packets', 'tcp',
                                  'pair', 'file', 'fifo', 'closed'])
def test_what_is_passed_must_be_a_listening_stream_socket(place, kind):
    if kind == 'pair':
        passed = socket.socketpair()[0]
    elif kind in ('file', 'closed'):
        passed = open('/dev/null')
    elif kind == 'fifo':
        os.mkfifo(place.socket)
        passed = open(place.socket, 'r+b', buffering=0)
    else:
        passed = socket.socket(*KINDS[kind.split()[-1]])
        passed.bind(('127.0.0.1', 0) if kind == 'tcp' else place.socket)
        if kind in ('packets', 'tcp'):
            passed.listen()
    with passed:
        assert activated(place, passed, kind=kind).wait(20) == 1
    assert place.log().startswith('qemu-pr-helper: ')
    assert 'ocket activation' in place.log()


@pytest.mark.parametrize('is_activated', [False, True])
def test_few_clients_wait_in_line(place, is_activated):
    """Each newcomer waits behind them; the others wait in connect()."""
    with contextlib.ExitStack() as stack:
        if is_activated:
            passed = stack.enter_context(listener(place.socket, 4096))
            process = activated(place, passed)
        else:
            process = place.begin()
        assert place.serves()
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(BlockingIOError):
                for _ in range(30):
                    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    sock.setblocking(False)
                    sock.connect(place.socket)
        finally:
            process.send_signal(signal.SIGCONT)
        assert place.serves()
        assert stop(process) == 0


# Messages to a service manager. ----------------------------------------

@pytest.mark.parametrize('options', [[], ['--single-process']])
@pytest.mark.parametrize('first', '/@')
@pytest.mark.parametrize('length', [0, 107])    # 107: as long as can be
def test_a_service_manager_hears_of_start_and_stop(place, options, first,
                                                   length):
    """An abstract name is as long as the address says: no NULs after it."""
    name = first + place.open_dir[1:] + '/notify'.ljust(length, 'n')
    name = name[:length or None]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(name.replace('@', '\0'))
        process = place.begin(*options, wait=False,
                              env={'NOTIFY_SOCKET': name})
        assert manager.recv(4096).split(b'\n')[0] == b'READY=1'
        assert accepts(place.socket)
        assert place.serves()
        process.terminate()
        assert manager.recv(4096).split(b'\n')[0] == b'STOPPING=1'
        assert process.wait(20) == 0


def told(place, exec_pid, background):
    """What the manager hears of a life, if SYSTEMD_EXEC_PID is this ($$: the
    helper's own number, as it is started)."""
    name = place.open_dir + '/notify'
    options = ['-d', '-f', place.pid_file] if background else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.setblocking(False)
        process = subprocess.Popen(
            ['sh', '-c', 'SYSTEMD_EXEC_PID=%s exec "$@"' % exec_pid, 'sh',
             *place.command(options, None)], env={'NOTIFY_SOCKET': name})
        place.processes.append(process)
        wait_until(lambda: accepts(place.socket))
        assert place.serves()
        if background:
            assert process.wait(20) == 0
            with open(place.pid_file) as f:
                os.kill(int(f.read()), signal.SIGTERM)
            wait_until(lambda: lock_owner(place.pid_file) == 0)
        else:
            assert stop(process) == 0
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(4096))
        return heard


@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('pid', ['1', '', 'x', '$$x', '-$$', '$PPID', '0'])
def test_the_service_manager_of_another_process_hears_nothing(
        place, background, pid):
    """libvirtd gives the helper its own environment."""
    assert told(place, pid, background) == []


@pytest.mark.parametrize('background', [False, True])
def test_the_service_manager_of_this_process_hears_of_it(place, background):
    """With -d, that of the process that was started."""
    assert told(place, '$$', background) == [b'READY=1', b'STOPPING=1']


@pytest.mark.parametrize('name', ['', '@', 'relative', '/no/where',
                                  '@no-such', '/' + 200 * 'x'])
def test_a_service_manager_that_is_not_there_does_no_harm(place, name):
    process = place.begin(env={'NOTIFY_SOCKET': name})
    assert place.serves()
    assert stop(process) == 0


def keep_busy(name):
    """Sends as many messages as the kernel lets wait for who is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(name)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.send(b'')


def test_a_service_manager_that_is_busy_hears_of_the_start(place):
    """But it delays nobody's end."""
    name = place.dir + '/notify'
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(20)
        keep_busy(name)
        process = place.begin(env={'NOTIFY_SOCKET': name})
        time.sleep(.5)
        while manager.recv(4096) != b'READY=1':
            pass                # or recv() fails
        keep_busy(name)
        assert stop(process) == 0


def test_an_empty_name_is_no_service_managers(place):
    process = place.begin(env={'NOTIFY_SOCKET': ''}, stderr=subprocess.PIPE)
    assert stop(process) == 0 and b'NOTIFY' not in process.stderr.read()


@pytest.mark.parametrize('options', [[], ['--single-process']])
def test_a_client_that_floods_the_log_hides_nothing_of_the_process(place,
                                                                   options):
    """Here: that it cannot tell the service manager of its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place.dir + '/notify')
        process = place.begin(*options,
                              env={'NOTIFY_SOCKET': place.dir + '/notify'})
        keep_busy(place.dir + '/notify')
        null = os.open('/dev/null', os.O_RDWR)
        for _ in range(20):     # a warning for each
            with place.client() as client:
                client.read_in(null, READ_KEYS)
        os.close(null)
        assert stop(process) == 0
    assert 'cannot notify the service manager' in place.log()


# Privileges. ----------------------------------------

def powers(pid):
    """What a process may do, for comparison in one piece."""
    has = status_of(pid)
    return {name: has[name] for name in has
            if name.startswith('Cap') or name in ('Groups', 'NoNewPrivs')}


def reduced(keep=RAWIO, bounding=0):
    return {'CapInh': 0, 'CapPrm': keep, 'CapEff': keep, 'CapBnd': bounding,
            'CapAmb': 0, 'Groups': [], 'NoNewPrivs': ['1']}


def bounding_of(pid):
    return status_of(pid)['CapBnd']


def check_powers(place, process, expected, uid=None, gid=None):
    """The same for main and for a session, which is served by it."""
    uid = str(os.geteuid() if uid is None else uid)
    gid = str(os.getegid() if gid is None else gid)
    with place.client() as client:
        assert client.features is not None
        for pid in (process.pid, place.session(process)):
            # Main may still be on its way down when it accepts already.
            wait_until(lambda: status_of(pid)['NoNewPrivs'] == ['1'])
            assert powers(pid) == expected
            assert status_of(pid)['Uid'] == 4 * [uid]
            assert status_of(pid)['Gid'] == 4 * [gid]


@needs_root
def test_root_keeps_one_capability_and_no_groups(place):
    process = place.begin(preexec_fn=become(groups=[1, 2, 3]))
    check_powers(place, process, reduced())
    assert place.log() == ''


GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name


@needs_root
@pytest.mark.parametrize('options, uid, gid', [
    (['-u', 'nobody'], NOBODY.pw_uid, 0),
    (['-u', str(NOBODY.pw_uid)], NOBODY.pw_uid, 0),
    (['-u', '54321'], 54321, 0),                # in no database
    (['-g', GROUP], 0, NOBODY.pw_gid),
    (['-g', str(NOBODY.pw_gid)], 0, NOBODY.pw_gid),
    (['-g', '54321'], 0, 54321),
    (['-u', 'nobody', '-g', GROUP], NOBODY.pw_uid, NOBODY.pw_gid),
    (['-g', '7', '-u', '6'], 6, 7),
    (['-u', 'root', '-g', 'root'], 0, 0),
    (['-u', '0', '-g', '0'], 0, 0)])
def test_user_and_group_are_changed_and_the_capability_kept(
        place, options, uid, gid):
    process = place.begin(*options, preexec_fn=become(groups=[1, 2]))
    check_powers(place, process, reduced(), uid, gid)
    assert place.log() == ''
    assert stop(process) == 0


def test_the_capability_of_a_user_namespace_is_worth_a_warning(place):
    """In rootless podman, or pods with hostUsers: false."""
    prefix = ['unshare', '-Ur']
    if subprocess.run([*prefix, 'true'], stderr=subprocess.DEVNULL).returncode:
        pytest.skip('no user namespace is to be had')
    begin_by(place, prefix)
    assert place.serves()
    assert ('warning: CAP_SYS_RAWIO is only that of a user namespace'
            in place.log())


@needs_root
def test_the_daemon_drops_its_privileges_too(place):
    result = place.run('-d', '-f', place.pid_file, '-u', 'nobody',
                       preexec_fn=become(groups=[1]))
    assert result == (0, '', '')
    with open(place.pid_file) as f:
        pid = int(f.read())
    assert powers(pid) == reduced()             # at once: the caller is told
    assert status_of(pid)['Uid'] == 4 * [str(NOBODY.pw_uid)]


def setpriv(*options):
    if shutil.which('setpriv') is None:
        pytest.skip('needs setpriv (util-linux)')
    return ['setpriv', *options]


def begin_by(place, prefix, *options):
    place.binary, binary = prefix[0], place.binary
    place.command = lambda rest, path: [
        *prefix, binary, '-k', path or place.socket, *rest]
    return place.begin(*options)


@needs_root
def test_inheritable_and_ambient_capabilities_are_emptied(place):
    process = begin_by(place, setpriv(
        '--inh-caps=+sys_rawio,+net_admin', '--ambient-caps=+net_admin'))
    check_powers(place, process, reduced())


@needs_root
def test_a_user_with_the_ambient_capability_keeps_it(place):
    """As a unit with User= and AmbientCapabilities= starts us."""
    process = begin_by(place, setpriv(
        '--reuid=54321', '--regid=54321', '--clear-groups',
        '--inh-caps=+sys_rawio', '--ambient-caps=+sys_rawio'))
    check_powers(place, process, reduced(
        bounding=bounding_of(os.getpid())), 54321, 54321)
    assert 'CAP_SYS_RAWIO' not in place.log()


@needs_root
@pytest.mark.parametrize('groups', [[], [1]])
def test_root_in_a_container_with_that_capability_alone(place, groups):
    process = place.begin(
        preexec_fn=become(only=[SYS_RAWIO], groups=groups))
    expected = reduced(bounding=RAWIO)
    expected['Groups'] = [str(group) for group in groups]
    check_powers(place, process, expected)
    assert 'bounding set' in place.log()
    assert ('groups' in place.log()) == (groups != [])
    assert 'CAP_SYS_RAWIO' not in place.log()
    assert stop(process) == 0


@needs_root
def test_root_without_setpcap_logs_and_runs(place):
    process = place.begin(preexec_fn=become(without=[SETPCAP]))
    check_powers(place, process, reduced(
        bounding=bounding_of(os.getpid()) & ~(1 << SETPCAP)))
    assert 'bounding set' in place.log()


@needs_root
def test_root_without_setgid_logs_and_runs(place):
    process = place.begin(preexec_fn=become(without=[SETGID], groups=[1]))
    expected = reduced()
    expected['Groups'] = ['1']
    check_powers(place, process, expected)
    assert 'groups' in place.log()


@needs_root
def test_root_without_the_capability_warns_once_and_runs(place):
    process = place.begin(preexec_fn=become(without=[SYS_RAWIO]))
    check_powers(place, process, reduced(keep=0))
    assert place.log().count('CAP_SYS_RAWIO') == 1


@needs_root
@pytest.mark.parametrize('option, missing', [
    ('-u', SETUID), ('-u', SETGID), ('-u', SETPCAP), ('-g', SETGID),
    ('-g', SETPCAP)])
def test_a_change_that_is_asked_for_and_impossible_is_fatal(
        place, option, missing):
    result = place.run(option, '54321',
                       preexec_fn=become(without=[missing], groups=[1]))
    assert result.status == 1, result
    assert result.err.startswith('qemu-pr-helper: ')
    assert not accepts(place.socket)


def test_an_ordinary_user_is_warned_once_and_served(place):
    process = place.begin(preexec_fn=as_user())
    uid, gid = None, None
    if os.geteuid() == 0:
        uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    expected = reduced(keep=0, bounding=bounding_of(os.getpid()))
    expected['Groups'] = status_of(process.pid)['Groups']
    check_powers(place, process, expected, uid, gid)
    assert place.serves()
    assert place.log().count('CAP_SYS_RAWIO') == 1
    assert place.log().startswith('qemu-pr-helper: warning: ')
    assert place.log().count('\n') == 1
    assert stop(process) == 0


@pytest.mark.parametrize('options', [['-u', '1'], ['-g', '1'], ['-u', '0'],
                                     ['-u', '1', '-g', '1']])
def test_an_ordinary_user_cannot_become_another(place, options):
    result = place.run(*options, preexec_fn=as_user())
    assert result.status == 1, result
    assert result.err.startswith('qemu-pr-helper: ')
    assert not accepts(place.socket)


# Descriptors. ----------------------------------------

def test_main_keeps_what_it_inherits(place):
    """libvirt takes a free lock on such a descriptor for our death."""
    names = [place.open_dir + '/locked', place.open_dir + '/flocked']
    flocked = os.open(names[1], os.O_RDWR | os.O_CREAT)
    fcntl.flock(flocked, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    locked = os.open(names[0], os.O_RDWR | os.O_CREAT, 0o644)
    high = fcntl.fcntl(locked, fcntl.F_DUPFD, 500)
    passed = [locked, high, flocked, writer]
    process = place.begin(
        preexec_fn=lambda: fcntl.lockf(high, fcntl.LOCK_EX), pass_fds=passed)
    for fd in passed:
        os.close(fd)

    def all_held():
        with open(names[1]) as f:
            with pytest.raises(BlockingIOError):
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return (lock_owner(names[0]) == process.pid
                and select.select([reader], [], [], 0) == ([], [], []))
    assert all_held()
    with place.client() as client:
        client.send(bytes(16))
        assert client.closed()
        assert all_held()
    wait_until(lambda: children(process.pid) == [])
    assert all_held()
    with place.client():
        process.kill()                          # with a session alive
        process.wait()
        wait_until(lambda: select.select([reader], [], [], 0)[0])
    assert os.read(reader, 1) == b''
    assert lock_owner(names[0]) == 0
    with open(names[1]) as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(reader)


def misbehave(place):
    """A client about whom -v has something to say; it sees none of it."""
    with place.client() as client:
        client.send(bytes(16))
        assert client.closed()


@pytest.mark.parametrize('closed', [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_streams_that_are_closed_at_start(place, closed):
    process = place.begin(
        '-v', preexec_fn=lambda: [os.close(fd) for fd in closed])
    for _ in range(3):
        misbehave(place)
    if os.geteuid() == 0:
        opened = {int(fd) for fd in os.listdir('/proc/%d/fd' % process.pid)}
        assert opened >= {0, 1, 2}
        for fd in closed:
            assert (os.readlink('/proc/%d/fd/%d' % (process.pid, fd))
                    == '/dev/null')
    assert stop(process) == 0


@pytest.mark.parametrize('kind', ['pipe', 'socket'])
@pytest.mark.parametrize('options', [['-v'], ['-v', '--single-process']])
def test_stderr_whose_reader_has_gone(place, kind, options):
    reader, writer = (os.pipe() if kind == 'pipe' else
                      [s.detach() for s in socket.socketpair()])
    process = place.begin(*options, stderr=writer)
    os.close(writer)
    os.close(reader)
    for _ in range(3):
        misbehave(place)
    assert place.serves()
    assert stop(process) == 0


@pytest.mark.parametrize('kind', ['pipe', 'socket'])
@pytest.mark.parametrize('user', ['same', 'ordinary'])
@pytest.mark.parametrize('options', [['-v'], ['-v', '--single-process']])
def test_stderr_that_is_full_and_blocks(place, kind, user, options):
    """And no other process finds its descriptor non-blocking afterwards.

    Another user's pipe cannot be opened anew to make it non-blocking.
    """
    reader, writer = (os.pipe() if kind == 'pipe' else
                      [s.detach() for s in socket.socketpair()])
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(1000))
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b'.')
    os.set_blocking(writer, True)
    process = place.begin(*options, '-T', 'no-such', stderr=writer,
                          preexec_fn=user == 'ordinary' and as_user() or None)
    for _ in range(3):
        misbehave(place)
    assert place.serves()
    assert os.get_blocking(writer)
    assert stop(process) == 0
    os.close(reader)
    os.close(writer)


def test_stderr_that_is_read_again_tells_how_much_was_lost(place):
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, 1031, 4096)      # F_SETPIPE_SZ
    os.write(writer, bytes(size))
    place.begin('-v', '--single-process', stderr=writer)
    os.close(writer)
    for _ in range(3):
        misbehave(place)
    assert os.read(reader, size) == bytes(size)
    misbehave(place)
    wait_until(lambda: select.select([reader], [], [], 0)[0])
    text = os.read(reader, size).decode()
    assert text.startswith('qemu-pr-helper: ') and 'lost' in text
    os.close(reader)


def test_the_daemon_survives_a_caller_without_streams(place):
    result = subprocess.run(
        [place.binary, '-k', place.socket, '-d', '-f', place.pid_file],
        preexec_fn=lambda: os.closerange(0, 3), timeout=20)
    assert result.returncode == 0
    misbehave(place)


@pytest.fixture
def empty_root(place):
    """A directory with the helper, its libraries and nothing else in it."""
    root = place.dir + '/root'
    files = [place.binary]
    ldd = subprocess.run(['ldd', place.binary], text=True, capture_output=True)
    if ldd.returncode == 0:             # it is not a static one
        files += re.findall(r'(/\S+) \(', ldd.stdout)
    for file in files:
        os.makedirs(os.path.dirname(root + file), exist_ok=True)
        shutil.copy(file, root + file)
    os.makedirs(root + place.open_dir)
    try:
        subprocess.run([place.binary, '--version'], stdout=subprocess.DEVNULL,
                       preexec_fn=lambda: os.chroot(root), check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip('cannot run in a root of its own')
    return root


@needs_root
def test_dev_null_is_not_needed_if_the_descriptors_are_open(place, empty_root):
    process = place.begin(wait=False, preexec_fn=lambda: os.chroot(empty_root))
    wait_until(lambda: accepts(empty_root + place.socket)
               or process.poll() is not None)
    assert place.serves(empty_root + place.socket), place.log()
    assert stop(process) == 0


@needs_root
def test_dev_null_is_not_needed_in_the_background(place, empty_root):
    result = place.run('-d', '-f', place.pid_file,
                       preexec_fn=lambda: os.chroot(empty_root))
    assert result == (0, '', '')
    assert place.serves(empty_root + place.socket)


@needs_root
@pytest.mark.parametrize('fd', [0, 1])
def test_dev_null_is_needed_for_a_closed_descriptor(place, empty_root, fd):
    def prepare():
        os.chroot(empty_root)
        os.close(fd)
    result = place.run(preexec_fn=prepare)
    assert result.status == 1
    assert 'descriptor %d is closed, and /dev/null' % fd in result.err
