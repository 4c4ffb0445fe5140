"""The files of contrib/examples/ are what their programs take: each is given
to the parser that Debian has of it.

That qemu.sh and qemu-migrate.sh do what they should is tested with real QEMUs
in tests/qemu, which start their guests by them. Nothing here may start a
daemon, or write outside the temporary directory.
"""
import glob
import os
import re
import shutil
import subprocess

import pytest

from helper import BUILD, TOP

EXAMPLES = os.path.join(TOP, 'contrib/examples')
FETCHED = os.path.join(BUILD, 'debian')
SCHEMAS = '/usr/share/libvirt'


def path(name):
    return os.path.join(EXAMPLES, name)


def needs(program):
    found = shutil.which(program, path=os.environ['PATH'] + ':/usr/sbin:/sbin')
    if not found:
        pytest.skip('not installed: ' + program)
    return found


def run(*command, **popen):
    done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=60, **popen)
    return done.returncode, done.stdout


def systemd_environment(units):
    """For systemd-analyze, which may have been fetched."""
    libraries = glob.glob(FETCHED + '/usr/lib/*/systemd')
    return dict(os.environ, LD_LIBRARY_PATH=':'.join(
        libraries + [os.environ.get('LD_LIBRARY_PATH', '')]).strip(':'),
        SYSTEMD_UNIT_PATH='%s:%s/usr/lib/systemd/system:' % (units, FETCHED))


@pytest.fixture
def validate(tmp_path):
    """virt-xml-validate, whose schemas may not lie where it expects them."""
    script = needs('virt-xml-validate')
    needs('xmllint')
    with open(script) as f:
        text = f.read()
    if not os.path.isdir(SCHEMAS):
        text = text.replace(SCHEMAS, FETCHED + SCHEMAS)
    copy = tmp_path / 'validate'
    copy.write_text(text)
    return lambda *arguments: run('sh', str(copy), *arguments)


@pytest.mark.parametrize('name', ['libvirt.xml', 'windows-node1.xml',
                                  'windows-node2.xml'])
def test_libvirt_takes_the_domain(validate, name):
    status, said = validate(path(name), 'domain')
    assert (status, said) == (0, path(name) + ' validates\n')


def test_libvirt_does_not_take_any_domain(validate, tmp_path):
    with open(path('libvirt.xml')) as f:
        text = f.read()
    for right, wrong in (("managed='yes'", "managed='on'"),
                         ("device='lun'", "device='luns'"),
                         ("model='virtio-scsi'", "model='scsi'")):
        assert right in text
        broken = tmp_path / 'broken.xml'
        broken.write_text(text.replace(right, wrong))
        assert validate(str(broken), 'domain')[0] != 0, wrong


def test_two_nodes_share_the_disk_and_no_path():
    texts = [open(path('windows-node%d.xml' % n)).read() for n in (1, 2)]
    sources = [re.findall(r"<source (?:dev|file)='(.*?)'", text)
               for text in texts]
    assert len(set(sources[0] + sources[1])) == 4
    same = [re.sub(r'(?i)(node |node|192\.0\.2\.)[12]', r'\1N', text)
            for text in texts]
    assert same[0] == same[1] and '<shareable/>' in same[0]


def test_multipath_takes_the_configuration(tmp_path):
    """As its own, which takes a name space of mounts."""
    multipath = needs('multipath')
    shutil.copy(path('multipath.conf'), tmp_path)
    unshare = ['unshare', '--mount'] + ['--map-root-user'] * (os.geteuid() != 0)
    if run(*unshare, 'true')[0] != 0:
        pytest.skip('no name space of mounts is to be had here')

    def dump():
        status, said = run(
            *unshare, 'sh', '-ec', 'mount --bind "$1" /etc; "$2" -t 2>&1',
            'sh', str(tmp_path), multipath)
        assert status == 0, said
        return re.sub(r'[ \t]+', ' ', said.replace('"', ''))

    said = dump()
    for line in ('reservation_key file\n',
                 'wwid 360014050000000020000000000000002\n'):
        assert line in said
    assert 'multipath.conf' not in said     # as a complaint begins
    with open(tmp_path / 'multipath.conf', 'a') as f:
        f.write('defaults {\nreservation_keys file\n}\n')
    assert 'multipath.conf' in dump()


def test_systemd_takes_the_units_and_the_drop_in(tmp_path):
    analyze = needs('systemd-analyze')
    for unit in glob.glob(TOP + '/contrib/systemd/*.s*'):
        with open(unit) as f:
            text = f.read().replace('/usr/bin/qemu-pr-helper', '/bin/true')
        (tmp_path / os.path.basename(unit)).write_text(text)
    drop_in = 'qemu-pr-helper.socket.d'
    shutil.copytree(path(drop_in), tmp_path / drop_in)
    env = systemd_environment(tmp_path)
    command = (analyze, 'verify', '--man=no', 'qemu-pr-helper.socket',
               'qemu-pr-helper.service')
    status, said = run(*command, env=env)
    if 'Failed to' in said:     # for want of /run/systemd, or of a bus
        pytest.skip('systemd-analyze: ' + said)
    assert (status, said) == (0, '')
    with open(tmp_path / drop_in / 'group.conf', 'a') as f:
        f.write('SocketMod=0660\n')
    assert 'SocketMod' in run(*command, env=env)[1]


def test_the_cluster_s_files_are_yaml():
    yaml = pytest.importorskip('yaml', reason='not installed: python3-yaml')
    with open(path('kubevirt.yaml')) as f:
        settings = yaml.safe_load(f)
    assert settings['kind'] == 'KubeVirt'
    assert settings['spec']['configuration'] == {
        'persistentReservationConfiguration': {'enabled': True}}
    with open(path('kubevirt-vm.yaml')) as f:
        spec = yaml.safe_load(f)['spec']['template']['spec']
    disk, = spec['domain']['devices']['disks']
    volume, = spec['volumes']
    assert disk['lun'] == {'bus': 'scsi', 'reservation': True}
    assert disk['name'] == volume['name']


@pytest.mark.parametrize('name', ['qemu.sh', 'qemu-migrate.sh'])
def test_the_disk_comes_first_and_more_options_last(name, tmp_path):
    """What else there is in them, real QEMUs say: see tests/qemu."""
    qemu = tmp_path / 'qemu'
    qemu.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    qemu.chmod(0o755)
    said = run(path(name), '/dev/disk', '-m', '1 G',
               env=dict(os.environ, QEMU=str(qemu), SOCKET='/sock'))[1]
    assert said.endswith('\n-m\n1 G\n')
    assert 'file.filename=/dev/disk,' in said and ',path=/sock\n' in said
