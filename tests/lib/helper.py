"""A helper process under test, and how tests find the programs.

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

from prclient import Client

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get('BUILD', os.path.join(TOP, 'build'))


def program(variable, default):
    """A program under test: $variable, or the one that make built. One that is
    not there is built; where it cannot be, who asks for it is skipped, but for
    run.sh, to which that is a failure."""
    # A name alone, as make passes it on, must not be looked for on the PATH:
    # there QEMU's has the same.
    path = os.path.join(TOP, os.environ.get(variable, default))
    if variable in os.environ or os.path.exists(path):
        return path
    env = {name: value for name, value in os.environ.items()
           if name not in ('MAKEFLAGS', 'MFLAGS', 'MAKEOVERRIDES')}
    default = os.path.relpath(path, TOP)
    try:
        subprocess.run(['make', '-s', '-C', TOP, default], env=env, text=True,
                       check=True, capture_output=True)
    except FileNotFoundError:
        why = 'not installed: make'
    except subprocess.CalledProcessError as error:
        why = 'make %s: %s' % (default, error.stderr)
    else:
        return path
    if os.environ.get('SUITE'):
        raise FileNotFoundError(why)
    pytest.skip(why, allow_module_level=True)


def stock_program():
    """QEMU's own helper: $STOCK, or the one on the path; without one, who asks
    for it is skipped."""
    candidates = [os.environ.get('STOCK')] + [
        os.path.join(directory, 'qemu-pr-helper')
        for directory in os.environ['PATH'].split(':')]
    for binary in candidates:
        if binary and os.path.exists(binary) and 'Fabrice Bellard' in (
                subprocess.check_output([binary, '-V'], text=True)):
            return binary
    return pytest.skip("not installed: QEMU's own qemu-pr-helper")


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
