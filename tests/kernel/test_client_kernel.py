"""qemu-pr-client on a real Linux kernel with a real SCSI target (LIO).

What it prints is compared with what sg_persist does, which asks the disk
without a helper between. See test_kernel.py for the surroundings, and for
what must never be sent.
"""
import re

import pytest

from test_client import TYPES, ask, fake, reply, run, sensed
from test_kernel import (DISKS, GENERICS, clean, fds, linear, pytestmark,
                         sg_persist, stock)

ASKED = {'keys': '-k', 'reservation': '-r', 'status': '-s'}


@pytest.fixture
def client(start):
    helper = start()
    yield lambda *words: run('-k', helper.path, *words)
    assert not helper.crashes()


def sees_the_same(client, path):
    for words, option in ASKED.items():
        ours = client(words, path)
        assert ours.status == 0, ours
        theirs = sg_persist('-n', '-i', option, path)
        assert theirs.returncode == 0, theirs
        generation = int(re.search('generation ([0-9]+)', ours.out).group(1))
        keys = [int(n, 16) for n in re.findall('key 0x([0-9a-f]+)', ours.out)]
        found = [int(n, 16) for n in re.findall(
            '(?<!address: )0x([0-9a-f]+)\n', theirs.stdout)]
        assert int(re.search('generation=0x([0-9a-f]+)', theirs.stdout)
                   .group(1), 16) == generation
        if words == 'status':
            assert (re.findall('SAS ([0-9a-f]+)', ours.out)
                    == re.findall('SAS address: 0x([0-9a-f]+)',
                                  theirs.stdout))
            assert (ours.out.count('holds')
                    == theirs.stdout.count('Reservation holder'))
            found = [int(n, 16) for n in re.findall('Key=0x([0-9a-f]+)',
                                                    theirs.stdout)]
        assert keys == found, (ours.out, theirs.stdout)


@pytest.mark.parametrize('number, paths', [
    (1, DISKS), (3, GENERICS), (5, DISKS), (8, DISKS)])
def test_a_cluster_as_sg_persist_sees_it(client, number, paths):
    a, b = paths
    type_ = '--type=' + TYPES[number]
    sees_the_same(client, a)
    assert client('register', '--new-key=a11ce', a).status == 0
    assert client('register', '--new-key=1', a).status == 24
    assert client('reserve', '--key=a11ce', type_, a).status == 0
    assert sg_persist('-o', '-G', '-S', 'b0b', b).returncode == 0
    sees_the_same(client, a)
    sees_the_same(client, b)
    held = client('reservation', b).out
    assert '%s (type %d)' % (TYPES[number], number) in held
    if number < 7:          # else everybody who is registered holds it
        assert client('reserve', '--key=b0b', type_, b).status == 24
    victim = '--victim=' + ('a11ce' if number < 7 else '0')
    assert client('preempt', '--key=b0b', victim, type_, b).status == 0
    told = client('release', '--key=a11ce', type_, a)
    assert told.status == 6 and '6/2A/05' in told.err
    sees_the_same(client, b)
    assert client('release', '--key=b0b', type_, b).status == 0
    assert client('clear', '--key=b0b', b).status == 0
    sees_the_same(client, b)


def test_the_capabilities_are_those_that_sg_persist_sees(client):
    ours = client('capabilities', '/dev/sda').out
    theirs = sg_persist('-n', '-i', '-c', '/dev/sda').stdout
    for name in 'PTPL_C', 'PTPL_A', 'ATP_C', 'SIP_C', 'CRH':
        bit = re.search(r'\(%s\): ([01])' % name, theirs).group(1)
        assert re.search(r'%s .*\(%s\)' % ('yes' if bit == '1' else 'no',
                                           name), ours), name
    types = re.findall(r'yes +(\S+) \(type', ours)
    found = re.findall(r'(Write|Exclusive).*: 1$', theirs, re.M)
    assert len(types) == len(found) == 6, (ours, theirs)


def test_check_of_a_real_disk(client):
    for path in *DISKS, *GENERICS:
        done = client('check', path)
        assert done.status == 0 and done.err == '', done
        assert 'Nothing is wrong so far' in done.out


def test_it_speaks_to_qemus_own_helper(stock):
    path = stock.sock.getpeername()
    assert run('-k', path, 'check', '/dev/sda').status == 0
    assert run('-k', path, 'register', '--new-key=1', '/dev/sda').status == 0
    done = run('-k', path, 'reserve', '--key=2', '--type=1', '/dev/sda')
    assert done.status == 24
    assert '  key 0x1\n' in run('-k', path, 'keys', '/dev/sdb').out


@pytest.mark.parametrize('words', [
    ['check'], ['keys'], ['register', '--new-key=1']])
def test_what_the_helper_refuses_is_said(client, linear, words):
    for path, reason in [('/dev/sda1', 'the descriptor is of a partition'),
                         ('/dev/dm-0', 'a device-mapper device is served only')]:
        done = client(*words, path)
        assert done.status == 9, done
        assert '(5/20/00)' in done.err and reason in done.err, done
    assert client('keys', '/dev/sda').out.startswith('Nobody is registered')


def test_what_is_not_the_helpers_doing_is_said(fake):
    helper = fake(sensed('5/20/00'), sensed('B/00/06'))
    done = ask(helper, 'check', device='/dev/sda')
    assert done.status == 9
    assert 'the disk has no persistent reservations' in done.err
    done = ask(helper, 'check', device='/dev/sda')
    assert done.status == 11 and 'CAP_SYS_RAWIO' in done.err
