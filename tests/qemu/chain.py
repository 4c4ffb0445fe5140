"""The whole chain, run inside User-mode Linux by chain.sh:

    sg_persist in a guest -> virtio-scsi -> QEMU's scsi-block ->
    pr-manager-helper -> the helper under test -> /dev/sda, a LIO target

and beside it the rival: sg_persist on /dev/sdb, a second nexus onto the same
LUN, without any helper.  What the guest did is always judged by what the
rival's nexus reads from the target, never by the guest's word alone.

With --multipath (and tests/lib/multipath.sh before) the guest's disk is
/dev/mapper/mpatha, of the paths /dev/sda and /dev/sdb, and /dev/sdc is the
rival's.  Every registration of the guest's must then be there twice.

This must never use the helper under test for the outside view, and must
never wait without a deadline; the deadlines are generous, as User-mode Linux
with an emulated guest on a busy machine is slow.

    usage: chain.py [--multipath] HELPER QEMU [QEMU-OPTION...]
"""
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(TESTS, 'lib'))

import cluster      # noqa: E402

SOCKET, QMP, GUEST_LOG = '/run/pr.sock', '/run/qmp.sock', '/run/guest.log'
LOGS = ('/run/helper.log', '/run/qemu.log', '/run/multipathd.log', GUEST_LOG)
GOOD, UNIT_ATTENTION, CONFLICT = 0, 6, 24       # exit statuses of sg_persist
GUEST_KEY, RIVAL_KEY = '0x1111', '0x2222'
OURS = GUEST_KEY, 'Write Exclusive, registrants only'
TYPES = ((1, 'Write Exclusive'), (3, 'Exclusive Access'),
         (5, 'Write Exclusive, registrants only'),
         (6, 'Exclusive Access, registrants only'),
         (7, 'Write Exclusive, all registrants'),
         (8, 'Exclusive Access, all registrants'))
verdicts = []
paths = 1       # of the guest's disk


def check(what, got, want=True):
    """One assertion; the test goes on either way."""
    verdicts.append(got == want)
    print('%s  %s' % ('passed' if got == want else 'FAILED', what), flush=True)
    if got != want:
        print('        got  %r\n        want %r' % (got, want), flush=True)


def keys(*whose):
    """What is on the target if these are registered."""
    return sorted([GUEST_KEY] * (paths - 1) * (GUEST_KEY in whose)
                  + list(whose))


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
            [os.path.join(TESTS, '../contrib/examples', recipe), disk,
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


def reservations(guest, rival):
    """The guest alone; it ends registered, with nothing reserved."""
    check('the guest sees a disk without keys', guest.keys(), [])
    refused = guest.out('--reserve --param-rk=%s --prout-type=1' % GUEST_KEY)
    check('RESERVE before REGISTER is refused',
          (refused != GOOD, rival.reservation()), (True, None))
    check('the guest registers',
          guest.out('--register --param-sark=0x9999'), GOOD)
    check('its key is on the target', rival.keys(), ['0x9999'] * paths)
    check('the guest registers another key', guest.out(
        '--register-ignore --param-sark=' + GUEST_KEY), GOOD)
    check('it replaces the first', rival.keys(), keys(GUEST_KEY))
    check('the guest reads its key', guest.keys(), keys(GUEST_KEY))
    guest.device = '/dev/sg0'
    check('and through its sg node', guest.keys(), keys(GUEST_KEY))
    guest.device = '/dev/sda'
    for number, name in TYPES:
        arguments = '--param-rk=%s --prout-type=%d' % (GUEST_KEY, number)
        # Those for all registrants have no single holder, so no key.
        held = '0x0' if 'all registrants' in name else GUEST_KEY, name
        guest.out('--reserve ' + arguments)
        check('the guest reserves ' + name,
              (guest.reservation(), rival.reservation()), (held, held))
        guest.out('--release ' + arguments)
        check('and releases it', rival.reservation(), None)


def competition(guest, rival):
    """Guest against rival; it ends with the guest's reservation, type 5."""
    check('a rival registers and reserves',
          (rival.out('--register --param-sark=' + RIVAL_KEY),
           rival.out('--reserve --param-rk=%s --prout-type=3' % RIVAL_KEY)),
          (GOOD, GOOD))
    theirs = RIVAL_KEY, 'Exclusive Access'
    check('the guest sees both keys', guest.keys(),
          keys(GUEST_KEY, RIVAL_KEY))
    check("the guest sees the rival's reservation",
          guest.reservation(), theirs)
    for action in '--report-capabilities', '--read-full-status':
        said, meant = [side.sg_persist('--in ' + action)
                       for side in (guest, rival)]
        if said != meant:   # QEMU 11 hides these two, for migration's sake
            meant = (meant[0], re.sub(r'\((SIP_C|ATP_C)\): 1', r'(\1): 0',
                                      meant[1]))
        check('%s is the same on both sides' % action, said, meant)
    check("the guest's RESERVE conflicts", guest.out(
        '--reserve --param-rk=%s --prout-type=3' % GUEST_KEY), CONFLICT)
    check('the guest may not write', guest.write() != GOOD)
    guest.out('--release --param-rk=%s --prout-type=3' % GUEST_KEY)
    check("the guest's RELEASE leaves the rival's reservation alone",
          rival.reservation(), theirs)
    check('the guest preempts the rival', guest.out(
        '--preempt --param-rk=%s --param-sark=%s --prout-type=5'
        % (GUEST_KEY, RIVAL_KEY)), GOOD)
    check("the rival's key is gone", rival.keys(), keys(GUEST_KEY))
    check('the reservation is the guest\'s', rival.reservation(), OURS)
    check('the guest may write', guest.write(), GOOD)
    check('the rival may not reserve', rival.out(
        '--reserve --param-rk=%s --prout-type=3' % RIVAL_KEY) != GOOD)


def served_again(how, guest, rival):
    """After a restart: what the guest sees and does is real."""
    check(how + ': the guest still has its reservation',
          guest.reservation(), OURS)
    check(how + ': QEMU is connected', guest.connected())
    arguments = '--param-rk=%s --prout-type=5' % GUEST_KEY
    guest.out('--release ' + arguments)
    check(how + ': the guest releases', rival.reservation(), None)
    guest.out('--reserve ' + arguments)
    check(how + ': the guest reserves', rival.reservation(), OURS)


def restarts(helper, guest, rival):
    """The guest's reservation outlives every helper; so does the guest."""
    check('SIGTERM ends the helper although QEMU is connected',
          helper.end(signal.SIGTERM), 0)
    check('and it takes its socket along', os.path.exists(SOCKET), False)
    helper.start()
    served_again('after SIGTERM', guest, rival)

    helper.end(signal.SIGKILL)
    helper.start()
    served_again('after SIGKILL', guest, rival)

    helper.end(signal.SIGTERM)
    guest.send('sg_persist -n --in --read-keys ' + guest.device)
    time.sleep(1)       # QEMU gives up after 4 seconds
    helper.start()
    status, output = guest.answer()
    check('a command given while there was no helper is done',
          status == GOOD and GUEST_KEY in output)

    helper.end(signal.SIGTERM)
    check('without any helper the command fails', guest.out(
        '--release --param-rk=%s --prout-type=5' % GUEST_KEY) != GOOD)
    check('and nothing happens on the target', rival.reservation(), OURS)
    check('QEMU knows that it is not connected', guest.connected(), False)
    check('the guest lives', guest.run('true'), (GOOD, ''))
    helper.start()
    served_again('with a helper again', guest, rival)


def register_and_move(guest, rival):
    """The one command whose parameter list is longer than 24 bytes."""
    check('the guest moves its reservation to the rival', guest.out(
        '--register-move --param-rk=%s --param-sark=%s --relative-target-port=2'
        ' --transport-id=sas,6001405000000002' % (GUEST_KEY, RIVAL_KEY)), GOOD)
    check('both keys are on the target', rival.keys(), [GUEST_KEY, RIVAL_KEY])
    check('and the reservation is the rival\'s', rival.reservation(),
          (RIVAL_KEY, OURS[1]))


def a_path_goes_and_comes(multipathd, guest, rival):
    """The guest's disk stays, and so do its registrations."""
    cluster.set_state('sda', 'offline')
    multipathd.wait_path('sda', 'failed faulty offline')
    check('with a path gone the guest still reads its keys', guest.keys(),
          keys(GUEST_KEY))
    check('and its reservation', guest.reservation(), OURS)
    check('the guest may write', guest.write(), GOOD)
    cluster.set_state('sda', 'running')
    multipathd.wait_path('sda', 'active ready running')
    # multipathd 0.9.4 would not know whether the other path holds it.
    check('the guest releases', guest.out(
        '--release --prout-type=5 --param-rk=' + GUEST_KEY), GOOD)
    cluster.set_state('sdb', 'offline')
    multipathd.wait_path('sdb', 'failed faulty offline')
    check('with the other path gone the guest may write',
          guest.write(), GOOD)
    check('it registers another key',
          guest.out('--register-ignore --param-sark=0x9999'), GOOD)
    cluster.set_state('sdb', 'running')
    multipathd.wait_path('sdb', 'active ready running')
    cluster.wait_until(lambda: rival.keys() == ['0x9999'] * paths,
                       'multipathd registers sdb')
    check('it registers its first key again',
          guest.out('--register-ignore --param-sark=' + GUEST_KEY), GOOD)
    check('on both paths', rival.keys(), keys(GUEST_KEY))


def farewell(helper, guest, rival):
    """Everything goes, in order."""
    check('the guest clears',
          guest.out('--clear --param-rk=' + GUEST_KEY), GOOD)
    check('no key and no reservation is left',
          (rival.keys(), rival.reservation()), ([], None))
    guest.send('poweroff -f')
    check('QEMU ends well', guest.process.wait(120), 0)
    check('the helper ends well', helper.end(signal.SIGTERM), 0)


def report():
    """The sums, and what the logs say if something failed; exit status."""
    if not all(verdicts):
        for path in filter(os.path.exists, LOGS):
            with open(path, errors='replace') as log:
                print('--- %s\n%s' % (path, log.read()[-2000:]))
    print('%d passed, %d failed, 0 skipped'
          % (verdicts.count(True), verdicts.count(False)))
    return 0 if all(verdicts) else 1


def main():
    global paths
    helper = guest = multipathd = None
    rival, disk = Rival(), '/dev/sda'
    if sys.argv[1] == '--multipath':
        del sys.argv[1]
        paths, disk, rival.device = 2, cluster.MAP, cluster.RIVAL
        multipathd = cluster.Multipathd(cluster.FILE)
    try:
        if multipathd:
            multipathd.start()
        helper = Helper(sys.argv[1])
        guest = Guest(sys.argv[2:], disk)
        check('the guest is up', guest.answer(240)[0], GOOD)
        check('QEMU is connected to the helper', guest.connected())
        reservations(guest, rival)
        competition(guest, rival)
        restarts(helper, guest, rival)
        if multipathd:
            a_path_goes_and_comes(multipathd, guest, rival)
        else:
            register_and_move(guest, rival)
        farewell(helper, guest, rival)
    except Exception as error:
        check('the test comes to its end', repr(error), None)
    finally:
        for owner in guest, helper:
            if owner:
                owner.process.kill()
                owner.process.wait()
        if multipathd:
            multipathd.stop()
    return report()


if __name__ == '__main__':
    sys.exit(main())
