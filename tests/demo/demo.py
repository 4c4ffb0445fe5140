"""Two initiators compete for one disk, through the helper.

Runs inside tests/lib/uml.sh: /dev/sda and /dev/sdb are two I_T nexuses onto one
LUN. Each step prints the command as an administrator would give it, and what
came of it; the exit status is 1 if anything was not as it should have been.

Must send nothing to the disk itself but one write, to show a reservation's
effect: all reservation commands go through qemu-pr-client to the helper's
socket, as QEMU's do.
"""
import mmap
import os
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
HELPER = os.environ.get('HELPER', os.path.join(TOP, 'qemu-pr-helper'))
CLIENT = os.environ.get('CLIENT', os.path.join(TOP, 'qemu-pr-client'))
SOCKET = '/run/pr.sock'
A, B = '/dev/sda', '/dev/sdb'
REGISTRANTS = '--type=write-exclusive-registrants-only'
GOOD, UNIT_ATTENTION, REFUSED, CONFLICT = 0, 6, 9, 24   # see its manual
wrong = 0


def show(said, is_right):
    global wrong
    for line in said.splitlines():
        print('    ' + line)
    if not is_right:
        wrong += 1
        print('    ^^^ NOT AS IT SHOULD BE')
    sys.stdout.flush()


def client(*arguments, expected=GOOD, says=''):
    """Run it; what it says must contain the words."""
    print('  # qemu-pr-client -k', SOCKET, *arguments)
    done = subprocess.run([CLIENT, '-k', SOCKET, *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    show(done.stdout + ('exit status %d\n' % done.returncode
                        if done.returncode else ''),
         done.returncode == expected and says in done.stdout)


def writes(disk, allowed):
    """Plain data, past the page cache and without the helper."""
    print('  4096 bytes of data for', disk)
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    try:
        os.pwrite(fd, mmap.mmap(-1, 4096), 1 << 20)
        show('written', allowed)
    except OSError as error:
        show('refused (%s)' % error.strerror, not allowed)
    finally:
        os.close(fd)


def play():
    print('\nIs all there?')
    client('check', A, says='Nothing is wrong so far')

    print('\nA registers and reserves:')
    client('register', '--new-key=aaaa', A)
    client('reserve', '--key=aaaa', REGISTRANTS, A)
    client('reservation', B, says='key 0xaaaa, ' + REGISTRANTS[7:])

    print('\nB, which has not registered, is refused:')
    client('reserve', '--key=bbbb', REGISTRANTS, B, expected=CONFLICT)
    client('clear', '--key=bbbb', B, expected=CONFLICT)
    writes(B, False)
    writes(A, True)

    print('\nB registers and preempts A:')
    client('register', '--new-key=bbbb', B)
    client('status', B, says='key 0xbbbb')
    client('preempt', '--key=bbbb', '--victim=aaaa', REGISTRANTS, B)
    client('status', B, says='key 0xbbbb')

    print('\nA learns of it, and is out:')
    client('reserve', '--key=aaaa', REGISTRANTS, A, expected=UNIT_ATTENTION,
           says='REGISTRATIONS PREEMPTED (6/2A/05)')
    client('reserve', '--key=aaaa', REGISTRANTS, A, expected=CONFLICT)
    writes(A, False)

    print('\nB releases and leaves:')
    client('release', '--key=bbbb', REGISTRANTS, B)
    client('register', '--key=bbbb', '--new-key=0', B)
    client('status', B, says='Nobody is registered')
    client('reservation', B, says='Not reserved')
    writes(A, True)

    print('\nA partition is not a disk; the helper refuses it:')
    client('register', '--new-key=aaaa', A + '1', expected=REFUSED,
           says='the descriptor is of a partition')
    client('keys', A, says='Nobody is registered')


def main():
    print('Linux', os.uname().release, 'with a SCSI target; initiators A '
          '(/dev/sda) and B (/dev/sdb)\nshare its disk, and reserve it '
          'through', os.path.basename(HELPER), '-k', SOCKET)
    # Returns once the helper listens, and leaves its pid in the file.
    pidfile = '/run/pr.pid'
    subprocess.check_call([HELPER, '-d', '-k', SOCKET, '-f', pidfile])
    play()
    with open(pidfile) as f:
        os.kill(int(f.read()), 15)
    print('\n%s' % ('%d steps went wrong' % wrong if wrong
                    else 'All as it should be.'))
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
