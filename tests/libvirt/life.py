"""The helper in libvirt's hands, run inside User-mode Linux by lib/guest.sh.

libvirtd starts one for a virtual machine whose disk has <reservations
managed='yes'/>, as in contrib/examples/libvirt.xml, with its own environment,
as a daemon, and with a PID file of which it lets the helper inherit the
descriptor that is locked. What its guest did is judged by what the rival's
nexus, /dev/sdb, reads from the target.

All of it is done with the helper under test, and then with QEMU's. Where
QEMU's does otherwise, that is said, and is no failure.

What guest.py must never do, this must not, either.

    usage: life.py HELPER QEMU [QEMU-OPTION...]
"""
import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import types

from guest import (GOOD, GUEST_KEY, GUEST_LOG, OURS, RIVAL_KEY, TOP, Guest,
                   Rival, check, report)

STATE, IMAGES = '/run/libvirt/qemu/', '/var/lib/libvirt/qemu/'
NOTIFY, GUEST, LOG = '/run/notify', '/run/guest.sock', '/run/libvirtd.log'
APTPL = '/run/target/pr/aptpl_prhelper-disk0'   # of uml-init.sh's disk

CONFIGURATION = {
    '/run/libvirtd.conf': '''
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
''',
    '/etc/libvirt/qemu.conf': '''
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
pr_helper = "%s"
'''}
with open(os.path.join(TOP, 'contrib/examples/libvirt.xml')) as f:
    DISK = re.search("<disk type='block'.*?</disk>", f.read(), re.S)[0]
DISK = re.sub("dev='/dev/.*?'", "dev='/dev/%s'",
              DISK.replace("dev='sda'", "dev='%s'"))
DOMAIN = '''
<domain type='qemu'>
  <name>vm</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <memory unit='MiB'>192</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline>
  </os>
  <devices>
    <emulator>%s</emulator>
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='%s'/></serial>
    <serial type='unix'><source mode='bind' path='%s'/></serial>
    %s
  </devices>
</domain>
'''


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def virsh(*command, seconds=180):
    """The exit status and the output of a command to libvirtd."""
    done = subprocess.run(['virsh', '-q', '-c', 'qemu:///system', *command],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=seconds)
    return done.returncode, done.stdout.strip()


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f:
        f.write(text)
    return path


class Libvirtd:
    """The daemon, and the service manager that it believes to have."""

    def __init__(self):
        os.mkdir('/run/var')
        subprocess.check_call(['mount', '--rbind', '/var', '/run/var'])
        subprocess.check_call(['mount', '-t', 'tmpfs', 'var', '/var'])
        os.symlink('/run', '/var/run')
        for path in (TOP, os.environ['BUILD'],
                     os.path.dirname(sys.argv[1])):
            if path.startswith('/var/') and not os.path.exists(path):
                os.makedirs(path)           # as it was
                subprocess.check_call(['mount', '--rbind', '/run' + path,
                                       path])
        for directory in 'lib/libvirt', 'cache/libvirt', 'log/libvirt':
            os.makedirs('/var/' + directory)
        for path, lines in (    # that Debian's libvirtd looks for
                ('/etc/passwd', 'libvirt-qemu:x:64055:64055::/:\n'),
                ('/etc/group', 'libvirt-qemu:x:64055:\nkvm:x:64056:\n')):
            with open(path, 'a') as f:
                f.write(lines)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.manager.setblocking(False)
        self.manager.bind(NOTIFY)
        self.pids = []

    def start(self, helper):
        for path, text in CONFIGURATION.items():
            write(path, text % helper if '%s' in text else text)
        # SYSTEMD_EXEC_PID as systemd sets it; libvirt tries to close as many
        # descriptors as there can be, which takes seconds here.
        self.process = subprocess.Popen(
            ['sh', '-c', 'ulimit -n 1024; SYSTEMD_EXEC_PID=$$ exec libvirtd '
             '--config /run/libvirtd.conf'], stdin=subprocess.DEVNULL,
            env=dict(os.environ, NOTIFY_SOCKET=NOTIFY,
                     LIBVIRT_LOG_FILTERS='1:util.process 3:*',
                     LIBVIRT_LOG_OUTPUTS='1:file:' + LOG))
        self.pids.append(self.process.pid)
        if not wait_until(lambda: virsh('version')[0] == 0, 120):
            raise TimeoutError('libvirtd does not answer')

    def stop(self):
        self.process.terminate()
        self.process.wait(60)

    def others_heard(self):
        """What was told to the service manager by others than libvirtd."""
        heard = []
        while True:
            try:
                text, control = self.manager.recvmsg(4096, 64)[:2]
            except BlockingIOError:
                return heard
            pid = struct.unpack('i', control[0][2][:4])[0]
            if pid not in self.pids:
                heard.append(text)

    @staticmethod
    def had_to_kill(pid):
        """Did that process outlive SIGTERM by 10 seconds?"""
        with open(LOG, errors='replace') as f:
            return re.search(r'SIGTERM to process %d, sending' % pid,
                             f.read()) is not None


class Domain(Guest):
    """The virtual machine, whose second serial port is a socket."""

    def __init__(self):
        self.text = ''
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(GUEST)
        self.process = types.SimpleNamespace(stdin=sock.makefile('wb'),
                                             stdout=sock.makefile('rb', 0))
        sock.close()
        if self.answer(240)[0] != GOOD:
            raise OSError('the guest does not start')

    def connected(self):
        answer = virsh('qemu-monitor-command', 'vm', json.dumps(
            {'execute': 'query-pr-managers'}))[1]
        return [m['connected'] for m in json.loads(answer)['return']]

    def wait_disk(self, there=True):
        return wait_until(lambda: (self.run('[ -b /dev/sda ]')[0] == GOOD)
                          == there)


def pid_file():
    """Its path and the number in it; None, None: there is none."""
    for path in glob.glob(STATE + '*-vm-pr-helper0.pid'):
        with open(path) as f:
            return path, int(f.read())
    return None, None


def lock_owner(path):
    with open(path) as f:
        answer = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack(
            'hhqqi0q', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return struct.unpack('hhqqi0q', answer)[4]


def processes(binary):
    """The main processes that run it: those of init's."""
    found = []
    for path in glob.glob('/proc/[0-9]*'):
        try:
            with open(path + '/stat') as f:
                state, parent = f.read().rpartition(')')[2].split()[:2]
            if state != 'Z' and parent == '1' and \
                    os.readlink(path + '/exe').startswith(binary):
                found.append(int(os.path.basename(path)))
        except OSError:
            pass
    return found


def is_there(helper):
    """There is one helper, with its PID file, and that is locked by it."""
    path, pid = pid_file()
    return path is not None and processes(helper) == [pid] \
        and lock_owner(path) == pid


def is_gone(helper):
    return (processes(helper), pid_file()[0],
            glob.glob(IMAGES + '*/pr-helper0.sock')) == ([], None, [])


def started(name, helper, guest, rival):
    check(name + ': its PID file has its number, and its lock is its own',
          is_there(helper))
    with open('/proc/%d/environ' % pid_file()[1], 'rb') as f:
        check(name + ': it has the environment of libvirtd',
              b'NOTIFY_SOCKET=' in f.read())
    check(name + ': QEMU is connected', guest.connected(), [True])
    check(name + ': the guest registers and reserves', (
        guest.out('--register-ignore --param-sark=' + GUEST_KEY),
        guest.out('--reserve --prout-type=5 --param-rk=' + GUEST_KEY),
        rival.reservation()), (GOOD, GOOD, OURS))
    check(name + ': the PID file is still locked', is_there(helper))


def serves(name, helper, guest, rival):
    """What the guest does is real."""
    arguments = '--prout-type=5 --param-rk=' + GUEST_KEY
    check(name + ': the guest still has its reservation',
          guest.reservation(), OURS)
    check(name + ': and releases it', (
        guest.out('--release ' + arguments), rival.reservation()),
        (GOOD, None))
    check(name + ': and reserves', (
        guest.out('--reserve ' + arguments), rival.reservation()),
        (GOOD, OURS))
    check(name + ': there is one helper, with a locked PID file',
          is_there(helper))
    check(name + ': QEMU is connected', guest.connected(), [True])


def killed(name, helper, guest, rival):
    """libvirtd starts another one as soon as QEMU has noticed."""
    before = pid_file()[1]
    os.kill(before, signal.SIGKILL)
    guest.keys()
    check(name + ': killed, there is another one',
          wait_until(lambda: is_there(helper)) and pid_file()[1] != before)
    serves(name + ', killed', helper, guest, rival)


def plugged(name, helper, guest, rival):
    pid = pid_file()[1]
    second = write('/run/sdc.xml', DISK % ('sdc', 'sdb'))
    check(name + ': another disk is plugged in',
          virsh('attach-device', 'vm', second)[0], 0)
    check(name + ': and has the same helper',
          (is_there(helper), pid_file()[1]), (True, pid))
    check(name + ': and is unplugged', virsh('detach-disk', 'vm', 'sdb')[0], 0)
    check(name + ': and the helper stays',
          (is_there(helper), pid_file()[1]), (True, pid))
    check(name + ': the last disk is unplugged',
          virsh('detach-disk', 'vm', 'sda')[0], 0)
    check(name + ': and the helper goes', wait_until(lambda: is_gone(helper)))
    check(name + ': by itself', Libvirtd.had_to_kill(pid), False)
    check(name + ': the guest has noticed', guest.wait_disk(False))
    check(name + ': the reservation is still the guest\'s',
          rival.reservation(), OURS)
    first = write('/run/sda.xml', DISK % ('sda', 'sda'))
    check(name + ': the disk is plugged in again',
          virsh('attach-device', 'vm', first)[0], 0)
    check(name + ': the guest has it', guest.wait_disk())
    serves(name + ', plugged again', helper, guest, rival)


def restarted(name, helper, guest, rival, libvirtd):
    pid = pid_file()[1]
    libvirtd.stop()
    libvirtd.start(helper)
    check(name + ': libvirtd restarts, and the helper stays',
          (is_there(helper), pid_file()[1]), (True, pid))
    serves(name + ', libvirtd restarted', helper, guest, rival)


def started_and_destroyed(name, helper):
    check(name + ': the machine starts again', virsh('start', 'vm'), (0, ''))
    check(name + ': and has a helper', is_there(helper))
    pid = pid_file()[1]
    check(name + ': the machine is destroyed', virsh('destroy', 'vm'), (0, ''))
    check(name + ': and the helper goes with it',
          wait_until(lambda: is_gone(helper)))
    check(name + ': by itself', Libvirtd.had_to_kill(pid), False)


class Hanging:
    """A REGISTER with APTPL does not end: its file is a pipe that is full."""

    def __enter__(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(APTPL)        # what an earlier one has left
        os.mkfifo(APTPL)
        self.fd = os.open(APTPL, os.O_RDWR | os.O_NONBLOCK)
        try:
            while True:
                os.write(self.fd, bytes(4096))
        except BlockingIOError:
            return self

    def __exit__(self, *_):
        os.unlink(APTPL)
        wait_until(lambda: not self.emptied())

    def emptied(self):
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return b''


def is_at_the_disk():
    counts = []
    for name in 'iorequest', 'iodone':
        with open('/sys/block/sda/device/%s_cnt' % name) as f:
            counts.append(int(f.read(), 16))
    return counts[0] > counts[1]


def destroyed_while_hanging(name, helper, guest, is_ours):
    pid = pid_file()[1]
    with Hanging():
        guest.send('sg_persist -n --out --register-ignore --param-aptpl '
                   '--param-sark=%s /dev/sda' % GUEST_KEY)
        check(name + ': a command hangs', wait_until(is_at_the_disk))
        begin = time.monotonic()
        status = virsh('destroy', 'vm')
        seconds = time.monotonic() - begin
        outcome = (status, os.path.exists('/proc/%d' % pid),
                   Libvirtd.had_to_kill(pid))
        print('        destroyed in %d s while a command hangs: the helper '
              '%s%s' % (seconds, 'is killed' if outcome[2] else 'goes itself',
                        ', and is still there' if outcome[1] else ''))
        if is_ours:
            check(name + ': the machine is destroyed, and the helper goes by '
                  'itself', outcome, ((0, ''), False, False))
    check(name + ': when the disk answers, nothing is left',
          wait_until(lambda: is_gone(helper)))


def life(name, helper, libvirtd, rival, is_ours):
    libvirtd.start(helper)
    check(name + ': the machine is defined',
          virsh('define', '/run/vm.xml')[0], 0)
    check(name + ': and starts', virsh('start', 'vm'), (0, ''))
    guest = Domain()
    started(name, helper, guest, rival)
    killed(name, helper, guest, rival)
    plugged(name, helper, guest, rival)
    restarted(name, helper, guest, rival, libvirtd)
    destroyed_while_hanging(name, helper, guest, is_ours)
    check(name + ': the guest leaves its reservation behind',
          rival.reservation(), OURS)
    started_and_destroyed(name, helper)
    check(name + ': nobody but libvirtd speaks to libvirtd\'s service manager',
          libvirtd.others_heard(), [])
    libvirtd.stop()
    rival.out('--register-ignore --param-sark=' + RIVAL_KEY)
    rival.out('--clear --param-rk=' + RIVAL_KEY)
    check(name + ': the target is as before', rival.keys(), [])


def main():
    def option(name):
        return sys.argv[sys.argv.index(name) + 1]
    libvirtd = Libvirtd()
    try:
        write('/run/vm.xml', DOMAIN % (
            option('-kernel'), option('-initrd'), option('-append'),
            shutil.which(sys.argv[2]), GUEST_LOG, GUEST,
            DISK % ('sda', 'sda')))
        for name, helper in (('ours', sys.argv[1]),
                             ("QEMU's", shutil.which('qemu-pr-helper'))):
            life(name, os.path.realpath(helper), libvirtd, Rival(),
                 name == 'ours')
    except Exception as error:
        check('the test comes to its end', repr(error), None)
    return report((LOG, GUEST_LOG, '/var/log/libvirt/qemu/vm.log'))


if __name__ == '__main__':
    sys.exit(main())
