"""The story that `make demo` tells: two initiators share one disk, and the one
that a reservation shuts out cannot write, whatever it tries.

Without an argument it boots tests/lib/uml.sh with itself inside, and shows what
comes of it (see story.py). Inside, where the argument is the helper's PID file,
/dev/sda and /dev/sdb are two I_T nexuses onto one LUN; each step prints the
commands as an administrator would give them, and what the disk said.

Must send nothing to the disk itself but a few writes, to show a reservation's
effect: all reservation commands go through qemu-pr-client to the helper's
socket, as QEMU's do.
"""
import errno
import mmap
import os
import subprocess
import sys

from story import Wrong, outside, say, step, tell

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
HELPER = os.environ.get('HELPER', os.path.join(TOP, 'qemu-pr-helper'))
CLIENT = os.environ.get('CLIENT', os.path.join(TOP, 'qemu-pr-client'))
DISKS = {'A': '/dev/sda', 'B': '/dev/sdb'}
TYPE = '--type=write-exclusive-registrants-only'
GOOD, UNIT_ATTENTION, REFUSED, CONFLICT = 0, 6, 9, 24   # see its manual
MEANT = {GOOD: 'succeeded', UNIT_ATTENTION: 'been told of a unit attention',
         REFUSED: 'been refused by the helper',
         CONFLICT: 'met a reservation conflict'}
KEYS = KEY_A, KEY_B = '0xaaaa', '0xbbbb'


def client(who, action, *options, expected=GOOD, has=(), lacks=()):
    """An administrator of that machine's gives this command; keys that its
    answer must have, and must not have."""
    words = [action, *options, DISKS.get(who, who)]
    say('$ qemu-pr-client ' + ' '.join(words), '   ', 4)
    done = subprocess.run([CLIENT, *words], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    say(done.stdout.replace('qemu-pr-client: ', ''), '     ', 2)
    if done.returncode != expected:
        raise Wrong('"%s" should have %s, and its exit status is %d'
                    % (' '.join(words), MEANT[expected], done.returncode))
    for word in (*has, *lacks):
        if (word in done.stdout) != (word in has):
            raise Wrong('"%s" should %ssay %s' % (
                ' '.join(words), '' if word in has else 'not ', word))


def writes(who, allowed):
    """Plain data, past the page cache and without the helper."""
    fd = os.open(DISKS[who], os.O_RDWR | os.O_DIRECT)
    try:
        os.pwrite(fd, mmap.mmap(-1, 4096), 1 << 20)
        result, written = 'written', True
    except OSError as error:
        result, written = 'refused: reservation conflict', False
        if error.errno != errno.EBADE:
            raise Wrong('%s\'s write failed otherwise: %s'
                        % (who, error.strerror)) from error
    finally:
        os.close(fd)
    say('%s writes 4096 bytes of data: %s' % (who, result), '   ')
    if written != allowed:
        raise Wrong('%s could %swrite, and should%s have been able to' % (
            who, '' if written else 'not ', '' if allowed else ' not'))


def play():
    say('''\
Two machines share a disk. Linux %s has been booted for it, as an ordinary
process (User-mode Linux), with a real SCSI target:

    machine A, /dev/sda --+
                          +-- one disk
    machine B, /dev/sdb --+

What A and B reserve goes through qemu-pr-helper, as QEMU's commands do; data
goes straight to the disk. (Here one helper serves both; hosts have one each.)
''' % os.uname().release)
    print()

    step('Nobody has registered, so both may write: if both have mounted a '
         'file system, that is its end.')
    client('A', 'status', lacks=KEYS)
    writes('A', True)
    writes('B', True)

    step('A registers with a key, and reserves: from now on only who is '
         'registered may write.')
    client('A', 'register', '--new-key=aaaa')
    client('A', 'reserve', '--key=aaaa', TYPE)
    client('A', 'status', has=[KEY_A], lacks=[KEY_B])

    step('B has not registered: the disk refuses what it tries.')
    writes('B', False)
    client('B', 'reserve', '--key=bbbb', TYPE, expected=CONFLICT)
    writes('A', True)

    step('B joins the cluster: it registers with a key of its own. Now both '
         'may write, under the rule that A has set.')
    client('B', 'register', '--new-key=bbbb')
    client('B', 'status', has=KEYS)
    writes('B', True)

    step('A answers no more. Before B goes on alone, it fences A: it preempts '
         'A\'s key, and with that takes the reservation over.')
    client('B', 'preempt', '--key=bbbb', '--victim=aaaa', TYPE)
    client('B', 'status', has=[KEY_B], lacks=[KEY_A])

    step('A was only slow. It wakes up, and still believes that the disk is '
         'its own; the disk tells it what has happened, and writes nothing.')
    client('A', 'reserve', '--key=aaaa', TYPE, expected=UNIT_ATTENTION,
           has=['6/2A/05'])
    writes('A', False)
    writes('B', True)

    step('B leaves. The disk is free again.')
    client('B', 'release', '--key=bbbb', TYPE)
    client('B', 'register', '--key=bbbb', '--new-key=0')
    client('B', 'status', lacks=KEYS)
    writes('A', True)

    step('Somebody who was given a partition must not reserve the whole disk: '
         'the kernel would let it, the helper does not.')
    client(DISKS['A'] + '1', 'register', '--new-key=aaaa', expected=REFUSED)
    client('A', 'keys', lacks=KEYS)
    print()
    say('All was as it should be. Next: give a virtual machine such a disk '
        '(README.md, "Use it"), or run the tests: make check')


def inside(pidfile):
    # Returns once the helper listens, and leaves its pid in the file.
    subprocess.check_call([HELPER, '-d', '-f', pidfile])
    status = tell(play)
    with open(pidfile) as f:
        os.kill(int(f.read()), 15)
    return status


if __name__ == '__main__':
    sys.exit(inside(sys.argv[1]) if sys.argv[1:] else outside(
        [TOP + '/tests/lib/uml.sh', sys.executable, '-B',
         os.path.abspath(__file__), '/run/pr.pid']))
