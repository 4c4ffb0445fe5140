"""What an administrator is told: the lines that -v writes for commands, the
events that -T traces, and what SIGUSR1 asks for.

What a line must say stands here in the tests' own words; the helper's source
is not looked into. No test may depend on root or SCSI, or on how long a
command takes; a time is compared with the clock's before and after.
"""
import contextlib
import datetime
import errno
import fcntl
import os
import re
import resource
import select
import signal
import struct
import subprocess
import time

import pytest

import sim
from helper import Helper, program
from launch import descriptors, wait_until
from prclient import (BUSY, CHECK_CONDITION, CLEAR, EXCLUSIVE_ACCESS_AR, GOOD,
                      PREEMPT, READ_KEYS, REGISTER, REGISTER_AND_IGNORE,
                      REGISTER_AND_MOVE, RELEASE, RESERVE, TASK_SET_FULL,
                      WRITE_EXCLUSIVE_RO, Client, Closed, open_device,
                      parameters, pr_in, pr_out)
from test_multipath import KEY, Lab

SIM_HELPER = program('SIM_HELPER', 'build/sim/qemu-pr-helper')
US = (os.getpid(), os.geteuid())
MODES = pytest.mark.parametrize('mode', [[], ['--single-process']],
                                ids=['sessions', 'single-process'])
F_SETPIPE_SZ = 1031

TIME = r'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) '
CLIENT = r'client pid (-?\d+) uid (\d+): '
OUT = re.compile(CLIENT + r'(.*): service action (\w\w)h \((.*)\), type (\d+), '
                 r'key (\w+), service action key (\w+): (.*), 0 bytes in '
                 r'(\d+) us$')


@pytest.fixture
def helper(start, target):
    return lambda *options, **kwargs: start(SIM_HELPER, *options,
                                            env=target.env, **kwargs)


def stamped(text, prefix='qemu-pr-helper: '):
    """(time, rest) of each line that begins with a time."""
    found = re.findall('^%s%s(.*)$' % (prefix, TIME), text, re.M)
    return [(datetime.datetime.strptime(
        when, '%Y-%m-%dT%H:%M:%S.%fZ').replace(
            tzinfo=datetime.timezone.utc).timestamp(), rest)
        for when, rest in found]


def outs(main):
    """What is in each line of a command that may change reservations."""
    found = [OUT.match(rest) for _, rest in stamped(main.log())]
    return [line.groups() for line in found if line]


def traced(path):
    """(event, text) of each line of a trace file."""
    with open(path, errors='replace') as f:
        return [tuple(rest.split(': ', 1))
                for _, rest in stamped(f.read(), '')]


def events(path):
    return {event for event, _ in traced(path)}


# Commands, with -v. ----------------------------------------

@MODES
def test_each_command_that_changes_reservations_is_a_line(helper, disks, mode):
    main, fd, other = helper('-v', *mode), disks.open(0), disks.open(20)
    before = time.time()
    with main.client() as client:
        client.out(fd, REGISTER_AND_IGNORE, 0, 0xa11ce)
        client.out(fd, RESERVE, 0xa11ce, type_=WRITE_EXCLUSIVE_RO)
        client.keys(fd)
        client.out(other, PREEMPT, 0xb0b, 0xffffffffffffffff,
                   EXCLUSIVE_ACCESS_AR)
        client.request(pr_out(9, scope=15), fd, parameters(7, 8))
        client.request(pr_out(CLEAR, length=8), fd, bytes(8))
    pid, uid = map(str, US)
    lines = outs(main)
    assert [line[:-1] for line in lines] == [
        (pid, uid, 'sda (8:0)', '06', 'REGISTER AND IGNORE EXISTING KEY', '0',
         '0', 'a11ce', 'GOOD'),
        (pid, uid, 'sda (8:0)', '01', 'RESERVE', '5', 'a11ce', '0', 'GOOD'),
        (pid, uid, 'sdu (65:64)', '04', 'PREEMPT', '8', 'b0b',
         'ffffffffffffffff', 'RESERVATION CONFLICT'),
        (pid, uid, 'sda (8:0)', '09', '?', '0', '7', '8',
         'CHECK CONDITION 5/24/00'),
        # A list that is too short for keys: what was there before is not told.
        (pid, uid, 'sda (8:0)', '03', 'CLEAR', '0', '0', '0',
         'CHECK CONDITION 5/1A/00')]
    times = [when for when, _ in stamped(main.log())]
    assert times == sorted(times)
    assert before - 1e-6 <= times[-1] <= time.time()


def test_how_long_it_took_is_in_the_line(helper, disks, target):
    main, fd, nexus = helper('-v'), disks.open(0), target.nexus(0)
    nexus.delay_ms = 150
    with main.client() as client:
        begin = time.monotonic()
        client.out(fd, CLEAR)
        took = time.monotonic() - begin
    assert 150000 <= int(outs(main)[0][-1]) <= took * 1000000


def test_each_service_action_has_its_name(helper, disks):
    main, fd = helper('-v'), disks.open(0)
    with main.client() as client:
        for action in range(REGISTER, REGISTER_AND_MOVE + 1):
            client.out(fd, action)
    assert [line[4] for line in outs(main)] == [
        'REGISTER', 'RESERVE', 'RELEASE', 'CLEAR', 'PREEMPT',
        'PREEMPT AND ABORT', 'REGISTER AND IGNORE EXISTING KEY',
        'REGISTER AND MOVE']


@pytest.mark.parametrize('status, sense, text', [
    (BUSY, '', 'status 08h'), (TASK_SET_FULL, '', 'status 28h'),
    (0x18, '', 'RESERVATION CONFLICT'),
    (CHECK_CONDITION, '70000600000000' + '0a00000000' + '2a03' + '0000',
     'CHECK CONDITION 6/2A/03'),
    (CHECK_CONDITION, '720b0800' + '00000000', 'CHECK CONDITION B/08/00')])
def test_the_result_is_the_disks(helper, disks, target, status, sense, text):
    main, fd = helper('-v'), disks.open(0)
    target.nexus(0).answer(status, sense=bytes.fromhex(sense),
                           driver_status=8 if sense else 0)
    with main.client() as client:
        assert client.out(fd, CLEAR).status == status
    assert [line[-2] for line in outs(main)] == [text]


@pytest.mark.parametrize('when', [
    '1970-01-01 00:00:00', '1999-12-31 23:59:59', '2000-02-29 12:34:56',
    '2000-03-01 00:00:00', '2024-02-29 23:59:59', '2024-12-31 01:02:03',
    '2025-01-01 00:00:00', '2026-02-28 23:59:59', '2026-03-01 00:00:00',
    '2038-01-19 03:14:08', '2099-12-31 23:59:59', '2100-02-28 23:59:59',
    '2100-03-01 00:00:00', '2200-12-31 00:00:00', '2261-12-31 23:59:59'])
def test_the_time_is_that_of_the_clock(start, target, when):
    moment = datetime.datetime.fromisoformat(when + '+00:00').timestamp()
    main = start(SIM_HELPER, '-v',
                 env=dict(target.env, SIM_TIME='%d' % moment))
    assert {begin for begin, _ in stamped(main.log())} == {moment + 0.000007}


def name_of(major, minor):
    """By counting: sixteen majors of sixteen disks each, then again."""
    row = ([8] + list(range(65, 72)) + list(range(128, 136))).index(major)
    disk = minor // 256 * 256 + row * 16 + minor % 256 // 16
    return sim.disk_name(disk) + (str(minor % 16) if minor % 16 else '')


@pytest.mark.parametrize('major, minor', [
    (8, 0), (8, 1), (8, 15), (8, 240), (65, 144), (65, 160), (71, 255),
    (128, 0), (135, 240), (8, 256), (8, 0x100e1), (135, 0xffff0)])
def test_a_disk_has_the_kernels_name(helper, tmp_path, major, minor):
    main = helper('-v')
    fd = open_device(sim.device(tmp_path / 'd', major, minor))
    with main.client() as client:
        client.out(fd, CLEAR)
    os.close(fd)
    assert outs(main)[0][2] == '%s (%d:%d)' % (name_of(major, minor), major,
                                               minor)


def test_names_that_everybody_knows():
    assert [name_of(8, 0), name_of(65, 144), name_of(65, 160),
            name_of(8, 17)] == ['sda', 'sdz', 'sdaa', 'sdb1']


def test_what_is_no_disk_is_called_so(helper, tmp_path):
    main, read = helper('-v'), os.pipe()
    fds = [open_device(sim.device(tmp_path / 'sg', 21, 0, character=True)),
           open_device(sim.device(tmp_path / 'sg7', 21, 7, character=True)),
           open_device(sim.device(tmp_path / 'loop', 7, 3)),
           os.open(os.devnull, os.O_RDWR), read[1]]
    with main.client() as client:
        for fd in fds:
            client.out(fd, CLEAR)
    for fd in fds + [read[0]]:
        os.close(fd)
    assert [line[2] for line in outs(main)] == [
        'sg0 (21:0)', 'sg7 (21:7)', 'device (7:3)', 'device (1:3)',
        'no device']


@pytest.mark.parametrize('options', [[], ['-q'], ['-q', '-v']])
def test_without_v_commands_are_not_logged(helper, disks, options):
    main, fd = helper(*options), disks.open(0)
    with main.client() as client:
        client.out(fd, REGISTER_AND_IGNORE, 0, 1)
    assert main.stop() == 0
    assert 'uid' not in main.log()


# Events, with -T. ----------------------------------------

@MODES
def test_all_events_of_a_client_and_its_commands(helper, disks, tmp_path,
                                                 mode):
    path = str(tmp_path / 'trace')
    main, fd = helper('-T', '*,file=' + path, *mode), disks.open(0)
    wait_until(lambda: 'client_end' in events(path))
    with open(path, 'w'):
        pass                    # of what looked if the helper is ready
    with main.client() as client:
        client.out(fd, REGISTER_AND_IGNORE, 0, 0xa11ce)
        client.read_in(fd, READ_KEYS, 16)
    wait_until(lambda: 'client_end' in events(path))
    head = 'client pid %d uid %d: ' % US
    lines = [(event, re.sub(r'\d+ us', 'N us', text))
             for event, text in traced(path)]
    assert lines == [
        ('client_connect', head + 'connected'),
        ('request', head + '5f060000000000001800 to sda (8:0)'),
        ('pr_out', head + 'sda (8:0): service action 06h (REGISTER AND IGNORE '
         'EXISTING KEY), type 0, key 0, service action key a11ce: GOOD, '
         '0 bytes in N us'),
        ('request', head + '5e000000000000001000 to sda (8:0)'),
        ('pr_in', head + 'sda (8:0): service action 00h: GOOD, 16 bytes in '
         'N us'),
        ('client_end', head + 'disconnected')]
    assert main.stop() == 0
    assert 'uid' not in main.log()


@MODES
def test_the_end_of_who_has_to_go(helper, tmp_path, mode):
    path = str(tmp_path / 'trace')
    main = helper('-T', 'client_end,file=' + path, '--max-clients=1', *mode)
    wait_until(lambda: len(traced(path)) == 1)
    with main.client() as client, main.client():
        assert client.closed()
        assert main.stop() == 0
    assert traced(path)[1:] == 2 * [
        ('client_end', 'client pid %d uid %d: told to leave' % US)]


@pytest.mark.parametrize('mode', ['sessions', 'single-process'])
def test_a_command_on_a_map(tmp_path, mode):
    path = str(tmp_path / 'trace')
    lab = Lab(mode, options=('-T', '*,file=' + path))
    try:
        lab.mpd.on('^unsetprhold', 'garbage', count=1)
        lab.nexus(0).delay_ms = 60
        begin = time.monotonic()
        lab.out(REGISTER_AND_IGNORE, 0, KEY)
        took = (time.monotonic() - begin) * 1000000
        lab.out(RELEASE, KEY + 1)
        lines, log = traced(path), outs(lab.helper)
    finally:
        lab.close()
    assert [line[2:-1] for line in log] == [
        ('dm-0 (253:0)', '06', 'REGISTER AND IGNORE EXISTING KEY', '0', '0',
         '%x' % KEY, 'GOOD'),
        ('dm-0 (253:0)', '02', 'RELEASE', '0', '%x' % (KEY + 1), '0',
         'RESERVATION CONFLICT')]
    assert 60000 <= int(log[0][-1]) <= took
    assert sorted(text for event, text in lines
                  if event == 'path' and ': 5f06' in text) == [
        'dm-0 (mpatha), sd%s: 5f06: answers GOOD' % letter
        for letter in 'abc']
    asked = [text for event, text in lines if event == 'multipathd']
    assert "multipathd, 'getprkey map dm-0': none" in asked
    assert "multipathd, 'setprkey map dm-0 key %x': ok" % KEY in asked
    with open(path, 'rb') as f:         # garbage has come as question marks
        assert not re.search(rb'[\x00-\x09\x0b-\x1f\x7f]', f.read())


def test_a_path_that_fails_is_traced(tmp_path):
    path = str(tmp_path / 'trace')
    lab = Lab(options=('-T', 'path,file=' + path))
    try:
        for nexus in 0, 1, 2:
            lab.nexus(nexus).answer(host_status=1)
        lab.client.read_in(lab.map, READ_KEYS)
    finally:
        lab.close()
    assert any(text.startswith('dm-0 (mpatha), sda: 5e00: answers CHECK')
               for event, text in traced(path))
    assert events(path) == {'path'}


@pytest.mark.parametrize('patterns, on', [
    (['*'], 'client_connect client_end request pr_in pr_out'),
    (['client_*'], 'client_connect client_end'), (['pr_?n'], 'pr_in'),
    (['*_*n*'], 'client_connect client_end pr_in'), (['request'], 'request'),
    (['enable=*out'], 'pr_out'), (['*', '-client_*'], 'request pr_in pr_out'),
    (['-*', 'pr_in'], 'pr_in'), (['pr_in', '-*'], ''), (['**?', '-p*'],
     'client_connect client_end request'), (['request?'], ''), (['reques'], ''),
    (['pr_in,enable=pr_out'], 'pr_in pr_out')])
def test_patterns(helper, disks, tmp_path, patterns, on):
    path = str(tmp_path / 'trace')
    options = [word for pattern in patterns for word in ('-T', pattern)]
    main, fd = helper(*options, '-T', 'file=' + path), disks.open(0)
    with main.client() as client:
        client.out(fd, CLEAR)
        client.read_in(fd, READ_KEYS)
    assert main.stop() == 0
    assert events(path) == set(on.split())


def test_patterns_from_a_file(helper, disks, tmp_path):
    path, patterns = str(tmp_path / 'trace'), tmp_path / 'events'
    patterns.write_text('# not pr_out\n\npr_*\n-pr_out\n#request\nno_such\n'
                        + 'x' * 300 + '\nclient_connect')
    main = helper('-T', 'events=%s,file=%s' % (patterns, path))
    fd = disks.open(0)
    with main.client() as client:
        client.out(fd, CLEAR)
        client.read_in(fd, READ_KEYS)
    assert main.stop() == 0
    assert events(path) == {'client_connect', 'pr_in'}
    assert main.log().count('does not exist') == 2
    assert "trace event 'no_such' does not exist" in main.log()


@MODES
def test_without_a_file_events_go_where_messages_go(helper, disks, mode):
    main, fd = helper('-q', '-T', 'pr_*', *mode), disks.open(0)
    with main.client() as client:
        for _ in range(40):     # no limit as for warnings
            client.out(fd, CLEAR)
    assert main.stop() == 0
    lines = stamped(main.log())
    assert len(lines) == main.log().count('\n') == 40
    assert all(line.startswith('pr_out: client pid %d uid %d: ' % US)
               for _, line in lines)


@pytest.mark.parametrize('to', ['messages', 'file'])
def test_what_is_traced_and_logged_is_one_line_in_each_place(
        helper, disks, tmp_path, to):
    option = ',file=%s/trace' % tmp_path if to == 'file' else ''
    main, fd = helper('-v', '-T', 'pr_out' + option), disks.open(0)
    with main.client() as client:
        client.out(fd, CLEAR)
    assert main.stop() == 0
    assert main.log().count('CLEAR') == 1
    assert main.log().count('pr_out: ') == (to == 'messages')
    if to == 'file':
        assert len(traced(tmp_path / 'trace')) == 1


def test_the_file_is_appended_to(helper, tmp_path):
    path = tmp_path / 'trace'
    path.write_text('before\n')
    helper('-T', 'client_*', '-T', 'file=%s/other' % tmp_path,
           '-T', 'file=%s' % path)
    lines = path.read_text().splitlines()
    assert lines[0] == 'before' and len(lines) >= 2
    assert (tmp_path / 'other').read_text() == ''


def test_a_fifo_that_nobody_reads_harms_nobody(helper, disks, tmp_path):
    path, fd = str(tmp_path / 'fifo'), disks.open(0)
    os.mkfifo(path)
    run = subprocess.run([SIM_HELPER, '-T', 'file=' + path], timeout=20,
                         capture_output=True, text=True)
    assert run.returncode == 1 and path in run.stderr
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    main = helper('-T', '*,file=' + path)
    with main.client() as client:
        for _ in range(600):    # more than a pipe holds
            client.out(fd, CLEAR)
        os.close(reader)        # from here on, SIGPIPE
        for _ in range(3):
            assert client.out(fd, CLEAR).status != GOOD
    assert main.stop() == 0 and not main.crashes()


@MODES
@pytest.mark.parametrize('soft, hard', [(256, None), (256, 256), (24, 24)])
def test_a_limit_to_descriptors_leaves_room_for_the_file(
        helper, disks, tmp_path, mode, soft, hard):
    """The session's own limit is below the file: see sandbox.c."""
    if hard is None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    path, fd = str(tmp_path / 'trace'), disks.open(0)
    main = helper('-T', 'request,file=' + path, *mode,
                  preexec_fn=lambda: resource.setrlimit(
                      resource.RLIMIT_NOFILE, (soft, hard)))
    with main.client() as client:
        for _ in range(3):
            assert client.read_in(fd, READ_KEYS).status == GOOD
        for session in main.sessions():
            numbers = [fd for fd, link in descriptors(session).items()
                       if link == path]
            limit = resource.prlimit(session, resource.RLIMIT_NOFILE)[0]
            assert min(hard, 513) - 2 == limit <= numbers[0]
    assert len(traced(path)) == 3
    assert main.stop() == 0 and not main.crashes()


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))


def test_a_file_that_takes_no_more_harms_nobody(helper, disks, tmp_path):
    path, fd = tmp_path / 'trace', disks.open(0)
    read, write = os.pipe()
    main = helper('-T', 'request,file=%s' % path, preexec_fn=limit_files,
                  stderr=write)
    with main.client() as client:
        for _ in range(20):
            assert client.read_in(fd, READ_KEYS).status == GOOD
        os.kill(main.sessions()[0], signal.SIGKILL)
    wait_until(lambda: not main.sessions())
    assert path.stat().st_size == 400
    assert main.stop() == 0
    os.close(write)
    assert b'of signal 9' in os.read(read, 4096)
    os.close(read)


# Refusals. ----------------------------------------

def refusals(main):
    return re.findall(r'warning: client pid (\d+) uid (\d+): command refused: '
                      '(.*)', main.log())


@MODES
@pytest.mark.parametrize('error', [errno.EPERM, errno.EACCES])
def test_what_the_kernel_refuses_is_logged_once_per_client(
        helper, disks, target, mode, error):
    """As for CAP_SYS_RAWIO in a user namespace, or SELinux."""
    main, fd = helper(*mode), disks.open(0)
    target.nexus(0).fail_ioctl(error, 8)
    for _ in range(2):
        with main.client() as client:
            for _ in range(2):
                assert client.read_in(fd, READ_KEYS).status == CHECK_CONDITION
                assert client.out(fd, CLEAR).status == CHECK_CONDITION
    assert main.stop() == 0
    found = refusals(main)
    assert [line[:2] for line in found] == 2 * [tuple(map(str, US))]
    assert all('CAP_SYS_RAWIO' in line[2] for line in found)


@MODES
def test_another_error_is_no_refusal(helper, disks, target, mode):
    main, fd = helper(*mode), disks.open(0)
    target.nexus(0).fail_ioctl(errno.EIO, 8)
    with main.client() as client:
        assert client.read_in(fd, READ_KEYS).status == CHECK_CONDITION
    assert main.stop() == 0 and not refusals(main)


@pytest.mark.parametrize('mode', ['sessions', 'single-process'])
def test_refusals_on_a_map_are_logged_once_per_client(tmp_path, mode):
    lab = Lab(mode)
    try:
        for nexus in 0, 1, 2:
            lab.nexus(nexus).fail_ioctl(errno.EPERM, 1000)
        for _ in range(3):
            assert lab.client.read_in(lab.map,
                                      READ_KEYS).status == CHECK_CONDITION
        with lab.helper.client() as other:
            other.read_in(lab.map, READ_KEYS)
            wait_until(lambda: len(refusals(lab.helper)) >= 2)
            found = refusals(lab.helper)
    finally:
        for nexus in 0, 1, 2:
            lab.nexus(nexus).inject_count = 0
        lab.close()
    assert [line[:2] for line in found] == 2 * [tuple(map(str, US))]
    assert all('CAP_SYS_RAWIO' in line[2] for line in found)


# What one client may cause. ----------------------------------------

@contextlib.contextmanager
def another_peer(action):
    """Calls action() in a process of its own, which stays; gives its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = action()         # noqa: F841
            os.write(write, b'x')
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b'x'
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


def ask_in_vain(main, fd, times=1):
    for _ in range(times):
        with main.client() as client:
            assert client.read_in(fd, READ_KEYS).status == CHECK_CONDITION


def lost(main):
    return sum(map(int, re.findall(r'\((\d+) lines lost\)', main.log())))


@MODES
def test_one_client_does_not_hide_the_warnings_of_others(helper, mode):
    main, count = helper(*mode), 50
    with open(os.devnull, 'r+b') as file:
        ask_in_vain(main, file.fileno(), count)
        with another_peer(lambda: ask_in_vain(main, file.fileno())) as pid:
            pass
    # Without another word from anybody, it says how many it has not told.
    wait_until(lambda: len(refusals(main)) + lost(main) == count + 1)
    assert str(pid) in [line[0] for line in refusals(main)]
    assert main.stop() == 0


@MODES
def test_who_comes_and_goes_does_not_have_it_told_each_time(helper, mode):
    main, begin = helper(*mode), time.monotonic()
    with open(os.devnull, 'r+b') as file:
        ask_in_vain(main, file.fileno(), 150)
    wait_until(lambda: len(refusals(main)) + lost(main) == 150)
    assert main.stop() == 0
    assert (main.log().count('lines lost')
            < 3 * (2 + time.monotonic() - begin)), main.log()


@MODES
def test_one_client_does_not_hide_that_others_are_disconnected(helper, mode):
    main = helper('--max-clients=6', *mode)
    for client in [main.client() for _ in range(40)]:
        client.close()
    with another_peer(lambda: [main.client() for _ in range(9)]) as pid:
        main.wait_log('disconnecting one of pid %d ' % pid)
    assert main.stop() == 0


@pytest.mark.parametrize('mode', ['sessions', 'single-process'])
def test_one_client_does_not_hide_the_warnings_of_workers(mode):
    lab, count = Lab(mode), 30
    try:
        assert lab.helper.stop() == 0
        lab.helper = main = Helper(
            lab.dir, SIM_HELPER,
            ['--single-process'] * (mode != 'sessions'), env=lab.env)

        def warnings():
            return main.log().count('no path is usable')
        for nexus in 0, 1, 2:
            lab.root.leave(0, nexus)
        ask_in_vain(main, lab.map, count)
        wait_until(lambda: warnings() + lost(main) == count)
        ask_in_vain(main, lab.map, 20)
        before = warnings()
        with another_peer(lambda: ask_in_vain(main, lab.map)):
            wait_until(lambda: warnings() == before + 1)
        wait_until(lambda: warnings() + lost(main) == count + 21)
    finally:
        lab.reset()
        lab.close()


def test_what_was_lost_last_is_told_at_exit(helper):
    main, count = helper(), 20
    with open(os.devnull, 'r+b') as file:
        ask_in_vain(main, file.fileno(), count)
    assert main.stop() == 0
    assert len(refusals(main)) + lost(main) == count


@MODES
def test_what_another_line_has_told_is_not_told_again(helper, mode):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)      # not the helper's, which opens it anew
    main, text = helper(*mode, stderr=writer), b''
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b'.')
    os.kill(main.pid, signal.SIGUSR1)
    main.client().close()       # so that it has something to do
    time.sleep(2)       # what it says of that line then is lost as well
    os.read(reader, 65536)
    os.kill(main.pid, signal.SIGUSR1)
    main.client().close()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if select.select([reader], [], [], .1)[0]:
            text += os.read(reader, 4096)
    assert b'lines lost) ' in text and b'nobody took them' not in text, text
    assert main.stop() == 0
    os.close(reader)
    os.close(writer)


# SIGUSR1. ----------------------------------------

TOTALS = re.compile(r'clients: (\d+) now, (\d+) ever; commands: (\d+), errors: '
                    r'(\d+); multipath workers: (\d+)$')
LINE = re.compile(CLIENT + r'(.*), commands: (\d+), errors: (\d+), the last '
                  r'(\d+) s ago$')


def ask(main):
    """The totals, and the line of each client."""
    begin = len(main.log())
    os.kill(main.pid, signal.SIGUSR1)

    def answer():
        rest = [rest for _, rest in stamped(main.log()[begin:])]
        return ([tuple(map(int, m.groups())) for m in map(TOTALS.match, rest)
                 if m], [m.groups() for m in map(LINE.match, rest) if m])
    wait_until(lambda: answer()[0] and len(answer()[1]) >= answer()[0][0][0])
    totals, lines = answer()        # one may have come in between
    assert len(totals) == 1 and len(lines) >= totals[0][0], main.log()
    return totals[0], lines


@MODES
def test_status_of_clients_and_totals(helper, disks, mode):
    main, fd = helper('-q', *mode), disks.open(0)
    wait_until(lambda: ask(main) == ((0, 1, 0, 0, 0), []))  # who looked
    with main.client() as client, main.client() as other:
        client.out(fd, REGISTER_AND_IGNORE, 0, 1)
        client.out(fd, RESERVE, 2)
        other.read_in(fd, READ_KEYS)
        other.read_in(fd, READ_KEYS)
        other.read_in(fd, 31)
        pid, uid = map(str, US)
        wait_until(lambda: ask(main) == ((2, 3, 5, 2, 0), [
            (pid, uid, 'idle', '2', '1', '0'),
            (pid, uid, 'idle', '3', '1', '0')]))
    # Those that are gone still count.
    wait_until(lambda: ask(main) == ((0, 3, 5, 2, 0), []))
    with main.client() as client:
        client.read_in(fd, READ_KEYS)
        wait_until(lambda: ask(main)[0] == (1, 4, 6, 2, 0))
    assert main.stop() == 0


@MODES
def test_the_state_of_a_client(helper, disks, mode):
    main, fd = helper('-q', *mode), disks.open(0)

    def states():
        return [line[2] for line in ask(main)[1]]
    with Client(main.path, hello=False) as client:
        wait_until(lambda: states() == ['greeting'])
        client.read(4)
        client.sock.sendall(bytes(4))
        wait_until(lambda: states() == ['idle'])
        client.send(pr_out(REGISTER), [fd])
        wait_until(lambda: states() == ['sending'])
        client.sock.sendall(parameters(0, 1))
        assert client.reply().status == GOOD
        wait_until(lambda: states() == ['idle'])


def test_a_client_whose_disk_hangs(helper, disks, target):
    main, fd, nexus = helper('-q', '--max-clients=1'), disks.open(0), \
        target.nexus(0)
    with nexus.hanging(), main.client() as client:
        client.send(pr_in(READ_KEYS), [fd])
        nexus.wait_in_flight(1)
        session, = main.sessions()
        time.sleep(1.1)
        _, ((*_, state, commands, errors, silent),) = ask(main)
        assert (state, commands, errors) == ('executing', '1', '0')
        assert 1 <= int(silent) <= 20
        os.kill(session, signal.SIGUSR1)        # it does not care
        with main.client() as other:
            wait_until(lambda: {line[2] for line in ask(main)[1]}
                       == {'told to leave', 'idle'})
            assert ask(main)[0][:2] == (2, 3)
            other.close()
        nexus.hold = 0
        assert client.reply().status == GOOD
    assert nexus.commands == 1
    wait_until(lambda: ask(main) == ((0, 3, 1, 0, 0), []))


def test_workers_are_counted_and_ignore_the_signal(tmp_path):
    lab = Lab()
    try:
        for nexus in 0, 1, 2:
            lab.nexus(nexus).hold = 1
        lab.client.send(pr_in(READ_KEYS), [lab.map])
        wait_until(lambda: len(lab.workers()) == 1)
        wait_until(lambda: any(lab.nexus(n).in_flight for n in range(3)))
        assert ask(lab.helper)[0][-1] == 1
        assert ask(lab.helper)[1][0][2] == 'executing'
        os.kill(lab.workers().pop(), signal.SIGUSR1)
        for nexus in 0, 1, 2:
            lab.nexus(nexus).hold = 0
        assert lab.client.reply().status == GOOD
        lab.wait_idle()
        wait_until(lambda: ask(lab.helper)[0][-1] == 0)
    finally:
        lab.close()


@MODES
def test_a_session_ignores_the_signal(helper, disks, mode):
    main, fd = helper('-q', *mode), disks.open(0)
    with main.client() as client:
        client.read_in(fd, READ_KEYS)
        for pid in main.sessions():
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.05)
        assert main.log() == ''
        assert client.read_in(fd, READ_KEYS).status == GOOD
        assert len(ask(main)[1]) == 1


@MODES
def test_each_request_is_answered_for_all_clients(helper, mode):
    main = helper('-q', *mode)
    clients = [main.client() for _ in range(50)]
    wait_until(lambda: ask(main)[0][0] == 50)
    for _ in range(15):         # no limit as for warnings
        totals, lines = ask(main)
        assert totals[:2] == (50, 51) and len(lines) == 50
    for client in clients:
        client.close()
    assert 'lost' not in main.log()


def test_more_lines_than_fit_into_a_pipe(helper, target):
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
    os.set_blocking(read, False)
    main = helper('-q', stderr=write)
    clients = [main.client() for _ in range(80)]
    wait_until(lambda: len(main.sessions()) == 80)

    def whole():
        os.kill(main.pid, signal.SIGUSR1)
        text, end = b'', time.monotonic() + 1
        while text.count(b'\n') < 81 and time.monotonic() < end:
            select.select([read], [], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                text += os.read(read, 65536)
        return b'lost' not in text and text.count(b'\n') == 81
    wait_until(whole)       # if we are given enough time to read, that is
    for fd in clients + [os.fdopen(read), os.fdopen(write)]:
        fd.close()


def test_clients_with_a_command_do_not_keep_the_answer_away(helper, disks):
    main, fd = helper('-q', '--single-process'), disks.open(0)
    with main.client() as client:
        end = time.monotonic() + 20
        os.kill(main.pid, signal.SIGUSR1)
        while 'the last' not in main.log():
            client.read_in(fd, READ_KEYS)
            assert time.monotonic() < end


def records(pid):
    """Where the memory is that a session shares with main."""
    with open('/proc/%d/maps' % pid) as f:
        for line in f:
            if ' rw-s ' in line and '/dev/zero' in line:
                begin, end = line.split()[0].split('-')
                yield int(begin, 16), int(end, 16)


def test_main_believes_no_record(helper, disks):
    """A session that is an attacker's has filled its record with bytes."""
    main, fd = helper('-q'), disks.open(0)
    with main.client() as client:
        client.read_in(fd, READ_KEYS)
        main.wait_sessions(1)
        session, = main.sessions()
        needle = struct.pack('=iI', *US)
        with open('/proc/%d/mem' % session, 'r+b', buffering=0) as memory:
            for begin, end in records(session):
                memory.seek(begin)
                at = memory.read(end - begin).find(needle)
                if at >= 0:
                    break
            assert at >= 0, 'its record is not there'
            for byte in b'\xff\x80\x7f\x06\x00':
                memory.seek(begin + at)
                memory.write(bytes([byte]) * 48)
                totals, lines = ask(main)
                assert totals[:2] == (1, 2)
                assert lines[0][2] in ('greeting', 'idle', 'sending',
                                       'executing', 'receiving')
                assert not re.search('[^ -~\n]', main.log())
    wait_until(lambda: ask(main)[0][0] == 0)
    assert main.stop() == 0
