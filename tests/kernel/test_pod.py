"""The image in its pod: as KubeVirt's virt-handler has it, and hardened.

Inside tests/lib/uml.sh, as root; the disk comes as its client's descriptor.
tests/multipath/test_pod_map.py does the same to a map. Whatever a cluster takes
away, either a reservation works or the log says what is missing. Must never be
run on another machine.
"""
import errno
import os

import pytest

import prclient as pr
from container import (BASE, SYS_RAWIO, USUAL_CAPABILITIES, call,
                       default_seccomp)
from launch import status_of
from pod import (DIRECTORY, HARDENED, SOCKET, VIRT_HANDLER, marks,  # noqa: F401
                 pod, with_headers)

KEY = 0xc0ffee
WARNING = 'warning: no CAP_SYS_RAWIO: the kernel will refuse to send'
NAMESPACE = 'warning: CAP_SYS_RAWIO is only that of a user namespace: '
REFUSED = ('command refused: the kernel does not let the helper send it: '
           'CAP_SYS_RAWIO is missing, or is that of a user namespace')

pytestmark = [*marks, with_headers]


@pytest.fixture
def disk():
    disk = pr.open_device('/dev/sda')
    yield disk
    os.close(disk)


@pytest.mark.parametrize('options', [VIRT_HANDLER, HARDENED],
                         ids=['virt-handler', 'hardened'])
def test_reservation_of_a_disk(pod, disk, options):         # noqa: F811
    here = pod(**options).start()
    with here.client() as client:
        while client.read_in(disk, pr.READ_KEYS).status != pr.GOOD:
            pass                                # unit attentions
        for action, key, sa_key in ((pr.REGISTER_AND_IGNORE, 0, KEY),
                                    (pr.RESERVE, KEY, 0)):
            done = client.out(disk, action, key, sa_key, pr.WRITE_EXCLUSIVE)
            assert done.status == pr.GOOD, done
        assert client.keys(disk) == [KEY]
        assert client.reservation(disk) == (KEY, pr.WRITE_EXCLUSIVE)
        assert client.out(disk, pr.CLEAR, KEY).status == pr.GOOD
        assert client.keys(disk) == []
    assert here.log() == ''
    status = status_of(here.helper)
    assert status['CapEff'] == 1 << SYS_RAWIO
    # RuntimeDefault's filter is there beside main's.
    assert status['Seccomp_filters'] == [str(1 + (options is HARDENED))]


def test_newcomers_are_served_at_the_limit_of_processes(pod):  # noqa: F811
    here = pod(**{**HARDENED, 'pids': 3}).start()
    clients = []
    for _ in range(6):
        clients.append(here.client())
        assert clients[-1].features is not None
    for client in clients:
        client.close()
    assert 'cannot fork' in here.log()


def refuses(here, disk):
    """It serves, but the kernel does not let it; which the log says once."""
    with here.client() as client:
        for _ in range(2):
            done = client.out(disk, pr.REGISTER_AND_IGNORE, 0, KEY)
            assert done.status == pr.CHECK_CONDITION
            assert pr.sense_code(done.sense) == 'B/00/06'
    assert here.log().count(REFUSED) == 1
    return True


def test_another_user_than_root_has_no_place_for_the_socket(
        pod):                                               # noqa: F811
    here = pod(**HARDENED, uid=1000).start(wait=False)
    assert here.process.wait(20) == 1
    assert here.log().endswith(
        'cannot bind socket to %s: Permission denied\n' % SOCKET)


@pytest.mark.parametrize('options', [
    {'uid': 1000}, {'capabilities': USUAL_CAPABILITIES}],
    ids=['another user than root', 'root without it'])
def test_without_the_capability_it_warns(pod, disk, options):  # noqa: F811
    here = pod(**{**HARDENED, **options})
    os.chown(DIRECTORY, options.get('uid', 0), 0)
    here.start()
    assert WARNING in here.log()
    assert refuses(here, disk)


def test_the_capability_of_a_user_namespace_is_refused(pod, disk):  # noqa: F811
    here = pod(own_users=True)
    os.chown(DIRECTORY, BASE, BASE)     # as a mount with mapped ids shows it
    here.start()
    assert NAMESPACE in here.log() and 'hostUsers: true' in here.log()
    assert refuses(here, disk)


@pytest.mark.parametrize('name, arguments, error', [
    ('unshare', (0x10000000,), errno.EPERM),
    ('mount', ('a', '/tmp', 'tmpfs', 0, None), errno.EPERM),
    ('socket', (40, 1, 0), errno.EPERM),                # AF_VSOCK
    ('socket', (38, 1, 0), errno.EPERM),                # AF_ALG
    ('socket', (1, 9, 0), errno.ESOCKTNOSUPPORT),      # so it is allowed
    ('personality', (0x40000,), errno.EPERM),           # ADDR_NO_RANDOMIZE
    ('personality', (0x20008,), 0),
    ('syscall', (56, 0x10000000 | 17, 0, 0, 0, 0), errno.EPERM),    # clone
    ('syscall', (435, 0, 0), errno.ENOSYS),             # clone3
    ('syscall', (999,), errno.ENOSYS)])
def test_the_filter_is_runtime_defaults(name, arguments, error):
    child = os.fork()
    if child == 0:
        default_seccomp()
        try:
            call(name, *arguments)
            os._exit(0)
        except OSError as failure:
            os._exit(failure.errno)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == error
