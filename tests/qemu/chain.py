"""The whole chain, run inside User-mode Linux by lib/guest.sh: what a guest
does with reservations, against a rival, and while helpers come and go.

The guest's disk is /dev/sda, and the rival's nexus is /dev/sdb. With
--multipath the guest's disk is /dev/mapper/mpatha, of the paths /dev/sda and
/dev/sdb, and /dev/sdc is the rival's.  Every registration of the guest's must
then be there twice.

What guest.py must never do, this must not, either.

    usage: chain.py [--multipath] HELPER QEMU [QEMU-OPTION...]
"""
import os
import re
import signal
import sys
import time

import cluster
from guest import (CONFLICT, GOOD, GUEST_KEY, OURS, RIVAL_KEY, SOCKET, TYPES,
                   Guest, Helper, Rival, check, report)

paths = 1       # of the guest's disk


def keys(*whose):
    """What is on the target if these are registered."""
    return sorted([GUEST_KEY] * (paths - 1) * (GUEST_KEY in whose)
                  + list(whose))


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
    for number, name in TYPES.items():
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
    multipathd.set_state('sda', 'offline')
    check('with a path gone the guest still reads its keys', guest.keys(),
          keys(GUEST_KEY))
    check('and its reservation', guest.reservation(), OURS)
    check('the guest may write', guest.write(), GOOD)
    multipathd.set_state('sda', 'running')
    # multipathd 0.9.4 would not know whether the other path holds it.
    check('the guest releases', guest.out(
        '--release --prout-type=5 --param-rk=' + GUEST_KEY), GOOD)
    multipathd.set_state('sdb', 'offline')
    check('with the other path gone the guest may write',
          guest.write(), GOOD)
    check('it registers another key',
          guest.out('--register-ignore --param-sark=0x9999'), GOOD)
    multipathd.set_state('sdb', 'running')
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
