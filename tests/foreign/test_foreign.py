"""Other people's suites for persistent reservations, through QEMU's helper and
through ours, and straight to the disk for comparison.

Runs as root inside tests/lib/uml.sh and tests/lib/multipath.sh; lib/iscsi.py
says what is there. Nobody's program is changed: through-helper.c, preloaded,
takes the commands of those that use SG_IO to a helper, and iscsi_target.py
those of iscsi-test-cu. A disk is one iSCSI session, a map has two, and another
session is the rival.

Each foreign test must pass, or fail as FAILS says; and through a helper the
same commands must have been sent, with the same answers, as without one. So
none passes because it has left something out.
"""
import errno
import mmap
import os
import re
import shutil
import stat
import subprocess

import pytest

import iscsi
import prclient as pr
from cluster import ask
from direct import Direct
from helper import TOP, program, stock_program
from iscsi import direct, settle
from iscsi_target import Target

pytestmark = pytest.mark.skipif(not os.path.isdir('/run/target/pr'),
                                reason='not inside tests/lib/uml.sh')

THROUGH = program('THROUGH', 'build/tests/foreign/through-helper.so')
SG_PERSIST_TST = '/usr/share/doc/sg3-utils/examples/sg_persist_tst.sh'
PROTOCOL_MOST = 8192            # bytes that a command may ask a helper for
A, B = 'aaaa', 'bbbb'           # two nodes' keys, as the fence agents take them

# libiscsi's tests of reservations, by suite.
TYPES = 'EA', 'WE', 'EARO', 'WERO', 'EAAR', 'WEAR'
LIBISCSI = {
    'PrinReadKeys': ['Simple', 'Truncate'],
    'PrinServiceactionRange': ['Range'],
    'PrinReportCapabilities': ['Simple'],
    'ProutRegister': ['Simple'],
    'ProutReserve': ['Simple', *('Access' + name for name in TYPES),
                     *('Ownership' + name for name in TYPES)],
    'ProutClear': ['Simple'],
    'ProutPreempt': ['RemoveRegistration']}

# What fails, and why that is right.
FAILS = {
    ('map', 'ProutPreempt.RemoveRegistration'):
        'expects one key for each initiator; a map has it on each path'}

WAYS = [('direct', 'disk'), ('stock', 'disk'), ('ours', 'disk'),
        ('ours', 'map')]
DIRECT = {}             # test: what it sent without a helper, and the answers


def needs(*programs):
    for name in programs:
        if not shutil.which(name) and not os.path.exists(name):
            pytest.skip('not installed: ' + name)


# The disks. ------------------------------------------------------------------

class Disks:
    """Ours and the rival's name of a disk in /dev, and all of its nexuses."""

    def __init__(self, ours, rival, nexuses):
        self.ours, self.rival, self.nexuses = ours, rival, nexuses

    def reset(self):
        fds = [pr.open_device('/dev/' + name) for name in self.nexuses]
        for fd in fds:
            settle(fd)
        for action, key, sa_key in ((pr.REGISTER_AND_IGNORE, 0, 1),
                                    (pr.CLEAR, 1, 0)):
            done = direct.out(fds[0], action, key, sa_key)
            assert done.status == pr.GOOD
        for fd in fds:
            settle(fd)
            assert direct.keys(fd) == [] and direct.reservation(fd) is None
            os.close(fd)


class Machine:
    """LUN 0 is a map, LUN 1 a disk that multipathd leaves alone."""

    def __init__(self):
        self.sessions = iscsi.Machine(2).make_maps(1)
        self.map, = self.sessions.maps
        # A guest does not know that its disk is a map, and what it runs looks
        # at names.
        os.mknod('/dev/guest', stat.S_IFBLK | 0o600,
                 os.stat(self.map.device).st_rdev)

    def disks(self, where):
        if where == 'map':
            for command in 'unsetprstatus map ', 'unsetprkey map ':
                ask(command + self.map.name)
            disks = Disks('guest', self.map.rival,
                          [self.map.rival, *self.map.paths])
        else:
            ours, rival = self.sessions.paths[0][1], self.sessions.rivals[1]
            disks = Disks(ours, rival, [rival, ours])
        disks.reset()
        return disks


@pytest.fixture(scope='module')
def machine():
    needs('iscsid', 'iscsiadm', 'ip', 'multipathd')
    return Machine()


def can_write(name):
    block = mmap.mmap(-1, 512)          # at a page's start, for O_DIRECT
    fd = os.open('/dev/' + name, os.O_WRONLY | os.O_DIRECT)
    try:
        os.pwrite(fd, block, 0)
        return True
    except OSError as error:
        assert error.errno == errno.EBADE       # RESERVATION CONFLICT
        return False
    finally:
        os.close(fd)


# The ways to them. -----------------------------------------------------------

class Way:
    """Through a helper, or without one."""

    def __init__(self, name, where, directory, helper):
        self.name, self.where, self.helper = name, where, helper
        self.log = str(directory / 'commands')
        # A sleep of theirs is for who looks on.
        os.symlink(shutil.which('true'), directory / 'sleep')
        self.env = dict(os.environ, LD_PRELOAD=THROUGH, THROUGH_LOG=self.log,
                        PATH='%s:%s' % (directory, os.environ['PATH']),
                        PYTHONPYCACHEPREFIX='/run/pycache')
        self.env.pop('PYTHONDONTWRITEBYTECODE', None)
        if helper:
            self.env['THROUGH_HELPER'] = helper.path

    def run(self, *command):
        """Exit status and output."""
        done = subprocess.run(command, env=self.env, timeout=100, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        print(*command, done.returncode, done.stdout)
        return done.returncode, done.stdout

    def reserve(self, cdb, fd, data):
        """What iscsi_target.py is to do with a reservation's command."""
        if self.helper is None:
            reply = Direct().request(cdb, fd, data)
        else:
            shorter = cdb
            if not data and int.from_bytes(cdb[7:9], 'big') > PROTOCOL_MOST:
                shorter = pr.pr_in(cdb[1], PROTOCOL_MOST)
            with self.helper.client() as client:
                reply = client.request(shorter, fd, data)
        with open(self.log, 'a') as f:
            f.write('%s %02x%s\n' % (
                cdb[:10].hex(), reply.status, ' ' + pr.sense_code(reply.sense)
                if reply.status == pr.CHECK_CONDITION else ''))
        return reply

    def sent(self):
        with open(self.log) as f:
            return f.read().splitlines()

    def sent_the_same(self, test, least):
        """As without a helper, and at least so many commands."""
        sent = self.sent()
        if self.name == 'direct':
            DIRECT[test] = sent
        print('\n'.join(sent))
        assert len(sent) >= least
        assert sent == DIRECT.get(test, sent)


@pytest.fixture
def way(request, start, tmp_path):
    name, where = request.param
    helper = None
    if name != 'direct':
        helper = start(stock_program() if name == 'stock' else None)
    directory = tmp_path / 'way'
    directory.mkdir()
    yield Way(name, where, directory, helper)
    assert helper is None or helper.crashes() == []


def by(*ways):
    return pytest.mark.parametrize('way', ways, indirect=True,
                                   ids=['-'.join(pair) for pair in ways])


def claimed(suite, way):
    """What README says of how many pass."""
    with open(os.path.join(TOP, 'README.md')) as f:
        line, = re.findall(r'^\| %s[^|]*\| %s \|.*' % (suite, way.where),
                           f.read(), re.M)
    columns = ['direct', 'stock', 'ours']
    return line.split('|')[3 + columns.index(way.name)].strip()


@by(('direct', 'disk'))
def test_nothing_goes_past_a_helper_that_does_not_answer(way, machine):
    disks = machine.disks(way.where)
    way.env['THROUGH_HELPER'] = '/run/nobody'
    for what in ('--out', '--register', '--param-sark=1'), ('--in', '-k'):
        assert way.run('sg_persist', '-n', *what, '/dev/' + disks.ours)[0] != 0
    assert [line.split()[1:] for line in way.sent()] == [['failed']] * 2
    fd = pr.open_device('/dev/' + disks.rival)
    assert direct.keys(fd) == []
    os.close(fd)


# libiscsi. -------------------------------------------------------------------

def run_libiscsi(way, machine):
    """'SUITE.TEST' of those that failed, and of those that passed."""
    needs('iscsi-test-cu')
    disks = machine.disks(way.where)
    target = Target(way.reserve)
    try:
        said = way.run('iscsi-test-cu', '-V', '--dataloss',
                       '--test=ALL.Pr[io]*',
                       *('%s%s/0' % (target.url, disk)
                         for disk in (disks.ours, disks.rival)))[1]
    finally:
        target.close()
    assert not re.search(r'SKIPPED\] (?!REPORT_SUPPORTED_OPCODES)|'
                         r'RESERVE \w+ is not implemented', said)
    failed, passed = set(), set()
    for suite in said.split('\nSuite: ')[1:]:
        name = suite.split()[0]
        for test in suite.split('\n  Test: ')[1:]:
            result, = re.findall(r'^(passed|FAILED)', test, re.M)
            (passed if result == 'passed' else failed).add(
                '%s.%s' % (name, test.split()[0]))
    return failed, passed


@by(*WAYS)
def test_libiscsi(way, machine):
    failed, passed = run_libiscsi(way, machine)
    assert failed == {test for where, test in FAILS if where == way.where}
    assert failed | passed == {'%s.%s' % (suite, test)
                               for suite in LIBISCSI
                               for test in LIBISCSI[suite]}
    way.sent_the_same('libiscsi', 150)
    assert claimed('libiscsi', way) == str(len(passed))


@by(('direct', 'map'), ('stock', 'map'))
def test_libiscsi_fails_on_a_map_without_a_helper_for_maps(way, machine):
    """Each command goes by another path, that is as another initiator."""
    failed, passed = run_libiscsi(way, machine)
    assert 'ProutRegister.Simple' in failed
    assert claimed('libiscsi', way) == 'few' and len(passed) < len(failed)


# sg3_utils. ------------------------------------------------------------------

@by(*WAYS)
@pytest.mark.parametrize('option, type_', [
    ([], 'Write Exclusive'), (['--exclusive'], 'Exclusive Access')])
def test_sg_persist_tst(option, type_, way, machine):
    """It leaves the judgement to who reads what it prints."""
    needs(SG_PERSIST_TST)
    disks = machine.disks(way.where)
    status, said = way.run('sh', SG_PERSIST_TST, *option, '/dev/' + disks.ours)
    assert status == 0 and 'failed' not in said
    steps = said.split('>>>')[1:]
    paths = 2 if way.where == 'map' else 1
    assert [step.count('0x123abc') for step in steps] == [
        0, 0, 0, paths, 0, 1, paths, 0, 0, 0, 0]
    assert 'type: %s\n' % type_ in steps[5]
    assert 'NO reservation held' in steps[8]
    way.sent_the_same('sg_persist_tst %s' % option, 11)
    assert claimed('sg3_utils', way) == '2'


# Fence agents. ---------------------------------------------------------------

ON, OFF = 0, 2          # of a node that is registered, and of a fenced one


@by(*WAYS)
def test_fence_scsi(way, machine):
    needs('fence_scsi')
    disks = machine.disks(way.where)
    ours, rival = disks.ours, disks.rival

    def fence(action, key, disk):
        return way.run('fence_scsi', '-v', '-o', action, '-k', key, '-d',
                       '/dev/' + disk)[0]

    assert fence('on', A, ours) == 0
    assert not can_write(rival)
    assert fence('on', B, rival) == 0
    assert can_write(ours) and can_write(rival)
    assert fence('off', A, rival) == 0          # B fences A
    assert fence('status', A, ours) == OFF
    assert not can_write(ours) and can_write(rival)
    assert fence('on', A, ours) == 0            # A is back
    assert can_write(ours) and can_write(rival)
    way.sent_the_same('fence_scsi', 20)
    assert claimed('fence_scsi', way) == '1'


@by(('direct', 'map'), ('stock', 'map'), ('ours', 'map'))
def test_fence_mpath(way, machine):
    """What mpathpersist sends to each path goes through the helper."""
    needs('fence_mpath', 'mpathpersist')
    disks = machine.disks(way.where)
    shutil.rmtree('/run/cluster', ignore_errors=True)

    def fence(action, key):
        return way.run('fence_mpath', '-v', '-o', action, '-n', key, '-d',
                       machine.map.device)[0]

    assert fence('on', A) == 0
    assert fence('status', A) == ON
    assert not can_write(disks.rival)
    assert machine.map.rival_out(pr.REGISTER, 0, int(B, 16)) == pr.GOOD
    assert can_write(disks.ours) and can_write(disks.rival)
    assert fence('off', B) == 0
    assert fence('status', B) == OFF
    assert can_write(disks.ours) and not can_write(disks.rival)
    way.sent_the_same('fence_mpath', 10)
    assert claimed('fence_mpath', way) == '1'
