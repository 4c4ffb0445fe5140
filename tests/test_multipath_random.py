"""Random commands on a multipath map whose paths and multipathd misbehave at
random, and what must be so after each, whatever the answer is.

test_multipath.py says what each command comes to; this looks for what nobody
has thought of. The numbers are the same in each run; RANDOM_SEED is another
first one, RANDOM_COMMANDS how many commands there are. A wrong one is printed
with its number and what had been made to fail.

It must not make a device do what no device does, such as to execute a command
and then say that it did not.
"""
import os
import random

from prclient import (CLEAR, GOOD, PREEMPT, PREEMPT_AND_ABORT, REGISTER,
                      REGISTER_AND_IGNORE, RELEASE, RESERVE,
                      WRITE_EXCLUSIVE_AR)
from test_multipath import (CONFLICT, FAILURES, KEY, LOSSES, NEW, PATHS,
                            REFUSALS, RIVAL, RIVALS, Lab, Scenarios)

SEED = int(os.environ.get('RANDOM_SEED', 0))
COMMANDS = int(os.environ.get('RANDOM_COMMANDS', 2000))
TYPES = (1, 3, 5, 6, 7, 8)
REGISTERS = (REGISTER, REGISTER_AND_IGNORE)
PREEMPTS = (PREEMPT, PREEMPT_AND_ABORT)


class State:
    def __init__(self, lab):
        known = lab.known
        self.keys = [lab.nexus(n).key for n in PATHS]
        self.live = lab.keys()
        self.rival = lab.nexus(RIVALS).key
        self.holder = lab.holder()
        self.told = known.key, known.aptpl, known.prflag
        self.hold = known.prhold

    @property
    def is_ours(self):
        return self.holder and self.holder[0] in PATHS

    @property
    def is_rivals(self):
        return self.holder and self.holder[0] == RIVALS


class Case:
    """One command; what was done to it is in story."""

    def __init__(self, lab, seed):
        self.lab, self.rng, self.story = lab, random.Random(seed), [seed]
        lab.is_consistent = False       # that is for us to say
        self.beginning()
        self.paths_misbehave()
        self.multipathd_misbehaves()
        self.command()

    def tell(self, *what):
        self.story.append(what)

    def beginning(self):
        lab, rng = self.lab, self.rng
        name = rng.choice(('nobody', 'registered', 'fenced', 'held', 'held',
                           'held', 'rival holds'))
        if name != 'nobody':
            lab.registered()
        if rng.random() < .5:
            lab.rival_registered()
        if name == 'held':
            lab.held(rng.choice(TYPES), rng.choice(PATHS))
        elif name == 'fenced':
            for path in PATHS:
                lab.nexus(path).key = 0
        if name in ('fenced', 'rival holds'):
            lab.rival_holds(rng.choice(TYPES))
        dead = {path for path in PATHS if rng.random() < .2}
        lab.dead = dead if len(dead) < len(PATHS) else set()
        for path in lab.dead:
            lab.root.state(path, 'offline')
        self.tell(name, 'dead', lab.dead)

    def paths_misbehave(self):
        self.is_executed = self.is_repeated = False
        for path in PATHS:
            if self.rng.random() > .35:
                continue
            kind = self.rng.choice(sorted(FAILURES) + 3 * sorted(REFUSALS))
            after = kind in LOSSES and self.rng.random() < .5
            count, skip = self.rng.choice((1, 1, 2, 3)), self.rng.choice(
                (0, 0, 0, 1, 2, 3))
            {**FAILURES, **REFUSALS}[kind](self.lab, path, count=count,
                                           skip=skip, after=after)
            self.is_executed |= after
            self.is_repeated |= count > 1 or skip > 0
            self.tell(path, kind, 'after' if after else '', count, skip)

    def multipathd_misbehaves(self):
        self.is_told = self.rng.random() < .75
        if not self.is_told:
            how = self.rng.choice(('fail', 'empty', 'NULs', 'deny', 'timeout',
                                   'usage', 'cut', 'garbage'))
            skip = self.rng.randrange(6)
            effect = how in ('empty', 'NULs', 'cut', 'garbage') \
                and self.rng.random() < .5
            self.lab.mpd.on('', how, count=1, skip=skip, effect=effect)
            self.tell(how, skip, effect)

    def command(self):
        rng, lab = self.rng, self.lab
        self.action = rng.choice(4 * (REGISTER,) + 3 * (REGISTER_AND_IGNORE,)
                                 + 2 * (RELEASE, RESERVE) + (CLEAR,)
                                 + 3 * (PREEMPT,) + (PREEMPT_AND_ABORT,))
        self.key = rng.choice(4 * (KEY,) + (0, NEW, RIVAL))
        self.sa_key = rng.choice((0, KEY, NEW, RIVAL, RIVAL))
        self.type = rng.choice(TYPES)
        if lab.lun.type and rng.random() < .8:
            self.type = lab.lun.type
        self.before = State(lab)
        self.answer = lab.out(self.action, self.key, self.sa_key, self.type)
        lab.wait_idle()
        self.after = State(lab)
        self.tell('command', self.action, hex(self.key), hex(self.sa_key),
                  self.type, self.answer)

    # ---- What must be so --------------------------------------------------
    def wrong(self):
        rules = [self.rivals_things_are_left_alone]
        if self.answer == GOOD:
            rules.append({REGISTER: self.is_registered,
                          REGISTER_AND_IGNORE: self.is_registered,
                          RESERVE: self.is_reserved,
                          RELEASE: self.is_released,
                          CLEAR: self.is_cleared}.get(self.action,
                                                      self.is_preempted))
        else:
            rules.append(self.no_key_comes_from_nowhere)
            if self.answer == CONFLICT and not self.is_executed:
                rules.append(self.is_unchanged)
            if self.action in REGISTERS and not (self.is_executed
                                                 or self.is_repeated):
                rules.append(self.is_undone)
        return [rule.__name__ for rule in rules if not rule()]

    def rivals_things_are_left_alone(self):
        before, after = self.before, self.after
        return (before.rival == after.rival or self.action == CLEAR
                or self.action in PREEMPTS and self.sa_key in (0, RIVAL)) \
            and (not before.is_rivals or before.holder == after.holder
                 or self.action in (CLEAR, *PREEMPTS))

    def is_registered(self):
        """A path that has failed at the last try, too, is left out."""
        after, key = self.after, self.sa_key
        return (self.is_repeated or set(after.live) == {key}) \
            and after.told[0] in ((key,) if key else (0, KEY)) \
            and after.told[2] == ('set' if key else 'unset')

    def keys_are_kept(self):
        return self.is_repeated or self.after.live == self.before.live

    def is_reserved(self):
        after = self.after
        return self.keys_are_kept() and after.hold == 'set' and (
            after.holder == (None, self.type)
            if self.type >= WRITE_EXCLUSIVE_AR
            else after.is_ours and after.holder[1] == self.type)

    def is_released(self):
        return self.keys_are_kept() and not self.after.is_ours

    def is_cleared(self):
        after = self.after
        return not any(after.keys) and not after.rival and not after.holder

    def is_preempted(self):
        before, after = self.before, self.after
        return self.keys_are_kept() \
            and not (self.sa_key == RIVAL and after.rival) \
            and not (before.is_rivals and self.sa_key == RIVAL and not (
                after.hold == 'set' and after.holder[1] == self.type
                and after.holder[0] != RIVALS))

    def no_key_comes_from_nowhere(self):
        """Above all, no key comes back to who has been preempted."""
        new = {self.sa_key, 0} if self.action in REGISTERS else {0}
        claims = self.action == REGISTER_AND_IGNORE \
            or self.action == REGISTER and self.key == 0
        return all(now == was or now in new and (was or claims)
                   for was, now in zip(self.before.keys, self.after.keys))

    def is_unchanged(self):
        before, after = self.before, self.after
        return after.keys == before.keys and after.holder == before.holder \
            and (after.told == before.told or not self.is_told)

    def is_undone(self):
        before, after = self.before, self.after
        return after.live == before.live and (after.told == before.told
                                              or not self.is_told)


def test_what_must_be_so_after_random_commands():
    lab = Lab()
    scenarios = Scenarios(lab)
    try:
        for seed in range(SEED, SEED + COMMANDS):
            with scenarios.scenario():
                case = Case(lab, seed)
                assert not case.wrong(), (case.wrong(), case.story,
                                          vars(case.before), vars(case.after))
        lab.reset()
    finally:
        lab.close()
    scenarios.done()
