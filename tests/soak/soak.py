#!/usr/bin/env python3
"""Soak: hundreds of clients at once, most of them up to no good.

Several processes of many clients each connect to a helper on the simulated
disk. They work, break the protocol in every way, stop inside frames, do not
read, queue descriptors that linger in close(), and die; their disk fails,
delays and hangs at random; sessions and clients are killed, and the helper is
restarted. Each client checks every reply against a model of what it did to
its own nexus, and that the disk saw just that. At the end nothing may be left.

It must never wait without a limit, leave a process behind, or take the answer
it expects from the helper: a reply may differ from the model only by what
another client did, a connection end only because somebody ended it.

SIM_HELPER, SOAK_MINUTES (10), SOAK_SEED, SOAK_OPTIONS (of the helper).
"""
import contextlib
import errno
import fcntl
import math
import mmap
import os
import random
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path += [os.path.join(TESTS, 'lib'), os.path.join(TESTS, 'host')]

# flake8: noqa: E402
import sim
from helper import Helper, program
from launch import lingering
from prclient import (
    CLEAR, GOOD, PREEMPT, PREEMPT_AND_ABORT, READ_FULL_STATUS, READ_KEYS,
    READ_RESERVATION, REGISTER, REGISTER_AND_IGNORE, REGISTER_AND_MOVE,
    RELEASE, REPORT_CAPABILITIES, RESERVATION_CONFLICT, RESERVE, Client,
    Closed, parameters, pr_in, pr_out, sense_code)
from test_daemon import ERRNO_REPLIES, HOST_REPLIES, failure

WORKERS, CLIENTS = 8, 31            # one nexus for each client
CLUSTER = 4                         # but for one, which has these
FLOOD = 255                         # the nexus of those who do not read
MAX_CLIENTS = 280                   # a few too few: some are evicted
CLIENT_TIMEOUT = 10
PATIENCE = 90                       # for anything that has to happen
OPTIONS = shlex.split(os.environ.get('SOAK_OPTIONS', ''))
SINGLE = '--single-process' in OPTIONS
TYPES = (1, 3, 5, 6, 7, 8)
RELEASED, PREEMPTED = '6/2A/04', '6/2A/05'

COUNTERS = ('connects requests good conflicts sense refusals pipelined errno '
            'host driver status resid delays hangs violations stops floods '
            'lingers deaths halves evicted restarted').split()
BUCKETS = 200                       # of latency, 8 for each power of 2 (us)
SLOTS = 8                           # of Control
LOCAL = (os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Shared:
    """Memory that all processes share: numbers, a row for each writer."""

    WIDTH = len(COUNTERS) + BUCKETS

    def __init__(self):
        rows = WORKERS * CLIENTS
        self.cells = memoryview(
            mmap.mmap(-1, 8 * (SLOTS + rows * self.WIDTH))).cast('Q')

    def row(self, number):
        start = SLOTS + number * self.WIDTH
        return self.cells[start:start + self.WIDTH]

    def total(self, name):
        at = COUNTERS.index(name)
        return sum(self.cells[SLOTS + at::self.WIDTH])

    def latency(self, share):
        start = SLOTS + len(COUNTERS)
        sums = [sum(self.cells[start + i::self.WIDTH])
                for i in range(BUCKETS)]
        left = share * sum(sums)
        for i, number in enumerate(sums):
            left -= number
            if left <= 0:
                return 2 ** ((i + 1) / 8)
        return 0


def control(slot):
    """A number that the parent sets and all see."""
    def write(self, value):
        self.cells[slot] = value
    return property(lambda self: self.cells[slot], write)


Shared.epoch = control(0)           # odd while the helper restarts
Shared.stop = control(1)
Shared.killed_at = control(2)       # microseconds; last SIGKILL of ours


def now_us():
    return time.monotonic_ns() // 1000


class Wrong(Exception):
    """The helper did something that it must not."""


class Ended(Exception):
    """The helper closed a connection; somebody may have told it to."""


def ensure(condition, *what):
    if not condition:
        raise Wrong(' '.join(map(str, what)))


# A read is sent so often if it meets unit attentions only.
READS = 6

# ---- The model -------------------------------------------------------------

def sense_key(sense):
    """For whatever format its first byte claims."""
    return sense[1 if sense[0] & 0x7f >= 0x72 else 2] & 15


class Model:
    """The disk as far as one client decides it: its own nexuses' keys.

    Only the client with several nexuses reserves, so that it knows the
    reservation and all unit attentions, too. The others know only that one
    may come to a registered nexus at any time.
    """

    def __init__(self, tag, nexuses):
        self.tag, self.nexuses = tag, nexuses
        self.reserves = len(nexuses) > 1
        self.keys = dict.fromkeys(nexuses, 0)
        self.attention = {n: [] for n in nexuses}
        self.type = self.holder = 0
        self.generation = 0         # at least

    def clone(self):
        copy = Model(self.tag, self.nexuses)
        copy.keys, copy.type, copy.holder = dict(self.keys), self.type, \
            self.holder
        copy.attention = {n: list(a) for n, a in self.attention.items()}
        copy.generation = self.generation
        return copy

    def load(self, target):
        """What the disk itself says, when nothing is on the way to it."""
        for n in self.nexuses:
            nexus = target.nexus(n)
            self.keys[n] = nexus.key
            if self.reserves:
                self.attention[n] = ['6/%02X/%02X' % (a >> 8, a & 255)
                                     for a in nexus.attention if a]
        if self.reserves:
            self.type = target.type
            self.holder = target.holder if target.type else 0

    def state(self):
        return self.keys, self.type, self.type and self.holder, \
            self.attention

    def all_registrants(self):
        return self.type >= 7

    def is_holder(self, n):
        return bool(self.type and self.keys[n]
                    and (self.all_registrants() or self.holder == n))

    def tell(self, n, what):
        if what not in self.attention[n] and len(self.attention[n]) < 4:
            self.attention[n].append(what)

    def tell_others(self, n, what):
        for other in self.nexuses:
            if self.reserves and other != n and self.keys[other]:
                self.tell(other, what)

    def release(self, n):
        if self.type >= 5:
            self.tell_others(n, RELEASED)
        self.type = self.holder = 0

    def unregister(self, n):
        was_holder = self.is_holder(n) and not self.all_registrants()
        self.keys[n] = 0
        if was_holder:
            self.release(n)

    def run(self, n, cdb, data):
        """A command: returns its status, or sense as key/ASC/ASCQ."""
        action, scope, type_ = cdb[1] & 31, cdb[2] >> 4, cdb[2] & 15
        if cdb[0] == 0x5e:      # the helper passes over them
            self.attention[n].clear()
        if self.attention[n]:
            return self.attention[n].pop(0)
        if cdb[0] == 0x5e:
            return GOOD if action < 4 else '5/24/00'
        if action > 7:
            return '5/24/00'
        if len(data) != 24 and (action != REGISTER_AND_MOVE
                                or len(data) < 24):
            return '5/1A/00'
        given, key = struct.unpack('>QQ', data[:16])
        if action in (REGISTER, REGISTER_AND_IGNORE):
            if data[20] & 0x0c:
                return '5/26/00'
            if action == REGISTER and given != self.keys[n]:
                return RESERVATION_CONFLICT
            if key or self.keys[n]:
                self.generation += 1
            if key:
                self.keys[n] = key
            else:
                self.unregister(n)
            return GOOD
        if not self.keys[n] or given != self.keys[n]:
            return RESERVATION_CONFLICT
        if scope:
            return '5/24/00'
        if action in (RESERVE, PREEMPT, PREEMPT_AND_ABORT) \
                and type_ not in TYPES:
            return '5/24/00'
        if action == RESERVE:
            return self.reserve(n, type_)
        if action == RELEASE:
            if not self.is_holder(n):
                return GOOD
            if self.type != type_:
                return '5/26/04'
            self.release(n)
            return GOOD
        if action == REGISTER_AND_MOVE:
            return self.move(n, key, data)
        ensure(action != CLEAR, 'the soak does not clear')
        return self.preempt(n, type_, key)

    def reserve(self, n, type_):
        if self.type and (not self.is_holder(n) or self.type != type_):
            return RESERVATION_CONFLICT
        if not self.type:
            self.type, self.holder = type_, n
        return GOOD

    def preempt(self, n, type_, key):
        old = self.type
        take = old and not self.all_registrants() \
            and self.keys[self.holder] == key
        if key not in self.keys.values():
            return RESERVATION_CONFLICT
        for other in self.nexuses:
            if self.keys[other] != key or (other == n and take):
                continue
            if other != n:
                self.tell(other, PREEMPTED)
            if take:
                self.keys[other] = 0
            else:
                self.unregister(other)
        if take:
            self.type, self.holder = type_, n
            if old != type_:
                self.tell_others(n, RELEASED)
        self.generation += 1
        return GOOD

    def move(self, n, key, data):
        if len(data) != 48:
            return '5/1A/00'
        if not self.type:
            return '5/24/00'
        if not self.is_holder(n) or self.all_registrants():
            return RESERVATION_CONFLICT
        to = data[24 + 4 + 7]       # the end of the address: sim.transport_id
        if to == n:
            return '5/26/00'
        self.keys[to], self.holder = key, to
        if data[17] & 2:
            self.keys[n] = 0
        self.generation += 1
        return GOOD

    # What may come back of PERSISTENT RESERVE IN.

    def check_keys(self, keys, complete):
        numbers = [key >> 32 & 0xffff for key in keys]
        ensure(all(key >> 48 == self.tag for key in keys)
               and numbers == sorted(set(numbers)), 'keys', keys)
        for n in self.nexuses:
            if complete or (numbers and n <= numbers[-1]):
                ensure([key for key in keys if key >> 32 & 0xffff == n]
                       == ([self.keys[n]] if self.keys[n] else []),
                       'nexus', n, 'has', hex(self.keys[n]), 'of', keys)

    def check_payload(self, cdb, payload, resid):
        """resid is what was injected, None if nothing was."""
        action, length = cdb[1] & 31, cdb[7] << 8 | cdb[8]
        head = payload[:8]
        full = 8
        if len(head) == 8 and action != REPORT_CAPABILITIES:
            full += int.from_bytes(head[4:], 'big')
        wanted = min(length, full) if resid is None \
            else max(0, min(length, length - resid))
        ensure(len(payload) == wanted, 'payload', len(payload), 'not', wanted)
        if len(head) < 8:
            return
        moved = min(full, length)
        ensure(payload[moved:] == b'\xdd' * (len(payload) - moved), 'tail')
        data, complete = payload[8:moved], len(payload) >= full
        if action == REPORT_CAPABILITIES:
            ensure(head in (b'\0\x08\x11\x80\xea\x01\0\0',
                            b'\0\x08\x11\x81\xea\x01\0\0'), head)
            return
        generation = int.from_bytes(head[:4], 'big')
        ensure(generation >= self.generation, 'generation', generation,
               'after', self.generation)
        self.generation = generation
        if action == READ_KEYS:
            self.check_keys(struct.unpack_from('>%dQ' % (len(data) // 8),
                                               data), complete)
        elif action == READ_RESERVATION:
            self.check_reservation(data, full)
        else:
            self.check_full_status(data, complete)

    def check_reservation(self, data, full):
        ensure(full in (8, 24), 'reservation of', full)
        ensure(not self.reserves or (full == 24) == bool(self.type), full)
        if len(data) < 16:
            return
        key, type_ = struct.unpack('>Q5xB2x', data)
        ensure(type_ in TYPES and (key == 0) == (type_ >= 7), key, type_)
        ensure(key == 0 or key >> 48 == self.tag, hex(key))
        if self.reserves:
            wanted = 0 if self.all_registrants() else self.keys[self.holder]
            ensure((key, type_) == (wanted, self.type), 'reservation',
                   (key, type_), self.state())

    def check_full_status(self, data, complete):
        rows = [data[i:i + 48] for i in range(0, len(data) - 47, 48)]
        keys = [int.from_bytes(row[:8], 'big') for row in rows]
        self.check_keys(keys, complete)
        for key, row in zip(keys, rows):
            n = key >> 32 & 0xffff
            ensure(row[24:] == sim.transport_id(n), 'transport', n, row)
            if self.reserves and n in self.keys:
                ensure((row[12], row[13]) == (
                    (1, self.type) if self.is_holder(n) else (0, 0)), row)


# ---- One client ------------------------------------------------------------

class Disk:
    """A nexus: its page, and a descriptor of it.

    The descriptor holds a flock(), which ends with the last copy of it: who
    gets the lock again knows that the helper has none left.
    """

    def __init__(self, place, number):
        self.path, self.number = place.disks.path(number), number
        self.page = place.target.nexus(number)
        self.fd, self.commands = -1, 0

    def reached(self, least, most):
        """How many commands have since the last time: between these."""
        more = self.page.commands - self.commands
        ensure(least <= more <= most, 'commands', more, least, most)
        self.commands += more
        return more

    def settle(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.page.hold = 0
        self.fd = os.open(self.path, LOCAL)
        end = time.monotonic() + PATIENCE / 4
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                ensure(time.monotonic() < end, 'a descriptor of disk',
                       self.number, 'was never closed')
                time.sleep(0.002)
        self.page.inject_count = self.page.delay_ms = 0
        self.page.in_flight = 0     # a killed session did not count down


class Place:
    """What all processes know of: paths, the disk, shared memory."""

    def __init__(self, seed):
        self.seed = seed
        self.tag = 0x8000 | random.Random(seed).randrange(0x8000)
        self.directory = tempfile.mkdtemp(prefix='soak-')
        self.socket = os.path.join(self.directory, 'pr.sock')
        self.failures = os.path.join(self.directory, 'failures')
        self.target = sim.Target(os.path.join(self.directory, 'state'))
        self.disks = sim.Disks(self.directory)
        self.shared = Shared()
        self.parent = os.getpid()
        for number in range(sim.NEXUSES):
            self.disks.path(number)
        part = sim.device(os.path.join(self.directory, 'part'), 8, 1)
        flood = self.target.nexus(FLOOD)
        flood.answer_resid(0, 1 << 31)      # 8 kB each
        self.part = os.open(part, LOCAL)
        self.strange = [os.open('/dev/null', LOCAL), os.pipe()[0],
                        os.open(self.directory, os.O_RDONLY),
                        socket.socket().detach(), os.open(
                            self.failures, LOCAL | os.O_CREAT | os.O_APPEND)]


class Guest:
    """One client after another, each on the same nexuses."""

    def __init__(self, place, number):
        self.place, self.shared = place, place.shared
        self.row = place.shared.row(number)
        self.number = number
        nexuses = [number]
        if number == 0:
            nexuses += range(FLOOD - CLUSTER + 1, FLOOD)
        self.disks = {n: Disk(place, n) for n in nexuses}
        self.model = Model(place.tag, nexuses)
        self.aside = []             # connections that wait for a timeout
        self.client = None

    def count(self, name, number=1):
        self.row[COUNTERS.index(name)] += number

    def key(self, n):
        return self.place.tag << 48 | n << 32 | self.random.randrange(1, 2**32)

    # -- connections

    def restarted(self, epoch):
        return epoch != self.shared.epoch or epoch % 2

    def ended(self, epoch):
        """The helper closed a connection of that epoch."""
        self.count('restarted' if self.restarted(epoch) else 'evicted')

    def connect(self, hello=True):
        end = time.monotonic() + PATIENCE
        while True:
            ensure(time.monotonic() < end, 'nobody lets us connect')
            epoch = self.shared.epoch
            try:
                client = Client(self.place.socket, hello, PATIENCE)
            except (FileNotFoundError, ConnectionRefusedError):
                ensure(self.restarted(epoch), 'no helper')
                time.sleep(0.02)
                continue
            except BlockingIOError:     # musl's SOMAXCONN is 128
                time.sleep(0.02)
                continue
            except (Closed, ConnectionError):
                self.ended(epoch)
                continue
            client.epoch = epoch
            ensure(client.features in (None, 1), client.features)
            self.count('connects')
            return client

    def put_aside(self, client, what):
        self.count(what)
        self.aside.append((client, time.monotonic()))

    def look_aside(self):
        kept = []
        for client, since in self.aside:
            poll = select.poll()
            poll.register(client.sock, 0)
            age = time.monotonic() - since
            if poll.poll(0):
                if age < CLIENT_TIMEOUT - 1:
                    self.ended(client.epoch)
                client.close()
            else:
                ensure(age < CLIENT_TIMEOUT + 20, 'no timeout')
                kept.append((client, since))
        self.aside = kept

    # -- requests

    def settle(self, before=None, limit=0, start=0):
        """Nothing is on the way any more: what has the disk become?

        It must be as the model or as before, and no more than limit commands
        further; start is when a command began that has to be answered if it
        was executed.
        """
        for disk in self.disks.values():
            disk.settle()
        seen = (before or self.model).clone()
        seen.load(self.place.target)
        for disk in self.disks.values():
            more = disk.page.commands - disk.commands
            ensure(0 <= more <= limit, 'disk', disk.number, 'had', more,
                   'commands more than we know of, and not', limit)
            ensure(not more or not start or self.shared.killed_at >= start,
                   'command without a reply on disk', disk.number)
            disk.commands += more
        if before is not None:
            ensure(seen.state() in (before.state(), self.model.state()),
                   'disk', seen.state(), 'model', before.state(), 'or',
                   self.model.state())
        self.model = seen

    def choose(self, n):
        """A command that leaves the model certain: CDB and data."""
        rand, model = self.random, self.model
        key = model.keys[n]
        if rand.random() < 0.4:
            length = rand.choice((0, 4, 8, 24, 56, 8192,
                                  rand.randrange(8193)))
            return pr_in(rand.choice((0, 0, 1, 2, 3, 3, rand.randrange(32))),
                         length), b''
        if rand.random() < 0.1:     # wrong in some way
            action = rand.randrange(32)
            size = rand.choice((0, 1, 16, 23, 25, 100, 8192))
            data = bytearray(rand.randbytes(size))
            if size > 20:
                data[20] &= ~0x08       # SPEC_I_PT is not in the model
            return pr_out(action, 1, size), bytes(data)
        if model.reserves:
            return self.choose_reserve(n)
        action, type_, given, new, flags, scope = rand.choice((
            (REGISTER, 0, key, self.key(n), rand.randrange(2), 0),
            (REGISTER, 0, key, 0, 0, 0),
            (REGISTER, 0, key ^ 1, self.key(n), 0, 0),
            (REGISTER, 0, key, self.key(n), 8, 0),
            (REGISTER_AND_IGNORE, 0, key ^ 5, self.key(n), 0, 0),
            (RESERVE, rand.choice(TYPES), key ^ 1, 0, 0, 0),
            (RESERVE, rand.choice((0, 2, 4, 9, 15)), key, 0, 0, 0),
            (RELEASE, rand.choice(TYPES), key ^ 1, 0, 0, 0),
            (RELEASE, rand.choice(TYPES), key, 0, 0, 1),
            (CLEAR, 0, key ^ 1, 0, 0, 0),
            (PREEMPT, rand.choice(TYPES), key, key or 1, 0, 0),
            (PREEMPT_AND_ABORT, rand.choice(TYPES), key, 1, 0, 0)))
        return pr_out(action, type_, 24, scope), parameters(given, new, flags)

    def choose_reserve(self, n):
        rand, model = self.random, self.model
        key, type_ = model.keys[n], rand.choice(TYPES)
        other = rand.choice(model.nexuses)
        if rand.random() < 0.4:
            type_ = model.type or type_
        choices = [(RESERVE, key, 0), (RESERVE, key, 0), (RELEASE, key, 0),
                   (REGISTER, key, self.key(n)),
                   (REGISTER_AND_IGNORE, 0, self.key(n)),
                   (RESERVE, key ^ 1, 0), (PREEMPT, key, 1)]
        if not model.all_registrants():
            # With it, it matters whether others are registered as well.
            choices += [(REGISTER, key, 0), (REGISTER_AND_MOVE, key, 0),
                        (PREEMPT, key, model.keys[other] or 1),
                        (PREEMPT_AND_ABORT, key, model.keys[other] or 1)]
        action, given, new = rand.choice(choices)
        if action == REGISTER_AND_MOVE:
            data = struct.pack('>QQxBHI', given, self.key(other),
                               rand.choice((0, 2)), 1, 24)
            return pr_out(action, 0, 48), data + sim.transport_id(other)
        return pr_out(action, type_), parameters(given, new)

    def refused(self):
        """A descriptor that is not served: (fd, CDB, data, reply)."""
        rand = self.random
        out = pr_out(REGISTER_AND_IGNORE), parameters(0, 1)
        path = self.disks[self.number].path
        kind = rand.randrange(5)
        if kind == 0:
            fd = os.open(path, os.O_RDONLY)
            return fd, *out, '5/20/00'
        if kind == 1:
            return os.open(path, os.O_PATH), *out, '5/20/00'
        if kind == 2:
            cdb, data = rand.choice((out, (pr_in(READ_KEYS), b'')))
            return os.dup(self.place.part), cdb, data, '5/20/00'
        if kind == 3:
            cdb = bytearray(out[0])
            cdb[rand.choice((5, 6))] = rand.randrange(1, 256)
            fd = os.open(path, os.O_RDWR)
            return fd, bytes(cdb), out[1], '5/24/00'
        fd = os.dup(rand.choice(self.place.strange))
        return fd, pr_in(READ_FULL_STATUS), b'', 'B/00/06'

    def inject(self, page):
        """What goes wrong with the next command.

        Returns the reply (None: the disk's own), resid, and for how long the
        disk hangs (None: it does not).
        """
        rand, hang = self.random, None
        kind = rand.random()
        if kind > 0.35:
            return None, None, None
        if kind > 0.33:
            self.count('delays')
            page.delay_ms = rand.randrange(30 if SINGLE else 300)
        if kind > 0.32 and not (SINGLE and rand.random() < 0.9):
            self.count('hangs')
            page.hold, hang = 1, rand.uniform(0, 0.1 if SINGLE else 2)
        kind = rand.randrange(6)
        if kind == 0:
            self.count('errno')
            error = rand.choice((*ERRNO_REPLIES, rand.randrange(1, 134)))
            page.fail_ioctl(error)
            return failure(ERRNO_REPLIES.get(error, 'B/00/06')), None, hang
        if kind == 1:
            self.count('resid')
            resid = rand.choice((0, 1, -1, 8, 8192, 8193, -2**31, 2**31 - 1,
                                 rand.randrange(8192)))
            page.answer_resid(resid)
            return None, resid, hang
        if kind == 5:
            return None, None, hang
        host = driver = status = 0
        sense = b''
        if kind == 2:
            self.count('host')
            host = rand.choice((*HOST_REPLIES, 7, rand.randrange(1, 0x30)))
        if kind == 3 or rand.random() < 0.2:
            self.count('driver')
            driver = rand.choice((6, 8, rand.randrange(1, 16)))
        if kind == 4 or rand.random() < 0.2:
            self.count('status')
            status = rand.choice((0, 2, 2, 2, 2, 4, 8, 0x18, 0x28, 0x40))
            sense = rand.randbytes(rand.choice((0, 18, 96,
                                                rand.randrange(97))))
        page.answer(status, host, driver, sense)
        if host:
            reply = failure(HOST_REPLIES.get(host, 'B/08/00'))
        elif driver == 6:
            reply = failure(8)
        elif driver not in (0, 8) or (status == 2 and not sense):
            reply = failure('B/08/00')
        elif status == 2:
            reply = status, sense.ljust(96, b'\0'), b''
        else:
            reply = failure(status)
        return reply, None, hang

    def deliver(self, cdb, fd, data):
        """The request as QEMU sends it, or in pieces."""
        rand, client = self.random, self.client
        if rand.random() < 0.8:
            client.send(cdb, [fd])
        else:
            first, second = sorted(rand.sample(range(1, 16), 2))
            pieces = [cdb[:first], cdb[first:second], cdb[second:]]
            with_fd = rand.randrange(3)
            for i, piece in enumerate(pieces):
                client.send(piece, [fd] if i == with_fd else [])
        if len(data) > 1 and rand.random() < 0.2:
            cut = rand.randrange(1, len(data))
            client.sock.sendall(data[:cut])
            data = data[cut:]
        if data:
            client.sock.sendall(data)

    def check(self, reply, wanted, cdb, resid):
        """A reply against a status, or sense, or a whole reply."""
        if wanted == GOOD:
            ensure(reply[:2] == (GOOD, bytes(96)), reply, cdb)
            if cdb[0] == 0x5e:
                self.model.check_payload(cdb, reply.payload, resid)
            else:
                ensure(reply.payload == b'', reply)
            return
        if not isinstance(wanted, tuple):
            wanted = failure(wanted)
        ensure(reply == wanted, 'reply', reply, 'not', wanted, 'to', cdb)

    def tally(self, reply, start, timed):
        self.count('requests')
        self.count('good' if reply.status == GOOD else 'conflicts'
                   if reply.status == RESERVATION_CONFLICT else 'sense')
        if timed:
            us = max(1, now_us() - start)
            self.row[len(COUNTERS)
                     + min(BUCKETS - 1, int(math.log2(us) * 8))] += 1

    def work(self):
        """One request, and all that is known of it afterwards."""
        if self.random.random() < 0.05:
            return self.work_refused()
        n = self.random.choice(self.model.nexuses)
        disk = self.disks[n]
        cdb, data = self.choose(n)
        cdb = cdb[:9] + self.random.randbytes(7)
        injected, resid, hang = self.inject(disk.page)
        before, start = self.model.clone(), now_us()
        most = READS if cdb[0] == 0x5e else 1
        if most > 1 and injected and not disk.page.host_status \
                and injected[0] == 2 and sense_key(injected[1]) == 6:
            injected = None
        if injected is None:
            wanted = self.model.run(n, cdb, data)
        else:
            wanted = injected
            if wanted == failure(GOOD) and cdb[0] == 0x5e:
                wanted = GOOD, bytes(96), b'\xee' * (cdb[7] << 8 | cdb[8])
        dies = self.random.random() < 0.01
        try:
            self.deliver(cdb, disk.fd, data)
            if hang is not None:
                time.sleep(hang)
                if not dies:
                    disk.page.hold = 0
            if dies:
                self.count('deaths')
                self.client.close()
                raise Closed
            reply = self.client.reply()
        except (Closed, ConnectionError):
            self.settle(before, most, 0 if dies else start)
            if not dies:
                raise Ended from None
            self.client = None
            return None
        self.tally(reply, start, hang is None and not disk.page.delay_ms)
        disk.page.delay_ms = 0
        if reply.status == 2 and sense_code(reply.sense) == RELEASED \
                and injected is None and wanted != RELEASED \
                and not self.model.reserves and before.keys[n]:
            self.model, wanted = before, RELEASED   # not known of, but legal
        page = disk.page
        sent = disk.reached(1, most)
        self.check(reply, wanted, cdb, resid if sent == 1 else None)
        ensure(page.cdb[:10] == cdb[:10], 'CDB', page.cdb, cdb)
        ensure(page.key == self.model.keys[n], 'key', page.key)
        ensure(page.in_flight == 0, 'still in flight')
        return reply

    def work_refused(self):
        fd, cdb, data, wanted = self.refused()
        start = now_us()
        try:
            self.deliver(cdb, fd, data)
            reply = self.client.reply()
        except (Closed, ConnectionError):
            raise Ended from None
        finally:
            os.close(fd)
        self.count('refusals')
        self.tally(reply, start, True)
        self.check(reply, wanted, cdb, None)

    def pipeline(self):
        """Several requests before the first reply is read."""
        disk = self.disks[self.number]
        lengths = [self.random.randrange(2049)
                   for _ in range(self.random.randrange(2, 9))]
        try:
            for length in lengths:
                self.client.send(pr_in(READ_KEYS, length), [disk.fd])
            for length in lengths:
                reply = self.client.reply()
                self.count('pipelined')
                self.tally(reply, 0, False)
                wanted = self.model.run(self.number, pr_in(0), b'')
                if reply.status == 2 and not self.model.reserves \
                        and self.model.keys[self.number]:
                    wanted = RELEASED
                self.check(reply, wanted, pr_in(READ_KEYS, length), None)
        except (Closed, ConnectionError):
            left = READS * len(lengths)
            if self.model.reserves:     # attentions that nobody has read of
                self.model.load(self.place.target)
            self.settle(None, left)
            raise Ended from None
        disk.reached(len(lengths), READS * len(lengths))

    # -- misbehaviour: each takes self.client, and leaves none

    def violation(self):
        """Breaks one rule; the connection must end, and nothing happen."""
        rand, client = self.random, self.client
        fd = self.disks[self.number].fd
        cdb, out = pr_in(READ_KEYS), pr_out(REGISTER_AND_IGNORE)
        data = parameters(0, 1)
        kind = rand.randrange(12)
        if kind < 3:
            client.close()
            client = self.connect(hello=False)
        try:
            if kind == 0:
                client.send(struct.pack('>I', 1 << rand.randrange(1, 32)))
            elif kind == 1:
                client.send(bytes(4), [fd])
            elif kind == 2:
                client.send(bytes(2))
                client.send(bytes(2), [fd])
            elif kind == 3:
                client.send(cdb)
            elif kind == 4:
                client.send(cdb, [fd] * rand.choice((2, 3, 4, 253)))
            elif kind == 5:
                code = rand.choice([c for c in range(256)
                                    if c not in (0x5e, 0x5f, 0xff)])
                client.send(bytes([code]) + cdb[1:], [fd])
            elif kind == 6:
                client.send(pr_in(0, rand.randrange(8193, 65536)), [fd])
            elif kind == 7:
                client.send(pr_out(0, 0, rand.randrange(8193, 65536)), [fd])
            elif kind == 8:
                client.send(out, [fd])
                client.send(data, [fd])
            elif kind == 9:
                client.send(out, [fd])
                client.send(data[:7])
                client.send(data[7:], [fd] * rand.randrange(1, 4))
            elif kind == 10:
                client.send(cdb[:5], [fd])
                client.send(cdb[5:], [fd])
            else:
                noise = rand.randbytes(rand.randrange(16, 4000))
                client.send(noise)
        except ConnectionError:
            pass                    # it did not wait for all of it
        self.count('violations')
        if kind < 3:                # its hello comes first
            with contextlib.suppress(Closed):
                client.read(4)
        ensure(client.closed(), 'violation', kind, 'was answered')
        client.close()
        self.client = None
        self.settle(self.model, 0)

    def stop_inside(self):
        """Stops anywhere in a frame, and waits to be thrown out, or dies."""
        rand, client = self.random, self.client
        fd = self.disks[self.number].fd
        kind = rand.randrange(4)
        out = pr_out(REGISTER_AND_IGNORE)
        if kind == 0:
            client.close()
            client = self.connect(hello=False)
        with contextlib.suppress(ConnectionError):
            if kind == 1:
                client.send(out[:rand.randrange(1, 16)], [fd])
            elif kind == 2:
                client.send(out[:rand.randrange(1, 16)])
            elif kind == 3:
                client.send(out, [fd])
                client.send(parameters()[:rand.randrange(1, 24)])
        self.client = None
        if kind in (1, 3) or len(self.aside) > 1 or rand.random() < 0.3:
            self.count('deaths')
            client.close()
            self.settle(self.model, 0)
        else:
            self.put_aside(client, 'stops')

    def flood(self):
        """Asks, does not read; half of them do so in the end."""
        client, self.client = self.client, None
        disk = os.open(self.place.disks.path(FLOOD), LOCAL)
        sent = 0
        client.sock.setblocking(False)
        try:
            for _ in range(40):
                client.send(pr_in(READ_KEYS), [disk])
                sent += 1
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as e:
            if e.errno != errno.ETOOMANYREFS:
                raise
        os.close(disk)
        client.sock.settimeout(PATIENCE)
        if self.random.random() < 0.5 and len(self.aside) < 2:
            self.put_aside(client, 'floods')
            return
        try:
            for _ in range(sent):
                reply = client.reply()
                ensure(reply[:2] == (GOOD, bytes(96))
                       and len(reply.payload) == 8192, reply)
                length = 8 + int.from_bytes(reply.payload[4:8], 'big')
                ensure(not reply.payload[length:].strip(b'\xdd'), 'tail')
                self.count('requests')
        except (Closed, ConnectionError):
            self.ended(client.epoch)
        client.close()

    def linger(self):
        """Has the helper close a descriptor that blocks for a while."""
        client, self.client = self.client, None
        sender, receiver = lingering()
        wait = self.random.uniform(0, 0.05 if SINGLE else 2)
        timer = threading.Timer(wait, receiver.close)
        self.count('lingers')
        try:
            client.send(pr_in(READ_KEYS), [sender.fileno()])
            timer.start()
            sender.close()
            if self.random.random() < 0.5:
                reply = client.reply()
                self.check(reply, 'B/00/06', pr_in(READ_KEYS), None)
        except (Closed, ConnectionError):
            self.ended(client.epoch)
        client.close()
        receiver.close()
        sender.close()

    def half_close(self):
        """A request and the end of the stream: the reply, then the end."""
        client, self.client = self.client, None
        disk = self.disks[self.number]
        cdb, start = pr_in(REPORT_CAPABILITIES), now_us()
        before = self.model.clone()
        self.count('halves')
        try:
            client.send(cdb, [disk.fd])
            client.sock.shutdown(socket.SHUT_WR)
            reply = client.reply()
            wanted = self.model.run(self.number, cdb, b'')
            if reply.status == 2 and before.keys[self.number] \
                    and not self.model.reserves:
                wanted = RELEASED
            self.tally(reply, start, True)
            self.check(reply, wanted, cdb, None)
            disk.reached(1, READS)
            ensure(client.closed(), 'no end')
        except (Closed, ConnectionError):
            self.settle(None, READS, start)
            self.ended(client.epoch)
        client.close()

    # -- life

    def step(self):
        rand = self.random
        if self.client is None:
            self.client = self.connect()
        for _ in range(rand.choice((1, 5, 20, 80))):
            if self.shared.stop or self.client is None:
                return
            if rand.random() < 0.03:
                self.pipeline()
            else:
                self.work()
            if rand.random() < 0.1:
                time.sleep(rand.uniform(0, 0.3))
        if self.client is None or self.number % 8 == 1:
            return                  # some stay for ever, as QEMU's do
        kind = rand.random()
        if kind < 0.45:
            self.violation()
        elif kind < 0.55:
            self.stop_inside()
        elif kind < 0.57:
            self.flood()
        elif kind < 0.60:
            self.linger()
        elif kind < 0.70:
            self.half_close()
        elif kind < 0.80:
            self.client.close()
            self.client = None
        else:
            time.sleep(rand.uniform(0, 1))      # idle, as virtual machines are

    def live(self, life):
        """Until the end; raises what is wrong."""
        self.random = random.Random('%s %d %d' % (self.place.seed,
                                                  self.number, life))
        for disk in self.disks.values():        # whoever was here before
            disk.settle()
            disk.commands = disk.page.commands
        self.model.load(self.place.target)
        while not self.shared.stop and os.getppid() == self.place.parent:
            self.look_aside()
            try:
                self.step()
            except Ended:
                self.ended(self.client.epoch)
                self.client.close()
                self.client = None


def worker(place, number, life):
    """A process of clients: one peer to the helper."""
    def run(guest):
        try:
            guest.live(life)
        except BaseException:
            text = 'client %d:\n%s' % (guest.number, traceback.format_exc())
            with open(place.failures, 'a') as f:
                f.write(text)
            os._exit(1)

    threads = [threading.Thread(target=run, daemon=True,
                                args=[Guest(place, number * CLIENTS + i)])
               for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


# ---- Everything ------------------------------------------------------------

class Soak:
    def __init__(self, seconds, seed):
        self.place = Place(seed)
        self.shared = self.place.shared
        self.random = random.Random(seed)
        self.seconds, self.workers = seconds, {}
        self.lives = self.restarts = self.kills = self.worker_deaths = 0
        self.helper = self.warm = None
        self.logs = ''
        self.start()
        time.sleep(0.5)             # --single-process closes the probe
        self.baseline = self.fds(self.helper.pid)
        ensure(self.baseline > 0, 'cannot count descriptors')

    # -- the helper

    def start(self):
        directory = os.path.join(self.place.directory,
                                 'run%d' % self.restarts)
        os.mkdir(directory)
        self.helper = Helper(
            directory, program('SIM_HELPER', 'build/sim/qemu-pr-helper'),
            ['-v', '--max-clients', str(MAX_CLIENTS),
             '--client-timeout', str(CLIENT_TIMEOUT), *OPTIONS],
            env=self.place.target.env, socket_path=self.place.socket)

    @staticmethod
    def wait(what, condition, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not condition():
            ensure(time.monotonic() < end, 'waited in vain:', what)
            time.sleep(0.01)

    @staticmethod
    def fds(pid):
        try:
            return len(os.listdir('/proc/%d/fd' % pid))
        except (FileNotFoundError, ProcessLookupError):
            return 0
        except PermissionError:     # to a user, one that is exiting
            return 0

    @staticmethod
    def memory(pid):
        """Anonymous kilobytes, whether a child still shares them or not."""
        with open('/proc/%d/status' % pid) as f:
            return int(re.search('RssAnon:[ \t]*([0-9]+)', f.read())[1])

    def processes(self):
        """All processes of any helper of ours, by their command line."""
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            with contextlib.suppress(OSError):
                with open('/proc/%s/cmdline' % pid, 'rb') as f:
                    if self.place.socket.encode() in f.read():
                        found.append(int(pid))
        return found

    def stop(self, sig):
        status = self.helper.stop(sig, PATIENCE)
        ensure(status == (0 if sig == signal.SIGTERM else -sig),
               'exit status', status)
        if sig == signal.SIGTERM:
            ensure(not os.path.exists(self.place.socket), 'socket left')
        self.wait('processes left', lambda: not self.processes())
        self.check_log()
        self.logs += self.helper.log()

    def check_log(self):
        # No '.*' here: it is quadratic, and a log has tens of megabytes.
        bad = self.helper.crashes() + [
            line for line in self.helper.log().splitlines()
            if 'cannot ' in line and not re.search(
                'cannot (?:clear the supplementary groups|empty the '
                'capability|remove )', line)]
        ensure(not bad, *bad[:9])

    def restart(self):
        self.shared.epoch += 1
        sig = signal.SIGTERM
        if self.random.random() < 0.3:
            sig = signal.SIGKILL
            if SINGLE:
                self.shared.killed_at = now_us() + 1000000
        self.stop(sig)
        self.place.target.lock = 0  # a session that was killed may have it
        self.restarts += 1
        self.start()
        self.shared.epoch += 1

    # -- bad luck

    def kill_session(self):
        """SIGKILL for a session, unless it holds the simulated disk's lock."""
        sessions = self.helper.sessions()
        if not sessions:
            return
        pid = self.random.choice(sessions)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, signal.SIGSTOP)
            for _ in range(100):
                with open('/proc/%d/stat' % pid) as f:
                    state = f.read().rpartition(')')[2].split()[0]
                if state == 'T' and self.place.target.lock == 0:
                    self.shared.killed_at = now_us()
                    self.kills += 1
                    os.kill(pid, signal.SIGKILL)
                    return
                if state == 'T':
                    break
                time.sleep(0.001)
            os.kill(pid, signal.SIGCONT)

    def begin_worker(self, number):
        self.lives += 1
        pid = os.fork()
        if pid == 0:
            try:
                for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                    signal.signal(sig, signal.SIG_DFL)
                signal.alarm(0)
                worker(self.place, number, self.lives)
            finally:
                os._exit(1)
        self.workers[pid] = number

    def kill_worker(self):
        pid = self.random.choice(list(self.workers))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.worker_deaths += 1
        self.begin_worker(self.workers.pop(pid))

    # -- what must hold all the time

    def failed(self):
        with open(self.place.failures) as f:
            return f.read()

    def watch(self):
        for pid in list(self.workers):
            ensure(os.waitpid(pid, os.WNOHANG) == (0, 0), 'a client failed')
        pid = self.helper.pid
        ensure(self.helper.process.poll() is None, 'main is gone')
        fds = self.fds(pid)
        most = self.baseline + (3 * MAX_CLIENTS if SINGLE else 0)
        ensure(fds <= most, 'main has', fds, 'descriptors, not', most)
        sessions = self.helper.sessions()
        ensure(len(sessions) <= 2 * MAX_CLIENTS, len(sessions), 'sessions')
        for session in self.random.sample(sessions, min(4, len(sessions))):
            # Its own 5, main's as it begins, and some in one message.
            count = self.fds(session)
            ensure(count <= 20, 'a session has', count, 'descriptors')

    def run(self):
        begin = time.monotonic()
        end = begin + self.seconds
        restarts = sorted(
            begin + self.seconds * self.random.uniform(0.4, 0.65)
            for _ in range(2 + int(self.seconds / 100)))
        for number in range(WORKERS):
            self.begin_worker(number)
        looked = begin
        while time.monotonic() < end:
            time.sleep(self.random.uniform(0, 0.3))
            self.watch()
            now = time.monotonic()
            if restarts and now > restarts[0]:
                restarts.pop(0)
                self.restart()
            if self.random.random() < 0.15:
                self.kill_session()
            if self.random.random() < 0.01:
                self.kill_worker()
            if not self.warm and now > begin + self.seconds * 0.75:
                self.warm = self.memory(self.helper.pid)
            if now > looked + 5:
                looked = now
                self.check_log()
        self.finish()

    def finish(self):
        self.shared.stop = 1
        for pid in list(self.workers):
            self.wait('a client does not end',
                      lambda: self.ended(pid), 2 * PATIENCE)
        pid = self.helper.pid
        self.warm = self.warm or self.memory(pid)   # after a late restart
        self.wait('sessions left', lambda: not self.helper.sessions())
        self.wait('descriptors left', lambda: self.fds(pid) == self.baseline)
        self.cold = self.memory(pid)
        # There is a table that fills when there are many at a time.
        self.warm = max(self.warm, 9 * MAX_CLIENTS if SINGLE else 0)
        ensure(self.cold <= self.warm + 64, 'main has', self.cold,
               'kB of memory, and had', self.warm)
        self.stop(signal.SIGTERM)
        for number in range(sim.NEXUSES):
            Disk(self.place, number).settle()
        self.check_ends()

    def ended(self, pid):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            del self.workers[pid]
            ensure(status == 0, 'a client failed')
        return done

    def check_ends(self):
        """No connection ended but by an eviction, a kill or a restart."""
        self.evictions = len(re.findall(': [0-9]+ clients: ', self.logs))
        ends = self.shared.total('evicted')
        ensure(ends <= self.evictions + self.kills, ends, 'ends, but only',
               self.evictions, 'evictions and', self.kills, 'kills')
        died = self.logs.count('died of signal 9')
        ensure(died <= self.kills, died, 'sessions died, not', self.kills)

    def summary(self):
        total = self.shared.total
        print('soak: %d clients in %d processes, %d of which were killed; '
              '%d restarts, %d sessions killed, %d evicted'
              % (WORKERS * CLIENTS, WORKERS, self.worker_deaths,
                 self.restarts, self.kills, self.evictions))
        print('soak: ' + ', '.join('%d %s' % (total(name), name)
                                   for name in COUNTERS))
        print('soak: p50 %.0f us, p99 %.0f us of those that no fault delayed; '
              'main has %d kB of memory (warm: %d), %d descriptors'
              % (self.shared.latency(0.5), self.shared.latency(0.99),
                 self.cold, self.warm, self.baseline))
        kinds = Counter(re.sub('[0-9]+', 'N', line)
                        for line in self.logs.splitlines())
        for line, number in kinds.most_common(24):
            print('soak: log: %6d %s' % (number, line))

    def end(self):
        """Leaves nothing behind, however it ends."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.helper is not None:
            self.helper.process.wait()
        shutil.rmtree(self.place.directory)


def main():
    seconds = 60 * float(os.environ.get('SOAK_MINUTES') or 10)
    seed = os.environ.get('SOAK_SEED') or str(time.time_ns() % 10**9)
    print('soak: SOAK_SEED=%s, %g minutes' % (seed, seconds / 60), flush=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))

    def stop(number, _):
        raise Wrong('signal %d' % number)

    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(sig, stop)
    signal.alarm(int(seconds) + 8 * PATIENCE)
    soak = Soak(seconds, seed)
    try:
        soak.run()
        soak.summary()
        print('soak: passed')
        return 0
    except BaseException:
        print('soak: FAILED, SOAK_SEED=%s' % seed)
        print(soak.failed() or traceback.format_exc())
        print(soak.helper.log()[-2000:])
        return 1
    finally:
        soak.end()


if __name__ == '__main__':
    sys.exit(main())
