"""Live migration, run inside User-mode Linux by chain.sh: a guest with a
reservation moves from host to host, and takes it along (QEMU's migrate-pr).

A host is an initiator of its own onto the one LUN (a multipath map's is two),
a helper of its own, and the QEMU that runs the guest:

    a   /dev/mapper/mpatha, of /dev/sda and /dev/sdb
    b   /dev/sdd
    c   /dev/sde

and /dev/sdc is a rival's, who is not registered, and who at every moment at
which the guest holds its reservation tries to write, to reserve, and, where
the type forbids that, to read. What has become of keys and reservation is
judged by what the rival's nexus reads from the target.

Not tested are the types 7 and 8, of all registrants: QEMU 11.1 takes them over
as type 1, with every helper.

Must never use the helper under test for the outside view, and must never
wait without a deadline; see chain.py, whose parts these are.

    usage: migration.py HELPER QEMU [QEMU-OPTION...]
"""
import errno
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time

from chain import GOOD, TYPES, Guest, Helper, check, report

import cluster
import prclient as pr
from direct import sg_io

BLOCK, RIVALS, HOSTS = 512, 600, 704    # its size; those that they write
SOCKET = '/run/migration.sock'
DEADLINE = 120
EXCLUSIVE = 3, 6        # types that forbid others to read, too
TO_ONE = 1, 3           # types that let only the nexus write that reserved
NAMES = dict(TYPES)
TARGET = '/sys/kernel/config/target/'
LUN = TARGET + 'loopback/naa.50014050000000%02x/tpgt_1/lun/lun_0'
ALUA = TARGET + 'core/fileio_0/disk0/alua/gp2'


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


def seen():
    """Keys and reservation, as the rival's nexus reads them."""
    fd = pr.open_device(cluster.RIVAL)
    try:
        cluster.settle(fd)
        return cluster.direct.keys(fd), cluster.direct.reservation(fd)
    finally:
        os.close(fd)


class Journey:
    """The guest, the host where it is, its key, and its reservation's type."""

    def __init__(self, hosts, host):
        self.hosts, self.host = hosts, hosts[host]
        self.trying = None
        self.key, self.type = 0, 0

    @property
    def guest(self):
        return self.host.guest

    def out(self, action):
        return self.guest.out('%s --param-rk=%#x --prout-type=%d'
                              % (action, self.key, self.type))

    def register(self):
        """The guest changes its key, or gets its first."""
        old, self.key = self.key, self.key + 1 if self.key else 0x1001
        check('it registers another key', self.guest.out(
            '--register --param-rk=%#x --param-sark=%#x' % (old, self.key)),
            GOOD)

    def state(self):
        """What is to be seen."""
        return [self.key] * len(self.host.nexuses), (self.key, self.type)

    def check_state(self):
        check('its key and its reservation are on the target', seen(),
              self.state())

    def fence(self):
        self.trying = Trying(self.type)

    def unfence(self):
        self.trying.end()
        check('the rival has been refused all the time',
              (self.trying.refused() > 0, self.trying.breaches()),
              (True, {}))

    def check_guest(self):
        """It has what it had, and can do what it could."""
        keys, reservation = self.state()
        check('the guest sees its key and its reservation',
              (self.guest.keys(), self.guest.reservation()),
              ([hex(key) for key in keys],
               (hex(self.key), NAMES[self.type])))
        if len(keys) == 1 or self.type not in TO_ONE:
            check('it writes', self.guest.write(), GOOD)
        else:       # even if the guest itself had reserved, on either path
            check('one of its paths may write', self.host.attempt('write'),
                  {'done', 'EBADE'})
        self.unfence()
        check('it releases', (self.out('--release'), seen()[1]), (GOOD, None))
        check('it reserves', (self.out('--reserve'), seen()[1]),
              (GOOD, reservation))
        self.fence()
        self.register()
        self.check_state()

    def check_fenced(self, host):
        """One that the guest has left, or has not come to."""
        check('host %s cannot write' % host.name,
              host.attempt('write'), {'EBADE'})
        if self.type in EXCLUSIVE:
            check('nor read', host.attempt('read'), {'EBADE'})

    def begin(self, number):
        print('-- type %d, %s' % (number, NAMES[number]))
        self.type = number
        check('the guest reserves', self.out('--reserve'), GOOD)
        self.fence()
        self.check_state()

    def end(self):
        self.unfence()
        check('the guest releases', (self.out('--release'), seen()[1]),
              (GOOD, None))

    def wait_migrated(self):
        """'completed' or 'failed', or what else it ends with."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            status = self.guest.qmp('query-migrate').get('status')
            if status in ('completed', 'failed', 'cancelled'):
                return status
            time.sleep(0.1)
        return 'no end'

    def move(self, name, meanwhile, afterwards=lambda: None):
        """To this host; meanwhile is done once the guest is expected there,
        afterwards when it has come."""
        begin = time.monotonic()
        source, target = self.host, self.hosts[name]
        print('-- from host %s to host %s%s' % (source.name, name,
                                                meanwhile.__doc__))
        target.expect()
        meanwhile(target)
        tries = self.trying.refused()
        self.guest.qmp('migrate', uri='unix:' + SOCKET)
        status = self.wait_migrated()
        cluster.wait_until(
            lambda: target.guest.process.poll() is not None
            or target.runs(), 'the guest runs on host ' + name)
        check('the guest has moved', (status, target.guest.process.poll()),
              ('completed', None))
        if target.guest.process.poll() is not None:
            raise RuntimeError('the guest is lost')
        check('the rival tried meanwhile', self.trying.refused() > tries)
        self.host = target
        self.check_state()
        self.check_fenced(source)
        afterwards()
        source.end()
        self.check_guest()
        print('-- after %.0f s' % (time.monotonic() - begin), flush=True)

    def stay(self, name):
        """The other host dies when it has got some of the guest."""
        target = self.hosts[name]
        print('-- from host %s to host %s, which dies' % (self.host.name,
                                                          name))
        target.expect()
        self.guest.qmp('migrate-set-parameters', **{'max-bandwidth': 1 << 20})
        self.guest.qmp('migrate', uri='unix:' + SOCKET)
        cluster.wait_until(
            lambda: self.guest.qmp('query-migrate').get('ram', {}).get(
                'transferred', 0) > 1 << 20, 'some memory is there')
        target.kill()
        self.check_stayed(target)
        self.guest.qmp('migrate-set-parameters', **{'max-bandwidth': 1 << 30})

    def stay_without_helper(self, name):
        """The other host has no helper; and it tells the one it is from."""
        target = self.hosts[name]
        print('-- from host %s to host %s, which has no helper'
              % (self.host.name, name))
        target.expect()
        target.helper.end(signal.SIGTERM)
        self.guest.qmp('migrate-set-capabilities', capabilities=[
            {'capability': 'return-path', 'state': True}])
        self.guest.qmp('migrate', uri='unix:' + SOCKET)
        self.check_stayed(target)
        target.kill()
        target.helper.start()
        self.guest.qmp('migrate-set-capabilities', capabilities=[
            {'capability': 'return-path', 'state': False}])

    def check_stayed(self, target):
        check('the migration fails', self.wait_migrated(), 'failed')
        check('the guest runs where it was',
              self.guest.qmp('query-status')['status'], 'running')
        self.check_state()
        self.check_fenced(target)
        self.check_guest()


# What may happen to the disk between: each leaves a unit attention.

def nothing(_target):
    ""


def reset(_target):
    """, the disk reset"""
    subprocess.run(['sg_reset', '--device', cluster.RIVAL], check=True,
                   timeout=60)


def alua(target):
    """, its ports' access changed twice"""
    def write(path, text):
        with open(path, 'w') as f:
            f.write(text)

    if not os.path.exists(ALUA):
        os.mkdir(ALUA)
        write(ALUA + '/tg_pt_gp_id', '2')
    for nexus in target.nexuses:
        write(LUN % (ord(nexus[2]) - ord('a') + 1) + '/alua_tg_pt_gp', 'gp2')
    for state in '1', '0':      # active, but not optimized; and so again
        write(ALUA + '/alua_access_state', state)


def main():
    binary, qemu = sys.argv[1], sys.argv[2:]
    hosts, multipathd = {}, cluster.Multipathd(cluster.FILE)

    def a_path_returns():
        """To the map that the guest has left, see the helper's manual."""
        multipathd.forget()
        for state, word in (('offline', 'failed faulty offline'),
                            ('running', 'active ready running')):
            cluster.set_state('sda', state)
            multipathd.wait_path('sda', word)
        print('-- a path of host a was gone for a moment')
        journey.check_fenced(hosts['a'])

    try:
        multipathd.start()
        for name, disk, nexuses in (('a', cluster.MAP, cluster.PATHS),
                                    ('b', '/dev/sdd', ['sdd']),
                                    ('c', '/dev/sde', ['sde'])):
            hosts[name] = Host(name, disk, nexuses, binary, qemu)
        hosts['b'].start()
        journey = Journey(hosts, 'b')
        check('the guest is up', journey.guest.answer(240)[0], GOOD)
        journey.register()
        for number in 1, 3, 5, 6:
            journey.begin(number)
            journey.move('c', reset)
            journey.move('a', alua)
            journey.move('b', reset, a_path_returns)
            if number == 5:
                journey.stay('c')
                journey.stay_without_helper('c')
                journey.move('c', nothing)
                journey.move('b', alua)
            journey.end()
        with open('/run/disk0', 'rb') as disk:
            disk.seek(RIVALS * BLOCK)
            check('nothing of what the rival wrote is on the disk',
                  disk.read(BLOCK), bytes(BLOCK))
    except Exception as error:      # and go on to the report
        check('the test comes to its end', repr(error), None)
    finally:
        for host in hosts.values():
            host.kill()
            host.helper.end(signal.SIGKILL)
        multipathd.stop()
    return report()


if __name__ == '__main__':
    sys.exit(main())
