"""Who acts in the tests with the real client, in User-mode Linux (guest.sh):

    sg_persist in a guest -> virtio-scsi -> QEMU's scsi-block ->
    pr-manager-helper -> the helper under test -> a disk, of a LIO target

and beside it the rival: sg_persist on another nexus onto the same LUN, without
any helper. What the guest did is always to be judged by what the rival's nexus
reads from the target, never by the guest's word alone. These tests are stories
that go on after a failure: check() counts, and report() says what came of it.

This must never use the helper under test for the outside view, and must
never wait without a deadline; the deadlines are generous, as User-mode Linux
with an emulated guest on a busy machine is slow.
"""
import json
import os
import re
import select
import shlex
import socket
import subprocess
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
SOCKET, QMP, GUEST_LOG = '/run/pr.sock', '/run/qmp.sock', '/run/guest.log'
LOGS = '/run/helper.log', '/run/qemu.log', '/run/multipathd.log', GUEST_LOG
GOOD, UNIT_ATTENTION, CONFLICT = 0, 6, 24       # exit statuses of sg_persist
GUEST_KEY, RIVAL_KEY = '0x1111', '0x2222'
OURS = GUEST_KEY, 'Write Exclusive, registrants only'
TYPES = {1: 'Write Exclusive', 3: 'Exclusive Access',
         5: 'Write Exclusive, registrants only',
         6: 'Exclusive Access, registrants only',
         7: 'Write Exclusive, all registrants',
         8: 'Exclusive Access, all registrants'}
verdicts = []


def check(what, got, want=True):
    """One assertion; the test goes on either way."""
    verdicts.append(got == want)
    print('%s  %s' % ('passed' if got == want else 'FAILED', what), flush=True)
    if got != want:
        print('        got  %r\n        want %r' % (got, want), flush=True)


def report(logs=LOGS):
    """The sums, and what the logs say if something failed; exit status."""
    if not all(verdicts):
        for path in filter(os.path.exists, logs):
            with open(path, errors='replace') as log:
                print('--- %s\n%s' % (path, log.read()[-2000:]))
    print('%d passed, %d failed, 0 skipped'
          % (verdicts.count(True), verdicts.count(False)))
    return 0 if all(verdicts) else 1


class Side:
    """One initiator; subclasses say how it runs a command line."""
    device = None

    def sg_persist(self, arguments):
        """(status, output); unit attentions from the other side's doings
        are reported once per nexus and then gone, so ask again."""
        for _ in range(4):
            status, output = self.run('sg_persist -n %s %s'
                                      % (arguments, self.device))
            if status != UNIT_ATTENTION:
                break
        return status, output

    def out(self, arguments):
        """The status of a PERSISTENT RESERVE OUT, 0 if it was done."""
        return self.sg_persist('--out ' + arguments)[0]

    def keys(self):
        """The registered keys, or all the output if there was an error."""
        status, output = self.sg_persist('--in --read-keys')
        return (sorted(re.findall(r'^ +(0x[0-9a-f]+)$', output, re.M))
                if status == GOOD else output)

    def reservation(self):
        """(key, type), None, or all the output if there was an error."""
        status, output = self.sg_persist('--in --read-reservation')
        found = re.search(r'Key=(\S+)\s+scope: LU_SCOPE,\s+type: (.*)', output)
        if status == GOOD and found:
            return found.group(1), found.group(2).strip()
        return None if 'NO reservation' in output else output


class Rival(Side):
    device = '/dev/sdb'

    def run(self, command):
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        return done.returncode, done.stdout


class Guest(Side):
    """QEMU and the virtual machine in it, whose disk is this one of ours, as
    a file of contrib/examples/ starts them."""
    device = '/dev/sda'

    def __init__(self, qemu, disk, path=SOCKET, monitor=QMP,
                 recipe='qemu.sh'):
        self.monitor = monitor
        self.text = ''
        self.process = subprocess.Popen(
            [os.path.join(TOP, 'contrib/examples', recipe), disk,
             *qemu[1:], '-serial', 'file:' + GUEST_LOG, '-serial', 'stdio',
             '-qmp', 'unix:%s,server=on,wait=off' % monitor],
            env=dict(os.environ, QEMU=qemu[0], SOCKET=path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=open('/run/qemu.log', 'ab'))

    def answer(self, seconds=120):
        """Wait for "== STATUS"; (status, what was printed before it)."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(r'^== (\d+)\r?\n', self.text, re.M)
            if found:
                output = self.text[:found.start()]
                self.text = self.text[found.end():]
                return int(found.group(1)), output
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [],
                                              left)[0]:
                raise TimeoutError('no answer from the guest: ' + self.text)
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data:
                raise EOFError('QEMU is gone: ' + self.text)
            self.text += data.decode(errors='replace')

    def send(self, command):
        self.process.stdin.write(command.encode() + b'\n')
        self.process.stdin.flush()

    def run(self, command):
        self.send(command)
        return self.answer()

    def write(self):
        """The status of writing one block to the disk."""
        return self.run('dd if=/dev/zero of=%s bs=4096 seek=64 count=1 '
                        'conv=fsync' % self.device)[0]

    def qmp(self, command, **arguments):
        """What QEMU's monitor returns, or its error."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(self.monitor)
            stream = sock.makefile('rw')
            for line in ({'execute': 'qmp_capabilities'},
                         {'execute': command, 'arguments': arguments,
                          'id': 1}):
                stream.write(json.dumps(line) + '\n')
            stream.flush()
            for line in stream:
                answer = json.loads(line)
                if answer.get('id') == 1:
                    return answer.get('return', answer.get('error'))
        return None

    def connected(self):
        """Does QEMU say that its connection to the helper stands?"""
        return self.qmp('query-pr-managers')[0]['connected']


class Helper:
    """The helper under test, started as libvirt starts it."""

    def __init__(self, binary, path=SOCKET):
        self.binary, self.path = binary, path
        self.start()

    def start(self):
        with open('/run/helper.log', 'ab') as log:
            self.process = subprocess.Popen(
                [self.binary, '-k', self.path], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log)
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.path) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError('the helper does not listen')

    def end(self, sig, seconds=60):
        """Send a signal; the exit status, or None if it did not leave."""
        self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
