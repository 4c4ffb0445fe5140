"""Persistent reservations on a dm-multipath map, with Debian's multipathd.

Runs as root inside tests/lib/uml.sh and tests/lib/multipath.sh; see cluster.py
for what is there. Here is what the helper must do where mpathpersist 0.9.4
does something else, or nothing: see test_reference.py for the rest.

Must never send PREEMPT AND ABORT: LIO's loopback target hangs on it for good.
Must leave no map suspended.
"""
import ctypes
import json
import os
import pwd
import re
import signal
import subprocess
import threading
import time

import pytest

import prclient as pr
from cluster import (A, A2, ALL_REGISTRANTS, B, BOTH, CONFLICT, EMPTY, FAILED,
                     FIXED, GOOD, MAP, NAME, PATHS, RIVAL, TYPES, Helper, View,
                     ask, by_nexus, direct, is_suspended, other_than, set_state,
                     view, wait_until)
from fixtures import (daemons, multipathd, needed, relay,    # noqa: F401
                      rival, serve, us)

CLEANUP = b'\xff' + bytes(15)
LU_COMMUNICATION_FAILURE = 'B/08/00'


def configured(defaults):
    return pytest.mark.parametrize('multipathd', [defaults], indirect=True)


# PERSISTENT RESERVE IN ------------------------------------------------------

def on_path(name, service_action, length=8192):
    """What a path itself answers."""
    return by_nexus(name, direct.read_in, service_action, length)


def test_pr_in_is_what_a_path_answers(us, rival):
    for held in (None, (us, A), (rival, B)):
        if held is None:
            assert on_path('sda', pr.READ_KEYS).status == pr.GOOD
        else:
            assert held[0].out(pr.REGISTER, 0, held[1]) == GOOD
            assert held[0].out(pr.RESERVE, held[1], type_=pr.EXCLUSIVE_ACCESS
                               ) in (GOOD, CONFLICT)
        for action in range(4):
            assert (us.client.read_in(us.fd, action)
                    == on_path('sda', action))
    for length in (0, 8, 100):
        assert (us.client.read_in(us.fd, pr.READ_FULL_STATUS, length)
                == on_path('sda', pr.READ_FULL_STATUS, length))
    assert sorted(us.client.keys(us.fd)) == sorted([A, A, B])


def test_pr_in_goes_by_whatever_path_works(us, multipathd, rival):
    rival.out(pr.REGISTER, 0, B)
    for name in PATHS:
        set_state(name, 'offline')
        assert us.client.keys(us.fd) == [B]
        set_state(name, 'running')


def test_pr_in_with_no_path_is_an_error(us):
    for name in PATHS:
        set_state(name, 'offline')
    for action in range(4):
        reply = us.client.read_in(us.fd, action)
        assert reply.status == pr.CHECK_CONDITION
        assert reply.payload == b''
    for name in PATHS:
        set_state(name, 'running')
    assert us.client.keys(us.fd) == []


def test_pr_out_with_no_path_is_an_error(us, rival):
    rival.out(pr.REGISTER, 0, B)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    before = view()
    for name in PATHS:
        set_state(name, 'offline')
    for action, sa_key in ((pr.REGISTER, A2), (pr.REGISTER, 0),
                           (pr.REGISTER_AND_IGNORE, A2), (pr.RESERVE, 0),
                           (pr.RELEASE, 0), (pr.CLEAR, 0), (pr.PREEMPT, B),
                           (pr.PREEMPT, A)):
        assert us.out(action, A, sa_key, pr.EXCLUSIVE_ACCESS) == FAILED
        assert us.reply.status == pr.CHECK_CONDITION
        assert view() == before
    assert not is_suspended()
    assert us.client.request(CLEANUP, us.fd).status == pr.CHECK_CONDITION
    for name in PATHS:
        set_state(name, 'running')


def test_pr_in_passes_on_what_the_disk_refuses(us):
    fd = pr.open_device('/dev/sda')
    for action in (4, 31):
        assert (us.client.read_in(us.fd, action, 64)
                == direct.read_in(fd, action, 64))
    os.close(fd)


# What one disk would have said. ---------------------------------------------

def test_a_wrong_key_is_a_conflict_and_changes_nothing(us, multipathd):
    """mpathpersist 0.9.4 leaves the key of a refused REGISTER with
    multipathd, which would register it on the next path that appears."""
    assert us.out(pr.REGISTER, A2, A) == CONFLICT
    assert (view(), multipathd.key()) == (EMPTY, 'none')
    assert not multipathd.registers()
    assert us.out(pr.REGISTER, 0, A) == GOOD
    for action, sa_key in ((pr.REGISTER, B), (pr.REGISTER, 0),
                           (pr.RESERVE, 0), (pr.RELEASE, 0), (pr.CLEAR, 0),
                           (pr.PREEMPT, A)):
        assert us.out(action, A2, sa_key, 1) == CONFLICT
        assert (view(), multipathd.key()) == (View(BOTH, None, set()),
                                              '%#x' % A)
    assert multipathd.registers()


@pytest.mark.parametrize('type_', TYPES, ids=TYPES.get)
def test_a_release_of_another_type_releases_nothing(us, rival, type_):
    """mpathpersist 0.9.4 clears the disk, the rival's key included."""
    assert us.out(pr.REGISTER, 0, A) == GOOD
    rival.out(pr.REGISTER, 0, B)
    assert us.out(pr.RESERVE, A, type_=type_) == GOOD
    before = view()
    for other in TYPES:
        if other != type_:
            assert us.out(pr.RELEASE, A, type_=other) != GOOD
            assert pr.sense_code(us.reply.sense) == '5/26/04' or (
                us.reply.status == pr.RESERVATION_CONFLICT)
            assert view() == before
    assert us.out(pr.RELEASE, A, type_=type_) == GOOD
    assert view() == View({**BOTH, 'sdc': B}, None, set())


def test_a_release_by_others_than_the_holder_releases_nothing(us, rival):
    """mpathpersist 0.9.4 clears the disk, the rival's key included."""
    assert us.out(pr.REGISTER, 0, A) == GOOD
    rival.out(pr.REGISTER, 0, B)
    rival.out(pr.RESERVE, B, type_=pr.WRITE_EXCLUSIVE)
    before = view()
    assert us.out(pr.RELEASE, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
    assert view() == before == View({**BOTH, 'sdc': B},
                                    (B, pr.WRITE_EXCLUSIVE), {'rival'})


def test_unit_attentions_of_paths_are_not_the_guests(us, rival):
    for _ in range(3):
        assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == GOOD
        rival.out(pr.REGISTER_AND_IGNORE, 0, B)
        assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
        assert rival.out(pr.PREEMPT, B, A, pr.WRITE_EXCLUSIVE_RO) == GOOD
        assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == CONFLICT
        assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == GOOD
        assert rival.out(pr.RELEASE, B, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
        assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
        assert rival.out(pr.CLEAR, B) == GOOD
        assert us.client.keys(us.fd) == []


def test_the_unit_attentions_are_there(us, rival):
    """Or the test before would be worth nothing. Now and then the checker of
    multipathd takes them."""
    codes = set()
    for _ in range(10):
        assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == GOOD
        rival.out(pr.REGISTER_AND_IGNORE, 0, B)
        rival.out(pr.CLEAR, B)
        fd = pr.open_device('/dev/sda')
        reply = direct.read_in(fd, pr.READ_KEYS)
        os.close(fd)
        if reply.status == pr.CHECK_CONDITION:
            codes.add(pr.sense_code(reply.sense))
    assert codes and codes <= {'6/2A/03', '6/2A/04', '6/2A/05'}


def test_what_a_map_does_not_do(us, multipathd):
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.REGISTER_AND_MOVE, A, B) == FAILED
    assert pr.sense_code(us.reply.sense) == '5/24/00'
    for length in (1, 8, 23):
        reply = us.client.request(pr.pr_out(pr.REGISTER, length=length), us.fd,
                                  bytes(length))
        assert reply.status == pr.CHECK_CONDITION
        assert pr.sense_code(reply.sense) == '5/1A/00'
    assert (view(), multipathd.key()) == (View(BOTH, None, set()),
                                          '%#x' % A)


def flags_of_registrations(us):
    """Byte 12 of each descriptor of READ FULL STATUS: ALL_TG_PT is bit 1."""
    full = us.client.read_in(us.fd, pr.READ_FULL_STATUS).payload
    return [full[8 + 12], full[8 + 48 + 12]]


def test_aptpl_is_for_every_path_and_for_multipathd(us, multipathd):
    aptpl = 1
    reply = us.client.out(us.fd, pr.REGISTER, 0, A, flags=aptpl)
    assert reply.status == pr.GOOD
    assert view() == View(BOTH, None, set())
    assert us.client.read_in(us.fd, pr.REPORT_CAPABILITIES).payload[3] & 1
    assert multipathd.key() == '%#x:aptpl' % A
    assert us.out(pr.REGISTER, A, A) == GOOD
    assert not us.client.read_in(us.fd, pr.REPORT_CAPABILITIES).payload[3] & 1
    assert multipathd.key() == '%#x' % A


def test_all_tg_pt_reaches_every_path(us):
    """Each is of a SCSI host of its own. LIO wants the bit again from whoever
    changes such a registration."""
    all_tg_pt = 4
    reply = us.client.out(us.fd, pr.REGISTER, 0, A, flags=all_tg_pt)
    assert reply.status == pr.GOOD
    assert view() == View(BOTH, None, set())
    assert flags_of_registrations(us) == [2, 2]
    reply = us.client.out(us.fd, pr.REGISTER, A, 0, flags=all_tg_pt)
    assert reply.status == pr.GOOD
    assert view() == EMPTY


@pytest.mark.parametrize('end', ['preempted', 'cleaned up'])
def test_all_tg_pt_is_remembered_by_the_disk_alone(us, multipathd, end):
    """What the helper registers by itself, as part of another command."""
    all_tg_pt = 4
    reply = us.client.out(us.fd, pr.REGISTER, 0, A, flags=all_tg_pt)
    assert reply.status == pr.GOOD
    if end == 'preempted':
        assert us.out(pr.PREEMPT, A, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
        assert view() == View(BOTH, None, set())
    else:
        assert us.client.request(CLEANUP, us.fd).status == pr.GOOD
        assert view() == EMPTY
        assert multipathd.key() == 'none'


# What needs more than mpathpersist 0.9.4 does. ------------------------------

def test_preempting_our_own_key_leaves_all_paths_registered(us, rival):
    """mpathpersist 0.9.4 leaves one."""
    assert us.out(pr.REGISTER, 0, A) == GOOD
    rival.out(pr.REGISTER, 0, B)
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
    assert us.out(pr.PREEMPT, A, A, pr.EXCLUSIVE_ACCESS) == GOOD
    assert view() == View({**BOTH, 'sdc': B}, (A, pr.EXCLUSIVE_ACCESS),
                          {'us'})
    assert not is_suspended()


@pytest.mark.parametrize('type_', ALL_REGISTRANTS, ids=TYPES.get)
def test_preempting_all_registrants_leaves_all_our_paths(us, rival, type_):
    rival.out(pr.REGISTER, 0, B)
    rival.out(pr.RESERVE, B, type_=type_)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.PREEMPT, A, 0, type_) == GOOD
    assert view() == View(BOTH, (0, type_), {'us'})
    assert not is_suspended()


def test_release_with_the_holder_gone_and_this_multipathd(us, multipathd):
    """A multipathd before 0.13 does not know whether the reservation is
    ours; mpathpersist 0.9.4 guesses that it is, and clears the disk."""
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    held = holder()
    set_state(held, 'offline')
    before = view()
    if multipathd.knows_the_holder():
        assert us.out(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
        assert view() == View({other_than(held): A}, None, set())
        return
    assert us.out(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS) == FAILED
    assert view() == before
    set_state(held, 'running')
    wait_until(lambda: us.out(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS)
               == GOOD, 'the holding path is back')
    assert view() == View(BOTH, None, set())


def holder():
    """The path by which we hold the reservation."""
    for name in PATHS:
        key, type_ = by_nexus(name, direct.reservation)
        reply = by_nexus(name, direct.out, pr.RESERVE, key, 0, type_)
        if reply.status == pr.GOOD:
            return name
    raise AssertionError('no path holds it')


def test_register_with_no_path_tells_multipathd_nothing(us, multipathd):
    """mpathpersist 0.9.4 leaves the key with multipathd."""
    for name in PATHS:
        set_state(name, 'offline')
    assert us.out(pr.REGISTER, 0, A) == FAILED
    assert (multipathd.key(), multipathd.registers()) == ('none', False)
    for name in PATHS:
        multipathd.set_state(name, 'running')
    assert view() == EMPTY


class Newer:
    """Answers as multipathd 0.13 does, by means of the one that runs: it
    knows whether this host holds the reservation."""

    def __init__(self):
        self.holds = False

    def __call__(self, command, pid):
        words = command.split()
        if words[0] in ('setprhold', 'unsetprhold'):
            self.holds = words[0] == 'setprhold'
            return 'ok\n'
        if words[0] == 'getprhold':
            return 'set\n' if self.holds else 'unset\n'
        return None


@pytest.fixture
def newer(relay, tmp_path):
    return relay(str(tmp_path / 'm'), answer=Newer())


def through(relay_path):
    return {**os.environ, 'MULTIPATH_SOCKET_NAME': relay_path}


def test_release_with_the_holder_gone(multipathd, serve, newer, rival):
    helper, us = serve(env=through(newer.path))
    rival.out(pr.REGISTER, 0, B)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    held = holder()
    multipathd.set_state(held, 'offline')
    # A type that it is not held with is no reason to do anything.
    assert us.out(pr.RELEASE, A, type_=pr.WRITE_EXCLUSIVE) == CONFLICT
    assert view().reservation == (A, pr.EXCLUSIVE_ACCESS)
    # Repeating it is what the holder may do.
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    assert us.out(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    assert view() == View({other_than(held): A, 'sdc': B}, None, set())
    assert not is_suspended()
    assert not newer.answer.holds
    set_state(held, 'running')
    wait_until(lambda: view().keys == {**BOTH, 'sdc': B},
               'multipathd registers ' + held)


def test_another_key_with_the_holder_gone(multipathd, serve, newer):
    helper, us = serve(env=through(newer.path))
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
    held = holder()
    multipathd.set_state(held, 'offline')
    assert us.out(pr.REGISTER, A, A2) == GOOD
    assert view() == View({other_than(held): A2},
                          (A2, pr.WRITE_EXCLUSIVE_RO), {'us'})
    set_state(held, 'running')
    wait_until(lambda: view().keys == {'sda': A2, 'sdb': A2},
               'multipathd registers ' + held)


def test_unregister_with_the_holder_gone(multipathd, serve, newer):
    helper, us = serve(env=through(newer.path))
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    held = holder()
    multipathd.set_state(held, 'offline')
    assert us.out(pr.REGISTER, A, 0) == GOOD
    assert view() == EMPTY
    assert not is_suspended()
    multipathd.set_state(held, 'running')
    assert view() == EMPTY


class Strike:
    """Does something to the helper while the map is suspended."""

    def __init__(self, what):
        self.what = what

    def __call__(self, command, pid):
        if not command.startswith('suspend'):
            return None
        answer = ask(command)
        assert is_suspended()
        self.what(pid)
        return answer


def test_a_map_does_not_stay_suspended_when_the_helper_dies(
        multipathd, serve, relay, tmp_path):
    """A worker, that is; for more than that there is dmsetup resume."""
    between = relay(str(tmp_path / 'm'), answer=Strike(
        lambda pid: os.kill(pid, signal.SIGKILL)))
    helper, us = serve(env=through(between.path))
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    assert us.out(pr.PREEMPT, A, A, pr.EXCLUSIVE_ACCESS) == FAILED
    assert pr.sense_code(us.reply.sense) == LU_COMMUNICATION_FAILURE
    wait_until(lambda: not is_suspended(), 'the map is resumed')
    assert 'resume map mpatha' in between.commands
    assert us.out(pr.RELEASE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD


def test_a_map_does_not_stay_suspended_when_the_helper_is_told_to_end(
        multipathd, serve, relay, tmp_path):
    ends = []
    between = relay(str(tmp_path / 'm'), answer=Strike(
        lambda pid: ends[0].process.terminate()))
    helper, us = serve(env=through(between.path))
    ends.append(helper)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    assert us.out(pr.PREEMPT, A, A, pr.WRITE_EXCLUSIVE) == GOOD
    assert helper.process.wait(60) == 0
    assert not is_suspended()
    assert view() == View(BOTH, (A, pr.WRITE_EXCLUSIVE), {'us'})


# Paths that appear, and go for good. ----------------------------------------

TARGET = '/sys/kernel/config/target'


@pytest.fixture
def nexus():
    """A function that makes a fourth path to the disk, /dev/sdd."""
    tpgt = TARGET + '/loopback/naa.5001405000000004/tpgt_1'
    link = tpgt + '/lun/lun_0/disk0'

    def make():
        os.makedirs(tpgt + '/lun/lun_0')
        with open(tpgt + '/nexus', 'w') as f:
            f.write('naa.6001405000000004\n')
        os.symlink(TARGET + '/core/fileio_0/disk0', link)

    def remove():
        if os.path.exists(link):
            os.unlink(link)
            os.rmdir(tpgt + '/lun/lun_0')
            with open(tpgt + '/nexus', 'w') as f:
                f.write('NULL\n')
            os.rmdir(tpgt)
            os.rmdir(os.path.dirname(tpgt))

    yield make, remove
    remove()


def test_a_new_path_is_registered_and_used(us, multipathd, nexus):
    make, remove = nexus
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
    make()
    multipathd.wait_path('sdd', 'active ready running')
    wait_until(lambda: view().keys == {**BOTH, 'sdd': A},
               'multipathd registers sdd')
    assert us.out(pr.REGISTER, A, A2) == GOOD
    assert view() == View(dict.fromkeys((*PATHS, 'sdd'), A2),
                          (A2, pr.WRITE_EXCLUSIVE_RO), {'us'})
    remove()
    wait_until(lambda: multipathd.path('sdd') is None, 'sdd goes')
    assert us.out(pr.REGISTER, A2, 0) == GOOD
    assert view() == EMPTY


# What a rival does meanwhile, or with the same key. -------------------------

@pytest.mark.parametrize('is_new', [False, True], ids=['knows', 'started-anew'])
def test_a_reservation_of_another_host_with_our_key_stays(us, multipathd,
                                                          rival, is_new):
    """As after a live migration. All paths are there, so the disk knows who
    holds; a multipathd since 0.13 that is started anew takes it for ours."""
    type_ = pr.WRITE_EXCLUSIVE_RO
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert rival.out(pr.REGISTER, 0, A) == GOOD
    assert rival.out(pr.RESERVE, A, type_=type_) == GOOD
    if is_new:
        multipathd.stop()
        multipathd.start()
    theirs = (A, type_), {'rival'}
    assert us.out(pr.RELEASE, A, type_=type_) == GOOD
    assert view() == View({**BOTH, 'sdc': A}, *theirs)
    assert us.out(pr.REGISTER, A, A2) == GOOD
    assert view() == View({**dict.fromkeys(PATHS, A2), 'sdc': A}, *theirs)
    assert us.out(pr.REGISTER, A2, 0) == GOOD
    assert view() == View({'sdc': A}, *theirs)


def test_an_unregistration_is_not_undone(multipathd, serve, relay, tmp_path,
                                         rival):
    """multipathd does not answer when it is told, and meanwhile a rival
    reserves and releases: to be registered again would be to break in."""
    def silent(command, pid):
        if command.startswith('unsetprstatus') and not strikes:
            strikes.append(command)
            assert rival.out(pr.RESERVE, B, type_=type_) == GOOD
            assert rival.out(pr.RELEASE, B, type_=type_) == GOOD
            raise EOFError
        return None

    strikes, type_ = [], pr.WRITE_EXCLUSIVE
    helper, us = serve(env=through(relay(str(tmp_path / 'm'),
                                         answer=silent).path))
    assert rival.out(pr.REGISTER, 0, B) == GOOD
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=type_) == GOOD
    assert us.out(pr.REGISTER, A, 0) == FAILED
    assert strikes and view() == View({'sdc': B}, None, set())
    assert us.out(pr.REGISTER_AND_IGNORE, 0, 0) == GOOD
    assert (view(), multipathd.key(), multipathd.registers()) == (
        View({'sdc': B}, None, set()), 'none', False)


# A path between two states of asymmetric access. ----------------------------

@pytest.fixture
def access():
    """A function that sets /dev/sda's (0: active; 15: in transition)."""
    group = TARGET + '/core/fileio_0/disk0/alua/between'
    member = (TARGET + '/loopback/naa.5001405000000001/tpgt_1/lun/lun_0'
              '/alua_tg_pt_gp')

    def write(path, text):
        with open(path, 'w') as f:
            f.write(text + '\n')

    os.mkdir(group)
    write(group + '/tg_pt_gp_id', '2')
    write(member, 'between')
    yield lambda state: write(group + '/alua_access_state', str(state))
    write(group + '/alua_access_state', '0')
    write(member, 'NULL')
    os.rmdir(group)


@pytest.mark.parametrize('before, command, after', [
    (None, (pr.REGISTER, 0, A), View(BOTH, None, set())),
    (None, (pr.REGISTER_AND_IGNORE, 0, A), View(BOTH, None, set())),
    (A, (pr.REGISTER, A, A2),
     View(dict.fromkeys(PATHS, A2), (A2, pr.WRITE_EXCLUSIVE_RO), {'us'})),
    (A, (pr.REGISTER, A, 0), EMPTY),
    (A, (pr.PREEMPT, A, A, pr.EXCLUSIVE_ACCESS),
     View(BOTH, (A, pr.EXCLUSIVE_ACCESS), {'us'}))],
    ids=['register', 'ignore', 'change', 'unregister', 'preempt-own'])
def test_a_path_is_waited_for_whose_access_changes(
        multipathd, serve, access, before, command, after):
    """Until it, too, has taken the command, or multipathd has seen it fail,
    and so registers it when it is back. (mpathpersist 0.9.4 says GOOD in
    milliseconds, and leaves the path out for good.)"""
    helper, us = serve()
    if before:
        assert us.out(pr.REGISTER, 0, before) == GOOD
        assert us.out(pr.RESERVE, before, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
    fd = pr.open_device('/dev/sda')     # later it might wait for the disk
    access(15)
    codes = [pr.sense_code(direct.read_in(fd, pr.READ_KEYS).sense)
             for _ in range(4)]     # after some unit attentions
    os.close(fd)
    assert codes[-1] == '2/04/0A', codes
    began = time.monotonic()
    timer = threading.Timer(.8, access, [0])
    timer.start()
    try:
        assert us.out(*command) == GOOD
        took = time.monotonic() - began
    finally:
        timer.join()
    if 'sda is left out' not in helper.log():
        assert took >= .8 and view() == after
    elif 'sda comes back with the key' not in helper.log():
        wait_until(lambda: view() == after, 'multipathd registers sda')
    assert not is_suspended()


# multipathd. ----------------------------------------------------------------

def refused_without_a_trace(helper, us, before, code=LU_COMMUNICATION_FAILURE):
    """PERSISTENT RESERVE OUT fails, the disk is as it was, the log says why;
    PERSISTENT RESERVE IN works."""
    for action in (pr.REGISTER, pr.REGISTER_AND_IGNORE, pr.RESERVE,
                   pr.RELEASE, pr.CLEAR, pr.PREEMPT):
        assert us.out(action, A, A2, pr.WRITE_EXCLUSIVE) == FAILED
        assert us.reply.status == pr.CHECK_CONDITION
        assert pr.sense_code(us.reply.sense) == code
        assert view() == before
    assert 'multipathd' in helper.log()
    assert sorted(us.client.keys(us.fd)) == sorted(before.keys.values())


def test_without_multipathd_nothing_is_changed(multipathd, serve):
    helper, us = serve()
    assert us.out(pr.REGISTER, 0, A) == GOOD
    multipathd.stop()
    refused_without_a_trace(helper, us, View(BOTH, None, set()))
    assert us.client.request(CLEANUP, us.fd).status == pr.CHECK_CONDITION
    multipathd.start()
    # It has found the key in its file, and on the disk.
    assert multipathd.key() == '%#x' % A
    assert us.out(pr.REGISTER, A, 0) == GOOD
    assert (view(), multipathd.key()) == (EMPTY, 'none')


@configured(FIXED)
def test_a_fixed_key_that_matches(multipathd, us):
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert multipathd.registers()
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
    assert view() == View(BOTH, (A, pr.WRITE_EXCLUSIVE), {'us'})
    assert us.out(pr.RELEASE, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
    # multipathd cannot forget a key of its configuration, and need not.
    assert us.out(pr.REGISTER, A, 0) == GOOD
    assert (view(), multipathd.registers()) == (EMPTY, False)
    multipathd.set_state('sda', 'offline')
    assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == GOOD
    set_state('sda', 'running')
    wait_until(lambda: view().keys == BOTH, 'multipathd registers sda')
    assert us.out(pr.CLEAR, A) == GOOD
    assert (view(), multipathd.registers()) == (EMPTY, False)
    assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == GOOD
    assert us.client.request(CLEANUP, us.fd).status == pr.GOOD
    assert (view(), multipathd.registers()) == (EMPTY, False)


@configured(FIXED)
def test_a_fixed_key_that_does_not_match(multipathd, us):
    """mpathpersist 0.9.4 lets the third of these through."""
    assert us.out(pr.REGISTER, 0, A2) == FAILED
    assert view() == EMPTY
    assert us.out(pr.REGISTER_AND_IGNORE, 0, A2) == FAILED
    assert view() == EMPTY
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.REGISTER, A, A2) == FAILED
    assert view() == View(BOTH, None, set())
    assert multipathd.registers()


@configured('')
def test_without_reservation_key_in_its_configuration(multipathd, us):
    """mpathpersist 0.9.4 registers, and multipathd never knows."""
    assert us.out(pr.REGISTER, 0, A) == FAILED
    assert us.out(pr.REGISTER_AND_IGNORE, 0, A) == FAILED
    assert view() == EMPTY


def has_the_key(between):
    return any(command.startswith('setprkey map dm-0 key ')
               for command in between.commands)


def test_multipathd_by_the_name_in_the_environment(multipathd, serve, relay,
                                                   tmp_path):
    between = relay(str(tmp_path / 'm'))
    helper, us = serve(env=through(between.path))
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert has_the_key(between)
    between.close()
    # That name is the only one then.
    refused_without_a_trace(helper, us, View(BOTH, None, set()))


def test_multipathd_by_the_name_it_has_since_0_12(multipathd, us, relay):
    between = relay(NAME)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert has_the_key(between)
    assert view() == View(BOTH, None, set())


def test_multipathd_beside_the_helpers_socket(multipathd, serve, relay):
    helper, us = serve()
    between = relay(os.path.dirname(helper.path) + '/multipathd.socket')
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert has_the_key(between)
    assert view() == View(BOTH, None, set())


def test_a_multipathd_that_is_not_roots_is_none(multipathd, serve, relay,
                                                tmp_path):
    between = relay(str(tmp_path / 'm'), uid=pwd.getpwnam('nobody').pw_uid,
                    answer=lambda command, pid: 'ok\n')
    helper, us = serve(env=through(between.path))
    refused_without_a_trace(helper, us, EMPTY)
    assert between.commands == []


# Privileges. ----------------------------------------------------------------

def test_an_ordinary_user_may_only_look(multipathd, serve, rival):
    """multipathd takes commands of root only; the disks are the group's."""
    rival.out(pr.REGISTER, 0, B)
    helper, us = serve('-u', 'nobody', '-g', 'disk')
    refused_without_a_trace(helper, us, View({'sdc': B}, None, set()))
    assert 'root' in helper.log()
    for action in range(4):
        assert (us.client.read_in(us.fd, action)
                == on_path('sda', action))


def test_a_read_only_descriptor_can_look_but_not_touch(us):
    fd = pr.open_device(MAP, os.O_RDONLY)
    for action in (pr.REGISTER, pr.REGISTER_AND_IGNORE):
        reply = us.client.out(fd, action, 0, A)
        assert reply.status == pr.CHECK_CONDITION
        assert pr.sense_code(reply.sense) == '5/20/00'
    assert us.client.request(CLEANUP, fd).status == pr.CHECK_CONDITION
    assert us.client.keys(fd) == []
    assert view() == EMPTY
    os.close(fd)


def test_without_processes_for_clients(multipathd, serve):
    helper, us = serve('--single-process')
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE) == GOOD
    assert us.client.keys(us.fd) == [A, A]
    assert us.out(pr.CLEAR, A) == GOOD
    assert (view(), multipathd.key()) == (EMPTY, 'none')


def test_two_clients_of_one_map(multipathd, serve):
    """As two virtual machines never should, but might."""
    helper, us = serve()
    other = Helper(helper.client())
    for _ in range(3):
        for one, two in ((us, other), (other, us)):
            one.client.send(pr.pr_out(pr.REGISTER_AND_IGNORE), [one.fd])
            one.client.send(pr.parameters(0, A))
            assert two.out(pr.REGISTER_AND_IGNORE, 0, A2) == GOOD
            assert one.client.reply().status == pr.GOOD
            keys = view().keys
            assert keys in (BOTH, {'sda': A2, 'sdb': A2})
            assert multipathd.key() == '%#x' % keys['sda']
    other.close()
    other.client.close()


# qemu-pr-client check -------------------------------------------------------

def checked(helper, *command):
    """What it says of the map, and its exit status."""
    client = os.environ.get('CLIENT', os.path.join(
        os.path.dirname(__file__), '../../qemu-pr-client'))
    done = subprocess.run([client, '-k', helper.path, *(command or ['check']),
                           MAP], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          text=True, timeout=60)
    return done.stdout, done.returncode


def says(text, **paths):
    return all('  %s is %s\n' % path in text for path in paths.items())


FINDING, RESERVED, NO_RESERVATION_KEY, NOT_VISIBLE = 36, 41, 43, 44


def test_check_names_paths_and_holder(multipathd, serve, rival):
    helper, us = serve()
    text, status = checked(helper)
    assert 'multipath map mpatha (dm-0) of 2 paths' in text and status == 0
    assert 'knows no key' in text
    assert us.out(pr.REGISTER, 0, A) == GOOD
    text, status = checked(helper)
    assert 'multipathd registers key %#x on paths that come:' % A in text
    assert says(text, sda='registered', sdb='registered')
    assert status == 0 and 'hold' not in text
    assert us.out(pr.RESERVE, A, type_=pr.WRITE_EXCLUSIVE_RO) == GOOD
    text, status = checked(helper)
    assert 'This host holds the reservation' in text and status == 0
    rival.out(pr.REGISTER, 0, B)
    rival.out(pr.PREEMPT, B, A, pr.WRITE_EXCLUSIVE_RO)
    text, status = checked(helper)
    assert 'Another host holds the reservation' in text
    assert says(text, sda='not registered', sdb='not registered')
    assert status == RESERVED and (
        'reserved by somebody else, key %#x, write-exclusive-registrants-only: '
        'virtual machines here cannot write it until they register' % B
        in text)


def test_status_of_a_map_names_its_paths(multipathd, serve):
    helper, us = serve()
    assert us.out(pr.REGISTER, 0, A) == GOOD
    text, status = checked(helper, 'status')
    assert status == 0 and text.startswith('Disk of vendor LIO-ORG, ')
    found = json.loads(checked(helper, 'status', '--json')[0])
    assert found['disk']['vendor'] == 'LIO-ORG'
    assert [r['same_key'] for r in found['registrations']] == [2, 2]
    if {r['port'] for r in found['registrations']} != {0}:
        assert 'perhaps this host by sda' in text
        assert 'perhaps this host by sdb' in text


def without(*names):
    """A preexec_fn: in a mount namespace in which other nodes have these."""
    def change():
        libc = ctypes.CDLL(None, use_errno=True)
        for failed in (
                libc.unshare(0x20000),
                libc.mount(b'none', b'/', None, 0x44000, None),
                *(libc.mount(b'/dev/null', b'/dev/' + name.encode(), None,
                             0x1000, None) for name in names)):
            assert failed == 0, os.strerror(ctypes.get_errno())
    return change


def test_check_finds_that_the_helper_does_not_see_a_path(multipathd, start):
    helper = start(preexec_fn=without('sdb'))
    text, status = checked(helper)
    assert status == NOT_VISIBLE and re.search(
        r'the helper \(process [0-9]+, in a mount namespace of its own\) has '
        'another device as /dev/sdb, and cannot use that path', text), text
    assert '/dev/sda, ' not in text
    text, status = checked(start(preexec_fn=without('sda', 'sdb')))
    assert status == NOT_VISIBLE and '/dev/sda, ' in text


def test_check_of_a_partition_of_a_map_names_the_map(multipathd, serve):
    helper, us = serve()
    node = MAP + '-part1'
    wait_until(lambda: os.path.exists(node), 'kpartx makes ' + node)
    client = os.environ.get('CLIENT', os.path.join(
        os.path.dirname(__file__), '../../qemu-pr-client'))
    done = subprocess.run([client, '-k', helper.path, 'check', node],
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 42
    assert '%s is a partition; name %s\n' % (node, MAP) in done.stderr


def test_check_finds_the_path_that_is_not_registered(multipathd, serve):
    helper, us = serve()
    assert us.out(pr.REGISTER, 0, A) == GOOD
    assert by_nexus('sdb', direct.out, pr.REGISTER, A, 0).status == pr.GOOD
    text, status = checked(helper)
    assert says(text, sda='registered', sdb='not registered')
    assert 'may fail' in text and status == FINDING
    set_state('sdb', 'offline')
    text, status = checked(helper)
    assert says(text, sdb='offline: the kernel does not use it')
    assert status == 0


@configured('')
def test_check_finds_that_there_is_no_reservation_key(multipathd, serve):
    helper, us = serve()
    text, status = checked(helper)
    assert "'reservation_key file'" in text and status == NO_RESERVATION_KEY


def test_check_finds_that_multipathd_is_not_there(multipathd, serve):
    helper, us = serve()
    multipathd.stop()
    text, status = checked(helper)
    assert 'is it running' in text and status == FINDING


# What is no map. ------------------------------------------------------------

def refused_5_20_00(us, fd):
    for reply in (us.client.out(fd, pr.REGISTER, 0, A),
                  us.client.out(fd, pr.REGISTER_AND_IGNORE, 0, A),
                  us.client.read_in(fd, pr.READ_KEYS),
                  us.client.read_in(fd, pr.READ_FULL_STATUS)):
        assert reply.status == pr.CHECK_CONDITION
        assert pr.sense_code(reply.sense) == '5/20/00'
        assert reply.payload == b''
    assert view() == EMPTY


def test_a_partition_of_a_map_is_refused(us):
    """udev has kpartx make it, as on every Debian."""
    node = MAP + '-part1'
    wait_until(lambda: os.path.exists(node), 'kpartx makes ' + node)
    fd = pr.open_device(node)
    refused_5_20_00(us, fd)
    os.close(fd)


def test_a_linear_map_over_a_map_is_refused(us):
    run = subprocess.check_call
    run(['dmsetup', 'create', 'upper', '--table', '0 2048 linear %s 64' % MAP])
    fd = pr.open_device('/dev/mapper/upper')
    try:
        refused_5_20_00(us, fd)
    finally:
        os.close(fd)
        run(['dmsetup', 'remove', '--retry', 'upper'])


@pytest.fixture
def fake(request):
    """An fd of a linear map over the rival's disk, whose UUID says mpath, and
    whose name is the test's parameter."""
    run = subprocess.check_call
    options = ['--manglename', 'none', '--noudevsync', '--noudevrules']
    run(['dmsetup', *options, 'create', request.param, '--uuid', 'mpath-fake',
         '--table', '0 2048 linear %s 64' % RIVAL])
    for name in os.listdir('/sys/block'):
        try:
            with open('/sys/block/%s/dm/uuid' % name) as f:
                if f.read() == 'mpath-fake\n':
                    break
        except OSError:
            pass
    fd = pr.open_device('/dev/' + name)
    yield fd
    os.close(fd)
    run(['dmsetup', *options, 'remove', '--retry', request.param])


@pytest.mark.parametrize('fake', ['fake', 'x y', 'x"y', "x'y", 'x\ny',
                                  'mpatha" key 1', 'x\x7f'], indirect=True)
def test_what_only_looks_like_a_map_is_not_taken_for_one(us, fake):
    """multipathd does not know of it, so nothing may be changed through it;
    and its name must not become words of commands."""
    assert us.client.out(fake, pr.REGISTER, 0, A).status != pr.GOOD
    assert us.client.out(fake, pr.CLEAR, 0).status != pr.GOOD
    us.client.request(CLEANUP, fake)
    assert view() == EMPTY


# CLEANUP --------------------------------------------------------------------

@pytest.mark.parametrize('holds', [False, True], ids=['registered', 'holding'])
def test_cleanup_makes_the_host_forget(multipathd, us, rival, holds):
    rival.out(pr.REGISTER, 0, B)
    assert us.out(pr.REGISTER, 0, A) == GOOD
    if holds:
        assert us.out(pr.RESERVE, A, type_=pr.EXCLUSIVE_ACCESS) == GOOD
    reply = us.client.request(CLEANUP, us.fd)
    assert (reply.status, reply.payload) == (pr.GOOD, b'')
    assert view() == View({'sdc': B}, None, set())
    assert (multipathd.key(), multipathd.registers()) == ('none', False)
    assert us.client.request(CLEANUP, us.fd).status == pr.GOOD
    # Nor does multipathd register a path that comes back.
    multipathd.set_state('sda', 'offline')
    multipathd.set_state('sda', 'running')
    assert view() == View({'sdc': B}, None, set())


def test_cleanup_of_a_disk_does_nothing(us, rival):
    rival.out(pr.REGISTER, 0, B)
    fd = pr.open_device(RIVAL)
    assert us.client.request(CLEANUP, fd).status == pr.GOOD
    os.close(fd)
    assert view() == View({'sdc': B}, None, set())
