"""The image in its pod, asked to reserve a map: see tests/kernel/test_pod.py.

The helper opens the map's paths in the /dev that the node lends it, and asks
multipathd, whose socket virt-handler mounts beside the helper's own when it
finds one. The pod has a network of its own, so multipathd's abstract name,
which is all that it has before 0.12, is not to be seen there. Must leave no key
on the disk.
"""
import os
import subprocess

import pytest

import prclient as pr
from cluster import A, BOTH, EMPTY, NAME, Helper, Relay, View, view
from fixtures import daemons, multipathd, needed            # noqa: F401
from pod import (DIRECTORY, HARDENED, VIRT_HANDLER, marks, pod,  # noqa: F401
                 with_headers)

BESIDE = DIRECTORY + '/multipathd.socket'
WITH_DEVICES = {**HARDENED, 'devices': True}

pytestmark = [*marks, with_headers]


@pytest.fixture
def named(multipathd):                                      # noqa: F811
    """multipathd has a name in /run, as KubeVirt takes for granted."""
    relay = None if os.path.exists(NAME) else Relay(NAME)
    yield
    if relay:
        relay.close()


@pytest.fixture
def begin(pod, named):                                      # noqa: F811
    """A function that starts a Pod, and then does as virt-handler does."""
    def begin(**options):
        here = pod(**options).start()
        open(BESIDE, 'w').close()
        subprocess.run(['mount', '--bind', NAME, BESIDE], check=True)
        return here
    return begin


@pytest.mark.parametrize('options', [VIRT_HANDLER, WITH_DEVICES],
                         ids=['virt-handler', 'hardened'])
def test_reservation_of_a_map(begin, options):
    here = begin(**options)
    with here.client() as client:
        us = Helper(client)
        for action, key, sa_key in ((pr.REGISTER, 0, A), (pr.RESERVE, A, 0)):
            us.out(action, key, sa_key, pr.EXCLUSIVE_ACCESS)
            assert us.reply.status == pr.GOOD, here.log()
        assert set(client.keys(us.fd)) == {A}
        assert view() == View(BOTH, (A, pr.EXCLUSIVE_ACCESS), {'us'})
        us.out(pr.REGISTER, A, 0)
        assert us.reply.status == pr.GOOD, here.log()
        us.close()
    assert view() == EMPTY
    assert here.log() == ''


def test_paths_that_the_container_may_not_open_are_named(begin):
    """No device is in its cgroup, as in a container that is not privileged."""
    here = begin(**HARDENED)
    with here.client() as client:
        client.sock.settimeout(60)      # the kernel's nodes may yet appear
        us = Helper(client)
        us.out(pr.REGISTER, 0, A)
        assert pr.sense_code(us.reply.sense) == 'B/08/00'
        us.close()
    assert view() == EMPTY
    assert ('nothing was done, as sda has /dev/sda, which cannot be opened: '
            'Operation not permitted' in here.log())
