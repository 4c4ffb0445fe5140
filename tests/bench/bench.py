#!/usr/bin/env python3
"""make bench: this helper beside QEMU's and beside the floor, in tables.

Every figure is the median of BENCH_ROUNDS rounds (default 7, about a
minute), and within a round all contenders run in turn, each with a fresh
process, so that a busy machine hits them alike; ratios are to be believed
before absolute times. The contenders: QEMU's helper as installed ("stock"),
ours linked with the system's libc ("dynamic") and with musl ("static"), and
the floor (bench.c). Ours are the benched builds, see bench_device.c.

It must never fail because something is slow: the exit status is 1 only for
a malfunction, such as a malformed reply or a helper that does not start.
"""
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.append(os.path.join(TOP, 'tests/lib'))

import prclient                                             # noqa: E402

BUILD = os.environ.get('BUILD', os.path.join(TOP, 'build'))
ROUNDS = int(os.environ.get('BENCH_ROUNDS', 7))
INF = float('inf')             # a latency: nothing came back
CPU = max(os.sched_getaffinity(0))
BENCH = os.path.join(BUILD, 'bench', 'bench')
HANG = os.path.join(BUILD, 'bench', 'hang.so')
DIRECTORY = tempfile.mkdtemp(prefix='bench')
SOCKET = os.path.join(DIRECTORY, 'pr.sock')

# name: (command, the file that would be installed, environment)
CANDIDATES = {
    'floor': ([BENCH, 'floor'], None, {}),
    'stock': ([os.environ.get('STOCK', '/usr/bin/qemu-pr-helper')],
              os.environ.get('STOCK', '/usr/bin/qemu-pr-helper'),
              {'LD_PRELOAD': HANG}),
    'dynamic': ([os.path.join(BUILD, 'bench', 'qemu-pr-helper')],
                os.path.join(TOP, 'qemu-pr-helper'), {}),
    'static': ([os.path.join(BUILD, 'bench', 'qemu-pr-helper-static')],
               os.path.join(BUILD, 'static', 'qemu-pr-helper'), {}),
}


class Running:
    """One contender, alone in a process group, listening on SOCKET."""

    def __init__(self, name, pinned=False, hang=False):
        command, _, environment = CANDIDATES[name]
        with open(os.path.join(DIRECTORY, 'log'), 'w') as log:
            self.process = subprocess.Popen(
                [*command, '-k', SOCKET], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **(environment if hang else {})},
                preexec_fn=(lambda: os.sched_setaffinity(0, {CPU}))
                if pinned else None)

    def __enter__(self):
        try:
            for _ in range(4000):
                try:
                    with socket.socket(socket.AF_UNIX) as probe:
                        probe.connect(SOCKET)
                    time.sleep(0.01)
                    return self
                except OSError:
                    if self.process.poll() is not None:
                        break
                    time.sleep(0.005)
            with open(os.path.join(DIRECTORY, 'log')) as log:
                sys.exit('bench: %s does not start: %s'
                         % (self.process.args[0], log.read()))
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)

    def processes(self):
        """Main, its children and theirs."""
        found = [self.process.pid]
        for pid in found:
            with open('/proc/%d/task/%d/children' % (pid, pid)) as f:
                found += [int(child) for child in f.read().split()]
        return found

    def memory(self):
        """kB, private and proportional, of all the helper's processes."""
        total = {'Private_Clean': 0, 'Private_Dirty': 0, 'Pss': 0}
        for pid in self.processes():
            with open('/proc/%d/smaps_rollup' % pid) as f:
                for name, kb in re.findall(r'^(\w+): +(\d+) kB', f.read(),
                                           re.M):
                    if name in total:
                        total[name] += int(kb)
        return (total['Private_Clean'] + total['Private_Dirty'],
                total['Pss'])


def run(*arguments, stall=False):
    """The words bench prints; [] if it was stalled and that is allowed."""
    result = subprocess.run([BENCH, *map(str, arguments)], timeout=300,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)
    if stall and result.returncode == -signal.SIGALRM:
        return []
    if result.returncode != 0:
        sys.exit('%sbench: %s: status %d' % (
            result.stderr, ' '.join(map(str, arguments)), result.returncode))
    return result.stdout.split()


class Table:
    """Samples by row and contender, printed as medians and ratios."""

    def __init__(self, title, names, ratios, form='%.1f'):
        self.title, self.names, self.form = title, names, form
        self.ratios = [(a, b) for a, b in ratios
                       if a in names and b in names]
        self.samples = {}

    def add(self, row, name, value):
        self.samples.setdefault(row, {}).setdefault(name, []).append(value)

    def value(self, row, name):
        values = self.samples.get(row, {}).get(name)
        return statistics.median(values) if values else None

    def ratio(self, row, name, other):
        a, b = self.value(row, name), self.value(row, other)
        return a / b if a is not None and b not in (None, 0, INF) else None

    def print(self):
        if not self.samples:
            return
        print('\n%s\n' % self.title)
        rows = [['', *self.names, *('%s/%s' % r for r in self.ratios)]]
        for row in self.samples:
            cells = [self.form % v if v is not None else '-'
                     for v in (self.value(row, n) for n in self.names)]
            cells = [c.replace('inf', 'stalled') for c in cells]
            cells += ['%.2f' % v if v is not None else '-'
                      for v in (self.ratio(row, *r) for r in self.ratios)]
            rows.append([row, *cells])
        print_rows(rows)


def print_rows(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ['-' * (w - 1) + ':' if i else '-' * w
                    for i, w in enumerate(widths)])
    for row in rows:
        print('| %s |' % ' | '.join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths))))
    sys.stdout.flush()


def bench_latency(names, device, ratios):
    """Round trips; checks that all made the same ioctl of the device."""
    latency = Table('Round trip, us (p50 and p99)', names, ratios)
    rate = Table('Requests per second', names, ratios, '%.0f')
    connect = Table('Connect and hello, us (median)', names, ratios)
    senses = {}
    # direction, clients, how, requests, pinned
    plan = [('in', 1, 'loop', 5000, True), ('out', 1, 'loop', 5000, True),
            ('in', 1, 'loop', 5000, False),
            ('in', 8, 'fork', 15000, False), ('in', 8, 'loop', 15000, False),
            ('in', 64, 'loop', 15000, False),
            ('in', 250, 'loop', 15000, False)]
    for _ in range(ROUNDS):
        for direction, clients, how, requests, pinned in plan:
            row = 'PR %s, clients: %d%s%s' % (
                direction.upper(), clients, ', pinned' if pinned else '',
                ', a process each' if how == 'fork' else '')
            for name in names:
                with Running(name, pinned):
                    p50, p99, per_second, hello, sense = run(
                        'load', SOCKET, device, clients, requests,
                        direction, CPU if pinned else -1, 20, how)
                latency.add('p50, ' + row, name, float(p50))
                latency.add('p99, ' + row, name, float(p99))
                rate.add(row, name, float(per_second))
                if clients == 64:
                    connect.add('clients: 64, one by one', name,
                                float(hello))
                if name != 'floor':
                    senses.setdefault(sense, set()).add(name)
    if len(senses) > 1:
        sys.exit('bench: the contenders answer differently, so they do not '
                 'do the same: %r' % senses)
    for table in latency, rate, connect:
        table.print()
    return latency, rate


def bench_memory(names, device, ratios):
    """Every client has made one request and idles."""
    private = Table('Private memory of all processes, kB', names, ratios,
                    '%.0f')
    pss = Table('Proportional set size (PSS) of all processes, kB', names,
                ratios, '%.0f')
    if os.geteuid() != 0:
        print("\nbench: SKIP memory: only root may read the helper's maps")
        return private
    for count in 0, 1, 64, 250:
        for name in names:
            with Running(name) as helper:
                clients = [prclient.Client(SOCKET) for _ in range(count)]
                for client in clients:
                    client.read_in(device, prclient.READ_KEYS, 512)
                row = 'clients: %d' % count
                memory = helper.memory()
                private.add(row, name, memory[0])
                pss.add(row, name, memory[1])
                for client in clients:
                    client.close()
    private.print()
    pss.print()
    return private


def bench_start(names, ratios):
    table = Table('Start until the socket accepts, us', names, ratios, '%.0f')
    for _ in range(ROUNDS * 4):
        for name in names:
            for us in run('start', 5, SOCKET, *CANDIDATES[name][0],
                          '-k', SOCKET):
                table.add('from fork', name, float(us))
    table.print()
    return table


def bench_connect(names, device, ratios):
    """As a virtual machine begins, and as all do when a helper restarts."""
    table = Table('Connect, hello, first reply, us', names, ratios, '%.0f')
    for _ in range(ROUNDS):
        for count, rounds in (1, 20), (250, 2):
            for name in names:
                with Running(name):
                    for us in run('connect', SOCKET, device, count, rounds):
                        table.add('clients at once: %d' % count, name,
                                  float(us))
    table.print()
    return table


def bench_hang(names, device_path, device, ratios):
    """One client's round trips while commands of others do not return."""
    table = Table("Another client's round trip while commands hang, us, "
                  "pinned", names, ratios)
    for _ in range(min(ROUNDS, 3)):
        for count in 0, 1, 65, 200:
            for name in names:
                with Running(name, pinned=True, hang=True):
                    others = [prclient.Client(SOCKET) for _ in range(count)]
                    for other in others:
                        other.send(prclient.pr_in(0, 8191), [device])
                    if not all(other.drained() for other in others):
                        sys.exit('bench: %s does not read' % name)
                    words = run('load', SOCKET, device_path, 1, 3000, 'in',
                                CPU, 1, 'loop', stall=True)
                    p50, p99 = map(float, words[:2] or (INF, INF))
                    table.add('p50, %d hang' % count, name, p50)
                    table.add('p99, %d hang' % count, name, p99)
                    for other in others:
                        other.close()
    table.print()
    return table


def bench_size(names, ratios):
    table = Table('Size of what is installed, bytes', names, ratios, '%.0f')
    count = 'number of shared libraries'
    for name in names:
        installed = CANDIDATES[name][1]
        stripped = os.path.join(DIRECTORY, 'stripped')
        if not installed or not os.path.exists(installed):
            continue
        subprocess.run(['strip', '-o', stripped, installed], check=True)
        ldd = subprocess.run(['ldd', installed], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL,
                             universal_newlines=True).stdout
        libraries = set(map(os.path.realpath,
                            re.findall(r'(?:=> |^\s+)(/\S+)', ldd, re.M)))
        table.add('binary, stripped', name, os.path.getsize(stripped))
        table.add('its shared libraries', name,
                  sum(map(os.path.getsize, libraries)))
        table.add(count, name, len(libraries))
    table.print()
    return table


def print_budgets(names, latency, rate, connect, private, start, hang, size):
    """What must hold: a row per budget and build of ours."""
    rows = [['budget', 'build', 'measured', 'met']]

    def add(what, name, value, met, form='%.2f'):
        if value is not None:
            rows.append([what, name, form % value, 'yes' if met(value)
                         else 'NO'])

    for name in (n for n in ('dynamic', 'static') if n in names):
        pinned = 'p50, PR IN, clients: 1, pinned'
        add('p50 pinned, at most 0.5 of stock', name,
            latency.ratio(pinned, name, 'stock'), lambda v: v <= 0.5)
        add('p50 pinned, at most 1.3 of the floor', name,
            latency.ratio(pinned, name, 'floor'), lambda v: v <= 1.3)
        add('p50 unpinned, at most 1 of stock', name,
            latency.ratio('p50, PR IN, clients: 1', name, 'stock'),
            lambda v: v <= 1)
        add('throughput, 8 client processes, at least 2.5 of stock', name,
            rate.ratio('PR IN, clients: 8, a process each', name, 'stock'),
            lambda v: v >= 2.5)
        idle = hang.value('p50, 0 hang', name)
        for count in 1, 65, 200:
            value = hang.value('p50, %d hang' % count, name)
            add('p50 while %d hang, unchanged (at most 1.3 of 0 hang)'
                % count, name, value and value / idle, lambda v: v <= 1.3)
        for count in 1, 250:
            add('connect, hello, first reply, %d at once, at most 2 of stock'
                % count, name, connect.ratio('clients at once: %d' % count,
                                             name, 'stock'),
                lambda v: v <= 2)
        add('private memory with one client, under 200 kB', name,
            private.value('clients: 1', name), lambda v: v < 200, '%.0f')
        add('start, at most 0.25 of stock', name,
            start.ratio('from fork', name, 'stock'), lambda v: v <= 0.25)
        if name == 'static':
            add('static binary, at most 98304 bytes', name,
                size.value('binary, stripped', name),
                lambda v: v <= 98304, '%.0f')
    print('\nBudgets\n')
    print_rows(rows)


def choose_device():
    for path in '/dev/loop0', '/dev/null':
        try:
            return path, prclient.open_device(path)
        except OSError as error:
            print('bench: %s: %s' % (path, error.strerror))
    sys.exit('bench: no device')


def choose_names(names):
    """Leave out, and say so, what is not there or cannot run here."""
    found = []
    for name in names:
        program = CANDIDATES[name][0][0]
        if not os.path.exists(program):
            if name == 'dynamic':
                sys.exit('bench: %s does not exist' % program)
            print('bench: SKIP %s: %s does not exist' % (name, program))
        elif name == 'stock' and os.geteuid() != 0:
            print('bench: SKIP stock: it refuses to run without root')
        else:
            found.append(name)
    return found


def main():
    path, device = choose_device()
    names = choose_names(['floor', 'stock', 'dynamic', 'static'])
    helpers = [n for n in names if n != 'floor']
    ratios = [(a, b) for b in ('stock', 'floor')
              for a in ('dynamic', 'static')]
    print('bench: %s, %s, %d CPUs, load %.2f, device %s, %d rounds'
          % (os.uname().release, os.uname().machine, os.cpu_count(),
             os.getloadavg()[0], path, ROUNDS))
    latency, rate = bench_latency(names, path, ratios)
    connect = bench_connect(names, path, ratios)
    hang = bench_hang(helpers, path, device, ratios)
    private = bench_memory(helpers, device, ratios)
    start = bench_start(helpers, ratios)
    size = bench_size(helpers, ratios)
    print_budgets(names, latency, rate, connect, private, start, hang, size)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        main()
    finally:
        shutil.rmtree(DIRECTORY)
