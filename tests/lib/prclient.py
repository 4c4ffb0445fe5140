"""The helper's wire protocol as QEMU's client speaks it, for the tests.

Everything here talks to a running helper over its socket and nothing else; it
must never import or assume anything of the helper under test, so that the
same test can be pointed at QEMU's own helper.
"""
import array
import fcntl
import os
import socket
import struct
import termios
import time
from collections import namedtuple

GOOD, CHECK_CONDITION, BUSY = 0x00, 0x02, 0x08
RESERVATION_CONFLICT, TASK_SET_FULL = 0x18, 0x28

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
(REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT,
 REGISTER_AND_IGNORE, REGISTER_AND_MOVE) = range(8)

WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
WRITE_EXCLUSIVE_RO, EXCLUSIVE_ACCESS_RO = 5, 6      # registrants only
WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR = 7, 8      # all registrants

Reply = namedtuple('Reply', 'status sense payload')


def sense_code(sense):
    """Sense key, ASC and ASCQ, as '5/24/00'; fixed or descriptor format."""
    if sense[0] & 0x7f in (0x72, 0x73):
        return '%X/%02X/%02X' % (sense[1] & 15, sense[2], sense[3])
    return '%X/%02X/%02X' % (sense[2] & 15, sense[12], sense[13])


def sense_data(key, asc, ascq, is_deferred=False):
    """Sense data of fixed format."""
    return struct.pack('>BxB4xB4xBB4x', 0x70 + is_deferred, key, 10, asc,
                       ascq)


def pr_in(service_action, length=8192):
    return struct.pack('>BB5xHB6x', 0x5e, service_action, length, 0)


def pr_out(service_action, type_=0, length=24, scope=0):
    return struct.pack('>BBB2xIB6x', 0x5f, service_action,
                       scope << 4 | type_, length, 0)


def parameters(key=0, sa_key=0, flags=0):
    """The 24-byte parameter list; flags is byte 20 (APTPL is bit 0)."""
    return struct.pack('>QQ4xB3x', key, sa_key, flags)


class Closed(Exception):
    """The helper closed the connection."""


class Client:
    def __init__(self, path, hello=True, timeout=30):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # To wait while the helper's backlog is full, as QEMU does.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO,
                             struct.pack('@ll', int(timeout) + 1, 0))
        self.sock.connect(path)
        self.sock.settimeout(timeout)
        self.features = None
        if hello:
            self.features = struct.unpack('>I', self.read(4))[0]
            self.sock.sendall(bytes(4))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def read(self, n):
        data = b''
        while len(data) < n:
            try:
                chunk = self.sock.recv(n - len(data))
            except (ConnectionResetError, BrokenPipeError):
                chunk = b''
            if not chunk:
                raise Closed('after %d of %d bytes' % (len(data), n))
            data += chunk
        return data

    def send(self, data, fds=()):
        """One sendmsg: the bytes with these descriptors on the first one."""
        control = []
        if fds:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                        array.array('i', fds))]
        return self.sock.sendmsg([data], control, socket.MSG_NOSIGNAL)

    def drained(self):
        """Wait until the helper has read every byte sent so far."""
        unread = array.array('i', [1])
        end = time.monotonic() + 30
        while time.monotonic() < end:
            fcntl.ioctl(self.sock, termios.TIOCOUTQ, unread)
            if unread[0] == 0:
                return True
            time.sleep(0.0001)
        return False

    def reply(self):
        status, size = struct.unpack('>II', self.read(8))
        sense = self.read(96)
        return Reply(status, sense, self.read(size))

    def request(self, cdb, fd, data=b''):
        """One command as QEMU sends it: CDB with fd, then the data."""
        self.send(cdb, [fd])
        if data:
            self.sock.sendall(data)
        return self.reply()

    def closed(self):
        """True once the helper has closed; False if it sent anything."""
        try:
            return self.sock.recv(1) == b''
        except (ConnectionResetError, BrokenPipeError):
            return True

    # The commands by name. -------------------------------------------------
    def read_in(self, fd, service_action, length=8192):
        return self.request(pr_in(service_action, length), fd)

    def out(self, fd, service_action, key=0, sa_key=0, type_=0, flags=0):
        return self.request(pr_out(service_action, type_), fd,
                            parameters(key, sa_key, flags))

    def keys(self, fd):
        r = self.read_in(fd, READ_KEYS)
        assert r.status == GOOD, r
        generation, length = struct.unpack('>II', r.payload[:8])
        return list(struct.unpack('>%dQ' % (length // 8),
                                  r.payload[8:8 + length]))

    def reservation(self, fd):
        """(key, type) of the reservation, or None."""
        r = self.read_in(fd, READ_RESERVATION)
        assert r.status == GOOD, r
        if struct.unpack('>I', r.payload[4:8])[0] == 0:
            return None
        return struct.unpack('>Q', r.payload[8:16])[0], r.payload[21] & 15


def open_device(path, flags=os.O_RDWR):
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
