"""Fixtures: a helper process under test, and how tests find the programs.

Nothing here may depend on root, on SCSI or on a fixed path outside the
temporary directory: each test gets its own socket and its own helper.
"""
import os
import re
import signal
import socket
import subprocess
import time

import pytest

import sim
from prclient import Client

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get('BUILD', os.path.join(TOP, 'build'))


def program(variable, default):
    """A program under test: $variable, or the one that make built."""
    return os.environ.get(variable, os.path.join(TOP, default))


class Helper:
    """One helper process and everything it left on its stderr."""

    def __init__(self, directory, binary, options=(), env=None, wait=True,
                 socket_path=None, **popen):
        self.path = socket_path or os.path.join(directory, 'pr.sock')
        self.log_path = os.path.join(directory, 'log')
        self.log_file = open(self.log_path, 'ab')
        self.process = subprocess.Popen(
            [binary, '-k', self.path, *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=popen.pop('stderr', self.log_file), env=env, **popen)
        self.pid = self.process.pid
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(self.path)
                probe.settimeout(seconds)
                probe.recv(4)   # so that it has its session
                break
            except OSError:
                assert self.process.poll() is None, self.log()
                time.sleep(0.005)
            finally:
                probe.close()
        else:
            raise AssertionError('the helper does not listen: ' + self.log())

    def client(self, **kwargs):
        return Client(self.path, **kwargs)

    def log(self):
        with open(self.log_path, errors='replace') as f:
            return f.read()

    def wait_log(self, text, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if text in self.log():
                return True
            time.sleep(0.01)
        raise AssertionError('%r is not in the log: %s' % (text, self.log()))

    def crashes(self):
        """What the log says of sessions that crashed, and of sanitizers."""
        return [line for line in self.log().splitlines() if re.search(
            'of signal (?!9$)|Sanitizer|runtime error', line)]

    def sessions(self):
        """The pids of the helper's children."""
        with open('/proc/%d/task/%d/children' % (self.pid, self.pid)) as f:
            return [int(p) for p in f.read().split()]

    def open_fds(self):
        """How many descriptors main and its sessions hold."""
        count = 0
        for pid in [self.pid] + self.sessions():
            try:
                count += len(os.listdir('/proc/%d/fd' % pid))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return count

    def wait_fds(self, number, seconds=20):
        end = time.monotonic() + seconds
        while self.open_fds() != number:
            assert time.monotonic() < end, self.open_fds()
            time.sleep(0.005)
        return True

    def wait_sessions(self, count, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if len(self.sessions()) == count:
                return True
            time.sleep(0.01)
        raise AssertionError('%d sessions, not %d'
                             % (len(self.sessions()), count))

    def stop(self, sig=signal.SIGTERM, seconds=30):
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log_file.close()


# What is told while the tests run: a line in the file PROGRESS for each file
# of tests that is done.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        path = item.nodeid.split('::')[0]
        counts = PROGRESS.setdefault(path, {'left': 0})
        counts['left'] += 1


PROGRESS = {}


def pytest_runtest_logreport(report):
    path = report.nodeid.split('::')[0]
    counts = PROGRESS[path]
    if report.when == 'call' or report.outcome != 'passed':
        counts[report.outcome] = counts.get(report.outcome, 0) + 1
    if report.when == 'teardown':
        counts['left'] -= 1
    if counts['left'] == 0 and os.environ.get('PROGRESS'):
        counts['left'] = -1
        with open(os.environ['PROGRESS'], 'a') as f:
            f.write('%s: %s: %s\n' % (
                os.environ.get('SUITE'), path,
                ', '.join('%d %s' % (counts[name], name) for name
                          in ('passed', 'failed', 'skipped')
                          if name in counts)))


@pytest.fixture
def start(tmp_path):
    """A function that starts a helper; all are killed after the test."""
    helpers = []

    def begin(binary=None, *options, **kwargs):
        directory = tmp_path / str(len(helpers))
        directory.mkdir()
        helper = Helper(str(directory), binary
                        or program('HELPER', 'qemu-pr-helper'),
                        options, **kwargs)
        helpers.append(helper)
        if kwargs.get('wait', True):
            helper.wait_sessions(0)     # whoever looked if it is ready
        return helper

    yield begin
    for helper in helpers:
        if helper.process.poll() is None:
            helper.process.kill()
            helper.process.wait()
        helper.log_file.close()


@pytest.fixture
def target(tmp_path):
    """The simulated disk; give a helper its .env to connect the two."""
    return sim.Target(tmp_path / 'sim')


@pytest.fixture
def disks(tmp_path):
    """Opens simulated disks by number of the nexus."""
    opener = sim.Disks(tmp_path)
    yield opener
    opener.close()
