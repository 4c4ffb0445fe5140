"""The machine of the transport tests and of other people's suites: disks, and
multipath maps of these, that are iSCSI sessions over lo, to LIO's target,
through relays that can fail.

    open-iscsi, as US    --- Relay 0 ---+
    open-iscsi, as US    --- Relay 1 ---+--- LIO, one LUN for each case
    open-iscsi, as RIVAL ---------------+

Each LUN is a map of two paths, and another disk of the rival's. Both
initiators are in the target's access list: the registrations of one that is
not end with its session. To some LUNs there can be two more paths, through
relays 2 and 3 and a target of their own, which may unmap them.

Must never wait without a deadline, nor take a delay for a failure: the
machine may be slow, and whoever waits here waits for a state, not a time.
"""
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import namedtuple

import cluster
import prclient as pr
from cluster import DEADLINE, ask, by_nexus, direct, settle, wait_until
from prclient import sense_data

TARGET = 'iqn.2026-11.example:target'
SECOND = 'iqn.2026-11.example:second'
US, RIVAL = 'iqn.2026-11.example:us', 'iqn.2026-11.example:rival'
CONFIGFS = '/sys/kernel/config/target'
PORT = 3260                     # the target's; the relays' are the next ones

# A session whose connection is lost is tried again for REPLACEMENT seconds,
# in which its disks are 'blocked'; then they are 'transport-offline'. That a
# connection has fallen silent is noticed after NOOP seconds twice.
REPLACEMENT, NOOP = 10, 2
SETTINGS = '''
node.session.timeo.replacement_timeout = %d
node.conn[0].timeo.noop_out_interval = %d
node.conn[0].timeo.noop_out_timeout = %d
node.conn[0].timeo.login_timeout = 3
node.session.err_timeo.abort_timeout = 3
node.session.err_timeo.lu_reset_timeout = 3
node.session.err_timeo.tgt_reset_timeout = 3
''' % (REPLACEMENT, NOOP, NOOP)

# That such a session has fallen silent is noticed when a command of ours has
# waited as long as it may, and by nobody else (see also Machine.add_paths()).
UNNOTICED = SETTINGS + '''
node.session.timeo.replacement_timeout = 1
node.conn[0].timeo.noop_out_interval = 0
node.conn[0].timeo.noop_out_timeout = 0
node.session.err_timeo.abort_timeout = 1
node.session.err_timeo.lu_reset_timeout = 1
node.session.err_timeo.tgt_reset_timeout = 1
'''

# A path that fails is noticed late, after max_polling_interval, and one that
# comes back soon. Writes go by each path in turn.
CONFIGURATION = '''
defaults {
    find_multipaths no
    path_checker tur
    polling_interval 1
    max_polling_interval 4
    reservation_key file
    uid_attribute ""
}
overrides {
    no_path_retry fail
    path_grouping_policy multibus
    path_selector "round-robin 0"
    rr_min_io_rq 1
}
blacklist {
    devnode "^(ram|loop|ubd|fd|%s)$"
}
'''


# What comes of each PERSISTENT RESERVE OUT: is it carried out, the response
# (1 becomes host status DID_ERROR in the initiator), status, sense data. BUSY
# would tell nothing: the kernel repeats what has met that by itself.
Reply = namedtuple('Reply', 'is_done response status sense')
REPLIES = {
    'recovered': Reply(True, 0, 2, sense_data(1, 0x17, 1)),
    'fails-late': Reply(True, 1, 0, b''),
    'fails': Reply(False, 1, 0, b''),
    'in-transition': Reply(False, 0, 2, sense_data(2, 4, 0x0a))}

# A PDU, and its fields (RFC 7143, 11.2 to 11.4). No digests follow them in a
# connection that has not negotiated any.
HEADER, COMMAND, RESPONSE = 48, 0x01, 0x21
TAG = slice(16, 20)
CDB = 32


def receive(stream):
    """A PDU, as its header, and what follows; empty: there is no more."""
    header = bytearray(stream.read(HEADER))
    if len(header) < HEADER:
        return b'', b''
    length = int.from_bytes(header[5:8], 'big')
    return header, stream.read(4 * header[4] + (length + 3) // 4 * 4)


def change(header, rest, reply):
    """Makes it another answer, but for one that already says that it has not
    been done. Returns what follows the header."""
    if reply.is_done and (header[2], header[3]) != (0, 0):
        return rest
    length = 2 + len(reply.sense) if reply.sense else 0
    header[1:4] = 0x80, reply.response, reply.status
    header[5:8] = length.to_bytes(3, 'big')
    header[44:48] = bytes(4)    # nothing was left over
    return struct.pack('>H', len(reply.sense)) + reply.sense + bytes(
        -length % 4) if length else b''


class Relay:
    """A port that leads to the target, unless it is told otherwise."""

    def __init__(self, port):
        self.port = port
        self.listener = None
        self.sockets = set()
        self.is_open, self.is_mute = threading.Event(), False
        self.reply = None
        self.restore()

    def say(self, reply):
        """To each reservation command; see REPLIES."""
        self.reply = reply

    def cut(self):
        """The connection ends, and there is no other."""
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for sock in list(self.sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass            # it has ended by itself
        self.is_open.set()

    def stall(self):
        """Nothing passes, and nothing is lost."""
        self.is_open.clear()

    def mute(self):
        """The target gets everything, and nobody gets its answers."""
        self.is_mute = True

    def restore(self):
        if self.is_mute:
            self.cut()          # what is lost would be missed
        self.is_mute, self.reply = False, None
        self.is_open.set()
        if self.listener is None:
            self.listener = socket.create_server(('127.0.0.1', self.port))
            threading.Thread(target=self.accept, args=(self.listener,),
                             daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.create_connection(('127.0.0.1', PORT))
            for sock in here, there:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sockets.add(sock)
            replies = {}        # by tag
            for ends in (here, there, False), (there, here, True):
                threading.Thread(target=self.pass_on, args=(*ends, replies),
                                 daemon=True).start()

    def pass_on(self, source, sink, is_answer, replies):
        try:
            stream = source.makefile('rb')
            while True:
                header, rest = receive(stream)
                self.is_open.wait()
                if not header:
                    break
                tag = bytes(header[TAG])
                if header[0] & 0x3f == COMMAND and self.reply \
                        and header[CDB] == 0x5f:
                    replies[tag] = self.reply
                    if not self.reply.is_done:
                        header[CDB + 1] = 0x1f  # which the target refuses
                elif header[0] == RESPONSE and tag in replies:
                    rest = change(header, rest, replies.pop(tag))
                if not (is_answer and self.is_mute):
                    sink.sendall(header + rest)
            stream.close()
        except OSError:
            pass
        self.sockets.discard(source)
        try:
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        source.close()


# The target, and the sessions. -----------------------------------------------

def put(path, text):
    with open(path, 'w') as f:
        f.write('%s\n' % text)


def simplify_udev():
    """What else its rules look for in so many disks takes a minute."""
    for rules in os.listdir('/usr/lib/udev/rules.d'):
        if not rules.startswith('50') and '-dm' not in rules:
            os.symlink('/dev/null', '/etc/udev/rules.d/' + rules)
    subprocess.check_call(['udevadm', 'control', '--reload'])


def disk_of(lun):
    return '%s/core/fileio_%d/lun%d' % (CONFIGFS, lun + 1, lun)


def group_of(target):
    return '%s/iscsi/%s/tpgt_1' % (CONFIGFS, target)


def mapping_of(target, initiator, lun):
    return '%s/acls/%s/lun_%d/lun' % (group_of(target), initiator, lun)


def make_disks(luns):
    for lun in luns:
        disk = disk_of(lun)
        os.makedirs(disk)
        put(disk + '/control', 'fd_dev_name=/run/lun%d,fd_dev_size=1048576'
            % lun)
        put(disk + '/enable', 1)
        # The WWID is made of its first 25 digits.
        put(disk + '/wwn/vpd_unit_serial', '%025x' % (lun + 1))


def map_lun(target, initiator, lun):
    os.symlink('%s/lun/lun_%d' % (group_of(target), lun),
               mapping_of(target, initiator, lun))


def make_target(target, initiators, luns):
    group = group_of(target)
    for lun in luns:
        os.makedirs('%s/lun/lun_%d' % (group, lun))
        os.symlink(disk_of(lun), '%s/lun/lun_%d/disk' % (group, lun))
    for name in initiators:
        for lun in luns:
            os.makedirs(os.path.dirname(mapping_of(target, name, lun)))
            map_lun(target, name, lun)
    put(group + '/attrib/authentication', 0)
    os.mkdir('%s/np/127.0.0.1:%d' % (group, PORT))
    put(group + '/enable', 1)


def iscsiadm(*words):
    subprocess.run(['iscsiadm', *words], check=True, timeout=DEADLINE,
                   stdout=subprocess.DEVNULL)


def sessions():
    return set(os.listdir('/sys/class/iscsi_session'))


def log_in(target, port, interface, settings, luns):
    """The disks of a new session, in the order of these LUNs."""
    put('/etc/iscsi/iscsid.conf', settings)
    before = sessions()
    node = ['-m', 'node', '-T', target, '-p', '127.0.0.1:%d' % port,
            '-I', interface]
    iscsiadm(*node, '-o', 'new')
    iscsiadm(*node, '--login')
    session, = sessions() - before
    top = '/sys/class/iscsi_session/%s/device' % session
    found = {}

    def all_there():
        for directory, names, _ in os.walk(top):
            if directory.endswith('/block') and names:
                found[int(directory.split('/')[-2].split(':')[3])] = names[0]
        return len(found) == len(luns)
    wait_until(all_there, 'the disks of ' + interface)
    return [found[lun] for lun in luns]


# A map, and what the target holds for it. ------------------------------------

# ours: the keys of our nexuses, sorted; rivals: likewise; reservation: (KEY,
# TYPE) or None; holder: 'us', 'rival', 'both' or None.
View = namedtuple('View', 'ours rivals reservation holder')


class Map:
    def __init__(self, paths, rival):
        self.paths, self.rival = paths, rival
        self.name, = os.listdir('/sys/block/%s/holders' % paths[0])
        self.device = '/dev/' + self.name

    def rival_do(self, function, *arguments):
        return by_nexus(self.rival, function, *arguments)

    def rival_out(self, action, key=0, sa_key=0, type_=0):
        return self.rival_do(direct.out, action, key, sa_key, type_).status

    def view(self):
        return self.rival_do(self.view_by)

    def view_by(self, fd):
        for _ in range(20):     # multipathd may be registering a path
            full = direct.read_in(fd, pr.READ_FULL_STATUS).payload
            reservation = direct.reservation(fd)
            again = direct.read_in(fd, pr.READ_FULL_STATUS).payload
            if full == again:
                break
        keys, holders, at = {US: [], RIVAL: []}, set(), 8
        end = 8 + struct.unpack('>I', full[4:8])[0]
        while at < end:
            key, held, more = struct.unpack('>Q4xB7xI', full[at:at + 24])
            name = full[at + 28:at + 24 + more].split(b',')[0].decode()
            keys[name].append(key)
            if held & 1:
                holders.add(name)
            at += 24 + more
        holder = {(): None, (US,): 'us', (RIVAL,): 'rival'}.get(
            tuple(holders), 'both')
        return View(sorted(keys[US]), sorted(keys[RIVAL]), reservation, holder)

    def reset(self):
        """No key, no reservation, and multipathd knows of none."""
        ask('unsetprstatus map ' + self.name)
        ask('unsetprkey map ' + self.name)
        assert self.rival_out(pr.REGISTER_AND_IGNORE, 0, 1) == pr.GOOD
        assert self.rival_out(pr.CLEAR, 1) == pr.GOOD
        for path in self.paths:
            by_nexus(path, settle)
        assert self.view() == View([], [], None, None)

    def is_suspended(self):
        with open('/sys/block/%s/dm/suspended' % self.name) as f:
            return f.read() == '1\n'


def state(path):
    with open('/sys/block/%s/device/state' % path) as f:
        return f.read().strip()


class Multipathd(cluster.Multipathd):
    def __init__(self, paths, others):
        with open('/etc/multipath.conf', 'w') as f:
            f.write(CONFIGURATION % '|'.join(others))
        self.paths = paths
        self.process = None

    def start(self):
        self.launch()
        self.wait_for_all()

    def wait_for_all(self):
        """Every path is well, say the kernel, the checker and the map."""
        wait_until(lambda: all(state(path) == 'running'
                               for path in self.paths), 'all are connected')

        def are_well():
            well = [line.split()[0] for line in ask(
                'show paths format "%d %t %T %o"').splitlines()
                    if line.split()[1:] == ['active', 'ready', 'running']]
            return set(self.paths) <= set(well)
        wait_until(are_well, 'all paths are well')


class Machine:
    """relays are those that paths go through; paths and rivals are disks by
    LUN, and maps, once they are made, have one LUN each."""

    def __init__(self, number):
        luns = range(number)
        subprocess.check_call(
            ['/run/insmod', 'iscsi_target_mod', 'scsi_transport_iscsi',
             'libiscsi', 'libiscsi_tcp', 'iscsi_tcp'])
        subprocess.check_call(['ip', 'link', 'set', 'lo', 'up'])
        put('/proc/sys/kernel/printk', 1)   # each conflict is a message
        simplify_udev()
        make_disks(luns)
        make_target(TARGET, (US, RIVAL), luns)
        self.relays = [Relay(PORT + 1), Relay(PORT + 2)]

        os.makedirs('/etc/iscsi', exist_ok=True)
        os.makedirs('/run/lock/iscsi', exist_ok=True)
        # In another case than LIO's, which is the same name.
        put('/etc/iscsi/initiatorname.iscsi',
            'InitiatorName=' + US.replace('example:us', 'example:US'))
        self.iscsid = subprocess.Popen(
            ['iscsid', '-f'], stdin=subprocess.DEVNULL,
            stdout=open('/run/iscsid.log', 'ab'), stderr=subprocess.STDOUT)
        iscsiadm('-m', 'iface', '-I', 'rival', '-o', 'new')
        iscsiadm('-m', 'iface', '-I', 'rival', '-o', 'update',
                 '-n', 'iface.initiatorname', '-v', RIVAL)
        self.rivals = log_in(TARGET, PORT, 'rival', '', luns)
        self.paths = [log_in(TARGET, relay.port, 'default', SETTINGS, luns)
                      for relay in self.relays]

    def make_maps(self, number=None):
        """Of all LUNs, or of the first ones only."""
        paths = [disks[:number] for disks in self.paths]
        others = [disk for disks in self.paths for disk in disks
                  if disk not in sum(paths, [])]
        self.multipathd = Multipathd(sum(paths, []), self.rivals + others)
        self.multipathd.start()
        self.maps = [Map(*disks) for disks in zip(zip(*paths), self.rivals)]
        return self

    def add_paths(self, luns):
        """The maps of these LUNs (not 0, which cannot be unmapped) with two
        more paths each. The kernel, which is patient by itself, leaves it to
        the helper how long a command may take."""
        make_target(SECOND, (US,), luns)
        put(group_of(SECOND) + '/acls/%s/attrib/nopin_timeout' % US, 0)
        # Before multipathd sees them: its checker takes as much time.
        put('/etc/udev/rules.d/50-patient.rules', 'ACTION=="add", '
            'KERNEL=="sd*[a-z]", ATTR{device/timeout}="300"')
        subprocess.check_call(['udevadm', 'control', '--reload'])
        added = [Relay(PORT + 3), Relay(PORT + 4)]
        paths = [log_in(SECOND, relay.port, 'default', UNNOTICED, luns)
                 for relay in added]
        self.relays += added
        self.multipathd.paths += sum(paths, [])
        self.multipathd.wait_for_all()
        return [Map([*self.maps[lun].paths, *more], self.rivals[lun])
                for lun, more in zip(luns, zip(*paths))]

    def fail(self, how, numbers):
        """A function of Relay, or one of the REPLIES, for these. A cut is
        known when this ends."""
        for relay in [self.relays[number] for number in numbers]:
            if how in REPLIES:
                relay.say(REPLIES[how])
            else:
                getattr(relay, how)()
        if how == 'cut':
            wait_until(lambda: 'running' not in self.states(numbers),
                       'disks are blocked')

    def cut_again(self, numbers, pause):
        """So many seconds after they are back."""
        for number in numbers:
            self.relays[number].restore()
        wait_until(lambda: self.states(numbers) == {'running'},
                   'disks are connected')
        time.sleep(pause)
        self.fail('cut', numbers)

    def states(self, numbers):
        return {state(m.paths[number])
                for m in self.maps for number in numbers}

    def restore(self):
        for relay in self.relays:
            relay.restore()
        self.multipathd.wait_for_all()


def missing():
    """The program that is not there, or None."""
    for program in 'iscsid', 'iscsiadm', 'ip':
        if not shutil.which(program):
            return program
    return None
