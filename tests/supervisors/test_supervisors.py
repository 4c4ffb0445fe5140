"""What is in contrib/ under the supervisors that it is for, on a real disk.

Runs as root inside tests/lib/uml.sh. The supervisors are Debian's; those that
fetch.sh has fetched are laid over /usr and /etc as if installed, and the
helper under test becomes /usr/bin/qemu-pr-helper. systemd is process 1 of a
PID namespace, with units of contrib/ and empty targets and no others.

Must never touch a machine that is not that guest's, and must leave no process
behind.
"""
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time

import pytest

from helper import BUILD, TOP, program
from launch import status_of, wait_until
from prclient import READ_KEYS, Client, Closed, GOOD, open_device

pytestmark = pytest.mark.skipif(not os.path.isdir('/run/target/pr'),
                                reason='not inside tests/lib/uml.sh')

SOCKET = '/run/qemu-pr-helper.sock'
BINARY = '/usr/bin/qemu-pr-helper'
MOVED = '/usr/lib/qemu-pr-helper'
CONTRIB = TOP + '/contrib'
PROBE = os.path.dirname(os.path.abspath(__file__)) + '/probe.py'


def run(*command, check=True, **popen):
    done = subprocess.run(command, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **popen)
    assert not check or done.returncode == 0, (command, done.stdout)
    return done.stdout


def mount(kind, where, *options, source='none'):
    os.makedirs(where, exist_ok=True)
    run('mount', '-t', kind, '-o', ','.join(options), source, where)


def overlay(where, *layers):
    """The directories that are there, upon each other, and writable."""
    mine = '/run/overlay' + where
    os.makedirs(mine + '/upper')
    os.makedirs(mine + '/work')
    layers = [where] + [layer for layer in layers if os.path.isdir(layer)]
    mount('overlay', where, 'lowerdir=' + ':'.join(layers),
          'upperdir=%s/upper' % mine, 'workdir=%s/work' % mine)


@pytest.fixture(scope='module', autouse=True)
def installed():
    run('/run/insmod', 'overlay')
    fetched = BUILD + '/debian'
    usr = fetched + '/usr'
    if os.path.isdir(usr):      # a layer may not lie inside of another
        usr = '/run/overlay/fetched'
        mount('hostfs', usr, fetched + '/usr')
    overlay('/usr', usr, fetched)
    overlay('/etc', fetched + '/etc')
    shutil.copy(program('HELPER', 'qemu-pr-helper'), BINARY)
    mount('cgroup2', '/sys/fs/cgroup', 'nsdelegate')


# The helper, and what a client sees of it. ---------------------------------

def processes(path):
    """pid: parent of all that run this program."""
    found = {}
    for entry in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):
            if os.readlink('/proc/%s/exe' % entry) == path:
                found[int(entry)] = int(status_of(int(entry))['PPid'][0])
    return found


def main_pid():
    helpers = processes(BINARY)
    main, = [pid for pid in helpers if helpers[pid] not in helpers]
    return main


def is_served(client):
    disk = open_device('/dev/sda')
    try:
        replies = [client.read_in(disk, READ_KEYS) for _ in range(3)]
    finally:
        os.close(disk)
    return replies[-1].status == GOOD   # after unit attentions, if any


def connect_again():
    """As often as QEMU does, and as slowly."""
    for _ in range(5):
        with contextlib.suppress(OSError, Closed):
            return Client(SOCKET)
        time.sleep(1)
    return Client(SOCKET)


# The supervisors. -----------------------------------------------------------

class Supervisor:
    def close(self):
        pass

    def helpers(self):
        """Processes of its own that it should have ended by now."""
        return {}


class Systemd(Supervisor):
    UNITS = '/run/systemd/system'
    socket_unit = True

    def __init__(self, drop_ins=(), service=None):
        shutil.rmtree(self.UNITS, ignore_errors=True)
        os.makedirs(self.UNITS)
        for target in 'sysinit', 'basic', 'sockets', 'shutdown', 'multi-user':
            self.write(target + '.target', '[Unit]\nDefaultDependencies=no\n')
        if service:
            self.socket_unit = False
            self.write('qemu-pr-helper.service', service)
        else:
            for name in glob.glob(CONTRIB + '/systemd/qemu-pr-helper.*'):
                shutil.copy(name, self.UNITS)
        for name in drop_ins:
            self.drop_in(name)
        self.env = dict(os.environ, SYSTEMD_UNIT_PATH=self.UNITS)
        self.process = subprocess.Popen(
            ['unshare', '-pfm', '--mount-proc', '--kill-child', 'env', '-i',
             'container=test', 'PATH=' + os.environ['PATH'],
             'SYSTEMD_UNIT_PATH=' + self.UNITS,     # no others
             'SYSTEMD_GENERATOR_PATH=/none', '/lib/systemd/systemd',
             '--system', '--unit=multi-user.target', '--log-target=kmsg'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_until(lambda: self.pids())
        self.pid, = self.pids()
        wait_until(lambda: 'running' in self.control('is-system-running',
                                                     check=False))

    def pids(self):
        return [pid for pid, parent in processes(
            '/usr/lib/systemd/systemd').items() if parent == self.process.pid]

    def write(self, name, text):
        os.makedirs(os.path.dirname(os.path.join(self.UNITS, name)),
                    exist_ok=True)
        with open(os.path.join(self.UNITS, name), 'w') as f:
            f.write(text)

    def drop_in(self, name, text=None):
        if text is None:
            with open(CONTRIB + '/systemd/' + name) as f:
                text = f.read()
        self.write('qemu-pr-helper.service.d/' + name, text)

    def inside(self, *command, **options):
        return run('nsenter', '-t', str(self.pid), '-p', '-m', *command,
                   **options)

    def control(self, *arguments, **options):
        return self.inside('systemctl', *arguments, **options)

    def start(self):
        self.control('start', 'qemu-pr-helper.service')
        if not self.socket_unit:        # it is not told when that is
            wait_until(lambda: os.path.exists(SOCKET))

    def restart(self):
        self.control('restart', 'qemu-pr-helper.service')
        if not self.socket_unit:
            time.sleep(0.5)

    def stop(self):
        self.control('stop', 'qemu-pr-helper.service')
        if self.socket_unit:
            self.control('stop', 'qemu-pr-helper.socket')

    def close(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self.pids())
        # The next one would add its rules for devices to those of this one.
        for path, _, _ in os.walk('/sys/fs/cgroup', topdown=False):
            if path != '/sys/fs/cgroup':
                wait_until(lambda: self.removed(path))

    @staticmethod
    def removed(path):
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return not os.path.exists(path)


def systemd_no_multipath():
    return Systemd(['no-multipath.conf'])


def systemd_of_qemu():
    """A unit as one is for QEMU's helper, which makes its own socket."""
    return Systemd(service='''
[Service]
Type=simple
ExecStart=/usr/bin/qemu-pr-helper
WorkingDirectory=/tmp
UMask=0077
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths=/var/run
RestrictAddressFamilies=AF_UNIX
Restart=always
RestartSec=0
''')


class OpenRC(Supervisor):
    def __init__(self):
        if not os.path.ismount('/etc/init.d'):  # no other scripts
            mount('tmpfs', '/etc/init.d')
        shutil.copy(CONTRIB + '/openrc/qemu-pr-helper', '/etc/init.d')
        for name in ('exclusive', 'daemons', 'options', 'scheduled', 'started',
                     'starting', 'stopping', 'inactive', 'failed'):
            os.makedirs('/run/openrc/' + name, exist_ok=True)
        open('/run/openrc/softlevel', 'w').close()

    def service(self, verb):
        run('rc-service', 'qemu-pr-helper', verb)

    def start(self):
        self.service('start')

    def restart(self):
        self.service('restart')

    def stop(self):
        self.service('stop')

    def helpers(self):
        return processes('/usr/sbin/supervise-daemon')


class Runit(Supervisor):
    DIR = '/run/runit-services'

    def __init__(self):
        shutil.copytree(CONTRIB + '/runit/qemu-pr-helper',
                        self.DIR + '/qemu-pr-helper')
        open(self.DIR + '/qemu-pr-helper/down', 'w').close()
        self.process = subprocess.Popen(['runsvdir', '-P', self.DIR])
        wait_until(lambda: os.path.exists(
            self.DIR + '/qemu-pr-helper/supervise/ok'))

    def service(self, verb):
        run('sv', verb, self.DIR + '/qemu-pr-helper')

    def start(self):
        self.service('start')

    def restart(self):
        self.service('restart')

    def stop(self):
        self.service('stop')

    def close(self):
        run('sv', 'exit', self.DIR + '/qemu-pr-helper')
        self.process.send_signal(signal.SIGHUP)
        self.process.wait(20)
        shutil.rmtree(self.DIR)


class S6(Supervisor):
    DIR = '/run/s6-services'

    def __init__(self):
        shutil.copytree(CONTRIB + '/s6/qemu-pr-helper',
                        self.DIR + '/qemu-pr-helper')
        open(self.DIR + '/qemu-pr-helper/down', 'w').close()
        self.process = subprocess.Popen(['s6-svscan', self.DIR])
        wait_until(lambda: subprocess.run(
            ['s6-svok', self.DIR + '/qemu-pr-helper']).returncode == 0)

    def service(self, *options):
        run('s6-svc', '-T', '20000', *options, self.DIR + '/qemu-pr-helper')

    def start(self):
        self.service('-wU', '-u')

    def restart(self):
        self.service('-wR', '-r')

    def stop(self):
        self.service('-wD', '-d')

    def helpers(self):
        return processes('/usr/bin/s6-notifyoncheck')

    def close(self):
        run('s6-svscanctl', '-t', self.DIR)
        self.process.wait(20)
        shutil.rmtree(self.DIR)


SUPERVISORS = {'systemd': Systemd, 'systemd, no multipath':
               systemd_no_multipath, 'systemd, unit of QEMU': systemd_of_qemu,
               'OpenRC': OpenRC, 'runit': Runit, 's6': S6}


@contextlib.contextmanager
def running(make):
    supervisor = make()
    try:
        yield supervisor
    finally:
        supervisor.close()
        for pid in {**processes(BINARY), **processes(MOVED)}:
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)


@pytest.fixture(params=SUPERVISORS)
def supervisor(request):
    with running(SUPERVISORS[request.param]) as supervisor:
        yield supervisor


@pytest.fixture
def systemd():
    with running(Systemd) as supervisor:
        yield supervisor


# What is true of all of them. ------------------------------------------------

def test_it_starts_serves_restarts_with_a_client_and_stops(supervisor):
    supervisor.start()
    assert stat.S_IMODE(os.stat(SOCKET).st_mode) & 0o077 == 0
    with Client(SOCKET) as client:              # at once: it is ready
        assert is_served(client)
        before = main_pid()
        supervisor.restart()
        assert client.closed()
    with Client(SOCKET) as client:
        assert is_served(client)
        assert main_pid() != before
        supervisor.stop()
        assert client.closed()
    assert not os.path.exists(SOCKET)
    wait_until(lambda: processes(BINARY) == {})
    assert supervisor.helpers() == {}


def test_a_helper_that_dies_is_started_again(supervisor):
    supervisor.start()
    for _ in range(2):
        with Client(SOCKET) as client:
            assert is_served(client)
            before = main_pid()
            os.kill(before, signal.SIGKILL)
            assert client.closed()
        with connect_again() as client:
            assert is_served(client)
            assert main_pid() != before
    supervisor.stop()
    assert not os.path.exists(SOCKET)
    wait_until(lambda: processes(BINARY) == {})


@pytest.fixture
def slow():
    """The helper takes its time until it listens."""
    os.rename(BINARY, MOVED)
    with open(BINARY, 'w') as f:
        f.write('#!/bin/sh\nsleep 1.5\nexec %s "$@"\n' % MOVED)
    os.chmod(BINARY, 0o755)
    yield
    os.rename(MOVED, BINARY)


@pytest.mark.parametrize('make', [Systemd, OpenRC, Runit, S6])
def test_a_start_takes_until_the_helper_listens(slow, make):
    with running(make) as supervisor:
        supervisor.start()
        with Client(SOCKET) as client:
            assert is_served(client)
            supervisor.restart()
        with Client(SOCKET) as client:
            assert is_served(client)
        supervisor.stop()


# systemd. -------------------------------------------------------------------

@pytest.mark.parametrize('drop_ins, exposure', [([], 20),
                                                (['no-multipath.conf'], 10)])
def test_systemd_finds_little_to_object_to(drop_ins, exposure):
    """QEMU's unit has an exposure of 85, in tenths as these."""
    with running(lambda: Systemd(drop_ins)) as systemd:
        assert systemd.inside(
            'systemd-analyze', 'verify', '--man=no', 'qemu-pr-helper.socket',
            'qemu-pr-helper.service', env=systemd.env).strip() == ''
        systemd.inside('systemd-analyze', 'security', '--offline=yes',
                       '--threshold=%d' % exposure, 'qemu-pr-helper.service',
                       env=systemd.env)


def test_the_first_connection_starts_the_service(systemd):
    systemd.control('start', 'qemu-pr-helper.socket')
    assert processes(BINARY) == {}
    with Client(SOCKET) as client:
        assert is_served(client)
    assert 'active' == systemd.control('is-active',
                                       'qemu-pr-helper.service').strip()


def test_no_connection_fails_while_the_service_restarts(systemd):
    systemd.start()
    done, failures, served = threading.Event(), [], []

    def clients():
        while not done.is_set():
            try:
                with Client(SOCKET, hello=False) as client:
                    served.append(client.closed())
            except OSError as error:
                failures.append(error)
            time.sleep(0.01)
    thread = threading.Thread(target=clients)
    thread.start()
    for _ in range(3):
        systemd.restart()
    count = len(served)
    wait_until(lambda: len(served) > count)
    done.set()
    thread.join()
    assert failures == []


def test_the_helper_has_what_the_unit_leaves_it(systemd):
    systemd.start()
    with Client(SOCKET):
        helpers = processes(BINARY)
        assert len(helpers) == 2
        for pid in helpers:
            status = status_of(pid)
            assert (status['CapEff'], status['CapBnd']) == (1 << 17, 0)
            assert status['Uid'] == 4 * ['0'] and status['Groups'] == []


def test_the_helper_is_not_root_where_there_is_no_multipath():
    with running(systemd_no_multipath) as systemd:
        systemd.start()
        with Client(SOCKET):
            for pid in processes(BINARY):
                assert status_of(pid)['CapEff'] == 1 << 17
                assert '0' not in status_of(pid)['Uid']


# What is in the way of code in the helper's place, and what is not.
EITHER = {'read /sys': 'ok', 'mount': 'EPERM', 'make a user namespace': 'EPERM',
          'make an internet socket': 'EAFNOSUPPORT'}
MULTIPATH = {'open a disk to read': 'ok', 'open a disk to write': 'EPERM',
             'open /dev/sg0': 'EPERM', 'write a file in /run': 'EROFS',
             'write a file in /sys': 'EROFS', 'connect to multipathd': 'ok',
             'connect to multipathd, abstract': 'ok'}
NO_MULTIPATH = {'open a disk to read': 'EACCES',
                'open a disk to write': 'EACCES', 'open /dev/sg0': 'EACCES',
                'write a file in /run': 'EROFS',
                'write a file in /sys': 'EACCES',
                'connect to multipathd': 'EACCES',
                'connect to multipathd, abstract': 'ECONNREFUSED'}


@pytest.mark.parametrize('drop_ins, expected', [
    ([], {**EITHER, **MULTIPATH}),
    (['no-multipath.conf'], {**EITHER, **NO_MULTIPATH})],
    ids=['multipath', 'no multipath'])
def test_code_in_the_helpers_place_can_do_this_only(drop_ins, expected):
    probe = '''
[Service]
Type=oneshot
Restart=no
ExecStart=
ExecStart=%s -B %s
StandardOutput=truncate:/run/probe
''' % (os.environ['PYTHON'], shutil.copy(PROBE, '/run'))   # no /tmp there
    names = '/run/multipathd.socket', \
        '\0/org/kernel/linux/storage/multipathd'
    with contextlib.ExitStack() as stack:
        for name in names:
            listener = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(name)
            listener.listen()
        stack.callback(os.unlink, names[0])
        systemd = stack.enter_context(running(lambda: Systemd(drop_ins)))
        systemd.drop_in('zz-probe.conf', probe)
        systemd.control('daemon-reload')
        systemd.control('start', 'qemu-pr-helper.service')
        with open('/run/probe') as f:
            assert json.load(f) == expected


def test_the_journal_has_the_priorities(systemd):
    """And what the helper says in the background comes there as well."""
    for name in ('systemd-journald.service', 'systemd-journald.socket',
                 'systemd-journald-dev-log.socket'):
        shutil.copy('/usr/lib/systemd/system/' + name, systemd.UNITS)
    systemd.drop_in('verbose.conf', '[Service]\nExecStart=\nExecStart=' +
                    BINARY + ' -v --max-clients=1\n')
    systemd.control('daemon-reload')
    systemd.control('start', 'systemd-journald.service',
                    'systemd-journald-dev-log.socket')
    systemd.start()

    def messages():
        systemd.inside('journalctl', '--sync')
        lines = systemd.inside('journalctl', '-o', 'json', '-t',
                               'qemu-pr-helper').splitlines()
        return [(m['_TRANSPORT'], m['PRIORITY'],
                 m['MESSAGE']) for m in map(json.loads, lines)]

    def evict(path):
        with Client(path) as first, Client(path):
            assert first.closed()

    def has(transport, priority, text):
        return [m for m in messages() if m[:2] == (transport, priority)
                and text in m[2] and '<' not in m[2]]
    wait_until(lambda: messages() is not None)
    assert [m for m in messages() if m[1] != '6'] == []
    evict(SOCKET)
    wait_until(lambda: has('stdout', '4', 'warning: 1 clients'))
    assert has('stdout', '6', 'connected')
    systemd.inside(BINARY, '-d', '-v', '--max-clients=1', '-k', '/run/other',
                   '-f', '/run/other.pid')
    evict('/run/other')
    wait_until(lambda: has('syslog', '4', 'warning: 1 clients'))
    assert has('syslog', '6', 'connected')
