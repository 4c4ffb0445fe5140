"""The image in the pods that it may find itself in, as container.py makes them.

VIRT_HANDLER is KubeVirt's container pr-helper, as virt-handler's daemon set has
it; HARDENED has all that a cluster may take away and the helper still works on
a disk. Mounts and paths are KubeVirt's.

Must run inside lib/uml.sh, as root. Must leave no process and no mount behind.
"""
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

import pytest

from container import NUMBER, SYS_RAWIO, USUAL_CAPABILITIES
from helper import BUILD, TOP
from launch import accepts, children, wait_until
from prclient import Client

IMAGE = os.path.join(BUILD, 'image.tar')
SOCKET = '/var/run/kubevirt/daemons/pr/pr-helper.sock'
DIRECTORY = os.path.dirname(SOCKET)
QEMU = 107      # the user that the directory is for

VIRT_HANDLER = {'own_processes': False}     # privileged, with hostPID
HARDENED = {'read_only': True, 'devices': False, 'pids': 20, 'seccomp': True,
            'no_new_privs': True,
            'capabilities': [*USUAL_CAPABILITIES, SYS_RAWIO]}

marks = [
    pytest.mark.skipif(not os.path.isdir('/run/target/pr'),
                       reason='not inside tests/lib/uml.sh'),
    pytest.mark.skipif(not os.path.exists(IMAGE),
                       reason='not installed: musl-gcc, for make image')]
with_headers = pytest.mark.skipif(not NUMBER,
                                  reason='not installed: linux-libc-dev')


def unpack():
    """The image's root, in a new directory, and its config."""
    with tarfile.open(IMAGE) as image:
        def blob(descriptor):
            digest = descriptor['digest'].replace(':', '/')
            return image.extractfile('blobs/' + digest).read()

        index = json.load(image.extractfile('index.json'))
        manifest = json.loads(blob(*index['manifests']))
        config = json.loads(blob(manifest['config']))['config']
        root = tempfile.mkdtemp(dir='/tmp')     # a socket's path is short
        os.chmod(root, 0o755)
        with tarfile.open(fileobj=io.BytesIO(blob(*manifest['layers']))) as t:
            t.extractall(root)
    return root, config


class Pod:
    """One container, and the directories that the node lends to it."""

    def __init__(self, log, **options):
        self.log_path = str(log)
        self.root, config = unpack()
        mounts = [[DIRECTORY, DIRECTORY], ['/dev', '/dev'],
                  ['/run/etc-multipath', '/etc/multipath']]
        for path in ['/proc', '/sys', *dict(mounts).values()]:
            os.makedirs(self.root + path)
        for path in dict(mounts):
            os.makedirs(path, exist_ok=True)
        # What virt-handler mounts there later, the container shall see, too.
        subprocess.run(['mount', '--bind', '--make-shared', DIRECTORY,
                        DIRECTORY], check=True)
        os.chown(DIRECTORY, QEMU, QEMU)
        self.options = {'mounts': mounts, **options}
        self.command = [*config['Entrypoint'], '-k', SOCKET]
        self.process = None

    def start(self, wait=True):
        with open(self.log_path, 'wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, TOP + '/tests/lib/container.py', self.root,
                 json.dumps(self.options), *self.command],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=log)
        if wait:
            wait_until(lambda: accepts(SOCKET)
                       or self.process.poll() is not None)
            assert self.process.poll() is None, self.log()
            self.client().close()   # so it is past what it says at its start
        return self

    @property
    def helper(self):
        """Its pid, on the node."""
        if self.options.get('own_processes', True):
            return children(self.process.pid)[0]
        return self.process.pid

    def client(self):
        return Client(SOCKET)

    def log(self):
        with open(self.log_path) as f:
            return f.read()

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        wait_until(lambda: not accepts(SOCKET))
        subprocess.run(['umount', '--recursive', DIRECTORY], check=True)
        shutil.rmtree(DIRECTORY)
        shutil.rmtree(self.root)


@pytest.fixture
def pod(tmp_path):
    """A function that makes a Pod."""
    pods = []

    def make(**options):
        pods.append(Pod(tmp_path / 'log', **options))
        return pods[-1]

    yield make
    for one in pods:
        one.close()
