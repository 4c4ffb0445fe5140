"""The simulated disks of sim_target.c, seen and steered from Python.

A Target is the shared page range that sim_target.c maps; a Nexus is one
initiator's view of a disk: what its commands shall meet (errors, statuses,
sense, resid, delays, hangs) and what reached the device.  device() makes a
file that a helper linked with sim_target.c takes for a device node, and Root
the part of /sys and /dev that says what multipath maps there are.

This must never talk to a helper: only tests do that.  The layout constants
repeat the structures of sim_target.c and nothing else.
"""
import collections
import contextlib
import mmap
import os
import shutil
import struct
import time

from prclient import open_device

# Of the machine that the helper is built for; see struct.
ORDER = os.environ.get('SIM_BYTE_ORDER', '=')

NEXUSES, LUNS, EVENTS = 256, 3, 4096
HEADER, LUN, NEXUS, EVENT = 64, 16, 512, 48
LOG = HEADER + NEXUSES * NEXUS
ACTIONS, ACTION = 64, 64
SAS_ADDRESS = 0x5001405000000000        # of nexus 0
SCRIPT = LOG + EVENTS * EVENT
SIZE = SCRIPT + 64 + ACTIONS * ACTION

# offset and struct format of the fields
LUN_FIELDS = {'generation': (0, 'I'), 'type': (4, 'I'), 'holder': (8, 'I'),
              'aptpl': (12, 'H'), 'crowd': (14, 'H')}
TARGET_FIELDS = {'lock': (0, 'I'), 'strays': (52, 'I'), 'events': (56, 'I'),
                 'is_lio': (60, 'I')}
TARGET_FIELDS.update((name, (4 + offset, form))     # those of LUN 0
                     for name, (offset, form) in LUN_FIELDS.items())
NEXUS_FIELDS = {
    'key': (0, 'Q'), 'commands': (8, 'I'), 'in_flight': (12, 'I'),
    'attention': (16, '4I'), 'cdb': (32, '16s'), 'cmd_len': (48, 'I'),
    'direction': (52, 'i'), 'dxfer_len': (56, 'I'), 'mx_sb_len': (60, 'I'),
    'timeout': (64, 'I'), 'inject': (68, 'I'), 'inject_count': (72, 'I'),
    'error': (76, 'i'), 'host_status': (80, 'I'), 'driver_status': (84, 'I'),
    'status': (88, 'I'), 'resid': (92, 'i'), 'sense_len': (96, 'I'),
    'delay_ms': (100, 'I'), 'hold': (104, 'I'),
    'sense': (108, '256s'), 'call': (364, 'I'), 'call_errno': (368, 'i'),
    'argument': (376, '6q'), 'lun': (424, 'I'), 'initiator': (428, 'I'),
    'inject_only': (432, 'I'), 'inject_skip': (436, 'I'),
    'hold_from': (440, 'I'), 'state': (444, 'I'), 'open_errno': (448, 'I'),
    'open_other': (452, 'I'), 'dm_failed': (456, 'I'), 'looked': (464, 'Q'),
    'hang_after': (472, 'I'), 'inject_ready': (476, 'I')}
SCRIPT_FIELDS = {
    'skipped': (0, 'Q'), 'multipathd_wait': (8, 'Q'),
    'multipathd_key': (16, 'Q'), 'steps': (24, 'I'), 'killed': (28, 'I'),
    'stuck': (32, 'I'), 'actions': (36, 'I'), 'excused': (40, 'Q'),
    'hit': (48, 'I')}
ACTION_FIELDS = {
    'at': (0, 'Q'), 'key': (8, 'Q'), 'done_at': (16, 'Q'), 'step': (24, 'I'),
    'what': (28, 'I'), 'nexus': (32, 'I'), 'argument': (36, 'I'),
    'status': (40, 'I'), 'done_step': (44, 'I'), 'own': (48, 'Q'),
    'seen': (56, 'Q')}

# What a script does besides service actions.
LOOK, STATE, INJECT, DM, OPEN, KILL, DELAY = 8, 16, 17, 18, 19, 20, 21
AFTERWARDS = 1 << 62    # times from that on count from the line before
HIT = 1 << 16       # steps from that on count from the one that went wrong
SEEN_OTHERS, SEEN_HIT = 1, 2
# The states of a disk.
RUNNING, BLOCKED, TRANSPORT_OFFLINE, OFFLINE, QUIESCE = range(5)
STATES = 'running', 'blocked', 'transport-offline', 'offline', 'quiesce'

# A command that has ended, as it was sent.
Event = collections.namedtuple(
    'Event', 'key sa_key nexus lun timeout error host_status cdb flags status')

INJECT_ERRNO, INJECT_RESULT, INJECT_RESID, INJECT_AFTER = 1, 2, 4, 8
IN_SENSE = -1 << 63     # an argument: where the sense bytes are

ABORT, SMASHED = 0x7ab00001, 0x7ab00002     # in place of a call's number
SIM_DEVICE, SIM_CHARACTER = 1 << 30, 1 << 29


class Fields:
    """Attributes that live in the shared pages."""

    def __init__(self, pages, base, fields):
        self.__dict__.update(pages=pages, base=base, fields=fields)

    def __getattr__(self, name):
        if name not in self.fields:
            raise AttributeError(name)
        offset, form = self.fields[name]
        value = struct.unpack_from(ORDER + form, self.pages, self.base + offset)
        return value if len(value) > 1 else value[0]

    def __setattr__(self, name, value):
        offset, form = self.fields[name]
        struct.pack_into(ORDER + form, self.pages, self.base + offset,
                         *(value if isinstance(value, tuple) else (value,)))


class Nexus(Fields):
    def fail_ioctl(self, error, count=1, **which):
        self.error = error
        self.begin_injection(INJECT_ERRNO, count, **which)

    def answer(self, status=0, host_status=0, driver_status=0, sense=b'',
               sense_len=None, count=1, **which):
        """The next commands end like this and never reach the disk."""
        self.status, self.host_status = status, host_status
        self.driver_status, self.sense = driver_status, sense
        self.sense_len = len(sense) if sense_len is None else sense_len
        self.begin_injection(INJECT_RESULT, count, **which)

    def begin_injection(self, inject, count, skip=0, only=None, after=False):
        """Not the first skip commands; only those of this (operation, service
        action), or with None of this operation; after: the disk has done as
        it was told."""
        self.inject_count = 0
        self.inject_skip = skip
        self.inject_only = 0 if not only else 2 << 16 | only[0] \
            if only[1] is None else 1 << 16 | only[0] << 8 | only[1]
        self.inject = inject | (INJECT_AFTER if after else 0)
        self.inject_count = count

    def answer_resid(self, resid, count=1):
        """The next commands work, but report this resid."""
        self.resid = resid
        self.begin_injection(INJECT_RESID, count)

    def make_call(self, number, *arguments):
        """With the next command, the helper makes this system call."""
        self.call_errno = -1
        self.argument = (arguments + 6 * (0,))[:6]
        self.call = number

    def wait_in_flight(self, number, seconds=20):
        end = time.monotonic() + seconds
        while self.in_flight != number:
            assert time.monotonic() < end, self.in_flight
            time.sleep(0.002)
        return True

    def wait_held(self, seconds=20):
        """Until a command hangs; those before have gone by."""
        end = time.monotonic() + seconds
        while self.commands < self.hold_from or self.in_flight == 0:
            assert time.monotonic() < end, self.commands
            time.sleep(0.002)

    @contextlib.contextmanager
    def hanging(self, skip=0):
        """Commands of this nexus, but the next skip ones, hang while the
        block runs."""
        self.hold_from = self.commands + skip + 1
        self.hold = 1
        try:
            yield
        finally:
            self.hold = 0


class Target(Fields):
    def __init__(self, path):
        with open(path, 'w+b') as f:
            f.truncate(SIZE)
            super().__init__(mmap.mmap(f.fileno(), SIZE), 0, TARGET_FIELDS)
        self.__dict__['env'] = dict(os.environ, SIM_STATE=str(path))
        self.__dict__['script'] = Fields(self.pages, SCRIPT, SCRIPT_FIELDS)

    def nexus(self, number):
        return Nexus(self.pages, HEADER + number * NEXUS, NEXUS_FIELDS)

    def lun(self, number):
        return Fields(self.pages, 4 + number * LUN, LUN_FIELDS)

    def keys(self, lun):
        """Of all that are registered there."""
        nexuses = (self.nexus(n) for n in range(NEXUSES))
        return {n.key for n in nexuses if n.key and n.lun == lun}

    def clock(self):
        """Microseconds, as a helper with SIM_SPEED=0 sees them."""
        return time.monotonic_ns() // 1000 + self.script.skipped

    def action(self, number):
        return Fields(self.pages, SCRIPT + 64 + number * ACTION,
                      ACTION_FIELDS)

    def act(self, what, nexus, step=0, at=0, key=0, argument=0):
        """One more line of the script: before a step, counted from 1, or
        at a time of the clock."""
        action = self.action(self.script.actions)
        action.at, action.key, action.step, action.what = at, key, step, what
        action.nexus, action.argument = nexus, argument
        self.script.actions += 1
        return action

    def log(self, begin=0):
        """The commands that have ended, from that number on."""
        for i in range(begin, self.events):
            fields = struct.unpack_from(ORDER + 'QQIIIiI10sBB', self.pages,
                                        LOG + i % EVENTS * EVENT)
            yield Event(*fields)

    def reset(self):
        """As it was made; but no clock goes back."""
        skipped = self.script.skipped
        self.pages[:] = bytes(SIZE)
        self.script.skipped = skipped

    def commands(self):
        """How many commands ever reached the device, over all nexuses."""
        return sum(self.nexus(n).commands for n in range(NEXUSES))


def device(path, major, minor, character=False):
    """Make a file that is this device to a helper under test."""
    with open(path, 'wb') as f:
        f.truncate(SIM_DEVICE | (SIM_CHARACTER if character else 0)
                   | major << 20 | minor)
    return str(path)


def disk_number(nexus):
    """(major, minor) of the disk that is this nexus: sda is 0, sdb 1..."""
    row = nexus // 16
    major = 8 if row == 0 else row + 64 if row < 8 else row + 120
    return major, nexus % 16 * 16


def disk_name(nexus):
    """sda to sdz, sdaa..."""
    name, n = '', nexus + 1
    while n:
        n, letter = divmod(n - 1, 26)
        name = chr(97 + letter) + name
    return 'sd' + name


def transport_id(nexus):
    """The SAS TransportID by which REGISTER AND MOVE knows a nexus."""
    return struct.pack('>B3xQ12x', 6, 0x5001405000000000 + nexus)


class Root:
    """What the helper finds in /sys and /dev: maps and their paths."""
    MAJOR = 253     # of device-mapper

    def __init__(self, directory):
        self.directory, self.is_changed = str(directory), True
        self.states = {}
        self.env = {'SIM_ROOT': self.directory}
        os.makedirs(os.path.join(self.directory, 'run'))
        for name in 'sys', 'dev':       # their inodes are in Landlock's rules
            os.mkdir(os.path.join(self.directory, name))
        self.reset()

    def reset(self):
        for name in 'sys', 'dev':
            with os.scandir(os.path.join(self.directory, name)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
        os.makedirs(os.path.join(self.directory, 'sys/dev/block'))
        os.mkdir(os.path.join(self.directory, 'sys/states'))
        for state in STATES:
            self.write(os.path.join(self.directory, 'sys/states', state),
                       state + '\n')
        self.states = {}

    def path(self, name):
        """Whoever asks is going to change something."""
        self.is_changed = True
        return os.path.join(self.directory, name)

    def node(self, nexus):
        return self.path('dev/' + disk_name(nexus))

    def block(self, number, name=''):
        """A file of the device with this (major, minor)."""
        return self.path('sys/dev/block/%d:%d/%s' % (*number, name))

    def of_disk(self, nexus, name=''):
        return self.block(disk_number(nexus), name)

    def of_map(self, minor, name=''):
        return self.block((self.MAJOR, minor), name)

    @staticmethod
    def write(path, text):
        with open(path, 'wb') as f:
            f.write(text.encode() if isinstance(text, str) else text)

    def disk(self, nexus, host=0):
        device(self.node(nexus), *disk_number(nexus))
        os.makedirs(self.of_disk(nexus, 'holders'))
        os.makedirs(self.path('sys/devices/%d:0:%d:1' % (host, nexus)))
        os.symlink('../../../devices/%d:0:%d:1' % (host, nexus),
                   self.of_disk(nexus, 'device'))
        self.state(nexus, 'running')

    def state(self, nexus, text):
        was_changed = self.is_changed
        self.write(self.of_disk(nexus, 'device/state'), text + '\n')
        self.is_changed = was_changed       # this can be undone:
        self.states[nexus] = text

    def states_restore(self):
        for nexus, text in self.states.items():
            if text != 'running':
                self.state(nexus, 'running')

    def map(self, minor, nexuses, alias, uuid='mpath-360014051'):
        os.makedirs(self.of_map(minor, 'dm'))
        os.mkdir(self.of_map(minor, 'slaves'))
        self.write(self.of_map(minor, 'dm/uuid'), uuid + '\n')
        self.write(self.of_map(minor, 'dm/name'), alias + '\n')
        for nexus in nexuses:
            self.join(minor, nexus)

    def slave(self, minor, name):
        return self.of_map(minor, 'slaves/' + name)

    def holder(self, minor, nexus):
        return self.of_disk(nexus, 'holders/dm-%d' % minor)

    def join(self, minor, nexus):
        """The disk becomes a path of the map."""
        os.symlink('../../%d:%d' % disk_number(nexus),
                   self.slave(minor, disk_name(nexus)))
        os.symlink('../../%d:%d' % (self.MAJOR, minor),
                   self.holder(minor, nexus))

    def initiators(self, nexuses):
        """The names of this host's adapters, as transport_id() has them."""
        for nexus in nexuses:
            os.makedirs(self.path('sys/class/sas_phy/phy-%d' % nexus))
            self.write(self.path('sys/class/sas_phy/phy-%d/sas_address'
                                 % nexus), '0x%016x\n' % (SAS_ADDRESS + nexus))

    def leave(self, minor, nexus):
        os.unlink(self.slave(minor, disk_name(nexus)))
        os.unlink(self.holder(minor, nexus))


class Disks:
    """Opened simulated disks in a directory, one per nexus."""

    def __init__(self, directory):
        self.directory, self.open_fds = str(directory), []

    def path(self, nexus):
        path = os.path.join(self.directory, 'disk%d' % nexus)
        if not os.path.exists(path):
            device(path, *disk_number(nexus))
        return path

    def open(self, nexus=0, flags=os.O_RDWR):
        fd = open_device(self.path(nexus), flags)
        self.open_fds.append(fd)
        return fd

    def close(self):
        for fd in self.open_fds:
            os.close(fd)
        self.open_fds.clear()
