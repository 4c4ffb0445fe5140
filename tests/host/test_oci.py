"""make image: that what contrib/image.sh makes is an image, and only that.

No container engine: the layout is read by its specification, and by skopeo
where it is installed. tests/kernel/test_image.py runs what is in the image.
"""
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile

import pytest

from helper import TOP

SCRIPT = os.path.join(TOP, 'contrib/image.sh')

# The beginning of an ELF file: class, byte order, e_machine; and the image's
# architecture.
MACHINES = {
    'x86-64': (2, 1, 62, {'architecture': 'amd64'}),
    'i386': (1, 1, 3, {'architecture': '386'}),
    'aarch64': (2, 1, 183, {'architecture': 'arm64', 'variant': 'v8'}),
    'arm': (1, 1, 40, {'architecture': 'arm', 'variant': 'v7'}),
    'riscv64': (2, 1, 243, {'architecture': 'riscv64'}),
    'ppc64le': (2, 1, 21, {'architecture': 'ppc64le'}),
    's390x': (2, 2, 22, {'architecture': 's390x'}),
}


def elf(bits, order, machine):
    return (b'\x7fELF' + bytes((bits, order, 1)) + bytes(11)
            + machine.to_bytes(2, 'big' if order == 2 else 'little') + b'code')


@pytest.fixture
def build(tmp_path):
    def build(name='image', machines=('x86-64',), **options):
        programs = [tmp_path / machine for machine in machines]
        for program in programs:
            program.write_bytes(elf(*MACHINES[program.name][:3]))
        image = tmp_path / name
        subprocess.run([SCRIPT, image, '1.2', *programs], check=True,
                       timeout=20, **options)
        return image
    return build


class Layout:
    """An OCI image layout in a tar file, each digest and size checked."""

    def __init__(self, path):
        with tarfile.open(path) as tar:
            self.members = tar.getmembers()
            self.files = {m.name: tar.extractfile(m).read()
                          for m in self.members if m.isfile()}
        self.used = {'oci-layout', 'index.json'}
        index = json.loads(self.files['index.json'])
        top, = index['manifests']
        assert top['annotations'] == {
            'org.opencontainers.image.ref.name': 'prhelper:1.2'}
        self.platforms = []
        if 'index' in top['mediaType']:
            index = json.loads(self.blob(top, kind='index.v1+json'))
        for descriptor in index['manifests']:
            self.image(descriptor)

    def image(self, descriptor):
        """One machine's; the last one stays to be looked at."""
        self.manifest = json.loads(self.blob(descriptor,
                                             kind='manifest.v1+json'))
        self.config = json.loads(self.blob(self.manifest['config'],
                                           kind='config.v1+json'))
        packed = self.blob(*self.manifest['layers'], kind='layer.v1.tar+gzip')
        assert packed[3:8] == bytes(5)      # neither a name nor a time
        self.layer = gzip.decompress(packed)
        self.platforms.append((descriptor.get('platform'), {
            name: self.config[name] for name in ('architecture', 'variant', 'os')
            if name in self.config}))

    def blob(self, descriptor, kind):
        name = 'blobs/' + descriptor['digest'].replace(':', '/')
        data = self.files[name]
        self.used.add(name)
        assert descriptor['mediaType'] == 'application/vnd.oci.image.' + kind
        assert descriptor['size'] == len(data)
        assert name == 'blobs/sha256/' + hashlib.sha256(data).hexdigest()
        return data


def test_image_has_the_helper_and_its_second_name_and_nothing_else(build):
    layout = Layout(build())
    with tarfile.open(fileobj=io.BytesIO(layout.layer)) as tar:
        found = {m.name: (m.type, m.mode, m.linkname) for m in tar}
        program = tar.extractfile('entrypoint.sh').read()
    link = found.pop('entrypoint.sh')
    assert link[0] == tarfile.SYMTYPE and link[2] == 'usr/bin/qemu-pr-helper'
    assert found == {
        'usr': (tarfile.DIRTYPE, 0o755, ''),
        'usr/bin': (tarfile.DIRTYPE, 0o755, ''),
        'usr/bin/qemu-pr-helper': (tarfile.REGTYPE, 0o755, '')}
    assert program == elf(*MACHINES['x86-64'][:3])


def test_layout_holds_together(build):
    layout = Layout(build())
    assert json.loads(layout.files['oci-layout']) == {
        'imageLayoutVersion': '1.0.0'}
    assert set(layout.files) == layout.used
    assert layout.config['rootfs'] == {
        'type': 'layers',
        'diff_ids': ['sha256:' + hashlib.sha256(layout.layer).hexdigest()]}


def test_config_names_user_command_and_labels(build):
    config = Layout(build()).config
    assert config['os'] == 'linux'
    assert config['config']['User'] == '0:0'
    assert config['config']['Entrypoint'] == ['/entrypoint.sh']
    labels = config['config']['Labels']
    assert labels['org.opencontainers.image.version'] == '1.2'
    assert labels['org.opencontainers.image.licenses'] == 'MIT'


@pytest.mark.parametrize('machine', MACHINES)
def test_architecture_is_the_programs(build, machine):
    config = Layout(build(machines=[machine])).config
    assert {name: config[name] for name in ('architecture', 'variant')
            if name in config} == MACHINES[machine][3]


def test_an_index_has_an_image_for_each_machine(build):
    layout = Layout(build(machines=MACHINES))
    assert set(layout.files) == layout.used
    assert [platform for platform, _ in layout.platforms] == [
        dict(machine[3], os='linux') for machine in MACHINES.values()]
    for platform, config in layout.platforms:
        assert platform == config
    with tarfile.open(fileobj=io.BytesIO(layout.layer)) as tar:
        assert tar.extractfile('entrypoint.sh').read() == elf(
            *MACHINES['s390x'][:3])


def test_unknown_machine_is_an_error(tmp_path):
    program = tmp_path / 'program'
    program.write_bytes(elf(2, 1, 8))
    run = subprocess.run([SCRIPT, tmp_path / 'image', '1', program],
                         capture_output=True)
    assert run.returncode == 1 and not (tmp_path / 'image').exists()


def test_two_builds_are_the_same_bytes(build):
    one = build('one').read_bytes()
    os.utime(build('one'), (1, 1))
    other = build('other', preexec_fn=lambda: os.umask(0o077), env=dict(
        os.environ, TZ='Pacific/Chatham', LC_ALL='C.UTF-8')).read_bytes()
    assert one == other


def test_time_is_source_date_epoch(build):
    layout = Layout(build(env=dict(os.environ,
                                   SOURCE_DATE_EPOCH='1700000000')))
    assert layout.config['created'] == '2023-11-14T22:13:20Z'
    assert {m.mtime for m in layout.members} == {1700000000}
    with tarfile.open(fileobj=io.BytesIO(layout.layer)) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {
            (1700000000, 0, 0, '', '')}


needs_skopeo = pytest.mark.skipif(shutil.which('skopeo') is None,
                                  reason='not installed: skopeo')


def skopeo(*arguments):
    return subprocess.check_output(['skopeo', '--insecure-policy', *arguments],
                                   timeout=60)


@needs_skopeo
def test_skopeo_inspects_and_copies_it(build, tmp_path):
    image = 'oci-archive:%s' % build()
    seen = json.loads(skopeo('inspect', image))
    assert seen['Architecture'] == 'amd64' and seen['Os'] == 'linux'
    skopeo('copy', '-q', image + ':prhelper:1.2',
           'dir:%s' % (tmp_path / 'copy'))
    layer, = seen['Layers']
    assert (tmp_path / 'copy' / layer.split(':')[1]).exists()


@needs_skopeo
def test_skopeo_finds_each_machine_in_the_index_and_copies_all(
        build, tmp_path):
    image = build(machines=MACHINES)
    index = json.loads(skopeo('inspect', '--raw', 'oci-archive:%s' % image))
    assert len(index['manifests']) == len(MACHINES)
    for _, _, _, platform in MACHINES.values():
        seen = json.loads(skopeo(
            '--override-arch', platform['architecture'],
            '--override-variant', platform.get('variant', ''),
            'inspect', 'oci-archive:%s' % image))
        assert seen['Architecture'] == platform['architecture']
    copy = tmp_path / 'copy'
    skopeo('copy', '-q', '--multi-arch=all', 'oci-archive:%s' % image,
           'oci-archive:%s:prhelper:1.2' % copy)
    assert Layout(copy).platforms == Layout(image).platforms
