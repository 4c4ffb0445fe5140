"""The machine of the multipath tests: multipathd, the paths, and a rival.

tests/lib/multipath.sh has made three I_T nexuses onto one LUN: /dev/sda and
/dev/sdb become the paths of the map /dev/mapper/mpatha, /dev/sdc is another
host's. What the target holds is always read through the rival's nexus with
SG_IO, never through the map, the helper or mpathpersist.

Two subjects do the same things to the map, so that they can be compared:
Helper is the helper under test, Mpathpersist the tool of multipath-tools.

Must never wait without a deadline. The deadlines are generous: multipathd
looks at its paths about once a second, on a machine that is slow and busy.
"""
import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections import namedtuple

import prclient as pr
from direct import Direct

MAP, PATHS, RIVAL = '/dev/mapper/mpatha', ('sda', 'sdb'), '/dev/sdc'
NAME = '/run/multipathd.socket'     # since 0.12
ABSTRACT = '\0/org/kernel/linux/storage/multipathd'
DEADLINE = 60

A, A2, B = 0xa11ce, 0xa11ce2, 0xb0b     # keys: ours, our next, the rival's
BOTH = dict.fromkeys(PATHS, A)
TYPES = {pr.WRITE_EXCLUSIVE: 'write-exclusive',
         pr.EXCLUSIVE_ACCESS: 'exclusive-access',
         pr.WRITE_EXCLUSIVE_RO: 'write-exclusive-ro',
         pr.EXCLUSIVE_ACCESS_RO: 'exclusive-access-ro',
         pr.WRITE_EXCLUSIVE_AR: 'write-exclusive-ar',
         pr.EXCLUSIVE_ACCESS_AR: 'exclusive-access-ar'}
ALL_REGISTRANTS = pr.WRITE_EXCLUSIVE_AR, pr.EXCLUSIVE_ACCESS_AR

# What may be in the defaults of multipathd's configuration.
FILE, FIXED = 'reservation_key file', 'reservation_key %#x' % A
# Nexuses that are no paths of the map: the rival's, and with more than the
# three that most tests have, other hosts'.
OTHERS = '^sdc' if int(os.environ.get('UML_NEXUSES', 3)) <= 3 else '^sd[c-z]'
CONFIGURATION = '''
defaults {
    find_multipaths no
    user_friendly_names yes
    polling_interval 1
    max_polling_interval 1
    %s
}
overrides {
    no_path_retry fail
    path_checker tur
    detect_checker no
}
blacklist {
    devnode "^(ram|loop|ubd|fd)"
    devnode "%s"
}
'''
# What a path is to the map, to multipathd's checker, and to the kernel.
WORDS = {'offline': 'failed faulty offline', 'running': 'active ready running'}


def other_than(path):
    return PATHS[1 - PATHS.index(path)]


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, 'in vain: ' + what
        time.sleep(0.05)


def ask(command, name=ABSTRACT):
    """multipathd's answer; both ways a size_t, then text with a NUL."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                sock.connect(name)
                break
            except BlockingIOError:     # too many ask at once
                assert time.monotonic() < end, 'multipathd is busy'
                time.sleep(0.05)
        send_text(sock, command)
        return receive_text(sock)


def send_text(sock, text):
    data = text.encode() + b'\0'
    sock.sendall(struct.pack('N', len(data)) + data)


def receive_text(sock):
    with sock.makefile('rb') as stream:
        length = stream.read(struct.calcsize('N'))
        if not length:
            raise EOFError
        return stream.read(*struct.unpack('N', length)).rstrip(b'\0').decode()


class Multipathd:
    """Debian's, with this in the defaults of its configuration."""

    def __init__(self, defaults):
        with open('/etc/multipath.conf', 'w') as f:
            f.write(CONFIGURATION % (defaults, OTHERS))
        self.process = None

    def start(self):
        """Until the map has both paths, and its checkers find them well."""
        self.launch()
        wait_until(lambda: os.path.exists(MAP), 'multipathd makes ' + MAP)
        for path in PATHS:
            self.wait_path(path, WORDS['running'])
        return self

    def launch(self):
        """Until it answers."""
        self.process = subprocess.Popen(
            ['multipathd', '-d', '-s'], stdin=subprocess.DEVNULL,
            stdout=open('/run/multipathd.log', 'ab'),
            stderr=subprocess.STDOUT)
        wait_until(self.listens, 'multipathd listens')

    def listens(self):
        assert self.process.poll() is None, 'multipathd is gone'
        try:
            return ask('show daemon').startswith('pid ')
        except OSError:
            return False

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            # 0.15.1 does not end, now and then, if it has only just begun.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process.kill()
            self.process.wait()

    def path(self, name):
        """What it is said to be, as in WORDS."""
        for line in ask('show paths format "%d %t %T %o"').splitlines():
            words = line.split()
            if words[0] == name:
                return ' '.join(words[1:4])
        return None

    def wait_path(self, name, state):
        wait_until(lambda: self.path(name) == state,
                   '%s becomes %s' % (name, state))

    def set_state(self, path, state):
        """As set_state() does, until multipathd knows it."""
        set_state(path, state)
        self.wait_path(path, WORDS[state])

    def key(self):
        return ask('getprkey map dm-0').strip()

    def registers(self):
        """Will it register a path that appears?"""
        return ask('getprstatus map dm-0').strip() in ('1', 'set')

    def knows_the_holder(self):
        """Since 0.13: does this host hold the reservation?"""
        return ask('getprhold map dm-0').strip() in ('set', 'unset')

    def forget(self):
        ask('unsetprstatus map dm-0')
        ask('unsetprkey map dm-0')


def set_state(path, state):
    """What a path's SCSI device is in: offline, or running."""
    with open('/sys/block/%s/device/state' % path, 'w') as f:
        f.write(state + '\n')


class Relay:
    """A socket that passes commands on to multipathd, and remembers them.

    With answer, a function of the command and of the process that it is from,
    what that says is the answer, unless it says None.
    """

    def __init__(self, path, uid=0, answer=lambda command, pid: None):
        self.commands = []
        self.answer = answer
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        os.chmod(path, 0o777)
        os.seteuid(uid)     # whose it is, for those who connect
        self.sock.listen(16)
        os.seteuid(0)
        self.path = path
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.sock.accept()
                with connection:
                    connection.settimeout(DEADLINE)
                    command = receive_text(connection)
                    self.commands.append(command)
                    pid, = struct.unpack('i8x', connection.getsockopt(
                        socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                    send_text(connection, self.answer(command, pid)
                              or ask(command))
            except (EOFError, ConnectionError):
                pass        # who only looked
            except OSError:
                return

    def close(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
            self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()


def is_suspended():
    with open('/sys/block/dm-0/dm/suspended') as f:
        return f.read() == '1\n'


# What the target holds, as the rival's nexus sees it. ------------------------

direct = Direct()

# keys is {'sda': KEY, ...}; reservation is (KEY, TYPE) or None, held by us, by
# the rival, or by both if it is one of all registrants.
View = namedtuple('View', 'keys reservation holders')
EMPTY = View({}, None, set())


def by_nexus(name, function, *arguments):
    """What this returns of a descriptor of that disk, such as sda, when the
    unit attentions of the nexus are taken."""
    fd = pr.open_device(os.path.join('/dev', name))
    try:
        settle(fd)
        return function(fd, *arguments)
    finally:
        os.close(fd)


def settle(fd):
    """Take the unit attentions of a nexus."""
    for _ in range(8):
        if direct.read_in(fd, pr.READ_KEYS).status == pr.GOOD:
            return
    raise AssertionError('there is no end of unit attentions')


def read_all(fd):
    """READ FULL STATUS, the keys, and the reservation, of one moment."""
    for _ in range(10):     # multipathd may be registering a path
        full = direct.read_in(fd, pr.READ_FULL_STATUS).payload
        keys = direct.keys(fd)
        reservation = direct.reservation(fd)
        again = direct.read_in(fd, pr.READ_KEYS).payload
        if again[:4] == full[:4]:       # the generation
            break
    return full, keys, reservation


def view():
    full, keys, reservation = by_nexus(RIVAL, read_all)
    found, holders, at = {}, set(), 8
    while at < len(full):
        key, held, more = struct.unpack('>Q4xB7xI', full[at:at + 24])
        # A SAS TransportID, whose address ends with the number of the nexus.
        disk = 'sd' + chr(ord('a') + full[at + 24 + 11] - 1)
        found[disk] = key
        if held & 1:
            holders.add('us' if disk in PATHS else 'rival')
        at += 24 + more
    assert sorted(found.values()) == sorted(keys)
    return View(found, reservation, holders)


def reset(multipathd):
    """No key, no reservation, all paths there, and multipathd knows it."""
    for path in PATHS:
        set_state(path, 'running')
    if is_suspended():
        ask('resume map mpatha')
    multipathd.forget()
    rival = Rival()
    assert rival.out(pr.REGISTER_AND_IGNORE, 0, 1) == GOOD
    assert rival.out(pr.CLEAR, 1) == GOOD
    for path in PATHS:
        by_nexus(path, settle)
        multipathd.wait_path(path, WORDS['running'])
    assert view() == EMPTY


# Who does something to the map, and what came of it. ------------------------

GOOD, CONFLICT, FAILED = 'good', 'conflict', 'failed'


class Helper:
    """The helper under test, through its socket and a descriptor."""

    def __init__(self, client, path=MAP):
        self.client = client
        self.fd = pr.open_device(path)

    def close(self):
        os.close(self.fd)

    def out(self, action, key=0, sa_key=0, type_=0):
        self.reply = self.client.out(self.fd, action, key, sa_key, type_)
        return {pr.GOOD: GOOD, pr.RESERVATION_CONFLICT: CONFLICT}.get(
            self.reply.status, FAILED)


class Mpathpersist:
    """The reference, as far as it is one."""

    OPTIONS = {pr.REGISTER: '--register', pr.RESERVE: '--reserve',
               pr.RELEASE: '--release', pr.CLEAR: '--clear',
               pr.PREEMPT: '--preempt',
               pr.REGISTER_AND_IGNORE: '--register-ignore'}
    RESERVATION_CONFLICT = 11

    def out(self, action, key=0, sa_key=0, type_=0):
        command = ['mpathpersist', '--out', self.OPTIONS[action],
                   '--param-rk=%x' % key, '--param-sark=%x' % sa_key]
        if type_:
            command.append('--prout-type=%d' % type_)
        done = subprocess.run([*command, MAP], timeout=DEADLINE,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        return {0: GOOD, self.RESERVATION_CONFLICT: CONFLICT}.get(
            done.returncode, FAILED)


class Rival:
    """Another host: one nexus, straight to the disk."""

    def out(self, action, key=0, sa_key=0, type_=0):
        reply = by_nexus(RIVAL, direct.out, action, key, sa_key, type_)
        return {pr.GOOD: GOOD, pr.RESERVATION_CONFLICT: CONFLICT}.get(
            reply.status, FAILED)
