"""qemu-pr-client on a real Linux kernel with a real SCSI target (LIO).

What it prints is compared with what sg_persist does, which asks the disk
without a helper between. See test_kernel.py for the surroundings, and for
what must never be sent.
"""
import ctypes
import json
import os
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
    assert told.status == 24 and 'registered with key 0xa11ce' in told.err
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
                         ('/dev/dm-0', 'that is no multipath map')]:
        if words == ['check'] and path == '/dev/sda1':
            continue        # of which there is more to be said
        done = client(*words, path)
        assert done.status == 9, done
        assert '(5/20/00)' in done.err and reason in done.err, done
    assert client('keys', '/dev/sda').out.startswith('Nobody is registered')


def test_a_partition_of_a_real_disk_is_named(client):
    done = client('check', '/dev/sda1')
    assert done.status == 42
    assert '/dev/sda1 is a partition; name /dev/sda\n' in done.err
    done = client('keys', '/dev/sda1')
    assert done.status == 9 and 'name /dev/sda instead\n' in done.err


def test_a_real_disk_and_who_uses_it(client):
    a, b = DISKS
    for path, key in zip(DISKS, ('a', 'b')):
        assert client('register', '--new-key=' + key, path).status == 0
    for path in *DISKS, GENERICS[0]:
        seen = client('status', path).out
        assert re.match('Disk of vendor LIO-ORG, model [A-Z0-9a-z]+, serial number '
                        'prhelper-disk0\n', seen), seen
    seen = json.loads(client('status', '--json', a).out)['registrations']
    assert [r['key'] for r in seen] == ['0xa', '0xb']
    # LIO's loopback has no name in sysfs, and in later kernels no port.
    assert {r['this_host'] for r in seen} == {None}
    out = client('status', a).out
    assert 'is not known for sure' in out
    if seen[0]['port'] != seen[1]['port']:
        assert out.count('perhaps this host by sd') == 2


def test_a_reservation_of_somebody_else_is_in_the_way(client):
    a, b = DISKS
    client('register', '--new-key=dead', b)
    client('reserve', '--key=dead', '--type=exclusive-access', b)
    done = client('check', a)
    assert done.status == 41 and re.search(
        'reserved by .*key 0xdead, exclusive-access: virtual machines here '
        'can neither read nor write it', done.err), done
    cure = re.search('if its cluster is dead: (.*)', done.err).group(1)
    for command in cure.split(' && '):
        assert client(*command.split()[1:]).status == 0, command
    assert client('keys', a).out.startswith('Nobody is registered')
    assert client('check', a).status == 0


def test_a_reservation_moves_on_a_real_disk(client):
    a, b = DISKS
    client('register', '--new-key=b', b)
    line = client('status', a).out.splitlines()[2]
    port, initiator = re.search('at port ([0-9]+), ([^,]+)', line).groups()
    client('register', '--key=b', '--new-key=0', b)
    client('register', '--new-key=a', a)
    client('reserve', '--key=a', '--type=1', a)
    if port == '0':
        pytest.skip('this LIO names no ports')
    done = client('register-move', '--key=a', '--new-key=c', '--port=' + port,
                  '--initiator=' + initiator, a)
    assert done.status == 0 and done.err == '', done
    assert re.fullmatch('Now 2 registered: 0xa, 0xc; reserved by key 0xc, '
                        r'write-exclusive \(type 1\); generation \d+\n',
                        done.out)


def user_namespace():
    """As in a container that is not quite root: all capabilities, there."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
    for name, text in (('setgroups', 'deny'), ('uid_map', '0 0 1'),
                       ('gid_map', '0 0 1')):
        with open('/proc/self/' + name, 'w') as f:
            f.write(text)


def test_a_helper_of_a_user_namespace_is_found(start):
    if not os.path.exists('/proc/self/ns/user'):
        pytest.skip('this kernel has no user namespaces')
    helper = start(preexec_fn=user_namespace)
    done = run('-k', helper.path, 'check', '/dev/sda')
    assert done.status == 45, done
    assert 'in a user namespace of its own only' in done.err


def test_what_is_not_the_helpers_doing_is_said(fake):
    helper = fake(sensed('5/20/00'), sensed('B/00/06'))
    done = ask(helper, 'check', device='/dev/sda')
    assert done.status == 9
    assert 'the disk has no persistent reservations' in done.err
    done = ask(helper, 'check', device='/dev/sda')
    assert done.status == 11 and 'CAP_SYS_RAWIO' in done.err
