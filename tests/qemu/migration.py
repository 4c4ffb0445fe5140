"""Live migration, run inside User-mode Linux by qemu.sh: a guest with a
reservation moves from host to host, and takes it along (QEMU's migrate-pr).

A host is an initiator of its own onto the one LUN (a multipath map's is two),
a helper of its own, and the QEMU that runs the guest:

    a   /dev/mapper/mpatha, of /dev/sda and /dev/sdb
    b   /dev/sdd
    c   /dev/sde

and /dev/sdc is a rival's, who is not registered, and at every moment at which
the guest holds its reservation tries to write, to reserve, and, where the
type forbids that, to read. What has become of the reservation is judged by
what the rival's nexus reads from the target.

Must never use the helper under test for the outside view, and must never
wait without a deadline; see chain.py, whose parts these are.

    usage: migration.py HELPER QEMU [QEMU-OPTION...]
"""
import errno
import mmap
import os
import re
import struct
import subprocess
import sys
import threading
import time

from chain import (GOOD, LOGS, TYPES, Guest, Helper, Rival, check, report)

import cluster
import prclient as pr
from direct import sg_io

RIVAL = '/dev/sdc'
BLOCK = 512
GUESTS, RIVALS, SOURCES = 512, 600, 700     # blocks that they write
SOCKET = '/run/migration.sock'
DEADLINE = 120
EXCLUSIVE = 3, 6        # types that forbid others to read, too
NAMES = dict(TYPES)


def transfer(fd, operation, lba, data=b''):
    """The status of a READ(10) or WRITE(10) of one block, or its sense."""
    cdb = struct.pack('>BBIBHB', operation, 0, lba, 0, 1, 0)
    hdr, sense, _ = sg_io(fd, cdb, data, length=BLOCK)
    return (pr.sense_code(sense) if hdr.status == pr.CHECK_CONDITION
            else hdr.status)


class Trying(threading.Thread):
    """The rival, who tries all the time."""

    def __init__(self, type_):
        super().__init__(daemon=True)
        self.type, self.seen, self.ends = type_, {}, False
        self.start()

    def run(self):
        fd = os.open(RIVAL, os.O_RDWR)
        tries = [lambda: transfer(fd, 0x2a, RIVALS, b'R' * BLOCK),
                 lambda: cluster.direct.out(fd, pr.RESERVE, 0x2222,
                                            type_=self.type).status]
        if self.type in EXCLUSIVE:
            tries.append(lambda: transfer(fd, 0x28, RIVALS))
        while not self.ends:
            for attempt in tries:
                result = attempt()
                self.seen[result] = self.seen.get(result, 0) + 1
            time.sleep(0.01)
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


class Host:
    def __init__(self, name, disk, nexuses, binary, qemu):
        self.name, self.disk, self.nexuses = name, disk, nexuses
        self.socket = '/run/pr-%s.sock' % name
        self.helper = Helper(binary, self.socket)
        self.qemu, self.guest = qemu, None

    def start(self, *options):
        self.guest = Guest(
            [*self.qemu, *options], self.disk, self.socket,
            '/run/qmp-%s.sock' % self.name, ',file.locking=off',
            ',share-rw=on,migrate-pr=on')
        return self.guest

    def expect(self):
        """A QEMU that waits for a guest."""
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
        self.start('-incoming', 'unix:' + SOCKET)
        cluster.wait_until(lambda: os.path.exists(SOCKET)
                           or self.guest.process.poll() is not None,
                           'QEMU waits on host ' + self.name)

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
                        os.pwrite(fd, memoryview(buffer), SOURCES * BLOCK)
                    else:
                        os.preadv(fd, [buffer], SOURCES * BLOCK)
                    results.add('done')
                except OSError as error:
                    results.add(errno.errorcode[error.errno])
                finally:
                    os.close(fd)
        return results


class Cluster:
    """The guest, wherever it is, its key and the type of its reservation."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.host = None
        self.rival = Rival()
        self.rival.device = RIVAL
        self.trying = None
        self.key, self.type = 0x1000, 0

    @property
    def guest(self):
        return self.host.guest

    def state(self):
        return [hex(self.key)] * len(self.host.nexuses), \
            (hex(self.key), NAMES[self.type])

    def register(self):
        """The guest changes its key, which it may not have yet."""
        old, self.key = self.key, self.key + 1
        if self.guest.keys() == []:
            old = 0
        check('  registers another key', self.guest.out(
            '--register --param-rk=%#x --param-sark=%#x' % (old, self.key)),
            GOOD)

    def reserve(self, action='--reserve', number=0):
        return self.guest.out('%s --param-rk=%#x --prout-type=%d'
                              % (action, self.key, number or self.type))

    def fence(self, on):
        if on:
            self.trying = Trying(self.type)
            return
        self.trying.end()
        check('  the rival has been refused all the time',
              (self.trying.refused() > 20, self.trying.breaches()),
              (True, {}))

    def begin(self, number):
        """The guest reserves with this type, in place of any other."""
        print('-- type %d, %s' % (number, NAMES[number]))
        if self.type:
            self.reserve('--release')
        self.type = number
        check('  the guest reserves', self.reserve(), GOOD)
        self.fence(True)
        self.check_state()

    def check_state(self):
        check('  its key and its reservation are on the target',
              (self.rival.keys(), self.rival.reservation()), self.state())

    def check_guest(self):
        """It has what it had, and can do what it could."""
        check('  the guest sees its key and its reservation',
              (self.guest.keys(), self.guest.reservation()), self.state())
        check('  it writes', self.guest.write(), GOOD)
        self.check_state()
        self.fence(False)
        check('  it releases', (self.reserve('--release'),
                                self.rival.reservation()), (GOOD, None))
        check('  and reserves', (self.reserve(), self.rival.reservation()),
              (GOOD, self.state()[1]))
        self.fence(True)
        self.register()
        self.check_state()

    def check_fenced(self, host):
        """One that the guest has left, or has not come to."""
        check('  host %s cannot write' % host.name,
              host.attempt('write'), {'EBADE'})
        if self.type in EXCLUSIVE:
            check('  nor read', host.attempt('read'), {'EBADE'})

    def wait_migrated(self):
        """'completed' or 'failed', or what else it ends with."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            status = self.guest.qmp('query-migrate').get('status')
            if status in ('completed', 'failed', 'cancelled'):
                return status
            time.sleep(0.05)
        return 'no end'

    def move(self, name, meanwhile=None):
        """To this host; meanwhile happens once it is expected there."""
        source, target = self.host, self.hosts[name]
        start = time.monotonic()
        print('   from host %s to host %s%s' % (
            source.name, name, meanwhile and ': ' + meanwhile.__doc__ or ''))
        target.expect()
        if meanwhile:
            meanwhile(target)
        tries = self.trying.refused()
        source.guest.qmp('migrate', uri='unix:' + SOCKET)
        status = self.wait_migrated()
        cluster.wait_until(
            lambda: target.guest.process.poll() is not None
            or target.guest.qmp('query-status')['status'] == 'running',
            'the guest runs on host ' + name)
        check('  the guest has moved', (status, target.guest.process.poll()),
              ('completed', None))
        check('  the rival tried meanwhile',
              self.trying.refused() > tries + 3)
        self.host = target
        self.check_state()
        self.check_fenced(source)
        source.end()
        self.check_guest()
        print('   %.0f s' % (time.monotonic() - start), flush=True)

    def stay(self, name):
        """The other host dies when it has got some of the guest."""
        print('   from host %s to host %s, which dies' % (self.host.name,
                                                          name))
        target = self.hosts[name]
        target.expect()
        self.guest.qmp('migrate-set-parameters', **{'max-bandwidth': 1 << 20})
        self.guest.qmp('migrate', uri='unix:' + SOCKET)
        cluster.wait_until(
            lambda: self.guest.qmp('query-migrate').get('ram', {}).get(
                'transferred', 0) > 1 << 20, 'some memory is there')
        target.kill()
        check('  the migration fails', self.wait_migrated(), 'failed')
        self.guest.qmp('migrate-set-parameters', **{'max-bandwidth': 1 << 30})
        check('  the guest runs where it was',
              self.guest.qmp('query-status')['status'], 'running')
        self.check_state()
        self.check_fenced(target)
        self.check_guest()


def reset_disk(_target):
    """with the disk reset by the rival"""
    subprocess.run(['sg_reset', '--device', RIVAL], check=True, timeout=60)


def main():
    cluster_, multipathd = None, None
    binary, qemu = sys.argv[1], sys.argv[2:]
    hosts = {}
    try:
        multipathd = cluster.Multipathd(cluster.FILE)
        multipathd.start()
        for name, disk, nexuses in (('a', cluster.MAP, cluster.PATHS),
                                    ('b', '/dev/sdd', ['sdd']),
                                    ('c', '/dev/sde', ['sde'])):
            hosts[name] = Host(name, disk, nexuses, binary, qemu)
        cluster_ = Cluster(hosts)
        cluster_.host = hosts['b']
        hosts['b'].start()
        check('the guest is up', cluster_.guest.answer(240)[0], GOOD)
        cluster_.register()
        for number in 1, 3, 5, 6:
            cluster_.begin(number)
            cluster_.move('c', reset_disk)
            cluster_.move('b')
            cluster_.move('a', reset_disk)
            cluster_.move('b', reset_disk)
            cluster_.stay('c')
            cluster_.fence(False)
    except Exception as error:      # and go on to the report
        check('the test comes to its end', repr(error), None)
    finally:
        for host in hosts.values():
            host.kill()
            host.helper.end(9)
        if multipathd:
            multipathd.stop()
    return report()


if __name__ == '__main__':
    sys.exit(main())
