"""Cases 101 to 199: what clients send, how, how fast, and how many they are.

Each case is a client, or a crowd of them, that does what QEMU never would.
Nothing here may look at how the helper works: a case passes if what its
docstring says holds, and if the helper is unharmed afterwards (victim.py).
"""
import array
import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from prclient import REGISTER, Closed, pr_in, pr_out
from victim import (PATIENCE, READ, begin, connected, cpu_time,  # noqa: F401
                    option, refused, shared, victim, wait_until,
                    with_disk)

RIGHTS = socket.SOL_SOCKET, socket.SCM_RIGHTS
GONE = (BrokenPipeError, ConnectionResetError)
OUT = pr_out(REGISTER)


def fds(*numbers):
    return [(*RIGHTS, array.array('i', numbers))]


@pytest.fixture
def null():
    fd = os.open('/dev/null', os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def client(victim):
    with victim.client(timeout=PATIENCE) as client:
        yield client


def ends_with(victim, *parts):
    """A new client sends these (bytes, descriptors) and is closed."""
    with victim.client(timeout=PATIENCE) as client:
        with contextlib.suppress(*GONE):
            for data, *rest in parts:
                client.send(data, *rest)
        return client.closed()


# ---- Bytes ------------------------------------------------------------------

def test_101_noise_instead_of_a_hello(victim):
    """Random bytes close the connection that they came on."""
    noise = random.Random(101)
    for _ in range(100):
        with victim.client(hello=False, timeout=PATIENCE) as client:
            client.read(4)
            with contextlib.suppress(*GONE):
                client.sock.sendall(b'\1' + noise.randbytes(5000))
            assert client.closed()


def test_102_features_that_were_not_offered(victim):
    """Each of the 32 bits closes."""
    for bit in range(32):
        with victim.client(hello=False, timeout=PATIENCE) as client:
            offered = struct.unpack('>I', client.read(4))[0]
            client.send(struct.pack('>I', 1 << bit))
            if not offered >> bit & 1:
                assert client.closed()


def test_103_noise_instead_of_a_request(victim, null):
    """Random bytes with a descriptor close, unless they are a request."""
    noise = random.Random(103)
    for _ in range(100):
        cdb = noise.randbytes(16)
        if cdb[0] not in (0x5e, 0x5f, 0xff):
            assert ends_with(victim, (cdb, [null]))


def test_104_every_other_operation_code(victim, null):
    """All but PERSISTENT RESERVE IN and OUT and CLEANUP close."""
    for opcode in set(range(256)) - {0x5e, 0x5f, 0xff}:
        assert ends_with(victim, (bytes([opcode]) + bytes(15), [null]))


@pytest.mark.parametrize('length', [8193, 0x8000, 0xffff])
@pytest.mark.parametrize('make', [pr_in, pr_out])
def test_105_more_data_than_8192_bytes(victim, null, make, length):
    """Closes before any data is read."""
    assert ends_with(victim, (make(0, length=length), [null]),
                     (bytes(60000),))


def test_106_every_service_action_scope_and_type(client, null):
    """A descriptor of no disk is refused, whatever is asked of it."""
    for action in range(256):
        assert refused(client.request(pr_in(action), null))
        assert refused(client.request(
            pr_out(action, action & 15, 24, action >> 4), null, bytes(24)))


def test_107_random_bytes_behind_the_operation_code(victim, null):
    """A request that is well-formed as far as it goes is refused."""
    noise = random.Random(107)
    with victim.client(timeout=PATIENCE) as client:
        for _ in range(300):
            length = noise.randrange(8193)
            cdb = bytearray(noise.randbytes(16))
            cdb[0] = 0x5e + noise.randrange(2)
            cdb[5:9] = struct.pack('>I', length)
            reply = client.request(bytes(cdb), null, noise.randbytes(
                length if cdb[0] == 0x5f else 0))
            assert refused(reply)


def test_108_list_that_claims_to_be_longer_than_its_frame(client, null):
    """Framed by bytes 7-8 as QEMU does, refused, and the next one served."""
    cdb = pr_out(REGISTER, length=0x10018)
    reply = client.request(cdb, null, bytes(24))
    assert reply.status == 2 and reply.payload == b''
    assert refused(client.request(READ, null))


@pytest.mark.parametrize('sent', [0, 1, 3, 4, 5, 19, 20, 21, 43])
def test_109_leaves_after_any_number_of_bytes(victim, null, sent):
    """A client that leaves inside a frame leaves nothing behind."""
    stream = bytes(4) + OUT + bytes(24)
    for _ in range(20):
        with victim.client(hello=False) as client:
            client.sock.sendall(stream[:min(sent, 4)])
            if sent > 4:
                client.send(stream[4:sent], [null])


def test_110_half_closed_after_the_request(client, null):
    """A client that has shut its sending side down gets its reply."""
    client.send(READ, [null])
    client.sock.shutdown(socket.SHUT_WR)
    assert refused(client.reply())
    assert client.closed()


@pytest.mark.parametrize('how', [socket.SHUT_RD, socket.SHUT_RDWR])
def test_111_shut_down_but_kept_open(victim, null, how):
    """A client that can hear nothing any more is let go."""
    with victim.client(timeout=PATIENCE) as client:
        with contextlib.suppress(*GONE):
            client.sock.shutdown(how)
            client.send(READ, [null])
        victim.unharmed()


def test_112_leaves_without_its_reply(victim, null):
    """500 clients that leave right after a request leave nothing behind."""
    for _ in range(500):
        with victim.client() as client:
            client.send(READ, [null])


def test_113_one_byte_per_message(client, null):
    """Requests in messages of one byte, pipelined, are all answered."""
    for _ in range(100):
        client.send(READ[:1], [null])
        for byte in READ[1:]:
            client.send(bytes([byte]))
    for _ in range(100):
        assert refused(client.reply())


def test_114_pipelined_and_never_read(victim, null):
    """What a client does not read stops that client alone."""
    with victim.client() as client:
        client.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100000):
                client.send(READ, [null])
        victim.serves()


def test_115_pipelined_and_read_later(client, null):
    """1,000 requests at once get 1,000 replies, in order."""
    def send():
        for _ in range(1000):
            client.send(READ, [null])
    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(1000):
        assert refused(client.reply())
    sender.join(PATIENCE)


@pytest.mark.parametrize('at', range(6))
def test_116_urgent_bytes(victim, null, at):
    """An out-of-band byte (with a descriptor) neither spins nor leaks."""
    stream = [bytes(4)[:2], bytes(4)[2:], OUT[:8], OUT[8:], bytes(10)]
    client, pid = victim.session(lambda: victim.client(hello=False))
    with client:
        client.read(4)
        used = cpu_time(pid)
        for part in stream[:at]:
            client.send(part, [null] if part == OUT[:8] else [])
        with contextlib.suppress(*GONE):
            client.sock.sendmsg([b'!'], fds(null), socket.MSG_OOB)
        time.sleep(0.4)
        with contextlib.suppress(FileNotFoundError):
            assert cpu_time(pid) - used < 0.2
        victim.serves()


def test_117_spliced_request(client, null):
    """Bytes that come from a pipe's pages are bytes like others."""
    reader, writer = os.pipe()
    client.send(READ[:1], [null])
    os.write(writer, READ[1:])
    assert os.splice(reader, client.sock.fileno(), 15) == 15
    os.close(reader)
    os.close(writer)
    assert refused(client.reply())


# ---- Descriptors in the wrong number or place -------------------------------

def test_118_no_descriptor(victim):
    """A request without one closes."""
    for cdb in (READ, OUT):
        assert ends_with(victim, (cdb,))


@pytest.mark.parametrize('number', [2, 3, 64, 253])
def test_119_many_descriptors(victim, null, number):
    """More than one closes the connection, and all of them."""
    for _ in range(20):
        assert ends_with(victim, (READ, [null] * number))


def test_120_one_more_with_each_byte(victim, null):
    """Two descriptors on different bytes of a CDB are one too many."""
    for byte in range(1, 16):
        assert ends_with(victim, (READ[:byte], [null]),
                         (READ[byte:], [null]))


@pytest.mark.parametrize('number', [1, 253])
def test_121_with_the_hello(victim, null, number):
    """A descriptor with any byte of the hello closes."""
    for byte in range(4):
        with victim.client(hello=False, timeout=PATIENCE) as client:
            client.read(4)
            with contextlib.suppress(*GONE):
                if byte:
                    client.send(bytes(byte))
                client.send(bytes(4 - byte), [null] * number)
            assert client.closed()


@pytest.mark.parametrize('number', [1, 253])
def test_122_with_the_parameter_list(victim, null, number):
    """A descriptor with any byte of the list closes."""
    for byte in (0, 1, 12, 23):
        parts = [(OUT, [null]), (bytes(24 - byte), [null] * number)]
        assert ends_with(victim, *parts[:1], *([(bytes(byte),)] * (byte > 0)),
                         parts[1])


def test_123_queued_before_anybody_looks(victim, null):
    """20 messages of 253 descriptors each, and gone before the hello."""
    for _ in range(20):
        with victim.client(hello=False) as client:
            client.sock.setblocking(False)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    client.send(b'\0', [null] * 253)
    # There is a limit to what one user may have on the way (ETOOMANYREFS).
    wait_until(lambda: len(victim.sessions()) <= victim.peace[0])


def test_124_credentials_beside_the_descriptor(client, null):
    """Ancillary data that nobody asked for does no harm."""
    who = struct.pack('iii', os.getpid(), os.geteuid(), os.getegid())
    client.sock.sendmsg([READ], [
        (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who), *fds(null)])
    assert refused(client.reply())


def test_125_descriptor_without_bytes(client, null):
    """A message of no bytes takes its descriptor nowhere."""
    client.sock.sendmsg([b''], fds(null))
    assert refused(client.request(READ, null))


# ---- Pace -------------------------------------------------------------------

def test_126_slow_writer(victim, null):
    """A request that takes a second to arrive is answered, and delays none."""
    with victim.client(timeout=PATIENCE) as client:
        client.send(READ[:1], [null])
        for byte in READ[1:]:
            time.sleep(0.05)
            client.send(bytes([byte]))
            victim.well_behaved()
        assert refused(client.reply())


def test_127_slow_reader(victim, null):
    """A reply that takes a second to be read is whole, and delays none."""
    with victim.client(timeout=PATIENCE) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.send(READ, [null])
        reply = b''
        for _ in range(26):
            reply += client.read(4)
            time.sleep(0.03)
        victim.well_behaved()
        assert reply[:8] == bytes([0, 0, 0, 2, 0, 0, 0, 0])
        assert refused(client.request(READ, null))


def test_128_silent_inside_a_frame_for_too_long(begin, null):
    """--client-timeout ends it, and not the client that idles."""
    victim = begin(*option('--client-timeout', 1))
    with victim.client(timeout=PATIENCE) as client:
        client.send(READ[:7], [null])
        assert client.closed()
    victim.unharmed()


def test_129_trickles_for_longer_than_the_timeout(begin, null):
    """A byte now and then does not keep a frame open for ever."""
    victim = begin(*option('--client-timeout', 1))
    with victim.client(timeout=PATIENCE) as client:
        with pytest.raises((*GONE, Closed)):
            for byte in bytes([0x5f]) + bytes(15) + bytes(1000):
                client.send(bytes([byte]), [null] if byte == 0x5f else [])
                time.sleep(0.2)
    victim.unharmed()


# ---- Crowds -----------------------------------------------------------------

def test_130_a_thousand_idle_connections(victim):
    """They slow nobody who works, nor the one that comes after them."""
    crowd = connected(victim, 1000)
    begin = time.monotonic()
    for _ in range(100):
        assert victim.bystander.request(READ, victim.disk) == victim.usual
    assert time.monotonic() - begin < PATIENCE
    victim.well_behaved()
    for client in crowd[::100]:
        assert client.request(READ, victim.disk) == victim.usual
    for client in crowd:
        client.close()


def in_children(number, work):
    """work(index) in so many processes, which are killed in the end."""
    pids = []
    for index in range(number):
        pid = os.fork()
        if pid == 0:
            try:
                work(index)
            finally:
                os._exit(0)
        pids.append(pid)
    return pids


def end(pids, kill=True):
    for pid in pids:
        if kill:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_131_more_connections_than_there_is_room_for(begin):
    """Who takes all the room is pushed out, not who was there, or comes."""
    victim = begin(*option('--max-clients', 50))
    ready, told = os.pipe()

    def flood(_):
        crowd = connected(victim, 150)
        os.write(told, b'.')
        time.sleep(100)
        del crowd
    pids = in_children(1, flood)
    try:
        assert os.read(ready, 1) == b'.'
        for _ in range(10):
            victim.serves()
    finally:
        end(pids)
        os.close(ready)
        os.close(told)
    victim.unharmed()


def test_132_connects_and_leaves_from_all_sides(victim):
    """2,000 connections of 4 processes, most of them cut anywhere."""
    def work(index):
        dice = random.Random(index)
        for _ in range(500):
            with contextlib.suppress(OSError, Closed):
                with victim.client(hello=False) as client:
                    client.send((bytes(4) + READ)[:dice.randrange(21)])
                    if dice.randrange(2):
                        client.read(4)
    pids = in_children(4, work)
    try:
        while victim.process.poll() is None:
            victim.serves()
            if os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG
                         | os.WNOWAIT):
                break
    finally:
        end(pids, kill=False)


def test_133_killed_inside_a_request(victim, null):
    """Clients that SIGKILL takes leave nothing behind."""
    def work(_):
        client = victim.client()
        client.send(OUT[:9], [null])
        time.sleep(100)
    pids = in_children(20, work)
    time.sleep(0.2)
    end(pids)


def test_134_backlog_that_fills_while_the_helper_is_stopped(victim):
    """All that could connect are served when it goes on."""
    crowd = []
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        crowd = connected(victim, 16, hello=False)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    for client in crowd:
        client.read(4)
        client.send(bytes(4))
        assert client.request(READ, victim.disk) == victim.usual
        client.close()


@pytest.mark.parametrize('kind', [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_135_another_type_of_socket(victim, kind):
    """Gets no connection."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        with pytest.raises(OSError):
            sock.connect(victim.path)


@pytest.mark.parametrize('name', ['', '\0\x1b[31m\n\r\x07', '\0' + 'x' * 107])
def test_136_client_with_a_name(victim, null, name):
    """What a client calls itself does not get into the log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(name)
        sock.connect(victim.path)
        sock.sendall(b'\xff' * 4)


def test_137_200_commands_that_hang(victim, with_disk, tmp_path):
    """Disks that answer nobody stop only those who use them."""
    with victim.nexus.hanging():
        crowd = connected(victim, 200)
        for client in crowd:
            client.send(READ, [victim.disk])
        victim.nexus.wait_in_flight(200)
        null = os.open('/dev/null', os.O_RDWR)
        for client in (victim.bystander, *connected(victim, 1)):
            assert refused(client.request(READ, null))
        os.close(null)
    for client in crowd:
        assert client.reply() == victim.usual
        client.close()
