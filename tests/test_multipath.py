"""Commands on multipath maps: the whole helper, simulated disks and sysfs, and
a multipathd of our own.

ACTIONS says what each service action comes to when all is well. It has to
come to the same through the paths that are left if others are dead, and to
nothing, with an answer that says so, if none is or if multipathd fails. After
every scenario Lab.check() looks at what nobody may ever see: a map that stays
suspended, some usable paths registered and others not, a key that multipathd
has and the disk has not, a command to a disk that is no path of the map.

These tests must not depend on root, SCSI or multipathd, must never take what
they expect from the helper's source, and must not compare a time with
anything but a multiple of many seconds.
"""
import collections
import concurrent.futures
import contextlib
import errno
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time

import pytest

import multipathd
import sim
from conftest import Helper, program
from prclient import (
    CHECK_CONDITION, CLEAR, EXCLUSIVE_ACCESS_AR, GOOD, PREEMPT,
    PREEMPT_AND_ABORT, READ_FULL_STATUS, READ_KEYS, READ_RESERVATION,
    REGISTER, REGISTER_AND_IGNORE, REGISTER_AND_MOVE, RELEASE,
    REPORT_CAPABILITIES, RESERVATION_CONFLICT, RESERVE, WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_AR, WRITE_EXCLUSIVE_RO, Closed, open_device, parameters,
    pr_in, pr_out, sense_code)

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
MODES = ['sessions', 'single-process']
KEY, NEW, RIVAL = 0xa11ce, 0xa11ce2, 0xb0b
EVER = 1 << 30
CLEANUP = 0xff
CONFLICT, LOST = 'CONFLICT', 'B/08/00'

# The numbers of nexuses. The first map is of LUN 0, the second of LUN 1.
PATHS, OTHERS, ALONE, RIVALS = (0, 1, 2), (16, 17), 40, 100


def code(reply):
    """GOOD, CONFLICT, or sense data; nothing else may come with it."""
    if reply.status == CHECK_CONDITION:
        assert reply.payload == b''
        return sense_code(reply.sense)
    assert not any(reply.sense)
    return {GOOD: GOOD, RESERVATION_CONFLICT: CONFLICT}.get(
        reply.status, 'status %02x' % reply.status)


class Lab:
    """A helper with two maps, a disk of a rival and one that is nobody's."""

    def __init__(self, mode='sessions', options=(), env=None):
        self.dir = tempfile.mkdtemp(prefix='prh')
        self.target = sim.Target(os.path.join(self.dir, 'sim'))
        self.root = sim.Root(os.path.join(self.dir, 'root'))
        self.mpd = multipathd.Multipathd(os.path.join(self.dir, 'm'),
                                         self.target)
        self.mode = mode
        if mode == 'single-process':
            options = ('--single-process', *options)
        self.env = dict(self.target.env, **self.root.env,
                        MULTIPATH_SOCKET_NAME=self.mpd.address, **env or {})
        self.helper = Helper(self.dir, SIM_HELPER, ('-v', *options),
                             env=self.env)
        self.fds, self.client = [], None
        self.map = self.open(sim.device(os.path.join(self.dir, 'dm-0'),
                                        sim.Root.MAJOR, 0))
        self.other_map = self.open(sim.device(os.path.join(self.dir, 'dm-1'),
                                              sim.Root.MAJOR, 1))
        disks = sim.Disks(self.dir)
        self.alone = self.open(disks.path(ALONE))
        self.rival = self.open(disks.path(RIVALS))
        self.helper.wait_sessions(0)    # whoever looked if it is ready
        self.mpd.start()
        self.reset()

    def open(self, path, flags=os.O_RDWR):
        self.fds.append(open_device(path, flags))
        return self.fds[-1]

    def close(self):
        if self.client:
            self.client.close()
        for n in range(sim.NEXUSES):
            self.nexus(n).hold = 0
        self.mpd.stop()
        try:
            status = self.helper.stop()
            assert status == 0 or self.mode == 'killed', self.helper.log()
            assert not self.helper.crashes()
        finally:
            for fd in self.fds:
                os.close(fd)
            shutil.rmtree(self.dir)

    def nexus(self, number):
        return self.target.nexus(number)

    def reset(self):
        """Nobody is registered, all paths are fine, multipathd, too."""
        self.mpd.reset()
        self.wait_idle()
        self.target.reset()
        for nexus in OTHERS:
            self.nexus(nexus).lun = 1
        self.nexus(ALONE).lun = 2
        for nexus in PATHS + OTHERS:        # sda and sdb are of one host
            self.nexus(nexus).initiator = 1 + nexus // 2
        if self.root.is_changed:
            self.make_root()
        self.mpd.maps = [
            multipathd.Map('dm-%d' % n, alias,
                           {sim.disk_name(p): self.nexus(p) for p in paths})
            for n, alias, paths in ((0, 'mpatha', PATHS),
                                    (1, 'mpathb', OTHERS))]
        self.known = self.mpd.maps[0]
        self.dead = set()       # paths that are not usable
        self.hold_is_known = True       # if multipathd has not failed at it
        self.strangers_allowed = False
        if self.client is None:
            self.client = self.helper.client()
            if self.mode == 'sessions':
                self.helper.wait_sessions(1)
            self.sessions = set(self.helper.sessions())

    def make_root(self):
        self.root.reset()
        for nexus in PATHS + OTHERS:
            self.root.disk(nexus, host=1 + nexus // 2)
        self.root.map(0, PATHS, 'mpatha', 'mpath-36001405a')
        self.root.map(1, OTHERS, 'mpathb', 'mpath-36001405b')
        self.order = [PATHS[[sim.disk_name(n) for n in PATHS].index(name)]
                      for name in os.listdir(self.root.slave(0, ''))]
        self.root.is_changed = False

    def workers(self):
        """The pids of the processes that have a command on a map."""
        return set(self.helper.sessions()) - self.sessions

    def wait_idle(self, seconds=20):
        """No worker is left, not even one that has answered."""
        if self.client is None:
            return
        end = time.monotonic() + seconds
        sessions = self.mode == 'sessions'
        while len(self.helper.sessions()) > sessions:
            assert time.monotonic() < end, self.helper.log()[-2000:]
            time.sleep(0.0005)

    @property
    def lun(self):
        return self.target.lun(0)

    # ---- Beginnings -------------------------------------------------------
    def registered(self, key=KEY, paths=PATHS):
        for nexus in paths:
            self.nexus(nexus).key = key
        self.known.key = self.known.fixed or key
        self.known.prflag = 'set'

    def held(self, type_=WRITE_EXCLUSIVE, path=0):
        self.registered()
        self.lun.type, self.lun.holder = type_, path
        self.known.prhold = 'set'

    def rival_registered(self):
        self.nexus(RIVALS).key = RIVAL

    def rival_holds(self, type_=WRITE_EXCLUSIVE_RO):
        self.rival_registered()
        self.lun.type, self.lun.holder = type_, RIVALS

    # ---- States -----------------------------------------------------------
    def usable(self):
        return [n for n in PATHS if n not in self.dead]

    def keys(self):
        """Of the usable paths."""
        return [self.nexus(n).key for n in self.usable()]

    def holder(self):
        """(nexus, type), (None, type) if all registrants, or None."""
        if not self.lun.type:
            return None
        return (None if self.lun.type >= WRITE_EXCLUSIVE_AR
                else self.lun.holder), self.lun.type

    def state(self):
        """All that a command may change."""
        known = self.known
        return (self.keys(), self.holder(), self.nexus(RIVALS).key,
                known.key, known.aptpl, known.prflag, known.prhold)

    def assert_registered(self, key):
        keys = self.keys()
        assert keys == [key] * len(keys), 'keys %r' % keys
        assert self.known.key == self.known.fixed or self.known.key == key
        assert self.known.prflag == ('set' if key else 'unset')

    def assert_held(self, type_, key=KEY):
        holder = self.holder()
        assert holder and holder[1] == type_, 'holder %r' % (holder,)
        if type_ < WRITE_EXCLUSIVE_AR:
            assert holder[0] in self.usable(), 'holder %r' % (holder,)
        self.assert_registered(key)
        assert self.known.prhold == 'set' or not self.hold_is_known

    def assert_released(self, key=KEY):
        assert self.holder() is None, self.holder()
        self.assert_registered(key)
        assert self.known.prhold == 'unset' or not self.hold_is_known

    def sent(self, begin=0, out=None):
        """The commands on LUN 0, but for the rival's."""
        return [e for e in self.target.log(begin) if e.nexus != RIVALS
                and (out is None or (e.cdb[0] == 0x5f) == out)]

    # ---- Commands ---------------------------------------------------------
    def request(self, cdb, data=b'', fd=None):
        return self.client.request(cdb, self.map if fd is None else fd, data)

    def out(self, service_action, key=0, sa_key=0, type_=0, flags=0):
        return code(self.client.out(self.map, service_action, key, sa_key,
                                    type_, flags))

    def check(self):
        """What must be so whatever has happened."""
        self.wait_idle()
        assert not self.known.suspended, 'the map is suspended'
        assert not self.target.strays, 'SG_IO on the map'
        assert not self.mpd.wrong, self.mpd.wrong
        assert not self.target.lun(1).generation \
            and not self.target.lun(2).generation
        allowed = set(PATHS) | {RIVALS}
        for nexus in range(sim.NEXUSES):
            assert nexus in allowed or self.strangers_allowed \
                or not self.nexus(nexus).commands, 'sent to %d' % nexus
        keys = set(self.keys())
        assert len(keys) <= 1, 'some paths have %r' % self.keys()
        assert not self.keys() or self.known.key in keys \
            or self.known.fixed or keys == {0}, 'multipathd has another key'
        assert self.known.prflag == 'unset' or self.known.key


# ---- What each command comes to ---------------------------------------------

class Action:
    def __init__(self, prepare, cdb, after, data=b''):
        self.prepare, self.cdb, self.after = prepare, cdb, after
        self.data = data
        self.is_in = cdb[0] == 0x5e
        self.is_register = cdb[0] == 0x5f and cdb[1] in (REGISTER,
                                                         REGISTER_AND_IGNORE)

    def run(self, lab):
        return code(lab.request(self.cdb, self.data))


def nothing(lab):
    pass


def both(*functions):
    def do(lab):
        for function in functions:
            function(lab)
    return do


def out(prepare, service_action, after, key=0, sa_key=0, type_=0, flags=0):
    return Action(prepare, pr_out(service_action, type_), after,
                  parameters(key, sa_key, flags))


def rival_is_gone(lab):
    assert lab.nexus(RIVALS).key == 0


def rival_stays(lab):
    assert lab.nexus(RIVALS).key == RIVAL


def stays(lab):
    assert lab.holder() == (0, 1) and lab.known.prhold == 'set'


def registered(key):
    return lambda lab: lab.assert_registered(key)


def held(type_, key=KEY):
    return lambda lab: lab.assert_held(type_, key)


def released(lab):
    lab.assert_released()


def nobody(lab):
    lab.assert_registered(0)
    assert lab.holder() is None
    assert lab.known.prhold == 'unset' or not lab.hold_is_known


def cleaned(lab):
    assert lab.keys() == [0] * len(lab.keys())
    assert lab.known.key == lab.known.fixed and lab.known.prflag == 'unset'


ACTIONS = {
    'register': out(nothing, REGISTER, registered(KEY), 0, KEY),
    'register with APTPL': out(nothing, REGISTER, registered(KEY), 0, KEY,
                               flags=1),
    'change the key': out(Lab.registered, REGISTER, registered(NEW), KEY,
                          NEW),
    'change the key, holding': out(Lab.held, REGISTER, held(1, NEW), KEY,
                                   NEW),
    'the same key again': out(Lab.registered, REGISTER, registered(KEY), KEY,
                              KEY),
    'unregister': out(Lab.registered, REGISTER, nobody, KEY, 0),
    'unregister, holding': out(both(Lab.held, Lab.rival_registered), REGISTER,
                               both(nobody, rival_stays), KEY, 0),
    'register and ignore': out(nothing, REGISTER_AND_IGNORE, registered(KEY),
                               0, KEY),
    'register and ignore, known': out(
        both(Lab.held, Lab.rival_registered), REGISTER_AND_IGNORE,
        both(held(1, NEW), rival_stays), 0xdead, NEW),
    'unregister and ignore': out(Lab.registered, REGISTER_AND_IGNORE, nobody),
    'unregister and ignore, holding': out(Lab.held, REGISTER_AND_IGNORE,
                                          nobody),
    'reserve': out(Lab.registered, RESERVE, held(1), KEY, 0, 1),
    'reserve for all': out(Lab.registered, RESERVE, held(7), KEY, 0, 7),
    'reserve again': out(Lab.held, RESERVE, both(registered(KEY), stays),
                         KEY, 0, 1),
    'release': out(both(Lab.held, Lab.rival_registered), RELEASE,
                   both(released, rival_stays), KEY, 0, 1),
    'release for all': out(lambda lab: lab.held(WRITE_EXCLUSIVE_AR), RELEASE,
                           released, KEY, 0, 7),
    'release nothing': out(Lab.registered, RELEASE, released, KEY, 0, 1),
    'clear': out(both(Lab.held, Lab.rival_registered), CLEAR,
                 both(nobody, rival_is_gone), KEY),
    'preempt the holder': out(both(Lab.registered, Lab.rival_holds), PREEMPT,
                              both(held(1), rival_is_gone), KEY, RIVAL, 1),
    'preempt a registrant': out(both(Lab.held, Lab.rival_registered), PREEMPT,
                                both(registered(KEY), stays, rival_is_gone),
                                KEY, RIVAL, 1),
    'preempt ourselves': out(both(Lab.held, Lab.rival_registered), PREEMPT,
                             both(held(3), rival_stays), KEY, KEY, 3),
    'preempt all': out(both(lambda lab: lab.held(EXCLUSIVE_ACCESS_AR),
                            Lab.rival_registered), PREEMPT,
                       both(held(1), rival_is_gone), KEY, 0, 1),
    'preempt and abort': out(
        both(Lab.registered, Lab.rival_holds), PREEMPT_AND_ABORT,
        both(held(1), rival_is_gone), KEY, RIVAL, 1),
    'preempt and abort ourselves': out(Lab.held, PREEMPT_AND_ABORT, held(1),
                                       KEY, KEY, 1),
    'read keys': Action(Lab.held, pr_in(READ_KEYS), stays),
    'read reservation': Action(Lab.held, pr_in(READ_RESERVATION), stays),
    'report capabilities': Action(Lab.held, pr_in(REPORT_CAPABILITIES),
                                  stays),
    'read full status': Action(Lab.held, pr_in(READ_FULL_STATUS), stays),
    'clean up': Action(Lab.registered, bytes([CLEANUP]) + bytes(15), cleaned),
}

NOT_READY = struct.pack('>BxB4xB4xBB4x', 0x70, 2, 10, 4, 3)
ASLEEP = struct.pack('>BBBB4x', 0x72, 2, 4, 2)      # descriptor format
BECOMING = struct.pack('>BxB4xB4xBB4x', 0x70, 2, 10, 4, 7)
ATTENTION = struct.pack('>BxB4xB4xBB4x', 0x70, 6, 10, 0x29, 0)


def senses(sense):
    return lambda lab, n, **which: lab.nexus(n).answer(
        2, 0, 8, sense, **which)


def hosts(status):
    return lambda lab, n, **which: lab.nexus(n).answer(
        0, status, 0, **which)


def fails(error):
    return lambda lab, n, **which: lab.nexus(n).fail_ioctl(error, **which)


# What makes a path unusable while commands are sent...
FAILURES = {'host %02x' % n: hosts(n) for n in [*range(1, 0x10), 0x14, 0x15]}
FAILURES.update({'ENODEV': fails(errno.ENODEV), 'ENXIO': fails(errno.ENXIO),
                 'not ready': senses(NOT_READY),
                 'not ready, descriptor format': senses(ASLEEP),
                 'becoming ready for ever': senses(BECOMING)})


# ... or before any is.
def unplug(lab, n, **_):
    os.unlink(lab.root.node(n))


def change_state(text):
    return lambda lab, n, **_: lab.root.state(n, text)


STATES = {'state ' + text: change_state(text)
          for text in ('offline', 'blocked', 'transport-offline', 'quiesce',
                       'created-blocked', 'deleted', 'runningx', '')}
STATES['no node'] = unplug


class Scenarios:
    """Runs many in a row and remembers what was wrong with which."""
    count = 0

    def __init__(self, lab):
        self.lab, self.wrong = lab, []

    @contextlib.contextmanager
    def scenario(self, *name):
        Scenarios.count += 1
        self.lab.reset()
        try:
            yield self.lab
            self.lab.check()
        except (AssertionError, Closed, OSError) as error:
            at = error.__traceback__
            lines = []
            while at:
                lines.append(at.tb_lineno)
                at = at.tb_next
            self.wrong.append('%s: %s (lines %s)' % (
                ', '.join(map(str, name)), str(error).split('\n')[0]
                or type(error).__name__, lines))

    def done(self):
        if self.wrong:
            pytest.fail('\n'.join(self.wrong), pytrace=False)


@pytest.fixture(scope='module', params=MODES)
def module_lab(request):
    lab = Lab(request.param)
    yield lab
    lab.close()


@pytest.fixture(scope='module')
def sessions_lab():
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def run(module_lab):
    scenarios = Scenarios(module_lab)
    yield scenarios
    scenarios.done()


@pytest.fixture
def run_one(sessions_lab):
    scenarios = Scenarios(sessions_lab)
    yield scenarios
    scenarios.done()


def prepare(lab, action):
    action.prepare(lab)
    lab.before = lab.state()
    return action


def assert_unchanged(lab):
    assert lab.state() == lab.before, '%r, not %r' % (lab.state(), lab.before)


# ---- All is well ------------------------------------------------------------

@pytest.mark.parametrize('version', ['0.14', '0.9.4'])
def test_each_action_with_all_paths(run, version):
    for name, action in ACTIONS.items():
        with run.scenario(version, name) as lab:
            lab.mpd.version = version
            lab.hold_is_known = version != '0.9.4'
            prepare(lab, action)
            assert action.run(lab) == GOOD
            action.after(lab)
            assert len(lab.sent()) >= (1 if action.is_in else 2) \
                or 'reserve' in name or 'clear' in name


# ---- Dead paths -------------------------------------------------------------

def test_each_action_with_one_dead_path(run_one):
    faults = {**FAILURES, **STATES}
    for number, ((fault, kill), (name, action)) in enumerate(
            itertools.product(faults.items(), ACTIONS.items())):
        path = PATHS[number % 3] if fault in STATES else 0
        with run_one.scenario(name, fault, path) as lab:
            prepare(lab, action)
            kill(lab, path, count=EVER)
            lab.dead = {path}
            lab.before = lab.state()
            assert action.run(lab) == GOOD
            action.after(lab)
            assert fault not in STATES or not lab.nexus(path).commands


def test_each_action_with_two_dead_paths(run):
    kinds = ('ENODEV', 'host 01', 'host 0f', 'not ready', 'state offline',
             'no node')
    faults = {**FAILURES, **STATES}
    pairs = itertools.cycle(itertools.permutations(kinds, 2))
    for left, (name, action) in itertools.product(PATHS, ACTIONS.items()):
        kind = next(pairs)
        with run.scenario(name, 'only %d is left' % left, kind) as lab:
            lab.dead = set(PATHS) - {left}
            prepare(lab, action)
            for path, fault in zip(sorted(lab.dead), kind):
                faults[fault](lab, path, count=EVER)
            assert action.run(lab) == GOOD
            action.after(lab)


def test_each_action_with_no_path_left(run):
    kinds = itertools.cycle(itertools.permutations([*FAILURES, *STATES], 3))
    faults = {**FAILURES, **STATES}
    for name, action in ACTIONS.items():
        for kind in itertools.islice(kinds, 0, 300, 100):
            with run.scenario(name, kind) as lab:
                prepare(lab, action)
                for path, fault in zip(PATHS, kind):
                    faults[fault](lab, path, count=EVER)
                assert action.run(lab) == LOST
                if name != 'clean up':
                    assert_unchanged(lab)
                lab.dead = set(PATHS)


# ---- Trouble that passes ----------------------------------------------------

def test_a_path_fails_once(run_one):
    for path, (fault, fail), (name, action) in itertools.product(
            PATHS, FAILURES.items(), ACTIONS.items()):
        if fault.startswith('host') and fault not in ('host 01', 'host 07'):
            continue
        with run_one.scenario(name, fault, path) as lab:
            prepare(lab, action)
            fail(lab, path, count=1)
            assert action.run(lab) == GOOD
            action.after(lab)


def test_the_answer_is_lost_once(run_one):
    for path, fault, (name, action) in itertools.product(
            PATHS, ('host 07', 'host 03', 'ENODEV'), ACTIONS.items()):
        with run_one.scenario(name, fault, path) as lab:
            prepare(lab, action)
            FAILURES[fault](lab, path, count=1, after=True)
            answer = action.run(lab)
            if answer == GOOD:
                action.after(lab)
            else:
                assert answer == CONFLICT and not action.is_register, answer


@pytest.mark.parametrize('kind', ['attention', 'becoming ready'])
def test_trouble_that_passes_within_five_repeats(run_one, kind):
    sense = ATTENTION if kind == 'attention' else BECOMING
    for place, times, (name, action) in itertools.product(
            range(3), (1, 3, 5), ACTIONS.items()):
        if times == 5 and 'all' in name or 'ourselves' in name:
            times = 4       # the disk itself has one more
        with run_one.scenario(name, place, times) as lab:
            prepare(lab, action)
            senses(sense)(lab, lab.order[place], count=times)
            assert action.run(lab) == GOOD
            action.after(lab)


def test_the_sixth_unit_attention_is_the_answer(run_one):
    for name, action in ACTIONS.items():
        with run_one.scenario(name) as lab:
            prepare(lab, action)
            # Of a registration after two have accepted it.
            path = lab.order[2 if action.is_register else 0]
            senses(ATTENTION)(lab, path, count=6)
            answer = action.run(lab)
            assert answer == '6/29/00'
            if name != 'clean up':
                assert_unchanged(lab)
            assert lab.nexus(path).commands >= 6


def test_real_unit_attentions_do_not_reach_the_guest(run_one):
    """Those that the disk has for our paths after what we or a rival did."""
    for name, action in ACTIONS.items():
        with run_one.scenario(name) as lab:
            prepare(lab, action)
            for path in PATHS:
                lab.nexus(path).attention = (0x2a03, 0x2a04, 0x2a05, 0x2900)
            assert action.run(lab) == GOOD
            action.after(lab)


# ---- The disk says no -------------------------------------------------------

REFUSALS = {'5/24/00': senses(struct.pack('>BxB4xB4xBB4x', 0x70, 5, 10, 0x24,
                                          0)),
            'B/44/00': senses(struct.pack('>BxB4xB4xBB4x', 0x70, 0xb, 10,
                                          0x44, 0)),
            'status 08': lambda lab, n, **which: lab.nexus(n).answer(
                8, **which),
            '4/44/00': hosts(0x10), '7/27/07': hosts(0x12)}


def test_the_disk_refuses(run_one):
    """On one path: that is the answer, unchanged, and nothing has happened."""
    for (answer, refuse), (name, action) in itertools.product(
            REFUSALS.items(), ACTIONS.items()):
        several = action.is_register or 'release' in name
        for place in range(3 if several else 1):
            with run_one.scenario(name, answer, place) as lab:
                path = lab.order[place]
                prepare(lab, action)
                only = (action.cdb[0], action.cdb[1])
                refuse(lab, path, count=1, only=None if name == 'clean up'
                       else only)
                got = action.run(lab)
                assert got == answer
                if name.startswith('release') and place > 0:
                    pass                # through the path before
                elif name != 'clean up':
                    assert_unchanged(lab)


def test_wrong_key(run):
    for name, action in ACTIONS.items():
        if action.cdb[0] != 0x5f or action.cdb[1] == REGISTER_AND_IGNORE:
            continue
        with run.scenario(name) as lab:
            prepare(lab, action)
            data = struct.pack('>Q', 0xbad) + action.data[8:]
            assert code(lab.request(action.cdb, data)) == CONFLICT
            assert_unchanged(lab)
            if not action.is_register:
                assert not lab.sent(out=True)


def test_not_registered(run):
    for name, action in ACTIONS.items():
        if action.cdb[0] != 0x5f or action.is_register:
            continue
        with run.scenario(name) as lab:
            lab.rival_holds()
            lab.before = lab.state()
            assert action.run(lab) == CONFLICT
            assert_unchanged(lab)


def test_a_rival_has_preempted_us(run):
    """multipathd believes that we are registered, the disk knows better."""
    for name, action in ACTIONS.items():
        if action.cdb[0] != 0x5f or action.cdb[1] == REGISTER_AND_IGNORE:
            continue
        with run.scenario(name) as lab:
            lab.registered()
            for path in PATHS:
                lab.nexus(path).key = 0
            lab.rival_holds()
            lab.before = lab.state()
            data = struct.pack('>Q', KEY) + action.data[8:]
            assert code(lab.request(action.cdb, data)) == CONFLICT
            assert_unchanged(lab)


def test_a_rival_holds(run):
    for name, type_ in (('reserve', 1), ('reserve', 3), ('reserve', 5)):
        with run.scenario(name, type_) as lab:
            lab.registered()
            lab.rival_holds(WRITE_EXCLUSIVE)
            lab.before = lab.state()
            assert lab.out(RESERVE, KEY, 0, type_) == CONFLICT
            assert_unchanged(lab)
            assert all(lab.nexus(n).commands for n in PATHS)
    for dead in ((), (0,), (0, 1)):
        with run.scenario('release', dead) as lab:
            lab.registered()
            lab.rival_holds(WRITE_EXCLUSIVE)
            lab.before = lab.state()
            for path in dead:
                lab.root.state(path, 'offline')
            assert lab.out(RELEASE, KEY, 0, 1) == GOOD
            assert_unchanged(lab)


def test_one_path_has_another_key(run):
    """The other paths decide; it gets the key."""
    for path, name in itertools.product(PATHS, ('change the key',
                                                'the same key again',
                                                'unregister')):
        for stray in (0, 0x57a1e):
            with run.scenario(name, path, stray) as lab:
                action = prepare(lab, ACTIONS[name])
                lab.nexus(path).key = stray
                assert action.run(lab) == GOOD
                action.after(lab)
    for path in PATHS:
        with run.scenario('register', path) as lab:
            lab.nexus(path).key = KEY
            assert ACTIONS['register'].run(lab) == GOOD
            lab.assert_registered(KEY)


# ---- The holding path is dead -----------------------------------------------

def test_type_mismatch_is_never_a_reason_to_preempt(run):
    for dead in ((), (0,)):
        with run.scenario(dead) as lab:
            lab.held(WRITE_EXCLUSIVE)
            lab.dead = set(dead)
            lab.before = lab.state()
            for path in dead:
                lab.root.state(path, 'offline')
            answer = lab.out(RELEASE, KEY, 0, WRITE_EXCLUSIVE_RO)
            assert answer == (CONFLICT if dead else '5/26/04')
            assert_unchanged(lab)
            assert not lab.mpd.texts('suspend')


@pytest.mark.parametrize('hold, answer', [('unset', GOOD), ('unknown', LOST),
                                          ('fail', LOST), ('0.9.4', LOST)])
def test_release_when_multipathd_does_not_know_us_as_the_holder(run, hold,
                                                                answer):
    with run.scenario() as lab:
        lab.held()
        lab.known.prhold = 'set' if hold == 'fail' else hold
        if hold == 'fail':
            lab.mpd.on('getprhold', 'fail')
        if hold == '0.9.4':
            lab.mpd.version, lab.known.prhold = hold, 'unknown'
        lab.root.state(0, 'offline')
        lab.dead = {0}
        lab.before = lab.state()
        assert lab.out(RELEASE, KEY, 0, 1) == answer
        assert_unchanged(lab)
        assert not lab.mpd.texts('suspend')


@pytest.mark.parametrize('hold', ['set', 'unset', 'unknown'])
def test_reserve_again_through_another_path(run, hold):
    """GOOD only where multipathd, and the disk, say that it is ours."""
    cases = {(KEY, 1, 1): hold == 'set', (KEY, 3, 1): False,
             (RIVAL, 1, 1): False, (KEY, 1, 5): False}
    for (key, held_type, type_), good in cases.items():
        with run.scenario(hold, key, held_type, type_) as lab:
            lab.registered()
            lab.rival_registered()
            lab.lun.type = held_type
            lab.lun.holder = RIVALS if key == RIVAL else 0
            lab.known.prhold = hold
            lab.root.state(0, 'offline')
            lab.before = lab.state()
            assert lab.out(RESERVE, KEY, 0, type_) == (
                GOOD if good else CONFLICT)
            assert_unchanged(lab)


def test_number_of_scenarios(capsys):
    with capsys.disabled():
        print('\nmultipath: %d scenarios' % Scenarios.count)
