"""Commands on multipath maps: the whole helper, simulated disks and sysfs, and
a multipathd of our own.

ACTIONS says what each service action comes to when all is well. It has to
come to the same through the paths that are left if others are gone: the
kernel sends those no I/O, and multipathd has noticed (Lab.die()). What has
been seen to go wrong on real parts has a test each; what comes of a fault at
any step, with rivals between, is test_multipath_random.py's. After every
scenario Lab.check() looks at what nobody may ever see: a map that stays
suspended, some usable paths registered and others not, a key that multipathd
has and the disk has not, a command to a disk that is no path of the map.

These tests must not depend on root, SCSI or multipathd, must never take what
they expect from the helper's source, and must not compare a time with
anything but a multiple of many seconds.
"""
import contextlib
import ctypes
import errno
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import pytest

import fake_multipathd as multipathd
import sim
from helper import TOP, Helper, program
from launch import A_USER, lingering, no_more_processes
from prclient import (
    CHECK_CONDITION, CLEAR, EXCLUSIVE_ACCESS_AR, GOOD, PREEMPT,
    PREEMPT_AND_ABORT, READ_FULL_STATUS, READ_KEYS, READ_RESERVATION,
    REGISTER, REGISTER_AND_IGNORE, REGISTER_AND_MOVE, RELEASE,
    REPORT_CAPABILITIES, RESERVATION_CONFLICT, RESERVE, WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_AR, WRITE_EXCLUSIVE_RO, Closed, open_device, parameters,
    pr_in, pr_out, sense_code, sense_data)

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
MODES = ['sessions', 'single-process']
KEY, NEW, RIVAL = 0xa11ce, 0xa11ce2, 0xb0b
EVER = 1 << 30
FAST = {'SIM_SPEED': '0'}      # nobody waits: the helper's clock jumps
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

    def __init__(self, mode='sessions', options=(), env=None,
                 is_verbose=True):
        self.dir = tempfile.mkdtemp(prefix='prh')
        os.chmod(self.dir, 0o755)       # for a helper of another user
        self.target = sim.Target(os.path.join(self.dir, 'sim'))
        self.root = sim.Root(os.path.join(self.dir, 'root'))
        self.mpd = multipathd.Multipathd(os.path.join(self.dir, 'm'),
                                         self.target)
        self.mode = mode
        if mode == 'single-process':
            options = ('--single-process', *options)
        self.env = dict(self.target.env, **self.root.env,
                        MULTIPATH_SOCKET_NAME=self.mpd.address, **env or {})
        self.helper = Helper(self.dir, SIM_HELPER,
                             is_verbose * ('-v',) + tuple(options),
                             env=self.env)
        self.mpd.is_virtual = self.env.get('SIM_SPEED') == '0'
        self.fds, self.client, self.is_broken = [], None, False
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
        if self.mpd.is_virtual:     # so that the log's rate is no concern
            self.target.script.skipped += 5000000
        for nexus in OTHERS:
            self.nexus(nexus).lun = 1
        self.nexus(ALONE).lun = 2
        for nexus in PATHS + OTHERS:        # sda and sdb are of one host
            self.nexus(nexus).initiator = 1 + nexus // 2
        if self.root.is_changed:
            self.make_root()
        else:
            self.root.states_restore()
        self.mpd.maps = [
            multipathd.Map('dm-%d' % n, alias,
                           {sim.disk_name(p): self.nexus(p) for p in paths})
            for n, alias, paths in ((0, 'mpatha', PATHS),
                                    (1, 'mpathb', OTHERS))]
        self.known = self.mpd.maps[0]
        self.dead = set()       # paths that are not usable
        self.may_die = False    # a path that has become the holder
        self.is_consistent = True       # when the scenario has ended
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
        assert not self.is_broken, 'this helper has had a worker that hangs'
        end = time.monotonic() + seconds
        self.is_broken = True
        sessions = self.mode == 'sessions'
        while len(self.helper.sessions()) > sessions:
            assert time.monotonic() < end, self.helper.log()[-2000:]
            time.sleep(0.0005)
        self.is_broken = False

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

    def die(self, path, state='offline'):
        """The kernel has given the path up, and multipathd knows."""
        self.root.state(path, state)
        self.nexus(path).dm_failed = 1
        self.dead.add(path)

    def live(self, path):
        self.root.state(path, 'running')
        self.nexus(path).dm_failed = 0
        self.dead.discard(path)

    # ---- States -----------------------------------------------------------
    def hangs(self, *paths):
        """dm has failed them, and sysfs does not know."""
        for path in paths:
            self.nexus(path).dm_failed = 1
            self.nexus(path).delay_ms = 60000
            self.dead.add(path)

    def more(self, count):
        """Adds so many paths to the map, and returns them."""
        paths = range(20, 20 + count)
        for path in paths:
            self.root.disk(path)
            self.root.join(0, path)
            self.known.paths[sim.disk_name(path)] = self.nexus(path)
        return paths

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
            assert holder[0] in self.usable() or self.may_die, \
                'holder %r' % (holder,)
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
        if not self.is_consistent:
            return
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
    'preempt ourselves, not holding': out(
        both(Lab.registered, Lab.rival_registered), PREEMPT,
        both(released, rival_stays), KEY, KEY, 3),
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

NOT_READY = sense_data(2, 4, 3)
ASLEEP = struct.pack('>BBBB4x', 0x72, 2, 4, 2)      # descriptor format
BECOMING = sense_data(2, 4, 7)
ATTENTION = sense_data(6, 0x29, 0)


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


# These may be answers that were lost.
LOSSES = set(FAILURES) & {'host %02x' % n for n in range(3, 0x20)} - {
    'host 04', 'host 0f'}


# ... or before any is.
def change_state(text):
    return lambda lab, n, **_: lab.die(n, text)


STATES = {'state ' + text: change_state(text)
          for text in ('offline', 'transport-offline', 'deleted', 'cancel',
                       'runningx')}


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
            pytest.fail('%d scenarios went wrong:\n%s' % (
                len(self.wrong), '\n'.join(self.wrong[:20])), pytrace=False)


@pytest.fixture(scope='module', params=MODES)
def module_lab(request):
    lab = Lab(request.param, env=FAST)
    yield lab
    lab.close()


@pytest.fixture(scope='module')
def sessions_lab():
    lab = Lab(env=FAST)
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
    """But that another path of ours may be the holder."""
    def state(keys, holder, *rest):
        return (keys, holder and (holder[0] in lab.usable() or holder[0],
                                  holder[1]), *rest)

    assert state(*lab.state()) == state(*lab.before), '%r, not %r' % (
        lab.state(), lab.before)


def test_who_forgets_to_answer_has_not_said_good(tmp_path):
    """What a map begins with, before anything is known of it."""
    if shutil.which('cc') is None:
        pytest.skip('no compiler')
    source, program_ = tmp_path / 'main.c', str(tmp_path / 'main')
    source.write_text('''#include "multipath/multipath.h"
        int main(void)
        {
            static struct map map;
            map_begin(&map, 0, "", NULL);
            return map.answer.status != 2 || map.answer.payload != 0
                   || map.answer.sense[2] != 0xb || map.answer.sense[12] != 8;
        }''')
    sources = [os.path.join(TOP, name + '.c') for name in (
        'sg_io', 'sysfs', 'log', 'protocol', 'sockets',
        'multipath/map', 'multipath/multipathd')]
    subprocess.run(['cc', '-std=c99', '-D_GNU_SOURCE', '-w', '-I', TOP,
                    '-DVERSION=""', '-DLOCALSTATEDIR=""', '-o', program_,
                    str(source), *sources], check=True)
    subprocess.run([program_], check=True)


def test_what_workers_may_write_costs_the_supervisor_nothing(tmp_path):
    """It stands in memory that one which has been taken over shares."""
    if shutil.which('cc') is None:
        pytest.skip('no compiler')
    source, program_ = tmp_path / 'main.c', str(tmp_path / 'main')
    source.write_text('''#include "multipath/multipath.h"
        #include "supervisor.h"
        #include <sys/mman.h>
        #include <unistd.h>
        void log_at(int level, const char *format, ...)
        {
        }
        void worker_run(const struct supervisor *supervisor,
                        struct suspension *it, struct suspension *own)
        {
            _exit(0);
        }
        int main(void)
        {
            pid_t pids[1] = { 1 };
            struct suspension *due, *it = mmap(NULL, 4096, 3,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            struct supervisor supervisor = {
                .workers = { .slots = 1, .used = 1, .pids = pids,
                             .suspensions = it }
            };
            struct workers *all = &supervisor.workers;
            int64_t now = 1000 * SECOND;

            it[0].alias[0] = 'a';
            /* No place for who resumes: not looked at again and again. */
            workers_check(all, now, &due);
            if (due != it || worker_start(&supervisor, due, now) != 0)
                return 1;
            if (workers_check(all, now, &due) <= now || due != NULL
                || all->count != 0)
                return 2;
            /* For ever is not long. */
            pids[0] = -1; /* dead, with a map suspended */
            it[0].resume_by = NEVER;
            workers_check(all, now, &due);
            workers_check(all, now + COMMAND_WITHIN, &due);
            /* Who resumes it has the place of the dead. */
            return due != it || worker_start(&supervisor, due, now) != 0
                   || pids[0] <= 0;
        }''')
    subprocess.run(['cc', '-std=c99', '-D_GNU_SOURCE', '-w', '-I', TOP, '-o',
                    program_, str(source),
                    os.path.join(TOP, 'multipath/workers.c')], check=True)
    subprocess.run([program_], check=True)


def test_what_workers_may_answer_costs_a_session_nothing(tmp_path):
    """The number of a refusal is that of a text, and those are few."""
    if shutil.which('cc') is None:
        pytest.skip('no compiler')
    source, program_ = tmp_path / 'main.c', str(tmp_path / 'main')
    source.write_text('''#include "multipath/multipath.h"
        #include <string.h>
        #include <sys/socket.h>
        #include <unistd.h>
        int main(void)
        {
            const int refusals[] = { NOT_SCSI_PATHS, NOT_SCSI_PATHS + 1, -1 };
            uint8_t sense[PROTOCOL_SENSE_SIZE];
            unsigned i;

            for (i = 0; i < 3; i++) {
                struct pr_command command = { .sense = sense };
                uint8_t answer[ANSWER_HEAD] = { 0 };
                int ends[2];

                socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends);
                memcpy(answer, &refusals[i], sizeof(refusals[i]));
                write(ends[1], answer, sizeof(answer));
                worker_answer(ends[0], &command);
                if (command.refusal != (i == 0 ? NOT_SCSI_PATHS : NOT_REFUSED)
                    || command.status != (i == 0 ? GOOD : CHECK_CONDITION))
                    return 1;
            }
            return 0;
        }''')
    sources = [os.path.join(TOP, name + '.c') for name in (
        'sg_io', 'sysfs', 'log', 'report', 'protocol', 'sockets',
        'multipath/ask')]
    subprocess.run(['cc', '-std=c99', '-D_GNU_SOURCE', '-w', '-I', TOP,
                    '-ffunction-sections', '-Wl,--gc-sections',
                    '-DVERSION=""', '-DLOCALSTATEDIR=""', '-o', program_,
                    str(source), *sources], check=True)
    subprocess.run([program_], check=True)


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
        if fault.startswith('host') and number % 3 and name not in (
                'register', 'reserve', 'release', 'read keys'):
            continue
        path = run_one.lab.order[number % 3]
        with run_one.scenario(name, fault, path) as lab:
            prepare(lab, action)
            kill(lab, path, count=EVER)
            lab.nexus(path).dm_failed = 1
            lab.dead = {path}
            lab.before = lab.state()
            assert action.run(lab) == GOOD
            action.after(lab)
            assert fault not in STATES or not lab.nexus(path).commands


def test_each_action_with_two_dead_paths(run):
    kinds = ('ENODEV', 'host 01', 'host 0f', 'not ready', 'state offline')
    faults = {**FAILURES, **STATES}
    pairs = itertools.cycle(itertools.permutations(kinds, 2))
    for left, (name, action) in itertools.product(PATHS, ACTIONS.items()):
        kind = next(pairs)
        with run.scenario(name, 'only %d is left' % left, kind) as lab:
            prepare(lab, action)
            for path, fault in zip({*PATHS} - {left}, kind):
                faults[fault](lab, path, count=EVER)
                lab.nexus(path).dm_failed = 1
                lab.dead.add(path)
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
                    lab.nexus(path).dm_failed = 1
                lab.dead = set()
                answer = action.run(lab)
                if name == 'clean up':
                    assert answer in (GOOD, LOST)   # no path may do I/O
                    lab.is_consistent = False
                    continue
                assert answer == LOST
                if name.startswith('reserve') and LOSSES & set(kind):
                    lab.known.prhold = lab.before[-1]   # it may be so
                assert_unchanged(lab)


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
    for place, fault, (name, action) in itertools.product(
            range(3), ('host 03', 'host 05', 'host 07', 'host 08', 'host 0b',
                       'host 0e'), ACTIONS.items()):
        if place and fault != 'host 07':
            continue        # most are decided by the first
        with run_one.scenario(name, fault, place) as lab:
            prepare(lab, action)
            FAILURES[fault](lab, lab.order[place], count=1, after=True)
            answer = action.run(lab)
            if answer == GOOD:
                action.after(lab)
            else:       # not what the other paths say of it, CONFLICT
                assert answer == LOST and not action.is_register, answer
                lab.is_consistent = name != 'clear'


def test_a_fixed_key_does_not_say_that_we_are_registered(run):
    """So a failed registration ends with none, and not with that key."""
    for name in ('register', 'register and ignore'):
        for place in range(3):
            with run.scenario(name, place) as lab:
                lab.known.key = lab.known.fixed = KEY
                action = prepare(lab, ACTIONS[name])
                REFUSALS['5/24/00'](lab, lab.order[place], count=1,
                                    only=action.cdb[:2])
                assert action.run(lab) == '5/24/00'
                assert_unchanged(lab)
        for behaviour, effect in (('close', False), ('close', True),
                                  ('fail', False)):
            with run.scenario(name, behaviour, effect) as lab:
                lab.known.key = lab.known.fixed = KEY
                action = prepare(lab, ACTIONS[name])
                lab.mpd.on('^setprstatus', behaviour, effect=effect)
                assert action.run(lab) == (GOOD if effect else LOST)
                if not effect:
                    assert_unchanged(lab)


def test_multipathd_forgets_a_key_before_it_is_taken_off(run):
    """Or it could put it back on a path meanwhile."""
    for name in ('register', 'register and ignore'):
        with run.scenario(name) as lab:
            action = prepare(lab, ACTIONS[name])
            REFUSALS['5/24/00'](lab, lab.order[1], count=1,
                                only=action.cdb[:2])
            assert action.run(lab) == '5/24/00'
            forgotten = [c.events for c in lab.mpd.commands
                         if c.text.startswith('unsetprkey')]
            off = [at for at, event in enumerate(lab.target.log())
                   if event.cdb[0] == 0x5f and event.key == KEY
                   and not event.sa_key]
            assert forgotten and off and forgotten[0] <= off[0]
            assert_unchanged(lab)


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


def test_real_unit_attentions_do_not_reach_the_guest(run_one):
    """Those that the disk has for our paths after what we or a rival did."""
    for name, action in ACTIONS.items():
        with run_one.scenario(name) as lab:
            prepare(lab, action)
            for path in PATHS:
                lab.nexus(path).attention = (0x2a03, 0x2a04, 0x2a05, 0x2900)
            assert action.run(lab) == GOOD
            action.after(lab)


# ---- What has been seen to go wrong -----------------------------------------

# What a path may be for a while, and then it takes the command.
def blocked_for(seconds):
    def do(lab, n):
        lab.nexus(n).state = sim.BLOCKED
        later(lab, sim.STATE, n, seconds, sim.RUNNING)
    return do


def answers_for(seconds, **what):
    def do(lab, n):
        lab.nexus(n).answer(**what, count=EVER)
        later(lab, sim.INJECT, n, seconds)
    return do


def later(lab, what, n, seconds, argument=0):
    lab.target.act(what, n, at=int(lab.target.clock() + seconds * 1000000),
                   argument=argument)


def sense_of(key, asc, ascq):
    return {'status': 2, 'driver_status': 8,
            'sense': sense_data(key, asc, ascq)}


PASSING = {
    'ALUA transition': answers_for(.8, **sense_of(2, 4, 0x0a)),
    'ALUA transition, long': answers_for(20, **sense_of(2, 4, 0x0a)),
    'becoming ready': answers_for(.8, **sense_of(2, 4, 1)),
    'an operation is in progress': answers_for(10, **sense_of(2, 4, 7)),
    'unit attentions': answers_for(3, **sense_of(6, 0x29, 0)),
    'BUSY': answers_for(3, status=8), 'TASK SET FULL': answers_for(3,
                                                                   status=0x28),
    'REQUEUE': answers_for(2, host_status=0xd),
    'BUS BUSY': answers_for(2, host_status=2),
    'SOFT ERROR': answers_for(2, host_status=0xb),
    'two transient errors': lambda lab, n: lab.nexus(n).answer(
        host_status=0xb, count=2),
    'blocked': blocked_for(2), 'blocked, long': blocked_for(25)}
ALL_PATHS = ('register', 'register and ignore', 'change the key',
             'change the key, holding', 'unregister', 'unregister, holding',
             'preempt ourselves')


@pytest.mark.parametrize('name', ALL_PATHS)
def test_a_path_in_transition_is_waited_for(run_one, name):
    """The kernel sends it I/O in the next moment, and multipathd has seen no
    event, after which it would register it."""
    for path, (kind, begin) in itertools.product((0, 2), PASSING.items()):
        with run_one.scenario(name, kind, path) as lab:
            action = prepare(lab, ACTIONS[name])
            begin(lab, path)
            assert action.run(lab) == GOOD
            action.after(lab)
            assert not lab.target.script.stuck


@pytest.mark.parametrize('name', ALL_PATHS)
def test_nothing_is_done_while_a_path_stays_in_transition(run_one, name):
    """It is not changed on one path and, for long, not on the other."""
    for path, (kind, begin) in itertools.product((0, 1, 2), {
            'blocked': blocked_for(300),
            'transition': answers_for(300, **sense_of(2, 4, 0x0a)),
            'BUSY': answers_for(300, status=8)}.items()):
        with run_one.scenario(name, kind, path) as lab:
            action = prepare(lab, ACTIONS[name])
            begin(lab, path)
            clock, at = lab.target.clock(), len(lab.helper.log())
            assert action.run(lab) == LOST
            assert 20 < (lab.target.clock() - clock) / 1000000 < 62
            assert_unchanged(lab)
            lab.wait_idle()
            assert re.search('nothing was done, as %s' % sim.disk_name(path),
                             lab.helper.log()[at:])
            assert not lab.target.script.stuck, 'sent into a stopped queue'


def test_what_one_path_can_do_does_not_wait_for_the_other(run_one):
    """To fence somebody is not delayed by a path that is blocked."""
    for name, path in itertools.product(
            ('reserve', 'preempt the holder', 'preempt a registrant',
             'preempt and abort', 'read keys'), PATHS):
        with run_one.scenario(name, path) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.nexus(path).state = sim.BLOCKED
            clock = lab.target.clock()
            assert action.run(lab) == GOOD
            assert lab.target.clock() - clock < 5000000
            action.after(lab)


@pytest.mark.parametrize('name', ALL_PATHS)
def test_a_path_that_fails_commands_but_is_active_is_not_left_out(run_one,
                                                                  name):
    for path, kind in itertools.product(PATHS, ('ENODEV', 'host 01',
                                                'not ready', 'offline')):
        with run_one.scenario(name, path, kind) as lab:
            action = prepare(lab, ACTIONS[name])
            if kind == 'offline':
                lab.root.state(path, kind)
            else:
                FAILURES[kind](lab, path, count=EVER)
            at = len(lab.helper.log())
            assert action.run(lab) == LOST
            assert_unchanged(lab)
            lab.wait_idle()
            assert 'nothing was done, as ' + sim.disk_name(path) \
                in lab.helper.log()[at:]


@pytest.mark.parametrize('name', ALL_PATHS)
def test_a_path_that_cannot_be_opened_is_not_left_out(run_one, name):
    """libvirt's /dev, or a container's, may lack it: that is our problem."""
    for path, error in itertools.product(PATHS, (
            errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ENXIO,
            'another map', 'another path')):
        with run_one.scenario(name, path, error) as lab:
            action = prepare(lab, ACTIONS[name])
            nexus, other = lab.nexus(path), OTHERS[0]
            if isinstance(error, str):
                if error == 'another path':
                    other = 1 if path != 1 else 2
                nexus.open_other, error = other, None
                lab.root.is_changed = True
            else:
                nexus.open_errno = error
            at = len(lab.helper.log())
            assert action.run(lab) == LOST
            assert_unchanged(lab)
            lab.wait_idle()
            why = os.strerror(error) if error else 'disk'
            if error == errno.EMFILE:
                why += '|No file descriptors available'     # musl's
            # Or, on a machine that is very busy, the session gave up.
            assert re.search('%s.*(%s)|map hangs' % (sim.disk_name(path), why),
                             lab.helper.log()[at:]), lab.helper.log()[at:]
            assert not nexus.commands and not lab.nexus(OTHERS[0]).commands


def test_an_unregistration_is_never_undone(run_one):
    """multipathd does not answer; meanwhile a rival reserves and releases."""
    for name, behaviour in itertools.product(
            ('unregister', 'unregister, holding', 'unregister and ignore'),
            ('hang', 'close', 'fail', 'timeout')):
        with run_one.scenario(name, behaviour) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.rival_registered()
            lab.mpd.on('^unsetprstatus', behaviour)
            assert action.run(lab) == LOST
            lab.wait_idle()
            assert lab.keys() == [0, 0, 0] and lab.holder() is None
            assert not any(e.sa_key for e in lab.sent(out=True)
                           if e.key != e.sa_key)
            lab.is_consistent = False


@pytest.mark.parametrize('name', ['preempt ourselves',
                                  'preempt ourselves, not holding',
                                  'preempt and abort ourselves'])
def test_who_was_preempted_while_an_answer_was_lost_stays_out(run_one, name):
    """There is no path left that could say that nobody was faster."""
    action = ACTIONS[name]
    for host, step in itertools.product((3, 7, 0xe), range(4)):
        with run_one.scenario(name, host, step) as lab:
            prepare(lab, action)
            lab.rival_registered()
            lab.nexus(lab.order[0]).answer(
                host_status=host, after=True, only=tuple(action.cdb[:2]))
            preempts = lab.target.act(PREEMPT, RIVALS, sim.HIT + step,
                                      key=KEY, argument=5)
            answer = action.run(lab)
            lab.wait_idle()
            lab.is_consistent = False
            if not preempts.done_at or preempts.status:
                continue        # there was nothing to preempt
            assert lab.keys() == [0, 0, 0], answer


@pytest.mark.parametrize('version', ['0.9.4', '0.14'])
@pytest.mark.parametrize('hold', ['unknown', 'set', 'unset'])
def test_another_host_holds_with_our_key(run_one, version, hold):
    """As after a live migration: all our paths work, so it is not us."""
    for name in ('release', 'change the key', 'unregister',
                 'register and ignore, known', 'unregister and ignore'):
        for dead in ((), (1,)) if hold == 'unset' and version != '0.9.4' \
                else ((),):
            with run_one.scenario(name, dead) as lab:
                action = ACTIONS[name]
                lab.registered()
                lab.mpd.version = version
                lab.strangers_allowed = True
                lab.nexus(RIVALS).key = KEY     # the twin
                lab.lun.type, lab.lun.holder = 1, RIVALS
                lab.known.prhold = hold     # its guess, after a restart
                for path in dead:
                    lab.die(path)
                assert action.run(lab) == GOOD
                lab.wait_idle()
                assert lab.holder() == (RIVALS, 1)
                assert lab.nexus(RIVALS).key == KEY
                keys = {'release': KEY, 'change the key': NEW,
                        'register and ignore, known': NEW}.get(name, 0)
                assert set(lab.keys()) == {keys}
                assert not lab.mpd.texts('suspend')


def test_who_reserves_what_is_released_meanwhile_is_known_to_hold(run_one):
    """Also if that was between the look at who holds, and RESERVE."""
    answers = set()
    for step in range(1, 16):
        with run_one.scenario(step) as lab:
            lab.registered()
            lab.rival_holds(WRITE_EXCLUSIVE)
            lab.known.prhold = 'unset'
            lab.target.act(RELEASE, RIVALS, step, argument=WRITE_EXCLUSIVE)
            answer = lab.out(RESERVE, KEY, 0, WRITE_EXCLUSIVE)
            lab.wait_idle()
            assert lab.known.prhold == ('set' if answer == GOOD else 'unset')
            answers.add(answer)
    assert answers == {GOOD, CONFLICT}


def test_what_multipathd_still_thinks_held_is_not_released(run_one):
    """It would take a twin's reservation for that of a path that is gone."""
    for which, returns in (('unset', 'fail'), ('unset', 'timeout'),
                           ('unset|get', 'close')):
        with run_one.scenario(which, returns) as lab:
            lab.held()
            lab.mpd.on('^(%s)prhold' % which, returns, count=EVER)
            assert lab.out(RELEASE, KEY, 0, WRITE_EXCLUSIVE) == LOST
            lab.wait_idle()
            lab.mpd.rules = []
            assert lab.known.prhold == 'set'
            assert lab.out(RELEASE, KEY, 0, WRITE_EXCLUSIVE) == GOOD
            assert lab.known.prhold == 'unset' and lab.holder() is None


def test_a_busy_multipathd_costs_nobody_his_reservation(run_one):
    """It says nothing to another key, until there is no time left."""
    for name, status in itertools.product(
            ('change the key, holding', 'register and ignore, known'),
            ('set', 'unset')):
        with run_one.scenario(name, status) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.known.prflag = status
            lab.mpd.on('^setprstatus', 'timeout', count=EVER)
            was = lab.holder()
            assert action.run(lab) == (GOOD if status == 'set' else LOST)
            lab.wait_idle()
            assert lab.holder() == was and 0 not in lab.keys()
            lab.is_consistent = status == 'set'


def test_a_path_without_a_key_says_nothing_of_the_map(run_one):
    """It has come, and multipathd is about to register it."""
    for path, key in itertools.product(PATHS, (0, NEW)):
        with run_one.scenario(path, key) as lab:
            lab.registered(paths=[p for p in PATHS if p != path])
            lab.is_consistent = False
            assert lab.out(REGISTER, 0, key) == CONFLICT
            lab.wait_idle()
            assert lab.keys() == [0 if p == path else KEY for p in PATHS]
            assert lab.known.key == KEY and lab.known.prflag == 'set'


@pytest.mark.parametrize('answer', ['5/20/00', '5/24/00'])
def test_a_path_that_refuses_release_does_not_hold_what_a_twin_holds(
        run_one, answer):
    """SPDK says 5/24/00 to a RELEASE of another type through each path."""
    for hold, path in itertools.product(('set', 'unknown'), PATHS[:2]):
        with run_one.scenario(hold, path) as lab:
            prepare(lab, ACTIONS['reserve'])
            lab.die(2)
            lab.nexus(RIVALS).key = KEY     # the twin
            lab.lun.type, lab.lun.holder = 1, RIVALS
            lab.known.prhold = hold
            lab.nexus(path).answer(
                **sense_of(5, int(answer[2:4], 16), 0), count=EVER,
                only=(0x5f, RELEASE))
            begin = len(lab.helper.log())
            assert lab.out(RESERVE, KEY, 0, 1) == LOST
            lab.wait_idle()
            assert lab.known.prhold == hold
            assert '%s does not tell' % sim.disk_name(path) \
                in lab.helper.log()[begin:]


def twin_holds(lab, hold):
    """With one path; and one of ours has never been registered."""
    lab.registered()
    lab.nexus(2).key = 0
    lab.die(2)
    lab.strangers_allowed = True
    lab.nexus(RIVALS).key = KEY
    lab.lun.type, lab.lun.holder = 1, RIVALS
    lab.known.prhold = hold


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key'])
def test_what_we_could_not_take_from_a_twin_stays_his(run_one, name):
    """Nor does multipathd think afterwards that it is ours."""
    def preempt(lab):
        lab.mpd.on('suspend', 'fail', count=1)
        return lab.out(PREEMPT, KEY, KEY, 1)

    def reserve(lab, after):
        for path in PATHS:
            lab.nexus(path).answer(host_status=7, after=after,
                                   only=(0x5f, RESERVE))
        return lab.out(RESERVE, KEY, 0, 1)

    for number, command in enumerate((
            preempt, lambda lab: reserve(lab, 0),
            lambda lab: reserve(lab, 1))):
        with run_one.scenario(number) as lab:
            twin_holds(lab, 'unset')
            lab.is_consistent = False
            assert command(lab) != GOOD
            lab.wait_idle()
            assert lab.known.prhold == 'unset'
            ACTIONS[name].run(lab)
            lab.wait_idle()
            assert lab.holder() == (RIVALS, 1)


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key',
                                  'register and ignore, known'])
def test_who_was_migrated_away_takes_nothing_back(run_one, name):
    """The twin has one path or two; of ours one has got the key again, one has
    lost it, and one is gone. multipathd has not heard of it."""
    for (one, other), second in itertools.product(
            itertools.permutations(PATHS, 2), (0, KEY)):
        with run_one.scenario(one, other, second) as lab:
            twin_holds(lab, 'set')
            lab.live(2)
            lab.is_consistent = False
            lab.nexus(101).key = second
            for path in PATHS:
                lab.nexus(path).key = KEY * (path == one)
            lab.die(other)
            ACTIONS[name].run(lab)
            lab.wait_idle()
            assert lab.holder() == (RIVALS, 1)
            assert lab.nexus(101).key == second


@pytest.mark.parametrize('name', ['register and ignore', 'clean up'])
def test_who_was_migrated_away_comes_back_while_a_path_is_gone(run_one, name):
    """His key is off all paths that are there, and nothing depends on who
    holds. multipathd has not heard that it is another host."""
    for gone in PATHS:
        with run_one.scenario(gone) as lab:
            lab.registered()
            for path in PATHS:
                lab.nexus(path).key = 0
            lab.strangers_allowed = True
            lab.nexus(RIVALS).key = KEY
            lab.lun.type, lab.lun.holder = 1, RIVALS
            lab.known.prhold = 'set'
            lab.die(gone)
            assert ACTIONS[name].run(lab) == GOOD
            assert lab.holder() == (RIVALS, 1)
            if name == 'clean up':
                continue
            assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
            lab.assert_held(1)


@pytest.mark.parametrize('hold', ['set', 'unset'])
def test_who_registers_again_and_holds_is_known_to_hold(run_one, hold):
    """With key 0 where a path has just come and has none, or when multipathd
    had forgotten the key. Else the RELEASE after that is GOOD, and the path
    that is gone by then still holds."""
    for holder, fresh in itertools.permutations(PATHS, 2):
        for action in REGISTER, REGISTER_AND_IGNORE:
            with run_one.scenario(holder, fresh, action) as lab:
                lab.held(1, holder)
                lab.known.prhold = hold
                if action == REGISTER:
                    lab.nexus(fresh).key = 0
                else:
                    lab.known.key, lab.known.prflag = 0, 'unset'
                assert lab.out(action, 0, KEY) in (GOOD, CONFLICT)
                lab.wait_idle()
                lab.die(holder)
                assert lab.out(RELEASE, KEY, 0, 1) != GOOD \
                    or lab.holder() is None


def test_what_multipathd_does_not_note_is_not_reserved(run_one):
    """It would say that we do not hold when the path that does is gone."""
    for behaviour in ('fail',):
        with run_one.scenario(behaviour) as lab:
            lab.held()
            lab.known.prhold = 'unset'
            lab.mpd.on('^setprhold', behaviour)
            assert lab.out(RESERVE, KEY, 0, 1) == LOST
            lab.wait_idle()
            lab.mpd.rules = []
            assert lab.out(RESERVE, KEY, 0, 1) == GOOD
            assert lab.known.prhold == 'set'


def test_a_path_that_gets_its_key_meanwhile_does_not_hold(run_one):
    """Linux' target says CONFLICT to a RELEASE of another type, as the path has
    no key; then multipathd registers it, so that it has one when asked."""
    for fresh, holder in itertools.permutations(PATHS, 2):
        for step in range(6, 14):
            with run_one.scenario(fresh, holder, step) as lab:
                lab.target.is_lio = 1
                lab.held(1, holder)
                lab.nexus(fresh).key = 0
                blocked_for(1)(lab, holder)
                lab.target.act(REGISTER, fresh, step, key=KEY)
                assert lab.out(RELEASE, KEY, 0, 1) != GOOD \
                    or lab.holder() is None


def test_who_has_preempted_his_own_key_is_busy_then(run_one):
    """He is asked again if he has kept his key, and is the witness."""
    for holder in PATHS:
        with run_one.scenario(holder) as lab:
            lab.held(1, holder)
            for path in PATHS:
                lab.nexus(path).answer(status=8, only=(0x5f, REGISTER),
                                       count=3)
            assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
            lab.assert_held(1)


def test_a_conflict_of_our_preemption_leaves_no_hold_behind(run_one):
    """Somebody has fenced us, and our twin holds."""
    with run_one.scenario() as lab:
        twin_holds(lab, 'unset')
        lab.live(2)
        lab.is_consistent = False
        for path in PATHS:
            lab.nexus(path).key = 0
        assert lab.out(PREEMPT, KEY, KEY, 1) == CONFLICT
        assert lab.known.prhold == 'unset'


@pytest.mark.parametrize('resid', [1, 3, 8, 16, 17, 24])
def test_a_short_answer_is_not_that_nobody_holds(run_one, resid):
    """READ RESERVATION that lacks some of the bytes that it speaks of."""
    for path, holder, name in itertools.product(PATHS, PATHS, (
            'release', 'unregister, holding', 'change the key, holding',
            'preempt ourselves')):
        with run_one.scenario(name, path, holder) as lab:
            action = ACTIONS[name]
            lab.held(WRITE_EXCLUSIVE, holder)
            lab.rival_registered()
            lab.nexus(path).resid = resid
            lab.nexus(path).begin_injection(sim.INJECT_RESID, EVER,
                                            only=(0x5e, READ_RESERVATION))
            assert action.run(lab) != GOOD or action.after(lab) is None


def test_more_are_registered_than_a_guest_could_read(run_one):
    for name, action in ACTIONS.items():
        with run_one.scenario(name) as lab:
            prepare(lab, action)
            lab.target.crowd = 1500
            assert action.run(lab) == GOOD
            action.after(lab)


def test_fencing_needs_no_list_of_keys(run_one):
    """It may be longer than there is room for."""
    with run_one.scenario() as lab:
        lab.registered()
        lab.rival_holds(WRITE_EXCLUSIVE)
        for path in PATHS:
            lab.nexus(path).resid = 8192 - 16
            lab.nexus(path).begin_injection(sim.INJECT_RESID, EVER,
                                            only=(0x5e, READ_KEYS))
        assert lab.out(PREEMPT, KEY, RIVAL, 1) == GOOD
        assert lab.nexus(RIVALS).key == 0 and lab.known.prhold == 'set'


def test_recovered_error_is_good(run_one):
    for path, (name, action) in itertools.product(PATHS, ACTIONS.items()):
        with run_one.scenario(name, path) as lab:
            prepare(lab, action)
            lab.nexus(path).answer(**sense_of(1, 0x17, 1), count=EVER,
                                   after=True)
            assert action.run(lab) == GOOD
            action.after(lab)


@pytest.mark.parametrize('response', [0x71, 0x73])
def test_a_deferred_error_is_of_another_command(run_one, response):
    """What says so has not been carried out, even if that is recovered."""
    for path, (name, action) in itertools.product(PATHS, ACTIONS.items()):
        with run_one.scenario(name, path) as lab:
            prepare(lab, action)
            fields = [response, 0, 1] + 9 * [0] + [0x17, 1] if response == 0x71 \
                else [response, 1, 0x17, 1]
            lab.nexus(path).answer(status=2, driver_status=8,
                                   sense=bytes(fields + 14 * [0]), count=2)
            assert action.run(lab) == GOOD
            action.after(lab)


@pytest.mark.parametrize('sense', [(5, 0x25, 0), (5, 0x94, 1)])
def test_an_unmapped_path_is_left_out_if_multipathd_has_failed_it(run_one,
                                                                  sense):
    for path, failed, name in itertools.product(PATHS, (1, 0), ALL_PATHS):
        with run_one.scenario(name, path, failed) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.nexus(path).answer(**sense_of(*sense), count=EVER)
            lab.nexus(path).dm_failed = failed
            at = len(lab.helper.log())
            answer = action.run(lab)
            lab.wait_idle()
            assert sim.disk_name(path) in lab.helper.log()[at:]
            if failed:
                lab.dead = {path}
                assert answer == GOOD
                action.after(lab)
            else:
                assert answer == LOST
                assert_unchanged(lab)


@pytest.mark.parametrize('name', [*ALL_PATHS, 'reserve', 'release', 'clear',
                                  'read keys', 'preempt the holder'])
def test_two_hanging_paths_of_three(run_one, name):
    """The command ends in a minute, the suspension in seconds."""
    for left, does in itertools.product(PATHS, (0, 1)):
        with run_one.scenario(name, left, does) as lab:
            action = prepare(lab, ACTIONS[name])
            for path in {*PATHS} - {left}:
                lab.nexus(path).delay_ms = 300000
                lab.nexus(path).hang_after = does
            clock = lab.target.clock()
            action.run(lab)
            lab.wait_idle()
            assert lab.target.clock() - clock < 65 * 1000000
            for begin, end in lab.known.suspensions:
                assert end - begin < 20 * 1000000
            lab.is_consistent = False


def test_a_map_that_is_not_resumed_holds_up_nobody_for_long(run_one):
    for behaviour in ('hang', 'timeout', 'fail', 10):
        with run_one.scenario(behaviour) as lab:
            action = prepare(lab, ACTIONS['preempt ourselves'])
            lab.mpd.on('^resume', behaviour)
            clock = lab.target.clock()
            assert action.run(lab) == LOST
            assert lab.target.clock() - clock < 62 * 1000000
            lab.wait_idle()
            assert 'dmsetup resume mpatha' in lab.helper.log()
            lab.mpd.rules.clear()
            wait_until(lambda: not lab.known.suspended)


def test_without_a_reservation_key_the_setting_is_named(run):
    for name in 'register', 'register and ignore':
        with run.scenario(name) as lab:
            lab.known.fixed = None
            action = prepare(lab, ACTIONS[name])
            at = len(lab.helper.log())
            assert action.run(lab) == LOST
            assert lab.keys() == [0, 0, 0]
            lab.wait_idle()
            assert 'reservation_key file' in lab.helper.log()[at:]


def test_aptpl_that_a_fixed_key_does_not_keep(run):
    """It would be turned off by the next command, or by multipathd."""
    for name, flags in (('register', 1), ('register and ignore', 1),
                        ('the same key again', 1), ('register', 0),
                        ('unregister', 1)):
        for has_aptpl in (False, True):
            with run.scenario(name, flags, has_aptpl) as lab:
                lab.known.key = lab.known.fixed = KEY
                lab.known.aptpl = has_aptpl
                action = prepare(lab, ACTIONS[name])
                data = action.data[:20] + bytes([flags, 0, 0, 0])
                at = len(lab.helper.log())
                answer = code(lab.request(action.cdb, data))
                lab.wait_idle()
                said = re.search(":aptpl, but .*'reservation_key file'.*"
                                 "multipath.conf", lab.helper.log()[at:])
                if not flags or has_aptpl or name == 'unregister':
                    assert answer == GOOD and not said
                    action.after(lab)
                    assert lab.lun.aptpl == flags or name == 'unregister'
                    continue
                assert answer == LOST and said and not lab.sent(out=True)[1:]
                assert_unchanged(lab)


def test_multipathds_timeout_is_neither_yes_nor_no(run_one):
    """It is busy: asked again, as long as there is time."""
    for name, action in ACTIONS.items():
        if action.is_in:
            continue
        with run_one.scenario(name) as lab:
            prepare_dead(lab, action, SUSPENDING.get(name, ()))
            lab.mpd.on('', 'timeout', count=3)
            assert action.run(lab) == GOOD
            action.after(lab)


def test_who_reads_while_multipathd_is_silent_is_not_held_up(lab_of):
    lab = lab_of()
    lab.registered()
    lab.mpd.on('', 'hang')
    assert ACTIONS['read keys'].run(lab) == GOOD
    assert not lab.mpd.texts()


@pytest.mark.parametrize('type_', [WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR])
def test_what_a_rival_reserves_after_our_release_stays(run_one, type_):
    """He is a registrant, too, and may do so before the answer is there."""
    for step, lost in itertools.product(range(1, 14), (False, True)):
        with run_one.scenario(step, lost) as lab:
            lab.held(type_)
            lab.rival_registered()
            lab.is_consistent = False
            if lost:
                lab.nexus(lab.order[0]).answer(
                    host_status=7, after=True, only=(0x5f, RELEASE))
            reserves = lab.target.act(RESERVE, RIVALS, step, argument=type_)
            lab.out(RELEASE, KEY, 0, type_)
            lab.wait_idle()
            assert [event.cdb[1:3] for event in lab.sent(out=True)].count(
                bytes([RELEASE, type_])) <= 1
            assert not reserves.done_at or lab.holder() == (None, type_) \
                or step < 6     # it was ours still


def test_release_of_another_type_than_is_held(run_one):
    """The disk decides by what is there."""
    for held_, type_ in itertools.product((1, 3, 7, 8), repeat=2):
        with run_one.scenario(held_, type_) as lab:
            lab.held(held_, lab.order[2])
            answer = lab.out(RELEASE, KEY, 0, type_)
            if held_ == type_:
                assert answer == GOOD
                lab.assert_released()
            else:
                assert answer == '5/26/04'
                lab.assert_held(held_)


def test_release_by_a_holder_who_cannot_be_asked_at_once(run_one):
    """Where the probe says CONFLICT, as with LIO, it may also be one that is
    not registered: until that is known, he may be the holder. (It has not
    taken RELEASE at first, as it was blocked.)"""
    trouble = ({'status': 0x08}, {'host_status': 7},
               {'host_status': 7, 'after': True}, {'status': 2,
                                                   'sense': NOT_READY})
    for path, answer in itertools.product(PATHS, trouble):
        with run_one.scenario(path, str(answer)) as lab:
            lab.target.is_lio = 1
            lab.held(WRITE_EXCLUSIVE, path)
            blocked_for(1)(lab, path)
            lab.nexus(path).answer(only=(0x5f, REGISTER), **answer)
            assert lab.out(RELEASE, KEY, 0, WRITE_EXCLUSIVE) == GOOD
            assert not lab.nexus(path).inject_count
            lab.assert_released()


def test_multipathd_registers_a_path_while_we_unregister(run_one):
    """With the key it had so far, whatever key the guest names."""
    for place, key, action in itertools.product(
            range(3), (0, NEW), (REGISTER, REGISTER_AND_IGNORE)):
        with run_one.scenario(place, key, action) as lab:
            lab.registered(key, PATHS)
            lab.known.key = KEY

            def returns(_):
                lab.known.path_returns(sim.disk_name(lab.order[place]))

            # It is told only what comes after the paths.
            lab.mpd.on('^unsetprkey', returns, count=1)
            assert lab.out(action, key, 0) == GOOD
            nobody(lab)


def test_a_path_that_dm_has_failed_is_asked_last(run_one):
    """It may hang, and what it has lost the others cannot tell."""
    for path, (name, action) in itertools.product(PATHS, ACTIONS.items()):
        if action.is_register or name == 'clean up':
            continue
        with run_one.scenario(name, path) as lab:
            prepare(lab, action)
            lab.nexus(path).delay_ms = 300000
            lab.nexus(path).hang_after = 1
            lab.nexus(path).dm_failed = 1
            lab.dead = {path}
            lab.may_die = True
            clock = lab.target.clock()
            assert action.run(lab) == GOOD
            assert name in SUSPENDING \
                or lab.target.clock() - clock < 15000000


def test_keys_are_read_on_a_path_that_has_just_come_back(run_one):
    """Although another has written some, and then its answer was lost."""
    with run_one.scenario() as lab:
        lab.registered()
        first, *others = lab.order
        lab.nexus(first).answer(host_status=3, count=EVER, after=True)
        lab.nexus(first).dm_failed = 1
        for path in others:
            lab.nexus(path).state = sim.TRANSPORT_OFFLINE
            lab.nexus(path).dm_failed = 1
        lab.target.act(sim.STATE, others[0], 2, argument=sim.RUNNING)
        assert lab.client.read_in(lab.map, READ_KEYS).status == GOOD


def test_what_was_reserved_just_before_we_preempt_is_ours(run_one):
    """Nobody had reserved anything when we looked."""
    for step, (other, key) in itertools.product(range(2, 12), (
            (RIVALS, RIVAL), (101, KEY))):
        with run_one.scenario(step, other) as lab:
            lab.registered()
            lab.rival_registered()
            lab.strangers_allowed = True
            lab.nexus(other).key = key
            lab.target.act(RESERVE, other, step, argument=1)
            assert lab.out(PREEMPT, KEY, key, 1) == GOOD
            lab.wait_idle()
            assert (lab.known.prhold == 'set') == (
                lab.holder() is not None and lab.holder()[0] in PATHS)
        with run_one.scenario(step, other, 'and an error') as lab:
            lab.registered()
            lab.rival_registered()
            lab.strangers_allowed, lab.is_consistent = True, False
            lab.nexus(other).key = key
            lab.target.act(RESERVE, other, step, argument=1)
            if key == KEY:      # a path does not get its key back
                lab.nexus(lab.order[2]).answer(
                    status=0x08, count=EVER, only=(0x5f, REGISTER_AND_IGNORE))
            else:               # the answer is lost
                lab.nexus(lab.order[0]).answer(
                    host_status=0x03, after=True, only=(0x5f, PREEMPT))
            assert lab.out(PREEMPT, KEY, key, 1) == LOST
            lab.wait_idle()
            if lab.holder() and lab.holder()[0] in PATHS:
                assert lab.known.prhold == 'set'


def test_who_reserves_at_last_is_known_to_hold(run_one):
    """A rival held when we looked, or we did, and multipathd did not know: if
    our path is gone then, RELEASE must not say that nothing is held."""
    for step in (0, 4, 5):
        with run_one.scenario(step) as lab:
            lab.registered()
            lab.rival_registered()
            lab.lun.type = 1
            lab.lun.holder = RIVALS if step else lab.order[0]
            if step:
                lab.target.act(RELEASE, RIVALS, step, argument=1)
            assert lab.out(RESERVE, KEY, 0, 1) == GOOD
            assert lab.holder() == (lab.order[0], 1)
            assert lab.known.prhold == 'set'
            lab.die(lab.order[0])
            assert lab.out(RELEASE, KEY, 0, 1) == GOOD
            assert lab.holder() is None


def test_who_reserves_while_multipathd_is_silent_is_known_to_hold(run_one):
    """Or hears an error: when our path is gone, RELEASE would do nothing."""
    for name, way, skip in itertools.product(
            ('reserve', 'preempt the holder'), ('hang', 'close'), range(1, 6)):
        with run_one.scenario(name, way, skip) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.mpd.on('', way, skip=skip)
            answer = action.run(lab)
            lab.wait_idle()
            lab.mpd.rules = []
            if answer != GOOD:
                assert lab.out(RESERVE, KEY, 0, 1) in (GOOD, CONFLICT)
            if lab.holder()[0] in PATHS:
                assert lab.known.prhold == 'set'
                lab.die(lab.holder()[0])
                assert lab.out(RELEASE, KEY, 0, 1) == GOOD
                assert lab.holder() is None


def test_an_error_after_the_fact_leaves_us_the_holder(run_one):
    """RESERVE or PREEMPT is done, and the answer is an error of the disk."""
    for place, name in itertools.product(range(3), (
            'reserve', 'reserve for all', 'preempt the holder')):
        with run_one.scenario(place, name) as lab:
            action = prepare(lab, ACTIONS[name])
            path = lab.order[place]
            lab.nexus(path).answer(**sense_of(4, 0x44, 0), after=True,
                                   only=tuple(action.cdb[:2]))
            answer = action.run(lab)
            assert place or answer == '4/44/00'
            assert lab.holder() and lab.known.prhold == 'set'
            action.after(lab)


def test_what_was_aborted_may_have_been_done(run_one):
    """The guest must not hear from the next path that it was not."""
    for place, name in itertools.product(range(3), (
            'preempt the holder', 'preempt a registrant', 'clear',
            'preempt and abort', 'preempt ourselves')):
        with run_one.scenario(place, name) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.nexus(lab.order[place]).answer(
                **sense_of(0xb, 0x47, 3), after=True,
                only=tuple(action.cdb[:2]))
            answer = action.run(lab)
            if answer == GOOD:
                action.after(lab)
            else:
                assert answer == LOST
                lab.is_consistent = False


def test_keys_are_taken_off_slow_paths(run_one):
    """Each command takes 6 s on each path: too long to register all."""
    for name in 'register', 'register and ignore':
        with run_one.scenario(name) as lab:
            action = prepare(lab, ACTIONS[name])
            for path in PATHS:
                lab.nexus(path).delay_ms = 6000
            clock = lab.target.clock()
            assert action.run(lab) in (GOOD, LOST)
            assert lab.target.clock() - clock < 66 * 1000000
            lab.wait_idle()
            if lab.keys() != [KEY, KEY, KEY]:
                assert lab.keys() == [0, 0, 0]


def test_a_command_that_needs_many_others_ends_in_time(run_one):
    """What takes the reservation over from a path that is gone comes last."""
    for name, ms in itertools.product(('release', 'unregister, holding'),
                                      (2000, 4000, 5000, 6000)):
        with run_one.scenario(name, ms) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.die(0)
            for path in PATHS:
                lab.nexus(path).delay_ms = ms
            lab.is_consistent = False
            clock = lab.target.clock()
            action.run(lab)
            assert lab.target.clock() - clock < 60 * 1000000


# ---- The disk says no -------------------------------------------------------

REFUSALS = {'5/24/00': senses(sense_data(5, 0x24, 0)),
            '4/44/00': hosts(0x10), '7/27/07': hosts(0x12)}


def test_the_disk_refuses(run_one):
    """On one path: that is the answer, and a new key is taken away again, a
    key that was given up stays so, and nothing of ours is in its place."""
    for (answer, refuse), (name, action) in itertools.product(
            REFUSALS.items(), ACTIONS.items()):
        several = action.is_register or 'release' in name
        for place in range(3 if several else 1):
            with run_one.scenario(name, answer, place) as lab:
                path = lab.order[place]
                prepare(lab, action)
                # What the helper makes up it tries with ALL_TG_PT, too.
                count = 1 + (name == 'clean up' and answer == '5/24/00')
                refuse(lab, path, count=count,
                       only=(0x5f, REGISTER_AND_IGNORE) if name == 'clean up'
                       else (action.cdb[0], action.cdb[1]))
                got = action.run(lab)
                if got == GOOD and (action.is_register
                                    or name.startswith('release')):
                    action.after(lab)   # one that it made itself
                    continue
                assert got == answer or got == LOST and (
                    'unregister' in name or name == 'clean up')
                if not action.is_register and name != 'clean up':
                    assert_unchanged(lab)
                    continue
                lab.is_consistent = False
                assert set(lab.keys()) <= {lab.before[0][0], 0}
                assert 'unregister' in name or name == 'clean up' \
                    or lab.known.key == lab.before[0][0]


def test_a_path_conflicts_whatever_the_key(run_one):
    """As if somebody had reserved it with SCSI-2's RESERVE by another."""
    for name, path in itertools.product((
            'register', 'register and ignore', 'change the key',
            'register and ignore, known', 'unregister',
            'unregister and ignore'), PATHS):
        with run_one.scenario(name, path) as lab:
            action = prepare(lab, ACTIONS[name])
            for nexus in PATHS:
                if nexus != path:
                    lab.nexus(nexus).answer(
                        status=0x18, count=EVER,
                        only=(0x5f, REGISTER_AND_IGNORE))
            lab.is_consistent = False
            if action.run(lab) == GOOD:
                action.after(lab)


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


def test_the_holder_is_not_ready_and_then_blocked(run_one):
    """That the others conflict is not the answer before it has decided."""
    for name, place, step in itertools.product(
            ('reserve again', 'preempt a registrant'), range(3), range(1, 6)):
        with run_one.scenario(name, place, step) as lab:
            action = prepare(lab, ACTIONS[name])
            path = lab.order[place]
            lab.lun.holder = path
            lab.nexus(path).answer(**sense_of(2, 4, 3),
                                   only=tuple(action.cdb[:2]))
            lab.target.act(sim.STATE, path, step, argument=sim.BLOCKED)
            lab.target.act(sim.STATE, path, argument=sim.RUNNING,
                           at=lab.target.clock() + 5000000)
            assert action.run(lab) == GOOD
            assert lab.holder() == (path, 1)


def test_registered_already(run):
    """With key 0, as who has forgotten that he is: he stays what he is."""
    for sa_key in KEY, NEW, 0:
        with run.scenario(sa_key) as lab:
            lab.held()
            lab.before = lab.state()
            assert lab.out(REGISTER, 0, sa_key) == CONFLICT
            assert_unchanged(lab)


def test_registered_already_and_an_answer_is_lost(run_one):
    """That the path has the key does not say that it has just got it."""
    for host, after, turn_, count in itertools.product(
            (3, 7), (False, True), range(4), (1, 2)):
        with run_one.scenario(host, after, turn_, count) as lab:
            lab.held()
            lab.before = lab.state()
            lab.nexus(lab.order[0]).answer(
                host_status=host, after=after, only=(0x5f, REGISTER),
                skip=turn_, count=count)
            answer = lab.out(REGISTER, 0, KEY)
            assert answer in (CONFLICT, LOST)
            if answer == CONFLICT:
                assert_unchanged(lab)


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
            for path in dead:
                lab.die(path)
            lab.before = lab.state()
            assert lab.out(RELEASE, KEY, 0, 1) == GOOD
            assert_unchanged(lab)


def test_one_path_has_another_key(run):
    """The other paths decide; it gets the key."""
    for path, name in itertools.product(PATHS, ('change the key',
                                                'the same key again',
                                                'unregister')):
        for stray in (0, 0x57a1e) if name != 'unregister' else (0,):
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
            for path in dead:
                lab.die(path)
            lab.before = lab.state()
            answer = lab.out(RELEASE, KEY, 0, WRITE_EXCLUSIVE_RO)
            assert answer == (CONFLICT if dead else '5/26/04')
            assert_unchanged(lab)
            assert not lab.mpd.texts('suspend')


def test_release_does_not_wait_for_paths_that_dm_has_failed(run):
    """Each would take its time, and there may be more of them than there is
    time for all."""
    for type_ in 1, 7:
        with run.scenario(type_) as lab:
            lab.held(type_, lab.order[2])
            for path in lab.order[:2]:
                lab.nexus(path).dm_failed = 1
                lab.nexus(path).delay_ms = 60000
            clock = lab.target.clock()
            assert lab.out(RELEASE, KEY, 0, type_) == GOOD
            assert lab.target.clock() - clock < 15000000
            lab.assert_released()


def test_fencing_does_not_wait_for_paths_that_dm_has_failed(run):
    with run.scenario() as lab:
        lab.registered()
        lab.rival_holds()
        for path in lab.order[:2]:
            lab.nexus(path).dm_failed = 1
            lab.nexus(path).delay_ms = 60000
        clock = lab.target.clock()
        assert lab.out(PREEMPT, KEY, RIVAL, WRITE_EXCLUSIVE) == GOOD
        assert lab.target.clock() - clock < 10000000
        assert lab.holder() == (lab.order[2], WRITE_EXCLUSIVE)
        rival_is_gone(lab)


@pytest.mark.parametrize('name', [*ALL_PATHS, 'unregister and ignore',
                                  'clean up', 'clear'])
@pytest.mark.parametrize('more', [0, 8])
def test_registering_does_not_wait_for_paths_that_dm_has_failed(run_one, name,
                                                                more):
    """They are left out; if each is waited for again and again there is no
    time for the others, and the same becomes of every repetition."""
    for left in PATHS:
        with run_one.scenario(name, left) as lab:
            lab.strangers_allowed = True
            action = prepare(lab, ACTIONS[name])
            lab.hangs(*(path for path in (*PATHS, *lab.more(more))
                        if path != left))
            assert action.run(lab) == GOOD
            lab.wait_idle()
            assert lab.keys() == [0 if 'clea' in name or 'unreg' in name else
                                  NEW if 'change' in name else KEY]


@pytest.mark.parametrize('hold, answer', [('unset', GOOD), ('unknown', LOST),
                                          ('fail', LOST), ('cut', LOST),
                                          ('0.9.4', LOST)])
def test_release_when_multipathd_does_not_know_us_as_the_holder(run, hold,
                                                                answer):
    with run.scenario() as lab:
        lab.held()
        if hold in ('fail', 'cut'):
            lab.mpd.on('getprhold', hold, effect=hold == 'cut')
        else:
            lab.known.prhold = hold
        if hold == '0.9.4':
            lab.mpd.version, lab.known.prhold = hold, 'unknown'
        lab.die(0)
        lab.dead = {0}
        lab.before = lab.state()
        assert lab.out(RELEASE, KEY, 0, 1) == answer
        assert_unchanged(lab)
        assert not lab.mpd.texts('suspend')


def holder_has_gone(lab, path, how):
    """Where sysfs has the names of this host's initiators."""
    lab.root.initiators(PATHS)
    if how == 'left':
        lab.root.leave(0, path)
        del lab.known.paths[sim.disk_name(path)]
        lab.dead.add(path)
    else:
        lab.die(path)


GONE = 'left', 'offline'


@pytest.mark.parametrize('name', [
    'release', 'unregister, holding', 'unregister and ignore, holding',
    'change the key, holding', 'register and ignore, known'])
@pytest.mark.parametrize('hold', ['set', 'unset', 'unknown', '0.9.4'])
def test_the_disk_knows_that_a_path_that_is_gone_holds(run_one, hold, name):
    """By the name of its initiator; no matter what multipathd knows."""
    for path, how in itertools.product(PATHS, GONE):
        with run_one.scenario(path, how) as lab:
            lab.held(WRITE_EXCLUSIVE, path)
            lab.rival_registered()
            lab.known.prhold = hold
            if hold == '0.9.4':
                lab.mpd.version, lab.known.prhold = hold, 'unknown'
                lab.hold_is_known = False
            holder_has_gone(lab, path, how)
            assert ACTIONS[name].run(lab) == GOOD
            ACTIONS[name].after(lab)


@pytest.mark.parametrize('hold', ['set', 'unset', 'unknown', '0.9.4'])
def test_the_disk_knows_that_a_twin_holds(run_one, hold):
    """Which stays so, though one of our paths is gone, too."""
    for name, path, how in itertools.product(
            ('release', 'unregister', 'change the key'), PATHS, GONE):
        with run_one.scenario(name, path, how) as lab:
            lab.registered()
            lab.known.prhold = hold
            if hold == '0.9.4':
                lab.mpd.version, lab.known.prhold = hold, 'unknown'
            lab.nexus(RIVALS).key = KEY
            lab.lun.type, lab.lun.holder = 1, RIVALS
            holder_has_gone(lab, path, how)
            assert ACTIONS[name].run(lab) == GOOD
            assert lab.holder() == (RIVALS, 1)
            assert not lab.mpd.texts('suspend')


def test_a_phy_of_an_expander_is_no_initiator_of_this_host(run_one):
    """With some drivers it has the address of what is attached to it, which
    may be another host (libsas: sas_set_ex_phy())."""
    for name, path, how in itertools.product(
            ('release', 'unregister', 'change the key'), PATHS, GONE):
        with run_one.scenario(name, path, how) as lab:
            lab.registered()
            lab.nexus(RIVALS).key = KEY
            lab.lun.type, lab.lun.holder = 1, RIVALS
            holder_has_gone(lab, path, how)
            phy = lab.root.path('sys/class/sas_phy/phy-1:0:7')
            os.makedirs(phy)
            lab.root.write(os.path.join(phy, 'sas_address'),
                           '0x%016x\n' % (sim.SAS_ADDRESS + RIVALS))
            assert ACTIONS[name].run(lab) == GOOD
            assert lab.holder() == (RIVALS, 1)
            assert lab.nexus(RIVALS).key == KEY
            assert not lab.mpd.texts('suspend')


def test_names_in_another_case_are_the_same(run_one):
    """As iSCSI has them."""
    with run_one.scenario() as lab:
        lab.held(WRITE_EXCLUSIVE, 0)
        lab.known.prhold = 'unset'
        holder_has_gone(lab, 0, 'offline')
        for path in PATHS:
            lab.root.write(
                lab.root.path('sys/class/sas_phy/phy-%d/sas_address' % path),
                '0X%016x\n' % (sim.SAS_ADDRESS + path))
        assert ACTIONS['release'].run(lab) == GOOD
        assert lab.holder() is None


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key',
                                  'clean up'])
def test_a_twin_keeps_his_key_if_our_path_that_holds_is_gone(run_one, name):
    """To take over by PREEMPT would take it from him."""
    for path, how in itertools.product(PATHS, GONE):
        with run_one.scenario(path, how) as lab:
            lab.held(WRITE_EXCLUSIVE, path)
            lab.nexus(RIVALS).key = KEY
            holder_has_gone(lab, path, how)
            if name == 'clean up':
                code(lab.request(bytes([0xff]) + bytes(15)))
            else:
                ACTIONS[name].run(lab)
            assert lab.nexus(RIVALS).key == KEY


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key'])
def test_names_of_other_adapters_prove_nothing(run_one, name):
    """The transport of the paths has none in sysfs (virtio-scsi, Hyper-V),
    but a disk of the host's own has an adapter."""
    with run_one.scenario() as lab:
        lab.held(WRITE_EXCLUSIVE, 0)
        lab.root.initiators([15])
        lab.die(0)
        answer = ACTIONS[name].run(lab)
        lab.dead.clear()
        assert answer == LOST or lab.holder() is None \
            or lab.holder()[0] in PATHS and lab.holder()[0] != 0, \
            'GOOD, and held by %r' % (lab.holder(),)
        lab.is_consistent = False


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key'])
def test_a_target_that_does_not_answer_read_full_status(lab_of, name):
    """A twin holds, no path is gone: nobody needs it to."""
    lab = lab_of(env=FAST)
    lab.registered()
    lab.nexus(RIVALS).key = KEY
    lab.lun.type, lab.lun.holder = 1, RIVALS
    for path in PATHS:
        lab.nexus(path).answer(host_status=3, count=EVER, only=(0x5e, 3))
    begin = lab.target.clock()
    assert ACTIONS[name].run(lab) == GOOD
    assert lab.target.clock() - begin < 30000000
    assert lab.holder() == (RIVALS, 1)


def test_a_twin_holds_and_no_path_tells_who(run_one):
    """As with SPDK's target: all are there, so what the disk says is true."""
    for type_ in 1, 3:
        with run_one.scenario(type_) as lab:
            lab.registered()
            lab.nexus(RIVALS).key = KEY
            lab.lun.type, lab.lun.holder = 1, RIVALS
            for path in PATHS:
                lab.nexus(path).answer(**sense_of(5, 0x24, 0), count=EVER,
                                       only=(0x5f, RELEASE))
            assert lab.out(RESERVE, KEY, 0, type_) == CONFLICT
            assert lab.holder() == (RIVALS, 1)


def test_reserve_again_if_the_holder_has_left_the_map(run_one):
    for path, how, type_ in itertools.product(PATHS, GONE, (1, 3)):
        with run_one.scenario(path, how, type_) as lab:
            lab.held(WRITE_EXCLUSIVE, path)
            holder_has_gone(lab, path, how)
            assert lab.out(RESERVE, KEY, 0, type_) \
                == (GOOD if type_ == 1 else CONFLICT)
            assert lab.holder() == (path, 1)


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
            lab.die(0)
            lab.before = lab.state()
            answer = lab.out(RESERVE, KEY, 0, type_)
            assert answer == (GOOD if good else CONFLICT) or (
                hold, key, answer) == ('unknown', KEY, LOST)
            assert_unchanged(lab)


# ---- multipathd fails -------------------------------------------------------

def prepare_dead(lab, action, dead):
    prepare(lab, action)
    for path in dead:
        lab.die(path)
    lab.before = lab.state()


# As 'release' and so on, but the path that holds the reservation is dead.
SUSPENDING = {'preempt ourselves': (), 'preempt all': (),
              'preempt ourselves, not holding': (),
              'preempt and abort ourselves': (), 'release': (0,),
              'unregister, holding': (0,),
              'unregister and ignore, holding': (0,)}


@pytest.mark.parametrize('way', ['absent', 'not root', 'deny', 'fail',
                                 'close', 'timeout', 'usage', 'garbage',
                                 'length huge', 'backlog full'])
def test_without_multipathd_nothing_is_reserved(way):
    """But what reads works."""
    lab = Lab(env={**FAST, **({'SIM_PEER_UID': '1000'} if way == 'not root'
                              else {})})
    run = Scenarios(lab)
    fillers = []
    if way in ('absent', 'backlog full'):
        lab.mpd.stop()
    if way == 'backlog full':
        lab.mpd.start(backlog=0)
        for _ in range(2):
            fillers.append(socket.socket(socket.AF_UNIX))
            fillers[-1].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                fillers[-1].connect(lab.mpd.address)
    try:
        for name, action in ACTIONS.items():
            if way == 'backlog full' and name not in (
                    'register', 'read keys'):
                continue        # takes its time
            with run.scenario(way, name):
                prepare(lab, action)
                if way in ('deny', 'fail', 'close', 'timeout', 'usage',
                           'garbage', 'length huge'):
                    lab.mpd.on('', way)
                assert action.run(lab) == (GOOD if action.is_in else LOST)
                assert_unchanged(lab)
                assert not lab.sent(out=True) and not lab.mpd.wrong
                assert way != 'not root' or not lab.mpd.commands
        if way == 'not root':
            assert 'multipathd' in lab.helper.log()
    finally:
        for filler in fillers:
            filler.close()
        lab.close()
    run.done()


def test_a_key_of_multipathds_configuration(run):
    for name, action in ACTIONS.items():
        with run.scenario(name) as lab:
            lab.known.key = lab.known.fixed = KEY
            prepare(lab, action)
            answer = action.run(lab)
            if action.is_register and (name == 'register with APTPL'
                                       or NEW in struct.unpack_from(
                                           '>QQ', action.data)):
                assert answer == LOST
                assert_unchanged(lab)
            else:
                assert answer == GOOD
                action.after(lab)


def test_the_order_of_things(run):
    """multipathd hears of the key before the disk, and of the registration
    after it; the preemption of ourselves is between suspend and resume."""
    for name, action in ACTIONS.items():
        if action.is_in:
            continue
        with run.scenario(name) as lab:
            prepare_dead(lab, action, SUSPENDING.get(name, ()))
            assert action.run(lab) == GOOD
            lab.wait_idle()
            events = list(lab.target.log())
            registers = [i for i, e in enumerate(events) if e.cdb[0] == 0x5f
                         and e.cdb[1] in (REGISTER, REGISTER_AND_IGNORE)
                         and e.key != e.sa_key]     # those are proofs
            preempts = [i for i, e in enumerate(events) if e.cdb[0] == 0x5f
                        and e.cdb[1] in (PREEMPT, PREEMPT_AND_ABORT)]
            times = {c.text.split()[0]: c.events for c in lab.mpd.commands}
            if 'setprkey' in times and registers:
                assert times['setprkey'] <= min(registers)
            if 'setprstatus' in times and registers:
                assert times['setprstatus'] > max(registers)
            if action.is_register:
                assert times.keys() & {'setprstatus', 'unsetprstatus'}
                looks = [i for i, e in enumerate(events) if e.cdb[0] == 0]
                assert max(looks[:len(lab.usable())]) < min(registers or [EVER])
            assert ('suspend' in times) == (name in SUSPENDING)
            if name in SUSPENDING:
                restored = [i for i in registers if events[i].sa_key == KEY]
                assert times['suspend'] <= min(preempts)
                # Who unregisters sends another, for the path that is gone.
                assert max(preempts[:1] + restored) < times['resume']


def test_how_long_a_command_may_take(run):
    """Less than a minute, and less than ten seconds while suspended."""
    for name, dead in SUSPENDING.items():
        with run.scenario(name) as lab:
            prepare_dead(lab, ACTIONS[name], dead)
            assert ACTIONS[name].run(lab) == GOOD
            assert all(1000 <= e.timeout < 60000 for e in lab.sent())
            begin, end = (
                [c.events for c in lab.mpd.commands if c.text.startswith(t)][0]
                for t in ('suspend', 'resume'))
            events = list(lab.target.log())[begin:end]
            assert len(events) >= len(lab.usable())
            assert all(1000 <= e.timeout <= 10000 for e in events)


def test_what_multipathd_is_told(run):
    for name, texts in {
            'register': ['getprkey map dm-0', 'setprkey map dm-0 key a11ce'],
            'register with APTPL': ['getprkey map dm-0',
                                    'setprkey map dm-0 key a11ce:aptpl'],
            'reserve': ['getprkey map dm-0', 'getprhold map dm-0',
                        'setprhold map dm-0'],
            'release': ['getprkey map dm-0', 'unsetprhold map dm-0']}.items():
        with run.scenario(name) as lab:
            action = prepare(lab, ACTIONS[name])
            assert action.run(lab) == GOOD
            assert [t.replace('key 0x', 'key ') for t in lab.mpd.texts()
                    if not t.startswith('show ')][:len(texts)] == texts
            if action.is_register:
                assert lab.known.aptpl == (name != 'register')


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.001)


# ---- What sysfs says --------------------------------------------------------

def assert_refused(lab, answer='5/20/00'):
    """Neither a disk nor multipathd hears of it; CLEANUP is no reservation,
    and is answered with GOOD by what is no map."""
    for cdb, data in ((pr_in(READ_KEYS), b''), (
            pr_out(REGISTER_AND_IGNORE), parameters(0, KEY))):
        assert code(lab.request(cdb, data)) == answer
    assert not lab.target.events and not lab.mpd.commands
    lab.is_consistent = False


@pytest.mark.parametrize('uuid', [
    'LVM-x', 'part1-mpath-36001405a', 'CRYPT-LUKS2-mpath-x', 'mpath',
    'MPATH-x', ' mpath-x', 'xmpath-36001405a', ''])
def test_other_device_mapper_devices_are_refused(run, uuid):
    with run.scenario() as lab:
        lab.root.write(lab.root.of_map(0, 'dm/uuid'), uuid + '\n')
        assert_refused(lab)
        assert code(lab.request(bytes([CLEANUP]) + bytes(15))) == GOOD
        assert not lab.target.events and not lab.mpd.commands


@pytest.mark.parametrize('file', ['dm/uuid', 'dm/name'])
@pytest.mark.parametrize('what', ['missing', 'empty', 'directory', 'too long',
                                  'NUL', 'no end'])
def test_odd_files_of_a_map(run, file, what):
    with run.scenario() as lab:
        path = lab.root.of_map(0, file)
        os.unlink(path)
        if what == 'directory':
            os.mkdir(path)
        elif what != 'missing':
            lab.root.write(path, {
                'empty': b'', 'too long': b'mpath-' + b'a' * 5000 + b'\n',
                'NUL': b'mpath-\0a\n', 'no end': b'mpath-36001405a'}[what])
        if what == 'no end':        # may be good enough, but only one way
            answer = code(lab.request(pr_in(READ_KEYS)))
            assert answer in (GOOD, '5/20/00')
        elif file == 'dm/name':
            assert_not_suspended(lab)
        else:
            assert_refused(lab)


def assert_not_suspended(lab):
    """As multipathd cannot be told its name; all else works."""
    assert ACTIONS['register'].run(lab) == GOOD
    lab.assert_registered(KEY)
    for name in 'reserve', 'release', 'change the key', 'read keys':
        action = ACTIONS[name]
        key = struct.pack('>Q', KEY)
        assert code(lab.request(action.cdb, key + action.data[8:]
                                if action.data else b'')) == GOOD
    lab.held()
    lab.before = lab.state()
    assert ACTIONS['preempt ourselves'].run(lab) == LOST
    assert_unchanged(lab)
    assert not lab.mpd.texts('suspend')


@pytest.mark.parametrize('alias', [
    'a b', 'a"b', "a'b", 'a\\b', 'a\tb', 'a\x01b', 'a\x7fb', 'a\nb', 'a\x80b',
    'mpatha" key "', 'a' * 600, 'a/b', ' ', '', 'mpatha ', '\x1b[31m', '\xff'])
def test_alias_that_is_no_word_for_multipathd(run, alias):
    with run.scenario() as lab:
        lab.root.write(lab.root.of_map(0, 'dm/name'),
                       alias.encode('latin-1') + b'\n')
        begin = len(lab.helper.log())
        assert_not_suspended(lab)
        lab.wait_idle()
        assert 'give it an alias' in lab.helper.log()[begin:]


@pytest.mark.parametrize('alias', ['a', 'mpath-1.2:3_4', 'a' * 127,
                                   '36001405a', 'x' * 64, '@%+,=~#'])
def test_alias_that_is_one(run, alias):
    with run.scenario() as lab:
        lab.root.write(lab.root.of_map(0, 'dm/name'), alias + '\n')
        lab.known.alias = alias
        action = prepare(lab, ACTIONS['preempt ourselves'])
        assert action.run(lab) == GOOD
        action.after(lab)
        assert 'suspend map ' + alias in lab.mpd.texts()


def another_device(lab, nexus, major, minor):
    sim.device(lab.root.node(nexus), major, minor)


def path_that_is_no_disk(lab, nexus, number):
    """But for that, sysfs has it as a path of this map."""
    another_device(lab, nexus, *number)
    os.symlink('%d:%d' % sim.disk_number(nexus), lab.root.block(number)[:-1])


def not_a_device(lab, nexus):
    with open(lab.root.node(nexus), 'w') as f:
        f.write('x')


def a_fifo(lab, nexus):
    os.unlink(lab.root.node(nexus))
    os.mkfifo(lab.root.node(nexus))


def without(name):
    return lambda lab, nexus: os.unlink(lab.root.of_disk(nexus, name))


# What makes a slave of the map one that no command may be sent to.
STRANGERS = {
    'the disk of another map': lambda lab, n: another_device(
        lab, n, *sim.disk_number(OTHERS[0])),
    'a disk of nobody': lambda lab, n: another_device(
        lab, n, *sim.disk_number(ALONE)),
    'a disk that sysfs lacks': lambda lab, n: another_device(lab, n, 8, 240),
    'a partition': lambda lab, n: another_device(
        lab, n, sim.disk_number(n)[0], sim.disk_number(n)[1] + 1),
    'an NVMe disk': lambda lab, n: another_device(lab, n, 259, 0),
    'an NVMe path': lambda lab, n: path_that_is_no_disk(lab, n, (259, 0)),
    'a partition of a path': lambda lab, n: path_that_is_no_disk(
        lab, n, (sim.disk_number(n)[0], sim.disk_number(n)[1] + 1)),
    'a map': lambda lab, n: another_device(lab, n, 253, 1),
    'a regular file': not_a_device,
    'a FIFO': a_fifo,
    'no holders link': lambda lab, n: os.unlink(lab.root.holder(0, n)),
    'the holder is another map': lambda lab, n: os.rename(
        lab.root.holder(0, n), lab.root.of_disk(n, 'holders/dm-1')),
    'the holder has a longer name': lambda lab, n: os.rename(
        lab.root.holder(0, n), lab.root.of_disk(n, 'holders/dm-00')),
    'no state': lambda lab, n: os.unlink(
        lab.root.of_disk(n, 'device/state')),
    'no device': lambda lab, n: os.unlink(lab.root.of_disk(n, 'device')),
    'a loop of links': lambda lab, n: (
        os.unlink(lab.root.node(n)),
        os.symlink(sim.disk_name(n), lab.root.node(n))),
}


@pytest.mark.parametrize('kind', STRANGERS)
def test_slave_that_is_no_path(run_one, kind):
    """No command is sent to it, whatever its name. But the kernel may send
    I/O to the path that has that name: so nothing is done that all must do,
    unless dm has failed it."""
    for path, name in itertools.product((0, 1), (
            'register', 'change the key', 'read keys', 'unregister, holding',
            'preempt ourselves', 'reserve', 'clear')):
        with run_one.scenario(kind, path, name) as lab:
            action = prepare(lab, ACTIONS[name])
            STRANGERS[kind](lab, path)
            begin = len(lab.helper.log())
            answer = action.run(lab)
            lab.wait_idle()
            if name == 'clear':     # of which that path need not know
                assert answer in (GOOD, LOST)
                lab.is_consistent = False
            elif action.is_in or name == 'reserve':
                assert answer == GOOD
                action.after(lab)
            else:
                assert answer == LOST
                assert_unchanged(lab)
                assert re.search('nothing was done.*' + sim.disk_name(path),
                                 lab.helper.log()[begin:])
            assert not lab.nexus(path).commands
        with run_one.scenario(kind, path, name, 'failed') as lab:
            action = prepare(lab, ACTIONS[name])
            STRANGERS[kind](lab, path)
            lab.nexus(path).dm_failed = 1
            lab.dead = {path}
            assert action.run(lab) == GOOD
            action.after(lab)
            assert not lab.nexus(path).commands


def test_slaves_of_odd_names(run):
    for name in ('dm-7', 'sd a', 'x' * 100, 'a"b', 'nvme0n1', 'sda1', '.sda',
                 'loop0', 'sd\x1b'):
        with run.scenario(name) as lab:
            os.symlink('../../8:0', lab.root.slave(0, name))
            answer = ACTIONS['register'].run(lab)
            assert answer == ('5/20/00' if name in (
                'dm-7', 'nvme0n1', 'loop0', '.sda', 'a"b') else LOST)
            assert lab.keys() == [0, 0, 0]
            assert not any(name in text for text in lab.mpd.texts())


def test_no_slaves(run):
    for how in ('none', 'no directory', 'a file'):
        for name in ('register', 'read keys', 'reserve', 'release', 'clear'):
            with run.scenario(how, name) as lab:
                action = prepare(lab, ACTIONS[name])
                directory = lab.root.of_map(0, 'slaves')
                if how == 'none':
                    for path in PATHS:
                        lab.root.leave(0, path)
                else:
                    shutil.rmtree(directory)
                if how == 'a file':
                    lab.root.write(directory, '')
                assert action.run(lab) == LOST
                assert_unchanged(lab)


def test_many_slaves(run_one):
    more = [*range(20, 40), *range(RIVALS + 1, sim.NEXUSES)]
    for version in ('0.14', '0.9.4'):
        with run_one.scenario(version) as lab:
            lab.mpd.version = version
            lab.strangers_allowed = True
            for nexus in more:
                lab.root.disk(nexus)
                lab.root.join(0, nexus)
                lab.known.paths[sim.disk_name(nexus)] = lab.nexus(nexus)
            assert ACTIONS['register'].run(lab) == GOOD
            lab.assert_registered(KEY)
            assert {lab.nexus(n).key for n in more} == {KEY}
            assert lab.out(RESERVE, KEY, 0, 1) == GOOD
            assert lab.client.keys(lab.map) == [KEY] * (3 + len(more))
            if version == '0.9.4':
                continue
            dead = lab.lun.holder
            lab.die(dead)
            assert lab.out(RELEASE, KEY, 0, 1) == GOOD
            assert lab.holder() is None
            assert {lab.nexus(n).key for n in more + list(PATHS)
                    if n != dead} == {KEY}
            assert lab.known.prflag == 'set'


def test_too_many_slaves(run):
    """More than there is room for: it is not done by halves."""
    with run.scenario() as lab:
        for number in range(300):
            os.symlink('../../8:0', lab.root.slave(0, 'sdx%d' % number))
        assert ACTIONS['register'].run(lab) == LOST
        assert not lab.sent(out=True)


# ---- What changes under our hands -------------------------------------------

def turn(lab, action, path, service_action):
    """How many commands the path gets before the first of that kind, if
    nothing is wrong."""
    lab.reset()
    prepare(lab, action)
    assert action.run(lab) == GOOD
    lab.wait_idle()
    sent = [e.cdb[:2] for e in lab.sent() if e.nexus == path]
    lab.reset()
    return sent.index(bytes((0x5f, service_action)))


def while_at_the_disk(lab, action, path, skip, change):
    """change() happens while a command of the action is at the disk."""
    nexus = lab.nexus(path)
    with nexus.hanging(skip):
        lab.client.send(action.cdb, [lab.map])
        if action.data:
            lab.client.sock.sendall(action.data)
        nexus.wait_held()
        change()
    return code(lab.client.reply())


def test_path_that_leaves_the_map_between_two_commands(run):
    """No command is sent to it any more, and the log says why."""
    for name in ('register', 'release', 'preempt ourselves', 'clear'):
        with run.scenario(name) as lab:
            action = prepare(lab, ACTIONS[name])
            first, second, third = lab.order
            commands, said = [], len(lab.helper.log())

            def change():
                lab.root.leave(0, second)
                another_device(lab, second, *sim.disk_number(ALONE))
                commands.append(lab.nexus(second).commands)
            lab.dead = {second}
            answer = while_at_the_disk(lab, action, first, 0, change)
            assert answer == GOOD
            if lab.holder() is None or lab.holder()[0] != second:
                action.after(lab)
            lab.wait_idle()
            assert lab.nexus(second).commands == commands[0]
            assert '%s is left out: it is no path any more' \
                % sim.disk_name(second) in lab.helper.log()[said:]


def test_path_that_comes_while_registering(run):
    """It is registered by us, or by multipathd, which knows the key."""
    for name in ('register', 'register and ignore', 'change the key'):
        with run.scenario(name) as lab:
            lab.strangers_allowed = True
            action = prepare(lab, ACTIONS[name])
            while_at_the_disk(lab, action, lab.order[2], 0, lambda: (
                lab.root.disk(50), lab.root.join(0, 50)))
            action.after(lab)
            assert lab.nexus(50).key == lab.known.key


def test_path_that_comes_while_releasing(run):
    """multipathd has registered it; our preemption takes that from it."""
    with run.scenario() as lab:
        lab.strangers_allowed = True
        action = prepare(lab, ACTIONS['release'])
        lab.die(0)
        lab.dead = {0}

        def change():
            lab.root.disk(50)
            lab.root.join(0, 50)
            lab.nexus(50).key = KEY
        alive = [path for path in lab.order if path != 0]
        assert while_at_the_disk(lab, action, alive[1], 0, change) == GOOD
        action.after(lab)
        assert lab.nexus(50).key == KEY


def test_a_path_that_leaves_the_map_is_not_said_to_have_failed(run_one):
    with run_one.scenario() as lab:
        lab.registered()
        first, path = lab.order[:2]

        def leave():
            lab.root.leave(0, path)
            lab.dead.add(path)
        begin = len(lab.helper.log())
        assert while_at_the_disk(lab, ACTIONS['unregister'], first, 0,
                                 leave) == GOOD
        lab.wait_idle()
        line, = re.findall('%s is left out.*' % sim.disk_name(path),
                           lab.helper.log()[begin:])
        assert 'is no path any more' in line
        assert 'multipathd has failed it' not in line


def test_slaves_that_cannot_be_listed_while_suspended(run):
    """Who knows if another path has lost its key? Those known get theirs."""
    with run.scenario() as lab:
        action = ACTIONS['preempt ourselves']
        skip = turn(lab, action, lab.order[0], PREEMPT)
        prepare(lab, action)
        slaves = lab.root.of_map(0, 'slaves')
        assert while_at_the_disk(
            lab, action, lab.order[0], skip,
            lambda: os.rename(slaves, slaves + 'x')) == LOST
        assert lab.holder() in ((0, 1), (lab.order[0], 3))
        assert not lab.known.suspended
        lab.is_consistent = False


def test_a_key_is_not_given_back_to_who_was_preempted_meanwhile(run_one):
    """Between any two paths that a change of key goes to."""
    run = run_one       # with --single-process the rival would have to wait
    action = ACTIONS['change the key']
    for path, keys in itertools.product(PATHS, ((NEW, KEY), (KEY, NEW))):
        with run.scenario(path, keys) as lab:
            skip = turn(lab, action, path, REGISTER)
            prepare(lab, action)
            lab.rival_registered()
            with lab.helper.client() as rival:
                answer = while_at_the_disk(
                    lab, action, path, skip, lambda: [
                        rival.out(lab.rival, PREEMPT, RIVAL, key, 5)
                        for key in keys])
            assert answer in (CONFLICT, LOST)
            assert lab.keys() == [0, 0, 0]
            lab.is_consistent = False


@pytest.mark.parametrize('failed', PATHS)
def test_a_path_that_dm_has_failed_is_changed_before_the_last(run_one, failed):
    """It works again: whoever preempts the older key there preempts us."""
    for step in range(1, 40):
        with run_one.scenario(step) as lab:
            lab.registered()
            lab.rival_registered()
            lab.nexus(failed).dm_failed = 1
            preempts = lab.target.act(PREEMPT, RIVALS, step, key=KEY,
                                      argument=5)
            answer = lab.out(REGISTER, KEY, NEW)
            lab.wait_idle()
            lab.is_consistent = False
            if preempts.done_at and not preempts.status:
                assert answer != GOOD and lab.keys() == [0, 0, 0]
            else:
                assert answer == GOOD and lab.keys() == [NEW, NEW, NEW]


def test_a_blocked_path_does_not_keep_others_from_being_undone(run_one):
    """A rival preempts the new key when not all paths have it yet."""
    for place, step in itertools.product(range(3), range(8, 24)):
        with run_one.scenario(place, step) as lab:
            lab.registered()
            lab.rival_registered()
            blocked = lab.order[place]
            preempts = lab.target.act(PREEMPT, RIVALS, step, key=NEW,
                                      argument=5)
            lab.target.act(sim.STATE, blocked, step + 1, argument=sim.BLOCKED)
            lab.target.act(sim.STATE, blocked, argument=sim.TRANSPORT_OFFLINE,
                           at=lab.target.clock() + 100000000)
            lab.out(REGISTER, KEY, NEW)
            lab.wait_idle()
            lab.is_consistent = False
            if preempts.done_at and not preempts.status \
                    and lab.target.script.excused < 1000000:
                assert NEW not in [lab.nexus(path).key for path in PATHS
                                   if path != blocked]


def test_a_key_that_is_given_again_does_not_outlive_its_removal(run_one):
    """One path had none, another cannot be opened, and a rival preempts."""
    for opens, step in itertools.product(range(4, 8), range(4, 16)):
        with run_one.scenario(opens, step) as lab:
            lab.registered()
            lab.rival_registered()
            lab.nexus(lab.order[1]).key = 0
            lab.target.act(sim.OPEN, lab.order[2], opens,
                           argument=errno.EMFILE)
            preempts = lab.target.act(PREEMPT, RIVALS, step, key=KEY,
                                      argument=5)
            assert lab.out(REGISTER_AND_IGNORE, 0, KEY) == LOST
            lab.wait_idle()
            lab.is_consistent = False
            if preempts.done_at and not preempts.status:
                assert lab.keys() == [0, 0, 0]


def test_what_got_lost_before_it_was_done_costs_no_reservation(run_one):
    """It is sent once more, as nobody else has done anything meanwhile."""
    for name, place, host in itertools.product(
            ('change the key, holding', 'register and ignore, known'),
            range(3), (3, 7, 0xe)):
        with run_one.scenario(name, place, host) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.nexus(lab.order[place]).answer(
                host_status=host, only=tuple(action.cdb[:2]))
            assert action.run(lab) == GOOD
            action.after(lab)


@pytest.mark.parametrize('name', ['preempt ourselves', 'register',
                                  'change the key',
                                  'register and ignore, known'])
def test_who_hangs_and_was_preempted_does_not_leave_his_key_on_others(run_one,
                                                                      name):
    """A rival preempts the key, and the path that had it first hangs, perhaps
    with another one, before anybody has asked if it is still there."""
    for hung, does, step, gap in itertools.product(
            (1, 2), (0, 1), range(10, 19), range(-2, 2)):
        with run_one.scenario(hung, does, step, gap) as lab:
            action = prepare(lab, ACTIONS[name])
            lab.rival_registered()
            lab.is_consistent = False
            key, = struct.unpack('>8xQ8x', action.data)
            paths = lab.order[:hung]
            preempts = lab.target.act(PREEMPT, RIVALS, step + gap, key=key,
                                      argument=5)
            looks = lab.target.act(sim.LOOK, RIVALS,
                                   at=sim.AFTERWARDS + 30000000)
            for path in paths:
                lab.nexus(path).hang_after = does
                lab.target.act(sim.DELAY, path, step, argument=300000)
            action.run(lab)
            lab.wait_idle()
            if not preempts.done_at or preempts.status:
                continue
            assert key not in [lab.nexus(path).key for path in PATHS
                               if path not in paths]
            # Nor may it be there for long, once I/O is not suspended.
            assert name != 'preempt ourselves' or hung > 1 \
                or not looks.seen & sim.SEEN_OTHERS \
                or any(lab.nexus(path).key for path in paths)


def test_a_key_that_came_too_late_is_taken_off_after_the_resume(run_one):
    """The path that has it is blocked until the map is not suspended."""
    for step, gap in itertools.product(range(6, 14), range(2)):
        with run_one.scenario(step, gap) as lab:
            lab.registered()
            lab.rival_registered()
            path = lab.order[0]
            lab.nexus(path).delay_ms = 1000
            lab.target.act(REGISTER_AND_IGNORE, RIVALS, step, key=RIVAL)
            lab.target.act(sim.STATE, path, step + 1 + gap,
                           argument=sim.BLOCKED)
            lab.target.act(sim.STATE, path, argument=sim.RUNNING,
                           at=lab.target.clock() + 20000000)
            answer = lab.out(PREEMPT, KEY, KEY, 3)
            lab.wait_idle()
            assert lab.keys() == 3 * [KEY if answer == GOOD else 0]


def test_a_reservation_that_was_taken_over_is_ours_in_the_end(run):
    """Although a path did not get its key back."""
    with run.scenario() as lab:
        lab.registered()
        lab.rival_registered()
        lab.lun.type = WRITE_EXCLUSIVE_AR
        lab.is_consistent = False
        REFUSALS['5/24/00'](lab, lab.order[2], count=EVER,
                            only=(0x5f, REGISTER_AND_IGNORE))
        assert lab.out(PREEMPT, KEY, 0, WRITE_EXCLUSIVE) in (LOST, '5/24/00')
        assert lab.holder() == (lab.order[0], WRITE_EXCLUSIVE)
        assert lab.known.prhold == 'set'


def test_path_that_returns_is_registered_by_multipathd(run):
    """As long as we are registered, with the key that we have by then."""
    with run.scenario() as lab:
        lab.die(1)
        lab.dead = {1}
        for step, key in (((REGISTER, 0, KEY), KEY),
                          ((REGISTER, KEY, NEW), NEW),
                          ((RESERVE, NEW, 0, 1), NEW),
                          ((CLEAR, NEW), 0)):
            assert lab.out(*step) == GOOD
            lab.known.path_returns('sdb')
            assert lab.nexus(1).key == key
            lab.nexus(1).key = 0


def test_path_that_returns_just_before_multipathd_would_register_it(run_one):
    """It came when multipathd had not been told yet that we are registered."""
    for place, version in itertools.product(range(3), ('0.14', '0.9.4')):
        with run_one.scenario(place, version) as lab:
            path = lab.order[place]
            lab.mpd.version = version
            lab.die(path)

            def returns(_):
                lab.live(path)
                lab.known.path_returns(sim.disk_name(path))

            lab.mpd.on('^setprstatus', returns, count=1)
            assert ACTIONS['register'].run(lab) == GOOD
            assert lab.keys() == [KEY] * 3


@pytest.mark.parametrize('is_known', [False, True])
def test_alias_that_changes_while_suspended(run_one, is_known):
    """What was suspended is resumed by the name it was suspended by, as long
    as multipathd knows no other."""
    with run_one.scenario(is_known) as lab:
        action = prepare(lab, ACTIONS['preempt ourselves'])

        def change():
            assert lab.known.suspended
            lab.root.write(lab.root.of_map(0, 'dm/name'), 'other\n')
            if is_known:
                lab.known.alias = 'other'
        assert while_at_the_disk(lab, action, lab.order[0], 5, change) == GOOD
        lab.wait_idle()
        assert lab.mpd.texts('resume') == ['resume map mpatha',
                                           'resume map other'][:1 + is_known]


# ---- Parameters -------------------------------------------------------------

def test_allocation_lengths(run):
    """Never more than was asked for, and the same beginning."""
    with run.scenario() as lab:
        lab.held()
        for action in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES,
                       READ_FULL_STATUS):
            whole = lab.client.read_in(lab.map, action)
            direct = lab.client.read_in(lab.rival, action)
            assert whole == direct and whole.status == GOOD
            for length in (0, 1, 4, 7, 8, 9, 23, 24, 100, 4096, 8192):
                reply = lab.client.read_in(lab.map, action, length)
                assert reply == (GOOD, bytes(96), whole.payload[:length])
        assert code(lab.request(pr_in(9))) == '5/24/00'


def test_parameter_lists_that_are_refused(run):
    for name, action in ACTIONS.items():
        if action.cdb[0] != 0x5f:
            continue
        for length in (0, 1, 8, 16, 23):
            with run.scenario(name, length) as lab:
                prepare(lab, action)
                cdb = pr_out(action.cdb[1], action.cdb[2] & 15, length)
                assert code(lab.request(cdb, action.data[:length])) \
                    == '5/1A/00'
                assert_unchanged(lab)
                assert not lab.target.events
    for service_action in (REGISTER_AND_MOVE, 8, 9, 31):
        with run.scenario(service_action) as lab:
            lab.held()
            lab.before = lab.state()
            assert lab.out(service_action, KEY, NEW) == '5/24/00'
            assert_unchanged(lab)
            assert not lab.target.events
    for name in ('register', 'reserve'):
        with run.scenario('longer', name) as lab:
            action = prepare(lab, ACTIONS[name])
            cdb = pr_out(action.cdb[1], action.cdb[2] & 15, 28)
            assert code(lab.request(cdb, action.data + bytes(4))) == '5/1A/00'
            assert_unchanged(lab)


def test_spec_i_pt_is_sent_once(run):
    for dead in (None, 0, 1, 2):
        with run.scenario(dead) as lab:
            lab.strangers_allowed = True
            if dead is not None:
                lab.die(dead)
                lab.dead = {dead}
            ids = sim.transport_id(200) + sim.transport_id(201)
            data = parameters(0, KEY, 8) + struct.pack('>I', len(ids)) + ids
            assert code(lab.request(pr_out(REGISTER, length=len(data)),
                                    data)) == GOOD
            lab.assert_registered(KEY)
            assert lab.nexus(200).key == lab.nexus(201).key == KEY
            lists = [(e.flags & 8, e.cdb[8]) for e in lab.sent(out=True)]
            usable = len(lab.usable())
            assert lists[:usable] == [(8, len(data))] + [(0, 24)] * (
                usable - 1)


def test_spec_i_pt_is_not_lost_with_a_path_that_is_not_ready(run_one):
    """It is left out, as dm has failed it, and has done nothing."""
    for path in PATHS:
        with run_one.scenario(path) as lab:
            lab.strangers_allowed = True
            lab.nexus(path).dm_failed = 1
            lab.dead = {path}
            lab.nexus(path).answer(2, 0, 8, NOT_READY, count=EVER,
                                   only=(0x5f, REGISTER))
            ids = sim.transport_id(200)
            data = parameters(0, KEY, 8) + struct.pack('>I', len(ids)) + ids
            assert code(lab.request(pr_out(REGISTER, length=len(data)),
                                    data)) == GOOD
            assert lab.nexus(200).key == KEY


def test_all_tg_pt_registers_the_other_paths_of_a_host(run):
    """sda and sdb are of host 1, sdc is of host 2."""
    for dead, flags in itertools.product((None, 0, 1, 2), (4, 5)):
        with run.scenario(dead, flags) as lab:
            if dead is not None:
                lab.die(dead)
            for key, new in (0, KEY), (KEY, NEW), (NEW, 0):
                assert lab.out(REGISTER, key, new, flags=flags) == GOOD
                lab.assert_registered(new)


def test_all_tg_pt_gives_nobody_a_key_back(run_one):
    """A rival preempts us between any two commands: the next path of the same
    host must not register again those that he has met."""
    for step, (key, action) in itertools.product(
            range(1, 40), ((0, REGISTER), (0, REGISTER_AND_IGNORE),
                           (KEY, REGISTER), (KEY, REGISTER_AND_IGNORE))):
        with run_one.scenario(step, key, action) as lab:
            if key:
                lab.registered()
            lab.rival_registered()
            lab.is_consistent = False
            preempts = lab.target.act(PREEMPT, RIVALS, step, key=NEW,
                                      argument=1)
            answer = lab.out(action, key, NEW, flags=4)
            lab.wait_idle()
            if preempts.done_at and not preempts.status:
                assert lab.keys() == [0, 0, 0]
            elif not preempts.done_at:
                assert answer == GOOD


def test_read_only_descriptor(run):
    with run.scenario() as lab:
        lab.held()
        lab.before = lab.state()
        fd = lab.open(os.path.join(lab.dir, 'dm-0'), os.O_RDONLY)
        for action in ACTIONS.values():
            answer = code(lab.request(action.cdb, action.data, fd=fd))
            assert answer == (GOOD if action.is_in else '5/20/00')
        assert_unchanged(lab)
        assert not lab.sent(out=True) and not lab.mpd.commands


def test_clean_up(run):
    cdb = bytes([CLEANUP]) + bytes(15)
    with run.scenario() as lab:
        lab.held()
        lab.rival_registered()
        assert code(lab.request(cdb)) == GOOD
        cleaned(lab)
        assert lab.nexus(RIVALS).key == RIVAL
        assert code(lab.request(cdb)) == GOOD       # as often as one likes
    with run.scenario('on anything else') as lab:
        for fd in (lab.rival, lab.open(os.devnull),
                   lab.open(os.path.join(lab.dir, 'log'), os.O_RDWR)):
            assert code(lab.request(cdb, fd=fd)) == GOOD
        read_only = lab.open(os.path.join(lab.dir, 'disk40'), os.O_RDONLY)
        assert code(lab.request(cdb, fd=read_only)) == '5/20/00'
        assert not lab.target.commands() and not lab.mpd.commands


def test_features(module_lab):
    for requested, works in ((0, True), (1, True), (2, False), (3, False),
                             (1 << 31, False), (1 << 24, False)):
        with module_lab.helper.client(hello=False) as client:
            assert client.read(4) == bytes([0, 0, 0, 1])
            client.send(struct.pack('>I', requested))
            if works:
                assert client.read_in(module_lab.rival,
                                      READ_KEYS).status == GOOD
            else:
                assert client.closed()


# ---- Life and death ---------------------------------------------------------

@pytest.fixture
def lab_of(request):
    """Labs of a test's own."""
    labs = []

    def make(*args, **kwargs):
        labs.append(Lab(*args, **kwargs))
        return labs[-1]
    yield make
    for lab in labs:
        lab.close()


def prepare_suspended(lab):
    """An action, and the nexus and how many of its commands come before the
    one that is sent to it while the map is suspended."""
    action = ACTIONS[SUSPENDED]
    skip = turn(lab, action, lab.order[1], REGISTER_AND_IGNORE)
    prepare(lab, action)
    return action, lab.nexus(lab.order[1]), skip


def send(client, action, fd):
    client.send(action.cdb, [fd])
    if action.data:
        client.sock.sendall(action.data)


SUSPENDED = 'preempt and abort ourselves'


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT,
                                    signal.SIGHUP])
def test_helper_is_stopped_while_a_map_is_suspended(lab_of, mode, number):
    """The command ends as if nothing was, and then the helper does."""
    lab = lab_of(mode)
    action, nexus, skip = prepare_suspended(lab)
    with nexus.hanging(skip):
        send(lab.client, action, lab.map)
        nexus.wait_held()
        assert lab.known.suspended
        for pid in [lab.helper.pid] + lab.helper.sessions():
            os.kill(pid, number)
        time.sleep(0.3)
        assert lab.helper.process.poll() is None and lab.known.suspended
    assert code(lab.client.reply()) == GOOD
    assert lab.helper.process.wait(20) == 0
    action.after(lab)
    assert not lab.known.suspended


@contextlib.contextmanager
def stopped_while_suspended(lab):
    """The helper is told to leave while a path of a suspended map hangs."""
    action, nexus, skip = prepare_suspended(lab)
    with nexus.hanging(skip):
        send(lab.client, action, lab.map)
        nexus.wait_held()
        worker, = lab.workers()
        lab.helper.process.terminate()
        yield worker


def test_worker_is_killed_while_the_helper_stops(lab_of):
    """It does not leave before the map is resumed, though not at once."""
    lab = lab_of()
    with stopped_while_suspended(lab) as worker:
        lab.mpd.on('resume', 'fail', count=1)
        time.sleep(0.1)
        kill(worker)
        assert code(lab.client.reply()) == LOST
    assert lab.helper.process.wait(20) == 0
    assert not lab.known.suspended
    assert len(lab.mpd.texts('resume')) == 2


def test_helper_waits_for_a_worker_that_has_a_map_suspended(lab_of):
    """For thrice its time: with it, a container's other processes die."""
    lab = lab_of(options=['--stop-timeout=3'])
    with stopped_while_suspended(lab):
        time.sleep(4)
        assert lab.helper.process.poll() is None and lab.known.suspended
    assert code(lab.client.reply()) == GOOD
    assert lab.helper.process.wait(20) == 0
    assert not lab.known.suspended


def test_worker_resumes_the_map_when_the_helper_has_left(lab_of):
    """Whoever supervises the helper must leave it the time; see the unit."""
    lab = lab_of(options=['--stop-timeout=1'])
    with stopped_while_suspended(lab) as worker:
        assert lab.helper.process.wait(20) == 0
        assert lab.known.suspended and os.path.exists('/proc/%d' % worker)
    wait_until(lambda: not lab.known.suspended)


def test_map_of_a_worker_that_hangs_is_resumed(lab_of):
    """In the kernel, where no time limit helps; and nothing else happens."""
    lab = lab_of(env={'SIM_SPEED': '20'})
    action, nexus, skip = prepare_suspended(lab)
    with nexus.hanging(skip):
        send(lab.client, action, lab.map)
        nexus.wait_held()
        assert lab.known.suspended
        wait_until(lambda: not lab.known.suspended)
        assert 'has been suspended for too long' in lab.helper.log()


def test_resumer_that_waits_leaves_the_place_of_another_map_alone(lab_of):
    """Who hung has ended before the resumer has the lock; then his place in
    the supervisor's book is that of somebody who suspends the other map."""
    lab = lab_of(env={'SIM_SPEED': '5'})
    action, nexus, skip = prepare_suspended(lab)
    with nexus.hanging(skip):
        send(lab.client, action, lab.map)
        nexus.wait_held()
        hung = lab.workers()
        wait_until(lambda: not lab.known.suspended)
        resumer, = lab.workers() - hung
        os.kill(resumer, signal.SIGSTOP)
    lab.client.reply()
    wait_until(lambda: lab.workers() == {resumer})
    other = lab.mpd.maps[1]
    other.key, other.prflag = KEY, 'set'
    for n in OTHERS:
        lab.nexus(n).key = KEY

    def behaviour(command):
        os.kill(resumer, signal.SIGCONT)
        wait_until(lambda: resumer not in lab.workers())
        kill(command.pid)
    lab.mpd.on('suspend map mpathb', behaviour, count=1)
    send(lab.client, action, lab.other_map)
    assert code(lab.client.reply()) == LOST
    wait_until(lambda: other.suspensions and not other.suspended)


def test_resumer_is_killed_too(lab_of):
    """And the next one; main starts another until the map is resumed."""
    lab = lab_of()
    action = prepare(lab, ACTIONS[SUSPENDED])

    def behaviour(command):
        kill(command.pid)
        return 'close'
    lab.mpd.on('resume', behaviour, count=3)
    assert action.run(lab) == LOST
    wait_until(lambda: not lab.known.suspended and not lab.workers())
    assert len(lab.mpd.texts('resume')) == 4
    assert 'suspended' in lab.helper.log()


def test_resumer_that_finds_no_name_is_not_the_last(lab_of):
    """That a file of sysfs cannot be read is not that the map has gone: the
    kernel may have had no memory, or no open file, left."""
    lab = lab_of(env={'SIM_SPEED': '20'})
    action = prepare(lab, ACTIONS[SUSPENDED])
    uuid = lab.root.of_map(0, 'dm/uuid')

    def behaviour(command):
        os.chmod(uuid, 0)
        os.rename(uuid, uuid + '.away')
        kill(command.pid)
        return 'close'
    lab.mpd.on('^resume', behaviour, count=1)
    assert action.run(lab) == LOST
    wait_until(lambda: not lab.workers())
    time.sleep(.5)
    os.rename(uuid + '.away', uuid)
    os.chmod(uuid, 0o644)
    wait_until(lambda: not lab.known.suspended)


def test_map_is_resumed_before_the_next_command_has_it(lab_of):
    """Else the resumer ends the suspension that the next command has begun,
    and the guest's I/O meets paths that have lost their key."""
    lab = lab_of()
    action = prepare(lab, ACTIONS[SUSPENDED])
    keys = []

    def dies(command):
        kill(command.pid)
        return 'close'

    def slows(_):
        for path in PATHS:
            lab.nexus(path).delay_ms = 600

    def looks(_):
        keys.append([lab.nexus(path).key for path in PATHS])
    lab.mpd.on('^resume', dies, count=1)
    lab.mpd.on('^resume', looks)
    assert action.run(lab) == LOST
    lab.mpd.on('^suspend', slows)
    assert action.run(lab) == GOOD
    wait_until(lambda: not lab.known.suspended and not lab.workers())
    assert {tuple(k) for k in keys} == {(KEY, KEY, KEY)}


def test_resumer_leaves_the_next_suspension_alone(lab_of):
    """Who had the lock before it has resumed the map, and may have suspended
    it since, for its own command."""
    lab = lab_of(env={'SIM_SPEED': '2'})
    action = prepare(lab, ACTIONS[SUSPENDED])
    second = lab.helper.client()
    lab.helper.wait_sessions(2)
    lab.sessions = set(lab.helper.sessions())
    nexus, asked, resumers, resumed_by = lab.nexus(lab.order[0]), [], [], []

    def dies(command):
        send(second, action, lab.map)
        wait_until(lambda: len(lab.workers()) == 2)
        time.sleep(.2)          # it waits for the lock
        kill(command.pid)
        return 'close'

    def delays(command):
        asked.append(command.pid)
        if asked == [asked[0], command.pid]:    # it recovers the map
            wait_until(lambda: lab.workers() - set(asked))
            resumers.extend(lab.workers() - set(asked))
        elif asked.count(command.pid) == 2:     # it has, and goes on
            os.kill(resumers[0], signal.SIGSTOP)
            nexus.hold_from, nexus.hold = nexus.commands + 1, 1

    def goes_on(_):
        if resumers:
            os.kill(resumers[0], signal.SIGCONT)
            wait_until(lambda: resumers[0] in resumed_by
                       or resumers[0] not in lab.workers())
    lab.mpd.on('^getprkey', delays)
    lab.mpd.on('^resume', dies, count=1)
    lab.mpd.on('^resume', lambda command: resumed_by.append(command.pid))
    lab.mpd.on('^suspend', goes_on, effect=True)
    assert action.run(lab) == LOST
    wait_until(lambda: nexus.hold)
    nexus.wait_held()
    time.sleep(4.4)             # longer than the resumer has patience
    nexus.hold = 0
    assert code(second.reply()) == GOOD
    assert resumers and resumers[0] not in resumed_by


def test_command_is_not_carried_out_after_its_answer(lab_of):
    """To recover the map first may take as long as a command."""
    lab = lab_of(env={'SIM_SPEED': '20'})
    action = prepare(lab, ACTIONS[SUSPENDED])
    second = lab.helper.client()
    lab.helper.wait_sessions(2)
    lab.sessions = set(lab.helper.sessions())
    nexus = lab.nexus(lab.order[1])

    def dies(command):
        send(second, ACTIONS['change the key'], lab.map)
        wait_until(lambda: len(lab.workers()) == 2)
        time.sleep(.1)          # it waits for the lock
        nexus.answer(status=8, count=EVER)
        kill(command.pid)
        return 'close'
    lab.mpd.on('^suspend', dies, count=1, effect=True)
    assert action.run(lab) == LOST
    assert code(second.reply()) == LOST
    nexus.inject = 0
    wait_until(lambda: not lab.workers())
    assert lab.keys() == [KEY] * 3


@pytest.mark.parametrize('mode', MODES)
def test_map_is_resumed_when_multipathd_does_so_again(lab_of, mode):
    """However late; with --single-process nobody but the helper can."""
    lab = lab_of(mode, env=FAST)
    action = prepare(lab, ACTIONS[SUSPENDED])
    lab.mpd.on('^resume', 'fail')
    assert action.run(lab) == LOST
    wait_until(lambda: lab.helper.log().count('dmsetup resume mpatha') > 2)
    assert lab.client.read_in(lab.alone, READ_KEYS).status == GOOD
    if mode == 'single-process':
        assert code(lab.client.read_in(lab.other_map, READ_KEYS)) == LOST
        assert 'map mpatha is suspended' in lab.helper.log()
    lab.mpd.rules.clear()
    wait_until(lambda: not lab.known.suspended)
    wait_until(lambda: lab.client.read_in(lab.map, READ_KEYS).status == GOOD)
    lab.wait_idle()


@pytest.mark.parametrize('mode', MODES)
def test_map_is_resumed_before_the_helper_ends(lab_of, mode):
    lab = lab_of(mode, env=FAST)
    action = prepare(lab, ACTIONS[SUSPENDED])
    lab.mpd.on('^resume', 'fail')
    assert action.run(lab) == LOST
    wait_until(lambda: lab.helper.log().count('dmsetup resume mpatha') > 1)
    lab.mpd.rules.clear()
    assert lab.helper.stop() == 0
    assert not lab.known.suspended


@pytest.mark.parametrize('who', ['session', 'client'])
def test_worker_goes_on_without_its(lab_of, who):
    """It does what it has begun, and nobody else is the worse for it."""
    lab = lab_of()
    for name in ('register', 'release', SUSPENDED):
        lab.reset()
        action = ACTIONS[name]
        prepare_dead(lab, action, SUSPENDING.get(name, ()))
        path = next(n for n in lab.order if n not in lab.dead)
        nexus = lab.nexus(path)
        with nexus.hanging():
            send(lab.client, action, lab.map)
            nexus.wait_held()
            session, = lab.sessions
            if who == 'session':
                kill(session)
                with pytest.raises(Closed):
                    lab.client.reply()
            lab.client.close()
            wait_until(lambda: session not in lab.helper.sessions()
                       or who == 'client')
        lab.sessions = set()
        wait_until(lambda: not lab.workers())
        action.after(lab)
        lab.client = None
        lab.known.suspended = lab.known.suspended and pytest.fail('suspended')
        lab.helper.wait_sessions(0)


def test_main_is_killed_while_a_map_is_suspended(lab_of):
    """The worker is nobody's child then, and ends what it has begun."""
    lab = lab_of('sessions')
    action, nexus, skip = prepare_suspended(lab)
    with nexus.hanging(skip):
        send(lab.client, action, lab.map)
        nexus.wait_held()
        worker, = lab.workers()
        kill(lab.helper.pid)
        lab.helper.process.wait(20)
    lab.mode = 'killed'
    wait_until(lambda: not os.path.exists('/proc/%d' % worker)
               or not lab.known.suspended)
    wait_until(lambda: lab.keys() == [KEY] * 3)
    action.after(lab)


@pytest.mark.skipif(os.geteuid() != 0,
                    reason='other processes of this user come and go')
def test_command_is_carried_out_although_no_process_can_be_forked(lab_of):
    """Who has the most connections makes room, and that is said once, or
    again after there has been room in between."""
    lab = lab_of(options=A_USER)
    others = [lab.helper.client() for _ in range(10)]
    lab.helper.wait_sessions(11)
    no_more_processes(lab.helper)
    start = time.monotonic()
    lab.client.read_in(lab.other_map, READ_KEYS)
    for _ in range(3):
        assert lab.client.read_in(lab.map, READ_KEYS).status == GOOD
    assert time.monotonic() - start < 5
    assert lab.helper.log().count('cannot fork') in (1, 2)
    assert others[0].closed()
    others[-1].read_in(lab.map, READ_KEYS)
    for client in others:
        client.close()
    lab.helper.wait_sessions(1)


def queue_of(lab):
    """The sessions' end of the queue to the workers."""
    number, = (int(fd) for fd in os.listdir('/proc/%d/fd' % lab.helper.pid)
               if int(fd) > 500)
    pidfd = os.pidfd_open(lab.helper.pid)
    fd = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
    os.close(pidfd)
    if fd < 0:
        pytest.skip('pidfd_getfd: ' + os.strerror(ctypes.get_errno()))
    return socket.socket(fileno=fd)


def test_other_commands_on_the_queue(lab_of):
    """As code in a session could send them: no worker sends them on."""
    lab = lab_of()
    lab.registered()
    for operation in range(256):
        if operation in (0x5e, 0x5f, CLEANUP):
            continue
        with queue_of(lab) as queue:
            ours, theirs = socket.socketpair(socket.AF_UNIX,
                                             socket.SOCK_SEQPACKET)
            with ours:
                with theirs:
                    socket.send_fds(queue, [
                        bytes(12), bytes([operation]) + bytes(7), b'\x18',
                        bytes(7)], [lab.map, theirs.fileno()])
                ours.settimeout(20)
                ours.recv(200)
    lab.wait_idle()
    assert {event.cdb[0] for event in lab.sent()} <= {0, 0x5e}


@pytest.mark.parametrize('room', ['room for them', 'no room for them'])
def test_descriptors_on_the_queue_that_linger(lab_of, room):
    """As code in a session could send them: commands on maps go on."""
    lab = lab_of()
    used = {int(fd) for fd in os.listdir('/proc/%d/fd' % lab.helper.pid)}
    limits = resource.prlimit(lab.helper.pid, resource.RLIMIT_NOFILE)
    if room != 'room for them':         # the kernel closes what is too many
        free = sorted(set(range(len(used) + 3)) - used)
        resource.prlimit(lab.helper.pid, resource.RLIMIT_NOFILE,
                         (free[2], limits[1]))
    with queue_of(lab) as queue:
        ours, theirs = socket.socketpair()
        sender, receiver = lingering()
        with ours, theirs, sender, receiver:
            os.kill(lab.helper.pid, signal.SIGSTOP)
            socket.send_fds(queue, [b'.'],
                            [lab.map, theirs.fileno(), sender.fileno()])
            sender.close()          # the queue's is the last reference now
            os.kill(lab.helper.pid, signal.SIGCONT)
            start = time.monotonic()
            if room != 'room for them':
                wait_until(lab.workers)
            resource.prlimit(lab.helper.pid, resource.RLIMIT_NOFILE, limits)
            assert lab.client.read_in(lab.map, READ_KEYS).status == GOOD
            assert time.monotonic() - start < 20
    lab.wait_idle()


# ---- Many at a time ---------------------------------------------------------

def test_a_hanging_path_delays_nobody_elses_disk(lab_of):
    lab = lab_of()
    lab.strangers_allowed = True
    lab.registered()
    for nexus in OTHERS:
        lab.nexus(nexus).key = NEW
    lab.mpd.maps[1].key = NEW
    begin = time.monotonic()
    with lab.nexus(lab.order[0]).hanging():
        with lab.helper.client() as waiting, lab.helper.client() as other:
            waiting.send(pr_in(READ_KEYS), [lab.map])
            lab.nexus(lab.order[0]).wait_in_flight(1)
            for _ in range(20):
                assert other.read_in(lab.rival, READ_KEYS).status == GOOD
                assert other.keys(lab.other_map) == [NEW, NEW]
                assert other.out(lab.other_map, RESERVE, NEW, 0,
                                 1).status == GOOD
            assert time.monotonic() - begin < 10
            lab.nexus(lab.order[0]).hold = 0
            assert waiting.reply().status == GOOD


@pytest.mark.parametrize('mode', MODES)
def test_many_clients_on_two_maps(lab_of, mode):
    """Commands on one map follow one another; on two they do not mix."""
    lab = lab_of(mode)
    lab.strangers_allowed = True
    lab.is_consistent = False
    wrong = []

    def work(number, fd, base):
        try:
            with lab.helper.client() as client:
                for i in range(8):
                    key = base + number * 100 + i
                    reply = client.out(fd, REGISTER_AND_IGNORE, 0, key)
                    assert code(reply) == GOOD
                    # Who reads does not wait for a change of another's.
                    keys = client.keys(fd)
                    assert {k // 10000 for k in keys} == {base // 10000}, keys
        except Exception as error:      # pylint: disable=broad-except
            wrong.append(repr(error))
    threads = [threading.Thread(target=work, args=(n, *where))
               for n in range(6)
               for where in ((lab.map, 10000), (lab.other_map, 20000))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong, wrong
    lab.wait_sessions = None
    for lun, paths in ((0, PATHS), (1, OTHERS)):
        sent = [e for e in lab.target.log() if e.lun == lun
                and e.cdb[:2] == bytes((0x5f, REGISTER_AND_IGNORE))]
        assert len(sent) == 6 * 8 * len(paths)
        for i in range(0, len(sent), len(paths)):
            group = sent[i:i + len(paths)]
            assert len({e.sa_key for e in group}) == 1, 'two at a time'
            assert {e.nexus for e in group} == set(paths)


def test_as_many_commands_as_clients(lab_of):
    """Reading waits for nobody, and nobody is refused."""
    lab = lab_of(options=('--max-clients=40',))
    lab.registered()
    clients = [lab.helper.client() for _ in range(39)]
    with lab.nexus(lab.order[0]).hanging():
        for client in clients:
            client.send(pr_in(READ_KEYS), [lab.map])
        lab.nexus(lab.order[0]).wait_in_flight(len(clients))
    for client in clients:
        assert client.reply().status == GOOD
        client.close()


# ---- Which socket is multipathd's -------------------------------------------

@pytest.mark.parametrize('where', ['/run', 'beside', 'abstract', '@given'])
def test_where_multipathd_is_looked_for(where):
    lab = Lab()
    try:
        names = {'/run': lab.root.path('run/multipathd.socket'),
                 'beside': os.path.join(lab.dir, 'multipathd.socket'),
                 'abstract': '@' + lab.root.directory,
                 '@given': '@prhelper-test-%d' % os.getpid()}
        lab.mpd.stop()
        lab.mpd.address = names[where]
        lab.client.close()
        lab.client = None
        assert lab.helper.stop() == 0
        env = dict(lab.env, MULTIPATH_SOCKET_NAME=names[where])
        if where != '@given':
            del env['MULTIPATH_SOCKET_NAME']
        lab.helper = Helper(lab.dir, SIM_HELPER, ('-v',), env=env)
        lab.helper.wait_sessions(0)
        lab.mpd.start()
        run = Scenarios(lab)
        for name in ('register', 'release'):
            with run.scenario(where, name):
                action = prepare(lab, ACTIONS[name])
                assert action.run(lab) == GOOD
                action.after(lab)
        run.done()
    finally:
        lab.close()


def test_number_of_scenarios(capsys):
    with capsys.disabled():
        print('\nmultipath: %d scenarios' % Scenarios.count)
# ---- After what came before -------------------------------------------------

def twin_has_taken_over(lab, hold='set'):
    """With one path; all of ours have lost the key, multipathd knows not."""
    lab.registered()
    for path in PATHS:
        lab.nexus(path).key = 0
    lab.strangers_allowed, lab.is_consistent = True, False
    lab.nexus(RIVALS).key = KEY
    lab.lun.type, lab.lun.holder = 1, RIVALS
    lab.known.prhold = hold


@pytest.mark.parametrize('name', ['release', 'unregister', 'change the key',
                                  'clean up'])
@pytest.mark.parametrize('how', [REGISTER, REGISTER_AND_IGNORE])
def test_who_registers_anew_does_not_hold_what_a_twin_holds(run_one, how,
                                                            name):
    """multipathd's memory is of the registration before, and a path that is
    gone has lost its key, too."""
    for gone, goes in itertools.product(PATHS, (Lab.die, Lab.hangs)):
        with run_one.scenario(gone, goes) as lab:
            twin_has_taken_over(lab)
            goes(lab, gone)
            assert lab.out(how, 0, KEY) == GOOD
            ACTIONS[name].run(lab)
            lab.wait_idle()
            assert lab.holder() == (RIVALS, 1)
            assert lab.nexus(RIVALS).key == KEY


def test_who_has_lost_all_keys_hears_conflict_also_if_a_path_is_gone(run_one):
    for name, hold, gone in itertools.product(
            ('release', 'reserve'), ('set', 'unset', 'unknown'), PATHS):
        with run_one.scenario(name, hold, gone) as lab:
            twin_has_taken_over(lab, hold)
            lab.die(gone)
            assert ACTIONS[name].run(lab) == CONFLICT


def dies_before_the_holder_has_the_key(lab, holder):
    """Which is the last path that gets it. The worker is killed."""
    action = ACTIONS['change the key, holding']
    lab.held(1, holder)
    assert action.run(lab) == GOOD
    lab.wait_idle()
    skip = [e.sa_key for e in lab.sent() if e.nexus == holder].index(NEW)
    lab.reset()
    lab.held(1, holder)
    with lab.nexus(holder).hanging(skip):
        send(lab.client, action, lab.map)
        lab.nexus(holder).wait_held()
        kill(*lab.workers())
        assert code(lab.client.reply()) == LOST
    lab.wait_idle()
    lab.is_consistent = False
    assert [lab.nexus(path).key for path in PATHS] == [
        KEY if path == holder else NEW for path in PATHS]


@pytest.mark.parametrize('holder', PATHS)
def test_what_our_older_key_holds_is_not_said_to_be_released(lab_of, holder):
    lab = lab_of(env=FAST)
    dies_before_the_holder_has_the_key(lab, holder)
    assert lab.out(RELEASE, NEW, 0, 1) != GOOD or lab.holder() is None


@pytest.mark.parametrize('holder', PATHS)
def test_what_our_older_key_held_is_known_to_be_held(lab_of, holder):
    lab = lab_of(env=FAST)
    dies_before_the_holder_has_the_key(lab, holder)
    assert lab.out(REGISTER_AND_IGNORE, 0, 0xa11ce3) == GOOD
    assert lab.holder() == (holder, 1)
    lab.die(holder)
    assert lab.out(RELEASE, 0xa11ce3, 0, 1) != GOOD or lab.holder() is None


def test_a_path_that_keeps_an_older_key_is_logged(run_one):
    """multipathd before 0.13 leaves it there if the new one has been
    preempted: then who was fenced writes."""
    for gone in PATHS:
        with run_one.scenario(gone) as lab:
            lab.registered()
            lab.rival_registered()
            lab.die(gone)
            begin = len(lab.helper.log())
            assert lab.out(REGISTER, KEY, NEW) == GOOD
            with lab.helper.client() as rival:
                assert rival.out(lab.rival, PREEMPT, RIVAL, NEW,
                                 1).status == GOOD
            lab.wait_idle()
            lab.live(gone)
            lab.is_consistent = False
            assert lab.keys() == [0, 0, 0] or re.search(
                '%s comes back with' % sim.disk_name(gone),
                lab.helper.log()[begin:])


def test_clean_up_leaves_aptpl_as_it_is(run_one):
    """It counts for all: the twin's reservation is to outlive a power loss."""
    with run_one.scenario() as lab:
        assert lab.out(REGISTER, 0, KEY, flags=1) == GOOD
        lab.strangers_allowed = True
        lab.nexus(RIVALS).key = KEY
        lab.lun.type, lab.lun.holder = 1, RIVALS
        assert ACTIONS['clean up'].run(lab) == GOOD
        assert lab.lun.aptpl == 1


def test_what_is_undone_leaves_aptpl_as_it_is(run_one):
    with run_one.scenario() as lab:
        lab.rival_registered()
        lab.lun.aptpl = 1
        lab.nexus(lab.order[2]).answer(**sense_of(5, 0x55, 4), count=EVER,
                                       only=(0x5f, REGISTER))
        assert lab.out(REGISTER, 0, KEY, flags=1) == '5/55/04'
        assert lab.lun.aptpl == 1


def test_a_table_of_many_paths(run_one):
    """4,000 are a thousand disks with four each."""
    with run_one.scenario() as lab:
        lab.die(0)
        lab.mpd.maps[1].paths = {sim.disk_name(30 + n): lab.nexus(16)
                                 for n in range(4000)}
        lab.mpd.maps.reverse()
        assert lab.out(REGISTER, 0, KEY) == GOOD


def test_paths_that_dm_has_failed_are_said_to_be_so(run_one):
    for name in ('register', 'unregister', 'change the key'):
        with run_one.scenario(name) as lab:
            prepare(lab, ACTIONS[name])
            for path in PATHS:
                lab.nexus(path).dm_failed = 1
            begin = len(lab.helper.log())
            assert ACTIONS[name].run(lab) == LOST
            lab.is_consistent = False
            assert 'answers GOOD' not in lab.helper.log()[begin:]


def test_a_conflict_of_our_own_is_logged(run_one):
    for key in (0, NEW):
        with run_one.scenario(key) as lab:
            lab.registered()
            lab.known.key, lab.is_consistent = key, False
            begin = len(lab.helper.log())
            assert lab.out(RESERVE, KEY, 0, 1) == CONFLICT
            assert 'warning: dm-0 (mpatha)' in lab.helper.log()[begin:]


def test_a_key_that_multipathd_keeps_is_logged(run_one):
    """Its file is read-only: started anew, it registers with it again if a
    path that is gone, or a twin, still has it on the disk."""
    with run_one.scenario() as lab:
        lab.registered()
        lab.mpd.on('^unsetprkey', 'fail')
        begin = len(lab.helper.log())
        answer = lab.out(REGISTER, KEY, 0)
        assert answer != GOOD or lab.known.key == 0 \
            or 'warning: dm-0 (mpatha)' in lab.helper.log()[begin:]


def test_who_is_fenced_gets_no_key_back_by_the_last_path(run_one):
    with run_one.scenario() as lab:
        lab.registered()
        lab.rival_registered()
        lab.is_consistent = False
        last = lab.order[0]
        lab.target.act(sim.STATE, last, 12, argument=sim.OFFLINE)
        lab.target.act(sim.DM, last, 12, argument=1)

        def fence(command):
            with lab.helper.client() as rival:
                assert rival.out(lab.rival, PREEMPT, RIVAL, KEY,
                                 1).status == GOOD
            lab.nexus(last).state = sim.RUNNING
            lab.nexus(last).dm_failed = 0

        lab.mpd.on('^setprstatus', fence, count=1)
        assert lab.out(REGISTER, KEY, KEY) == LOST
        assert lab.out(REGISTER, KEY, KEY) == CONFLICT      # is GOOD
        assert lab.keys() == [0, 0, 0]


OLDER = {'busy': lambda lab, n: lab.nexus(n).answer(
             status=8, only=(0x5f, RELEASE)),
         'lost': lambda lab, n: lab.nexus(n).answer(
             host_status=3, only=(0x5f, RELEASE)),
         'becoming ready': lambda lab, n: lab.nexus(n).answer(
             **sense_of(2, 4, 1), only=(0x5f, RELEASE)),
         'refuses': lambda lab, n: lab.nexus(n).answer(
             **sense_of(4, 0x44, 0), only=(0x5f, RELEASE)),
         'blocked': lambda lab, n: lab.root.state(n, 'blocked'),
         'gone': Lab.die}


@pytest.mark.parametrize('how', OLDER)
@pytest.mark.parametrize('holder', PATHS)
def test_what_an_older_key_holds_if_its_path_does_not_say(lab_of, how,
                                                                holder):
    lab = lab_of(env=FAST)
    dies_before_the_holder_has_the_key(lab, holder)
    OLDER[how](lab, holder)
    assert lab.out(RELEASE, NEW, 0, 1) != GOOD or lab.holder() is None


@pytest.mark.parametrize('holder', PATHS)
def test_what_an_older_key_holds_by_another_type(lab_of, holder):
    lab = lab_of(env=FAST)
    dies_before_the_holder_has_the_key(lab, holder)
    assert lab.out(RELEASE, NEW, 0, 7) != GOOD or lab.holder() is None


def test_a_conflict_makes_multipathd_forget_nothing(run_one):
    for holder in PATHS:
        with run_one.scenario(holder) as lab:
            lab.held(1, holder)
            lab.known.key = NEW     # who told it was killed then
            assert lab.out(REGISTER, 0, 0xa11ce3) == CONFLICT
            assert lab.out(REGISTER, KEY, NEW) == GOOD
            lab.wait_idle()
            lab.die(holder)
            assert lab.out(RELEASE, NEW, 0, 1) != GOOD or not lab.lun.type


def test_a_lost_answer_costs_no_reservation(run_one):
    """multipathd has forgotten the key, and one path has none."""
    for new in PATHS:
        with run_one.scenario(new) as lab:
            others = [path for path in PATHS if path != new]
            lab.registered(paths=others)
            lab.known.key, lab.known.prflag = 0, 'unset'
            lab.lun.type, lab.lun.holder = 1, others[0]
            lab.nexus(new).answer(host_status=3,
                                  only=(0x5f, REGISTER_AND_IGNORE))
            assert lab.out(REGISTER_AND_IGNORE, 0, KEY) == GOOD
            assert lab.holder() == (others[0], 1)


def test_a_path_without_a_key_does_not_keep_release_from_ending(run_one):
    for new in PATHS:
        with run_one.scenario(new) as lab:
            lab.registered(paths=[path for path in PATHS if path != new])
            lab.rival_holds()
            lab.is_consistent = False
            assert lab.out(RELEASE, KEY, 0, 1) == GOOD


def test_release_beside_a_rival_waits_for_nobody(run_one):
    with run_one.scenario() as lab:
        lab.registered()
        lab.rival_holds()
        for path in lab.order[1:]:
            lab.nexus(path).delay_ms = 300000
        clock = lab.target.clock()
        assert lab.out(RELEASE, KEY, 0, 1) == GOOD
        assert lab.target.clock() - clock < 10 * 1000000


def test_a_small_stack(lab_of):
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (512 << 10, hard))
    try:
        lab = lab_of(env=FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    lab.registered()
    assert lab.out(RESERVE, KEY, 0, 1) == GOOD


def test_a_path_that_hangs_is_not_said_to_be_failed(run_one):
    with run_one.scenario() as lab:
        lab.is_consistent = False
        lab.nexus(lab.order[1]).answer(host_status=3, count=EVER,
                                       only=(0x5f, None))
        lab.target.act(sim.STATE, lab.order[0], 20, argument=sim.BLOCKED)
        begin = len(lab.helper.log())
        assert lab.out(REGISTER, 0, KEY) == LOST
        lab.wait_idle()
        assert 'was failed by multipathd' not in lab.helper.log()[begin:]


def test_key_0_is_no_key(run_one):
    with run_one.scenario() as lab:
        lab.registered()
        for path in PATHS:
            lab.nexus(path).answer(
                **sense_of(5, 0x55, 4), count=EVER, only=(0x5f, REGISTER),
                skip=2 if path == lab.order[0] else 0)
        lab.mpd.on('^setprkey', 'fail')
        begin = len(lab.helper.log())
        lab.is_consistent = False
        assert lab.out(REGISTER, KEY, 0) == '5/55/04'
        assert 'may register key 0 ' not in lab.helper.log()[begin:]


@pytest.mark.parametrize('holder', PATHS)
@pytest.mark.parametrize('action', [REGISTER, REGISTER_AND_IGNORE])
def test_all_tg_pt_does_not_hide_that_a_rival_was_faster(run_one, action,
                                                         holder):
    """The last path gets the new key early, through its initiator's other
    one, and so does not show that the older key was preempted."""
    for step in range(1, 40):
        with run_one.scenario(step) as lab:
            for path in PATHS:
                lab.nexus(path).initiator = 1
            lab.nexus([path for path in lab.order
                       if path != holder][1]).initiator = 2
            lab.held(1, holder)
            lab.rival_registered()
            lab.is_consistent = False
            act = lab.target.act(PREEMPT, RIVALS, step, key=KEY, argument=1)
            answer = lab.out(action, KEY, NEW, flags=4)
            lab.wait_idle()
            # What ignores an older key may come after all that, too.
            assert not act.done_at or act.status or (
                answer != GOOD and lab.keys() == [0, 0, 0]) or (
                action == REGISTER_AND_IGNORE and answer == GOOD
                and lab.keys() == [NEW] * 3 and lab.holder() == (RIVALS, 1))
            if action == REGISTER_AND_IGNORE:
                assert answer in (GOOD, LOST)


def comes_back(lab, path, step, is_offline):
    """dm has failed it, and takes it back; multipathd gives it no key."""
    lab.known.prflag = 'unset'
    lab.nexus(path).dm_failed = 1
    if is_offline:
        lab.nexus(path).state = sim.OFFLINE
        lab.target.act(sim.STATE, path, step, argument=sim.RUNNING)
    lab.target.act(sim.DM, path, step, argument=0)


def test_a_failed_path_that_is_used_again_has_been_preempted(run_one):
    """It was when the last path that was used had the new key already."""
    done = 0
    for step, back in itertools.product(range(7, 40), (1, 3, 6)):
        with run_one.scenario(step, back) as lab:
            lab.held(1, lab.order[0])
            lab.rival_registered()
            lab.is_consistent = False
            for path in lab.order[1:]:
                comes_back(lab, path, step - back, False)
            act = lab.target.act(PREEMPT, RIVALS, step, key=KEY, argument=1)
            answer = lab.out(REGISTER, KEY, NEW)
            lab.wait_idle()
            if act.done_at and not act.status:
                assert answer != GOOD and lab.keys() == [0, 0, 0]
                done += 1
    assert done > 20


@pytest.mark.parametrize('what', [None, 1, 3, 0x0d, 'busy'])
def test_a_path_without_a_key_that_is_used_again_costs_nothing(run_one, what):
    """Nobody else has done anything, whatever happens to our commands."""
    for step, place, skip in itertools.product(range(8, 32), range(2),
                                               range(1, 4)):
        with run_one.scenario(step, place, skip) as lab:
            lab.held(1, lab.order[0])
            lab.nexus(lab.order[2]).key = 0
            comes_back(lab, lab.order[2], step, True)
            nexus = lab.nexus(lab.order[place])
            if what == 'busy':
                nexus.answer(status=8, only=(0x5e, READ_KEYS), skip=skip)
            elif what:
                nexus.answer(host_status=what, after=True, skip=skip,
                             only=(0x5f, REGISTER))
            lab.target.act(REGISTER_AND_IGNORE, RIVALS, 3, key=RIVAL)
            assert lab.out(REGISTER, KEY, NEW) == GOOD
            assert lab.holder() == (lab.order[0], 1)
            # The third one may not have come back.
            assert [lab.nexus(p).key for p in lab.order[:2]] == [NEW] * 2
            lab.is_consistent = False


@pytest.mark.parametrize('action', [REGISTER, REGISTER_AND_IGNORE])
@pytest.mark.parametrize('host', [1, 0x0d, 0x0f])
def test_what_was_done_and_is_sent_again_costs_nothing(run_one, host, action):
    """A driver says that the command has not left it, but it had."""
    for (holder, path), skip in itertools.product(
            itertools.permutations(PATHS, 2), range(3)):
        with run_one.scenario(holder, path, skip) as lab:
            third, = set(PATHS) - {holder, path}
            lab.held(1, holder)
            lab.die(third)
            lab.nexus(third).key = 0
            lab.nexus(path).answer(host_status=host, after=True, skip=skip,
                                   only=(0x5f, REGISTER))
            assert lab.out(action, KEY, NEW) == GOOD
            assert lab.holder() == (holder, 1)


def test_a_failed_path_is_registered_with_its_key(run_one):
    """So that who says that he has none is told so."""
    with run_one.scenario() as lab:
        lab.held()
        for path in PATHS:
            lab.nexus(path).dm_failed = 1
        lab.nexus(lab.order[1]).key = 0
        keys = lab.keys()
        lab.is_consistent = False
        assert lab.out(REGISTER, 0, 0) == CONFLICT
        assert lab.keys() == keys


@pytest.mark.parametrize('how', ['SPEC_I_PT', 'no room', 'fails', 'lost'])
def test_who_is_registered_and_refused_stays_so(run_one, how):
    """One disk says CONFLICT, and nothing else happens."""
    for place, after in itertools.product(range(3), (False, True)):
        with run_one.scenario(place, after) as lab:
            lab.held()
            lab.before = lab.state()
            nexus = lab.nexus(lab.order[place])
            only = (0x5f, REGISTER)
            if how == 'lost':
                nexus.answer(host_status=3, after=after, only=only, skip=1)
            elif how != 'SPEC_I_PT':
                nexus.answer(**sense_of(*(5, 0x55, 4) if how == 'no room'
                                        else (4, 0x44, 0)), only=only, skip=1)
            answer = lab.out(REGISTER, 0, KEY, flags=8 * (how == 'SPEC_I_PT'))
            lab.wait_idle()
            assert answer != GOOD and lab.state() == lab.before


def test_a_conflict_leaves_aptpl_as_it_is(run_one):
    with run_one.scenario() as lab:
        assert lab.out(REGISTER, 0, KEY, flags=1) == GOOD
        assert lab.out(RESERVE, KEY, 0, 1) == GOOD
        assert lab.out(REGISTER, 0, KEY) == CONFLICT
        assert lab.lun.aptpl == 1


@pytest.mark.parametrize('name', ['release', 'unregister', 'clean up',
                                  'change the key'])
def test_a_twin_who_registers_while_we_suspend_keeps_his_key(run_one, name):
    for is_known in False, True:
        with run_one.scenario(is_known) as lab:
            lab.held(1, 0)
            if is_known:
                lab.root.initiators(PATHS)
            lab.die(0)
            lab.strangers_allowed, lab.is_consistent = True, False
            with lab.helper.client() as twin:
                def comes(_):
                    reply = twin.out(lab.rival, REGISTER, 0, KEY)
                    assert reply.status == GOOD
                lab.mpd.on('^suspend', comes, count=1)
                ACTIONS[name].run(lab)
            lab.wait_idle()
            assert lab.nexus(RIVALS).key == KEY


@pytest.mark.parametrize('is_held', [False, True])
def test_a_refusal_gives_no_key_back(run_one, is_held):
    """It has the command repeated for ALL_TG_PT; but that goes to the witness
    of the same initiator, too, which a rival has preempted by then."""
    for step in range(10, 24):
        with run_one.scenario(step) as lab:
            for path in PATHS:
                lab.nexus(path).initiator = 1
            lab.registered()
            if is_held:
                lab.held(1, lab.order[0])
            lab.rival_registered()
            lab.is_consistent = False
            lab.nexus(lab.order[1]).answer(
                **sense_of(5, 0x55, 4), only=(0x5f, REGISTER_AND_IGNORE))
            act = lab.target.act(PREEMPT, RIVALS, step, key=KEY, argument=1)
            lab.out(PREEMPT, KEY, KEY, 1)
            lab.wait_idle()
            assert not act.done_at or act.status or lab.keys() == [0, 0, 0]


def test_the_cure_for_what_may_hold_with_another_key(run_one):
    """It is a rival's; but multipathd thinks that we hold, and one is gone."""
    with run_one.scenario() as lab:
        lab.registered()
        lab.known.prhold = 'unset'
        lab.rival_registered()
        lab.die(2)
        for path in lab.usable():
            lab.nexus(path).answer(host_status=3, only=(0x5f, RESERVE))
        lab.target.act(RESERVE, RIVALS, 8, argument=5)
        lab.is_consistent = False
        assert lab.out(RESERVE, KEY, 0, 5) == LOST
        assert lab.out(RESERVE, KEY, 0, 5) == CONFLICT
        begin = len(lab.helper.log())
        assert lab.out(RELEASE, KEY, 0, 5) == LOST
        assert 'unregister and register anew' in lab.helper.log()[begin:]
        assert lab.out(REGISTER, KEY, 0) == GOOD
        assert lab.out(REGISTER, 0, KEY) == GOOD
        assert lab.out(RELEASE, KEY, 0, 5) == GOOD


@pytest.mark.parametrize('how', ['gone', 'hangs'])
def test_who_is_registered_and_refused_stays_so_if_one_is_gone(run_one, how):
    for gone, place in itertools.permutations(PATHS, 2):
        for is_lost in False, True:
            with run_one.scenario(gone, place, is_lost) as lab:
                lab.held(1, next(path for path in PATHS if path != gone))
                if how == 'gone':
                    lab.die(gone)
                else:
                    lab.hangs(gone)
                only, skip = (0x5f, REGISTER), 1
                if is_lost:
                    lab.nexus(place).answer(host_status=3, only=only, skip=skip)
                else:
                    lab.nexus(place).answer(**sense_of(5, 0x55, 4), only=only,
                                            skip=skip)
                assert lab.out(REGISTER, 0, KEY) == CONFLICT
                lab.wait_idle()
                assert set(lab.keys()) == {KEY} and lab.lun.type == 1


@pytest.mark.parametrize('how', [dict(status=8), dict(host_status=3),
                                 dict(**sense_of(2, 4, 1)), 'failed'])
def test_a_path_without_a_key_costs_no_reservation(run_one, how):
    """If it cannot say that it has not the older key it is asked again; if dm
    has failed it, but it answers, in the end."""
    for new, holder in itertools.permutations(PATHS, 2):
        with run_one.scenario(new, holder) as lab:
            for path in PATHS:
                lab.nexus(path).initiator = 1 + path
            lab.held(1, holder)
            lab.nexus(new).key = 0
            if how == 'failed':
                lab.nexus(new).dm_failed = 1
                lab.dead.add(new)
            else:
                lab.nexus(new).answer(only=(0x5f, REGISTER),
                                      skip=int(new == lab.order[0]), **how)
            assert lab.out(REGISTER, KEY, NEW, flags=4) == GOOD
            assert lab.keys() == len(lab.usable()) * [NEW]
            assert lab.holder() == (holder, 1)


@pytest.mark.parametrize('name', ['for all ports', 'beside a twin', 'again'])
def test_a_registration_does_not_ask_paths_that_dm_has_failed(run_one, name):
    with run_one.scenario() as lab:
        lab.strangers_allowed = True
        if name != 'beside a twin':
            lab.held(1, 0)
        failed = lab.more(8)
        lab.hangs(*failed)
        for path in (*PATHS, *failed):
            lab.nexus(path).initiator = 1 + path
        if name == 'for all ports':
            assert lab.out(REGISTER, KEY, NEW, flags=4) == GOOD
        elif name == 'again':
            assert lab.out(REGISTER, 0, KEY) == CONFLICT
        else:
            lab.nexus(RIVALS).key = KEY
            assert lab.out(REGISTER, 0, KEY) == GOOD
        lab.wait_idle()


@pytest.mark.parametrize('told', [0, 0x77])
def test_a_conflict_leaves_aptpl_as_the_command_has_it(run_one, told):
    """What multipathd knows of another key, or of none, says nothing."""
    with run_one.scenario() as lab:
        lab.registered()
        lab.lun.aptpl, lab.known.key = 1, told
        lab.is_consistent = False
        assert lab.out(REGISTER, 0, KEY, flags=1) == CONFLICT
        assert lab.lun.aptpl == 1


def test_an_empty_answer_of_multipathds_is_none(run_one):
    with run_one.scenario() as lab:
        lab.held()
        lab.mpd.on('hold', 'empty')
        lab.is_consistent = False
        assert lab.out(RELEASE, KEY, 0, 1) == LOST


def test_who_refuses_the_key_that_he_has_does_not_end_it(run_one):
    """What is for ALL_TG_PT may come to a path through another one; and LIO
    refuses a change of that which is not."""
    found = set()
    for step in range(1, 30):
        with run_one.scenario(step) as lab:
            lab.registered()
            path = lab.order[1]
            lab.nexus(path).answer(**sense_of(5, 0x26, 0), count=EVER,
                                   only=(0x5f, REGISTER_AND_IGNORE))
            lab.target.act(REGISTER_AND_IGNORE, path, step, key=KEY)
            lab.is_consistent = False
            found.add((lab.out(PREEMPT, KEY, KEY, 1), *lab.keys()))
            lab.wait_idle()
    assert (GOOD, KEY, KEY, KEY) in found


def test_what_a_path_refuses_with_is_in_the_log(run_one):
    with run_one.scenario() as lab:
        lab.nexus(lab.order[1]).answer(**sense_of(5, 0x55, 4),
                                       only=(0x5f, REGISTER))
        lab.out(REGISTER, 0, KEY)
        lab.wait_idle()
        line = re.findall('.* refuses a registration: .*', lab.helper.log())[-1]
        assert 'CONFLICT' not in line and '55' in line


# ---- One path among several that are well -----------------------------------

@pytest.mark.parametrize('action', [REGISTER, REGISTER_AND_IGNORE])
@pytest.mark.parametrize('how', ['not ready', 'lost', 'fails'])
def test_a_path_without_a_key_that_fails_once_costs_nothing(run_one, how,
                                                            action):
    """In a change for all ports, which asks each path for the older key. One
    that fails to be registered, later, ends it."""
    for (new, holder), skip in itertools.product(
            itertools.permutations(PATHS, 2), range(2 if how == 'fails' else 4)):
        with run_one.scenario(new, holder, skip) as lab:
            for path in PATHS:
                lab.nexus(path).initiator = 1 + path
            lab.held(1, holder)
            lab.nexus(new).key = 0
            lab.is_consistent = False
            lab.nexus(new).answer(
                **dict(host_status=3) if how == 'lost'
                else sense_of(2, 4, 3) if how == 'not ready'
                else sense_of(4, 0x44, 0), only=(0x5f, None), skip=skip)
            lab.out(action, KEY, NEW, flags=4)
            lab.wait_idle()
            assert lab.holder() == (holder, 1)


@pytest.mark.parametrize('action', [REGISTER, REGISTER_AND_IGNORE])
@pytest.mark.parametrize('key', [KEY, NEW])
def test_a_first_path_that_dies_costs_no_reservation(run_one, key, action):
    """Just before it gets the key; so that nobody has removed any."""
    for dies, holder in itertools.permutations(PATHS, 2):
        with run_one.scenario(dies, holder) as lab:
            lab.held(1, holder)
            nexus = lab.nexus(dies)

            def die(_):
                nexus.answer(host_status=3, count=EVER)
                nexus.dm_failed = 1
            lab.mpd.on('^setprkey', die, count=1)
            lab.is_consistent = False
            assert lab.out(action, KEY, key) in (GOOD, LOST)
            lab.wait_idle()
            assert lab.holder() == (holder, 1)


def test_a_rival_is_not_hidden_by_a_first_path_that_dies(run_one):
    """It may have got the new key, which he has preempted."""
    for dies, step in itertools.product(PATHS, range(1, 30)):
        with run_one.scenario(dies, step) as lab:
            lab.registered()
            lab.rival_registered()
            lab.is_consistent = False
            lab.nexus(dies).answer(host_status=3, after=True, count=EVER,
                                   only=(0x5f, REGISTER))
            act = lab.target.act(PREEMPT, RIVALS, step, key=NEW, argument=1)
            lab.out(REGISTER, KEY, NEW)
            lab.wait_idle()
            assert not act.done_at or act.status or NEW not in lab.keys()


@pytest.mark.parametrize('how', [
    dict(status=8), dict(host_status=3), sense_of(2, 4, 1)])
def test_who_has_a_key_is_asked_until_he_answers(run_one, how):
    """One path has none, and takes the command of whoever says so."""
    for new in PATHS:
        with run_one.scenario(new) as lab:
            lab.registered(paths=[path for path in PATHS if path != new])
            for path in PATHS:
                if path != new:
                    lab.nexus(path).answer(only=(0x5f, REGISTER), **how)
            lab.is_consistent = False
            assert lab.out(REGISTER, 0, NEW) == CONFLICT


@pytest.mark.parametrize('how', [dict(status=8), dict(host_status=3)])
def test_who_has_a_key_says_so_at_once(run_one, how):
    """Whatever another path that is asked before it does."""
    with run_one.scenario() as lab:
        lab.registered(paths=[lab.order[1]])
        lab.nexus(lab.order[0]).answer(count=EVER, only=(0x5f, REGISTER),
                                       **how)
        begin = lab.target.clock()
        lab.is_consistent = False
        assert lab.out(REGISTER, 0, NEW) == CONFLICT
        assert lab.target.clock() - begin < 10000000


def test_nobody_is_asked_to_release_what_a_rival_holds(run_one):
    """An unregistration that one path refuses is not repeated, a rival fences
    the host, which comes again; and loses a path."""
    for bad, gone, skip in itertools.product(PATHS, PATHS, range(5)):
        with run_one.scenario(bad, gone, skip) as lab:
            lab.held(5, 0)
            lab.rival_registered()
            lab.is_consistent = lab.hold_is_known = False
            lab.nexus(bad).answer(**sense_of(4, 0x44, 0), skip=skip,
                                  only=(0x5f, REGISTER))
            lab.out(REGISTER, KEY, 0)
            lab.wait_idle()
            if lab.known.key or lab.known.prhold != 'set':
                continue
            with lab.helper.client() as rival:
                rival.out(lab.rival, PREEMPT, RIVAL, KEY, 5)
                rival.out(lab.rival, RESERVE, RIVAL, 0, 5)
            lab.out(REGISTER_AND_IGNORE, 0, NEW)
            lab.wait_idle()
            lab.die(gone)
            assert lab.out(RELEASE, NEW, 0, 5) == GOOD
            assert lab.holder() == (RIVALS, 5)


@pytest.mark.parametrize('action', [REGISTER, REGISTER_AND_IGNORE])
def test_a_holder_with_an_older_key_is_not_forgotten(run_one, action):
    """An unregistration that stopped at the holder, which then dies."""
    for (bad, holder), skip in itertools.product(
            itertools.permutations(PATHS, 2), range(3)):
        with run_one.scenario(bad, holder, skip) as lab:
            lab.held(1, holder)
            lab.is_consistent = False
            lab.nexus(bad).answer(**sense_of(4, 0x44, 0), skip=skip,
                                  only=(0x5f, action))
            lab.out(action, KEY, 0)
            lab.wait_idle()
            lab.die(holder)
            key = lab.known.key
            if not key:
                key = NEW
                lab.out(REGISTER_AND_IGNORE, 0, NEW)
            assert lab.out(RELEASE, key, 0, 1) != GOOD or not lab.holder()


# ---- While the map is suspended ---------------------------------------------

@pytest.mark.parametrize('how', ['refuses', 'blocked', 'hangs'])
def test_no_key_that_was_preempted_when_it_is_resumed(run_one, how):
    """The rival has been told GOOD, and I/O that waits would go down a path
    that got the key after that."""
    found = 0
    for step in range(8, 20):
        with run_one.scenario(step) as lab:
            lab.held(1, lab.order[0])
            lab.rival_registered()
            lab.is_consistent = False
            last, seen = lab.order[2], []
            if how == 'refuses':
                lab.nexus(last).answer(**sense_of(5, 0x55, 4), count=2,
                                       only=(0x5f, REGISTER_AND_IGNORE))
            elif how == 'blocked':
                lab.target.act(sim.STATE, last, 10, argument=sim.BLOCKED)
            else:
                lab.target.act(sim.DELAY, last, 10, argument=300000)
            act = lab.target.act(PREEMPT, RIVALS, step, key=KEY, argument=1)
            lab.mpd.on('^resume', lambda _: seen.append(
                act.done_at and not act.status and lab.keys()))
            lab.out(PREEMPT, KEY, KEY, 1)
            lab.wait_idle()
            if seen and seen[0]:
                found += 1
                assert not any(seen[0]), seen
    assert found


@pytest.mark.parametrize('fault', ['hangs', 'blocked', 'transition'])
def test_a_slow_resume_costs_no_reservation(run_one, fault):
    """multipathd is silent when the map shall be resumed, and one path slow;
    the witness is well, and nobody else is there."""
    with run_one.scenario() as lab:
        lab.held(1, lab.order[0])
        slow, later = lab.order[2], lab.target.clock() + 16000000
        if fault == 'hangs':
            lab.target.act(sim.DELAY, slow, 11, argument=300000)
            lab.target.act(sim.DELAY, slow, at=later)
        elif fault == 'blocked':
            lab.target.act(sim.STATE, slow, 11, argument=sim.BLOCKED)
            lab.target.act(sim.STATE, slow, at=later, argument=sim.RUNNING)
        else:
            lab.nexus(slow).answer(**sense_of(2, 4, 0x0a), count=EVER,
                                   only=(0x5f, REGISTER_AND_IGNORE))
            lab.target.act(sim.INJECT, slow, at=later)
        lab.mpd.on('^resume', 'hang', count=2)
        lab.is_consistent = False
        lab.out(PREEMPT, KEY, KEY, 1)
        lab.wait_idle()
        end = time.monotonic() + 10
        while lab.known.suspended:
            assert time.monotonic() < end
            time.sleep(.01)
        lab.wait_idle()
        lab.nexus(slow).delay_ms = lab.nexus(slow).inject_count = 0
        lab.root.state(slow, 'running')
        assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
        lab.assert_held(1)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('count', [1, 2])
def test_a_slow_path_and_a_slow_resume_end_in_time(lab_of, mode, count):
    """Also if there is no supervisor that could have it resumed."""
    lab = lab_of(mode, env=FAST)
    lab.held(1, lab.order[0])
    lab.is_consistent = False
    lab.target.act(sim.DELAY, lab.order[2], 11, argument=300000)
    lab.mpd.on('^resume', 'hang', count=count)
    lab.out(PREEMPT, KEY, KEY, 1)
    end = time.monotonic() + 20
    while lab.known.suspended:
        assert time.monotonic() < end
        time.sleep(.01)
    begin, end = lab.known.suspensions[0]
    assert end - begin < 25000000


@pytest.mark.parametrize('seconds', [4.5, 11])
def test_paths_are_not_asked_for_while_suspended(run_one, seconds):
    with run_one.scenario() as lab:
        lab.held(1, lab.order[0])
        lab.mpd.on('paths', seconds)
        assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
        begin, end = lab.known.suspensions[0]
        assert end - begin < 3000000
        lab.mpd.reset()


@pytest.mark.parametrize('sense', [(4, 0x44, 0), (0xb, 0x47, 3), (5, 0x24, 0)])
@pytest.mark.parametrize('is_lost', [False, True])
def test_a_preempt_that_is_done_and_fails_leaves_no_path_out(run_one, is_lost,
                                                             sense):
    """By the first path, whose answer may be lost; another one refuses it."""
    with run_one.scenario() as lab:
        lab.held(1, lab.order[0])
        first, *others = map(lab.nexus, lab.order)
        first.answer(**dict(host_status=7) if is_lost else sense_of(*sense),
                     after=True, only=(0x5f, PREEMPT))
        for nexus in others:
            nexus.answer(**sense_of(*sense), only=(0x5f, PREEMPT))
        answer = lab.out(PREEMPT, KEY, KEY, 1)
        lab.wait_idle()
        assert lab.keys() == [KEY] * 3 and lab.lun.type == 1
        assert answer != GOOD or sense[0] == 0xb    # which is repeated


@pytest.mark.parametrize('how', ['blocked', 'hangs'])
def test_a_preempt_that_is_refused_is_refused(run_one, how):
    """By the disk, and at once, whatever another path does."""
    with run_one.scenario() as lab:
        lab.held(1, lab.order[0])
        for path in PATHS:
            lab.nexus(path).answer(**sense_of(5, 0x26, 0), count=EVER,
                                   only=(0x5f, PREEMPT))
        if how == 'blocked':
            lab.target.act(sim.STATE, lab.order[2], 10, argument=sim.BLOCKED)
        else:
            lab.target.act(sim.DELAY, lab.order[2], 10, argument=300000)
        assert lab.out(PREEMPT, KEY, KEY, 1) == '5/26/00'
        begin, end = lab.known.suspensions[0]
        assert end - begin < 4000000
        lab.is_consistent = False


@pytest.mark.parametrize('seconds', [0, 2.5])
@pytest.mark.parametrize('which', [0, 1])
def test_a_path_that_fails_while_it_is_suspended_is_last(run_one, which,
                                                         seconds):
    """Which is what suspend waits for: its I/O has to fail. From then on dm
    does not use it, and it hangs."""
    with run_one.scenario() as lab:
        lab.held(1, lab.order[2])
        bad = lab.order[which]

        def fail(_):
            lab.hangs(bad)
            return seconds
        lab.mpd.on('^suspend', fail, effect=True, count=1)
        lab.is_consistent = False
        assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
        lab.wait_idle()
        begin, end = lab.known.suspensions[0]
        assert lab.keys() == [KEY] * 2 and end - begin < 3000000


@pytest.mark.parametrize('how', ['hangs', 'answers are lost'])
def test_a_failed_path_is_last_also_if_multipathd_is_busy(run_one, how):
    """It has said so before; the path may do as it is told, unheard."""
    with run_one.scenario() as lab:
        lab.held(1, lab.order[2])
        bad = lab.order[0]
        lab.hangs(bad)
        if how != 'hangs':
            lab.nexus(bad).delay_ms = 0
            lab.nexus(bad).answer(host_status=3, count=EVER, after=True)
        lab.mpd.on('^suspend', lambda _: lab.mpd.on('paths', 2, count=1),
                   count=1)
        lab.is_consistent = False
        assert lab.out(PREEMPT, KEY, KEY, 1) == GOOD
        lab.wait_idle()
        begin, end = lab.known.suspensions[0]
        assert lab.keys() == [KEY] * 2 and end - begin < 5000000


@pytest.mark.parametrize('name, silent', [
    ('change the key, holding', 3), ('reserve', 2), ('preempt the holder', 2)])
def test_one_silence_does_not_make_a_failed_path_the_first(run_one, name,
                                                           silent):
    """Which does as it is told, but nobody hears of it."""
    for bad in PATHS:
        with run_one.scenario(bad) as lab:
            lab.nexus(bad).dm_failed = 1
            lab.dead.add(bad)
            ACTIONS[name].prepare(lab)
            if lab.lun.type and lab.lun.holder in PATHS:
                lab.lun.holder = PATHS[bad - 1]
            lab.nexus(bad).answer(host_status=3, count=EVER, after=True)
            lab.mpd.on('paths', 'hang', count=1, skip=silent - 1)
            lab.is_consistent = False
            assert ACTIONS[name].run(lab) == GOOD


def test_a_witness_in_transition_while_it_is_recovered(lab_of):
    """Of a worker that was killed."""
    lab = lab_of()
    skip = turn(lab, ACTIONS['preempt ourselves'], lab.order[2],
                REGISTER_AND_IGNORE)
    lab.reset()
    lab.held(1, lab.order[0])
    lab.is_consistent = False
    nexus, witness = lab.nexus(lab.order[2]), lab.nexus(lab.order[0])
    with nexus.hanging(skip):
        lab.client.send(pr_out(PREEMPT, 1), [lab.map])
        lab.client.sock.sendall(parameters(KEY, KEY, 0))
        nexus.wait_held()
        worker, = lab.workers()
        witness.answer(**sense_of(2, 4, 0x0a), count=EVER,
                       only=(0x5f, REGISTER))
        kill(worker)
    time.sleep(5)
    witness.inject_count = 0
    lab.client.reply()
    wait_until(lambda: not lab.known.suspended)
    lab.wait_idle(60)
    assert lab.keys() == [KEY] * 3 and lab.lun.type == 1
