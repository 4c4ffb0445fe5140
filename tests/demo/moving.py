"""The story that `make demo-migration` tells: a guest with a reservation moves
from host to host, while a rival tries to write all the time.

Without an argument it starts itself in Debian sid, whose QEMU takes
reservations along, and shows what comes of it (see story.py). There,
tests/lib/guest.sh runs it in User-mode Linux: /dev/sda is host a's nexus onto
the one LUN, /dev/sdb is host b's, and /dev/sdc the rival's.

Must send nothing to the disk but the rival's commands and a few writes, to show
who may: the reservation is the guest's, through QEMU and the helper.
"""
import os
import sys
import time

from story import Wrong, outside, say, step, tell

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(TESTS + '/lib')

import hosts        # noqa: E402

KEY, TYPE = 0x1001, 1


def must(condition, what):
    if not condition:
        raise Wrong(what)


class Story:
    def __init__(self, binary, qemu):
        self.hosts = [hosts.Host(name, '/dev/sd' + name, ['sd' + name],
                                     binary, qemu) for name in 'ab']
        self.rival = None

    def end(self):
        for host in self.hosts:
            host.kill()
            host.helper.end(9)

    def guest(self, host, command):
        """What sg_persist says in the guest, which must be that it is done."""
        say('guest# sg_persist %s /dev/sda' % command, '   ', 4)
        status, output = host.guest.sg_persist(command)
        must(status == 0, 'sg_persist %s failed in the guest: %s'
             % (command, output.strip()))
        return output

    def shows(self, host):
        output = self.guest(host, '--in --read-reservation')
        for line in output.splitlines():
            if 'Key=' in line or 'type' in line or 'NO res' in line:
                say(line.strip(), '     ')
        return output

    def may_write(self, host, is_allowed):
        done = host.attempt('write')
        must(done in ({'done'}, {'EBADE'}), "host %s's write ended with %s"
             % (host.name, done))
        say('host %s writes: %s' % (host.name, 'written' if done == {'done'}
                                    else 'refused: reservation conflict'),
            '   ')
        must((done == {'done'}) == is_allowed, 'host %s could %swrite'
             % (host.name, '' if done == {'done'} else 'not '))

    def refusals(self):
        """The rival's so far, all that it has tried."""
        must(not self.rival.breaches(), 'what the rival tried ended with %s'
             % self.rival.breaches())
        return self.rival.refused()

    def play(self):
        a, b = self.hosts
        say('''\
Two hosts and a rival share a disk, each by a path of its own. A qemu-pr-helper
runs on each host; the guest has the disk by QEMU's scsi-block.

    host a, /dev/sda --+      guest in QEMU
    host b, /dev/sdb --+-- one disk
    rival,  /dev/sdc --+''')
        print()
        step('The guest boots on host a, registers, and reserves the disk: '
             'only who holds the reservation may write.')
        a.start()
        must(a.guest.answer(240)[0] == 0, 'the guest does not boot')
        self.guest(a, '--out --register --param-sark=%#x' % KEY)
        self.guest(a, '--out --reserve --param-rk=%#x --prout-type=%d'
                   % (KEY, TYPE))
        self.shows(a)
        self.may_write(a, True)
        self.may_write(b, False)
        step('A rival tries to write, and to reserve, and will not stop.')
        self.rival = hosts.Trying(TYPE)
        time.sleep(2)
        before = self.refusals()
        must(before, 'the rival was never refused')
        say('it was refused %d times: reservation conflict' % before, '   ')
        self.move(a, b, before)
        step('On host b the guest has what it had; host a, which it has left, '
             'is fenced.')
        must('%#x' % KEY in self.shows(b), 'the guest does not see its key')
        self.may_write(b, True)
        self.may_write(a, False)
        self.finish(b)

    def move(self, a, b, before):
        step('The guest moves to host b, and QEMU takes key and reservation '
             'along.')
        b.expect()
        began = time.monotonic()
        a.guest.qmp('migrate', uri='unix:' + hosts.SOCKET)
        while not b.runs():
            must(b.guest.process.poll() is None, 'the guest is lost')
            must(time.monotonic() < began + hosts.DEADLINE,
                 'the guest does not arrive')
            time.sleep(0.1)
        say('it runs on host b after %.1f seconds'
            % (time.monotonic() - began), '   ')
        more = self.refusals() - before
        must(more, 'the rival tried nothing meanwhile')
        say('meanwhile the rival was refused %d times, and never succeeded'
            % more, '   ')

    def finish(self, b):
        step('The guest releases the disk and leaves. Nothing that the rival '
             'wrote before has come onto it.')
        self.rival.end()
        self.refusals()
        must(not hosts.written_by_rival(),
             'what the rival wrote is on the disk')
        self.guest(b, '--out --release --param-rk=%#x --prout-type=%d'
                   % (KEY, TYPE))
        self.guest(b, '--out --register --param-rk=%#x --param-sark=0' % KEY)
        self.shows(b)
        self.may_write(self.hosts[0], True)
        print()
        say('All was as it should be. Next: contrib/examples/qemu-migrate.sh, '
            'or the test behind this, with all types and with multipath maps: '
            'make check-migration')


def inside(binary, *qemu):
    story = Story(binary, list(qemu))
    try:
        return tell(story.play)
    finally:
        story.end()


IN_SID = '''
mkdir -p build
cat >build/helper
chmod 755 build/helper
HELPER=$PWD/build/helper UML_NEXUSES=3
export HELPER UML_NEXUSES
exec tests/lib/guest.sh tests/demo/moving.py
'''

if __name__ == '__main__':
    if sys.argv[1:]:
        sys.exit(inside(*sys.argv[1:]))
    helper = os.environ.get('HELPER', os.path.dirname(TESTS)
                            + '/qemu-pr-helper')
    with open(helper, 'rb') as f:
        sys.exit(outside([TESTS + '/lib/debian.sh', 'sid', 'sh', '-c', IN_SID],
                         f))
