"""The wire protocol: every cut, every misplaced descriptor, every violation.

Each test runs against a helper with session processes and against one with
--single-process, on the simulated disk of sim_target.c.  Each ends with the
same question: is a bystander's connection unharmed, and has the helper given
back every process and descriptor?

The tests must not depend on root or on SCSI, and must not accept a violation
that is merely answered: the contract is that it closes that one connection.
"""
import array
import itertools
import os
import resource
import select
import signal
import socket
import struct
import time

import pytest

from helper import program
from prclient import (CHECK_CONDITION, GOOD, READ_KEYS, REGISTER_AND_IGNORE,
                      parameters, pr_in, pr_out, sense_code)

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
REGISTER_CDB = pr_out(REGISTER_AND_IGNORE)
READ_CDB = pr_in(READ_KEYS)
HELLO = bytes(4)


class Pipe:
    """A descriptor to send away that shows when its last copy is closed."""

    def __init__(self):
        self.reader, self.fd = os.pipe()

    def released(self):
        """Close our own copy; True once the helper has closed its copies."""
        os.close(self.fd)
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        gone = poll.poll(20000) and os.read(self.reader, 1) == b''
        os.close(self.reader)
        return gone


@pytest.fixture(params=['sessions', 'single-process'])
def helper(request, start, target, disks):
    options = []
    if request.param == 'single-process':
        options = ['--single-process']
    helper = start(SIM_HELPER, *options, env=target.env)
    fd = disks.open(255)
    bystander = helper.client()
    assert bystander.read_in(fd, READ_KEYS).status == GOOD
    helper.wait_sessions(1 - len(options))
    fds, sessions = helper.open_fds(), helper.sessions()

    def quiet():
        """Nothing is left of any client but the bystander."""
        return helper.wait_sessions(len(sessions)) and helper.wait_fds(fds)

    def serving():
        """The process that serves the only other client."""
        return (set(helper.sessions()) - set(sessions) or {helper.pid}).pop()
    helper.quiet, helper.serving = quiet, serving

    yield helper
    assert bystander.read_in(fd, READ_KEYS).status == GOOD
    assert quiet()
    bystander.close()
    assert helper.stop() == 0, helper.log()
    assert not helper.crashes()


@pytest.fixture
def disk(disks):
    return disks.open(0)


def connect(helper, **kwargs):
    return helper.client(timeout=10, **kwargs)


def send_pieces(client, data, cuts, fd, fd_at=0):
    """Send data cut there, each piece once the last was read.

    The descriptor goes with the piece that starts at byte fd_at.
    """
    for begin, end in zip([0, *cuts], [*cuts, len(data)]):
        client.send(data[begin:end], [fd] if begin == fd_at else [])
        assert client.drained()


def send_what_goes(client, data, fds=()):
    """Send although the helper may have closed already."""
    try:
        client.send(data, fds)
    except (BrokenPipeError, ConnectionResetError):
        pass


# ---- Cuts ------------------------------------------------------------------

@pytest.mark.parametrize('count', [1, 2, 3])
def test_hello_may_be_cut_anywhere(helper, disk, count):
    for cuts in itertools.combinations(range(1, 4), count):
        with connect(helper, hello=False) as client:
            assert len(client.read(4)) == 4
            send_pieces(client, HELLO, cuts, None, fd_at=None)
            assert client.read_in(disk, READ_KEYS).status == GOOD


@pytest.mark.parametrize('count', [1, 2, 39])
def test_request_may_be_cut_anywhere(helper, target, disk, count):
    with connect(helper) as client:
        for key, cuts in enumerate(
                itertools.combinations(range(1, 40), count), 1):
            send_pieces(client, REGISTER_CDB + parameters(0, key), cuts, disk)
            assert client.reply().status == GOOD
            assert target.nexus(0).key == key, cuts


def test_read_request_may_be_cut_anywhere(helper, disk):
    with connect(helper) as client:
        for cut in range(1, 16):
            send_pieces(client, READ_CDB, [cut], disk)
            assert client.reply().payload == bytes(8)


def test_descriptor_may_come_with_any_byte_of_the_cdb(helper, target, disk):
    data = REGISTER_CDB + parameters(0, 5)
    with connect(helper) as client:
        for at in range(16):
            for cuts in ([at], [at, at + 1], [at, 16], range(1, 40)):
                if at == 0:
                    cuts = [cut for cut in cuts if cut]
                target.nexus(0).key = 0
                send_pieces(client, data, cuts, disk, fd_at=at)
                assert client.reply().status == GOOD
                assert target.nexus(0).key == 5


def test_descriptor_may_come_with_cdb_and_list_in_one_message(
        helper, target, disk):
    with connect(helper) as client:
        client.send(REGISTER_CDB + parameters(0, 6), [disk])
        assert client.reply().status == GOOD
        assert target.nexus(0).key == 6


# ---- Descriptors -----------------------------------------------------------

def test_descriptor_is_closed_when_the_reply_is_there(helper, disk):
    with connect(helper) as client:
        for fd_ok in range(3):
            pipe = Pipe()
            reply = client.request(READ_CDB, pipe.fd)
            assert sense_code(reply.sense) == 'B/00/06'
            assert pipe.released()
        assert client.read_in(disk, READ_KEYS).status == GOOD


@pytest.mark.parametrize('cdb', [READ_CDB, REGISTER_CDB])
def test_request_without_descriptor_closes(helper, target, cdb):
    with connect(helper) as client:
        client.send(cdb)
        assert client.closed()
    assert target.nexus(0).commands == 0


@pytest.mark.parametrize('count', [2, 3, 4, 16, 253])
def test_more_than_one_descriptor_closes(helper, target, disk, count):
    pipe = Pipe()
    with connect(helper) as client:
        client.send(READ_CDB, [disk] + (count - 1) * [pipe.fd])
        assert client.closed()
        assert helper.quiet()
    assert pipe.released()
    assert target.nexus(0).commands == 0


def test_two_control_messages_with_a_descriptor_each_close(helper, target,
                                                           disk):
    pipe = Pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))
              for fd in (disk, pipe.fd)]
    with connect(helper) as client:
        client.sock.sendmsg([READ_CDB], rights)
        assert client.closed()
    assert pipe.released()
    assert target.nexus(0).commands == 0


def test_second_descriptor_on_a_later_byte_closes(helper, target, disk):
    for at in range(1, 16):
        pipe = Pipe()
        with connect(helper) as client:
            client.send(READ_CDB[:at], [disk])
            assert client.drained()
            send_what_goes(client, READ_CDB[at:], [pipe.fd])
            assert client.closed()
        assert pipe.released()
    assert target.nexus(0).commands == 0


def test_descriptor_with_the_hello_closes(helper):
    for at in range(4):
        pipe = Pipe()
        with connect(helper, hello=False) as client:
            client.read(4)
            if at:
                client.send(HELLO[:at])
                assert client.drained()
            client.send(HELLO[at:], [pipe.fd])
            assert client.closed()
        assert pipe.released()


def test_descriptor_with_the_parameter_list_closes(helper, target, disk):
    data = parameters(0, 7)
    for at in range(24):
        pipe = Pipe()
        with connect(helper) as client:
            client.send(REGISTER_CDB + data[:at], [disk])
            assert client.drained()
            client.send(data[at:], [pipe.fd])
            assert client.closed()
        assert pipe.released()
    assert target.nexus(0).commands == 0


@pytest.mark.parametrize('slots', [0, 1])
def test_descriptors_that_find_no_free_slot_close(helper, target, disk,
                                                  slots):
    """MSG_CTRUNC although there was room: too many are open already.

    One more is sent than there are slots, so with 1 the first does arrive.
    """
    pipe = Pipe()
    with connect(helper) as client:
        assert client.read_in(disk, READ_KEYS).status == GOOD
        pid = helper.serving()
        used = {int(fd) for fd in os.listdir('/proc/%d/fd' % pid)}
        limit = sorted(set(range(len(used) + 2)) - used)[slots]
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limits[1]))
        client.send(READ_CDB, [disk, pipe.fd][:slots + 1])
        assert client.closed()
        if pid == helper.pid:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert pipe.released()
    assert target.nexus(0).commands == 1
    with connect(helper) as client:
        assert client.read_in(disk, READ_KEYS).status == GOOD


# ---- Wrong frames ----------------------------------------------------------

def test_every_other_opcode_closes(helper, target, disk):
    for opcode in set(range(256)) - {0x5e, 0x5f, 0xff}:
        for cdb in (READ_CDB, REGISTER_CDB):
            pipe = Pipe()
            with connect(helper) as client:
                client.send(bytes([opcode]) + cdb[1:], [pipe.fd])
                assert client.closed(), hex(opcode)
            assert pipe.released()
    with connect(helper) as client:
        assert client.read_in(disk, READ_KEYS).status == GOOD
        assert client.out(disk, REGISTER_AND_IGNORE, 0, 1).status == GOOD
    assert target.nexus(0).commands == 2


@pytest.mark.parametrize('length', [8193, 8448, 32768, 65535])
@pytest.mark.parametrize('make', [pr_in, pr_out])
def test_length_over_8192_closes(helper, target, disk, make, length):
    cdb = bytearray(make(0))
    cdb[7:9] = struct.pack('>H', length)
    pipe = Pipe()
    with connect(helper) as client:
        client.send(cdb, [pipe.fd])
        assert client.closed()
    assert pipe.released()


@pytest.mark.parametrize('length', [0, 1, 7, 8, 9, 8191, 8192])
def test_payload_is_never_longer_than_the_allocation_length(
        helper, disk, length):
    with connect(helper) as client:
        reply = client.read_in(disk, READ_KEYS, length)
        assert reply.status == GOOD and reply.sense == bytes(96)
        assert reply.payload == bytes(min(length, 8))
        assert client.read_in(disk, READ_KEYS).status == GOOD


@pytest.mark.parametrize('length', [0, 1, 23, 25, 8191, 8192])
def test_parameter_list_of_any_length_reaches_the_device(
        helper, target, disk, length):
    with connect(helper) as client:
        reply = client.request(pr_out(REGISTER_AND_IGNORE, length=length),
                               disk, bytes(length))
        assert reply.status == CHECK_CONDITION and reply.payload == b''
        assert sense_code(reply.sense) == '5/1A/00'
        assert target.nexus(0).dxfer_len == length
        assert client.read_in(disk, READ_KEYS).status == GOOD


@pytest.mark.parametrize('list_length', [0, 24, 8192])
@pytest.mark.parametrize('high', [1, 0x100, 0xffff])
def test_list_length_over_16_bits_is_refused_but_its_list_is_read(
        helper, target, disk, high, list_length):
    with connect(helper) as client:
        length = high << 16 | list_length
        reply = client.request(pr_out(REGISTER_AND_IGNORE, length=length),
                               disk, bytes(list_length))
        assert reply.status == CHECK_CONDITION and reply.payload == b''
        assert sense_code(reply.sense) == '5/24/00'
        assert target.nexus(0).commands == 0
        assert client.read_in(disk, READ_KEYS).status == GOOD


def test_unknown_features_close(helper, disk):
    with connect(helper) as client:
        features = client.features
        assert client.read_in(disk, READ_KEYS).status == GOOD
    for bit in range(32):
        with connect(helper, hello=False) as client:
            client.read(4)
            client.send(struct.pack('>I', 1 << bit))
            if features >> bit & 1:
                assert client.read_in(disk, READ_KEYS).status == GOOD
            else:
                assert client.closed(), bit
    if features != 0xffffffff:
        with connect(helper, hello=False) as client:
            client.read(4)
            client.send(b'\xff\xff\xff\xff')
            assert client.closed()


# ---- Clients that leave, rush or stall -------------------------------------

STREAM = HELLO + REGISTER_CDB + parameters(0, 8)


def send_start(client, pipe, length):
    """The first bytes of hello and one request, its descriptor in place."""
    if length:
        client.send(STREAM[:min(length, 4)])
    if length > 4:
        client.send(STREAM[4:length], [pipe.fd])


def test_client_may_leave_after_any_byte(helper, target):
    for length in range(len(STREAM) + 1):
        for wait in (True, False):
            pipe = Pipe()
            with connect(helper, hello=False) as client:
                send_start(client, pipe, length)
                if wait:
                    assert client.drained()
            assert pipe.released(), length
    assert target.nexus(0).commands == 0


def test_client_that_stops_sending_after_any_byte_is_closed(helper):
    for length in range(len(STREAM) + 1):
        pipe = Pipe()
        with connect(helper, hello=False) as client:
            send_start(client, pipe, length)
            client.sock.shutdown(socket.SHUT_WR)
            client.read(4)
            if length == len(STREAM):
                reply = client.reply()
                assert sense_code(reply.sense) == 'B/00/06'
            assert client.closed()
            assert pipe.released()


def test_client_that_stops_receiving_harms_nobody(helper, disk):
    with connect(helper) as client:
        client.sock.shutdown(socket.SHUT_RD)
        client.send(READ_CDB, [disk])
        assert helper.quiet()


def send_all(client, disk):
    for key in range(1, 21):
        client.send(REGISTER_CDB, [disk])
        client.send(parameters(0, key))
        client.send(pr_in(READ_KEYS, key), [disk])


@pytest.mark.parametrize('at_once', [True, False])
def test_pipelined_requests_are_answered_in_order(helper, disk, at_once):
    """With at_once all of them wait in the socket before the first is read."""
    with connect(helper) as client:
        if at_once:
            os.kill(helper.serving(), signal.SIGSTOP)
        send_all(client, disk)
        if at_once:
            os.kill(helper.serving(), signal.SIGCONT)
        for key in range(1, 21):
            assert client.reply() == (GOOD, bytes(96), b'')
            expected = struct.pack('>IIQ', key, 8, key)
            assert client.reply() == (GOOD, bytes(96), expected[:key])


def test_requests_need_not_wait_for_the_hello(helper, disk):
    with connect(helper, hello=False) as client:
        client.send(HELLO)
        client.send(READ_CDB, [disk])
        client.read(4)
        assert client.reply().status == GOOD


def test_violation_behind_a_request_is_seen_after_its_reply(helper, disk):
    pipe = Pipe()
    with connect(helper) as client:
        client.send(READ_CDB, [disk])
        send_what_goes(client, bytes(16), [pipe.fd])
        assert client.reply().status == GOOD
        assert client.closed()
    assert pipe.released()


def test_client_that_never_reads_stalls_nobody_and_leaves_nothing(
        helper, target, disk):
    target.nexus(0).answer_resid(0, count=10000)    # 8192 bytes each time
    with connect(helper) as other, connect(helper) as client:
        client.sock.setblocking(False)
        refused = 0
        while refused < 10:                 # then the helper is stuck too
            try:
                client.send(READ_CDB, [disk])
                refused = 0
            except BlockingIOError:
                refused += 1
                time.sleep(0.01)
        reply = other.request(READ_CDB, disk)
        assert len(reply.payload) == 8192
        client.sock.settimeout(10)
        for _ in range(3):                          # and it may go on
            assert len(client.reply().payload) == 8192
    assert helper.quiet()


def test_reply_is_whole_when_the_client_takes_it_byte_by_byte(helper, target,
                                                              disk):
    target.nexus(0).answer_resid(0, count=1)
    with connect(helper) as client:
        client.send(READ_CDB, [disk])
        data = b''.join(client.read(1) for _ in range(104 + 8192))
        assert data[:8] == struct.pack('>II', GOOD, 8192)
        assert data[112:] == 8184 * b'\xdd'
        assert client.read_in(disk, READ_KEYS).status == GOOD


def test_half_a_hello_before_ours_is_read_harms_nobody(helper):
    clients = [connect(helper, hello=False) for _ in range(8)]
    for client in clients[::2]:
        client.send(b'\0')
    for client in clients:
        client.close()
    assert helper.quiet()


@pytest.mark.parametrize('options', [[], ['--single-process']])
def test_while_another_is_served_no_time_runs_out(start, target, disks,
                                                  options):
    """What has come meanwhile is looked at before the clock is."""
    helper = start(SIM_HELPER, '--client-timeout=3', *options, env=target.env)
    disk, nexus = disks.open(0), target.nexus(1)
    with connect(helper) as other, connect(helper) as client:
        client.send(pr_out(REGISTER_AND_IGNORE), [disk])
        with nexus.hanging():
            other.send(pr_in(READ_KEYS), [disks.open(1)])
            nexus.wait_held()
            client.sock.sendall(parameters(0, 0xa11ce))
            time.sleep(4)
        assert client.reply().status == GOOD
        assert other.reply().status == GOOD
