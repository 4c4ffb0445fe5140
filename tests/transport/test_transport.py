"""Reservations on multipath maps while connections of their paths fail.

Runs as root inside tests/lib/uml.sh and tests/lib/multipath.sh; see
lib/iscsi.py for what is there. What must hold, whatever the transport does:
a host that GOOD says is registered writes through every path that is back,
and has one key on all of them; one that has unregistered, or that has been
fenced, writes through none; GOOD to RESERVE or RELEASE is what the other
host sees. An error may be the answer while a path fails, never afterwards.

So that this takes minutes, a failure strikes all maps at once, and on each
of them another command is sent: each test looks at what came of one.
"""
import errno
import json
import mmap
import os
import subprocess
import threading
import time

import pytest

import cluster
import prclient as pr
import iscsi
from helper import Helper, program
from iscsi import DEADLINE, View, ask, direct, settle, wait_until

A, A2, B = 0xa11ce, 0xa11ce2, 0xb0b     # keys: ours, our next, the rival's
TYPE, OTHER = pr.WRITE_EXCLUSIVE_RO, pr.EXCLUSIVE_ACCESS_RO
ALL = pr.WRITE_EXCLUSIVE_AR
NOTHING = None


class Case:
    """On a map where the rival is registered and ours is what before says
    ('' nothing, 'registered', 'held'; the rival holds it otherwise, with
    'free' nobody) a command is sent, or nothing, and the rival perhaps
    fences us while it is carried out; after says what is right then."""

    def __init__(self, before, command, after, type_=TYPE, fenced=False):
        self.before, self.command, self.after = before, command, after
        self.type, self.fenced = type_, fenced


REGISTERED = View([A, A], [B], (B, TYPE), 'rival')
CHANGED = REGISTERED._replace(ours=[A2, A2])
OUT = REGISTERED._replace(ours=[])
HOLDING = View([A, A], [B], (A, TYPE), 'us')
ALONE = HOLDING._replace(rivals=[])
CASES = {
    'register': Case('', (pr.REGISTER, 0, A), REGISTERED),
    'register-and-ignore': Case('', (pr.REGISTER_AND_IGNORE, 0, A),
                                REGISTERED),
    'change': Case('registered', (pr.REGISTER, A, A2), CHANGED),
    'change-and-ignore': Case('registered', (pr.REGISTER_AND_IGNORE, 0, A2),
                              CHANGED),
    'change-held': Case('held', (pr.REGISTER, A, A2),
                        HOLDING._replace(ours=[A2, A2],
                                         reservation=(A2, TYPE))),
    'unregister': Case('registered', (pr.REGISTER, A, 0), OUT),
    'unregister-and-ignore': Case('registered',
                                  (pr.REGISTER_AND_IGNORE, 0, 0), OUT),
    'unregister-held': Case('held', (pr.REGISTER, A, 0),
                            View([], [B], None, None)),
    'reserve': Case('registered free', (pr.RESERVE, A, 0, TYPE), HOLDING),
    'release': Case('held', (pr.RELEASE, A, 0, TYPE),
                    View([A, A], [B], None, None)),
    'clear': Case('held', (pr.CLEAR, A), View([], [], None, None)),
    'preempt-rival': Case('registered', (pr.PREEMPT, A, B, TYPE), ALONE),
    'preempt-and-abort-rival': Case(
        'registered', (pr.PREEMPT_AND_ABORT, A, B, TYPE), ALONE),
    'preempt-own': Case('held', (pr.PREEMPT, A, A, OTHER),
                        HOLDING._replace(reservation=(A, OTHER))),
    'preempt-and-abort-own': Case(
        'held', (pr.PREEMPT_AND_ABORT, A, A, OTHER),
        HOLDING._replace(reservation=(A, OTHER))),
    'preempt-all': Case('registered', (pr.PREEMPT, A, 0, ALL),
                        View([A, A], [], (0, ALL), 'us'), type_=ALL),
    'fenced': Case('held', NOTHING, OUT, fenced=True),
    'fenced-change': Case('registered', (pr.REGISTER, A, A2), OUT,
                          fenced=True),
    'fenced-preempt-own': Case('held', (pr.PREEMPT, A, A, TYPE), OUT,
                               fenced=True),
}

UNREGISTRATIONS = [case for name, case in CASES.items()
                   if name.startswith('unregister')]


class Failure:
    """how: what becomes of the connections of these paths, or what is said
    through them (iscsi.REPLIES), either before the command or, with 'midst',
    while it is carried out; for so many seconds. What is_harmless costs only
    time. 'again': then they are cut twice more, as soon as they are back."""

    def __init__(self, how, paths, seconds, moment='before'):
        self.how, self.paths, self.seconds = how, paths, seconds
        self.moment = moment
        self.is_harmless = how in ('recovered', 'in-transition')


LONG = iscsi.REPLACEMENT + 2
FAILURES = {
    '%s-%s' % (name, '-and-'.join(map(str, paths))):
        Failure(how, paths, seconds, moment)
    for name, how, seconds, moment, places in (
        ('cut', 'cut', 2, 'before', ((0,), (1,), (0, 1))),
        ('cut-long', 'cut', LONG, 'before', ((0,), (1,))),
        ('cut-in-the-midst', 'cut', 2, 'midst again', ((0,), (1,))),
        ('stalled', 'stall', 2, 'before', ((0,),)),
        ('mute', 'mute', 3 * iscsi.NOOP, 'before', ((0,), (1,))),
        ('recovered', 'recovered', 1, 'before', ((0,), (1,))),
        ('fails-late', 'fails-late', 1, 'before', ((0,),)),
        ('fails', 'fails', 1, 'before', ((1,),)),
        ('in-transition', 'in-transition', 1, 'before', ((0,),)))
    for paths in places}


# Writes, which are what reservations are about. ------------------------------

def write(fd, block):
    """errno of one block written: EBADE says RESERVATION CONFLICT."""
    try:
        os.pwrite(fd, block, 0)
    except OSError as error:
        return error.errno
    return 0


def write_through(device):
    block = mmap.mmap(-1, 512)      # at a page's start, for O_DIRECT
    fd = os.open('/dev/' + os.path.basename(device), os.O_WRONLY | os.O_DIRECT)
    try:
        return write(fd, block)
    finally:
        os.close(fd)


class Writer:
    """Writes through a map all the time, as a guest would."""

    def __init__(self, device):
        self.device = device
        self.done = []          # (when it began, when it ended, errno)
        self.is_over = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        block = mmap.mmap(-1, 512)
        fd = os.open(self.device, os.O_WRONLY | os.O_DIRECT)
        while not self.is_over:
            began = time.monotonic()
            result = write(fd, block)
            self.done.append((began, time.monotonic(), result))
            time.sleep(0.2)
        os.close(fd)

    def stop(self):
        self.is_over = True
        self.thread.join(60)
        assert not self.thread.is_alive(), 'a write hangs'

    def since(self, moment):
        """The results of writes that began later."""
        return {result for began, _, result in self.done if began > moment}


# One failure, and what came of each command. ---------------------------------

class Trial:
    """One case on one map, and what came of it."""

    def __init__(self, failure, name, map_, helper):
        self.failure, self.case = failure, CASES[name]
        self.map, self.helper = map_, helper
        self.log_begins = len(helper.log())
        self.client = helper.client(timeout=120)
        self.fd = pr.open_device(map_.device)
        self.answer = self.again = self.writer = None

    def send(self, command):
        return self.client.out(self.fd, *command).status

    def prepare(self):
        self.map.reset()
        case = self.case
        assert self.map.rival_out(pr.REGISTER, 0, B) == pr.GOOD
        if case.before != '':
            assert self.send((pr.REGISTER, 0, A)) == pr.GOOD
        if case.before == 'held':
            assert self.send((pr.RESERVE, A, 0, case.type)) == pr.GOOD
        elif 'free' not in case.before:
            assert self.map.rival_out(pr.RESERVE, B, 0, case.type) == pr.GOOD
        self.writer = Writer(self.map.device)

    def run(self):
        if self.case.command:
            self.answer = self.send(self.case.command)
            self.settled_at = time.monotonic()

    def fence(self):
        """As fence_scsi does it: preempts what is registered and not ours,
        but until there is nothing left."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            keys = set(self.map.rival_do(direct.keys)) - {B}
            if not keys:
                break
            for key in keys:
                self.map.rival_out(pr.PREEMPT, B, key, self.case.type)
        self.settled_at = time.monotonic()

    def finish(self):
        """When all paths are back. A guest whose command failed sends it once
        more; if that was done after all, it may be a conflict now."""
        if self.case.command and not self.case.fenced and self.answer:
            action, key, *rest = self.case.command
            if action == pr.REGISTER:
                action, key = pr.REGISTER_AND_IGNORE, 0
            self.again = self.send((action, key, *rest))
            self.settled_at = time.monotonic()
        time.sleep(max(0, self.settled_at + 1 - time.monotonic()))
        self.view, self.is_suspended = self.map.view(), self.map.is_suspended()
        self.writer.stop()
        self.results = [write_through(path) for path in self.map.paths]
        self.since = self.writer.since(self.settled_at)

    def may_keep_a_key(self):
        """A path that was gone when we unregistered comes back with its key,
        before multipathd 0.13; the log has said that it would."""
        return self.case in UNREGISTRATIONS and any(
            path + ' comes back with the key' in self.log()
            for path in self.map.paths)

    def log(self):
        """What the helper said meanwhile."""
        return self.helper.log()[self.log_begins:]

    def close(self):
        if self.writer:
            self.writer.stop()
        os.close(self.fd)
        self.client.close()


@pytest.fixture(scope='module')
def machine():
    program = iscsi.missing()
    if program:
        pytest.skip('not installed: ' + program)
    return iscsi.Machine(len(CASES)).make_maps()


@pytest.fixture(scope='module')
def helpers(tmp_path_factory, machine):
    """One for each map: what they all say at once would be more than the log
    takes of a client in a second, and a test reads what it says."""
    started = [Helper(str(tmp_path_factory.mktemp('helper')),
                      program('HELPER', 'qemu-pr-helper'))
               for _ in machine.maps]
    yield started
    for helper in started:
        helper.stop()
        assert helper.crashes() == []


def start_all(functions):
    threads = [threading.Thread(target=f, daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    return threads


def join(threads):
    for thread in threads:
        thread.join(2 * DEADLINE)
        assert not thread.is_alive(), 'it does not end'


@pytest.fixture(scope='module', params=FAILURES)
def trials(request, machine, helpers):
    failure = FAILURES[request.param]
    machine.restore()
    by_name = {name: Trial(failure, name, map_, helper) for name, map_, helper
               in zip(CASES, machine.maps, helpers)}
    everyone = by_name.values()
    join(start_all([trial.prepare for trial in everyone]))
    commands = []
    if 'midst' in failure.moment:
        commands = start_all([trial.run for trial in everyone])
        time.sleep(0.1)
    began = time.monotonic()
    machine.fail(failure.how, failure.paths)
    if 'midst' not in failure.moment:
        commands = start_all([trial.run for trial in everyone])
    time.sleep(0.5)
    commands += start_all([trial.fence for trial in everyone
                           if trial.case.fenced])
    time.sleep(max(0, began + failure.seconds - time.monotonic()))
    for pause in (0, 0.5) if 'again' in failure.moment else ():
        machine.cut_again(failure.paths, pause)
    machine.restore()
    join(commands)
    join(start_all([trial.finish for trial in everyone]))
    yield by_name
    for trial in everyone:
        trial.close()


@pytest.mark.parametrize('name', CASES)
def test_good_is_true(trials, name):
    trial = trials[name]
    expected = trial.case.after
    story = '%s, then %s; %s; %s\n%s' % (
        trial.answer, trial.again, trial.view, trial.results, trial.log())
    assert trial.again in (None, pr.GOOD, pr.RESERVATION_CONFLICT), story
    if trial.failure.is_harmless and not trial.case.fenced:
        assert trial.answer == pr.GOOD, story
    assert not trial.is_suspended, story
    if trial.view.ours == [A] and trial.may_keep_a_key():
        assert trial.view._replace(ours=[]) == expected, story
        return
    assert trial.view == expected, story
    if expected.ours:
        assert trial.results == [0, 0], story
        assert errno.EBADE not in trial.since, (
            'a host with a key was kept out; ' + story)
    elif expected.reservation:
        assert trial.results == [errno.EBADE, errno.EBADE], story
        assert 0 not in trial.since, (
            'a host without a key has written; ' + story)


# As cluster managers do it. --------------------------------------------------

@pytest.mark.parametrize('number', [0, 1])
def test_fence_scsi(machine, helpers, number):
    """The life of two nodes, with a connection cut at each step."""
    machine.restore()
    disk = machine.maps[0]
    disk.reset()
    fd = pr.open_device(disk.device)
    with helpers[0].client(timeout=120) as client:
        def ours(*command):
            return client.out(fd, *command).status

        def on():
            """Repeated if it fails, as by whoever starts the agent."""
            wait_until(lambda: ours(pr.REGISTER_AND_IGNORE, 0, A) == pr.GOOD,
                       'this node is registered')
            if client.reservation(fd) is None:
                wait_until(lambda: ours(pr.RESERVE, A, 0, TYPE) == pr.GOOD,
                           'there is a reservation')

        def while_cut(function, *arguments):
            machine.fail('cut', [number])
            done = start_all([lambda: function(*arguments)])
            time.sleep(2)
            machine.restore()
            join(done)

        def write_by_all():
            return [write_through(name) for name in (*disk.paths, disk.rival)]

        while_cut(on)
        assert disk.rival_out(pr.REGISTER_AND_IGNORE, 0, B) == pr.GOOD
        assert sorted(client.keys(fd)) == sorted([A, A, B])
        assert disk.view() == HOLDING
        assert write_by_all() == [0, 0, 0]

        while_cut(disk.rival_out, pr.PREEMPT_AND_ABORT, B, A, TYPE)
        assert disk.view() == OUT
        assert write_by_all() == [errno.EBADE, errno.EBADE, 0]
        assert ours(pr.PREEMPT_AND_ABORT, A, B, TYPE) == (
            pr.RESERVATION_CONFLICT)
        assert disk.view() == OUT

        while_cut(on)
        assert disk.view() == REGISTERED
        assert write_by_all() == [0, 0, 0]

        while_cut(lambda: wait_until(
            lambda: ours(pr.PREEMPT_AND_ABORT, A, B, TYPE)
            in (pr.GOOD, pr.RESERVATION_CONFLICT), 'the rival is fenced'))
        assert disk.view() == ALONE
        assert write_by_all() == [0, 0, errno.EBADE]
    os.close(fd)


# What an administrator sees. -------------------------------------------------

def asked(helper, *command):
    """The exit status, and what the client says in JSON."""
    done = subprocess.run([program('CLIENT', 'qemu-pr-client'), '-k',
                           helper.path, '--json', *command], timeout=DEADLINE,
                          stdout=subprocess.PIPE)
    return done.returncode, json.loads(done.stdout)


def test_the_client_knows_this_host(machine, helpers):
    """By the names of its sessions in sysfs; the rival is this host, too."""
    machine.restore()
    disk, helper = machine.maps[0], helpers[0]
    disk.reset()
    fd = pr.open_device(disk.device)
    with helper.client(timeout=120) as client:
        assert client.out(fd, pr.REGISTER, 0, A).status == pr.GOOD
    os.close(fd)
    assert disk.rival_out(pr.REGISTER, 0, B) == pr.GOOD
    assert disk.rival_out(pr.RESERVE, B, 0, TYPE) == pr.GOOD
    found = asked(helper, 'status', disk.device)[1]['registrations']
    seen = sorted((r['initiator'].split(',')[0], r['this_host'], r['path'],
                   r['logged_in'], r['same_initiator_and_port'])
                  for r in found)
    assert seen == [('iSCSI ' + iscsi.RIVAL, True, disk.rival, True, 1)
                    ] + 2 * [('iSCSI ' + iscsi.US, True, None, True, 2)]
    assert asked(helper, 'check', disk.device)[0] == 0
    # One that holds it alone is in the way of this map.
    assert disk.rival_out(pr.RELEASE, B, 0, TYPE) == pr.GOOD
    assert disk.rival_out(pr.RESERVE, B, 0, pr.EXCLUSIVE_ACCESS) == pr.GOOD
    status, found = asked(helper, 'check', disk.device)
    assert status == 41 and [f['exit_status'] for f in found['findings']
                             ] == [41]
    disk.reset()


# Four paths, two of which have a LUN that is unmapped, or hang. --------------

MORE = 1, 2                     # the LUNs of maps that have two more paths
SECONDS = 110                   # in which a command ends: it has one minute


@pytest.fixture(scope='module')
def wide(machine):
    """Two maps of four paths. Must be the last that is asked for, as they
    stay so."""
    machine.restore()
    return machine.add_paths(MORE)


def failed(paths):
    """Those of them that multipathd has seen fail."""
    lines = ask('show paths format "%d %t %T"').splitlines()
    return {line.split()[0] for line in lines
            if line.split()[1:] != ['active', 'ready']} & set(paths)


class Asker:
    """A client of its own, with the map's device, for one thread; what it was
    told last, if it was."""
    status = keys = None

    def __init__(self, helper, disk):
        self.client = helper.client(timeout=SECONDS)
        self.disk, self.fd = disk, pr.open_device(disk.device)

    def out(self, *command):
        self.status = self.client.out(self.fd, *command).status
        self.failed = failed(self.disk.paths)
        return self.status

    def look(self):
        self.keys = self.client.keys(self.fd)

    def close(self):
        os.close(self.fd)
        self.client.close()


@pytest.fixture
def asker(wide):
    """A function that makes one, for a helper and the number of a map."""
    made = []

    def make(helper, number):
        made.append(Asker(helper, wide[number]))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ours(disk):
    return disk.view().ours


def test_paths_whose_lun_is_unmapped(wide, machine, asker, start):
    """They answer 5/25/00, and are left out once multipathd has seen that."""
    helper = start()
    for disk in wide:
        disk.reset()
    register, change = asker(helper, 0), asker(helper, 1)
    assert change.out(pr.REGISTER, 0, A) == pr.GOOD
    assert ours(wide[1]) == 4 * [A]
    for lun in MORE:
        os.unlink(iscsi.mapping_of(iscsi.SECOND, iscsi.US, lun))
    try:
        join(start_all([lambda: register.out(pr.REGISTER, 0, A2),
                        lambda: change.out(pr.REGISTER, A, A2)]))
    finally:
        views = [ours(disk) for disk in wide]
        for lun in MORE:
            iscsi.map_lun(iscsi.SECOND, iscsi.US, lun)
    for one in register, change:
        assert one.status == pr.GOOD, helper.log()
        assert one.failed == set(one.disk.paths[2:]), (
            'GOOD, and paths in use have no key: ' + helper.log())
    assert views == 2 * [2 * [A2]]
    for name in wide[0].paths[2:]:
        assert name + ' is left out' in helper.log()
    machine.restore()
    for disk in wide:
        wait_until(lambda: ours(disk) == 4 * [A2], 'multipathd registers them')


def test_two_paths_hang(wide, machine, asker, start, tmp_path):
    """From the moment that a map is suspended to preempt our own key. None of
    the commands waits for them for long, and the map is resumed."""
    def strike(command, pid):
        if not command.startswith('suspend'):
            return None
        answer = ask(command)
        machine.fail('mute', (2, 3))
        is_struck.set()
        return answer

    is_struck = threading.Event()
    relay = cluster.Relay(str(tmp_path / 'm'), answer=strike)
    helper = start(env={**os.environ, 'MULTIPATH_SOCKET_NAME': relay.path})
    for disk in wide:
        disk.reset()
    register, preempt = asker(helper, 0), asker(helper, 1)
    looks = asker(helper, 0), asker(helper, 1)
    assert preempt.out(pr.REGISTER, 0, A) == pr.GOOD
    assert preempt.out(pr.RESERVE, A, 0, TYPE) == pr.GOOD
    commands = start_all([lambda: preempt.out(pr.PREEMPT, A, A, OTHER)])
    try:
        assert is_struck.wait(DEADLINE)
        commands += start_all([lambda: register.out(pr.REGISTER, 0, A),
                               *(one.look for one in looks)])
        join(commands)
        assert None not in (register.status, preempt.status), (
            'no answer in %d seconds: %s' % (SECONDS, helper.log()))
        assert None not in (looks[0].keys, looks[1].keys), helper.log()
        wait_until(lambda: not wide[1].is_suspended(), 'the map is resumed')
        for one in register, preempt:
            keys = ours(one.disk)
            assert one.status != pr.GOOD or (
                set(keys) == {A} and len(keys) + len(one.failed) >= 4
            ), helper.log()
        assert all(set(one.keys) <= {A} for one in looks)
        machine.restore()
        for one in register, preempt:
            assert one.out(pr.REGISTER_AND_IGNORE, 0, A) == pr.GOOD, (
                helper.log())
            assert ours(one.disk) == 4 * [A]
    finally:
        machine.restore()
        relay.close()


# This removes disks, and nobody brings them back. ----------------------------

@pytest.mark.parametrize('number, holder', [(-1, 'us'), (-2, 'rival')])
def test_a_path_has_left_the_map(machine, helpers, number, holder):
    """As after dev_loss_tmo. That it held, only the disk and sysfs can tell
    from another host that holds with the same key, which keeps it."""
    disk, helper = machine.maps[number], helpers[number]
    gone, other = disk.paths
    disk.reset()
    fd, path = pr.open_device(disk.device), pr.open_device('/dev/' + gone)
    with helper.client(timeout=120) as client:
        assert client.out(fd, pr.REGISTER, 0, A).status == pr.GOOD
        if holder == 'us':
            settle(path)
            assert direct.out(path, pr.RESERVE, A, 0, TYPE).status == pr.GOOD
        else:
            assert disk.rival_out(pr.REGISTER, 0, A) == pr.GOOD
            assert disk.rival_out(pr.RESERVE, A, 0, TYPE) == pr.GOOD
        os.close(path)
        iscsi.put('/sys/block/%s/device/delete' % gone, 1)
        slaves = '/sys/block/%s/slaves' % disk.name
        wait_until(lambda: os.listdir(slaves) == [other], 'it has left')
        answer = client.out(fd, pr.RELEASE, A, 0, TYPE).status
    os.close(fd)
    assert answer == pr.GOOD, helper.log()
    assert disk.view() == (View([A], [], None, None) if holder == 'us' else
                           View([A, A], [A], (A, TYPE), 'rival')), helper.log()
    assert not disk.is_suspended()
