"""A multipathd of our own: its command socket, as the helper sees it.

Multipathd serves one Unix socket in threads. It knows some maps, keeps for
each what the real one keeps (key, whether to register new paths with it,
whether this host holds the reservation, if it is suspended), notes
every command it gets, and answers as version '0.9.4' or '0.14' does. on()
makes it misbehave: with one command or all, once or for ever, before or after
the command has taken effect.

It must never look at the helper under test, or run any command but those that
persistent reservations need: what the helper sends beyond them fails.
"""
import collections
import contextlib
import os
import re
import socket
import struct
import threading
import time

# A size_t of the machine that the helper is built for, and what it is not.
SIZE = struct.Struct(os.environ.get('SIM_SIZE_T', '@N'))
OTHER_SIZE = struct.Struct('=Q' if SIZE.size == 4 else '=I')
COMMAND_MOST = 512              # a longer command closes the connection

# How much has been done on the disks when a command came: Target.events.
Command = collections.namedtuple('Command', 'text pid events')

OLD = ('getprkey', 'setprkey', 'unsetprkey', 'setprstatus', 'unsetprstatus',
       'getprstatus', 'suspend', 'resume')
NEW = OLD + ('setprhold', 'unsetprhold', 'getprhold')
USAGE = ('multipath-tools v0.0.0 (01/01, 2000)\nCLI commands reference:\n'
         + ''.join(' a|b|c%d map|multipath $map\n' % i for i in range(100)))

# What the connection gets instead of an answer: bytes, then its end; or
# bytes and then nothing more (HANGING).
CLOSING = {
    'close': b'',
    'close in length': SIZE.pack(4)[:3],
    'close after length': SIZE.pack(4),
    'close in text': SIZE.pack(4) + b'ok',
    'length 0': SIZE.pack(0),
    'length 0, ok': SIZE.pack(0) + b'ok\n\0',
    'length 1': SIZE.pack(1) + b'ok\n\0',
    'length too long': SIZE.pack(5) + b'ok\n\0',
    'length huge': SIZE.pack(1 << 8 * SIZE.size - 4) + b'ok\n\0',
    'length huge, much': SIZE.pack(1 << 8 * SIZE.size - 4) + b'ok\n\0' + bytes(100),
    'length most': b'\xff' * SIZE.size + b'ok\n\0',
    'length of another size': OTHER_SIZE.pack(4) + b'ok\n\0',
    'length swapped': SIZE.pack(4)[::-1] + b'ok\n\0',
}
HANGING = {
    'hang': b'',
    'hang in length': SIZE.pack(4)[:3],
    'hang in text': SIZE.pack(4) + b'o',
}
# Whole packets that say nothing, or not that it worked.
TEXTS = {
    'fail': b'fail\n\0',
    'empty': b'\0',
    'garbage': bytes(range(255, 127, -1)),
    'NULs': bytes(64),
    'nearly ok': b'okay\n\0',
    'ok without end': b'o\0',
    'long garbage': b'x' * 70000 + b'\0',
    'configured': b'defaults {\n\treservation_key "file"\n}\n\0',
}


class Map:
    """What multipathd knows of a map; paths: nexuses by name of the disk."""

    def __init__(self, name, alias, paths=(), fixed=0):
        self.name, self.alias, self.fixed = name, alias, fixed
        self.paths = dict(paths)
        self.key, self.aptpl = fixed or 0, False
        self.prflag, self.prhold = 'unset', 'unset'
        self.suspended, self.suspensions = 0, []    # when to when, in us
        self.states = {}        # 'failed faulty', of paths that are not well

    def set_key(self, key, aptpl):
        """As with reservation_key "file", or with a key in the file."""
        if self.fixed is None:      # there is no reservation_key
            return False
        if self.fixed:
            return key == self.fixed
        self.key, self.aptpl = key, aptpl and key != 0
        return True

    def state(self, name):
        """Of the path in dm, and what the checker says."""
        failed = 'failed faulty' if self.paths[name].dm_failed else None
        return failed or self.states.get(name, 'active ready')

    def path_returns(self, name):
        """What happens on the disk when a path comes (back)."""
        if self.prflag == 'set' and self.key:
            self.paths[name].key = self.key


Rule = collections.namedtuple('Rule', 'pattern behaviour effect left skip')


class Multipathd:
    def __init__(self, address, target=None, version='0.14'):
        self.address, self.target, self.version = address, target, version
        self.maps, self.commands, self.rules = [], [], []
        self.lock = threading.Lock()
        self.released = threading.Event()   # hanging commands end with it
        self.listener = None
        self.wrong = []         # what no multipathd should have to see
        self.is_virtual = False     # the helper's clock jumps: SIM_SPEED=0
        self.shown = 0          # when a helper asked for the paths
        self.told = 0           # and said if the map is registered

    # ---- Life -------------------------------------------------------------
    def start(self, backlog=128):
        self.listener = socket.socket(socket.AF_UNIX)
        name = self.address
        self.listener.bind('\0' + name[1:] if name[0] == '@' else name)
        self.listener.listen(backlog)
        if backlog:
            threading.Thread(target=self.accept, args=[self.listener],
                             daemon=True).start()

    def stop(self):
        """Whoever is connected gets no answer any more."""
        self.released.set()
        if self.listener:
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        if self.address[0] != '@':
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address)
        self.released = threading.Event()

    def reset(self):
        """As after its start, but for the maps."""
        self.released.set()
        with self.lock:
            self.released = threading.Event()
            self.rules, self.version = [], '0.14'
            self.commands, self.wrong = [], []
            self.shown = self.told = 0

    def map(self, name):
        return next(m for m in self.maps if m.name == name)

    def on(self, pattern, behaviour, count=1 << 30, skip=0, effect=False):
        """Commands that match the pattern, but not the first skip ones, get
        this: a key of the tables above, 'deny', 'timeout', 'usage', 'no NUL',
        'cut', 'trickle', seconds to wait before the usual answer, or a
        function that is called with the command and says which of them;
        effect: after they have worked."""
        with self.lock:
            self.rules.append([re.compile(pattern), behaviour, effect, count,
                               skip])

    def texts(self, pattern='', begin=0):
        """The commands that came, in order."""
        return [c.text for c in self.commands[begin:]
                if re.search(pattern, c.text)]

    # ---- One connection ---------------------------------------------------
    def accept(self, listener):
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=[connection],
                             daemon=True).start()

    @staticmethod
    def read(connection, size):
        data = b''
        while len(data) < size:
            chunk = connection.recv(size - len(data))
            if not chunk:
                return None
            data += chunk
        return data

    def serve(self, connection):
        released = self.released
        credentials = connection.getsockopt(socket.SOL_SOCKET,
                                            socket.SO_PEERCRED, 12)
        pid = struct.unpack('3i', credentials)[0]
        with connection, contextlib.suppress(OSError):
            while True:
                length = self.read(connection, SIZE.size)
                if length is None:
                    return
                length, = SIZE.unpack(length)
                if not 1 < length <= COMMAND_MOST:
                    self.wrong.append('a command of %d bytes' % length)
                    return
                data = self.read(connection, length)
                if data is None or data.find(b'\0') != length - 1:
                    self.wrong.append('not a text: %r' % data)
                    return
                self.answer(connection, data[:-1].decode('latin-1'), pid,
                            released)

    def rule(self, text):
        """The first rule for this command, if it is its turn."""
        for rule in self.rules:
            pattern, behaviour, effect, left, skip = rule
            if not left or not pattern.search(text):
                continue
            if skip:
                rule[4] -= 1
                continue
            rule[3] -= 1
            return behaviour, effect
        return None, True

    def answer(self, connection, text, pid, released):
        with self.lock:
            events = self.target.events if self.target else 0
            self.commands.append(Command(text, pid, events))
            behaviour, effect = self.rule(text)
            if self.target and behaviour is not None:
                script = self.target.script
                script.hit = script.hit or script.steps
        if callable(behaviour):
            behaviour = behaviour(self.commands[-1])
            effect = effect or behaviour is None
        if isinstance(behaviour, (int, float)):
            self.wait(behaviour, released)
            behaviour, effect = None, not (self.is_virtual
                                           and released.is_set())
        with self.lock:
            reply = self.execute(text) if effect else b'fail\n\0'
        if behaviour in CLOSING:
            connection.sendall(CLOSING[behaviour])
            connection.shutdown(socket.SHUT_RDWR)
        elif behaviour in HANGING:
            connection.sendall(HANGING[behaviour])
            self.wait(None, released)
            connection.shutdown(socket.SHUT_RDWR)
        elif behaviour == 'no NUL':     # can be taken for an answer
            connection.sendall(SIZE.pack(len(reply) - 1) + reply[:-1])
        elif behaviour == 'cut':        # all but the end of the answer
            connection.sendall(SIZE.pack(len(reply)) + reply[:-1])
            connection.shutdown(socket.SHUT_RDWR)
        elif behaviour == 'trickle':
            for byte in SIZE.pack(len(reply)) + reply:
                connection.sendall(bytes([byte]))
                time.sleep(0.001)
        else:
            if behaviour in TEXTS:
                reply = TEXTS[behaviour]
            elif behaviour in ('deny', 'timeout', 'usage'):
                reply = self.failure(behaviour)
            else:
                assert behaviour is None, behaviour
            connection.sendall(SIZE.pack(len(reply)) + reply)

    def wait(self, seconds, released):
        """None: for ever. A clock that jumps is told where to."""
        if not self.is_virtual:
            released.wait(seconds)
            return
        until = (1 << 64) - 1 if seconds is None \
            else self.target.clock() + int(seconds * 1000000)
        self.target.script.multipathd_wait = until
        while self.target.clock() < until and not released.wait(.001):
            pass

    # ---- The commands -----------------------------------------------------
    def failure(self, why='fail'):
        text = {'deny': 'permission deny: need to be root\n', 'fail': '',
                'timeout': 'timeout\n', 'usage': USAGE}[why]
        if self.version != '0.9.4' or why == 'fail':
            text = 'fail\n' + text
        return text.encode() + b'\0'

    def execute(self, text):
        """Returns the answer of a multipathd that works."""
        words = [word.strip('"') for word in
                 re.findall(r'"[^"]*"|[^\s"]+', text)]
        verb, args = words[0], words[1:]
        if verb == 'show' and args[:1] == ['paths'] and 'format' in args[1:3] \
                and len(args) == 3 + ('raw' in args[1:2]):
            return self.show_paths(args[-1], 'raw' in args).encode() + b'\0'
        known = OLD if self.version == '0.9.4' else NEW
        if verb not in known or len(args) < 2 or args[0] not in ('map',
                                                                 'multipath'):
            return self.failure('usage')
        found = [m for m in self.maps if args[1] == m.alias
                 or (args[1] == m.name and verb not in ('suspend', 'resume'))]
        options = args[2:]
        if options and (verb != 'setprkey' or options[0] != 'key'
                        or len(options) != 2):
            return self.failure('usage')
        if not found or (verb == 'setprkey' and not options):
            return self.failure()
        answer = getattr(self, 'do_' + verb)(found[0], *options[1:])
        if self.target:
            if 'setprstatus' in verb:
                self.told = self.target.clock()
            m = self.maps[0]
            self.target.script.multipathd_key = \
                m.key if m.prflag == 'set' else 0
        if answer is False:
            return self.failure()
        return (answer or 'ok\n').encode() + b'\0'

    def show_paths(self, form, is_raw):
        """With a line of headings, unless raw."""
        self.shown = self.target.clock() if self.target else 0
        rows = [] if is_raw else [('dev', 'dm_st', 'chk_st')]
        rows += [(name, *m.state(name).split()[:2])
                 for m in self.maps for name in m.paths]
        wilds = ('%d', '%t', '%T')
        lines = []
        for row in rows:
            line = form
            for wild, text in zip(wilds, row):
                line = line.replace(wild, text if is_raw else text.ljust(6))
            lines.append(line.rstrip() + '\n')
        return ''.join(lines)

    @staticmethod
    def do_getprkey(m):
        return '0x%x%s\n' % (m.key, ':aptpl' if m.aptpl else '') \
            if m.key else 'none\n'

    @staticmethod
    def do_setprkey(m, value):
        match = re.fullmatch('(?:0?[xX])?([0-9a-fA-F]{1,16})(:.*)?', value)
        if not match:
            return False
        return m.set_key(int(match.group(1), 16),
                         match.group(2) == ':aptpl') and None

    @staticmethod
    def do_unsetprkey(m):
        return m.set_key(0, False) and None

    @staticmethod
    def do_setprstatus(m):
        m.prflag = 'set'

    @staticmethod
    def do_unsetprstatus(m):
        m.prflag = m.prhold = 'unset'

    def do_getprstatus(self, m):
        if self.version == '0.9.4':
            return '1' if m.prflag == 'set' else '0'
        return m.prflag + '\n'

    @staticmethod
    def do_setprhold(m):
        m.prhold = 'set'

    @staticmethod
    def do_unsetprhold(m):
        m.prhold = 'unset'

    @staticmethod
    def do_getprhold(m):
        return m.prhold + '\n'

    def do_suspend(self, m):
        if not m.suspended and self.target:
            m.suspensions.append([self.target.clock(), None])
        m.suspended = 1     # once is as good as twice

    def do_resume(self, m):
        if m.suspended and self.target:
            m.suspensions[-1][1] = self.target.clock()
        m.suspended = 0
