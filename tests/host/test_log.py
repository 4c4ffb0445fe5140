"""Where messages go, and as what: the journal, and syslog in the background.

syslogd is a socket of the test's own: the helper is started in a mount
namespace where a directory of the test's is /dev. Nothing here may touch the
machine's own /dev/log, or need a syslogd or a journal.
"""
import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time

import pytest

from launch import as_user, children, place, stop, wait_until
from prclient import Closed

IN_OUR_DEV = ('touch "$1/null" && mount --bind /dev/null "$1/null" && '
              'mount --rbind "$1" /dev && shift && exec "$@"')


def may_mount():
    return subprocess.run(['unshare', '-m', 'true'],
                          stderr=subprocess.DEVNULL).returncode == 0


def misbehave(place):
    with place.client() as client:
        client.send(bytes(16))
        assert client.closed()


# The journal. ----------------------------------------

def stream_of(fd):
    st = os.fstat(fd)
    return '%d:%d' % (st.st_dev, st.st_ino)


@pytest.fixture(params=['socket', 'pipe'])
def stderr(request):
    """Two descriptors: what the helper writes to the second."""
    pair = (os.pipe() if request.param == 'pipe' else
            [s.detach() for s in socket.socketpair()])
    yield pair
    for fd in pair:
        os.close(fd)


def lines(fd, count, seconds=20):
    text, end = '', time.monotonic() + seconds
    while text.count('\n') < count:
        assert select.select([fd], [], [], end - time.monotonic())[0], text
        text += os.read(fd, 4096).decode()
    return text.splitlines()


@pytest.mark.parametrize('options', [[], ['--single-process']])
def test_lines_to_the_journal_begin_with_their_priority(place, stderr,
                                                        options):
    reader, writer = stderr
    env = {'JOURNAL_STREAM': stream_of(writer)}
    process = place.begin('-v', *options, stderr=writer, env=env,
                          preexec_fn=as_user())
    misbehave(place)
    found = lines(reader, 3)
    assert [line for line in found if line.startswith(
        '<4>qemu-pr-helper: warning: no CAP_SYS_RAWIO')], found
    assert [line for line in found
            if line.startswith('<6>qemu-pr-helper: client')], found
    assert all(re.match('<[346]>qemu-pr-helper: [^<]', line)
               for line in found), found
    assert not any(re.search(r'\d:\d\d', line) for line in found), found
    process.send_signal(signal.SIGUSR1)
    last = []       # a client may be seen to leave before, or to be there yet
    while not any(line.startswith('<5>qemu-pr-helper: clients: ')
                  for line in last):
        last += lines(reader, 1)
    assert all(re.match('<[56]>qemu-pr-helper: client', line)
               for line in last), last
    assert stop(process) == 0


def test_an_error_of_the_start_is_one_in_the_journal(place, stderr):
    reader, writer = stderr
    process = place.begin(path='relative', wait=False, stderr=writer,
                          env={'JOURNAL_STREAM': stream_of(writer)})
    assert process.wait(20) == 1
    assert lines(reader, 1)[0].startswith('<3>qemu-pr-helper: ')


@pytest.mark.parametrize('stream', [None, '', 'x', '0:0', '{0} ', '{0}1',
                                    '1{0}'])
def test_a_stderr_that_is_not_the_journal_gets_no_priority(place, stderr,
                                                           stream):
    reader, writer = stderr
    env = {} if stream is None else {
        'JOURNAL_STREAM': stream.format(stream_of(writer))}
    process = place.begin(path='relative', wait=False, stderr=writer, env=env)
    assert process.wait(20) == 1
    assert lines(reader, 1)[0].startswith('qemu-pr-helper: ')


# syslog. ----------------------------------------

class Syslogd:
    def __init__(self, directory):
        self.path = directory + '/log'
        self.received = []

    def start(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        os.chmod(self.path, 0o666)

    def stop(self):
        self.sock.close()
        os.unlink(self.path)

    def wait(self, pattern, seconds=20):
        """Until a message has come that matches; returns the match."""
        self.sock.settimeout(seconds)
        while True:
            message = self.sock.recv(4096).decode()
            self.received.append(message)
            found = re.search(pattern, message)
            if found:
                return found

    def drain(self):
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.received.append(self.sock.recv(4096).decode())


@pytest.fixture
def syslogd(place):
    if not may_mount():
        pytest.skip('needs root with CAP_SYS_ADMIN')
    directory = place.dir + '/dev'
    os.mkdir(directory)
    binary, place.binary = place.binary, 'unshare'
    place.command = lambda options, path: [
        'unshare', '-m', 'sh', '-c', IN_OUR_DEV, 'sh', directory,
        binary, '-k', path or place.socket, *options]
    daemon = Syslogd(directory)
    daemon.start()
    yield daemon


def background(place, *options):
    """Start a helper in the background; returns its pid."""
    assert place.run('-d', '-f', place.pid_file, *options) == (0, '', '')
    with open(place.pid_file) as f:
        return int(f.read())


MODES = pytest.mark.parametrize('options', [
    ['-v'], ['-v', '--single-process'], ['-v', '-u', 'nobody']])


@MODES
def test_in_the_background_messages_go_to_syslog(place, syslogd, options):
    pid = background(place, *options)
    misbehave(place)
    syslogd.wait('without a descriptor')
    os.kill(pid, signal.SIGUSR1)
    syslogd.wait(r'^<29>qemu-pr-helper\[%d\]: clients: ' % pid)
    syslogd.received = [m for m in syslogd.received if m[:4] != '<29>']
    assert not any(re.search(r'\d:\d\d', m) for m in syslogd.received)
    assert all(re.fullmatch(r'<30>qemu-pr-helper\[%d\]: [^<\n]+' % pid, m)
               for m in syslogd.received), syslogd.received


def test_errors_and_warnings_have_their_priority(place, syslogd):
    pid = background(place, '--max-clients=1')
    with place.client() as client:
        wait_until(lambda: len(children(pid)) == 1)
        with place.client():
            syslogd.wait(r'^<28>qemu-pr-helper\[%d\]: warning: 1 client' % pid)
        assert client.closed()
    wait_until(lambda: children(pid) == [])
    with place.client() as client:
        wait_until(lambda: len(children(pid)) == 1)
        os.kill(children(pid)[0], signal.SIGKILL)
        syslogd.wait(r'^<27>qemu-pr-helper\[%d\]: session .* signal 9' % pid)


@MODES
@pytest.mark.parametrize('first', ['never there', 'gone'])
def test_a_syslogd_that_comes_later_is_found(place, syslogd, options, first):
    if first == 'never there':
        syslogd.stop()
    pid = background(place, *options)
    if first == 'gone':
        misbehave(place)
        syslogd.wait('')
        syslogd.stop()
    for _ in range(3):
        misbehave(place)
        assert place.serves()
    syslogd.start()
    misbehave(place)
    syslogd.wait(r'^<30>qemu-pr-helper\[%d\]: ' % pid)
    if not any('lines lost' in message for message in syslogd.received):
        syslogd.wait('lines lost')
    assert place.serves()


@MODES
def test_a_syslogd_that_reads_nothing_harms_nobody(place, syslogd, options):
    background(place, *options)
    for _ in range(30):                         # its queue holds ten
        misbehave(place)
    assert place.serves()
    syslogd.drain()
    with contextlib.suppress(Closed):
        misbehave(place)
    syslogd.wait('')


def test_an_error_of_the_start_goes_to_the_caller(place, syslogd):
    result = place.run('-d', '-f', '/no/such/directory/p')
    assert result.status == 1
    assert result.err.startswith('qemu-pr-helper: ')
    assert result.err.count('\n') == 1
    syslogd.drain()
    assert syslogd.received == []
