"""make install and make uninstall: which files, where, and that they work.

Nothing here may write outside of a temporary directory, or build anything:
what is installed is the program under test.
"""
import glob
import os
import shutil
import stat
import subprocess

import pytest

from helper import TOP, program

pytestmark = pytest.mark.skipif(shutil.which('make') is None,
                                reason='not installed: make')

PROGRAMS = {'qemu-pr-helper': program('HELPER', 'qemu-pr-helper'),
            'qemu-pr-client': program('CLIENT', 'qemu-pr-client')}

# Of each: the variable of the Makefile, the path below it, its mode.
FILES = [
    ('BINDIR', 'qemu-pr-helper', 0o755),
    ('BINDIR', 'qemu-pr-client', 0o755),
    ('MANDIR', 'man8/qemu-pr-helper.8', 0o644),
    ('MANDIR', 'man1/qemu-pr-client.1', 0o644),
    ('DOCDIR', 'LICENSE', 0o644),
    ('COMPLETIONDIR', 'qemu-pr-client', 0o644),
    *(('UNITDIR', os.path.basename(path), 0o644)
      for kind in ('service', 'socket')
      for path in glob.glob('%s/contrib/systemd/*.%s' % (TOP, kind))),
]


def directories(prefix):
    return {'BINDIR': prefix + '/bin', 'MANDIR': prefix + '/share/man',
            'DOCDIR': prefix + '/share/doc/prhelper',
            'UNITDIR': prefix + '/lib/systemd/system',
            'COMPLETIONDIR': prefix + '/share/bash-completion/completions'}


OWN = {'BINDIR': '/b', 'MANDIR': '/m', 'DOCDIR': '/d', 'UNITDIR': '/u',
       'COMPLETIONDIR': '/c'}
CASES = {
    'default': ([], directories('/usr/local')),
    'PREFIX': (['PREFIX=/usr'], directories('/usr')),
    'prefix': (['prefix=/opt/x'], directories('/opt/x')),
    'each': (['%s=%s' % pair for pair in OWN.items()], OWN),
    'SBINDIR': (['PREFIX=/usr', 'SBINDIR=/usr/sbin'], directories('/usr')),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def make(tmp_path):
    """make TARGET, with the odd umask and without an outer make's variables"""
    env = {name: value for name, value in os.environ.items()
           if name not in ('MAKEFLAGS', 'MFLAGS', 'MAKEOVERRIDES')}

    def run(target, root, *variables):
        return subprocess.run(
            ['make', '-s', '-C', TOP, target, 'DESTDIR=%s' % root,
             'PROGRAMS=' + ' '.join(PROGRAMS.values()), *variables],
            env=env, preexec_fn=lambda: os.umask(0o077), check=True,
            capture_output=True, text=True)
    return run


def files(root):
    """{path: mode} of all that is below root and no directory."""
    return {os.path.join(at, name)[len(str(root)):]:
            stat.S_IMODE(os.lstat(os.path.join(at, name)).st_mode)
            for at, _, names in os.walk(root) for name in names}


def test_install_is_these_files_and_uninstall_takes_them_away(make, tmp_path,
                                                              case):
    variables, where = case
    root = tmp_path / 'a root'
    (root / 'usr/bin').mkdir(0o755, parents=True)
    (root / 'usr/bin/other').touch(0o600)
    make('install', root, *variables)
    expected = {'%s/%s' % (where[place], path): mode
                for place, path, mode in FILES}
    assert files(root) == {**expected, '/usr/bin/other': 0o600}
    for path in expected:
        at = os.path.dirname(str(root) + path)
        assert stat.S_IMODE(os.stat(at).st_mode) == 0o755
    make('uninstall', root, *variables)
    assert files(root) == {'/usr/bin/other': 0o600}
    assert not os.path.exists(str(root) + where['DOCDIR'])


def test_install_replaces_what_is_there(make, tmp_path):
    """It does not write through a link, nor keep an odd mode."""
    root, other = tmp_path / 'root', tmp_path / 'other'
    where = directories('/usr/local')
    unit = root / where['UNITDIR'][1:] / 'qemu-pr-helper.service'
    page = root / where['MANDIR'][1:] / 'man8' / 'qemu-pr-helper.8'
    for path in unit, page:
        path.parent.mkdir(parents=True)
    other.write_text('another')
    unit.symlink_to(other)
    page.touch(0o600)
    make('install', root)
    assert other.read_text() == 'another' and not unit.is_symlink()
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


@pytest.mark.parametrize('name', PROGRAMS)
def test_installed_program_is_the_one_under_test_and_runs(make, tmp_path,
                                                          name):
    make('install', tmp_path, 'PREFIX=/usr')
    installed = tmp_path / 'usr/bin' / name
    with open(PROGRAMS[name], 'rb') as f:
        assert installed.read_bytes() == f.read()
    assert subprocess.check_output([installed, '-V'], text=True).startswith(
        name + ' ')


def test_manuals_and_units_say_where_things_are(make, tmp_path):
    unit = tmp_path / 'qemu-pr-helper.service'
    unit.write_text('[Service]\nExecStart=/usr/bin/qemu-pr-helper -q\n')
    make('install', tmp_path, 'PREFIX=/opt/x', 'LOCALSTATEDIR=/state',
         'UNITS=%s' % unit)
    installed = tmp_path / 'opt/x/lib/systemd/system/qemu-pr-helper.service'
    assert installed.read_text() == (
        '[Service]\nExecStart=/opt/x/bin/qemu-pr-helper -q\n')
    manual = (tmp_path / 'opt/x/share/man/man8/qemu-pr-helper.8').read_text()
    assert '/state/run/qemu-pr-helper.pid' in manual
    assert '/var/run/' not in manual


def test_uninstall_of_nothing_is_no_error(make, tmp_path):
    make('uninstall', tmp_path)
    assert files(tmp_path) == {}
