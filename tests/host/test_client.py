"""qemu-pr-client: what it sends, what it says, and its exit status.

The program under test is $CLIENT. It runs against the helper on the
simulated disk, where the answer should be the truth about a disk, and
against a Fake helper where the answer should be a lie.

Nothing here may take the words that it expects from the program's source:
they are the standard's (SPC-4), or the manual's.
"""
import array
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import namedtuple

import pytest

import sim
from fake_multipathd import Map, Multipathd
from helper import TOP, program
from launch import NOBODY, SYS_RAWIO, become, needs_root, wait_until
from prclient import (BUSY, CHECK_CONDITION, GOOD, RESERVATION_CONFLICT,
                      TASK_SET_FULL, parameters, pr_in, pr_out)
from test_daemon import ERRNO_REPLIES, HOST_REPLIES, failure

CLIENT = os.path.abspath(program('CLIENT', 'qemu-pr-client'))
HELPER = os.path.abspath(program('HELPER', 'qemu-pr-helper'))
SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
# The client whose /sys and /dev are the simulated disks', beside that helper.
SIM_CLIENT = os.path.abspath(
    os.path.join(os.path.dirname(SIM_HELPER), 'qemu-pr-client')
    if 'SIM_HELPER' in os.environ
    else program('SIM_CLIENT', 'build/sim/qemu-pr-client'))
TYPES = {1: 'write-exclusive', 3: 'exclusive-access',
         5: 'write-exclusive-registrants-only',
         6: 'exclusive-access-registrants-only',
         7: 'write-exclusive-all-registrants',
         8: 'exclusive-access-all-registrants'}
READS = ('keys', 'reservation', 'capabilities', 'status')

Result = namedtuple('Result', 'status out err')
Request = namedtuple('Request', 'cdb data fds flags')


def run(*arguments, stdout=subprocess.PIPE, client=CLIENT, **popen):
    """The client to its end; it must neither crash nor print nonsense."""
    done = subprocess.run([client, *arguments], stdin=subprocess.DEVNULL,
                          stdout=stdout, stderr=subprocess.PIPE, timeout=60,
                          **popen)
    result = Result(done.returncode, (done.stdout or b'').decode('ascii'),
                    done.stderr.decode('ascii'))
    assert not re.search('Sanitizer|runtime error', result.err), result
    assert result.status >= 0, result
    for text in result.out, result.err:
        assert re.fullmatch('[ -~\n]*', text), result
    for line in result.err.splitlines():
        assert line.startswith('qemu-pr-client: '), result
    return result


@pytest.fixture
def cluster(start, target, disks):
    """A function that runs the client on the simulated disk, by nexus."""
    helper = start(SIM_HELPER, env=target.env)

    def client(nexus, *arguments):
        return run('-k', helper.path, *arguments, disks.path(nexus))
    yield client
    assert not helper.crashes()


class Fake:
    """A helper that answers what it is told to, and keeps what it is asked.

    Each of the answers is the bytes for one command. After the last one, or
    a hello that is none, it leaves the client waiting, or ends the
    connection.
    """

    def __init__(self, path, answers=(), hello=bytes(4), ends=False, delay=0):
        self.path, self.answers, self.requests = str(path), list(answers), []
        self.hello, self.ends, self.delay = hello, ends, delay
        self.features = self.rest = None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                with self.listener.accept()[0] as sock:
                    with contextlib.suppress(EOFError, ConnectionError):
                        self.talk(sock)

    def read(self, sock, size):
        data = sock.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise EOFError
        return data

    def request(self, sock):
        fds = array.array('i')
        cdb, control, _, _ = sock.recvmsg(16, 1024)
        if not cdb:
            raise EOFError
        for _, _, data in control:
            fds.frombytes(data)
        flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds]
        for fd in fds:
            os.close(fd)
        length = cdb[7] << 8 | cdb[8] if cdb[0] == 0x5f else 0
        self.requests.append(Request(cdb, self.read(sock, length) if length
                                     else b'', len(fds), flags))

    def talk(self, sock):
        sock.sendall(self.hello)
        if len(self.hello) == 4:
            self.features = self.read(sock, 4)
            while self.answers:
                self.request(sock)
                time.sleep(self.delay)
                self.delay = 0
                sock.sendall(self.answers.pop(0))
        if not self.ends:
            self.rest = sock.recv(1000)
            sock.recv(1)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)


@pytest.fixture
def fake(tmp_path):
    fakes = []

    def begin(*answers, **how):
        fakes.append(Fake(tmp_path / ('fake%d' % len(fakes)), answers, **how))
        return fakes[-1]
    yield begin
    for one in fakes:
        one.close()


def reply(payload=b'', status=GOOD, sense=b'', size=None):
    return (struct.pack('>II', status, len(payload) if size is None else size)
            + sense.ljust(96, b'\0') + payload)


def sensed(code, descriptor=False):
    """The reply CHECK CONDITION with this sense code, '5/24/00'."""
    key, asc, ascq = (int(part, 16) for part in code.split('/'))
    if descriptor:
        return reply(status=CHECK_CONDITION,
                     sense=bytes([0x72, key, asc, ascq]))
    return reply(status=CHECK_CONDITION, sense=failure(code)[1])


def now(line):
    """What a command that changes something ends with."""
    return 'Now %s\n' % line


def ask(helper, *arguments, device='/dev/null', **popen):
    return run('-k', helper.path, *arguments, device, **popen)


# What is read after a command that changes something.
STATE = [reply(struct.pack('>II', 1, 0))] * 2


def full(key=0xa, holder=0, scope_type=0, port=1, transport=b'', length=None):
    """A full status descriptor, SPC-4 6.15.5."""
    return struct.pack('>Q4xBB4xHI', key, holder, scope_type, port,
                       len(transport) if length is None else length
                       ) + transport


def listing(*descriptors, generation=1, length=None):
    data = b''.join(descriptors)
    return struct.pack('>II', generation,
                       len(data) if length is None else length) + data


# What is sent. ---------------------------------------------------------------

@pytest.mark.parametrize('number, command', enumerate(READS))
def test_reads_are_sent_as_qemu_sends_them(fake, number, command):
    helper = fake(reply(status=RESERVATION_CONFLICT))
    assert ask(helper, command).status == 24
    assert helper.features == bytes(4)
    assert helper.requests == [
        (pr_in(number, 8192), b'', 1, helper.requests[0].flags)]
    flags = helper.requests[0].flags[0]
    assert flags & os.O_ACCMODE == os.O_RDONLY and flags & os.O_NONBLOCK


K, N = 0x1122334455667788, 0xffeeddccbbaa9988


def move(flags, port):
    """REGISTER AND MOVE's parameter list, SPC-4 6.16.4, to a SAS port."""
    return struct.pack('>QQxBHI', K, N, flags, port, 24) + bytes(
        [6, 0, 0, 0]) + bytes.fromhex('5001405000000001') + bytes(12)


KEY, TYPE = '--key=1122334455667788', '--type=6'
NEW_KEY, VICTIM = '--new-key=0xffeeddccbbaa9988', '--victim=FFEEDDCCBBAA9988'


@pytest.mark.parametrize('words, cdb, data', [
    (['register', NEW_KEY], pr_out(0), parameters(0, N)),
    (['register', KEY, NEW_KEY], pr_out(0), parameters(K, N)),
    (['register', KEY, '--new-key=0'], pr_out(0), parameters(K, 0)),
    (['register', NEW_KEY, '--aptpl'], pr_out(0), parameters(0, N, 1)),
    (['register-ignore', NEW_KEY], pr_out(6), parameters(0, N)),
    (['register-ignore', '--aptpl', NEW_KEY], pr_out(6), parameters(0, N, 1)),
    (['reserve', KEY, TYPE], pr_out(1, 6), parameters(K)),
    (['release', KEY, TYPE], pr_out(2, 6), parameters(K)),
    (['clear', KEY], pr_out(3), parameters(K)),
    (['preempt', KEY, VICTIM, TYPE], pr_out(4, 6), parameters(K, N)),
    (['preempt', KEY, '--victim=0', TYPE], pr_out(4, 6), parameters(K, 0)),
    (['preempt-abort', KEY, VICTIM, TYPE], pr_out(5, 6), parameters(K, N)),
    (['preempt', KEY, NEW_KEY, TYPE], pr_out(4, 6), parameters(K, N)),
    (['register-move', KEY, NEW_KEY, '--initiator=SAS 5001405000000001',
      '--port=7'], pr_out(7, length=48), move(0, 7)),
    (['register-move', KEY, NEW_KEY, '--initiator=sas:5001405000000001',
      '--port=7', '--unregister', '--aptpl'], pr_out(7, length=48),
     move(3, 7)),
])
def test_commands_are_sent_once_as_qemu_sends_them(fake, disks, words, cdb,
                                                   data):
    is_release = words[0] == 'release'
    helper = fake(*is_release * [sensed('6/29/00')], reply(), *STATE)
    assert ask(helper, *words, device=disks.path(0)) == (
        0, now('nobody is registered; not reserved; generation 1'), '')
    assert helper.features == bytes(4)
    # Whether it can release anything is asked; an answer is no condition.
    if is_release:
        assert helper.requests.pop(0).cdb == pr_in(1, 8192)
    assert helper.requests[0] == (cdb, data, 1, helper.requests[0].flags)
    # It is seen what that has left behind, and no more.
    assert [r.cdb for r in helper.requests[1:]] == [pr_in(0, 8192),
                                                    pr_in(1, 8192)]
    flags = helper.requests[0].flags[0]
    assert flags & os.O_ACCMODE == os.O_RDWR and flags & os.O_NONBLOCK


BEGINNINGS = {5: 'write-exclusive-r', 6: 'exclusive-access-reg',
              7: 'write-exclusive-a', 8: 'exclusive-access-all-registrant'}


@pytest.mark.parametrize('number', TYPES)
def test_types_by_name_by_number_and_by_beginning(fake, number):
    for word in str(number), TYPES[number], BEGINNINGS.get(number, '%d'
                                                           % number):
        helper = fake(reply(), *STATE)
        assert ask(helper, 'reserve', '--key=1', '--type', word).status == 0
        assert helper.requests[0].cdb[2] == number


# On a disk. ------------------------------------------------------------------

def test_a_cluster_forms_and_breaks(cluster):
    assert cluster(0, 'keys').out == 'Nobody is registered, generation 0\n'
    assert cluster(0, 'reservation').out == 'Not reserved, generation 0\n'
    assert cluster(0, 'status').out == 'Nobody is registered, generation 0\n'
    ours, theirs = ['--key=aaaa', '--type=5'], ['--key=bbbb', '--type=5']
    assert cluster(0, 'reserve', *ours).status == 24
    assert cluster(0, 'register', '--new-key=aaaa') == (
        0, now('1 registered: 0xaaaa; not reserved; generation 1'), '')
    again = cluster(0, 'register', '--new-key=cccc')
    assert again.status == 24 and 'register-ignore' in again.err
    assert cluster(0, 'register-ignore', '--new-key=aaaa').status == 0
    assert cluster(0, 'reserve', *ours).status == 0
    assert cluster(1, 'register', '--new-key=bbbb', '--aptpl').status == 0

    refused = cluster(1, 'reserve', *theirs)
    assert refused.status == 24 and refused.out == now(
        '2 registered: 0xaaaa, 0xbbbb; reserved by key 0xaaaa, '
        'write-exclusive-registrants-only (type 5); generation 3')
    assert ('in the way is the reservation of key 0xaaaa, write-exclusive-'
            'registrants-only (type 5): only who is registered can write\n'
            in refused.err)
    assert refused.err.startswith(
        'qemu-pr-client: reserve: RESERVATION CONFLICT (18)\n')
    assert cluster(1, 'keys').out == (
        'Registered, generation 3\n  key 0xaaaa\n  key 0xbbbb\n')
    assert cluster(1, 'reservation').out == (
        'Reserved, generation 3\n  key 0xaaaa, '
        'write-exclusive-registrants-only (type 5): '
        'only who is registered can write\n')
    assert cluster(1, 'status').out == (
        'Registered, generation 3\n'
        '  key 0xaaaa, at port 1, SAS 5001405000000000, '
        'holds write-exclusive-registrants-only (type 5)\n'
        '  key 0xbbbb, at port 1, SAS 5001405000000001\n')

    assert cluster(1, 'preempt', '--victim=aaaa', *theirs).status == 0
    assert cluster(1, 'preempt', '--victim=aaaa', *theirs).status == 24
    told = cluster(0, 'reserve', *ours)
    assert told.status == 6 and 'not carried out' in told.err
    assert 'UNIT ATTENTION, REGISTRATIONS PREEMPTED (6/2A/05)' in told.err
    assert cluster(0, 'register', '--new-key=aaaa').status == 0
    assert cluster(1, 'release', *theirs).status == 0
    assert '  key 0xaaaa\n' in cluster(1, 'keys').out
    assert cluster(1, 'clear', '--key=bbbb').status == 0
    seen = cluster(0, 'keys')       # the helper passes over the attentions
    assert seen.status == 0 and seen.err == ''
    assert seen.out.startswith('Nobody is registered')


def test_release_with_another_type(cluster):
    cluster(0, 'register', '--new-key=1')
    cluster(0, 'reserve', '--key=1', '--type=1')
    done = cluster(0, 'release', '--key=1', '--type=3')
    assert done.status == 5 and (
        'ILLEGAL REQUEST, INVALID RELEASE OF PERSISTENT RESERVATION '
        '(5/26/04)' in done.err)


def test_capabilities_in_words(cluster, fake):
    cluster(0, 'register', '--new-key=1', '--aptpl')
    out = cluster(0, 'capabilities').out
    assert re.search('yes +can keep .*PTPL_C', out)
    assert re.search('yes +does so now.*PTPL_A', out)
    assert re.search('no +.*SIP_C', out)
    for number, name in TYPES.items():
        assert re.search(r'yes +%s \(type %d\)' % (name, number), out)

    def one(byte2=0, byte3=0, types=b'\0\0'):
        helper = fake(reply(b'\0\x08' + bytes([byte2, byte3]) + types
                            + b'\0\0'))
        done = ask(helper, 'capabilities')
        assert done.status == 0
        return re.findall(r'yes +(?:.*\((\w+)\)|(\S+) \(type)', done.out)
    for bit, name in [(1, 'PTPL_C'), (4, 'ATP_C'), (8, 'SIP_C'), (16, 'CRH'),
                      (128, 'RLR_C')]:
        assert one(byte2=bit) == [(name, '')]
    assert one(byte3=1) == [('PTPL_A', '')]
    for number, name in TYPES.items():
        mask = struct.pack('<H', 1 << number)
        assert one(0, 0x80, mask) == [('', name)]
        assert one(0, 0, mask) == []        # not valid
    allow = fake(reply(bytes([0, 8, 0, 0x50, 0, 0, 0, 0])))
    assert re.search('5 +.*ALLOW COMMANDS', ask(allow, 'capabilities').out)


# How it ends. ----------------------------------------------------------------

@pytest.mark.parametrize('answer, status, words', [
    (sensed('5/24/00'), 5, 'ILLEGAL REQUEST, INVALID FIELD IN CDB (5/24/00)'),
    (sensed('6/29/00'), 6, 'UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE '
                           'RESET OCCURRED (6/29/00)'),
    (sensed('5/20/00'), 9, 'INVALID COMMAND OPERATION CODE (5/20/00)'),
    (sensed('B/08/00'), 11, 'ABORTED COMMAND, LOGICAL UNIT COMMUNICATION '
                            'FAILURE (B/08/00)'),
    (sensed('B/55/AA'), 11, ': ABORTED COMMAND (B/55/AA)'),
    (sensed('5/55/04'), 5, 'no room for another registration'),
    (sensed('2/04/0B'), 98, 'NOT READY, LOGICAL UNIT NOT ACCESSIBLE, TARGET '
                            'PORT IN STANDBY STATE (2/04/0B)'),
    (sensed('0/00/00'), 98, 'NO SENSE'), (sensed('F/12/34'), 98, 'F/12/34'),
    (reply(status=RESERVATION_CONFLICT), 24, 'RESERVATION CONFLICT (18)'),
    (reply(status=BUSY), 26, 'BUSY (08)'),
    (reply(status=TASK_SET_FULL), 26, 'TASK SET FULL (28)'),
    (reply(status=0x30), 98, 'ACA ACTIVE (30)'),
    (reply(status=0x77), 98, 'unknown status (77)'),
    (reply(status=CHECK_CONDITION), 98, 'without sense data'),
    (reply(status=CHECK_CONDITION, sense=b'\x7e' * 96), 98,
     'without sense data'),
])
def test_how_a_command_failed(fake, answer, status, words):
    helper = fake(*[answer] * 60)
    done = ask(helper, 'clear', '--key=1')
    assert done.status == status and words in done.err, done
    assert done.out == '' and [r.cdb[0] for r in helper.requests].count(
        0x5f) == 1
    assert ask(helper, 'keys').status == status
    assert ask(helper, 'check').status == status


def test_both_formats_of_sense_data(fake):
    for first in 0x70, 0x71, 0xf0:
        sense = bytes([first, 0, 0xe6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 3])
        helper = fake(reply(status=CHECK_CONDITION, sense=sense), *STATE)
        assert 'UNIT ATTENTION, RESERVATIONS PREEMPTED (6/2A/03)' in ask(
            helper, 'clear', '--key=1').err
    for first in 0x72, 0x73, 0xf2:
        sense = bytes([first, 0xf6, 0x2a, 4])
        helper = fake(reply(status=CHECK_CONDITION, sense=sense), *STATE)
        assert 'UNIT ATTENTION, RESERVATIONS RELEASED (6/2A/04)' in ask(
            helper, 'clear', '--key=1').err


SPC = {     # SPC-4 annex F.2
    '00/06': 'I/O PROCESS TERMINATED',
    '05/00': 'LOGICAL UNIT DOES NOT RESPOND TO SELECTION',
    '08/00': 'LOGICAL UNIT COMMUNICATION FAILURE',
    '11/00': 'UNRECOVERED READ ERROR',
    '1A/00': 'PARAMETER LIST LENGTH ERROR',
    '20/00': 'INVALID COMMAND OPERATION CODE',
    '24/00': 'INVALID FIELD IN CDB',
    '26/00': 'INVALID FIELD IN PARAMETER LIST',
    '26/04': 'INVALID RELEASE OF PERSISTENT RESERVATION',
    '27/07': 'SPACE ALLOCATION FAILED WRITE PROTECT',
    '29/00': 'POWER ON, RESET, OR BUS DEVICE RESET OCCURRED',
    '29/07': 'I_T NEXUS LOSS OCCURRED',
    '2A/03': 'RESERVATIONS PREEMPTED', '2A/04': 'RESERVATIONS RELEASED',
    '2A/05': 'REGISTRATIONS PREEMPTED',
    '2E/02': 'COMMAND TIMEOUT DURING PROCESSING',
    '2F/02': 'COMMANDS CLEARED BY DEVICE SERVER',
    '3A/00': 'MEDIUM NOT PRESENT', '44/00': 'INTERNAL TARGET FAILURE',
    '55/04': 'INSUFFICIENT REGISTRATION RESOURCES'}


@pytest.mark.parametrize('code', SPC)
def test_additional_sense_in_the_standards_words(fake, code):
    done = ask(fake(sensed('4/' + code), *STATE), 'clear', '--key=1')
    assert 'HARDWARE ERROR, %s (4/%s)' % (SPC[code], code) in done.err


def test_all_that_the_helper_says_by_itself_has_words(fake):
    said = {*ERRNO_REPLIES.values(), *HOST_REPLIES.values(), 'B/00/06',
            'B/08/00', '5/20/00', '5/24/00'}
    for code in filter(lambda c: isinstance(c, str), said):
        assert code.partition('/')[2] in SPC, code


def test_a_read_passes_over_unit_attentions(fake):
    helper = fake(sensed('6/29/00'), sensed('6/2A/03', True),
                  reply(listing(struct.pack('>Q', 0xa))))
    done = ask(helper, 'keys')
    assert done.status == 0 and '  key 0xa\n' in done.out
    assert '6/29/00' in done.err and '6/2A/03' in done.err
    assert len(helper.requests) == 3
    for_ever = fake(*[sensed('6/29/00')] * 50)
    assert ask(for_ever, 'keys').status == 6
    assert 2 < len(for_ever.requests) < 20


# Who is registered. ----------------------------------------------------------

FC = bytes(8) + bytes.fromhex('2100000e1e09ab01') + bytes(8)
SAS = b'\x06' + bytes(3) + bytes.fromhex('5001405000000001') + bytes(12)


def iscsi(name, form=0, length=None):
    name += bytes(-len(name) % 4)
    return struct.pack('>BxH', form << 6 | 5,
                       len(name) if length is None else length) + name


IQN = b'iqn.1994-05.com.example:a\0'
SRP = b'\x04' + bytes(range(23))


@pytest.mark.parametrize('transport, words', [
    (FC, 'FC 2100000e1e09ab01'), (SAS, 'SAS 5001405000000001'),
    (iscsi(IQN), 'iSCSI iqn.1994-05.com.example:a'),
    (iscsi(b'iqn.a:b,i,0x00023d000001\0', 1),
     'iSCSI iqn.a:b,i,0x00023d000001'),
    (SRP, 'TransportID ' + SRP.hex()),
    (b'\x45' + SAS[1:], 'iSCSI '),
    (b'\x46' + SAS[1:], 'TransportID 46' + SAS[1:].hex()),
    (b'\xc5' + SAS[1:], 'TransportID c5' + SAS[1:].hex()),
    (SAS[:20], 'TransportID ' + SAS[:20].hex()),
    (FC + bytes(4), 'TransportID ' + FC.hex() + '00000000'),
    (b'', 'TransportID '), (b'\5\0\0', 'TransportID 050000'),
    # lengths that lie, and a name that is none
    (iscsi(b'ab\0', length=0xffff), 'iSCSI ab'),
    (iscsi(b'abcd', length=2), 'iSCSI ab'),
    (iscsi(b'abcd'), 'iSCSI abcd'), (iscsi(b'abcd', length=5), 'iSCSI abcd'),
    (iscsi(b'a\x1b[2J\n\xe2\x80\xae\\ b'),
     r'iSCSI a\x1b[2J\x0a\xe2\x80\xae\x5c\x20b'),
])
def test_who_is_registered(fake, transport, words):
    helper = fake(reply(listing(full(0xa, 1, 0x05, 7, transport),
                                full(0x61 << 56, 2, 0, 7, SAS),
                                generation=9)))
    assert ask(helper, 'status') == (
        0, 'Registered, generation 9\n  key 0xa, at port 7, %s, holds '
        'write-exclusive-registrants-only (type 5)\n'
        '  key 0x6100000000000000, at all ports, SAS 5001405000000001\n'
        % words, '')


@pytest.mark.parametrize('scope_type, words', [
    (0x03, 'exclusive-access (type 3)'), (0x00, 'unknown type 0'),
    (0x0f, 'unknown type 15'),
    (0x21, 'unknown scope 2, write-exclusive (type 1)')])
def test_scope_and_type(fake, scope_type, words):
    helper = fake(reply(listing(struct.pack('>Q5xBxx', 0xa, scope_type))),
                  reply(listing(full(0xa, 1, scope_type, 1, SAS))))
    assert '  key 0xa, ' + words in ask(helper, 'reservation').out
    assert 'holds %s\n' % words in ask(helper, 'status').out


def test_no_more_than_fits(fake):
    keys = [struct.pack('>Q', n) for n in range(1, 1024)]
    helper = fake(reply(listing(*keys)),
                  reply(listing(*keys, length=80000)),
                  reply(listing(*[full(n, transport=SAS) for n in
                                  range(200)])[:8192]))
    assert '  key 0x3ff\n' in ask(helper, 'keys').out
    done = ask(helper, 'keys')
    assert done.status == 0 and '  key 0x3ff\n' in done.out
    assert 'and %d bytes that are cut off' % (80000 - 8184) in done.out
    done = ask(helper, 'status')
    assert done.status == 0 and '  key 0xa9,' in done.out
    assert 'and %d bytes that are cut off' % (200 * 48 - 170 * 48) in done.out


# Hostile disks and helpers. --------------------------------------------------

LIES = [
    ('keys', b''), ('keys', bytes(7)),
    ('keys', listing(length=8)), ('keys', listing(length=0xffffffff)),
    ('keys', listing(bytes(12))), ('keys', listing(bytes(8), length=9)),
    ('keys', listing(bytes(8184), length=8183)),
    ('reservation', bytes(4)), ('reservation', listing(bytes(15))),
    ('reservation', listing(bytes(8), length=16)),
    ('reservation', listing(bytes(32))),
    ('reservation', listing(length=0xffffffff)),
    ('capabilities', b''), ('capabilities', b'\0\x08' + bytes(5)),
    ('capabilities', bytes(8)), ('capabilities', b'\xff' * 8192),
    ('status', bytes(3)), ('status', listing(bytes(23))),
    ('status', listing(full(), length=24 + 1)),
    ('status', listing(full(length=1))),
    ('status', listing(full(length=0xffffffff))),
    ('status', listing(full(length=0xffffffe8))),
    ('status', listing(full(transport=SAS, length=25))),
    ('status', listing(full(transport=SAS), full(length=1))),
    ('status', listing(*[full()] * 20, b'x')),
    ('status', listing(full(length=0xfffffff0), bytes(100),
                       length=0xfffffff0)),
]


@pytest.mark.parametrize('command, payload', LIES)
def test_lengths_that_lie(fake, command, payload):
    done = ask(fake(reply(payload)), command)
    assert done.status == 97 and 'makes no sense' in done.err, done


def test_what_the_disk_adds_behind_its_list_is_not_shown(fake):
    helper = fake(reply(listing(struct.pack('>QQ', 1, 2), length=8)))
    assert ask(helper, 'keys') == (0, 'Registered, generation 1\n  key 0x1\n',
                                   '')


@pytest.mark.parametrize('answer, words', [
    (reply(bytes(8193)), '8193 bytes of data, where there may be 8192'),
    (reply(size=0xffffffff), '4294967295 bytes'),
    (reply(bytes(8), status=BUSY), '8 bytes of data, where there may be 0'),
    (reply(bytes(8), status=CHECK_CONDITION, sense=failure('5/24/00')[1]),
     'QEMU would abort'),
    (reply(status=0x102), 'a status of 258'),
    (reply(status=0xffffffff), 'a status of 4294967295'),
])
def test_replies_that_would_make_qemu_abort(fake, answer, words):
    done = ask(fake(answer), 'keys')
    assert done.status == 97 and words in done.err, done


def test_a_payload_for_a_write_would_make_qemu_abort(fake):
    done = ask(fake(reply(bytes(1))), 'clear', '--key=1')
    assert done.status == 97 and 'where there may be 0' in done.err


@pytest.mark.parametrize('answers, hello', [
    ([], b''), ([], bytes(3)), ([], bytes(4)), ([b''], bytes(4)),
    ([reply()[:103]], bytes(4)), ([reply(bytes(90))[:-1]], bytes(4))])
def test_a_helper_that_closes(fake, answers, hello):
    done = ask(fake(*answers, hello=hello, ends=True), 'keys')
    assert done.status == 2 and re.search(
        'closed the connection|Broken pipe|reset by peer', done.err), done


def test_a_helper_that_stops(fake, tmp_path):
    """All at once, as each takes its time."""
    begin = time.monotonic()
    full_backlog = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    full_backlog.bind(str(tmp_path / 'full'))
    full_backlog.listen(0)
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    waiting.connect(str(tmp_path / 'full'))
    slow = fake(*[reply(listing())] * 9, delay=5.5)
    slow.answers[1] = reply(b'\0\x08' + bytes(6))
    late = ['-t', '1', 'keys', '/dev/null']
    clients = [(subprocess.Popen([CLIENT, '-k', path, *arguments],
                                 stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True),
                status, words)
               for path, arguments, status, words in [
        (tmp_path / 'full', late, 2, 'does not accept'),
        (fake(hello=b'').path, late, 2, 'says nothing'),
        (fake(hello=bytes(3)).path, late, 2, 'says nothing'),
        (fake().path, late, 33, 'may still carry'),
        (fake(reply()[:103]).path, late, 33, 'may still carry'),
        (fake(reply(bytes(90))[:-1]).path, late, 33, 'may still carry'),
        (slow.path, ['check', '/dev/null'], 36, 'that is slow'),
    ]]
    for client, status, words in clients:
        out, err = client.communicate(timeout=30)
        assert client.returncode == status and words in err, (out, err)
    assert time.monotonic() - begin > 5
    full_backlog.close()
    waiting.close()


def test_a_disk_that_hangs(start, target, disks):
    helper = start(SIM_HELPER, env=target.env)
    with target.nexus(0).hanging():
        done = run('-k', helper.path, '--timeout=1', 'keys', disks.path(0))
        assert done.status == 33 and done.out == ''


# What cannot be reached, or opened, or written. ------------------------------

def test_no_helper(tmp_path):
    path = str(tmp_path / 'sock')
    done = run('-k', path, 'keys', '/dev/null')
    assert done.status == 2
    assert path in done.err and 'no helper was started' in done.err
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(path)
    done = run('-k', path, 'check', '/dev/null')
    assert done.status == 2 and 'has ended' in done.err and done.out == ''
    os.chmod(path, 0)
    done = run('-k', path, 'keys', '/dev/null',
               preexec_fn=become(without=(1, 2)))       # CAP_DAC_*
    assert done.status == 2 and 'Permission denied' in done.err


@needs_root
def test_a_stranger_does_not_get_the_device(fake):
    """A socket's credentials are those of who called listen() last."""
    impostor = fake(reply(listing()))
    os.seteuid(NOBODY.pw_uid)
    try:
        impostor.listener.listen()
    finally:
        os.seteuid(0)
    done = ask(impostor, 'keys')
    assert done.status == 2 and 'not trusted with the device' in done.err
    assert 'user %d' % NOBODY.pw_uid in done.err
    assert impostor.requests == []


def test_a_socket_by_a_relative_path(fake, tmp_path):
    helper = fake(reply(listing()))
    done = run('-k', os.path.basename(helper.path), 'keys', '/dev/null',
               cwd=tmp_path)
    assert done.status == 0


def test_no_device(fake, tmp_path):
    helper = fake()
    for words in ['keys'], ['clear', '--key=1'], ['check']:
        done = ask(helper, *words, device=str(tmp_path / 'none'))
        assert done.status == 15 and 'No such file' in done.err
    assert helper.requests == []


def test_output_that_cannot_be_written(fake):
    with open('/dev/full', 'w') as stdout:
        done = ask(fake(reply(listing())), 'keys', stdout=stdout)
    assert done.status == 98 and 'cannot write' in done.err
    with open('/dev/full', 'w') as stdout:
        assert run('--help', stdout=stdout).status == 98


@pytest.mark.parametrize('closed', range(1, 8))
def test_streams_that_are_closed_are_not_the_disk(fake, disks, closed):
    def close():
        for fd in range(3):
            if closed >> fd & 1:
                os.close(fd)

    def content():
        with open(disks.path(0), 'rb') as disk:
            return disk.read(4096)
    before = content()
    for words, answers in ((['keys'], [reply(listing())]),
                           (['clear', '--key=1'],
                            [reply(status=RESERVATION_CONFLICT), *STATE])):
        helper = fake(*answers)
        done = ask(helper, *words, device=disks.path(0), preexec_fn=close)
        assert done.status == (98 if closed & 2 else 24 if words[1:] else 0)
        wait_until(lambda: helper.rest is not None)
        assert len(helper.requests) == len(answers) and helper.rest == b''
    assert content() == before


# check. ----------------------------------------------------------------------

def test_check_says_that_all_is_well(host):
    host('sdb', 'register', '--new-key=b0b')
    host('sdb', 'reserve', '--key=b0b', '--type=7')
    done = host('sdb', 'check')
    assert done.status == 0 and done.err == ''
    assert re.search('answers: process [1-9][0-9]* of user %d, in [0-9]+ us'
                     % os.geteuid(), done.out)
    assert re.search('READ KEYS takes [0-9]+ us', done.out)
    assert ('  key 0xb0b, at port 1, SAS 5001405000000001, holds write-'
            'exclusive-all-registrants (type 7), this host by sdb\n'
            in done.out)
    assert 'and all of these hold it' in done.out
    assert re.search('no +does so now.*PTPL_A', done.out)
    assert 'Nothing is wrong so far' in done.out


def check_of(path, target):
    """Who answers, and who made the socket if that is somebody else."""
    done = ask(path, 'check', device=target)
    found = re.search(r'answers: process (\d+) of user (\d+), .*\n'
                      r'(?:The socket was made by process (\d+) of user)?',
                      done.out)
    return [number and int(number) for number in found.groups()]


def test_check_names_who_answers(start, target, disks):
    helper = start(SIM_HELPER, '--single-process', env=target.env)
    assert check_of(helper, disks.path(0)) == [helper.pid, os.geteuid(), None]
    helper = start(SIM_HELPER, env=target.env)
    session, uid, maker = check_of(helper, disks.path(0))
    assert session not in (helper.pid, os.getpid()) and uid == os.geteuid()
    assert maker == helper.pid


def test_check_does_not_take_a_service_manager_for_the_helper(
        target, disks, tmp_path):
    """Who made the socket may be systemd."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / 's'))
    listening.listen()
    process = subprocess.Popen(
        ['sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" --single-process',
         SIM_HELPER], env=target.env, close_fds=False,
        preexec_fn=lambda: os.dup2(listening.fileno(), 3))
    helper = namedtuple('Helper', 'path')(str(tmp_path / 's'))
    try:
        pid, uid, maker = check_of(helper, disks.path(0))
        assert (pid, uid) == (process.pid, os.geteuid())
        # The helper's, too, once it has called listen() by itself.
        assert maker in (os.getpid(), None)
    finally:
        process.terminate()
        assert process.wait(20) == 0
        listening.close()


@needs_root
def test_a_helper_of_another_user_on_root_s_socket(tmp_path):
    """As systemd starts one with DynamicUser=yes: root started it."""
    path = str(tmp_path / 's')
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        helper = subprocess.Popen(
            ['sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"', HELPER],
            close_fds=False, stderr=subprocess.DEVNULL, preexec_fn=lambda: (
                os.dup2(listening.fileno(), 3), become(NOBODY.pw_uid)()))
        try:
            for _ in range(2):
                done = run('-k', path, 'keys', '/dev/null')
                assert done.status == 11 and 'not trusted' not in done.err
        finally:
            helper.terminate()
            assert helper.wait(20) == 0


def test_check_changes_nothing(cluster, target):
    cluster(0, 'check')
    assert target.generation == 0
    assert target.nexus(0).cdb[0] == 0x5e
    assert cluster(0, 'keys').out == 'Nobody is registered, generation 0\n'


def test_check_names_what_is_refused(start):
    done = ask(start(SIM_HELPER), 'check')
    assert done.status == 11 and '(B/00/06)' in done.err
    assert 'the descriptor is not of a SCSI device' in done.err
    assert 'Nothing is wrong' not in done.out


def test_check_wants_what_clusters_use(fake):
    capable = b'\0\x08\0\x80\xca\x01\0\0'          # all types but 5
    answers = [reply(p) for p in (listing(), capable, listing(), listing())]
    done = ask(fake(*answers), 'check')
    assert done.status == 36 and 'Nothing is wrong' not in done.out
    assert 'write-exclusive-registrants-only' in done.err
    answers[1] = reply(b'\0\x08' + bytes(2) + capable[4:])   # not valid
    assert ask(fake(*answers), 'check').status == 0


def test_check_of_a_disk_of_spc_2(fake):
    """It has neither REPORT CAPABILITIES nor READ FULL STATUS."""
    one = listing(struct.pack('>Q', 0xa))
    helper = fake(reply(one), sensed('5/24/00'), reply(one), reply(listing()))
    done = ask(helper, 'check')
    assert done.status == 0 and '  key 0xa\n' in done.out
    assert [r.cdb[1] for r in helper.requests] == [0, 2, 0, 1]


@pytest.mark.parametrize('step', range(4))
@pytest.mark.parametrize('answer, status', [
    (reply(status=RESERVATION_CONFLICT), 24), (sensed('B/08/00'), 11),
    (reply(bytes(3)), 97)])
def test_check_ends_where_it_fails(fake, step, answer, status):
    answers = [reply(p) for p in (listing(), b'\0\x08' + bytes(6), listing(),
                                  listing())]
    helper = fake(*answers[:step], answer, *answers[step:])
    done = ask(helper, 'check')
    if step == 0 and status == 97:      # the first list is not looked at
        return
    assert done.status == status and 'Nothing is wrong' not in done.out
    assert len(helper.requests) == step + 1


# What is in the way. ---------------------------------------------------------

class Host:
    """A host with simulated disks, as far as sysfs knows it, and a helper.

    The nexuses of OURS are its paths to one disk, by SAS, the others are
    those of other hosts.
    """
    OURS = (0, 1)

    def __init__(self, directory, target):
        self.root, self.target = sim.Root(directory / 'root'), target
        self.env = dict(target.env, **self.root.env)
        self.helper = None

    def begin(self, start, **popen):
        self.helper = start(SIM_HELPER, env=self.env, **popen)
        return self

    def put(self, name, data):
        path = self.root.path('sys/' + name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.root.write(path, data)

    def link(self, name, to):
        path = self.root.path('sys/' + name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.path.relpath(self.root.path('sys/' + to),
                                   os.path.dirname(path)), path)

    def disk(self, nexus, adapter='pci/host%d', port=1, wwid='naa.6001',
             state='running'):
        """One with the number and the name of the nexus's."""
        name, number = sim.disk_name(nexus), '%d:%d' % sim.disk_number(nexus)
        scsi = 'devices/%s/target0:0:0/%d:0:0:0' % (
            adapter.replace('%d', str(nexus)), nexus)
        block = scsi + '/block/' + name
        sim.device(self.root.node(nexus), *sim.disk_number(nexus))
        self.put(block + '/dev', number + '\n')
        self.link(block + '/device', scsi)
        self.link('dev/block/' + number, block)
        self.link('block/' + name, block)
        for file, text in (('vendor', 'LIO-ORG \n'), ('state', state + '\n'),
                           ('model', 'disk \x1b[2J        \n'),
                           ('wwid', wwid + '\n'),
                           ('vpd_pg80', b'\0\x80\0\x0a  a serial'),
                           ('vpd_pg83', b'\0\x83\0\x08\x01\x14\0\x04\0\0'
                            + struct.pack('>H', port))):
            self.put(scsi + '/' + file, text)
        return block

    def sas(self, nexus):
        """Its adapter's driver says who it is."""
        self.put('class/scsi_host/host%d/host_sas_address' % nexus,
                 '0x%x\n' % (0x5001405000000000 + nexus))

    def __call__(self, disk, *arguments, helper=None):
        return run('-k', (helper or self.helper).path, *arguments,
                   '/dev/' + disk, client=SIM_CLIENT, env=self.env)

    def json(self, disk, *arguments, **how):
        done = self(disk, *arguments, '--json', **how)
        assert done.out.count('\n') == 1
        return json.loads(done.out)


@pytest.fixture
def host(start, target, tmp_path):
    one = Host(tmp_path, target)
    for nexus in Host.OURS:
        one.disk(nexus)
        one.sas(nexus)
    yield one.begin(start)
    assert not one.helper.crashes()


def test_status_says_who_is_who(host, cluster):
    host.helper, one = host.helper, host.helper
    for nexus, key in (0, 'aa'), (1, 'aa'), (2, 'bb'):
        cluster(nexus, 'register', '--new-key=' + key)
    cluster(2, 'reserve', '--key=bb', '--type=5')
    done = host('sda', 'status', helper=one)
    assert done.out == (
        'Disk of vendor LIO-ORG, model disk ?[2J, serial number a serial\n'
        'Registered, generation 3\n'
        '  key 0xaa, at port 1, SAS 5001405000000000, this host by sda, '
        'one of 2 with this key\n'
        '  key 0xaa, at port 1, SAS 5001405000000001, this host by sdb, '
        'one of 2 with this key\n'
        '  key 0xbb, at port 1, SAS 5001405000000002, '
        'holds write-exclusive-registrants-only (type 5)\n')
    seen = host.json('sda', 'status')
    assert seen['disk'] == {'vendor': 'LIO-ORG', 'model': 'disk ?[2J',
                            'serial': 'a serial'}
    assert seen['registrations'][1] == {
        'key': '0xaa', 'all_ports': False, 'port': 1,
        'initiator': 'SAS 5001405000000001', 'holds': False,
        'this_host': True, 'path': 'sdb', 'logged_in': True, 'same_key': 2,
        'same_initiator_and_port': 1}
    assert seen['registrations'][2] == {
        'key': '0xbb', 'all_ports': False, 'port': 1,
        'initiator': 'SAS 5001405000000002', 'holds': True, 'scope': 0,
        'type': 5, 'type_name': TYPES[5], 'this_host': False, 'path': None,
        'logged_in': None, 'same_key': 1, 'same_initiator_and_port': 1}


def test_another_disk_of_this_host_is_no_path(host):
    host.disk(2, wwid='naa.6002')
    host.sas(2)
    host('sdc', 'register', '--new-key=cc')
    assert 'this host' not in host('sda', 'status').out
    assert 'this host by sdc' in host('sdc', 'status').out


US = b'iqn.1994-05.com.example:us'


@pytest.mark.parametrize('adapter, name, text, transport', [
    ('pci/host%d/rport-0:0', 'class/fc_host/host4/port_name',
     '0x2100000e1e09ab01\n', FC),
    ('pci/host%d/port-0:0', 'class/sas_phy/phy-4:0/sas_address',
     '0x5001405000000001\n', SAS),
    ('platform/host%d/session9', 'class/iscsi_session/session9/initiatorname',
     US.decode() + '\n', iscsi(US + b'\0')),
    ('platform/host%d/session9', 'class/iscsi_session/session9/initiatorname',
     US.decode() + '\n', iscsi(US + b',i,0x00023d000001\0', 1)),
    ('platform/host%d/session9', 'class/iscsi_session/session9/initiatorname',
     US.decode().replace('us', 'US') + '\n', iscsi(US + b'\0')),
    ('pci/host9/vport-9:0-0/host%d/rport-0:0', 'class/fc_host/host4/port_name',
     '0x2100000e1e09ab01\n', FC),
])
def test_this_host_is_known_by_its_adapter(fake, target, tmp_path, adapter,
                                           name, text, transport):
    host = Host(tmp_path, target)
    host.disk(4, adapter)
    listed = reply(listing(full(1, transport=transport),
                           full(2, port=2, transport=transport),
                           full(3, transport=SRP)))
    done = host('sde', 'status', helper=fake(listed))
    assert done.status == 0
    assert done.out.count('perhaps this host by sde') == 2  # at its port
    assert 'is not known for sure' in done.out
    seen = host.json('sde', 'status', helper=fake(listed))['registrations']
    assert [r['this_host'] for r in seen] == [None, False, None]
    host.put(name, text)
    done = host('sde', 'status', helper=fake(listed))
    lines = done.out.splitlines()
    assert lines[2].endswith(', this host by sde')
    assert lines[3].endswith(
        ', this host, which has no path to this port any more')
    assert 'this host' not in lines[4] and len(lines) == 5
    seen = host.json('sde', 'status', helper=fake(listed))['registrations']
    assert [r['this_host'] for r in seen] == [True, True, False]
    assert [r['logged_in'] for r in seen] == [True, False, None]


def test_a_generic_device_is_one_path_of_several(fake, target, tmp_path):
    """This host's other paths to that disk are block devices to sysfs."""
    host = Host(tmp_path, target)
    for nexus in 4, 5:
        block = host.disk(nexus, port=nexus - 3)
        host.put('class/scsi_host/host%d/host_sas_address' % nexus,
                 '0x5001405000000001\n')
        generic = 'sg%d' % nexus
        host.link('class/scsi_generic/' + generic, block.replace(
            'block/' + sim.disk_name(nexus), 'scsi_generic/' + generic))
        host.link(block.replace('block/' + sim.disk_name(nexus),
                                'scsi_generic/%s/device' % generic),
                  os.path.dirname(os.path.dirname(block)))
        host.link('dev/char/21:%d' % nexus, 'class/scsi_generic/' + generic)
        sim.device(host.root.path('dev/' + generic), 21, nexus, character=True)
    listed = reply(listing(full(1, transport=SAS),
                           full(2, port=2, transport=SAS)))
    lines = host('sg4', 'status', helper=fake(listed)).out.splitlines()
    assert lines[0].startswith('Disk of vendor LIO-ORG, ')
    assert lines[2].endswith(', this host by sde')
    assert lines[3].endswith(', this host by sdf')
    seen = host.json('sg4', 'status', helper=fake(listed))['registrations']
    assert [r['logged_in'] for r in seen] == [True, True]


def test_sessions_that_are_no_more(fake, target, tmp_path):
    """What a registration leaves when its iSCSI session logs in anew."""
    host = Host(tmp_path, target)
    host.disk(4, 'platform/host%d/session9')
    host.put('class/iscsi_session/session9/initiatorname', US.decode() + '\n')
    them = b'iqn.1994-05.com.example:them'
    listed = reply(listing(*(
        full(1, transport=iscsi(name + b',i,0x00023d00000%d\0' % session, 1))
        for name in (US, them) for session in (1, 2))))
    done = host('sde', 'status', helper=fake(listed))
    assert done.out.count(
        'one of 2 of this initiator at this port, to which this host has 1 '
        'path: the others are of sessions that are no more\n') == 2
    assert done.out.count('of several sessions, or of some that are no more'
                          ) == 2
    seen = host.json('sde', 'status', helper=fake(listed))['registrations']
    assert [r['logged_in'] for r in seen] == 4 * [None]
    assert {r['same_initiator_and_port'] for r in seen} == {2}


KEPT_FROM = {1: 'cannot write it', 3: 'can neither read nor write it',
             5: 'cannot write it until they register',
             6: 'can neither read nor write it until they register',
             7: 'cannot write it until they register',
             8: 'can neither read nor write it until they register'}
RESERVED, PARTITION, NOT_VISIBLE, NO_RAWIO = 41, 42, 44, 45


@pytest.mark.parametrize('number', TYPES)
def test_check_finds_that_somebody_else_has_reserved(host, number):
    host.disk(2, wwid='naa.6002')       # which is to be another host's
    host('sdc', 'register', '--new-key=dead')
    host('sdc', 'reserve', '--key=dead', '--type=%d' % number)
    done = host('sda', 'check')
    assert done.status == RESERVED and 'Nothing is wrong' not in done.out
    assert ('reserved by somebody else, key 0x%s, %s: virtual machines here %s'
            '\n' % ('dead' if number < 7 else 0, TYPES[number],
                    KEPT_FROM[number])) in done.err
    seen = host.json('sda', 'check')
    assert seen['exit_status'] == RESERVED
    assert [f['exit_status'] for f in seen['findings']] == [RESERVED]
    # The cure is one.
    cure = seen['findings'][0]['cure'].partition(': ')[2]
    for command in cure.split(' && '):
        name, *arguments, disk = command.split()
        assert name == 'qemu-pr-client' and disk == '/dev/sda'
        assert arguments[:2] == ['-k', host.helper.path]
        assert host('sda', *arguments).status == 0, command
    assert host('sda', 'keys').out.startswith('Nobody is registered')
    assert host('sda', 'check').status == 0


@pytest.mark.parametrize('number', TYPES)
def test_check_does_not_take_this_host_for_somebody_else(host, number):
    host('sda', 'register', '--new-key=a')
    host('sda', 'reserve', '--key=a', '--type=%d' % number)
    assert host('sda', 'check').status == 0
    # What this host does by another path is no better.
    done = host('sdb', 'check')
    assert done.status == RESERVED
    host('sdb', 'register', '--new-key=b')
    assert host('sdb', 'check').status == (RESERVED if number in (1, 3) else 0)


def test_check_cannot_know_who_has_reserved(cluster):
    cluster(0, 'register', '--new-key=a')
    cluster(0, 'reserve', '--key=a', '--type=3')
    done = cluster(0, 'check')
    assert done.status == RESERVED
    assert 'reserved by key 0xa, exclusive-access: ' in done.err
    assert 'unless it is one of them, which cannot be known here' in done.err


def cut_off():
    """What check is told of a disk with more registrations than fit."""
    others = [full(n, transport=SAS[:4] + bytes(7) + bytes([n]) + bytes(12))
              for n in range(1, 181)]
    everybody = listing(full(1, 1, 5, transport=SAS[:4] + bytes(20)), *others)
    return [reply(payload) for payload in (
        listing(), b'\0\x08\0\x80\xea\x01\0\0', everybody[:8192],
        listing(struct.pack('>Q5xB2x', 1, 5)))]


def test_check_does_not_judge_by_a_list_that_is_cut_off(host, fake):
    """Who is not in what fits into 8192 bytes may be registered even so."""
    done = host('sda', 'check', helper=fake(*cut_off()))
    assert done.status == RESERVED and 'bytes that are cut off' in done.out
    assert 'somebody else' not in done.err
    assert 'unless it is one of them, which cannot be known' in done.err


@needs_root
@pytest.mark.parametrize('is_seen', [True, False])
def test_check_of_a_map_and_a_list_that_is_cut_off(host, fake, tmp_path,
                                                   is_seen):
    """What multipathd has registered need not be in it."""
    host.put('dev/block/253:0/dm/uuid', 'mpath-3600\n')
    host.put('dev/block/253:0/dm/name', 'mpatha\n')
    host.link('dev/block/253:0/slaves/sda', 'block/sda')
    sim.device(host.root.path('dev/dm-0'), 253, 0)
    multipathd = Multipathd(str(tmp_path / 'm'))
    multipathd.maps = [Map('dm-0', 'mpatha',
                           {'sda': host.target.nexus(0)})]
    multipathd.maps[0].key = 7 if is_seen else 0xdef
    multipathd.start()
    host.env['MULTIPATH_SOCKET_NAME'] = multipathd.address
    try:
        done = host('dm-0', 'check', helper=fake(*cut_off()))
    finally:
        multipathd.stop()
    assert 'is not registered' not in done.out + done.err
    assert 'somebody else' not in done.err
    assert ('which cannot be known' in done.err) == (not is_seen), done


@pytest.fixture
def mapped(host, start, tmp_path):
    """dm-0 of sda and sdb, of which sysfs knows the initiators."""
    host.put('dev/block/253:0/dm/uuid', 'mpath-3600\n')
    host.put('dev/block/253:0/dm/name', 'mpatha\n')
    sim.device(host.root.path('dev/dm-0'), 253, 0)
    for nexus in Host.OURS:
        name = sim.disk_name(nexus)
        host.link('dev/block/253:0/slaves/' + name, 'block/' + name)
        host.put('dev/block/%d:%d/holders/dm-0' % sim.disk_number(nexus), '')
    host.multipathd = Multipathd(str(tmp_path / 'm'))
    host.known = Map('dm-0', 'mpatha', {
        sim.disk_name(nexus): host.target.nexus(nexus) for nexus in Host.OURS})
    host.multipathd.maps = [host.known]
    host.multipathd.start()
    host.env['MULTIPATH_SOCKET_NAME'] = host.multipathd.address
    host.helper = start(SIM_HELPER, env=host.env)
    host.known.prflag = 'set'
    yield host
    host.multipathd.stop()


def are_registered(host, keys, type_, holder):
    for nexus, key in keys.items():
        host.target.nexus(nexus).key = key
    host.target.lun(0).type, host.target.lun(0).holder = type_, holder


def check_replies(key, type_, *fulls):
    """What check is told of a disk with a reservation."""
    return map(reply, (
        listing(struct.pack('>Q', 7)), b'\0\x08\0\x80\xea\x01\0\0',
        listing(*fulls), listing(struct.pack('>Q5xB2x', key, type_))))


@needs_root
@pytest.mark.parametrize('key', [0, 0xdef])
@pytest.mark.parametrize('number', (1, 5))
def test_check_knows_our_own_whatever_multipathd_has(mapped, number, key):
    """It has lost its file, or a worker was killed as it changed the key."""
    are_registered(mapped, {0: 0xabc, 1: 0xabc}, number, 1)
    mapped.known.key = key
    mapped.multipathd.on('^show config', 'configured')
    done = mapped('dm-0', 'check')
    assert 'register again' in done.err and 'reserved' not in done.err
    assert key or 'multipathd knows no key' in done.err


@needs_root
@pytest.mark.parametrize('version', ['0.9.4', '0.14.3'])
@pytest.mark.parametrize('holder', [0, 2])
def test_check_knows_who_holds_by_the_initiator(mapped, version, holder):
    """Of a path; of who is none multipathd knows more, perhaps."""
    are_registered(mapped, {0: 0xabc, 1: 0xabc, 2: 0xabc}, 1, holder)
    mapped.multipathd.version = version
    mapped.known.key, mapped.known.prhold = 0xabc, 'set'
    done = mapped('dm-0', 'check')
    assert 'sdb is registered' in done.out
    assert ('This host holds the reservation.' in done.out) == (holder == 0)
    # It may be this host's, by another adapter.
    assert ('This host holds the reservation, says' in done.out) == (
        holder == 2 and version != '0.9.4')
    assert ('cannot be known here' in done.err) == (
        holder == 2 and version == '0.9.4')
    assert '--victim' not in done.err       # which would be our own key


@needs_root
def test_a_twin_is_no_path_of_ours(mapped):
    """At whose port it is registered."""
    are_registered(mapped, {0: 0xabc, 2: 0xabc, 3: 0xabc}, 1, 2)
    mapped.known.key = 0xabc
    done = mapped('dm-0', 'check')
    assert '  sda is registered' in done.out
    assert '  sdb is not registered' in done.out


@needs_root
@pytest.mark.parametrize('key', [0, 7])
@pytest.mark.parametrize('port', [1, 2])
def test_names_that_the_disk_does_not_know_are_of_no_use(mapped, fake, port,
                                                         key):
    """Or a port: then multipathd's word counts."""
    mapped.known.key, mapped.known.prhold = key, 'set'
    mapped.multipathd.on('^show config', 'configured')
    other = SAS[:4] + bytes.fromhex('50014050000000%02x' % (
        0 if port == 2 else 0xee)) + bytes(12)
    done = mapped('dm-0', 'check', helper=fake(*check_replies(
        7, 5, full(7, 1, 5, port=port, transport=other))))
    assert ('register-ignore' in done.err) == (key == 0)
    assert ('This host holds the reservation, says multipathd.' in done.out
            ) == (key == 7)


@needs_root
def test_a_path_that_is_gone_holds_with_another_key(mapped, fake):
    """Which keeps this host's other paths from writing."""
    mapped.known.key, mapped.known.prhold = 7, 'set'
    us = SAS[:4] + bytes.fromhex('5001405000000000') + bytes(12)
    for key in 7, 0xdead:
        done = mapped('dm-0', 'check', helper=fake(*check_replies(
            key, 1, full(7, transport=us), full(7, transport=SAS),
            full(key, 1, 1, port=9, transport=us))))
        assert ('key 0xdead, write-exclusive' in done.err) == (key != 7)
        assert ('This host holds' in done.out) == (key == 7)


@needs_root
def test_no_cure_preempts_the_key_of_this_host(mapped, fake):
    """Of a path that is gone, while another one has an older key."""
    mapped.known.key, mapped.known.prhold = 7, 'unset'
    us, other = (SAS[:4] + bytes.fromhex('500140500000000%d' % n) + bytes(12)
                 for n in Host.OURS)
    done = mapped('dm-0', 'check', helper=fake(*check_replies(
        7, 1, full(6, transport=us), full(7, transport=other),
        full(7, 1, 1, port=9, transport=us))))
    assert 'reserved by' in done.err and '--victim' not in done.err
    assert 'the key of a virtual machine of this host' in done.err


@needs_root
def test_the_cure_goes_by_the_key_that_multipathd_has(mapped):
    """A path was left with an older one; the helper takes only the other."""
    are_registered(mapped, {0: 0xdef, 1: 0xabc, 2: 0xdead}, 1, 2)
    mapped.known.key = 0xabc
    done = mapped('dm-0', 'check')
    assert ' preempt --key=abc --victim=dead ' in done.err


@needs_root
def test_a_setting_that_is_missing_is_named_first(mapped):
    """As who was registered by another helper cannot do it again."""
    are_registered(mapped, {0: 0xabc, 1: 0xabc}, 5, 1)
    mapped.known.key, mapped.known.fixed = 0, None
    assert "'reservation_key file'" in mapped('dm-0', 'check').err


@needs_root
def test_paths_whose_ports_are_not_named(mapped, fake):
    """By LIO of Linux 6.12: of two by one initiator, one is registered."""
    for nexus in Host.OURS:
        mapped.put('class/scsi_host/host%d/host_sas_address' % nexus,
                   '0x5001405000000001\n')
    mapped.put('devices/pci/host1/target0:0:0/1:0:0:0/vpd_pg83',
               b'\0\x83\0\x08\x01\x14\0\x04\0\0\0\x02')
    mapped.known.key = 7
    done = mapped('dm-0', 'check', helper=fake(*check_replies(
        7, 5, full(7, 1, 5, port=0, transport=SAS))))
    assert done.out.count('one of 2 paths that the disk does not tell apart, '
                          'of which 1 is registered') == 2
    assert 'may fail' in done.err


def test_a_partition_is_named(host):
    block = host.disk(2)
    host.put(block + '/sdc1/partition', '1\n')
    host.link('dev/block/8:33', block + '/sdc1')
    sim.device(host.root.path('dev/sdc1'), 8, 33)
    done = host('sdc1', 'check')
    assert done.status == PARTITION and (
        '/dev/sdc1 is a partition; name /dev/sdc\n' in done.err)
    done = host('sdc1', 'keys')
    assert done.status == 9 and 'name /dev/sdc instead' in done.err
    assert host.target.commands() == 0


def test_a_partition_of_a_map_is_named(host):
    for minor, uuid, name in (0, 'mpath-3600', 'mpatha'), (
            1, 'part1-mpath-3600', 'mpatha1'):
        host.put('dev/block/253:%d/dm/uuid' % minor, uuid + '\n')
        host.put('dev/block/253:%d/dm/name' % minor, name + '\n')
        host.link('block/dm-%d' % minor, 'dev/block/253:%d' % minor)
    host.link('dev/block/253:1/slaves/dm-0', 'block/dm-0')
    sim.device(host.root.path('dev/dm-1'), 253, 1)
    done = host('dm-1', 'check')
    assert done.status == PARTITION
    assert '/dev/dm-1 is a partition; name /dev/mapper/mpatha\n' in done.err


@pytest.mark.parametrize('uuid, words', [
    ('mpath-3600', 'the disk has no persistent reservations'),
    ('LVM-abc', 'is no multipath map')])
def test_a_map_is_not_called_something_else(host, fake, uuid, words):
    """A map is served; it is its disk that does not know the command."""
    host.put('dev/block/253:0/dm/uuid', uuid + '\n')
    sim.device(host.root.path('dev/dm-0'), 253, 0)
    done = host('dm-0', 'keys', helper=fake(sensed('5/20/00')))
    assert done.status == 9 and words in done.err, done
    assert 'only if it is a multipath map' not in done.err


def test_check_names_a_helper_without_the_capability(start, target, tmp_path):
    host = Host(tmp_path, target)
    host.disk(0)
    host.begin(start, preexec_fn=become(without=(SYS_RAWIO,)))
    target.nexus(0).fail_ioctl(errno.EPERM, count=100)
    done = host('sda', 'check')
    assert done.status == NO_RAWIO and 'has no CAP_SYS_RAWIO' in done.err
    assert host.json('sda', 'check')['findings'][0]['exit_status'] == NO_RAWIO
    assert host('sda', 'keys').status == 11


def test_reserve_and_release_say_what_is_in_the_way(cluster):
    cluster(0, 'register', '--new-key=a')
    done = cluster(0, 'reserve', '--key=b', '--type=1')
    assert done.status == 24 and done.out == now(
        '1 registered: 0xa; not reserved; generation 1')
    assert 'nobody at all is registered with key 0xb' in done.err
    cluster(0, 'reserve', '--key=a', '--type=exclusive-access-all')
    cluster(1, 'register', '--new-key=a')
    done = cluster(1, 'reserve', '--key=a', '--type=1')
    assert done.status == 24 and (
        'in the way is the reservation of key 0x0, exclusive-access-all-'
        'registrants (type 8)' in done.err)
    assert done.out == now(
        '2 registered: 0xa (2 times); reserved by key 0x0, exclusive-access-'
        'all-registrants (type 8); generation 2')
    cluster(0, 'release', '--key=a', '--type=8')
    cluster(1, 'keys')          # a unit attention
    cluster(0, 'reserve', '--key=a', '--type=1')
    done = cluster(1, 'release', '--key=a', '--type=1')
    assert done.status == 0 and (
        'nothing was released: this host does not hold the reservation of '
        'key 0xa, write-exclusive (type 1)\n' in done.err)
    done = cluster(0, 'release', '--key=a', '--type=1')
    free = now('2 registered: 0xa (2 times); not reserved; generation 2')
    assert done == (0, free, '')
    done = cluster(0, 'release', '--key=a', '--type=1')
    assert done == (0, free, 'qemu-pr-client: nothing was released: nothing '
                    'was reserved\n')


def test_a_reservation_moves(cluster):
    cluster(0, 'register', '--new-key=a')
    cluster(0, 'reserve', '--key=a', '--type=3')
    to = ['--initiator=SAS 5001405000000002', '--port=1']
    done = cluster(0, 'register-move', '--key=a', '--new-key=b', *to)
    assert done.status == 0, done
    assert ('  key 0xb, at port 1, SAS 5001405000000002, holds exclusive-'
            in cluster(1, 'status').out)
    done = cluster(0, 'register-move', '--key=a', '--new-key=b', *to)
    assert done.status == 24 and 'does not hold' in done.err


def test_what_cannot_be_seen_afterwards_changes_nothing(fake):
    """The exit status is that of the command."""
    for answers in ([reply()], [reply(), sensed('2/04/0A')],
                    [reply(), STATE[0], reply(status=BUSY)],
                    [reply(), reply(b'123')]):
        done = ask(fake(*answers, ends=True), 'clear', '--key=1')
        assert done.status == 0 and done.out == ''
        assert 'cannot be seen' in done.err


def test_many_keys_are_one_line(fake):
    keys = [struct.pack('>Q', n) for n in range(1, 1024)]
    helper = fake(reply(), reply(listing(*keys)), STATE[0])
    assert ask(helper, 'clear', '--key=1').out == now(
        '1023 registered: 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, and more; '
        'not reserved; generation 1')


# JSON. -----------------------------------------------------------------------

def test_json_says_the_same(cluster):
    def seen(command):
        done = cluster(0, command, '--json')
        assert done.status == 0 and done.err == ''
        document = json.loads(done.out)
        assert document.pop('device').endswith('/disk0')
        return document
    assert seen('keys') == {'generation': 0, 'keys': [], 'bytes_missing': 0}
    assert seen('reservation') == {'generation': 0, 'reservation': None,
                                   'bytes_missing': 0}
    cluster(0, 'register', '--new-key=ffffffffffffffff')
    cluster(0, 'reserve', '--key=ffffffffffffffff', '--type=3')
    assert seen('keys')['keys'] == ['0xffffffffffffffff']
    assert seen('reservation')['reservation'] == {
        'key': '0xffffffffffffffff', 'scope': 0, 'type': 3,
        'type_name': 'exclusive-access'}
    assert seen('status') == {
        'disk': {'vendor': None, 'model': None, 'serial': None},
        'generation': 1, 'bytes_missing': 0, 'registrations': [{
            'key': '0xffffffffffffffff', 'all_ports': False, 'port': 1,
            'initiator': 'SAS 5001405000000000', 'holds': True, 'scope': 0,
            'type': 3, 'type_name': 'exclusive-access', 'this_host': None,
            'path': None, 'logged_in': None, 'same_key': 1,
            'same_initiator_and_port': 1}]}
    capabilities = seen('capabilities')
    assert capabilities.pop('types') == sorted(TYPES)
    assert capabilities == {
        'ptpl_capable': True, 'ptpl_activated': False,
        'all_target_ports_capable': False,
        'specify_initiator_ports_capable': False,
        'compatible_reservation_handling': True,
        'replace_lost_reservation_capable': False, 'allow_commands': 0}
    cluster(0, 'clear', '--key=ffffffffffffffff')
    check = seen('check')
    assert check['findings'] == [] and check['exit_status'] == 0
    assert set(check) == {
        'helper', 'read_keys_microseconds', 'disk', 'capabilities', 'status',
        'reservation', 'findings', 'exit_status'}
    assert set(check['helper']) == {'socket', 'pid', 'uid', 'microseconds'}


def test_json_is_whole_or_not_there(fake, tmp_path):
    for command, payload in LIES:
        done = ask(fake(reply(payload)), command, '--json')
        assert done.status == 97 and done.out == ''
    done = ask(fake(reply(status=RESERVATION_CONFLICT)), 'keys', '--json')
    assert done.status == 24 and done.out == ''
    # What check has seen until then is said.
    for answers in [sensed('B/08/00')], [reply(listing()), reply(bytes(3))]:
        done = ask(fake(*answers), 'check', '--json')
        assert json.loads(done.out)['exit_status'] == done.status != 0
    done = ask(fake(), 'check', '--json', device=str(tmp_path / 'none'))
    assert done.status == 15 and done.out == ''
    path = tmp_path / 'a "\\\n\xe9'
    path.touch()
    done = ask(fake(reply(listing())), 'keys', '--json', device=str(path))
    assert json.loads(done.out)['device'].encode('latin-1').decode(
        ) == str(path)


def test_json_of_what_a_disk_may_say(fake):
    nasty = iscsi(b'a"\x1b\\\xff\0')
    done = ask(fake(reply(listing(full(transport=nasty)))), 'status', '--json')
    assert json.loads(done.out)['registrations'][0]['initiator'] == (
        r'iSCSI a"\x1b\x5c\xff')


# watch. ----------------------------------------------------------------------

def test_watch_says_what_changes(cluster, start, target, disks):
    helper = start(SIM_HELPER, env=target.env)
    process = subprocess.Popen(
        [CLIENT, '-k', helper.path, 'watch', disks.path(5)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = threading.Timer(60, process.kill)
    limit.start()

    def line():
        text = process.stdout.readline()
        stamp = re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ', text)
        when = time.mktime(time.strptime(stamp.group(), '%Y-%m-%d %H:%M:%S '))
        assert abs(time.time() - when) < 20
        return text[stamp.end():]
    try:
        assert line() == (' now nobody is registered; not reserved; '
                          'generation 0\n')
        cluster(0, 'register', '--new-key=a')
        assert line() == (' registered 0xa; now 1 registered: 0xa; '
                          'not reserved; generation 1\n')
        cluster(0, 'reserve', '--key=a', '--type=1')
        assert line() == (' reserved; now 1 registered: 0xa; reserved by key '
                          '0xa, write-exclusive (type 1); generation 1\n')
        target.nexus(5).answer(status=BUSY, count=2)
        cluster(1, 'register', '--new-key=a')
        assert line().startswith(' registered 0xa; now 2 registered: 0xa (2 ')
        cluster(1, 'preempt', '--key=a', '--victim=a', '--type=3')
        assert line().startswith(
            ' gone 0xa; reserved anew; now 1 registered: 0xa; reserved by ')
        cluster(1, 'release', '--key=a', '--type=3')
        assert line() == (' released; now 1 registered: 0xa; not reserved; '
                          'generation 3\n')
        helper.process.terminate()
        assert process.wait(20) == 2
        assert 'BUSY' in process.stderr.read()
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def test_watch_takes_no_key_for_gone_that_did_not_come(fake):
    """The list says that it has two, and one has come."""
    key, not_reserved = struct.pack('>Q', 0xa), reply(listing())
    done = ask(fake(reply(listing(key, key)), not_reserved,
                    reply(listing(key, generation=2, length=16)),
                    not_reserved, ends=True), 'watch')
    assert done.out.count('\n') == 2
    assert 'gone' not in done.out and 'and more' in done.out, done.out


def test_a_list_of_which_nothing_has_come_is_not_nobody(fake):
    done = ask(fake(reply(), reply(listing(length=8)), reply(listing())),
               'register-ignore', '--new-key=a')
    assert 'whose keys have not come; not reserved' in done.out, done.out


def test_watch_ends_where_it_cannot_begin(fake):
    assert ask(fake(sensed('5/20/00')), 'watch').status == 9
    done = ask(fake(*STATE, reply(b'123')), 'watch')
    assert done.status == 97 and done.out.count('\n') == 1


# The command line. -----------------------------------------------------------

@pytest.mark.parametrize('arguments', [
    [], ['keys'], ['keys', '/dev/null', '/dev/null'], ['no-such', '/dev/null'],
    ['key', '/dev/null'], ['', '/dev/null'], ['--no-such', 'keys', '/dev/null'],
    ['-k'], ['-k', '', 'keys', '/dev/null'],
    ['-k', '/' + 'x' * 107, 'keys', '/dev/null'],
    *(['-t', t, 'keys', '/dev/null'] for t in
      ('0', '-1', '86401', '1s', '', ' 1', '99999999999999999999')),
    *(['register', '--new-key', key, '/dev/null'] for key in
      ('', 'x', '0x', '-1', ' 1', '1g', '0x1 ', '12345678123456789', '+1',
       '0x10000000000000000', '00000000000000001')),
    *(['reserve', '--key=1', '--type', type_, '/dev/null'] for type_ in
      ('', '0', '2', '4', '9', '15', '16', '-1', '5x', 'write', 'a', 'e',
       'write-exclusive-', 'exclusive-access-registrants-only-',
       'WRITE-EXCLUSIVE')),
    *(['register-move', '--key=1', '--new-key=2', '--initiator', who,
       '--port=1', '/dev/null'] for who in
      ('', 'SAS', 'SAS 5', 'SAS 50014050000000011', 'FC 500140500000000x',
       'iSCSI', 'iSCSI ', 'TransportID 0', 'TransportID ' + 514 * '0',
       'USB 5001405000000001', 'iSCSI ' + 260 * 'a')),
    *(['register-move', '--key=1', '--new-key=2', '--port', port,
       '--initiator=SAS 5001405000000001', '/dev/null'] for port in
      ('', '65536', '-1', 'x')),
    ['register-move', '--key=1', '--new-key=2', '--port=1', '/dev/null'],
    ['reserve', '--key=1', '--type=1', '--port=1', '/dev/null'],
    ['clear', '--key=1', '--json', '/dev/null'], ['watch', '--json',
                                                  '/dev/null'],
    ['help', 'no-such'], ['help', 'keys', 'status'],
    ['register', '/dev/null'], ['register', '--key=1', '/dev/null'],
    ['register-ignore', '--new-key=1', '--key=1', '/dev/null'],
    ['register', '--new-key=1', '--type=5', '/dev/null'],
    ['register', '--new-key=1', '--victim=5', '/dev/null'],
    ['reserve', '--key=1', '/dev/null'], ['reserve', '--type=1', '/dev/null'],
    ['reserve', '--key=1', '--type=1', '--aptpl', '/dev/null'],
    ['release', '--key=1', '/dev/null'], ['clear', '/dev/null'],
    ['clear', '--key=1', '--type=1', '/dev/null'],
    ['preempt', '--key=1', '--type=1', '/dev/null'],
    ['preempt', '--victim=1', '--type=1', '/dev/null'],
    ['preempt-abort', '--key=1', '--victim=1', '/dev/null'],
    ['preempt', '--key=1', '--new-key=1', '--victim=1', '--type=1',
     '/dev/null'],
    ['keys', '--key=1', '/dev/null'], ['check', '--aptpl', '/dev/null'],
    ['status', '--type=5', '/dev/null'],
])
def test_usage_errors(fake, arguments):
    helper = fake()
    if '-k' not in arguments:
        arguments = ['-k', helper.path, *arguments]
    done = run(*arguments)
    assert done.status == 1 and done.out == '' and done.err != '', done
    assert helper.features is None


# What each command needs, and what it may be given.
COMMANDS = {
    **{name: ((), ('json',)) for name in (*READS, 'check')},
    'watch': ((), ()), 'register': (('new-key',), ('key', 'aptpl')),
    'register-ignore': (('new-key',), ('aptpl',)),
    'register-move': (('key', 'new-key', 'initiator', 'port'),
                      ('unregister', 'aptpl')),
    'reserve': (('key', 'type'), ()), 'release': (('key', 'type'), ()),
    'clear': (('key',), ()), 'preempt': (('key', 'victim', 'type'), ()),
    'preempt-abort': (('key', 'victim', 'type'), ())}
OPTIONS = ['--socket', '--timeout', '--version', '--help'] + sorted(
    {'--' + name for both in COMMANDS.values() for names in both
     for name in names})


@pytest.mark.parametrize('command', COMMANDS)
def test_help_for_a_command(command):
    done = run('help', command)
    assert re.search(r'^[A-Z][^?.]*\.$', done.out, re.M), done     # a sentence
    assert done.status == 0 and done.err == ''
    usage = done.out.partition('\n\n')[0]
    needed, taken = COMMANDS[command]
    for name in needed:
        assert re.search(r'(?<!\[)--%s=' % name, usage), usage
    for name in taken:
        assert re.search(r'\[--%s[]=]' % name, usage), usage
    described = re.findall('^ +(?:-., )?--([a-z-]+)', done.out, re.M)
    assert sorted(described[described.index('timeout') + 1:]) == sorted(
        needed + taken)
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize('option', ['-h', '--help', '--he', 'help'])
def test_help(option):
    done = run(option)
    assert done.status == 0 and done.err == ''
    assert '/run/qemu-pr-helper.sock' in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    for word in (*TYPES.values(), *COMMANDS, *OPTIONS, 'help'):
        assert re.search(r'(?<![\w-])%s(?![\w-])' % re.escape(word), done.out
                         ), word


COMPLETION = os.path.join(TOP, 'contrib/bash-completion/qemu-pr-client')


def completions(*line):
    """What bash offers behind these words, of which the last has begun."""
    words = [word for one in line for word in re.split('(=)', one)
             if word or not one]        # as bash has them
    done = subprocess.run(
        ['bash', '-c', 'set -eu; . "$0"; COMP_CWORD=$#; '
         'COMP_WORDS=(qemu-pr-client "$@"); _qemu_pr_client; '
         'printf "%s\\n" "${COMPREPLY[@]}"', COMPLETION, *words],
        capture_output=True, text=True, check=True)
    assert done.stderr == ''
    return sorted(done.stdout.split())


@pytest.mark.skipif(shutil.which('bash') is None, reason='not installed: bash')
def test_bash_completes_what_there_is():
    assert completions('') == sorted([*COMMANDS, 'help'])
    assert completions('-k', '/x', '-t', '5', 'reg') == [
        'register', 'register-ignore', 'register-move']
    assert completions('help', '') == sorted(COMMANDS)
    everywhere = ['--socket', '--timeout']
    assert completions('--') == sorted([*everywhere, '--help', '--version'])
    for command, (needed, taken) in COMMANDS.items():
        assert completions(command, '-') == sorted(
            everywhere + ['--' + name for name in needed + taken]), command
    for begun in (['reserve', '--key=1', '--type='],
                  ['reserve', '--type', ''], ['--type=', ]):
        assert completions(*begun) == sorted(TYPES.values())
    assert completions('reserve', '--type=write-exclusive-a') == [TYPES[7]]
    assert completions('clear', '--key=') == []
    assert '/dev/null' in completions('clear', '--key=1', '/dev/nul')
    assert '/dev/null' in completions('keys', '')
    assert '/dev/null' in completions('-k', '/dev/n')


def test_version():
    for option in '-V', '--version':
        done = run(option)
        assert done.status == 0 and done.err == ''
        assert re.match(r'qemu-pr-client .*\d', done.out)


@needs_root
@pytest.mark.parametrize('form', ['{}', './{}'])
def test_multipathd_beside_a_socket_by_a_relative_path(host, fake, form):
    host.put('dev/block/253:0/dm/uuid', 'mpath-3600\n')
    host.put('dev/block/253:0/dm/name', 'mpatha\n')
    host.link('dev/block/253:0/slaves/sda', 'block/sda')
    device = host.root.path('dev/dm-0')
    sim.device(device, 253, 0)
    directory, name = os.path.split(fake(*cut_off()).path)
    multipathd = Multipathd(os.path.join(directory, 'multipathd.socket'))
    multipathd.maps = [Map('dm-0', 'mpatha', {'sda': host.target.nexus(0)})]
    multipathd.maps[0].key = 7
    multipathd.start()
    try:
        done = run('-k', form.format(name), 'check', device,
                   client=SIM_CLIENT, env=host.env, cwd=directory)
    finally:
        multipathd.stop()
    assert 'does not say which key' not in done.err


def cure_of(host):
    """What is to be typed if the reservation is a dead cluster's."""
    finding, = [finding for finding in host.json('sda', 'check')['findings']
                if 'reserved by' in finding['text']]
    condition, commands = finding['cure'].split(': ')
    assert condition == 'if its cluster is dead'
    return commands.split(' && ')


@pytest.mark.parametrize('number', [1, 3])
def test_the_cure_takes_nothing_from_a_machine_of_this_host(host, number):
    host.disk(2, wwid='naa.6002')                   # another host's
    host('sdc', 'register', '--new-key=dead')
    host('sdc', 'reserve', '--key=dead', '--type=%d' % number)
    host('sda', 'register', '--new-key=a11ce')      # it cannot write, though
    for command in cure_of(host):
        program, *arguments, disk = command.split()
        assert host('sda', *arguments).status == 0, command
    assert 'Not reserved' in host('sda', 'reservation').out
    assert host.json('sda', 'keys')['keys'] == ['0xa11ce']


def test_the_cure_is_one_command_whatever_the_socket_is_called(host, tmp_path):
    host.disk(2, wwid='naa.6002')
    host('sdc', 'register', '--new-key=dead')
    host('sdc', 'reserve', '--key=dead', '--type=1')
    odd = str(tmp_path / 'my vm;touch x')
    os.symlink(host.helper.path, odd)
    done = run('-k', odd, 'check', '/dev/sda', client=SIM_CLIENT, env=host.env)
    assert ' -k SOCKET register-ignore ' in done.err, done
    assert ';touch x register' not in done.err


@pytest.mark.parametrize('error', [errno.EIO, errno.ENXIO, errno.ETIMEDOUT])
def test_no_capability_is_only_one_reason(host, target, error):
    target.nexus(0).fail_ioctl(error, 50)
    assert 'perhaps for want of CAP_SYS_RAWIO' in host('sda', 'keys').err


@pytest.mark.parametrize('option', [
    '--key=1', '--new-key=1', '--victim=1', '--type=1', '--aptpl', '--json'])
def test_an_option_that_is_there_twice(option):
    done = run('preempt', option, option, '/dev/null')
    name = option.partition('=')[0]
    assert done.status == 1 and name + ' is there twice' in done.err
