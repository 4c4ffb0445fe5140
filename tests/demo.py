"""Two initiators compete for one disk, through the helper.

Runs inside tests/uml.sh: /dev/sda and /dev/sdb are two I_T nexuses onto one
LUN. Each step prints what was asked and what the disk answered; the exit
status is 1 if any answer was not the one that it should have been.

Must send nothing to the disk itself but one write, to show a reservation's
effect: all reservation commands go to the helper's socket, as QEMU's do.
"""
import mmap
import os
import subprocess
import sys
import tempfile

import prclient as pr

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEY_A, KEY_B = 0xaaaa, 0xbbbb
TYPE = pr.WRITE_EXCLUSIVE_RO
SENSE = {
    '5/20/00': 'INVALID COMMAND OPERATION CODE',
    '6/2A/03': 'RESERVATIONS PREEMPTED',
    '6/2A/04': 'RESERVATIONS RELEASED',
    '6/2A/05': 'REGISTRATIONS PREEMPTED',
}
wrong = 0


def show(who, what, answer, expected):
    global wrong
    note = ''
    if answer != expected:
        wrong += 1
        note = '   <-- NOT AS IT SHOULD BE: ' + expected
    print('  %-2s %-44s -> %s%s' % (who, what, answer, note), flush=True)


def in_words(reply):
    if reply.status == pr.GOOD:
        return 'GOOD'
    if reply.status == pr.RESERVATION_CONFLICT:
        return 'RESERVATION CONFLICT'
    if reply.status != pr.CHECK_CONDITION:
        return 'status %02X' % reply.status
    code = pr.sense_code(reply.sense)
    return 'CHECK CONDITION %s %s' % (code, SENSE.get(code, ''))


class Initiator:
    """A client of the helper, as the QEMU of a virtual machine is one."""

    def __init__(self, name, socket, device):
        self.name = name
        self.client = pr.Client(socket)
        self.fd = pr.open_device(device)

    def does(self, what, expected, action, key, sa_key=0, type_=0, fd=None):
        reply = self.client.out(self.fd if fd is None else fd, action, key,
                                sa_key, type_)
        show(self.name, what, in_words(reply), expected)

    def sees(self, keys, reservation):
        found = self.client.keys(self.fd)
        show(self.name, 'READ KEYS', ' '.join(map(hex, sorted(found)))
             or 'no key', ' '.join(map(hex, keys)) or 'no key')
        found = self.client.reservation(self.fd)
        show(self.name, 'READ RESERVATION',
             'held with key 0x%x, type %d' % found if found else 'none',
             'held with key 0x%x, type %d' % reservation if reservation
             else 'none')

    def writes(self, expected):
        """Plain data, past the page cache and without the helper."""
        fd = os.open(self.device(), os.O_RDWR | os.O_DIRECT)
        try:
            os.pwrite(fd, mmap.mmap(-1, 4096), 1 << 20)
            answer = 'written'
        except OSError as error:
            answer = 'refused (%s)' % error.strerror
        finally:
            os.close(fd)
        show(self.name, 'writes 4096 bytes', answer, expected)

    def device(self):
        return os.readlink('/proc/self/fd/%d' % self.fd)


def play(socket):
    a = Initiator('A', socket, '/dev/sda')
    b = Initiator('B', socket, '/dev/sdb')
    good, conflict = 'GOOD', 'RESERVATION CONFLICT'

    print('\nA registers and reserves:')
    a.sees([], None)
    a.does('REGISTER key 0xaaaa', good, pr.REGISTER, 0, KEY_A)
    a.does('RESERVE (Write Exclusive, Registrants Only)', good,
           pr.RESERVE, KEY_A, type_=TYPE)
    b.sees([KEY_A], (KEY_A, TYPE))

    print('\nB, which has not registered, is refused:')
    b.does('RESERVE', conflict, pr.RESERVE, KEY_B, type_=TYPE)
    b.does('CLEAR', conflict, pr.CLEAR, KEY_B)
    b.writes('refused (Invalid exchange)')
    a.writes('written')

    print('\nB registers and preempts A:')
    b.does('REGISTER key 0xbbbb', good, pr.REGISTER, 0, KEY_B)
    b.does('RESERVE', conflict, pr.RESERVE, KEY_B, type_=TYPE)
    b.does('PREEMPT key 0xaaaa', good, pr.PREEMPT, KEY_B, KEY_A, TYPE)
    b.sees([KEY_B], (KEY_B, TYPE))

    print('\nA learns of it, and is out:')
    a.does('RESERVE', 'CHECK CONDITION 6/2A/05 REGISTRATIONS PREEMPTED',
           pr.RESERVE, KEY_A, type_=TYPE)
    a.does('RESERVE', conflict, pr.RESERVE, KEY_A, type_=TYPE)
    a.writes('refused (Invalid exchange)')
    a.sees([KEY_B], (KEY_B, TYPE))

    print('\nB releases and leaves:')
    b.does('RELEASE', good, pr.RELEASE, KEY_B, type_=TYPE)
    b.sees([KEY_B], None)
    b.does('REGISTER key 0 (unregister)', good, pr.REGISTER, KEY_B, 0)
    a.writes('written')

    print('\nA partition is not a disk; the helper refuses it:')
    fd = pr.open_device('/dev/sda1')
    a.does('REGISTER through /dev/sda1', 'CHECK CONDITION 5/20/00 INVALID '
           'COMMAND OPERATION CODE', pr.REGISTER, 0, KEY_A, fd=fd)
    a.sees([], None)


def main():
    helper = os.environ.get('HELPER', os.path.join(TOP, 'qemu-pr-helper'))
    print('Linux', os.uname().release, 'with a SCSI target; initiators A '
          '(/dev/sda) and B (/dev/sdb)\nshare its disk, and reserve it '
          'through', os.path.basename(helper))
    with tempfile.TemporaryDirectory() as directory:
        socket = os.path.join(directory, 'pr.sock')
        # Returns once the helper listens, and leaves its pid in the file.
        pidfile = os.path.join(directory, 'pid')
        subprocess.check_call([helper, '-d', '-k', socket, '-f', pidfile])
        play(socket)
        with open(pidfile) as f:
            os.kill(int(f.read()), 15)
    print('\n%s' % ('%d steps went wrong' % wrong if wrong
                    else 'All as it should be.'))
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
