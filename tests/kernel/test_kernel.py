"""The helper on a real Linux kernel with a real SCSI target (LIO).

Runs as root inside tests/lib/uml.sh, where /dev/sda and /dev/sdb (and /dev/sg0,
/dev/sg1) are two I_T nexuses onto one LUN.  What the helper answers is
compared with what the same commands get straight from the disk, and with
what QEMU's own helper answers.

Must never send PREEMPT AND ABORT: LIO's loopback target hangs on it for good.
"""
import fcntl
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import time

import pytest

import prclient as pr
from direct import Direct, sg_io
from helper import stock_program

pytestmark = pytest.mark.skipif(not os.path.isdir('/run/target/pr'),
                                reason='not inside tests/lib/uml.sh')

DISKS, GENERICS = ('/dev/sda', '/dev/sdb'), ('/dev/sg0', '/dev/sg1')
TYPES = (1, 3, 5, 6, 7, 8)
A, B = 0, 1                                     # the two nexuses
KEY = (0xa11ce, 0xb0b)
FIFREEZE, FITHAW = 0xc0045877, 0xc0045878
direct = Direct()


@pytest.fixture
def fds():
    """A function that opens a device; closed after the test."""
    opened = []

    def open_(path, flags=os.O_RDWR):
        opened.append(pr.open_device(path, flags))
        return opened[-1]

    yield open_
    for fd in opened:
        os.close(fd)


@pytest.fixture(params=[DISKS, GENERICS], ids=['disk', 'sg'])
def nodes(request, fds):
    return [fds(path) for path in request.param]


@pytest.fixture(autouse=True)
def clean(fds):
    """No key, no reservation, no unit attention on either nexus."""
    reset([fds(path) for path in DISKS])


def reset(pair):
    for fd in pair:
        for _ in range(4):      # unit attentions first
            done = direct.out(fd, pr.REGISTER_AND_IGNORE)
            if done.status == pr.GOOD:
                break
        assert done.status == pr.GOOD, done
    for fd in pair:
        while direct.read_in(fd, pr.READ_KEYS).status != pr.GOOD:
            pass
        assert direct.keys(fd) == []
        assert direct.reservation(fd) is None


@pytest.fixture
def client(start):
    with start().client() as c:
        yield c


@pytest.fixture
def stock(start):
    with start(stock_program()).client() as c:
        yield c


# Sequences of (nexus, CDB, parameter list). ---------------------------------

def out(nexus, action, key=0, sa_key=0, type_=0, flags=0, scope=0):
    return (nexus, pr.pr_out(action, type_, scope=scope),
            pr.parameters(key, sa_key, flags))


def look(nexus):
    """The four PR IN service actions."""
    return [(nexus, pr.pr_in(action), b'') for action in range(4)]


def every_out_action(type_):
    """Two initiators through every way to get and lose a reservation."""
    a, b = KEY
    steps = [
        out(A, pr.RESERVE, a, type_=type_),         # not registered
        out(A, pr.REGISTER, 0, a),
        out(A, pr.REGISTER, 0, a),                  # wrong key
        out(A, pr.REGISTER, a, a + 1),
        out(A, pr.REGISTER, a + 1, a),
        out(A, pr.RESERVE, b, type_=type_),         # wrong key
        out(A, pr.RESERVE, a, type_=type_, scope=2),
        out(A, pr.RESERVE, a, type_=type_),
        *look(A), *look(B),
        out(B, pr.RESERVE, b, type_=type_),
        out(B, pr.CLEAR, b),
        out(B, pr.REGISTER_AND_IGNORE, 0, b),
        out(B, pr.RESERVE, b, type_=type_),         # the rival is refused
        out(B, pr.RELEASE, b, type_=type_),
        *look(B),
        out(B, pr.PREEMPT, b, a, type_),
        *look(A), *look(A),                         # unit attention first
        out(A, pr.RESERVE, a, type_=type_),         # preempted
        out(A, pr.REGISTER, 0, a),
        out(B, pr.RELEASE, b, type_=type_ ^ 2),     # wrong type
        out(B, pr.RELEASE, b, type_=type_),
        *look(A), *look(A),
        out(A, pr.RESERVE, a, type_=type_),
        move(A, a, b, B),
        *look(A), *look(B),
        out(A, pr.CLEAR, a),
        *look(B), *look(B),
        out(B, pr.REGISTER_AND_IGNORE, 0, 0),
    ]
    return steps


def move(nexus, key, new_key, to, unregister=0):
    """REGISTER AND MOVE to the other nexus; its TransportID is SAS."""
    transport_id = struct.pack('>B3xQ12x', 6, 0x6001405000000001 + to)
    data = struct.pack('>QQxBHI', key, new_key, unregister, 1 + to,
                       len(transport_id)) + transport_id
    return (nexus, pr.pr_out(pr.REGISTER_AND_MOVE, length=len(data)), data)


def odd_requests():
    """Actions and fields that do not exist; most are refused."""
    steps = [(A, pr.pr_in(action, 64), b'') for action in range(4, 32)]
    steps += [out(A, action, 0, KEY[A]) for action in range(8, 32)]
    steps.append(out(A, pr.REGISTER, 0, KEY[A]))
    steps += [out(A, pr.RESERVE, KEY[A], type_=t) for t in range(16)
              if t not in TYPES]
    steps += [out(A, pr.RESERVE, KEY[A], type_=1, scope=s)
              for s in range(1, 16)]
    steps += [out(A, pr.REGISTER, KEY[A], KEY[A], flags=1 << bit)
              for bit in range(1, 8)]
    steps += [(A, pr.pr_out(pr.REGISTER, length=n), bytes(n))
              for n in (1, 8, 23, 25, 32, 255, 8192)]
    return steps + look(A)


def random_walk(seed, count):
    r = random.Random(seed)
    actions = [pr.REGISTER, pr.RESERVE, pr.RELEASE, pr.CLEAR, pr.PREEMPT,
               pr.REGISTER_AND_IGNORE]
    keys = (0, *KEY)
    for _ in range(count):
        nexus = r.randrange(2)
        yield r.choice([
            lambda: out(nexus, r.choice(actions),
                        r.choice((KEY[nexus], r.choice(keys))),
                        r.choice(keys), r.choice(TYPES)),
            lambda: move(nexus, KEY[nexus], r.choice(keys), 1 - nexus),
            lambda: (nexus, pr.pr_in(r.randrange(4),
                                     r.choice((0, 8, 24, 8192))), b''),
        ])()


SEQUENCES = {
    **{'type%d' % t: every_out_action(t) for t in TYPES},
    'odd': odd_requests(),
    **{'random%d' % seed: list(random_walk(seed, 150)) for seed in range(4)},
}


@pytest.fixture(params=SEQUENCES)
def sequence(request):
    return SEQUENCES[request.param]


def generation(client, fd):
    return struct.unpack('>I', client.read_in(fd, 0, 8).payload[:4])[0]


def is_attention(reply):
    return pr.sense_code(reply.sense).startswith('6/')


def play(client, pair, steps, passes_over=False):
    """The replies, with PR generations counted from where this began; those
    of reads behind the unit attentions that they meet, if told so."""
    first = generation(direct, pair[A])
    replies = []
    for nexus, cdb, data in steps:
        reply = client.request(cdb, pair[nexus], data)
        while passes_over and cdb[0] == 0x5e and is_attention(reply):
            reply = client.request(cdb, pair[nexus], data)
        if cdb[1] != pr.REPORT_CAPABILITIES and len(reply.payload) >= 4:
            now = struct.unpack('>I', reply.payload[:4])[0]
            reply = reply._replace(payload=struct.pack('>I', now - first)
                                   + reply.payload[4:])
        replies.append(reply)
    reset(pair)
    return replies


def compare(steps, ours, theirs):
    for (nexus, cdb, data), mine, other in zip(steps, ours, theirs):
        assert mine == other, 'nexus %d, %s %s' % (nexus, cdb.hex(),
                                                   data.hex())


# Ours beside the disk itself, and beside the stock helper. ------------------

def test_replies_are_what_the_disk_answers(client, nodes, sequence):
    expected = play(direct, nodes, sequence, passes_over=True)
    compare(sequence, play(client, nodes, sequence), expected)


def test_sequences_meet_every_kind_of_answer(fds):
    """The comparisons would be worth little if all were refused alike."""
    pair = [fds(path) for path in DISKS]
    good, seen = set(), set()
    for steps in SEQUENCES.values():
        for step, reply in zip(steps, play(direct, pair, steps)):
            if reply.status == pr.GOOD:
                good.add((step[1][0], step[1][1] & 31))
            seen.add(reply.status if reply.status != pr.CHECK_CONDITION
                     else pr.sense_code(reply.sense))
    actions = set(range(8)) - {pr.PREEMPT_AND_ABORT}
    assert good == ({(0x5e, n) for n in range(4)}
                    | {(0x5f, n) for n in actions})
    assert {pr.GOOD, pr.RESERVATION_CONFLICT, '5/24/00', '5/26/00',
            '6/2A/03', '6/2A/04', '6/2A/05'} <= seen


def test_replies_are_what_the_stock_helper_answers(client, stock, fds,
                                                   sequence):
    """On the disk's node: on /dev/sgN the stock helper gives the disk only
    a millisecond for its answer."""
    pair = [fds(path) for path in DISKS]
    expected = play(stock, pair, sequence, passes_over=True)
    compare(sequence, play(client, pair, sequence), expected)


# What happened to the disk before, of which its nexus has not been told yet. -

def attentions(fds):
    """Make some, by the rival's nexus, on that of sda."""
    a, b = fds('/dev/sda'), fds('/dev/sdb')
    assert direct.out(a, pr.REGISTER, 0, KEY[A]).status == pr.GOOD
    assert direct.out(b, pr.REGISTER, 0, KEY[B]).status == pr.GOOD
    subprocess.run(['sg_reset', '--device', '/dev/sdb'], check=True,
                   timeout=60)
    while is_attention(direct.read_in(b, pr.READ_KEYS)):
        pass
    done = direct.out(b, pr.RESERVE, KEY[B], type_=pr.WRITE_EXCLUSIVE_RO)
    assert done.status == pr.GOOD
    assert direct.out(b, pr.RELEASE, KEY[B], type_=5).status == pr.GOOD
    assert direct.out(b, pr.PREEMPT, KEY[B], KEY[A], 5).status == pr.GOOD


@pytest.mark.parametrize('action', range(4))
def test_a_read_passes_over_unit_attentions(client, nodes, fds, action):
    attentions(fds)
    reply = client.read_in(nodes[A], action)
    assert reply == direct.read_in(nodes[B], action)
    assert reply.status == pr.GOOD and reply.payload


def test_who_changes_something_is_told_of_unit_attentions(client, nodes, fds):
    attentions(fds)
    codes = []
    while is_attention(reply := client.out(nodes[A], pr.REGISTER, 0, KEY[A])):
        codes.append(pr.sense_code(reply.sense))
        assert direct.keys(nodes[B]) == [KEY[B]]
    assert reply.status == pr.GOOD
    assert codes == ['6/29/03']     # of all, LIO tells the gravest


def test_pr_in_returns_no_more_than_the_disk_and_was_asked(client, nodes):
    direct.out(nodes[A], pr.REGISTER, 0, KEY[A])
    direct.out(nodes[B], pr.REGISTER, 0, KEY[B])
    direct.out(nodes[A], pr.RESERVE, KEY[A], type_=pr.WRITE_EXCLUSIVE)
    for action in range(4):
        for length in (0, 1, 4, 7, 8, 9, 23, 24, 25, 255, 256, 4096, 8192):
            expected = direct.read_in(nodes[B], action, length)
            assert client.read_in(nodes[B], action, length) == expected
            assert len(expected.payload) <= length


# The helper beside sg_persist, the tool of the field. -----------------------

def sg_persist(*arguments):
    if not shutil.which('sg_persist'):
        pytest.skip('not installed: sg_persist')
    return subprocess.run(['sg_persist', *arguments], timeout=60,
                          capture_output=True, text=True)


def test_sg_persist_sees_what_the_helper_did(client, fds):
    a = fds('/dev/sda')
    assert client.out(a, pr.REGISTER, 0, KEY[A]).status == pr.GOOD
    assert client.out(a, pr.RESERVE, KEY[A], type_=5).status == pr.GOOD
    assert '0xa11ce' in sg_persist('-i', '-k', '/dev/sdb').stdout
    text = sg_persist('-i', '-r', '/dev/sdb').stdout
    assert 'Key=0xa11ce' in text
    assert 'Write Exclusive, registrants only' in text
    refused = sg_persist('-o', '-G', '-K', '0', '-S', '0xb0b', '/dev/sdb')
    assert refused.returncode == 0, refused
    refused = sg_persist('-o', '-R', '-K', '0xb0b', '-T', '5', '/dev/sdb')
    assert refused.returncode == 24, refused        # reservation conflict


def test_the_helper_sees_what_sg_persist_did(client, fds):
    b = fds('/dev/sdb')
    assert sg_persist('-o', '-G', '-S', '0xa11ce', '/dev/sda').returncode == 0
    assert sg_persist('-o', '-R', '-K', '0xa11ce', '-T', '1',
                      '/dev/sda').returncode == 0
    assert client.keys(b) == [KEY[A]]
    assert client.reservation(b) == (KEY[A], pr.WRITE_EXCLUSIVE)
    assert (client.out(b, pr.RESERVE, KEY[B], type_=1).status
            == pr.RESERVATION_CONFLICT)


# APTPL: the target keeps registrations through a loss of power. -------------

def aptpl():
    files = os.listdir('/run/target/pr')
    names = [n for n in files if n.startswith('aptpl_')]
    if not names:
        return ''
    with open('/run/target/pr/' + names[0]) as f:
        return f.read()


def test_aptpl_reaches_the_target(client, nodes):
    a = nodes[A]
    assert client.read_in(a, pr.REPORT_CAPABILITIES).payload[2] & 1  # PTPL_C
    assert client.out(a, pr.REGISTER, 0, 0xace, flags=1).status == pr.GOOD
    assert client.read_in(a, pr.REPORT_CAPABILITIES).payload[3] & 1  # PTPL_A
    assert client.out(a, pr.RESERVE, 0xace, type_=3).status == pr.GOOD
    assert 'sa_res_key=%d\n' % 0xace in aptpl()
    assert 'res_holder=1' in aptpl()
    assert client.out(a, pr.REGISTER, 0xace, 0).status == pr.GOOD
    assert 'sa_res_key=' not in aptpl()


# What is not a disk of one's own. -------------------------------------------

@pytest.fixture
def linear():
    """An fd of a dm-linear map over 1 MB of /dev/sda."""
    if not shutil.which('dmsetup'):
        pytest.skip('not installed: dmsetup')
    run = subprocess.check_call
    run(['dmsetup', '--noudevsync', '--noudevrules', 'create', 'lin',
         '--table', '0 2048 linear /dev/sda 64'])
    with open('/sys/block/dm-0/dev') as f:
        major, minor = map(int, f.read().split(':'))
    if not os.path.exists('/dev/dm-0'):
        os.mknod('/dev/dm-0', stat.S_IFBLK | 0o600, os.makedev(major, minor))
    fd = pr.open_device('/dev/dm-0')
    yield fd
    os.close(fd)
    run(['dmsetup', '--noudevsync', '--noudevrules', 'remove', 'lin'])


def refused(client, fd, code):
    """Every command through fd answers so, and the disk has no key."""
    for reply in (client.out(fd, pr.REGISTER, 0, KEY[A]),
                  client.out(fd, pr.REGISTER_AND_IGNORE, 0, KEY[A]),
                  client.read_in(fd, pr.READ_KEYS),
                  client.read_in(fd, pr.READ_FULL_STATUS, 0)):
        assert reply.status == pr.CHECK_CONDITION, reply
        assert pr.sense_code(reply.sense) == code
        assert reply.payload == b''


def whole_disk_works(client, fds):
    a = fds('/dev/sda')
    assert client.keys(a) == []
    assert client.out(a, pr.REGISTER, 0, KEY[A]).status == pr.GOOD
    assert client.keys(a) == direct.keys(a) == [KEY[A]]


@pytest.mark.parametrize('path', ['/dev/sda1', '/dev/sdb1'])
def test_a_partition_is_refused_and_its_disk_is_served(client, fds, path):
    refused(client, fds(path), '5/20/00')
    whole_disk_works(client, fds)


def test_a_linear_map_is_refused_and_its_disk_is_served(client, fds, linear):
    refused(client, linear, '5/20/00')
    whole_disk_works(client, fds)


def test_the_refusals_matter(fds, linear):
    """The kernel itself lets root reserve the disk through its parts."""
    for n, fd in enumerate((fds('/dev/sda1'), linear)):
        done = direct.out(fd, pr.REGISTER_AND_IGNORE, 0, 7 + n)
        assert done.status == pr.GOOD
        assert direct.keys(fds('/dev/sda')) == [7 + n]


def test_bsg_and_foreign_devices_are_refused(client, fds):
    bsg = ['/dev/bsg/' + name for name in os.listdir('/dev/bsg')]
    assert bsg
    for path in [*bsg, '/dev/null', '/dev/zero', '/dev/tty1', '/proc/self/mem',
                 '/run/disk0']:
        refused(client, fds(path), 'B/00/06')
    reply = client.read_in(fds('/run', os.O_RDONLY), pr.READ_KEYS)
    assert pr.sense_code(reply.sense) == 'B/00/06'
    whole_disk_works(client, fds)


@pytest.mark.parametrize('path', ['/dev/sda', '/dev/sg0'])
def test_a_read_only_fd_can_look_but_not_touch(client, fds, path):
    fd = fds(path, os.O_RDONLY)
    for _ in range(2):
        reply = client.out(fd, pr.REGISTER, 0, KEY[A])
        assert reply.status == pr.CHECK_CONDITION
        assert pr.sense_code(reply.sense) == '5/20/00'
        assert client.keys(fd) == []
    whole_disk_works(client, fds)
    assert client.keys(fd) == [KEY[A]]


@pytest.mark.parametrize('path', ['/dev/sda', '/dev/sg0'])
def test_an_o_path_fd_is_refused(client, fds, path):
    fd = fds(path, os.O_PATH)
    reply = client.out(fd, pr.REGISTER, 0, KEY[A])
    assert reply.status == pr.CHECK_CONDITION
    assert pr.sense_code(reply.sense) == '5/20/00'
    whole_disk_works(client, fds)


# Signals and slow commands. -------------------------------------------------

@pytest.fixture(scope='module')
def ram():
    """APTPL registrations go to a file system that can be frozen."""
    subprocess.check_call(['/run/insmod', 'brd', 'rd_nr=1', 'rd_size=8192'])
    subprocess.check_call(['mke2fs', '-q', '-t', 'ext2', '/dev/ram0'])
    subprocess.check_call(['mount', '/dev/ram0', '/run/target/pr'])
    yield
    # LIO's last file may not be closed yet: busy, on a machine that is so, too.
    subprocess.check_call(['umount', '-l', '/run/target/pr'])


@pytest.fixture
def freezer(ram):
    """Two functions: from the first one to the second, commands hang."""
    fd = os.open('/run/target/pr', os.O_RDONLY)
    frozen = []

    def freeze():
        fcntl.ioctl(fd, FIFREEZE, 0)
        frozen.append(True)

    def thaw():
        if frozen:
            fcntl.ioctl(fd, FITHAW, 0)
            frozen.pop()

    yield freeze, thaw
    thaw()
    os.close(fd)


def commands(what):
    """How many commands sda's nexus got (iorequest) or answered (iodone)."""
    with open('/sys/block/sda/device/%s_cnt' % what) as f:
        return int(f.read(), 16)


def reached_the_disk(seconds=20):
    """Wait until sda's nexus has a command that it has not answered."""
    end = time.monotonic() + seconds
    while commands('iorequest') == commands('iodone'):
        assert time.monotonic() < end, 'the command does not arrive'
        time.sleep(0.01)


def slow_register(helper, client, fd, freezer, while_slow):
    """A REGISTER that hangs for as long as while_slow(PIDs) takes."""
    freeze, thaw = freezer
    before = generation(direct, fd)
    count = commands('iorequest')
    freeze()
    client.send(pr.pr_out(pr.REGISTER), [fd])
    client.send(pr.parameters(0, KEY[A], flags=1))
    reached_the_disk()
    while_slow(helper.sessions() or [helper.pid])
    thaw()
    assert client.reply().status == pr.GOOD     # a repetition: a conflict
    assert commands('iorequest') == count + 1
    assert direct.keys(fd) == [KEY[A]]
    assert generation(direct, fd) == before + 1


@pytest.mark.parametrize('mode', [(), ('--single-process',)],
                         ids=['forked', 'single'])
@pytest.mark.parametrize('number', [signal.SIGCHLD, signal.SIGHUP,
                                    signal.SIGTERM, signal.SIGINT,
                                    signal.SIGPIPE, signal.SIGUSR1],
                         ids=lambda number: number.name)
def test_a_signal_neither_repeats_nor_loses_a_slow_command(
        start, nodes, freezer, number, mode):
    helper = start(None, *mode)
    with helper.client() as client:
        def storm(pids):
            for _ in range(20):
                for pid in pids:
                    os.kill(pid, number)
                time.sleep(0.01)
        slow_register(helper, client, nodes[A], freezer, storm)


def test_a_stopped_and_continued_session_loses_nothing(start, fds, freezer):
    """Not with /dev/sg0: nothing can block SIGSTOP, and there it makes the
    kernel run the command again."""
    helper = start()
    with helper.client() as client:
        def pause(pids):
            for number in (signal.SIGSTOP, signal.SIGCONT) * 3:
                for pid in pids:
                    os.kill(pid, number)
                time.sleep(0.05)
        slow_register(helper, client, fds('/dev/sda'), freezer, pause)


def test_sigterm_to_main_lets_a_slow_command_answer(start, nodes, freezer):
    helper = start()
    with helper.client() as client:
        def terminate(_pids):
            helper.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        slow_register(helper, client, nodes[A], freezer, terminate)
        assert client.closed()
        assert helper.process.wait(20) == 0


def test_a_client_that_left_does_not_undo_its_command(start, nodes, freezer):
    helper = start()
    freeze, thaw = freezer
    client = helper.client()
    freeze()
    client.send(pr.pr_out(pr.REGISTER), [nodes[A]])
    client.send(pr.parameters(0, KEY[A], flags=1))
    reached_the_disk()
    client.close()
    thaw()
    helper.wait_sessions(0)
    assert direct.keys(nodes[A]) == [KEY[A]]
    with helper.client() as client:
        assert client.keys(nodes[A]) == [KEY[A]]


def test_a_hanging_disk_delays_no_other_client(start, nodes, freezer, fds):
    helper = start()
    other = fds('/dev/null')
    with helper.client() as one, helper.client() as two:
        def elsewhere(_pids):
            for _ in range(50):
                refused(two, other, 'B/00/06')
        slow_register(helper, one, nodes[A], freezer, elsewhere)


# Both command lengths are good for the target; see sg_io.c for ours. --------

def test_the_target_takes_the_commands_at_their_length_of_ten(fds):
    for path in (*DISKS, *GENERICS):
        for tail in (bytes(6), b'\xff' * 6):
            for length in (10, 16):
                hdr, _, data = sg_io(fds(path), pr.pr_in(0, 8)[:10] + tail,
                                     length=8, cmd_len=length)
                assert (hdr.status, hdr.resid) == (0, 0)
                assert data[4:] == bytes(4)
