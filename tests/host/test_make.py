"""make: what it builds anew, what it leaves alone, and what it has words for.

The compiler is a script that writes its arguments where the program should
go. Nothing here may touch what is built in the tree itself: it runs in copies.
"""
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from helper import TOP

pytestmark = pytest.mark.skipif(shutil.which('make') is None,
                                reason='not installed: make')

COMPILER = '''#!/bin/sh
for word; do
    [ "${last-}" != -o ] || echo "$*" >"$word"
    last=$word
done
'''


class Tree:
    def __init__(self, path):
        self.path = str(path)
        shutil.copytree(TOP, self.path, ignore=shutil.ignore_patterns(
            'build', '.git', 'qemu-pr-helper', 'qemu-pr-client'))
        self.compiler = self.path + '/compiler'
        with open(self.compiler, 'w') as f:
            f.write(COMPILER)
        os.chmod(self.compiler, 0o755)

    def run(self, *arguments):
        """What it prints."""
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(('MAKE', 'MFLAGS'))}
        return subprocess.run(['make', *arguments], env=env, cwd=self.path,
                              check=True, stdout=subprocess.PIPE,
                              text=True).stdout

    def make(self, *arguments):
        """With the compiler above, unless another is given."""
        if not any(word.startswith('CC=') for word in arguments):
            arguments += ('CC=' + self.compiler,)
        return self.run(*arguments)

    def built(self):
        with open(self.path + '/qemu-pr-helper') as f:
            return f.read()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / 'tree')


@pytest.mark.parametrize('variable', [
    'CC=sh compiler', 'CFLAGS=-O3', 'CPPFLAGS=-DX', 'LDFLAGS=-s',
    'LOCALSTATEDIR=/state', "CFLAGS=-DX='\"a b\"'"])
def test_what_changes_the_binary_makes_it_anew(tree, variable):
    assert 'LINK' in tree.make() and tree.make().count('build/') == 0
    for arguments in (variable,), ():
        said = tree.make(*arguments)
        for name in 'build/sg_io.o', 'build/admin/check.o', 'qemu-pr-client':
            assert re.search(r' %s$' % name, said, re.M), name
        assert tree.make(*arguments).count('build/') == 0


def test_install_takes_what_is_there(tree, tmp_path):
    tree.make('CFLAGS=-DMINE')
    where = 'DESTDIR=%s' % (tmp_path / 'root')
    tree.run('install', where)
    assert '-DMINE' in tree.built()
    tree.make('install', where, 'CFLAGS=-DOTHER')
    assert '-DOTHER' in tree.built()


def test_commands_are_short_unless_asked_for_and_silent_if_asked_for(tree):
    short = tree.make()
    assert '  CC      build/sg_io.o\n' in short and '-Wall' not in short
    assert '-Wall' in tree.make('V=1', 'CFLAGS=-O1')
    assert tree.make('-s', 'CFLAGS=-O2 -g') == ''


def test_programs_need_no_tests_and_no_contrib(tree):
    shutil.rmtree(tree.path + '/tests')
    shutil.rmtree(tree.path + '/contrib')
    tree.make()
    assert os.path.exists(tree.path + '/qemu-pr-client')


def test_help_has_each_target(tree):
    said = tree.make('help')
    assert max(map(len, said.splitlines())) <= 80
    phony = set()
    for name in ('Makefile', 'contrib/packages.mk', 'tests/tests.mk',
                 'tests/bench/bench.mk'):
        with open(os.path.join(TOP, name)) as f:
            text = f.read().replace('\\\n', ' ')
        phony |= set(re.search(r'^\.PHONY:(.*)', text, re.M)[1].split())
        phony |= set(re.findall(r'^(check[\w-]*|demo):', text, re.M))
    inner = {'ALWAYS', 'help', 'sim', 'fault', '$(ALL)'}
    assert phony - inner - set(re.findall(r'[\w-]+', said)) == set()


FIND = os.path.join(TOP, 'tests/lib/find.sh')


@pytest.mark.parametrize('word, found', [
    ('make', ['tests/host/test_make.py']),
    ('test_make.py', ['tests/host/test_make.py']),
    ('tests/host/test_make.py', ['tests/host/test_make.py']),
    ('test_help_has_each_target', ['test_help_has_each_target']),
    ('help_has_each', ['test_help_has_each_target']),
    ('test_a_word_finds[a]', []),
    ('test_a_word_names_tests[make-found0]',
     ['test_a_word_names_tests[make-found0]']),
])
def test_a_word_names_tests(word, found):
    run = subprocess.run([FIND, word], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    assert run.stdout.split() == [
        name if '/' in name else 'tests/host/test_make.py::' + name
        for name in found]
    assert (run.returncode, word in run.stderr) == (
        (0, False) if found else (1, True))


def left_of(directory):
    """The processes that have it for their temporary files."""
    left = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/environ' % pid, 'rb') as f:
                if b'TMPDIR=' + os.fsencode(directory) in f.read():
                    left.append(pid)
        except OSError:
            pass
    return left


def test_tests_are_told_as_they_end_and_a_signal_ends_them_all(tree, tmp_path):
    """A line for each file; then nothing of them is left, nowhere."""
    host = os.path.join(tree.path, 'tests/host')
    shutil.rmtree(host)
    os.mkdir(host)
    with open(host + '/test_a.py', 'w') as f:
        f.write('def test_quick():\n    pass\n')
    with open(host + '/test_b.py', 'w') as f:
        f.write('import subprocess, tempfile\n'
                'def test_endless():\n'
                '    with tempfile.NamedTemporaryFile(delete=False):\n'
                '        subprocess.run(["setsid", "sleep", "300"])\n')
    # What is fetched for those who run this is there for that one, too.
    fetched = os.path.join(os.environ.get('BUILD', TOP + '/build'), 'debian')
    if os.path.exists(fetched):
        os.makedirs(tree.path + '/build')
        os.symlink(os.path.abspath(fetched), tree.path + '/build/debian')
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items()
           if name not in ('BUILD', 'SUITE', 'PROGRESS', 'RUN_FETCHED',
                           'PYTEST_CURRENT_TEST', 'PYTEST_ADDOPTS')}
    env['TMPDIR'] = str(temporary)
    with subprocess.Popen(['tests/run.sh', 'host'], cwd=tree.path, env=env,
                          stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('host: tests/host/test_a.py: 1 passed'):
                break
        else:
            raise AssertionError('it says nothing while it runs')
        end = time.monotonic() + 60
        while not any(files for _, _, files in os.walk(temporary)):
            assert time.monotonic() < end, 'test_b.py does not begin'
            time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
        assert time.monotonic() - began < 30
    assert list(temporary.iterdir()) == []
    end = time.monotonic() + 20     # who follows the progress sleeps a little
    while left_of(temporary):
        assert time.monotonic() < end, left_of(temporary)
        time.sleep(0.1)
