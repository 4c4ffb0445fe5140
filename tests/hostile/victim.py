"""The helper that tests/hostile attacks, and how to tell that it is unharmed.

SIM_HELPER is the program (default: the one with the simulated disk); any
helper will do: with SIM_HELPER=/usr/bin/qemu-pr-helper the battery shows what
QEMU's own makes of it. Each test is a numbered case, and its docstring says
what must hold; what must hold after every case is Victim.unharmed().

Nothing here may depend on what the helper does inside, wait without a limit,
need an option that QEMU's helper does not have, or kill a process that the
tests did not start.
"""
import ctypes
import os
import resource
import subprocess
import time

import pytest

import sim
from helper import Helper, program
from launch import needs_root, wait_until  # noqa: F401 (for the cases)
from prclient import CHECK_CONDITION, GOOD, READ_KEYS, Client, pr_in

BINARY = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
READ = pr_in(READ_KEYS)
PATIENCE = 10       # seconds: "at once" on a machine that is very busy
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    """The result of a libc call, or its errno as an OSError."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def option(name, value):
    """As a list of arguments; empty if this helper has no such option."""
    text = subprocess.run([BINARY, '--help'], stdout=subprocess.PIPE,
                          check=True, timeout=PATIENCE).stdout.decode()
    return ['%s=%s' % (name, value)] if name in text else []


def cpu_time(pid):
    with open('/proc/%d/stat' % pid) as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return sum(int(n) for n in fields[11:15]) / os.sysconf('SC_CLK_TCK')


def alive(pid):
    """And no zombie: init may be slow to bury those of others."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pids):
    """True once these processes are no more."""
    wait_until(lambda: not any(map(alive, pids)))
    return True


class Victim(Helper):
    """A helper, and a bystander: a client that is there all along."""

    def __init__(self, directory, *options, **popen):
        target = sim.Target(os.path.join(directory, 'state'))
        super().__init__(directory, BINARY, ('-v', *options),
                         env=target.env, **popen)
        self.nexus = target.nexus(0)
        self.disk = os.open(sim.device(directory + '/disk', 8, 0),
                            os.O_RDWR | os.O_CLOEXEC)
        try:
            self.arrive()
        except BaseException:
            self.process.kill()     # nobody else knows of it yet
            self.process.wait()
            raise

    def arrive(self):
        """The bystander comes, and everybody else has gone."""
        self.bystander = self.client(timeout=PATIENCE)
        self.usual = self.bystander.request(READ, self.disk)
        self.peace = self.census()
        for _ in range(10):
            time.sleep(0.01)
            self.peace = min(self.peace, self.census())

    def census(self):
        """How many processes and descriptors there are."""
        try:
            return len(self.sessions()), self.open_fds()
        except PermissionError:     # a zombie's are root's
            return self.census()

    def has_disk(self):
        return self.usual.status == GOOD

    def well_behaved(self):
        """A new client is served at once."""
        with self.client(timeout=PATIENCE) as client:
            assert client.request(READ, self.disk) == self.usual

    def serves(self):
        """Those who were there and those who come are served at once."""
        assert self.process.poll() is None, 'the helper has died'
        assert self.bystander.request(READ, self.disk) == self.usual
        self.well_behaved()

    def unharmed(self):
        self.serves()
        end = time.monotonic() + PATIENCE
        while any(now > then for now, then in zip(self.census(), self.peace)):
            assert time.monotonic() < end, \
                'left behind: (processes, descriptors) are %r, were %r' % (
                    self.census(), self.peace)
            time.sleep(0.005)
        assert not self.crashes()
        assert self.log().replace('\n', '').isprintable()

    def session(self, connect):
        """connect()'s result and the process that serves that client."""
        before = set(self.sessions())
        client = connect()
        new = set(self.sessions()) - before
        return client, new.pop() if new else self.pid

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.bystander.close()
        self.log_file.close()
        os.close(self.disk)


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    """The helper that as many cases as possible attack; a list."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    victims = []
    yield victims
    for victim in victims:
        assert victim.stop() == 0
        victim.end()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def victim(shared, tmp_path_factory):
    """It is there when the case begins, and unharmed when it has ended."""
    if not shared:
        shared.append(Victim(str(tmp_path_factory.mktemp('victim'))))
    yield shared[0]
    try:
        shared[0].unharmed()
    except BaseException:
        shared.pop().end()          # the next case is to get another
        raise


@pytest.fixture
def begin(shared, tmp_path):
    """A function that starts a helper of the case's own."""
    victims = []

    def begin(*options, **popen):
        directory = tmp_path / ('victim%d' % len(victims))
        directory.mkdir(mode=0o755)
        victims.append(Victim(str(directory), *options, **popen))
        return victims[-1]

    yield begin
    for victim in victims:
        victim.end()


@pytest.fixture
def with_disk(victim):
    if not victim.has_disk():
        pytest.skip('this helper has no simulated disk')


def refused(reply):
    return (reply.status == CHECK_CONDITION and reply.payload == b''
            and (reply.sense[2] & 15, *reply.sense[12:14])
            in ((0xb, 0, 6), (5, 0x20, 0)))


def connected(victim, number, hello=True):
    return [Client(victim.path, hello=hello, timeout=PATIENCE)
            for _ in range(number)]
