"""Random commands on a multipath map, with rivals that act between any two
steps of them, paths and a multipathd that misbehave, and workers that die;
and a model of what must be so after each.

To its guest a map is one disk. So whatever has happened meanwhile, there must
be a point in time at which that one disk could have carried out the command
(if the answer is an error: or not at all), so that all that others have been
told, and what is so in the end, has come of it: Disk is that disk, and
Case.explanations() are those points. A path counts if the kernel would send
I/O to it: its disk is running or blocked, and dm has not failed it. The rest
is about time (SIM_SPEED=0: it is not spent), what multipathd knows, and the
log. test_multipath.py says what each command comes to when nothing is wrong.

AIMS says how often which commands meet what: a fault that was mended, put back
into the helper, has to be found by some hundred of them. The cases are the same
in each run; RANDOM_SEED is another first one, RANDOM_COMMANDS how many there
are (otherwise as many as take less than a minute), RANDOM_FINDS after how many
wrong ones to stop. A wrong one is printed with its number and its story;
`PYTHONPATH=tests/lib python3 tests/host/test_multipath_random.py NUMBER`
shows what was sent and logged, too.

It must not make a device do what no device does, such as to execute a command
and then say that it did not.
"""
import collections
import errno
import itertools
import os
import random
import re
import select
import signal
import sys
import time

import sim
from prclient import (CLEAR, GOOD, PREEMPT, PREEMPT_AND_ABORT, READ_KEYS,
                      REGISTER, REGISTER_AND_IGNORE, RELEASE, RESERVE,
                      CHECK_CONDITION, parameters, pr_in, pr_out,
                      sense_code, sense_data)
from sim import (AFTERWARDS, BLOCKED, DELAY, DM, HIT, INJECT, KILL, LOOK,
                 OFFLINE, OPEN, RUNNING, SEEN_HIT, SEEN_OTHERS, STATE,
                 TRANSPORT_OFFLINE)
from test_multipath import (CLEANUP, CONFLICT, EVER, KEY, LOST, NEW, OTHERS,
                            PATHS, RIVAL, RIVALS, Lab, code as code_of)

SEED = int(os.environ.get('RANDOM_SEED', 0))
COMMANDS = int(os.environ.get('RANDOM_COMMANDS', 0)) or 3000
SECONDS = 0 if 'RANDOM_COMMANDS' in os.environ else 45
FINDS = int(os.environ.get('RANDOM_FINDS', 10))
SECOND = 1000000
DEADLINE, SUSPENDED = 75 * SECOND, 20 * SECOND      # 60 and 15, and a margin
TYPES = (1, 3, 5, 6, 7, 8)
REGISTERS = (REGISTER, REGISTER_AND_IGNORE)
PREEMPTS = (PREEMPT, PREEMPT_AND_ABORT)
NAMES = ('REGISTER', 'RESERVE', 'RELEASE', 'CLEAR', 'PREEMPT',
         'PREEMPT AND ABORT', 'REGISTER AND IGNORE')
PR_OUT, PR_IN = (0x5f, None), (0x5e, None)
APTPL, ALL_TG_PT = 1, 4
# Of each path; what is for ALL_TG_PT goes to all that have the same one.
INITIATORS = (1, 1, 2), (1, 2, 2), (1, 2, 1), (1, 1, 1), (1, 2, 3)
AGAIN = 0xa11ce3
TWIN = 101          # another host, to which our guest has or had migrated
US, THEM, HOST = 'us', 'the rival', 'the twin'
WHO = {RIVALS: THEM, TWIN: HOST, **{path: US for path in PATHS}}


def code(reply):
    """Data are of no interest."""
    if reply.status == CHECK_CONDITION:
        return sense_code(reply.sense)
    return code_of(reply)


# ---- The one disk -----------------------------------------------------------

class Disk:
    """What a guest thinks that it has, and three who share it."""

    def __init__(self, keys, holder, type_, is_lio):
        self.keys, self.holder, self.type = dict(keys), holder, type_
        self.is_lio = is_lio

    def copy(self):
        return Disk(self.keys, self.holder, self.type, self.is_lio)

    @property
    def reservation(self):
        if not self.type:
            return None
        return self.type, None if self.type >= 7 else self.holder

    def holds(self, who):
        return self.type and self.keys[who] and (self.type >= 7
                                                 or self.holder == who)

    def drop(self, who):
        was_held = self.holds(who)
        self.keys[who] = 0
        if was_held and (self.type < 7 or not any(self.keys.values())):
            self.type = 0

    def out(self, who, action, key, sa_key, type_, again=False):
        """again: who preempts itself without holding is registered again."""
        if action in REGISTERS:
            if action == REGISTER and key != self.keys[who]:
                return CONFLICT
            if sa_key:
                self.keys[who] = sa_key
            else:
                self.drop(who)
            return GOOD
        if not self.keys[who] or key != self.keys[who]:
            return CONFLICT
        if action == RESERVE:
            if self.type and not (self.holds(who) and self.type == type_):
                return CONFLICT
            if not self.type:
                self.type, self.holder = type_, who
        elif action == RELEASE:
            if self.holds(who) and self.type != type_:
                return CONFLICT if self.is_lio else '5/26/04'
            if self.holds(who):
                self.type = 0
        elif action == CLEAR:
            self.keys, self.type = dict.fromkeys(self.keys, 0), 0
        else:
            return self.preempt(who, sa_key, type_, again)
        return GOOD

    def preempt(self, who, key, type_, again):
        is_all = self.type >= 7
        if not key and not is_all:
            return '5/26/00'
        takes = self.type and (not key if is_all
                               else self.keys[self.holder] == key)
        hit = [w for w, k in self.keys.items() if k and key in (0, k)]
        if not hit:
            return CONFLICT
        for w in hit:
            if w == who and (takes or not key):
                continue
            if takes:
                self.keys[w] = 0
            else:
                self.drop(w)
        if again and not self.keys[who]:
            self.keys[who] = key
        if takes:
            self.type, self.holder = type_, who
        return GOOD


# ---- What goes wrong --------------------------------------------------------

SENSES = {'transition': sense_data(2, 4, 0x0a),
          'becoming ready': sense_data(2, 4, 1),
          'in progress': sense_data(2, 4, 7),
          'standby': sense_data(2, 4, 0x0b),
          'unavailable': sense_data(2, 4, 0x0c),
          'unmapped': sense_data(5, 0x25, 0),
          'unmapped, RDAC': sense_data(5, 0x94, 1),
          'recovered': sense_data(1, 0x17, 1),
          'attention': sense_data(6, 0x2a, 6)}
# What a path says that works otherwise. The deferred ones are of something
# earlier, and the command has not been carried out (SPC-4 4.5.7).
REFUSALS = {'hardware error': sense_data(4, 0x44, 0),
            'aborted': sense_data(0xb, 0x47, 3),
            'not ready': sense_data(2, 4, 3),
            'no communication': sense_data(2, 8, 0),
            'no room for it': sense_data(5, 0x55, 4),
            'no such command': sense_data(5, 0x20, 0),
            'invalid field': sense_data(5, 0x24, 0),
            'write protected': sense_data(7, 0x27, 0),
            'deferred recovered': sense_data(1, 0x17, 1, True),
            'deferred hardware error': sense_data(4, 0x44, 0, True)}
ILLEGAL = 'no room for it', 'no such command', 'invalid field'
FAILS_LATE = 'hardware error', 'aborted'    # the command may have been done
ERRNOS = errno.EIO, errno.ENOMEM, errno.ENXIO, errno.ENODEV, errno.EPERM
# What multipathd's checker may say of a path that dm has not failed.
CHECKS = ('active faulty', 'active faulty', 'active ghost', 'active pending',
          'active shaky', 'undef unknown')
# Host statuses after which a command is sent again by whoever is patient.
TRANSIENT = (2, 3, 5, 7, 8, 0xb, 0xc, 0xd, 0xe)
LOST_BY = (3, 5, 7, 8, 0xb, 0xe)        # these may have been carried out
GONE = (1, 0xf)


# ---- How often --------------------------------------------------------------

# What a case aims at: how often one does, what is so at its beginning, which
# commands there are, of which types reservations are, and what goes wrong.
Aim = collections.namedtuple('Aim', 'weight beginnings actions types troubles')

BEGINNINGS = {'nobody': 1, 'registered': 2, 'fenced': 1, 'held': 3,
              'rival holds': 1, 'twin': 1, 'twin holds': 1, 'twin is left': 1}
ACTIONS = {REGISTER: 5, REGISTER_AND_IGNORE: 2, RESERVE: 2, RELEASE: 2,
           CLEAR: 1, PREEMPT: 4, PREEMPT_AND_ABORT: 1}
EACH_TYPE = dict.fromkeys(TYPES, 1)
PATH, BLOCKS, MULTIPATHD, RIVAL_ACTS, DIES = (
    'path_fails', 'a_path_blocks', 'multipathd_fails', 'rival_acts',
    'worker_dies')
IS_LOST, RESTORED, GOES, TELLS_NOT = (
    'answer_is_lost', 'goes_wrong_when_restored', 'holder_goes',
    'nobody_tells_who_holds')
SAYS, COMES, HANG, IS_FASTER, NOTES_NOT = (
    'a_path_says_something', 'a_path_comes', 'two_paths_hang',
    'rival_is_faster', 'multipathd_notes_nothing')
IS_WIDE, FAIL = 'is_for_all_ports', 'paths_are_failed'
AIMS = {
    'nothing': Aim(16, BEGINNINGS, ACTIONS, EACH_TYPE, {
        (): 1, (PATH,): 2, (PATH, PATH): 1, (MULTIPATHD,): 1,
        (RIVAL_ACTS,): 1, (RIVAL_ACTS, RIVAL_ACTS): 1, (PATH, RIVAL_ACTS): 2,
        (PATH, PATH, RIVAL_ACTS): 1, (MULTIPATHD, RIVAL_ACTS): 2,
        (PATH, MULTIPATHD): 1, (DIES,): 1, (DIES, RIVAL_ACTS): 1,
        (PATH, DIES): 1, (PATH, MULTIPATHD, RIVAL_ACTS): 1}),
    # A rival who acts when something has just gone wrong.
    'rival': Aim(9, {**BEGINNINGS, 'held': 9}, ACTIONS, EACH_TYPE, {
        (IS_LOST, RIVAL_ACTS): 2, (MULTIPATHD, RIVAL_ACTS): 2,
        (DIES, RIVAL_ACTS): 1}),
    # Or when the first path may or may not have got a key; and multipathd.
    'first key': Aim(11, {'nobody': 2, 'fenced': 1, 'registered': 1},
                     {REGISTER: 1, REGISTER_AND_IGNORE: 1}, EACH_TYPE,
                     {(IS_LOST, RIVAL_ACTS): 2, (MULTIPATHD,): 1}),
    # Its other paths lose their keys, and get them back.
    'own key': Aim(9, {'registered': 1, 'held': 1},
                   {PREEMPT: 1, PREEMPT_AND_ABORT: 1}, EACH_TYPE,
                   {(RESTORED,): 3, (MULTIPATHD,): 2}),
    # What must not be done twice has been done, or has not.
    'lost': Aim(7, {'held': 4, 'registered': 1},
                {RELEASE: 5, CLEAR: 3, PREEMPT: 1, RESERVE: 1, REGISTER: 1},
                {1: 1, 6: 1, 7: 2, 8: 2}, {(IS_LOST,): 1}),
    # A path that holds, or may do so: then the disk alone cannot tell.
    'gone': Aim(10, {'held': 5, 'twin holds': 4, 'twin is left': 1},
                {REGISTER: 4, REGISTER_AND_IGNORE: 1, RELEASE: 4, RESERVE: 1,
                 PREEMPT: 1}, {1: 2, 3: 2, 5: 2, 6: 2, 7: 1, 8: 1}, {
        (GOES,): 5, (GOES, TELLS_NOT): 6, (GOES, PATH): 1,
        (GOES, MULTIPATHD): 1, (GOES, RIVAL_ACTS): 1,
        (GOES, PATH, RIVAL_ACTS): 1}),
    # A path of which nobody knows yet if it will be one.
    'blocked': Aim(5, {'nobody': 1, 'registered': 2, 'held': 2, 'twin': 1},
                   {REGISTER: 4, REGISTER_AND_IGNORE: 2, RELEASE: 1,
                    PREEMPT: 1}, EACH_TYPE, {
        (BLOCKS,): 4, (BLOCKS, RIVAL_ACTS): 2, (BLOCKS, PATH): 1,
        (BLOCKS, MULTIPATHD): 1}),
    # What a path says that is no answer, to what goes to all of them.
    'said': Aim(8, {'nobody': 1, 'registered': 2, 'held': 1},
                {REGISTER: 4, REGISTER_AND_IGNORE: 1, PREEMPT: 1}, EACH_TYPE, {
        (SAYS,): 5, (COMES,): 2, (HANG,): 2}),
    # An older key is preempted between any two paths that get the next.
    'change': Aim(9, {'registered': 2, 'held': 1}, {REGISTER: 1}, EACH_TYPE,
                  {(IS_FASTER,): 3, (FAIL, IS_FASTER): 2, (FAIL,): 1}),
    # Or by one for all ports, while dm does not use each of the paths.
    'all ports': Aim(7, {'registered': 1, 'held': 2},
                     {REGISTER: 4, REGISTER_AND_IGNORE: 1}, EACH_TYPE, {
        (IS_WIDE,): 3, (IS_WIDE, IS_FASTER): 4, (IS_WIDE, PATH): 1,
        (IS_WIDE, PATH, IS_FASTER): 1}),
    # What multipathd does not take note of.
    'noted': Aim(4, {'registered': 2, 'held': 2},
                 {RESERVE: 2, RELEASE: 2, PREEMPT: 1}, {1: 1, 3: 1, 5: 1, 6: 1},
                 {(NOTES_NOT,): 1}),
}
PATH_KINDS = {
    'sense': 3, 'host': 3, 'status': 1, 'state': 2, 'blocked': 3, 'refuses': 5,
    'errno': 1, 'checked': 3, 'failed': 1, 'comes': 2, 'goes': 1, 'open': 4,
    'hang': 1, 'slow': 1}
MULTIPATHD_KINDS = {
    'fail': 1, 'empty': 1, 'NULs': 1, 'deny': 1, 'timeout': 2, 'usage': 1,
    'cut': 1, 'garbage': 1, 'close': 2, 'hang': 2, 'slow': 2, 'dead': 1,
    'no key': 2, 'restart': 2}


# Of our own answers the one that is no path's fault.
NAMELESS = 'no path is known'
# A key, by multipathd to a path that has come.
Given = collections.namedtuple('Given', 'what key done_at')


class Case:
    """One command; what was done to it is in story."""

    def __init__(self, lab, seed):
        self.lab, self.rng, self.story = lab, random.Random(seed), []
        self.target, self.seed = lab.target, seed
        lab.is_consistent = False       # that is for us to say
        self.is_benign, self.gone, self.is_killed = True, set(), False
        self.is_left = False    # suspended, and nobody is there to resume it
        self.has_killed = False
        self.is_keyless = self.is_silent = self.is_slow = False
        self.unopened, self.acts = set(), []
        self.refuses = False    # a path, with what is for the guest to hear
        self.away, self.came = set(), {}    # paths; when, in us
        self.given = {}         # by multipathd when it came
        self.is_mpd_well, self.is_restarted = True, False
        self.base = self.target.clock()
        self.target.is_lio = self.rng.random() < .3
        aim = self.pick({name: AIMS[name].weight for name in AIMS})
        self.aim, self.is_own = AIMS[aim], aim == 'own key'
        self.is_aimed = aim in ('rival', 'first key', 'own key')
        self.beginning()
        self.choose()
        for what in self.pick(self.aim.troubles):
            getattr(self, what)()
        self.multipathd_remembers()
        self.command()

    def tell(self, what):
        self.story.append(what)

    def act(self, what, nexus, step=0, after=0, is_afterwards=False, **more):
        """after: seconds after the command has begun, or the last act."""
        base = AFTERWARDS if is_afterwards else self.base
        return self.target.act(what, nexus, step, 0 if step else int(
            base + after * SECOND), **more)

    def pick(self, weights):
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def step(self):
        return self.rng.randint(1, self.rng.choice((8, 14, 14, 30)))

    def nexus(self, n):
        return self.lab.nexus(n)

    # ---- Before -----------------------------------------------------------
    def beginning(self):
        lab, rng = self.lab, self.rng
        if rng.random() < .3:
            lab.mpd.version = '0.9.4'
            self.tell('0.9.4')
        name = self.pick(self.aim.beginnings)
        type_ = self.pick(self.aim.types)
        if name != 'nobody':
            lab.registered()
        if self.is_aimed or rng.random() < .7:
            lab.rival_registered()
        if name == 'held':
            lab.held(type_, rng.choice(PATHS))
            if rng.random() < .15:
                lab.known.prhold = rng.choice(('unknown', 'unset'))
                self.tell('prhold ' + lab.known.prhold)
        elif name in ('fenced', 'twin is left'):
            for path in PATHS:
                self.nexus(path).key = 0
        if name in ('fenced', 'rival holds'):
            lab.rival_holds(type_)
        if name.startswith('twin'):
            self.nexus(TWIN).key = KEY
        if name == 'twin holds':
            lab.lun.type, lab.lun.holder = type_, TWIN
            if rng.random() < .75:      # as its guess is after a restart
                lab.known.prhold = 'set'
                self.tell('prhold guessed')
        if lab.known.key and rng.random() < .2:
            lab.lun.aptpl, lab.known.aptpl = 1, True
            self.tell('APTPL before')
        if rng.random() < .1:
            lab.known.fixed = KEY
            lab.known.key = KEY
            self.tell('fixed key')
        self.target.script.multipathd_key = \
            lab.known.key if lab.known.prflag == 'set' else 0
        self.tell(name + ', LIO' * self.target.is_lio)
        self.beginning_is = name

    def multipathd_remembers(self):
        """What is neither on the disk nor with multipathd nobody can know."""
        known = self.lab.known
        if self.beginning_is == 'twin holds' and known.prhold == 'set' \
                and not all(self.nexus(path).key for path in self.gone):
            known.prhold = 'unknown'
        if self.lab.lun.holder in self.gone and self.beginning_is == 'held' \
                and known.prhold == 'unset':
            known.prhold = 'unknown'

    def holder_goes(self):
        """Or a path that multipathd may have thought to be it."""
        path = self.rng.choice(PATHS)
        if self.beginning_is == 'held':
            path = self.lab.lun.holder
        if self.beginning_is == 'twin is left':
            self.path_failed(path, self.nexus(path))    # gets a key again
        else:
            self.path_state(path, self.nexus(path))

    def nobody_tells_who_holds(self):
        """To be asked by a RELEASE is not for every target (SPDK), or path."""
        self.is_benign, self.refuses = False, True
        kind = self.rng.choice(ILLEGAL)
        for path in self.rng.choice((PATHS, PATHS, *zip(PATHS))):
            self.nexus(path).answer(2, driver_status=8, sense=REFUSALS[kind],
                                    only=(0x5f, RELEASE), count=EVER)
            self.tell('%s: %s to RELEASE, for ever' % (
                sim.disk_name(path), kind))

    def path_fails(self):
        path = self.rng.choice(PATHS)
        getattr(self, 'path_' + self.pick(PATH_KINDS))(path, self.nexus(path))

    def a_path_blocks(self):
        path = self.rng.choice(PATHS)
        if self.rng.random() < .4:
            self.checker_says(path)
        self.path_blocked(path, self.nexus(path))

    def a_path_says_something(self):
        """It recovers, has no LUN any more, is not reached, or its answer is
        lost."""
        path = self.rng.choice(PATHS)
        n, name = self.nexus(path), sim.disk_name(path)
        kind = self.rng.choice(('recovered', 'unmapped', 'unreached', 'lost'))
        if kind == 'recovered':
            n.answer(2, driver_status=8, sense=SENSES[kind], after=True,
                     only=PR_OUT, count=EVER)
        elif kind == 'unmapped':
            n.answer(2, driver_status=8, sense=SENSES[kind], count=EVER)
            n.dm_failed = 1
            self.gone.add(path)
        elif kind == 'unreached':
            n.answer(host_status=self.rng.choice((2, 0xc, 0xd)), only=PR_OUT,
                     count=self.rng.choice((1, 3, 8)))
        else:
            self.is_benign = False
            n.answer(host_status=self.rng.choice(LOST_BY),
                     after=self.rng.random() < .5, only=(0x5f, self.action),
                     count=self.rng.choice((1, 1, 4)))
        self.tell('%s: %s, to PR OUT' % (name, kind))

    def a_path_comes(self):
        path = self.rng.choice(PATHS)
        self.path_comes(path, self.nexus(path))

    def two_paths_hang(self):
        step = self.rng.randint(2, 20)
        for path in self.rng.sample(PATHS, 2):
            n = self.nexus(path)
            n.hang_after = self.rng.random() < .5
            self.act(DELAY, path, step, argument=300000)
            self.tell('%s: hangs from step %d%s' % (
                sim.disk_name(path), step, n.hang_after * ', but does it'))
        self.is_benign = False

    def inject(self, path, kind, durations, what, can_last=True, after=False):
        """For a few commands, or some time; from the beginning or later."""
        rng = self.rng
        only = rng.choice((None, None, PR_OUT, PR_OUT, (0x5f, self.action),
                           (0x5f, self.action), (0x5f, REGISTER_AND_IGNORE),
                           PR_IN))
        count = rng.choice((1, 1, 2, 3))
        seconds = rng.choice(durations) if can_last \
            and rng.random() < .6 else None
        begin = self.step() if rng.random() < .4 else 0
        n = self.nexus(path)
        (n.fail_ioctl if 'error' in what else n.answer)(
            **what, only=only, count=EVER if seconds else count, after=after)
        if begin:
            n.inject_ready, n.inject_count = n.inject_count, 0
            self.act(INJECT, path, begin, argument=1)
        if seconds and seconds != EVER:
            self.act(INJECT, path, 0, seconds, is_afterwards=bool(begin))
        if (seconds or 0) > 5 and kind != 'recovered' \
                or seconds is None and kind in GONE:
            self.is_benign = False
        self.tell('%s: %s%s%s, %s%s' % (
            sim.disk_name(path), kind, ' after it is done' if after else '',
            {None: '', PR_OUT: ' to PR OUT', PR_IN: ' to PR IN'}.get(
                only, ' to ' + NAMES[only[1] or 0] if only else ''),
            'for ever' if seconds == EVER else '%g s' % seconds if seconds
            else '%d times' % count,
            ' from step %d' % begin if begin else ''))

    def path_sense(self, path, n):
        kind = self.rng.choice(('transition', 'transition', 'becoming ready',
                                'in progress', 'standby', 'unavailable',
                                'unmapped', 'unmapped, RDAC', 'recovered',
                                'recovered', 'attention'))
        what = {'status': 2, 'driver_status': 8, 'sense': SENSES[kind]}
        if kind in ('standby', 'unavailable') or 'unmapped' in kind:
            n.answer(**what, count=EVER)
            n.dm_failed = self.rng.random() < .7
            self.is_benign &= bool(n.dm_failed)
            self.gone.add(path)
            self.tell('%s: %s%s' % (sim.disk_name(path), kind,
                                    ', failed in dm' if n.dm_failed else ''))
        else:
            self.inject(path, kind, (.3, 3, 20, 100, EVER), what,
                        kind != 'attention', kind == 'recovered')

    def path_refuses(self, path, n):
        """As the device's own answer: to all, or PERSISTENT RESERVE OUT."""
        kind = self.rng.choice((*REFUSALS, *4 * FAILS_LATE,
                                'deferred recovered'))
        after = kind in FAILS_LATE and self.rng.random() < .7
        self.is_benign, self.refuses = False, True
        self.inject(path, kind, (.3, 3, 20, EVER), {
            'status': 2, 'driver_status': 8, 'sense': REFUSALS[kind]},
            self.rng.random() < .5, after)

    def path_errno(self, path, n):
        error = self.rng.choice(ERRNOS)
        self.is_benign, self.refuses = False, True
        self.inject(path, errno.errorcode[error], (.3, 3, EVER),
                    {'error': error})

    def path_checked(self, path, n):
        self.checker_says(path)
        getattr(self, 'path_' + self.rng.choice(('sense', 'host', 'refuses',
                                                 'hang', 'blocked')))(path, n)

    def checker_says(self, path):
        """What multipathd's checker thinks of a path is not what dm does."""
        name, self.is_benign = sim.disk_name(path), False
        text = self.lab.known.states[name] = self.rng.choice(CHECKS)
        self.tell('%s: %s' % (name, text))

    def path_failed(self, path, n):
        """In dm only, from the beginning or later; and taken back."""
        rng, step = self.rng, 0
        text = sim.disk_name(path) + ': failed in dm'
        if rng.random() < .4:
            step = self.step()
            self.act(DM, path, step, argument=1)
            text += ' at step %d' % step
        else:
            n.dm_failed = 1
        if rng.random() < .6:
            step += self.step()
            self.act(DM, path, step, argument=0)
            text += ', taken back at step %d' % step
        self.is_benign &= not step
        self.tell(text)

    def path_goes(self, path, n, is_gone=False):
        """The map does without it, from a command to multipathd on. Whom it
        did without before that, if that holds the reservation, nobody could
        tell from another host."""
        self.is_benign, name = False, sim.disk_name(path)
        skip = self.rng.randrange(self.beginning_is == 'held'
                                  and path == self.lab.lun.holder, 6) \
            * (not is_gone)

        def go(_):
            if path not in self.away:
                self.lab.root.leave(0, path)
                self.lab.known.paths.pop(name)
                self.away.add(path)

        if skip:
            self.lab.mpd.on('', go, count=1, skip=skip - 1)
        else:
            go(None)
        self.gone.add(path)
        self.tell('%s: removed at multipathd\'s command %d' % (name, skip))

    def path_comes(self, path, n):
        """It was a path already, and has kept its key; or it was none."""
        name, known = sim.disk_name(path), self.lab.known
        if self.away or self.beginning_is == 'held' \
                and path == self.lab.lun.holder:
            return
        self.path_goes(path, n, True)
        pattern, skip = self.rng.choice((('', self.rng.randrange(8)),
                                         ('prstatus', 0)))
        if self.rng.random() < .5:
            n.key = 0
            self.tell('%s: without a key' % name)

        def come(_):
            self.lab.root.join(0, path)
            known.paths[name] = n
            self.away.discard(path)
            self.came[path] = self.target.clock()
            if known.prflag == 'set' and known.key in self.target.keys(0):
                n.key = self.given[path] = known.key

        self.lab.mpd.on(pattern, come, count=1, skip=skip)
        self.tell('%s: added at multipathd\'s command %s%d' % (
            name, pattern, skip + 1))

    def path_host(self, path, n):
        host = self.rng.choice(3 * TRANSIENT + GONE)
        after = host in LOST_BY and self.rng.random() < .5
        if host in LOST_BY or host in GONE:
            self.is_benign = False      # may be an answer that is lost
        self.inject(path, 'host %02x' % host, (.3, 3, 20, EVER),
                    {'host_status': host}, not after, after)

    def answer_is_lost(self):
        """To the command itself, most often the first time it is sent; or it
        says that there was an error."""
        path = self.lab.order[self.rng.choice((0, 0, 0, 0, 1, 2))]
        host, self.is_benign = self.rng.choice(LOST_BY), False
        after = self.rng.random() < .5
        what, text = {'host_status': host}, 'host %02x' % host
        if self.rng.random() < .2:
            text, self.refuses = self.rng.choice(FAILS_LATE), True
            what = {'status': 2, 'driver_status': 8, 'sense': REFUSALS[text]}
        self.nexus(path).answer(**what, after=after, only=(0x5f, self.action))
        self.tell('%s: %s%s, %s' % (
            sim.disk_name(path), text, ' after it is done' if after else '',
            NAMES[self.action]))

    def goes_wrong_when_restored(self):
        """From the moment on in which the keys are gone: something is the
        matter with the others, the worker dies, or a rival is faster."""
        rng, is_slow = self.rng, self.rng.random() < .4
        self.is_benign = False
        first, second, _ = self.lab.order
        self.nexus(first).answer(2, driver_status=8, sense=SENSES['recovered'],
                                 after=True, only=(0x5f, self.action))
        self.tell('%s: recovered after it is done' % sim.disk_name(first))
        if is_slow:
            kind = rng.choice(('transition', 'attention'))
            count = rng.choice((1, 3, EVER, EVER))
            self.nexus(second).answer(
                2, driver_status=8, sense=SENSES[kind], count=count,
                only=(0x5f, REGISTER_AND_IGNORE))
            self.tell('%s: %s to be registered, %d times' % (
                sim.disk_name(second), kind, count))
        elif rng.random() < .5:
            self.is_killed, step = True, rng.randint(0, 6)
            self.act(KILL, first, HIT + step)
            self.tell('killed at step +%d' % step)
        if not is_slow or rng.random() < .5:
            self.rival_acts()

    def path_status(self, path, n):
        status = self.rng.choice((0x08, 0x28, 0x40))
        self.is_benign &= status == 0x08
        self.refuses |= status == 0x40      # TASK ABORTED, whenever it was
        after = status == 0x40 and self.rng.random() < .5
        self.inject(path, 'status %02x' % status, (.3, 3, 20), {
            'status': status}, not after, after)

    def path_state(self, path, n):
        rng = self.rng
        state = rng.choice((OFFLINE, TRANSPORT_OFFLINE))
        n.state, n.dm_failed = state, rng.random() < .6
        text = '%s: %s, failed in dm' % (sim.disk_name(path),
                                         sim.STATES[state])
        if not n.dm_failed:     # at most max_polling_interval
            seconds = rng.choice((1, 5, 20))
            self.act(DM, path, 0, seconds, argument=1)
            text += ' after %d s' % seconds
        self.gone.add(path)
        if rng.random() < .3:
            step = self.step()
            self.act(STATE, path, step, argument=RUNNING)
            text += ', running at step %d' % step
            self.is_benign = False
            if n.dm_failed:
                step += rng.choice((0, 1, 3, 10))
                self.act(DM, path, step, argument=0)
                text += ', taken back at step %d' % step
        self.tell(text)

    def path_blocked(self, path, n):
        rng = self.rng
        text = sim.disk_name(path) + ': blocked'
        seconds = rng.choice((.5, 3, 3, 10, 25, 50, EVER, EVER, EVER))
        if rng.random() < .65:
            n.state = BLOCKED
        else:
            step = self.step()
            self.act(STATE, path, step, argument=BLOCKED)
            text += ' at step %d' % step
            self.is_benign, seconds = False, min(seconds, 50)
            if rng.random() < .7:       # what was under way has been lost
                n.answer(host_status=0xe, count=1, after=rng.random() < .5)
                n.inject_ready, n.inject_count = 1, 0
                self.act(INJECT, path, step, argument=1)
                text += ', TRANSPORT_DISRUPTED'
        if seconds != EVER:
            state = rng.choice((RUNNING, RUNNING, TRANSPORT_OFFLINE))
            self.act(STATE, path, 0, seconds, argument=state,
                     is_afterwards=n.state != BLOCKED)
            text += ', %s after %g s' % (sim.STATES[state], seconds)
            if state != RUNNING:
                self.gone.add(path)
                late = rng.choice((0, 1, 20))
                self.act(DM, path, 0, late, argument=1, is_afterwards=True)
                text += ', failed in dm after %g s' % (seconds + late)
        if seconds > 5:
            self.is_benign = False
        self.tell(text)

    def path_open(self, path, n):
        self.is_benign = False
        error = self.rng.choice((errno.ENOENT, errno.EACCES, errno.EMFILE,
                                 errno.ENXIO, None, None))
        if error and self.rng.random() < .4:
            step = self.step()
            self.act(OPEN, path, step, argument=error)
            self.tell('%s: %s at open, from step %d' % (
                sim.disk_name(path), errno.errorcode[error], step))
            return
        self.unopened.add(path)
        if error is None:       # 0 would be: none
            n.open_other = self.rng.choice((OTHERS[0], PATHS[1 + (path == 1)]))
            self.tell(sim.disk_name(path) + ': the node of another disk')
        else:
            n.open_errno = error
            self.tell('%s: %s at open' % (sim.disk_name(path),
                                          errno.errorcode[error]))

    def path_hang(self, path, n):
        self.is_benign = False
        if self.rng.random() < .4:
            other = self.rng.choice([p for p in PATHS if p != path])
            self.nexus(other).delay_ms = 300000
            self.tell(sim.disk_name(other) + ': hangs, too')
        n.hang_after = self.rng.random() < .5
        text = sim.disk_name(path) + ': hangs'
        if self.rng.random() < .6:
            n.delay_ms = 300000
        else:
            step = self.step()
            self.act(DELAY, path, step, argument=300000)
            text += ' at step %d' % step
        self.tell(text + n.hang_after * ', but does it')

    def path_slow(self, path, n):
        n.delay_ms = self.rng.choice((500, 2000, 6000))
        self.is_benign &= n.delay_ms < 1000
        self.tell('%s: %d ms' % (sim.disk_name(path), n.delay_ms))

    def multipathd_fails(self):
        rng, mpd = self.rng, self.lab.mpd
        self.is_mpd_well = False
        how = self.pick(MULTIPATHD_KINDS)
        if how == 'no key':
            self.is_benign, self.is_keyless = False, True
            self.lab.known.fixed = None
            self.tell('no reservation_key')
            return
        behaviour = rng.choice((2, 6, 11, 15, 30)) if how == 'slow' else how
        pattern = rng.choice(('', 'prkey', 'paths', *3 * ('prstatus',))
                             if self.action in REGISTERS else
                             ('', 'prkey', 'prhold', 'suspend|resume')
                             + 8 * self.is_own * ('suspend|resume',))
        skip, count = rng.choice(range(6) if pattern == '' else (0, 0, 1)), 1
        if how == 'restart':
            pattern, behaviour = '', self.restart
            skip = rng.randrange(8)
        effect = how in ('empty', 'NULs', 'cut', 'garbage', 'close', 'hang') \
            and rng.random() < .7
        if how == 'dead' or how != 'restart' and rng.random() < .2:
            count = EVER
            behaviour = 'close' if how == 'dead' else behaviour
            self.is_silent = pattern in ('', 'suspend|resume')
        mpd.on(pattern, behaviour, count=count, skip=skip, effect=effect)
        self.is_benign &= how == 'slow' and behaviour < 3
        self.is_slow = pattern in ('', 'suspend|resume')
        self.tell('multipathd, "%s": %s%s%s%s' % (
            pattern, how, ' %d s' % behaviour if how == 'slow' else '',
            ' after %d' % skip if skip else '',
            ', always' if count == EVER else '') + effect * ', but does it')

    def restart(self, _):
        """What multipathd 0.13 and later finds out when it starts: from its
        file the key, from the disk if that is registered and if it holds."""
        known, lun, self.is_restarted = self.lab.known, self.lab.lun, True
        keys = [self.nexus(n).key for n in WHO]
        known.prflag = 'set' if known.key in keys and known.key else 'unset'
        known.prhold = 'set' if lun.type and known.key and (
            lun.type >= 7 or self.nexus(lun.holder).key == known.key) \
            else 'unset'
        return 'close'

    def rival_acts(self):
        """As fence_scsi does, or Windows: look, preempt, reserve, go. Or as
        the host does that our guest has migrated to, with our key."""
        rng = self.rng
        self.is_benign = False
        is_twin = rng.random() < .25
        nexus, key = (TWIN, KEY) if is_twin else (RIVALS, RIVAL)
        ways = [(PREEMPT,), (PREEMPT, RESERVE), (PREEMPT, RESERVE, RELEASE),
                (REGISTER_AND_IGNORE, PREEMPT), (LOOK, RESERVE),
                (LOOK, RESERVE, RELEASE), (RESERVE,), (RESERVE, RELEASE),
                (LOOK,), (CLEAR,), (REGISTER_AND_IGNORE, RESERVE),
                (PREEMPT, PREEMPT), (PREEMPT_AND_ABORT,), (0xff,)]
        if is_twin:
            ways = [(REGISTER_AND_IGNORE, RESERVE), (RESERVE,), (RELEASE,),
                    (REGISTER_AND_IGNORE, PREEMPT), (0xff,),
                    (RESERVE, RELEASE), (REGISTER_AND_IGNORE,)]
        # Soon after something has gone wrong, or at any step.
        step = HIT + max(0, rng.randint(-3, 3 if self.is_killed else 5)) \
            if self.is_aimed else self.step()
        if self.is_aimed:
            ways += 4 * ways[:3] if not is_twin else []
        type_ = rng.choice(TYPES)
        # It has read the keys when ours was there, or takes the first.
        is_aware = self.action in REGISTERS \
            and rng.random() < (.8 if self.is_aimed else .4)
        told = []
        for what in rng.choice(ways):
            told.append('%s%s at step %s%d' % (
                {LOOK: 'LOOK', 0xff: 'UNREGISTER'}.get(what)
                or NAMES[what],
                (' %x' % self.sa_key) * (what in PREEMPTS and is_aware),
                '+' if step >= HIT else '', step % HIT))
            if what == LOOK:
                self.act(LOOK, nexus, step)
            elif what == 0xff:
                self.act(REGISTER_AND_IGNORE, nexus, step)
            elif what == REGISTER_AND_IGNORE:
                self.act(what, nexus, step, key=key)
            elif what in PREEMPTS and (is_twin or is_aware):
                self.act(what, nexus, step, argument=type_,
                         key=KEY if is_twin else self.sa_key)
            else:
                self.act(what, nexus, step, argument=type_)
            step += rng.choice((0, 1, 1, 2, 4))
        if self.is_own:         # see stays_out()
            seconds = rng.choice((10, 20, 30))
            self.act(LOOK, nexus, after=seconds, is_afterwards=True)
            told.append('LOOK %d s later' % seconds)
        self.tell('%s: %s, type %d' % (WHO[nexus], ', '.join(told), type_))

    def rival_is_faster(self):
        """It has read the keys before any was changed."""
        self.is_benign = False
        step, type_ = self.rng.randint(6, 26), self.rng.choice(TYPES)
        self.act(PREEMPT, RIVALS, step, key=KEY, argument=type_)
        self.tell('the rival: PREEMPT %x at step %d, type %d' % (
            KEY, step, type_))

    def paths_are_failed(self):
        """By dm, and taken back meanwhile."""
        self.is_benign = False
        for path in self.rng.sample(PATHS, self.rng.choice((1, 2, 2))):
            step = self.rng.randint(6, 20)
            self.nexus(path).dm_failed = 1
            self.act(DM, path, step, argument=0)
            self.tell('%s: failed in dm, taken back at step %d' % (
                sim.disk_name(path), step))

    def is_for_all_ports(self):
        """Some have been left out for a while, and one has got no key."""
        if not self.flags:
            self.flags = ALL_TG_PT
            self.have_initiators()
        for path in self.rng.sample(PATHS, self.rng.choice((0, 1, 1, 2))):
            if self.rng.random() < .7 and path != self.lab.lun.holder:
                self.nexus(path).key, self.is_benign = 0, False
                self.tell('%s: without a key' % sim.disk_name(path))
            if self.rng.random() < .3:
                self.path_failed(path, self.nexus(path))
            elif self.rng.random() < .5:
                self.nexus(path).dm_failed = 1
                self.gone.add(path)
                self.tell('%s: failed in dm, but works' % sim.disk_name(path))

    def multipathd_notes_nothing(self):
        self.is_benign = self.is_mpd_well = False
        how = self.rng.choice(('fail', 'timeout', 'close', 'hang'))
        skip = self.rng.choice((0, 1))
        # One that fails to tell what it thinks has no such commands.
        self.lab.mpd.on('setprhold' if how == 'fail' else 'prhold', how,
                        count=EVER, skip=skip)
        self.tell('multipathd, "prhold": %s after %d' % (how, skip))

    def worker_dies(self):
        self.is_killed, self.is_benign = True, False
        step = self.rng.randint(3, 10) if self.is_aimed else self.step()
        self.act(KILL, PATHS[0], step)
        self.tell('killed at step %d' % step)

    # ---- The command ------------------------------------------------------
    def choose(self):
        rng, lab = self.rng, self.lab
        is_in = self.beginning_is not in ('nobody', 'fenced', 'twin is left')
        actions = self.aim.actions
        if not is_in and rng.random() < .8:
            actions = {action: ACTIONS[action] for action in REGISTERS}
        self.action = self.pick(actions)
        self.key = KEY if is_in or self.action not in REGISTERS else 0
        if rng.random() < .08:
            self.key = rng.choice((NEW, 0))
        self.sa_key = rng.choice((0, KEY, NEW, NEW, RIVAL) if is_in
                                 else (0, KEY, NEW, NEW, NEW))
        self.is_in, self.is_cleanup = False, False
        if self.is_own:
            self.key = self.sa_key = KEY
        elif rng.random() < .06:
            self.is_in = rng.random() < .5
            self.is_cleanup = not self.is_in
            self.action = REGISTER_AND_IGNORE
        if self.action in REGISTERS and self.sa_key == RIVAL:
            self.sa_key = 0
        if self.action in PREEMPTS and not self.is_own and rng.random() < .5:
            self.sa_key = self.key
        if self.is_cleanup:
            self.sa_key = 0
        self.flags = rng.choice(8 * (0,) + (APTPL, ALL_TG_PT, ALL_TG_PT)) \
            if self.action in REGISTERS else 0
        if self.flags == ALL_TG_PT:
            self.have_initiators()
        self.type = rng.choice(TYPES)
        if lab.lun.type and rng.random() < .85:
            self.type = lab.lun.type

    def have_initiators(self):
        ports = self.rng.choice(INITIATORS)
        for path, initiator in zip(PATHS, ports):
            self.nexus(path).initiator = initiator
        self.tell('initiators %d %d %d' % ports)

    def command(self):
        lab = self.lab
        self.first = {path: self.nexus(path).key for path in PATHS}
        self.was_failed = {path: self.nexus(path).dm_failed for path in PATHS}
        self.was_holder = lab.lun.holder if lab.lun.type else None
        self.was_hold, self.was_aptpl = lab.known.prhold, lab.lun.aptpl
        self.was_known = lab.known.key, lab.known.prflag
        self.disk = self.now(US, max(self.first.values()))
        log_begin = os.path.getsize(lab.helper.log_path)
        self.begin = self.target.clock()
        self.answer = self.send()
        self.seconds = (self.end - self.begin) / SECOND
        self.wait_idle()
        with open(lab.helper.log_path, errors='replace') as log:
            log.seek(log_begin)
            self.log = log.read()
        if 'no answer from multipathd' in self.log:
            self.is_mpd_well = False    # it has no time on a busy machine
        self.tell('%s %x %x type %d%s: %s after %.1f s' % (
            'READ KEYS' if self.is_in else 'CLEANUP' if self.is_cleanup
            else NAMES[self.action], self.key, self.sa_key, self.type,
            {APTPL: ', APTPL', ALL_TG_PT: ', ALL_TG_PT'}.get(self.flags, ''),
            'GOOD' if self.answer == GOOD else self.answer, self.seconds))

    def send(self):
        """And kill the worker if that is due."""
        lab, script = self.lab, self.target.script
        if self.is_in:
            lab.client.send(pr_in(READ_KEYS), [lab.map])
        elif self.is_cleanup:
            lab.client.send(bytes([CLEANUP]) + bytes(15), [lab.map])
        else:
            lab.client.send(pr_out(self.action, self.type), [lab.map])
            lab.client.sock.sendall(parameters(self.key, self.sa_key,
                                                self.flags))
        end = time.monotonic() + 30
        while not select.select([lab.client.sock], [], [], .002)[0]:
            self.kill()
            assert time.monotonic() < end, 'no answer: %r' % self.story
        self.end = self.target.clock()
        reply = lab.client.reply()
        answer = code(reply)
        while script.killed:        # it has died in what came after
            self.kill()
        return answer

    def kill(self):
        if self.target.script.killed:
            for pid in self.lab.workers():
                os.kill(pid, signal.SIGKILL)
            time.sleep(.002)
            self.target.script.killed = 0
            self.has_killed = True

    def wait_idle(self):
        """The supervisor has a suspended map resumed by another worker, a
        tenth of a second later; who may have to be killed as well."""
        end = time.monotonic() + 10 * (not self.is_left)
        if self.has_killed:
            time.sleep(.12)
        while len(self.lab.helper.sessions()) > 1 and time.monotonic() < end:
            self.kill()
            time.sleep(.0005)
        self.lab.wait_idle()
        while self.lab.known.suspended and not self.is_silent \
                and time.monotonic() < end:
            time.sleep(.01)
        self.is_left = self.lab.known.suspended and not self.is_silent
        self.lab.wait_idle()

    # ---- What is so now ---------------------------------------------------
    def now(self, who, key):
        lun = self.lab.lun
        return Disk({US: key, THEM: self.nexus(RIVALS).key,
                     HOST: self.nexus(TWIN).key},
                    WHO.get(lun.holder), lun.type, self.target.is_lio)

    def changes(self, path, what):
        return [a for a in self.done() if a.nexus == path and a.what == what]

    def was_unused(self, path, at):
        """Had dm failed it then?"""
        was = [self.was_failed[path], *(
            act.argument for act in sorted(self.changes(path, DM),
                                           key=lambda act: act.done_at)
            if act.done_at <= at)]
        return was[-1]

    def done(self):
        script = self.target.script
        actions = [self.target.action(i) for i in range(script.actions)]
        return [a for a in actions if a.done_at]

    def is_live(self, path):
        """Would the kernel send I/O to it, and could we know?"""
        n = self.nexus(path)
        if n.state not in (RUNNING, BLOCKED) or n.dm_failed \
                or path in self.away:
            return False
        since = max([a.done_at for what in (STATE, DM)
                     for a in self.changes(path, what)
                     if a.argument == 0] + [self.came.get(path, 0)])
        if 0 < since < self.lab.mpd.told:
            return True         # as multipathd could not register it then
        if self.changes(path, DM) and since > self.lab.mpd.shown \
                and self.end - since < 20 * SECOND and self.lab.mpd.shown:
            return False
        return not since or n.looked > since \
            or self.end - since > 20 * SECOND

    # ---- What must be so --------------------------------------------------
    def explanations(self):
        """Where the command may have been carried out: the answer and the
        disk at the end, None: not at all."""
        given = [Given(DM, key, self.came[path])
                 for path, key in self.given.items()]
        acts = sorted(given + [a for a in self.done() if a.what <= LOOK
                               or a.what == DM and a.status],
                      key=lambda a: a.done_at)
        ways = [self.action]
        if self.action in REGISTERS and not self.sa_key \
                and self.answer != GOOD:
            ways.append(RELEASE)        # what may have come before the error
        for action in ways:
            yield from self.ways(acts, action)

    def ways(self, acts, action):
        """After an error all its keys may have been taken off, later on. Who
        has been preempted may do more with a key that multipathd gives him."""
        ends = [None, *range(len(acts) + 1)]
        is_helped = any(act.what == DM for act in acts)
        for at, again, off, helped in itertools.product(
                ends, (False, True) if action in PREEMPTS else (False,),
                (None,) if self.answer == GOOD else ends,
                (False, True) if is_helped else (False,)):
            disk, answer = self.disk.copy(), None
            for i in range(len(acts) + 1):
                if i == at:
                    type_ = self.type if action == self.action else disk.type
                    answer = disk.out(US, action, self.key, self.sa_key,
                                      type_, again)
                    if self.is_out(disk) or self.is_completed(disk) \
                            or helped and self.is_given(disk):
                        answer = GOOD
                    if answer == '5/26/04' and self.was_holder in self.gone \
                            and action == RELEASE:
                        answer = CONFLICT   # as LIO has it, and here we do
                if i == off:
                    disk.drop(US)
                if i < len(acts) and acts[i].what == DM:
                    if helped and not disk.keys[US]:
                        disk.keys[US] = acts[i].key
                elif i < len(acts) and not self.is_as_seen(disk, acts[i]):
                    break
            else:
                yield answer, disk

    def is_out(self, disk):
        """Who has lost to somebody what it gives up may hear GOOD."""
        return not disk.keys[US] and (
            self.action == RELEASE and self.answer == GOOD
            or self.action == REGISTER and not self.sa_key
            and self.answer == GOOD and self.key == self.disk.keys[US])

    def is_completed(self, disk):
        """Who registers by a path that has no key yet is right, there."""
        return self.action == REGISTER and self.answer == GOOD \
            and not self.key and self.sa_key == disk.keys[US] \
            and 0 in self.first.values()

    def is_given(self, disk):
        """What rivals have hit is a path that dm had failed; and now it has the
        new key, by multipathd."""
        return self.action == REGISTER and self.sa_key == disk.keys[US] and all(
            any(self.was_unused(path, hit.done_at) and self.is_multipathds(path)
                for path in PATHS if self.first[path] == hit.key)
            for hit in self.hits())

    def is_as_seen(self, disk, act):
        if not act.seen & SEEN_OTHERS and self.action not in PREEMPTS \
                and act.nexus == RIVALS \
                and any(key in (KEY, NEW) for key in disk.keys.values()):
            return False        # it has read the keys before
        if act.what == LOOK:
            return True
        answer = disk.out(WHO[act.nexus], act.what, act.own, act.key,
                          act.argument)
        if act.what in PREEMPTS and (self.is_fenced or self.is_half_done(act)):
            return True
        if act.what in PREEMPTS and act.seen & SEEN_HIT and act.key in {
                self.first[path] for path in PATHS
                if path in self.gone or not self.is_live(path)
                or self.was_unused(path, act.done_at)}:
            return True         # which a path that is gone had kept
        return {GOOD: 0, CONFLICT: 0x18}.get(answer, 2) == act.status

    def wrong(self):
        """The rules that are broken."""
        names = ('is_explained', 'stays_out', 'is_known', 'is_remembered',
                 'is_resumed', 'is_in_time', 'is_logged', 'is_undone',
                 'is_untouched', 'costs_nothing', 'works', 'goes_on')
        if self.is_in:
            names = 'is_read', 'is_in_time'
        return [name for name in names if not getattr(self, name)()]

    def costs_nothing(self):
        """Who is refused what he has already keeps it, and a conflict changes
        nothing."""
        if self.done() or self.is_killed or self.answer in (GOOD, LOST):
            return True
        if self.answer == CONFLICT and self.lab.lun.aptpl != self.was_aptpl:
            return False
        return self.action not in REGISTERS or self.is_cleanup \
            or not self.sa_key or set(self.first.values()) != {self.sa_key} \
            or all(self.nexus(path).key == self.sa_key for path in PATHS)

    def is_hit(self):
        return any(act.what in (CLEAR, *PREEMPTS) and not act.status
                   for act in self.done())

    def is_half_done(self, act):
        """It has met a new key of ours, and there will be an error."""
        return self.answer not in (GOOD, CONFLICT) and act.key == self.sa_key \
            and act.key and self.action in REGISTERS

    def is_explained(self):
        """Rules 1 to 4."""
        self.is_fenced = self.is_hit() and not any(
            self.nexus(path).key for path in PATHS)
        found = list(self.explanations())
        seen = self.now(US, None)
        keys = {path: self.nexus(path).key for path in PATHS}
        live = [path for path in PATHS if self.is_live(path)]
        self.tell('keys %s, %s; live %s' % (
            ' '.join('%x' % key for key in keys.values()), seen.reservation,
            live))
        if self.answer == CONFLICT and self.action in REGISTERS \
                and keys == self.first and not any(map(keys.get, live)):
            return seen.reservation == self.disk.reservation or self.done()
        if self.answer == GOOD \
                or self.answer == CONFLICT and not self.is_fenced:
            return any(
                answer == self.answer and self.others_are(disk, seen)
                and (disk.reservation == seen.reservation
                     or self.is_left_behind(seen, keys, live))
                and all(keys[path] == disk.keys[US]
                        or (self.is_multipathds(path)
                            or not keys[path] and not self.first[path])
                        and self.answer == CONFLICT
                        or self.is_helped(keys[path] == self.first[path])
                        if path in live
                        else keys[path] in (0, self.first[path],
                                            disk.keys[US])
                        or self.is_multipathds(path) for path in PATHS)
                for answer, disk in found)
        gone = {act.key for act in self.hits()}
        allowed = {0, *(disk.keys[US] for _, disk in found)} - (
            gone - {0, *self.first.values()})
        return all(keys[path] in allowed or keys[path] == self.first[path]
                   and (path not in live or not gone & {0, keys[path]})
                   or self.is_multipathds(path) or self.is_halfway(keys[path])
                   or self.is_out_of_reach(path, live)
                   for path in PATHS) and any(
            self.others_are(disk, seen)
            and (disk.reservation == seen.reservation
                 or not seen.reservation and disk.holds(US))
            for _, disk in found)

    def stays_out(self):
        """Rule 4, of who does not register: a rival who looks a while after
        he has preempted him, and the map is resumed, finds no key of his."""
        ends = [end for _, end in self.lab.known.suspensions]
        hits = [act.done_at for act in self.hits() if act.key == KEY]
        acts = self.done()
        if self.action in REGISTERS or not hits or None in ends or self.came \
                or self.nexus(TWIN).key \
                or any(act.nexus == TWIN or act.what == DM for act in acts):
            return True
        return not any(act.what == LOOK and act.seen & SEEN_OTHERS
                       and act.done_at > max(ends + hits) + SECOND
                       for act in acts)

    def hits(self):
        """What rivals have done that a path of ours has lost its key by."""
        return [act for act in self.done() if act.what in (CLEAR, *PREEMPTS)
                and act.seen & SEEN_HIT]

    def is_multipathds(self, path):
        """It has its key from multipathd, and nobody has preempted that."""
        key = self.nexus(path).key
        given = [act.done_at for act in self.changes(path, DM)
                 if act.status and act.key == key]
        if path in self.came and key == self.given.get(path):
            given.append(self.came[path])
        return given and not any(
            act.done_at > max(given) and act.key in (0, key)
            for act in self.hits())

    def is_halfway(self, key):
        """Who is killed cannot take off again what he has registered."""
        return self.is_killed and self.action in REGISTERS \
            and key == self.sa_key and key not in self.first.values()

    def is_out_of_reach(self, path, live):
        """A path that has gone, or refuses everything, before the key that
        somebody had removed elsewhere was taken off it, too; which the log
        says."""
        return (path not in live or self.refuses) \
            and '%s may have kept key %x,' % (
                sim.disk_name(path), self.sa_key) in self.log

    def is_helped(self, is_as_before):
        """Who had lost his keys has got one on one path from multipathd, which
        is enough for what concerns one path, and leaves the others alone."""
        return is_as_before and self.action not in (*REGISTERS, CLEAR) \
            and (not self.disk.keys[US] or self.hits()) \
            and any(self.is_multipathds(path) for path in PATHS)

    def is_left_behind(self, seen, keys, live):
        """Who unregisters cannot take along a path that is gone, which goes
        on to hold what all registrants hold: nobody but the disk could tell it
        from another host with the same key."""
        return seen.type >= 7 and self.action in REGISTERS \
            and not self.sa_key and any(
                key for path, key in keys.items() if path not in live)

    def others_are(self, disk, seen):
        """What others have registered is theirs, with whatever key."""
        return all(disk.keys[who] == seen.keys[who] for who in (THEM, HOST))

    def is_known(self):
        """Rules 1 and 2: what multipathd will do with paths to come."""
        known = self.lab.known
        if self.answer == CONFLICT and self.is_mpd_well \
                and not self.is_killed and not self.is_restarted:
            return 0 in self.was_known or self.was_known[1] == 'unset' \
                or {self.nexus(n).key for n in PATHS} != {self.was_known[0]} \
                or (known.key, known.prflag) == self.was_known
        if self.answer != GOOD and not self.is_cleared():
            return True
        if self.action == CLEAR or self.action in REGISTERS \
                and not self.sa_key:
            return known.prflag == 'unset' or not known.key \
                or self.is_restarted and known.fixed    # a twin has it, too
        return self.action not in REGISTERS or (
            known.key == self.sa_key and (
                known.prflag == 'set'       # or it has found no key there
                or self.is_restarted and self.is_fenced))

    def is_cleared(self):
        """Its answer was lost, but anybody can see that no key is left."""
        return self.action == CLEAR and self.answer == LOST \
            and self.is_mpd_well and not self.is_killed and not self.hits() \
            and not self.refuses and self.is_quiet(PATHS) \
            and KEY not in self.lab.target.keys(0) \
            and set(self.first.values()) == {KEY}

    def is_quiet(self, paths):
        """Nothing is the matter with those any more."""
        return not any(n.inject_count or n.state or n.delay_ms or n.open_errno
                       or n.open_other for n in map(self.nexus, paths))

    def is_remembered(self):
        """Rule 3, if the path is gone by the time of the next command; which,
        after an error, is the same once more."""
        lun, known = self.lab.lun, self.lab.known
        if self.action == RELEASE and self.answer == GOOD \
                and self.was_hold == 'set' and self.lab.mpd.version != '0.9.4' \
                and not self.is_restarted:
            return known.prhold != 'set' \
                or any(re.search('"(.*hold)?": (usage|fail|garbage)', line)
                       for line in self.story)
        return known.prhold != 'unset' or self.lab.mpd.version == '0.9.4' \
            or not self.is_mpd_well and self.answer != GOOD \
            or self.is_killed \
            or self.answer != GOOD and 'may have kept key' in self.log \
            or self.was_hold == 'unset' and self.was_holder in PATHS \
            or not 0 < lun.type < 7 or lun.holder not in PATHS \
            or not self.nexus(lun.holder).key

    def is_resumed(self):
        """Rule 5."""
        known = self.lab.known
        if known.suspended and self.is_silent:
            return 'dmsetup resume' in self.log
        most = SUSPENDED + self.target.script.excused \
            + 30 * SECOND * self.is_slow
        return not known.suspended and all(
            end - begin < most for begin, end in known.suspensions)

    def is_in_time(self):
        """Rule 6."""
        script = self.target.script
        return self.end - self.begin < DEADLINE + script.excused \
            and not script.stuck

    def is_logged(self):
        """Rule 7."""
        log = re.sub('.*, sd[a-z]+: 5[ef].*\n', '', self.log)
        if 'messages' in log and 'suppressed' in log:
            return True
        if self.answer == LOST and not self.is_killed:
            if not re.search('dm-0|mpatha', log):
                return False
            if self.is_mpd_well and not self.lab.known.fixed \
                    and not re.search(r'\bsd[a-z]+\b|' + NAMELESS, log):
                return False
            if self.action in REGISTERS and len(self.story) == 4 and not all(
                    re.search(r'\b%s\b' % sim.disk_name(path), log)
                    for path in self.unopened):
                return False
            return not self.is_keyless or self.action not in REGISTERS \
                or self.is_hit() \
                or 'reservation_key' in log or not self.sa_key \
                or any(re.match('sd.:', line) for line in self.story)
        if self.answer == GOOD and self.action in REGISTERS \
                and not self.is_hit():
            return all(self.nexus(path).key == self.sa_key
                       or path in self.away or path in self.came
                       or re.search(r'\b%s\b' % sim.disk_name(path), log)
                       for path in PATHS)
        if self.answer == GOOD and self.action in PREEMPTS \
                and not self.is_hit():
            return all(self.nexus(path).key or not self.first[path]
                       or path in self.away
                       or re.search(r'\b%s\b' % sim.disk_name(path), log)
                       for path in PATHS) or not any(
                self.nexus(path).key for path in PATHS)
        return True

    def is_undone(self):
        """A new key is everywhere or nowhere, if it can be taken away."""
        paths = [path for path in PATHS if self.is_live(path)]
        return self.answer == GOOD or self.action not in REGISTERS \
            or self.sa_key in (0, *self.first.values()) or self.is_killed \
            or self.seconds > 30 or self.is_silent \
            or any(self.is_multipathds(path) for path in PATHS) \
            or not self.is_quiet(paths) \
            or len({self.nexus(n).key == self.sa_key for n in paths}) < 2

    def is_untouched(self):
        """What waits for a transport in vain has not begun to change keys."""
        return self.action not in REGISTERS or self.answer == GOOD \
            or self.is_killed or self.hits() or self.came \
            or any(self.changes(path, DM) for path in PATHS) \
            or not any(self.nexus(path).state == BLOCKED
                       and not self.nexus(path).dm_failed
                       and not self.changes(path, STATE) for path in PATHS) \
            or all(self.nexus(path).key == self.first[path] for path in PATHS)

    def is_read(self):
        """By one path that works, and nothing has been changed by it."""
        paths = [self.nexus(path) for path in PATHS]
        clean = not any(self.changes(path, what) for path in PATHS
                        for what in (STATE, OPEN, DELAY))
        return self.answer == GOOD or self.is_killed or not clean \
            or self.refuses or self.away or self.came \
            or str(self.answer).startswith('status') or all(
            n.inject or n.state or n.delay_ms or n.open_errno or n.open_other
            for n in paths)

    def goes_on(self):
        """After an error, when all is well again, the guest repeats."""
        known = self.lab.known
        if self.answer in (GOOD, CONFLICT) or known.fixed != 0 \
                or self.lab.helper.process.poll() is not None:
            return True
        self.lab.mpd.rules, known.states = [], {}
        for path in PATHS:
            n = self.nexus(path)
            n.inject_count = n.state = n.delay_ms = n.open_errno = 0
            n.open_other = n.dm_failed = 0
        self.acts, self.target.script.actions = self.done(), 0
        self.action, self.sa_key, self.key = REGISTER_AND_IGNORE, AGAIN, 0
        self.is_in = self.is_cleanup = self.flags = False
        self.is_killed = self.is_silent = False
        for _ in range(5):      # somebody may have to resume the map first
            self.wait_idle()
            answer = self.send()
            if answer == GOOD:
                break
            time.sleep(.1)
        self.wait_idle()
        keys = [self.nexus(path).key for path in PATHS
                if path not in self.away]
        self.tell('again: %s, keys %s' % (answer, keys))
        return answer == GOOD and known.key == AGAIN \
            and known.prflag == 'set' and set(keys) == {AGAIN}

    def works(self):
        """What is no fault, or soon over, must not cost the guest anything."""
        if not self.is_benign or not any(map(self.is_live, PATHS)):
            return True
        if self.was_holder in (*self.gone, TWIN) and self.gone:
            return True
        if self.lab.known.fixed and self.action in REGISTERS:
            return True
        answers = {answer for answer, _ in self.explanations()
                   if answer is not None}
        return self.answer in answers


def fast_lab():
    return Lab(env={'SIM_SPEED': '0'}, is_verbose=False)


class Run:
    """Cases, one after the other, and what was wrong."""

    def __init__(self):
        self.lab, self.finds = fast_lab(), []

    def close(self):
        self.lab.reset()
        self.lab.close()

    def case(self, seed):
        lab = self.lab
        if any(lab.nexus(n).open_other for n in PATHS):
            lab.root.is_changed = True
        lab.reset()
        self.target_is_later()
        case = Case(lab, seed)
        wrong = case.wrong()
        if lab.known.suspended:
            lab.mpd.rules, case.is_silent = [], False
            case.wait_idle()
        try:
            lab.check()
        except AssertionError as error:
            wrong.append(str(error).split('\n', maxsplit=1)[0])
        if wrong:
            self.finds.append((seed, wrong, case.story))
        return case, wrong

    def target_is_later(self):
        """So that the log's rate is none of its concern."""
        self.lab.target.script.skipped += 5 * SECOND

    def run(self, seeds):
        end = time.monotonic() + SECONDS
        for seed in seeds:
            self.case(seed)
            if len(self.finds) >= FINDS \
                    or SECONDS and time.monotonic() > end:
                break
        return self.finds


def told(find):
    seed, wrong, story = find
    return '%d: %s\n    %s' % (seed, ', '.join(wrong), '\n    '.join(story))


def test_what_must_be_so_after_random_commands():
    run = Run()
    try:
        finds = run.run(range(SEED, SEED + COMMANDS))
    finally:
        run.close()
    assert not finds, '%d finds\n%s' % (len(finds),
                                        '\n'.join(map(told, finds)))


def is_reading_first(lab):
    lab.reset()
    lab.registered()
    lab.mpd.on('', 'hang', count=1)
    lab.client.send(pr_out(REGISTER), [lab.map])
    lab.client.sock.sendall(parameters(KEY, NEW))
    end = time.monotonic() + 20
    while not lab.mpd.commands:
        assert time.monotonic() < end, 'nothing for multipathd'
        time.sleep(.01)
    with lab.helper.client() as reader:
        assert reader.read_in(lab.map, READ_KEYS).status == GOOD
        is_first = not select.select([lab.client.sock], [], [], 0)[0]
    lab.mpd.reset()
    lab.client.reply()
    return is_first


def test_reading_waits_for_no_other_command():
    """Unless this machine is so slow that the other has given up."""
    lab = Lab()
    try:
        assert any(is_reading_first(lab) for _ in range(5))
    finally:
        lab.close()


def show(seeds):
    run = Run()
    try:
        for seed in seeds:
            case, wrong = run.case(seed)
            print(told((seed, wrong, case.story)))
            for event in run.lab.target.log():
                print('    %s %s %x %x errno %d host %02x status %02x' % (
                    sim.disk_name(event.nexus), event.cdb[:3].hex(),
                    event.key, event.sa_key, event.error, event.host_status,
                    event.status))
            print(case.log)
            print('   ', '\n    '.join(run.lab.mpd.texts()))
            for act in case.acts or case.done():
                print('    %d by %d at step %d, key %x: status %02x' % (
                    act.what, act.nexus, act.done_step, act.key, act.status))
    finally:
        run.close()


if __name__ == '__main__':
    show(map(int, sys.argv[1:]))
