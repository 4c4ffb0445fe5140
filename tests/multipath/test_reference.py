"""The helper and mpathpersist, the reference, take the same steps on a map.

Runs as root inside tests/lib/uml.sh and tests/lib/multipath.sh; see cluster.py
for what is there. What the rival's nexus reads from the target, and the key
that multipathd has, must be the same after each step. Steps at which the
reference is known to err are not here, but in test_multipathd.py, which
says what the helper must do.

With MULTIPATH_SUBJECT=mpathpersist the reference takes the steps twice: that
tells whether a failure is the helper's.

Must never send PREEMPT AND ABORT: LIO's loopback target hangs on it for good.
"""
import os

import pytest

import prclient as pr
from cluster import (A, A2, ALL_REGISTRANTS, B, BOTH, CONFLICT, FAILED, FILE,
                     FIXED, GOOD, TYPES, Mpathpersist, View, by_nexus,
                     direct, other_than, reset, view, wait_until)
from fixtures import (daemons, multipathd, needed, relay,    # noqa: F401
                      rival, serve, us)


SAME = 'same'   # the reference's versions differ: as whichever is here


class Us:
    """We do this to the map, and it comes to that."""

    def __init__(self, action, key=0, sa_key=0, type_=0, want=GOOD):
        self.arguments = action, key, sa_key, type_
        self.want = want
        self.label = 'us: action %d, key %x, %x, type %d' % self.arguments

    def take(self, subject, rival, multipathd):
        return subject.out(*self.arguments)


class Them(Us):
    """The rival does this to the disk."""

    def take(self, subject, rival, multipathd):
        return rival.out(*self.arguments)


class Path:
    """A path's device goes offline or comes back, and multipathd knows; then,
    by and by, these keys are on the target."""
    want = None

    def __init__(self, name, state, keys=None):
        self.name, self.state, self.keys = name, state, keys
        self.label = '%s %s' % (name, state)

    def take(self, subject, rival, multipathd):
        multipathd.set_state(self.name, self.state)
        keys = self.keys
        if callable(keys):
            keys = keys(multipathd)
        if keys is not None:
            wait_until(lambda: view().keys == keys, self.label)


def register(key=A):
    return Us(pr.REGISTER, 0, key)


def every_way_to_register():
    return [
        Us(pr.RESERVE, A, type_=1, want=None),      # not registered
        register(A),
        Us(pr.REGISTER, 0, A, want=CONFLICT),       # it has a key already
        Us(pr.REGISTER, A, A2),
        Us(pr.REGISTER, A2, A),
        Us(pr.REGISTER_AND_IGNORE, 0, A2),
        Us(pr.REGISTER_AND_IGNORE, 0, A2),
        Us(pr.REGISTER, A2, 0),
        Us(pr.REGISTER_AND_IGNORE, 0, A),
        Us(pr.REGISTER_AND_IGNORE, 0, 0),
        Us(pr.REGISTER_AND_IGNORE, 0, 0),
    ]


def get_and_give_up(type_):
    other = {1: 3, 3: 1, 5: 6, 6: 5, 7: 8, 8: 7}[type_]
    return [
        Them(pr.REGISTER, 0, B),
        register(),
        Us(pr.RESERVE, A, type_=type_),
        Us(pr.RESERVE, A, type_=other, want=CONFLICT),
        Them(pr.RESERVE, B, type_=other, want=CONFLICT),
        Us(pr.RELEASE, A, type_=type_),
        Them(pr.RESERVE, B, type_=type_),
        # All registrants hold it; so a RESERVE of the same is a repetition.
        Us(pr.RESERVE, A, type_=type_, want=GOOD if type_ in ALL_REGISTRANTS
           else CONFLICT),
        Them(pr.RELEASE, B, type_=type_),
        Us(pr.RESERVE, A, type_=type_),             # unit attentions
        Us(pr.REGISTER, A, 0),
    ]


def we_preempt(type_):
    return [
        Them(pr.REGISTER, 0, B),
        Them(pr.RESERVE, B, type_=type_),
        register(),
        Us(pr.PREEMPT, A, B, pr.WRITE_EXCLUSIVE_RO),
        Them(pr.RESERVE, B, type_=type_, want=None),
        Them(pr.REGISTER, 0, B),
        Them(pr.RESERVE, B, type_=type_, want=CONFLICT),
        Us(pr.PREEMPT, A, B, pr.WRITE_EXCLUSIVE_RO),
        Us(pr.CLEAR, A),
        Us(pr.CLEAR, A, want=None),
    ]


def the_rival_preempts():
    return [
        register(),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS_RO),
        Them(pr.REGISTER, 0, B),
        Them(pr.PREEMPT, B, A, pr.EXCLUSIVE_ACCESS),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS, want=CONFLICT),
        Us(pr.REGISTER_AND_IGNORE, 0, A),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS, want=CONFLICT),
        Them(pr.CLEAR, B),
        Us(pr.REGISTER_AND_IGNORE, 0, A),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS),
    ]


def offline_before_register(path, action):
    other = other_than(path)
    return [
        Path(path, 'offline'),
        Us(action, 0, A),
        Us(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO),
        Path(path, 'running', BOTH),
        Path(other, 'offline'),
        # Ours, but through the path that is gone.
        Us(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO, want=SAME),
        Us(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE, want=CONFLICT),
        Path(other, 'running', BOTH),
        Us(pr.RELEASE, A, type_=pr.WRITE_EXCLUSIVE_RO),
    ]


def another_key_while_offline():
    return [
        register(),
        Path('sda', 'offline'),
        Us(pr.REGISTER, A, A2),
        Path('sda', 'running', {'sda': A2, 'sdb': A2}),
    ]


def unregister_while_offline():
    """Nobody removes the key of the path that was gone, unless multipathd
    does, since 0.13: it is the same for both, and worth knowing."""
    return [
        register(),
        Path('sda', 'offline'),
        Us(pr.REGISTER_AND_IGNORE, 0, 0),
        Path('sda', 'running', lambda multipathd:
             {} if multipathd.knows_the_holder() else {'sda': A}),
        Us(pr.REGISTER_AND_IGNORE, 0, A),
        Us(pr.CLEAR, A),
    ]


def all_offline():
    return [
        register(),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS),
        Path('sda', 'offline'),
        Path('sdb', 'offline'),
        Us(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS, want=FAILED),
        Us(pr.CLEAR, A, want=FAILED),
        Us(pr.REGISTER_AND_IGNORE, 0, A, want=FAILED),
        Path('sdb', 'running', BOTH),
        Path('sda', 'running', BOTH),
        Us(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS),
    ]


def with_a_fixed_key():
    return [
        register(),
        Us(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE),
        Us(pr.RELEASE, A, type_=pr.WRITE_EXCLUSIVE),
        Us(pr.REGISTER, A, 0),
        Us(pr.REGISTER_AND_IGNORE, 0, A2, want=FAILED),
        Path('sda', 'offline'),
        Us(pr.REGISTER_AND_IGNORE, 0, A),
        Path('sda', 'running', BOTH),
        Us(pr.CLEAR, A),
        Path('sda', 'offline'),
        Path('sda', 'running', {}),
    ]


SEQUENCES = {
    'register': every_way_to_register(),
    **{TYPES[t]: get_and_give_up(t) for t in TYPES},
    'we-preempt': we_preempt(pr.EXCLUSIVE_ACCESS),
    'the-rival-preempts': the_rival_preempts(),
    'sda-offline': offline_before_register('sda', pr.REGISTER),
    'sdb-offline': offline_before_register('sdb', pr.REGISTER_AND_IGNORE),
    'another-key-while-offline': another_key_while_offline(),
    'unregister-while-offline': unregister_while_offline(),
    'all-offline': all_offline(),
    'fixed-key': with_a_fixed_key(),
}
CONFIGURATIONS = [(FIXED if name == 'fixed-key' else FILE, name)
                  for name in SEQUENCES]


def play(subject, rival, multipathd, steps):
    """[(result, what the target holds, multipathd's key)] of each step."""
    reset(multipathd)
    done = []
    for step in steps:
        result = step.take(subject, rival, multipathd)
        done.append((result, view(), multipathd.key()))
        if step.want == SAME:
            continue
        if step.want and isinstance(subject, Mpathpersist):
            # How it calls a refusal differs between its versions.
            assert (result == GOOD) == (step.want == GOOD), step.label
        elif step.want:
            assert result == step.want, step.label
        elif result is not None:
            assert result != GOOD, step.label
    return done


@pytest.mark.parametrize('multipathd, name', CONFIGURATIONS,
                         indirect=['multipathd'], ids=SEQUENCES)
def test_the_rival_sees_what_it_sees_of_mpathpersist(multipathd, serve, rival,
                                                     name):
    steps = SEQUENCES[name]
    expected = play(Mpathpersist(), rival, multipathd, steps)
    if os.environ.get('MULTIPATH_SUBJECT') == 'mpathpersist':
        subject = Mpathpersist()
    else:
        subject = serve()[1]
    got = play(subject, rival, multipathd, steps)
    for step, ours, theirs in zip(steps, got, expected):
        # How a refusal is called is for a single disk to say: see below.
        assert (ours[0] == GOOD) == (theirs[0] == GOOD), step.label
        assert ours[1:] == theirs[1:], step.label


def test_the_comparison_would_see_a_difference(multipathd, rival):
    """A subject that forgets one path, one that takes the wrong key."""
    steps = [register()]
    expected = play(rival, rival, multipathd, [])
    assert expected == []
    honest = play(Mpathpersist(), rival, multipathd, steps)
    assert honest[0] == (GOOD, View(BOTH, None, set()), '%#x' % A)

    class OnePath:
        def out(self, *arguments):
            by_nexus('sda', direct.out, *arguments)
            return GOOD

    assert play(OnePath(), rival, multipathd, steps)[0][1:] == (
        View({'sda': A}, None, set()), 'none')
