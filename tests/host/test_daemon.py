"""The whole daemon on the simulated disk: results, isolation, life and death.

What a client must be told comes from literal tables here, row by row; what
one client may do to another (nothing) is measured against the same helper's
own speed a moment earlier, with wide margins.

These tests must not depend on root or on SCSI, must not compare a time with
anything but a multiple of what was measured, and must never take the answer
they expect from the helper's source.
"""
import contextlib
import errno
import os
import re
import resource
import signal
import socket
import statistics
import struct
import threading
import time

import pytest

import sim
from helper import program
from launch import (A_USER, limit_processes, lingering, no_more_processes,
                    wait_until)
from prclient import (
    BUSY, CHECK_CONDITION, CLEAR, EXCLUSIVE_ACCESS, EXCLUSIVE_ACCESS_AR,
    EXCLUSIVE_ACCESS_RO, GOOD, PREEMPT, PREEMPT_AND_ABORT, READ_FULL_STATUS,
    READ_KEYS, REGISTER, REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE, RELEASE, REPORT_CAPABILITIES, RESERVATION_CONFLICT,
    RESERVE, TASK_SET_FULL, WRITE_EXCLUSIVE, WRITE_EXCLUSIVE_AR,
    WRITE_EXCLUSIVE_RO, Client, Closed, parameters, pr_in, pr_out, sense_code)

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
READ_CDB = pr_in(READ_KEYS)
MODES = ['sessions', 'single-process']
MINE, RIVAL = 0xa11ce, 0xb0b


@pytest.fixture
def begin(start, target):
    """Starts a helper on the simulated disk; no part of it may crash."""
    helpers = []

    def begin(*options, mode='sessions'):
        if mode == 'single-process':
            options += ('--single-process',)
        helper = start(SIM_HELPER, *options, env=target.env)
        helpers.append(helper)
        helper.client().close()     # whoever was there before is known by now
        helper.wait_sessions(0)
        return helper
    yield begin
    for helper in helpers:
        assert not helper.crashes()


@pytest.fixture
def helper(begin):
    """One with sessions; it must be there and stop properly afterwards."""
    helper = begin()
    yield helper
    assert helper.stop() == 0, helper.log()


@pytest.fixture
def two(helper, disks):
    """Two initiators: (client, fd) on nexus 0, (client, fd) on nexus 1."""
    with helper.client() as a, helper.client() as b:
        yield a, disks.open(0), b, disks.open(1)


def round_trips(client, fd, number=None, seconds=None):
    """The durations of so many requests, or of those within that time."""
    times, begin = [], time.monotonic()
    while (len(times) < number if number
           else time.monotonic() - begin < seconds):
        start = time.monotonic()
        assert client.request(READ_CDB, fd).status == GOOD
        times.append(time.monotonic() - start)
    return times


def assert_usual(times, before):
    """Within a wide margin of what it was; a stall would be seconds."""
    assert statistics.median(times) < 10 * statistics.median(before) + 0.02
    assert max(times) < max(before) + 1.5


def gone(pids, seconds=20):
    """True once these processes have ended (a zombie has)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = []
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open('/proc/%d/stat' % pid) as f:
                    if f.read().rsplit(')', 1)[1].split()[0] not in 'ZX':
                        alive.append(pid)
        if not alive:
            return True
        time.sleep(0.01)
    return False


# ---- What the device says --------------------------------------------------

@pytest.mark.parametrize('type_', [
    WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS, WRITE_EXCLUSIVE_RO,
    EXCLUSIVE_ACCESS_RO, WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR])
def test_reservation_and_rival(two, target, type_):
    a, disk_a, b, disk_b = two
    assert a.out(disk_a, RESERVE, MINE, 0, type_).status \
        == RESERVATION_CONFLICT                         # not registered
    assert a.out(disk_a, REGISTER, 0, MINE).status == GOOD
    assert b.out(disk_b, RESERVE, 0, 0, type_).status == RESERVATION_CONFLICT
    assert b.out(disk_b, REGISTER, RIVAL, RIVAL).status \
        == RESERVATION_CONFLICT                         # the wrong key
    assert b.out(disk_b, REGISTER, 0, RIVAL).status == GOOD
    assert a.keys(disk_a) == b.keys(disk_b) == [MINE, RIVAL]
    assert a.reservation(disk_a) is None

    assert a.out(disk_a, RESERVE, MINE, 0, type_).status == GOOD
    all_registrants = type_ in (WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR)
    held = (0 if all_registrants else MINE, type_)
    assert a.reservation(disk_a) == b.reservation(disk_b) == held
    other = EXCLUSIVE_ACCESS if type_ != EXCLUSIVE_ACCESS else WRITE_EXCLUSIVE
    reply = b.out(disk_b, RESERVE, RIVAL, 0, other)
    assert reply == (RESERVATION_CONFLICT, bytes(96), b'')
    assert b.out(disk_b, RESERVE, RIVAL, 0, type_).status \
        == (GOOD if all_registrants else RESERVATION_CONFLICT)
    reply = a.out(disk_a, RELEASE, MINE, 0, other)
    assert sense_code(reply.sense) == '5/26/04'
    assert a.reservation(disk_a) == held

    assert a.out(disk_a, RELEASE, MINE, 0, type_).status == GOOD
    if type_ not in (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS):
        reply = b.out(disk_b, RESERVE, RIVAL, 0, other)
        assert sense_code(reply.sense) == '6/2A/04'
    assert b.out(disk_b, RESERVE, RIVAL, 0, other).status == GOOD
    assert b.reservation(disk_b) == (RIVAL, other)


@pytest.mark.parametrize('action', [PREEMPT, PREEMPT_AND_ABORT])
def test_preempt_takes_over_and_the_victim_hears_of_it_once(two, action):
    a, disk_a, b, disk_b = two
    a.out(disk_a, REGISTER, 0, MINE)
    b.out(disk_b, REGISTER, 0, RIVAL)
    a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE)
    assert b.out(disk_b, action, RIVAL, 0xdead, EXCLUSIVE_ACCESS).status \
        == RESERVATION_CONFLICT
    assert b.out(disk_b, action, RIVAL, MINE, EXCLUSIVE_ACCESS).status == GOOD
    assert b.reservation(disk_b) == (RIVAL, EXCLUSIVE_ACCESS)
    assert b.keys(disk_b) == [RIVAL]
    reply = a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE)
    assert reply.status == CHECK_CONDITION and reply.payload == b''
    assert sense_code(reply.sense) == '6/2A/05'
    assert a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE).status \
        == RESERVATION_CONFLICT
    assert a.reservation(disk_a) == (RIVAL, EXCLUSIVE_ACCESS)


def test_clear_removes_all_and_the_others_hear_of_it_once(two):
    a, disk_a, b, disk_b = two
    a.out(disk_a, REGISTER, 0, MINE)
    b.out(disk_b, REGISTER, 0, RIVAL)
    a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE)
    assert b.out(disk_b, CLEAR, RIVAL).status == GOOD
    reply = a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE)
    assert reply.status == CHECK_CONDITION
    assert sense_code(reply.sense) == '6/2A/03'
    assert a.keys(disk_a) == [] and a.reservation(disk_a) is None


def test_register_and_move(two, target):
    a, disk_a, b, disk_b = two
    a.out(disk_a, REGISTER, 0, MINE)
    a.out(disk_a, RESERVE, MINE, 0, EXCLUSIVE_ACCESS)
    data = struct.pack('>QQxBHI', MINE, RIVAL, 2, 1, 24) + sim.transport_id(1)
    cdb = pr_out(REGISTER_AND_MOVE, length=len(data))
    assert b.request(cdb, disk_b, data).status == RESERVATION_CONFLICT
    assert a.request(cdb, disk_a, data) == (GOOD, bytes(96), b'')
    assert b.reservation(disk_b) == (RIVAL, EXCLUSIVE_ACCESS)
    assert b.keys(disk_b) == [RIVAL]
    reply = b.request(pr_out(REGISTER_AND_MOVE), disk_b,
                      struct.pack('>QQxBHI', RIVAL, MINE, 2, 1, 24))
    assert sense_code(reply.sense) == '5/1A/00'


def test_aptpl_capabilities_and_full_status(two, target):
    a, disk_a, b, disk_b = two
    assert a.out(disk_a, REGISTER, 0, MINE, flags=1).status == GOOD
    b.out(disk_b, REGISTER_AND_IGNORE, 0xbad, RIVAL)
    assert target.aptpl == 0                    # the last one decides
    a.out(disk_a, REGISTER, MINE, MINE, flags=1)
    a.out(disk_a, RESERVE, MINE, 0, WRITE_EXCLUSIVE_RO)
    assert a.read_in(disk_a, REPORT_CAPABILITIES).payload \
        == bytes([0, 8, 0x11, 0x81, 0xea, 1, 0, 0])
    generation, length, key, holder, type_ = struct.unpack_from(
        '>IIQ4xBB', a.read_in(disk_a, READ_FULL_STATUS).payload)
    assert (generation, length) == (3, 96)
    assert (key, holder, type_) == (MINE, 1, WRITE_EXCLUSIVE_RO)
    for reply in (a.read_in(disk_a, 4), a.out(disk_a, 8, MINE),
                  a.out(disk_a, RESERVE, MINE, 0, 4)):
        assert sense_code(reply.sense) == '5/24/00'
    assert sense_code(a.out(disk_a, REGISTER, MINE, 1, flags=8).sense) \
        == '5/26/00'


def test_command_reaches_the_device_as_it_was_sent(helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    commands = [(pr_in(action, length), b'', -3, length)
                for action in range(4) for length in (1, 24, 8192)]
    commands += [(pr_out(action, type_), parameters(1, 2), -2, 24)
                 for action in range(7) for type_ in (1, 3, 8)]
    with helper.client() as client:
        for count, (cdb, data, direction, length) in enumerate(commands, 1):
            client.request(cdb[:9] + b'\xc1' + cdb[10:], disk, data)
            assert nexus.commands == count
            assert nexus.cdb[:10] == cdb[:9] + b'\xc1'
            assert nexus.cmd_len in (10, 16)
            assert (nexus.direction, nexus.dxfer_len) == (direction, length)
            assert nexus.mx_sb_len == 96
            assert nexus.timeout >= 10000


# ---- What SG_IO says -------------------------------------------------------

ERRNO_REPLIES = {
    errno.EDOM: TASK_SET_FULL, errno.EBADE: RESERVATION_CONFLICT,
    errno.EREMOTEIO: '4/44/00', errno.ENOMEM: '4/44/00',
    errno.ENODEV: '4/44/00', errno.ENODATA: '3/11/00',
    errno.ENOMEDIUM: '2/3A/00', errno.EINVAL: '5/24/00',
    errno.ENOSPC: '7/27/07'}

HOST_REPLIES = {
    0x01: 'B/05/00', 0x02: BUSY, 0x03: 'B/2E/02', 0x04: 'B/08/00',
    0x05: 'B/2F/02', 0x08: '6/29/00', 0x0e: 'B/29/07', 0x10: '4/44/00',
    0x11: RESERVATION_CONFLICT, 0x12: '7/27/07', 0x13: '3/11/00'}


def failure(expected):
    """The whole reply: a bare status, or fixed sense data."""
    if isinstance(expected, int):
        return expected, bytes(96), b''
    key, asc, ascq = (int(part, 16) for part in expected.split('/'))
    sense = struct.pack('>BxB4xB4xBB82x', 0x70, key, 10, asc, ascq)
    return CHECK_CONDITION, sense, b''


def assert_replies(helper, disk, prepare, expected, what):
    """PR IN and PR OUT get this reply, and then the device works again."""
    with helper.client() as client:
        prepare()
        assert client.read_in(disk, READ_KEYS, 64) == expected, what
        prepare()
        assert client.out(disk, REGISTER_AND_IGNORE, 0, 1) == expected, what
        assert client.read_in(disk, READ_KEYS).status == GOOD


def test_every_errno(helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    for error in range(1, 134):
        assert_replies(helper, disk, lambda: nexus.fail_ioctl(error),
                       failure(ERRNO_REPLIES.get(error, 'B/00/06')), error)
    assert nexus.key == 0


def test_every_host_status_and_never_good(helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    for status in [*range(1, 0x30), 0xff, 0x100, 0xffff]:
        assert_replies(helper, disk,
                       lambda: nexus.answer(host_status=status),
                       failure(HOST_REPLIES.get(status, 'B/08/00')),
                       hex(status))


def test_every_driver_status(helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    for status in [*range(1, 0x20), 0x26, 0x28, 0x80, 0xff, 0x108, 0xffff]:
        if status != 8:
            assert_replies(helper, disk,
                           lambda: nexus.answer(driver_status=status),
                           failure(BUSY if status == 6 else 'B/08/00'),
                           hex(status))


SENSE = failure('6/2A/05')[1][:18]


@pytest.mark.parametrize('answer, expected', [
    (dict(host_status=3, driver_status=6), 'B/2E/02'),
    (dict(host_status=0x11, driver_status=8, status=2, sense=SENSE),
     RESERVATION_CONFLICT),
    (dict(host_status=7, driver_status=8, status=2, sense=SENSE), 'B/08/00'),
    (dict(driver_status=6, status=2, sense=SENSE), BUSY),
    (dict(driver_status=5, status=RESERVATION_CONFLICT), 'B/08/00'),
    (dict(status=2), 'B/08/00'),
    (dict(driver_status=8, status=2), 'B/08/00'),
    (dict(driver_status=8, status=2, sense=SENSE, count=6), '6/2A/05'),
    (dict(status=2, sense=SENSE, count=6), '6/2A/05'),
    (dict(status=0x04), 0x04),
    (dict(status=BUSY), BUSY),
    (dict(status=RESERVATION_CONFLICT), RESERVATION_CONFLICT),
    (dict(status=TASK_SET_FULL), TASK_SET_FULL),
    (dict(status=0x30), 0x30),
    (dict(status=0x40), 0x40),
    (dict(status=RESERVATION_CONFLICT, sense=SENSE), RESERVATION_CONFLICT),
])
def test_order_of_the_results(helper, target, disks, answer, expected):
    assert_replies(helper, disks.open(0),
                   lambda: target.nexus(0).answer(**answer),
                   failure(expected), answer)


def test_good_comes_without_sense_data(helper, target, disks):
    disk = disks.open(0)
    with helper.client() as client:
        for driver_status in (0, 8):
            target.nexus(0).answer(driver_status=driver_status, sense=SENSE)
            assert client.read_in(disk, READ_KEYS, 64) \
                == (GOOD, bytes(96), 64 * b'\xee')


DESCRIPTOR = bytes([0x72, 6, 0x2a, 4, 0, 0, 0, 12, 0, 10, 0x80] + 9 * [7])


@pytest.mark.parametrize('sense', [
    SENSE, b'\xf0' + SENSE[1:], b'\x71' + SENSE[1:], DESCRIPTOR,
    b'\x73' + DESCRIPTOR[1:], DESCRIPTOR[:8], b'\x70', SENSE[:8],
    bytes(range(0x70, 0x70 + 95)), bytes(range(0x70, 0x70 + 96)),
    bytes(range(0x72, 0x72 + 120))], ids=lambda s: '%02x-%d' % (s[0], len(s)))
def test_sense_of_the_device_is_not_changed(helper, target, disks, sense):
    whole = (sense + bytes(96))[:96]
    count = 6 if sense_code(whole).startswith('6') else 1
    assert_replies(helper, disks.open(0), lambda: target.nexus(0).answer(
        status=2, driver_status=8, sense=sense, count=count),
        (CHECK_CONDITION, whole, b''), sense)


@pytest.mark.parametrize('sense', [SENSE, DESCRIPTOR], ids=['fixed', 'descr'])
def test_a_read_passes_over_five_unit_attentions(helper, target, disks, sense):
    nexus, disk = target.nexus(0), disks.open(0)
    attention = CHECK_CONDITION, sense.ljust(96, b'\0'), b''
    with helper.client() as client:
        for action in range(4):
            expected = client.read_in(disk, action)
            assert expected.status == GOOD and expected.payload
            for count in (1, 5, 6, 7, 12):
                nexus.answer(status=2, sense=sense, count=count)
                before = nexus.commands
                assert client.read_in(disk, action) == (
                    expected if count <= 5 else attention), (action, count)
                assert nexus.commands == before + min(count + 1, 6)
            nexus.inject_count = 0


def test_a_read_is_not_sent_again_for_anything_else(helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    with helper.client() as client:
        for answer in (dict(host_status=8), dict(host_status=3),
                       dict(status=BUSY), dict(status=RESERVATION_CONFLICT),
                       dict(status=2, sense=SENSE[:2] + b'\x02' + SENSE[3:]),
                       dict(status=2, sense=SENSE[:2] + b'\x0b' + SENSE[3:]),
                       dict(status=BUSY, sense=SENSE)):
            before = nexus.commands
            nexus.answer(**answer)
            assert client.read_in(disk, READ_KEYS).status != GOOD
            assert nexus.commands == before + 1


def test_who_changes_something_is_told_of_a_unit_attention(helper, target,
                                                           disks):
    nexus, disk = target.nexus(0), disks.open(0)
    with helper.client() as client:
        for action in range(8):
            before = nexus.commands
            nexus.attention = (0x2900, 0x2a03, 0, 0)
            for code in ('6/29/00', '6/2A/03'):
                reply = client.out(disk, action, 0, MINE)
                assert sense_code(reply.sense) == code
            assert nexus.commands == before + 2
            assert nexus.key == 0 and client.keys(disk) == []


def test_any_resid_gives_a_payload_within_the_allocation_length(
        helper, target, disks):
    nexus, disk = target.nexus(0), disks.open(0)
    with helper.client() as client:
        for length in (0, 5, 64, 8192):
            whole = (bytes(8) + 8192 * b'\xdd')[:length]
            for resid in (0, 1, 7, 63, 64, 65, 8191, 8192, 8193, 2**31 - 1,
                          -1, -64, -8192, -2**31 + 1, -2**31):
                nexus.answer_resid(resid)
                reply = client.read_in(disk, READ_KEYS, length)
                size = min(max(length - resid, 0), length)
                assert reply == (GOOD, bytes(96), whole[:size]), resid
                nexus.answer_resid(resid)
                assert client.out(disk, REGISTER, 0, 0) \
                    == (GOOD, bytes(96), b'')


def test_no_reply_carries_what_an_earlier_one_left(helper, target, disks):
    """Sense and payload of one request must not show up in the next."""
    nexus, disk = target.nexus(0), disks.open(0)
    with helper.client() as client:
        nexus.answer(status=2, driver_status=8, sense=96 * b'\x70')
        assert client.read_in(disk, READ_KEYS).sense == 96 * b'\x70'
        assert client.read_in(disk, READ_KEYS).sense == bytes(96)
        nexus.answer(status=2, driver_status=8, sense=96 * b'\x70')
        client.read_in(disk, READ_KEYS)
        nexus.fail_ioctl(errno.EINVAL)
        assert client.read_in(disk, READ_KEYS) == failure('5/24/00')


# ---- Which descriptors are served ------------------------------------------

@pytest.mark.parametrize('nexus', range(0, 256, 15))
def test_every_major_of_scsi_disks_is_served(helper, target, disks, nexus):
    with helper.client() as client:
        fd = disks.open(nexus)
        assert client.out(fd, REGISTER, 0, MINE).status == GOOD
        assert client.keys(fd) == [MINE]
    assert target.nexus(nexus).key == MINE


def test_scsi_generic_is_served(helper, target, tmp_path):
    fd = os.open(sim.device(tmp_path / 'sg', 21, 3, True), os.O_RDWR)
    with helper.client() as client:
        assert client.out(fd, REGISTER, 0, MINE).status == GOOD
    assert target.nexus(3).key == MINE
    os.close(fd)


def test_out_needs_a_descriptor_open_for_writing(helper, target, disks):
    with helper.client() as client:
        for flags in (os.O_RDONLY, os.O_PATH):
            reply = client.out(disks.open(0, flags), REGISTER, 0, MINE)
            assert reply == failure('5/20/00')
        assert target.commands() == 0
        assert client.out(disks.open(0, os.O_WRONLY), REGISTER, 0, MINE) \
            .status == GOOD
        assert client.keys(disks.open(0, os.O_RDONLY)) == [MINE]
        reply = client.read_in(disks.open(0, os.O_PATH), READ_KEYS)
        assert reply == failure('B/00/06')


def other_socket(tmp_path):
    return socket.socketpair()[0].detach()


def tcp_socket(tmp_path):
    return socket.socket().detach()


def directory(tmp_path):
    return os.open(tmp_path, os.O_RDONLY)


def regular(tmp_path):
    return os.open(tmp_path / 'file', os.O_RDWR | os.O_CREAT)


def fifo(tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    return os.open(tmp_path / 'fifo', os.O_RDWR)


def dev_null(tmp_path):
    return os.open('/dev/null', os.O_RDWR)


def simulated(major, minor, character=False):
    def make(tmp_path):
        path = sim.device(tmp_path / 'device', major, minor, character)
        return os.open(path, os.O_RDWR)
    make.__name__ = '%s-%d-%d' % ('char' if character else 'block',
                                  major, minor)
    return make


@pytest.mark.parametrize('make, expected', [
    (regular, 'B/00/06'), (fifo, 'B/00/06'), (other_socket, 'B/00/06'),
    (tcp_socket, 'B/00/06'), (directory, 'B/00/06'), (dev_null, 'B/00/06'),
    (simulated(8, 0, True), 'B/00/06'),     # a character device's 8 is no disk
    (simulated(10, 236, True), 'B/00/06'), (simulated(253, 0, True), 'B/00/06'),
    (simulated(8, 1), '5/20/00'), (simulated(8, 15), '5/20/00'),
    (simulated(8, 17), '5/20/00'), (simulated(8, 255), '5/20/00'),
    (simulated(65, 1), '5/20/00'), (simulated(71, 250), '5/20/00'),
    (simulated(128, 3), '5/20/00'), (simulated(135, 241), '5/20/00'),
    (simulated(253, 0x777), '5/20/00'),     # device-mapper, and no sysfs
], ids=lambda p: getattr(p, '__name__', None))
def test_refused_descriptor(helper, target, tmp_path, make, expected):
    fd = make(tmp_path)
    with helper.client() as client:
        assert client.read_in(fd, READ_KEYS) == failure(expected)
        if make is not directory:           # which cannot be open for writing
            assert client.out(fd, REGISTER_AND_IGNORE, 0, 1) \
                == failure(expected)
    assert target.commands() == 0
    os.close(fd)


def block_devices():
    """A (major, minor) of each kind that this machine has, with its sense."""
    found = {}
    for name in os.listdir('/sys/dev/block'):
        path = os.path.join('/sys/dev/block', name)
        major, minor = (int(n) for n in name.split(':'))
        if major in (8, *range(65, 72), *range(128, 136)) or major > 511:
            continue
        if os.path.exists(path + '/dm/uuid'):
            with open(path + '/dm/uuid') as f:
                if not f.read().startswith('mpath-'):
                    found['dm'] = major, minor, '5/20/00'
        elif os.path.exists(path + '/partition'):
            found['partition'] = major, minor, '5/20/00'
        else:
            found['other'] = major, minor, 'B/00/06'
    return found


def test_block_devices_of_this_machine_are_refused(helper, target, tmp_path):
    devices = block_devices()
    if not devices:
        pytest.skip('no block devices in /sys/dev/block')
    for major, minor, expected in devices.values():
        fd = simulated(major, minor)(tmp_path)
        with helper.client() as client:
            assert client.read_in(fd, READ_KEYS) == failure(expected)
        os.close(fd)
    assert target.commands() == 0


# ---- One client's trouble is its own ---------------------------------------

def test_slow_command_does_not_slow_another_client(two, target):
    a, disk_a, b, disk_b = two
    before = round_trips(b, disk_b, number=200)
    target.nexus(0).delay_ms = 3000
    start = time.monotonic()
    a.send(READ_CDB, [disk_a])
    target.nexus(0).wait_in_flight(1)
    times = round_trips(b, disk_b, seconds=2)
    assert target.nexus(0).in_flight == 1
    assert_usual(times, before)
    assert a.reply().status == GOOD
    assert time.monotonic() - start > 2.9


def test_200_hanging_commands_do_not_slow_another_client(helper, target,
                                                         disks):
    hung, fine = disks.open(0), disks.open(1)
    with helper.client() as idle:
        before = round_trips(idle, fine, number=200)
        clients = [helper.client() for _ in range(200)]
        with target.nexus(0).hanging():
            for client in clients:
                client.send(READ_CDB, [hung])
            target.nexus(0).wait_in_flight(200)
            assert_usual(round_trips(idle, fine, number=200), before)
            with helper.client() as late:
                assert_usual(round_trips(late, fine, number=10), before)
            assert target.nexus(0).in_flight == 200
        for client in clients:
            assert client.reply().status == GOOD
            client.close()


def test_close_of_the_lingering_socket_does_block():
    sender, receiver = lingering()
    closer = threading.Thread(target=sender.close)
    closer.start()
    closer.join(0.3)
    assert closer.is_alive()
    receiver.close()
    closer.join(20)
    assert not closer.is_alive()


def send_lingering(helper, client, spared):
    """Have the session of client close the last copy of such a socket.

    Returns the receiver; spared are the sessions of all other clients.
    """
    sender, receiver = lingering()
    session, = set(helper.sessions()) - set(spared)
    os.kill(session, signal.SIGSTOP)
    client.send(READ_CDB, [sender.fileno()])
    sender.close()
    os.kill(session, signal.SIGCONT)
    assert client.drained()
    return receiver


def leave_unaccepted(helper):
    """Queue such a socket in a connection and leave before it is accepted.

    Returns the receiver; main is stopped (SIGSTOP) afterwards.
    """
    sender, receiver = lingering()
    os.kill(helper.pid, signal.SIGSTOP)
    with helper.client(hello=False) as client:
        client.send(bytes(4), [sender.fileno()])
    sender.close()
    return receiver


def test_blocking_close_of_a_client_that_left_delays_nobody(helper, disks):
    disk = disks.open(0)
    with helper.client() as client:
        before = round_trips(client, disk, number=100)
        receiver = leave_unaccepted(helper)
        os.kill(helper.pid, signal.SIGCONT)
        for _ in range(5):
            with helper.client() as late:
                assert_usual(round_trips(late, disk, number=20), before)
        assert_usual(round_trips(client, disk, number=100), before)
        receiver.close()
        helper.wait_sessions(1)


def test_blocking_close_of_a_request_delays_nobody(helper, disks):
    disk = disks.open(0)
    with helper.client() as client:
        before = round_trips(client, disk, number=100)
        spared = helper.sessions()
        with helper.client() as nasty:
            receiver = send_lingering(helper, nasty, spared)
            assert_usual(round_trips(client, disk, number=100), before)
            with helper.client() as late:
                assert_usual(round_trips(late, disk, number=20), before)
            receiver.close()
            assert sense_code(nasty.reply().sense) == 'B/00/06'


@pytest.mark.parametrize('accepted', [False, True])
def test_blocking_close_does_not_delay_shutdown(begin, disks, accepted):
    helper = begin('--stop-timeout=1')
    client = helper.client()
    assert client.read_in(disks.open(0), READ_KEYS).status == GOOD
    receivers = []
    if accepted:
        receivers.append(send_lingering(helper, client, []))
    receivers.append(leave_unaccepted(helper))
    sessions = helper.sessions()
    start = time.monotonic()
    helper.process.send_signal(signal.SIGTERM)
    os.kill(helper.pid, signal.SIGCONT)
    assert helper.stop() == 0
    assert time.monotonic() - start < 20        # it lingers for 60
    assert not os.path.exists(helper.path)
    for receiver in receivers:
        receiver.close()
    client.close()
    assert gone(sessions)


@pytest.mark.parametrize('sig, busy', [
    (signal.SIGKILL, False), (signal.SIGKILL, True),
    (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_death_of_a_session_is_its_clients_only(helper, target, disks, sig,
                                                busy):
    disk, other = disks.open(0), disks.open(1)
    with helper.client() as bystander:
        assert bystander.read_in(other, READ_KEYS).status == GOOD
        spared = set(helper.sessions())
        with helper.client() as victim:
            assert victim.read_in(disk, READ_KEYS).status == GOOD
            pid, = set(helper.sessions()) - spared
            with target.nexus(0).hanging() if busy \
                    else contextlib.nullcontext():
                if busy:
                    victim.send(READ_CDB, [disk])
                    target.nexus(0).wait_in_flight(1)
                os.kill(pid, sig)
                if sig != signal.SIGTERM or not busy:
                    assert victim.closed()
            if sig == signal.SIGTERM and busy:
                assert victim.reply().status == GOOD
                assert victim.closed()
            helper.wait_sessions(1)
        assert bystander.read_in(other, READ_KEYS).status == GOOD
        with helper.client() as late:
            assert late.read_in(other, READ_KEYS).status == GOOD


def test_crash_of_a_session_is_its_clients_only(start, target, disks):
    """And main says so, on which Helper.crashes() relies."""
    helper = start(SIM_HELPER, env=target.env)
    with helper.client() as bystander:
        helper.wait_sessions(1)
        spared = set(helper.sessions())
        with helper.client() as victim:
            pid, = set(helper.sessions()) - spared
            os.kill(pid, signal.SIGABRT)
            assert victim.closed()
        helper.wait_sessions(1)
        assert bystander.read_in(disks.open(0), READ_KEYS).status == GOOD
    assert helper.crashes()
    assert helper.stop() == 0


# ---- Limits and deadlines --------------------------------------------------

class OtherPeer:
    """Connections that another process made: to the helper another peer."""

    def __init__(self, helper, number):
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            clients = [helper.client() for _ in range(number)]
            socket.send_fds(theirs, [b'x'], [c.sock.fileno() for c in clients])
            ours.close()
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        self.socket = ours
        _, fds, _, _ = socket.recv_fds(ours, 1, number)
        self.socks = [socket.socket(fileno=fd) for fd in fds]

    def clients(self):
        """Client objects around those connections."""
        clients = []
        for sock in self.socks:
            client = object.__new__(Client)
            client.sock = sock
            sock.settimeout(30)
            clients.append(client)
        return clients

    def close(self):
        self.socket.close()
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize('mode', MODES)
def test_longest_idle_of_the_greediest_peer_makes_room(begin, disks, mode):
    helper = begin('--max-clients=5', mode=mode)
    disk = disks.open(0)
    other = OtherPeer(helper, 2)
    modest = other.clients()
    helper.wait_sessions(2 if mode == 'sessions' else 0)
    greedy = []
    for client in modest:
        assert client.read_in(disk, READ_KEYS).status == GOOD
    for _ in range(3):
        greedy.append(helper.client())
        assert greedy[-1].read_in(disk, READ_KEYS).status == GOOD
        time.sleep(0.02)
    assert greedy[0].read_in(disk, READ_KEYS).status == GOOD
    time.sleep(0.02)

    # Idle for longest are both of modest; of greedy's it is number 1.
    before = round_trips(greedy[0], disk, number=50)
    with helper.client() as late:
        assert_usual(round_trips(late, disk, number=20), before)
        assert greedy[1].closed()
        for client in [*modest, greedy[0], greedy[2], late]:
            assert client.read_in(disk, READ_KEYS).status == GOOD
            time.sleep(0.02)
        with helper.client() as later:          # and now it is number 0
            assert later.read_in(disk, READ_KEYS).status == GOOD
            assert greedy[0].closed()
            for client in [*modest, greedy[2], late, later]:
                assert client.read_in(disk, READ_KEYS).status == GOOD
    assert str(os.getpid()) in helper.log()
    for client in modest + greedy:
        client.close()
    other.close()
    assert helper.stop() == 0


@pytest.mark.parametrize('mode', MODES)
def test_more_clients_than_the_limit_at_once(begin, disks, mode):
    """Each newcomer is served, whatever the others hold."""
    helper = begin('--max-clients=8', mode=mode)
    disk = disks.open(0)
    clients = []
    for _ in range(50):
        clients.append(helper.client())
        assert clients[-1].read_in(disk, READ_KEYS).status == GOOD
        clients[-1].send(READ_CDB[:1])
        time.sleep(0.003)                   # who is idle for longer is clear
    for client in clients[:42]:
        assert client.closed()
    for client in clients[42:]:
        client.send(READ_CDB[1:], [disk])
        assert client.reply().status == GOOD
    for client in clients:
        client.close()
    assert helper.stop() == 0


def test_who_reconnects_at_the_limit_costs_nobody_a_connection(begin, disks):
    """Its old session may still be there when the new one begins."""
    helper = begin('--max-clients=8')
    disk, other = disks.open(0), OtherPeer(helper, 5)
    innocent = other.clients()
    for client in innocent:
        assert client.read_in(disk, READ_KEYS).status == GOOD
    for _ in range(100):
        clients = [helper.client() for _ in range(3)]
        for client in clients:
            client.close()
    helper.wait_sessions(5)
    for client in innocent:
        assert client.read_in(disk, READ_KEYS).status == GOOD
    assert 'disconnecting' not in helper.log()
    other.close()
    assert helper.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0,
                    reason='other processes of this user come and go')
def test_newcomers_are_served_although_no_process_can_be_forked(begin, disks):
    """The peer with the most loses its longest idle; that is said once."""
    helper = begin(*A_USER)
    disk, other = disks.open(0), OtherPeer(helper, 20)
    greedy = other.clients()
    with helper.client() as modest:
        assert modest.read_in(disk, READ_KEYS).status == GOOD
        assert greedy[0].read_in(disk, READ_KEYS).status == GOOD
        no_more_processes(helper)
        clients = []
        for client in [*greedy[1:10], greedy[10]]:
            start = time.monotonic()
            clients.append(helper.client())
            assert clients[-1].read_in(disk, READ_KEYS).status == GOOD
            assert time.monotonic() - start < 5
            assert client.closed()
            helper.wait_sessions(21)
        for client in [modest, greedy[0], *greedy[11:], *clients]:
            assert client.read_in(disk, READ_KEYS).status == GOOD
        assert helper.log().count('cannot fork') == 1
        assert 'pid %d' % other.pid in helper.log()
        for client in clients:
            client.close()
    other.close()
    assert helper.stop() == 0


def test_newcomer_is_served_although_a_peer_connects_without_end(
        begin, disks):
    """It waits behind few of those who connect and close at once."""
    helper, disk, pids, times = begin(), disks.open(0), [], []
    for _ in range(3):
        pids.append(os.fork())
        if pids[-1] == 0:
            with contextlib.suppress(BaseException):
                while True:
                    helper.client(hello=False).close()
            os._exit(0)
    try:
        time.sleep(0.5)
        for _ in range(7):
            start = time.monotonic()
            with helper.client() as client:
                assert client.read_in(disk, READ_KEYS).status == GOOD
            times.append(time.monotonic() - start)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert statistics.median(times) < 1, times
    assert helper.stop() == 0


def test_who_goes_for_nothing_is_the_last_to_go(begin, disks):
    """With the processes used up by others, nobody need be disconnected."""
    helper = begin(*A_USER)
    disk = disks.open(0)
    clients = [helper.client() for _ in range(8)]
    for client in clients:
        assert client.read_in(disk, READ_KEYS).status == GOOD
    limit_processes(helper, 1)
    late = helper.client(hello=False)
    assert clients[0].closed()
    time.sleep(1)
    for client in clients[1:]:
        assert client.read_in(disk, READ_KEYS).status == GOOD
    limit_processes(helper, None)
    late.read(4)
    late.send(bytes(4))
    assert late.read_in(disk, READ_KEYS).status == GOOD
    assert helper.log().count('cannot fork') == 1
    for client in clients + [late]:
        client.close()
    assert helper.stop() == 0


@pytest.mark.parametrize('mode', MODES)
def test_client_that_stops_inside_a_frame_is_closed_after_the_timeout(
        begin, target, disks, mode):
    helper = begin('--client-timeout=1', mode=mode)
    disk = disks.open(0)
    target.nexus(0).answer_resid(0, count=10**6)
    register = pr_out(REGISTER_AND_IGNORE)
    with helper.client() as idle:
        assert idle.read_in(disk, READ_KEYS).status == GOOD
        start = time.monotonic()
        stalled = [helper.client(hello=False) for _ in range(2)]
        stalled += [helper.client() for _ in range(5)]
        stalled[1].send(b'\0\0')
        stalled[2].send(register[:1])
        stalled[3].send(register[:15], [disk])
        stalled[4].send(register, [disk])
        stalled[5].send(register + parameters()[:23], [disk])
        stalled[6].sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):      # never reads a reply
            while True:
                stalled[6].send(READ_CDB, [disk])
        stalled[6].sock.settimeout(20)
        for client in stalled[:2]:
            client.read(4)
        for client in stalled[:6]:
            assert client.closed()
            assert time.monotonic() - start > 0.9
        assert wait_hangup(stalled[6])
        assert time.monotonic() - start < 15
        helper.wait_sessions(1 if mode == 'sessions' else 0)
        assert idle.read_in(disk, READ_KEYS).status == GOOD
        for client in stalled:
            client.close()
    assert helper.stop() == 0


def wait_hangup(client):
    """True once the helper has closed, however much it has left unread."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            client.send(b'\0')
            client.sock.setblocking(False)
        except BlockingIOError:
            time.sleep(0.01)
        except (BrokenPipeError, ConnectionResetError):
            return True
    return False


@pytest.mark.parametrize('mode', MODES)
def test_slow_command_is_not_subject_to_the_client_timeout(
        begin, target, disks, mode):
    helper = begin('--client-timeout=1', mode=mode)
    target.nexus(0).delay_ms = 1500
    with helper.client() as client:
        for _ in range(2):
            assert client.read_in(disks.open(0), READ_KEYS).status == GOOD
    assert helper.stop() == 0


@pytest.mark.parametrize('mode', MODES)
def test_no_free_descriptors_is_waited_out(begin, disks, mode):
    helper = begin(mode=mode)
    disk = disks.open(0)
    with helper.client() as client:
        assert client.read_in(disk, READ_KEYS).status == GOOD
        limits = resource.prlimit(helper.pid, resource.RLIMIT_NOFILE)
        used = {int(fd) for fd in os.listdir('/proc/%d/fd' % helper.pid)}
        free = min(set(range(len(used) + 1)) - used)
        resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        late = helper.client(hello=False)
        before = cpu_time(helper.pid)
        time.sleep(1)
        assert cpu_time(helper.pid) - before < 0.5
        resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, limits)
        late.read(4)
        late.send(bytes(4))
        assert late.read_in(disk, READ_KEYS).status == GOOD
        assert client.read_in(disk, READ_KEYS).status == GOOD
        late.close()
    assert len(re.findall('.*accept.*', helper.log())) == 1, helper.log()
    assert helper.stop() == 0


def cpu_time(pid):
    with open('/proc/%d/stat' % pid) as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return sum(int(n) for n in fields[11:15]) / os.sysconf('SC_CLK_TCK')


# ---- The end, and what is left of clients ----------------------------------

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT,
                                 signal.SIGHUP])
def test_stop_answers_the_command_in_flight_first(begin, target, disks, mode,
                                                  sig):
    helper = begin(mode=mode)
    target.nexus(0).delay_ms = 500
    with helper.client() as busy, helper.client() as idle:
        assert idle.read_in(disks.open(1), READ_KEYS).status == GOOD
        busy.send(pr_out(REGISTER_AND_IGNORE), [disks.open(0)])
        busy.send(parameters(0, MINE))
        target.nexus(0).wait_in_flight(1)
        helper.process.send_signal(sig)
        assert busy.reply() == (GOOD, bytes(96), b'')
        assert target.nexus(0).key == MINE
        assert busy.closed() and idle.closed()
        assert helper.process.wait(20) == 0
        assert not os.path.exists(helper.path)


def test_stop_waits_for_a_hanging_command_only_so_long(begin, target, disks):
    helper = begin('--stop-timeout=1')
    with target.nexus(0).hanging(), helper.client() as client:
        client.send(READ_CDB, [disks.open(0)])
        target.nexus(0).wait_in_flight(1)
        sessions = helper.sessions()
        start = time.monotonic()
        assert helper.stop() == 0
        assert 0.9 < time.monotonic() - start < 15
        assert gone(sessions)


@contextlib.contextmanager
def requests_without_end(helper, fd):
    """A client that always has its next request in the socket."""
    client = helper.client()

    def send():
        with contextlib.suppress(OSError):
            while True:
                client.send(READ_CDB, [fd])

    def receive():
        with contextlib.suppress(Closed):
            while True:
                client.reply()

    threads = [threading.Thread(target=f) for f in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        client.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        client.close()


@pytest.mark.parametrize('mode', MODES)
def test_requests_without_end_do_not_keep_a_signal_out(begin, target, disks,
                                                       mode):
    helper = begin('--stop-timeout=300', mode=mode)
    nexus = target.nexus(0)
    nexus.delay_ms = 5
    with requests_without_end(helper, disks.open(0)):
        while nexus.commands < 20:
            time.sleep(0.01)
        assert helper.stop(seconds=60) == 0


def test_requests_without_end_end_with_main(begin, target, disks):
    helper = begin()
    nexus = target.nexus(0)
    nexus.delay_ms = 5
    with requests_without_end(helper, disks.open(0)):
        while nexus.commands < 20:
            time.sleep(0.01)
        sessions = helper.sessions()
        helper.stop(signal.SIGKILL)
        assert gone(sessions)


@pytest.mark.parametrize('mode', MODES)
def test_unread_reply_does_not_delay_shutdown(begin, disks, mode):
    helper = begin('--stop-timeout=300', '--client-timeout=300', mode=mode)
    fd = disks.open(0)
    with helper.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(READ_CDB, [fd])
        time.sleep(0.2)         # the helper is now at a reply it cannot send
        assert helper.stop(seconds=60) == 0


def test_sigkill_of_main_takes_the_sessions_along(begin, target, disks):
    helper = begin()
    clients = [helper.client() for _ in range(10)]
    for client in clients:
        assert client.read_in(disks.open(1), READ_KEYS).status == GOOD
    stalled = helper.client()
    stalled.send(READ_CDB[:7])
    with helper.client() as busy, target.nexus(0).hanging():
        busy.send(READ_CDB, [disks.open(0)])
        target.nexus(0).wait_in_flight(1)
        sessions = helper.sessions()
        assert len(sessions) == 12
        helper.stop(signal.SIGKILL)
        for client in clients + [stalled]:
            assert client.closed()
        target.nexus(0).hold = 0
        assert busy.reply().status == GOOD      # the device did it, after all
        assert busy.closed()
        assert gone(sessions)


@pytest.mark.parametrize('before', range(3))
def test_sigkill_of_main_takes_a_session_that_lingers(begin, before):
    """In its own close(), or in the kernel's of what came beside others."""
    helper = begin()
    with helper.client() as client, open(os.devnull) as null:
        helper.wait_sessions(1)
        session, = helper.sessions()
        sender, receiver = lingering()
        os.kill(session, signal.SIGSTOP)
        client.send(READ_CDB, [null.fileno()] * before + [sender.fileno()])
        sender.close()              # what it has got is the last reference
        os.kill(session, signal.SIGCONT)
        client.drained()
        time.sleep(0.2)
        assert not gone([session], 0.1) or before > 0
        helper.stop(signal.SIGKILL)
        assert gone([session], 10)
        receiver.close()


def private_memory(pid):
    """Bytes that only this process has."""
    with open('/proc/%d/smaps_rollup' % pid) as f:
        sizes = re.findall(r'^Private_\w+: +(\d+) kB$', f.read(), re.M)
    return 1024 * sum(int(size) for size in sizes)


@pytest.mark.parametrize('mode', MODES)
def test_5000_connects_leave_nothing_behind(begin, disks, mode):
    helper = begin(mode=mode)
    disk = disks.open(0)

    def connects(number):
        for i in range(number):
            with helper.client(hello=i % 2 == 0) as client:
                if i % 4 == 0:
                    assert client.read_in(disk, READ_KEYS).status == GOOD
                if i % 4 == 1:
                    client.send(b'\0')
        helper.wait_sessions(0)

    connects(100)
    with helper.client() as client:             # everyone else has gone
        assert client.read_in(disk, READ_KEYS).status == GOOD
    helper.wait_sessions(0)
    fds, memory = helper.open_fds(), private_memory(helper.pid)
    connects(5000)
    wait_until(lambda: helper.open_fds() <= fds)
    # In one process each place that has been used at once stays in memory.
    most = 200000 if mode == 'sessions' else 4000000
    assert private_memory(helper.pid) - memory < most
    assert helper.stop() == 0


@pytest.mark.parametrize('mode', MODES)
def test_violation_is_logged_once_with_pid_and_uid(begin, mode):
    helper = begin('-v', mode=mode)
    other = OtherPeer(helper, 1)
    before = len(helper.log())
    for client in [helper.client(), *other.clients()]:
        client.send(bytes(16))
        assert client.closed()
        client.close()
    for pid in (os.getpid(), other.pid):
        lines = re.findall(r'.*\bpid\D{1,3}%d\b.*\buid\D{1,3}%d\b.*'
                           % (pid, os.getuid()), helper.log()[before:])
        lines = [line for line in lines if not line.endswith(': connected')]
        assert len(lines) == 1, helper.log()
    other.close()
    assert helper.stop() == 0


@pytest.mark.parametrize('mode', MODES)
def test_violation_is_not_logged_without_verbose(begin, mode):
    helper = begin(mode=mode)
    log = helper.log()
    for _ in range(5):
        with helper.client() as client:
            client.send(bytes(16))
            assert client.closed()
    with helper.client() as client, pytest.raises(Closed):
        client.send(bytes(16))
        client.reply()
    assert helper.log() == log
    assert helper.stop() == 0
