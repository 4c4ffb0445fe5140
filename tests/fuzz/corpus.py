"""corpus.py DIRECTORY: writes the inputs that fuzzing begins with.

Each becomes DIRECTORY/TARGET/NUMBER. They are written here as text, in the
words of the tests; what the bytes mean to a target is said in its source.
An input that once made a target fail is added here, and stays.

It must never depend on anything but what stands here and in prclient.py.
"""
import os
import struct
import sys

sys.path.insert(0, os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'lib'))
from prclient import (                                      # noqa: E402
    READ_KEYS, REGISTER, REPORT_CAPABILITIES, RESERVE, parameters, pr_in,
    pr_out)


# What recvmsg() and send() give, see client.c.
def comes(data, fds=0, size=0):
    """All of data, or its next size bytes, with so many descriptors."""
    return bytes([fds << 4 | size]) + data


def error(number):
    return bytes([0xf0 | number])


ALL = b'\0'
HELLO = ALL + comes(bytes(4))
AGAIN, INTERRUPTED, RESET = (error(n) for n in range(3))
WOULD_BLOCK, BROKEN_PIPE = b'\xff', b'\xfd'
CREDENTIALS_AND_FD, CREDENTIALS = 13, 14


def result(payload=0, status=0, fill=b'', sense=0, vet=0):
    """A command is vetted and executed, and its reply is taken."""
    return (bytes([vet]) + fill + struct.pack('>HBB', payload, status, sense))


READ = comes(pr_in(READ_KEYS), 1)
READ_DONE = result(8192, fill=b'k') + ALL
WRITE = comes(pr_out(REGISTER), 1) + comes(parameters(0, 0xa11ce))

CLIENT = [
    b'',
    HELLO,
    HELLO + READ + READ_DONE,
    HELLO + WRITE + result() + ALL,
    HELLO + comes(pr_out(REGISTER, length=0), 1) + result() + ALL,
    HELLO + READ + READ_DONE + WRITE + result(status=0x18) + ALL + READ
    + result(16, 2, b'k', 0x70) + ALL,
    HELLO + WRITE + result(24, 0, sense=0x55) + ALL,
    HELLO + comes(pr_in(READ_KEYS, 8), 1) + result(65535, fill=b'k') + ALL,
    HELLO + comes(pr_in(READ_KEYS, 0), 1) + result(1, fill=b'k') + ALL,
    HELLO + READ + result(0, 2, sense=0x70, vet=3) + ALL,
    # a multipath map: asked for, and answered; given up; not to be asked for
    HELLO + READ + b'\2\0\0' + result(8192, fill=b'k')[1:] + ALL,
    HELLO + WRITE + b'\2\0\0' + result(status=0x18)[1:] + ALL,
    HELLO + WRITE + b'\2\0\xff', HELLO + WRITE + b'\2\xff' + ALL,
    HELLO + comes(b'\xff' + bytes(15), 1) + b'\2\0\0' + result()[1:] + ALL,
    HELLO + comes(b'\xff' + bytes(15), 1) + result() + ALL,
    HELLO + comes(b'\xff' + bytes(6) + b'\xff' + bytes(8), 1) + result() + ALL,
    # in pieces
    b'\1' + b'\2' + ALL + comes(b'\0', size=1) + comes(bytes(3))
    + comes(READ[1:6], 1, 5) + comes(READ[6:]) + result(100, fill=b'k')
    + b'\x08' + b'\x64' + WOULD_BLOCK + ALL,
    HELLO + comes(WRITE[1:10], 0, 9) + AGAIN + comes(WRITE[10:17], 1, 7)
    + comes(b'12345678', size=8) + INTERRUPTED + comes(bytes(16))
    + result() + b'\1' + ALL,
    HELLO + READ + result(8192, fill=b'k') + BROKEN_PIPE,
    # against the rules
    ALL + comes(bytes(4), 1),
    ALL + comes(b'\0\0\0\1') + READ + READ_DONE, ALL + comes(b'\0\0\0\2'),
    ALL + comes(b'\x80\0\0\0'),
    HELLO + comes(READ[1:]),
    HELLO + comes(READ[1:], 2),
    HELLO + comes(READ[1:], 12),
    HELLO + comes(READ[1:5], 1, 4) + comes(READ[5:], 1),
    HELLO + comes(b'\x5d' + READ[2:], 1),
    HELLO + comes(pr_in(READ_KEYS, 8193), 1),
    HELLO + comes(pr_out(REGISTER, length=8193), 1),
    HELLO + comes(pr_out(REGISTER, length=0x10018), 1)
    + comes(bytes(24)) + result(status=2, vet=3) + ALL,
    HELLO + WRITE[:17] + comes(parameters(), 1),
    HELLO + WRITE[:25],
    HELLO + READ[:9],
    HELLO + comes(READ[1:5], 1, 4) + RESET,
    HELLO + comes(READ[1:], CREDENTIALS_AND_FD) + READ_DONE,
    ALL + comes(bytes(4), CREDENTIALS) + READ + READ_DONE,
]


# What the descriptor is and what SG_IO says, see sg_io.c.
DISK, NULL, SG, TAPE = (0, 8, 16), (1, 1, 3), (1, 21, 0), (1, 9, 0)
FILE, NO_STATUS = (2, 0, 0), (7, 0, 0)
RW, RO, WO, PATH, IOCTL_ONLY, CLOSED = 0, 1, 2, 3, 4, 6


def command(cdb=pr_in(READ_KEYS, 64), kind=DISK, mode=RW, sysfs=0, errno=0,
            host=0, driver=0, status=0, sense=0, resid=0, data=64):
    kind, major, minor = kind
    return (struct.pack('>BBH', mode, kind, major)
            + struct.pack('>I', minor)[1:]
            + bytes([sysfs >> 2 & 1, sysfs >> 1 & 1, sysfs & 1]) + cdb
            + struct.pack('>BHHBBiH', errno, host, driver, status, sense,
                          resid, data))


REGISTERING = pr_out(REGISTER)
SG_IO = [
    command(),
    command(REGISTERING),
    command(kind=SG), command(REGISTERING, SG, data=0),
    command(pr_in(REPORT_CAPABILITIES, 0)),
    command(pr_out(RESERVE, length=0)),
    command(pr_in(READ_KEYS, 8192), data=8256),
    # what is not served
    command(REGISTERING, mode=RO), command(REGISTERING, mode=PATH),
    command(REGISTERING, mode=IOCTL_ONLY), command(REGISTERING, mode=CLOSED),
    command(REGISTERING, mode=WO), command(mode=RO),
    command(pr_out(REGISTER, length=0x10018)),
    *(command(b'\xff' + bytes(15), kind, mode) for kind in [DISK, FILE]
      for mode in [RW, RO]),
    command(b'\xff' + bytes(15), (0, 253, 1), sysfs=5),
    command(kind=NULL), command(kind=TAPE), command(kind=FILE),
    command(kind=NO_STATUS, errno=9),
    *(command(kind=(0, major, minor)) for major, minor in [
        (8, 17), (65, 0), (71, 240), (72, 0), (128, 16), (135, 15), (136, 0),
        (264, 0), (7, 0)]),
    *(command(kind=(0, 253, 1), sysfs=there) for there in [0, 1, 3, 5]),
    # what SG_IO says
    *(command(errno=number) for number in [
        33, 52, 121, 12, 19, 61, 123, 22, 28, 25, 4, 5]),
    *(command(host=number) for number in [
        1, 2, 3, 4, 5, 7, 8, 14, 16, 17, 18, 19, 256]),
    command(driver=6), command(driver=8), command(driver=7),
    command(status=2, sense=18, driver=8), command(status=2, sense=252),
    command(status=2), command(status=0x18), command(status=8, sense=32),
    *(command(resid=number, data=8) for number in [
        56, 64, 65, -1, 2 ** 31 - 1, -2 ** 31]),
]


OPTIONS = [
    '', '-k\n/run/s', '--socket=/run/s', '-k\nrelative', '-k', '-qk\n/run/s',
    '-d\n-f\n/run/p', '--pidfile=/run/p\n--daemon', '-f\n',
    '-h', '--help', '-V', '--version', '--ver', '-x', '--nothing', '--daemon=1',
    '-u\nuser\n-g\ngroup', '--user=0', '-u007', '-g4294967294',
    '-u\n4294967295', '-u\n-1', '-u\n 1', '-g\n18446744073709551616', '-u\n',
    '-u\nuser:x', '-g\nuse', '-g\n:',
    '-u\n' + 300 * 'u',
    '-q', '-v\n-v\n-vvv', '-T\nhelp', '-T\nenable=*', '-Tpr*,file=/t',
    '-T\nevents=/e,file=/f', '-T\nevents=x', '--trace=file=x', '-T\nfoo=1',
    '-T\n,', '-T\nname,enable=other', '-T\nenable', '-T\na,b',
    '--single-process\n--max-clients=1', '--max-clients=8192',
    '--max-clients=0', '--max-clients\n8193', '--client-timeout=1',
    '--client-timeout=86400', '--client-timeout=0', '--client-timeout=1s',
    '--stop-timeout=0', '--stop-timeout=86401', '--stop-timeout=-1',
    '--stop-timeout=99999999999999999999',
    '--sandbox=off', '--sandbox=on', '--sandbox=no', 'a\nb\n--\n-k\n/c',
    'a\n-T\nfile=b',
]


# PID is 123; a line of digits is what the system calls answer.
LISTEN = [
    '', 'PID=123\nFDS=1', 'PID=123\nFDS=1\n1', 'PID=123\nFDS=2',
    'PID=123\nFDS=0', 'PID=123\nFDS=', 'PID=123\nFDS=-1', 'PID=123\nFDS=1x',
    'PID=123\nFDS=99999999999999999999', 'PID=124\nFDS=1', 'PID=\nFDS=1',
    'PID=123x\nFDS=1', 'PID=+123\nFDS= 1', 'PID=18446744073709551739\nFDS=1',
    'FDS=1', 'PID=123',
    *('PID=123\nFDS=1\n' + answers for answers in [
        '0001', '02', '0100', '0020', '00001']),
    'NOTIFY=/run/notify', 'NOTIFY=@notify', 'NOTIFY=relative', 'NOTIFY=',
    'NOTIFY=@', 'NOTIFY=/' + 106 * 'n', 'NOTIFY=/' + 107 * 'n',
    'NOTIFY=@' + 107 * 'n', 'NOTIFY=/n\n000000003', 'NOTIFY=/n\n00000001',
    *('NOTIFY=/n\nEXEC=' + pid for pid in ['123', '124', '', '123x']),
    'PATH=/' + 106 * 's', 'PATH=/' + 107 * 's', 'PATH=',
    # another flag, whose directory, socket, bind, then lstat, listen, lstat; or
    # open, fstat, /proc, socket, connect, getsockopt or unlink; or rename
    *('PATH=/s\n0%s0' % directory + answers for directory in '01'
      for answers in [
          '0101', '0103', '011', '10', '1120', '1121', '1122', '11131',
          *('1110' + rest for rest in [
              '01', '000', '001', '002', '010', '0110', '02222', '03', '04',
              '05', '00000101', '1'])]),
]


# What a disk answers, see admin/decode.c; and an initiator as it is given.
def listing(action, *entries, length=None, whole=False):
    data = b''.join(entries)
    return bytes([action | whole << 7]) + struct.pack(
        '>II', 1, len(data) if length is None else length) + data


def full(flags, scope_type, transport, length=None):
    return struct.pack('>Q4xBB4xHI', 0xa11ce, flags, scope_type, 1,
                       len(transport) if length is None else length
                       ) + transport


FC, SAS, ISCSI = bytes(24), b'\6' + bytes(23), b'\5\0\0\x08iqn.a:b\0'
DECODE = [
    b'', b'\0', b'\1', b'\2', b'\3', b'\0' + bytes(7),
    listing(0), listing(0, bytes(8)), listing(0, bytes(16), length=8),
    listing(0, bytes(12)), listing(0, length=2 ** 32 - 1),
    listing(0, bytes(8), length=2 ** 32 - 1, whole=True),
    listing(0, length=8184, whole=True),
    listing(1), listing(1, bytes(13) + b'\5\0\0'), listing(1, bytes(32)),
    listing(1, bytes(15)), listing(1, bytes(13) + b'\x2f\0\0'),
    b'\2\0\x08\x11\x80\xea\1\0\0', b'\2\0\x08\0\0\0\0\0\0', b'\2' + bytes(8),
    listing(3), listing(3, full(1, 5, SAS), full(2, 0, FC)),
    *(listing(3, full(0, 0, transport)) for transport in [
        ISCSI, b'\x45' + ISCSI[1:], b'\5\xff\xff\xffabc\x1b', b'\5\0\0', b'',
        b'\x86' + SAS[1:], SAS[:23], b'\4' + FC[1:]]),
    *(listing(3, full(0, 0, SAS, length)) for length in [
        0, 25, 2 ** 32 - 1, 2 ** 32 - 24]),
    *(b'\4\2' + sense for sense in [
        b'', b'\x70\0\5\0\0\0\0\x0a\0\0\0\0\x24\0', b'\x72\6\x2a\3',
        b'\xf1\0\xff\0\0\0\0\0\0\0\0\0\xff\xff', b'\x73\xff\xff\xff', b'\x7f']),
    *(bytes([4, status]) for status in [0, 4, 8, 0x18, 0x28, 0x30, 0x40, 255]),
    *(b'\5' + name for name in [
        b'', b'SAS 5001405000000001', b'fc:2100000e1e09ab01', b'SAS 5',
        b'iSCSI iqn.a:b', b'iscsi:iqn.a:b,i,0x00023d000001', b'iSCSI ',
        b'TransportID 04', b'TransportID 0', b'iSCSI ' + 250 * b'a']),
]


# What multipathd answers, see multipathd.c: once it has been found, and has
# been asked.
GETPRKEY, SETPRKEY, UNSETPRKEY, SETPRSTATUS, UNSETPRSTATUS = range(5)
GETPRHOLD, SETPRHOLD, UNSETPRHOLD, SUSPEND, RESUME = range(5, 10)
GETPRSTATUS, SHOW = 10, 11
FOUND = bytes([0, 0, 0])        # socket, connect, getsockopt
READY, ASKED = b'\0', b'\0'      # of ppoll, send


def packet(text, size=None):
    """ppoll and recv of the size, ppoll and recv of the text."""
    size = len(text) if size is None else size
    return (READY + b'\0' + struct.pack('@N', size % 2 ** 64) + READY + b'\0'
            + text)


def asked(what, reply, name=1):
    return bytes([what, name]) + FOUND + ASKED + reply


MULTIPATHD = [
    b'', b'\0', b'\0\1' + FOUND,
    *(asked(GETPRKEY, packet(text)) for text in [
        b'0xa11ce\n\0', b'none\n\0', b'0xa11ce:aptpl\n\0', b'0x\n\0',
        b'0x0\n\0', b'0xffffffffffffffff\n\0', b'0x10000000000000000\n\0',
        b'0x-1\n\0', b'a11ce\n\0', b'0xa11ce', b'0xa11ce:x\n\0', b'fail\n\0',
        b'0x' + 70 * b'0' + b'1\n\0', b'0xA\n\0']),
    *(asked(what, packet(text)) for what in range(1, 10) for text in [
        b'ok\n\0', b'fail\ntimeout\n\0']),
    *(asked(GETPRHOLD, packet(text)) for text in [
        b'set\n\0', b'unset\n\0', b'unknown\n\0', b'set\0']),
    *(asked(GETPRSTATUS, packet(text)) for text in [
        b'set\n\0', b'unset\n\0', b'1\0', b'0\0']),
    *(asked(SHOW, packet(text)) for text in [
        b'/sda active ready\n/sdb failed faulty\n\0', b'/sda failed faulty\n\0',
        b'/sdb active ready\n/sda failed ghost\n\0', b'/sda\n\0', b'\0',
        b'/sda failed', b'/sdaa failed faulty\n\0']),
    # by other names, and not at all
    *(asked(SUSPEND, packet(b'ok\n\0'), name) for name in range(5)),
    b'\x08\0' + b'\0\1\0' * 2 + FOUND + ASKED + packet(b'ok\n\0'),
    b'\x08\0' + b'\0\0\1\0' + FOUND + ASKED + packet(b'ok\n\0'),
    b'\x08\1' + b'\0' + b'\2' * 300, b'\x08\1\1', b'\x08\1\0\0\3',
    # in pieces, late, too much and too little
    asked(SUSPEND, b'\0\1\4\0\7' + bytes(7) + b'\0\1o\0\2k\n\0\0\0'),
    asked(SUSPEND, packet(b'ok\n\0', 0)), asked(SUSPEND, packet(b'ok\n\0', 1)),
    asked(SUSPEND, packet(b'ok\n\0', 3)), asked(SUSPEND, packet(b'ok\n\0', 9)),
    asked(SUSPEND, packet(b'ok\n\0', -1)), asked(SUSPEND, packet(70 * b'x')),
    asked(SUSPEND, b'\xff'), asked(SUSPEND, b'\xfe'),
    asked(SUSPEND, b'\0\xfd'), asked(SUSPEND, b'\0\xfe'),
    b'\x08\1' + FOUND + b'\xfe', b'\x08\1' + FOUND + b'\xff',
    b'\x08\1' + FOUND + b'\3',
]


def main(directory):
    targets = {'client': CLIENT, 'sg_io': SG_IO, 'options': OPTIONS,
               'listen': LISTEN, 'decode': DECODE,
               'multipathd': MULTIPATHD}
    for target, inputs in targets.items():
        os.makedirs(os.path.join(directory, target), exist_ok=True)
        for number, data in enumerate(inputs):
            path = os.path.join(directory, target, '%02d' % number)
            with open(path, 'wb') as f:
                f.write(data if isinstance(data, bytes) else data.encode())


if __name__ == '__main__':
    main(sys.argv[1])
