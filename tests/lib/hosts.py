"""The hosts between which a guest moves (guest.py), and the rival who tries all
the time to do what its reservation forbids.

A host is an initiator of its own onto the one LUN (a multipath map's is two),
a helper of its own, and the QEMU that runs the guest, or waits for it. The
rival is not registered, and tries to write, to reserve, and, where the type
forbids that, to read; what it writes, and what hosts write to see whether they
may, goes to blocks that nobody else uses.

Must never use the helper under test for the outside view, and must never wait
without a deadline.
"""
import errno
import mmap
import os
import struct
import threading
import time

import cluster
import prclient as pr
from direct import sg_io
from guest import Guest, Helper

BLOCK, RIVALS, HOSTS = 512, 600, 704    # its size; those that they write
SOCKET = '/run/migration.sock'
DEADLINE = 120
EXCLUSIVE = 3, 6        # types that forbid others to read, too


def attempt(fd, cdb, data=b'', length=0):
    """A command's status, or the sense data that came instead."""
    hdr, sense, _ = sg_io(fd, cdb, data, length)
    return (pr.sense_code(sense) if hdr.status == pr.CHECK_CONDITION
            else hdr.status)


def block_cdb(operation, lba):
    """A READ(10) or WRITE(10) of one block."""
    return struct.pack('>BBIBHB', operation, 0, lba, 0, 1, 0)


class Trying(threading.Thread):
    """The rival, who tries all the time."""

    def __init__(self, type_):
        super().__init__(daemon=True)
        self.type, self.seen, self.ends = type_, {}, False
        self.start()

    def run(self):
        fd = os.open(cluster.RIVAL, os.O_RDWR)
        tries = [(block_cdb(0x2a, RIVALS), b'R' * BLOCK),
                 (pr.pr_out(pr.RESERVE, self.type), pr.parameters(0x2222))]
        if self.type in EXCLUSIVE:
            tries.append((block_cdb(0x28, RIVALS), b''))
        while not self.ends:
            for cdb, data in tries:
                result = attempt(fd, cdb, data, BLOCK)
                self.seen[result] = self.seen.get(result, 0) + 1
            time.sleep(0.02)
        os.close(fd)

    def refused(self):
        return self.seen.get(pr.RESERVATION_CONFLICT, 0)

    def breaches(self):
        return {result: count for result, count in self.seen.items()
                if result != pr.RESERVATION_CONFLICT
                and not str(result).startswith('6/')}

    def end(self):
        self.ends = True
        self.join()


def written_by_rival():
    """What there is of it on the disk, which was made of zeros."""
    with open('/run/disk0', 'rb') as disk:
        disk.seek(RIVALS * BLOCK)
        return disk.read(BLOCK).strip(b'\0')


class Host:
    def __init__(self, name, disk, nexuses, binary, qemu):
        self.name, self.disk, self.nexuses = name, disk, nexuses
        self.socket = '/run/pr-%s.sock' % name
        self.helper = Helper(binary, self.socket)
        self.qemu, self.guest = qemu, None

    def start(self, *options):
        self.guest = Guest(
            [*self.qemu, *options], self.disk, self.socket,
            '/run/qmp-%s.sock' % self.name, 'qemu-migrate.sh')
        return self.guest

    def expect(self):
        """A QEMU that waits for a guest."""
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
        self.start('-incoming', 'unix:' + SOCKET)
        cluster.wait_until(lambda: os.path.exists(SOCKET)
                           or self.guest.process.poll() is not None,
                           'QEMU waits on host ' + self.name)

    def runs(self):
        try:
            return self.guest.qmp('query-status')['status'] == 'running'
        except OSError:
            return False        # it is gone

    def end(self):
        """QEMU's exit status."""
        guest, self.guest = self.guest, None
        if guest.process.poll() is None:
            guest.qmp('quit')
        return guest.process.wait(DEADLINE)

    def kill(self):
        if self.guest:
            self.guest.process.kill()
            self.guest.process.wait()
            self.guest = None

    def attempt(self, operation):
        """What the kernel says to a direct transfer through each nexus."""
        results = set()
        for name in self.nexuses:
            fd = os.open('/dev/' + name, os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as buffer:
                try:
                    if operation == 'write':
                        os.pwrite(fd, memoryview(buffer), HOSTS * BLOCK)
                    else:
                        os.preadv(fd, [buffer], HOSTS * BLOCK)
                    results.add('done')
                except OSError as error:
                    results.add(errno.errorcode[error.errno])
                finally:
                    os.close(fd)
        return results
