"""The container image at work, with no more than the helper cannot do without.

Inside tests/lib/uml.sh, as root, in a chroot that has what the image has, the
directory for the socket that KubeVirt lends, of what every container has
/dev/null, and nothing else: no libc, no shell, no /proc, no disk. The disk
comes as its client's descriptor. test_pod.py has it in a whole pod. Must never
be run on another machine.
"""
import os
import shutil
import signal
import stat
import subprocess

import pytest

import prclient as pr
from launch import accepts, status_of, stop, wait_until
from pod import QEMU, SOCKET, marks, unpack

KEY = 0xc0ffee

pytestmark = marks


@pytest.fixture
def container():
    """The image's root and config, unpacked, with the directory in it."""
    root, config = unpack()
    directory = root + os.path.dirname(SOCKET)
    os.makedirs(directory)
    os.chown(directory, QEMU, QEMU)
    os.mkdir(root + '/dev')
    os.mknod(root + '/dev/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield root, config
    shutil.rmtree(root)


@pytest.fixture
def start(container, tmp_path):
    root, config = container
    assert config['User'] == '0:0' and os.geteuid() == 0
    processes = []

    def enter():
        os.chroot(root)
        os.chdir('/')

    def start():
        with open(tmp_path / 'log', 'wb') as log:
            process = subprocess.Popen(
                config['Entrypoint'] + ['-k', SOCKET], env={},
                preexec_fn=enter, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log)
        processes.append(process)
        wait_until(lambda: accepts(root + SOCKET)
                   or process.poll() is not None)
        assert process.poll() is None, (tmp_path / 'log').read_text()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_reservation_of_a_disk_from_an_empty_root(start, container, tmp_path):
    helper = start()
    disk = pr.open_device('/dev/sda')
    with pr.Client(container[0] + SOCKET) as client:
        while client.read_in(disk, pr.READ_KEYS).status != pr.GOOD:
            pass                                # unit attentions
        done = client.out(disk, pr.REGISTER_AND_IGNORE, 0, KEY)
        assert done.status == pr.GOOD, done
        assert client.keys(disk) == [KEY]
        done = client.out(disk, pr.REGISTER, KEY, 0)
        assert done.status == pr.GOOD, done
        assert client.keys(disk) == []
        assert (tmp_path / 'log').read_text() == ''
        partition = pr.open_device('/dev/sda1')
        refused = client.out(partition, pr.REGISTER_AND_IGNORE, 0, KEY)
        assert pr.sense_code(refused.sense) == '5/20/00'
        os.close(partition)
    os.close(disk)
    assert status_of(helper.pid)['CapEff'] == 1 << 17       # CAP_SYS_RAWIO


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_the_next_one_takes_the_socket_that_the_last_one_left(
        start, container, number):
    path = container[0] + SOCKET
    stop(start(), number)
    assert stat.S_ISSOCK(os.stat(path).st_mode)     # the directory is QEMU's
    start()
    with pr.Client(path) as client:
        assert client.features is not None


def test_both_commands_that_kubevirt_has_had_are_the_helper(container):
    assert os.path.samefile(container[0] + '/entrypoint.sh',
                            container[0] + '/usr/bin/qemu-pr-helper')
