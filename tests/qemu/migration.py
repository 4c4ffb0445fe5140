"""Live migration, run inside User-mode Linux by lib/guest.sh: a guest
with a reservation moves from host to host, and takes it along (QEMU's
migrate-pr). The hosts (hosts.py) and their nexuses onto the one LUN are

    a   /dev/mapper/mpatha, of /dev/sda and /dev/sdb
    b   /dev/sdd
    c   /dev/sde

and /dev/sdc is the rival's, who is at work at every moment at which the guest
holds its reservation. What has become of keys and reservation is judged by what
the rival's nexus reads from the target.

Not tested are the types 7 and 8, of all registrants: QEMU 11.1 takes them over
as type 1, with every helper.

What hosts.py must never do, this must not, either.

    usage: migration.py HELPER QEMU [QEMU-OPTION...]
"""
import os
import signal
import subprocess
import sys
import time

import cluster
from guest import GOOD, TYPES, check, report
from hosts import DEADLINE, EXCLUSIVE, SOCKET, Host, Trying, written_by_rival

TO_ONE = 1, 3           # types that let only the nexus write that reserved
TARGET = '/sys/kernel/config/target/'
LUN = TARGET + 'loopback/naa.50014050000000%02x/tpgt_1/lun/lun_0'
ALUA = TARGET + 'core/fileio_0/disk0/alua/gp2'


def seen():
    """Keys and reservation, as the rival's nexus reads them."""
    return cluster.by_nexus(cluster.RIVAL, cluster.read_all)[1:]


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
               (hex(self.key), TYPES[self.type])))
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
        print('-- type %d, %s' % (number, TYPES[number]))
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
        for state in 'offline', 'running':
            multipathd.set_state('sda', state)
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
        check('nothing of what the rival wrote is on the disk',
              written_by_rival(), b'')
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
