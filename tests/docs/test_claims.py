"""What README, SECURITY.md and the manuals claim, as far as a command can tell:
options, exit statuses, numbers, sizes, names of targets and of files, messages.

A claim is read from the document, and what it must be from the programs, from
make, or, for numbers that nothing prints, from the source. Nothing here may
need a disk, root, or longer than seconds. When a test fails, either the
document is wrong or the program is; find out which before changing either.
"""
import fnmatch
import glob
import os
import re
import shutil
import subprocess

import pytest

from helper import TOP, program
from test_examples import systemd_environment

HELPER = program('HELPER', 'qemu-pr-helper')
CLIENT = program('CLIENT', 'qemu-pr-client')
STATIC = os.path.join(TOP, 'build/static/qemu-pr-helper')
DOCUMENTS = ['README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md',
             'tests/README.md', 'contrib/kubevirt/README.md']
MANUAL, CLIENT_MANUAL = 'man/qemu-pr-helper.8', 'man/qemu-pr-client.1'


def read(name):
    with open(os.path.join(TOP, name), errors='replace') as f:
        return f.read()


def sources(*patterns):
    return ''.join(read(name) for pattern in patterns
                   for name in sorted(glob.glob(TOP + '/' + pattern)))


def run(*command, **popen):
    """Exit status and output."""
    done = subprocess.run(command, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **popen)
    return done.returncode, done.stdout


def needs(*programs):
    for name in programs:
        if not shutil.which(name):
            pytest.skip('not installed: ' + name)


def number(pattern, text):
    """The only number that the pattern finds."""
    found, = set(re.findall(pattern, text))
    return int(found)


def row(document, first):
    """The cells of a table's row after this first one."""
    line, = re.findall(r'^\| %s \|(.*)\|$' % re.escape(first), read(document),
                       re.M)
    return [cell.strip() for cell in line.split('|')]


# Programs. ------------------------------------------------------------------

@pytest.mark.parametrize('binary, manual', [(HELPER, MANUAL),
                                            (CLIENT, CLIENT_MANUAL)])
def test_the_manual_has_the_options_that_help_lists(binary, manual):
    listed = set(re.findall(r'^ +(?:-\w, )?--([\w-]+)', run(binary, '-h')[1],
                            re.M))
    described = set(re.findall(r'^\.It Fl .*?-([a-z][\w-]+)', read(manual),
                               re.M))
    assert listed == described and len(listed) > 6


def test_documents_name_options_that_there_are():
    listed = run(HELPER, '-h')[1] + run(CLIENT, '-h')[1]
    for name in 'README.md', 'SECURITY.md':
        for option in re.findall(r'`(--[a-z][\w-]+)', read(name)):
            assert option in listed, (name, option)


@pytest.mark.parametrize('option, says', [
    ('max-clients', r'the default is (\d+)\.\nWhen there have been more'),
    ('client-timeout', r'86400, the default is (\d+)\.'),
    ('stop-timeout', r'the\ndefault is (\d+), as libvirt')])
def test_the_manual_s_defaults_are_those_of_help(option, says):
    assert number(says, read(MANUAL)) == number(
        r'--%s=[^-]*\(default (\d+)\)' % option, run(HELPER, '-h')[1])


@pytest.mark.parametrize('options, status', [
    (['-h'], 0), (['-V'], 0), (['-T', 'help'], 0), (['--none'], 1),
    (['-k', 'relative'], 1), (['-k', '/nowhere/socket'], 1)])
def test_the_helper_ends_as_the_manual_says(options, status):
    assert re.search(r'^0 after.*\n(.*\n)*?1 if the helper could not start',
                     read(MANUAL), re.M)
    assert run(HELPER, *options)[0] == status


@pytest.mark.parametrize('arguments, status, meaning', [
    (['-h'], 0, ''), ([], 1, 'The command line makes no sense'),
    (['-k', '/nowhere/socket', 'keys', '/dev/null'], 2,
     'The helper cannot be reached')])
def test_the_client_ends_as_its_manual_says(arguments, status, meaning):
    assert run(CLIENT, *arguments)[0] == status
    assert '.It %d\n%s' % (status, meaning) in read(CLIENT_MANUAL)


def test_there_is_one_version():
    version, = re.findall(r'^VERSION = (.*)', read('Makefile'), re.M)
    for binary in HELPER, CLIENT:
        assert ' %s ' % version in run(binary, '-V')[1]
    for name, pattern in (
            ('contrib/debian/changelog', r'\Aprhelper \((.*)-'),
            ('contrib/alpine/APKBUILD', r'(?m)^pkgver=(.*)'),
            ('contrib/buildroot/prhelper.mk', r'_VERSION = (.*)'),
            ('CHANGELOG.md', r'(?m)^## \[(\d.*?)\]')):
        found = re.search(pattern, read(name))
        assert found and found[1] == version, name


@pytest.mark.parametrize('manual', [MANUAL, CLIENT_MANUAL])
def test_tables_fit_into_the_manual(manual):
    """man(1) breaks a cell that is wider than its column, or begins beyond the
    end of a line (groff puts 4 blanks between columns); and an item's name is
    not taken for one once more."""
    for widths, rows in re.findall(r'^\.Bl -column -offset 1n (.*)\n((?:.*\n)*?)'
                                   r'\.El', read(manual), re.M):
        columns = [len(width) for width in re.findall('"(.*?)"', widths)]
        assert 5 + 1 + sum(columns) + 4 * (len(columns) - 1) <= 78
        for row in re.findall(r'^\.It (.*)', rows, re.M):
            cells = row.replace(r'\(en', '-').split(' Ta ')
            assert len(cells) == len(columns), row
            for cell, width in zip(cells, columns):
                assert len(cell) <= width, (cell, width)
            assert not row.startswith('It '), row


def test_the_unit_leaves_a_worker_the_time_to_resume_a_map():
    """Other values of KillMode= than this have systemd kill all that is left
    when the main process has ended, see systemd.kill(5) and
    test_worker_resumes_the_map_when_the_helper_has_left()."""
    assert re.findall('^KillMode=(.*)', read(
        'contrib/systemd/qemu-pr-helper.service'), re.M) == ['process']


def test_recipes_ask_for_what_readme_says():
    oldest, = re.findall(r'oldest headers are those of (\d+)\.(\d+)\.',
                         read('README.md').replace('\n', ' '))
    wanted = re.findall(r'HEADERS_AT_LEAST_(\d+)_(\d+)',
                        read('contrib/buildroot/Config.in'))
    assert wanted and set(wanted) == {oldest}


def test_the_recipe_for_yocto_leaves_the_sources_where_they_are():
    """From Yocto 5.3 on S may not be below WORKDIR (do_qa_unpack() in its
    insane.bbclass), and up to 5.0 there is no UNPACKDIR; the default is right
    in all of them."""
    recipe = read('contrib/yocto/prhelper.bb')
    assert not re.findall('^S *=', recipe, re.M)
    assert 'file://prhelper-${PV}.tar.gz' in recipe     # has a folder ${BP}


# Numbers. -------------------------------------------------------------------

def test_a_session_has_so_many_system_calls():
    """Counted after the preprocessor has left out other machines' names."""
    needs('cc')
    text = run('cc', '-E', '-P', '-D_GNU_SOURCE', TOP + '/sandbox.c')[1]
    if os.uname().machine != 'x86_64':
        pytest.skip('the number is that of x86-64')
    calls = set(re.findall(r'\{ SESSION,\s+(\d+|__NR_\w+)', text))
    claimed = number(r'calls that a hostile client could reach \| all \| (\d+)',
                     read('README.md'))
    assert len(calls) == claimed
    assert number(r'a session has (\d+) system calls',
                  read('SECURITY.md')) == claimed
    assert number(r'; (\d+) system\n', read('README.md')) == claimed
    listed = re.search(r'A session can make these system calls only: (.*?)\n\(',
                       read(MANUAL), re.S)[1]
    names = re.sub(r'without an address|to\nthe main process|\.Dv \w+ [,;]|'
                   r'\bas\b|for Unix sockets|and to the trace file|'
                   r'to standard error|\band\b', '', listed)
    assert len(set(re.findall(r'[a-z]\w+', names))) == claimed, names


@pytest.mark.parametrize('document, pattern, source, where, unit', [
    ('README.md', r'(\d+) s; on a map', r'SG_IO_TIMEOUT = (\d+)', 'sg_io.h',
     1000),
    ('README.md', r'on a map (\d+) s', r'COMMAND_WITHIN \((\d+) \*',
     'multipath/multipath.h', 1),
    ('README.md', r'on a map 40 s, and (\d+) s', r'AFTERWARDS_WITHIN \((\d+) ',
     'multipath/multipath.h', 1),
    (MANUAL, r'A command has (\d+) seconds, and', r'COMMAND_WITHIN \((\d+) \*',
     'multipath/multipath.h', 1),
    (MANUAL, r'seconds, and (\d+) more to put', r'AFTERWARDS_WITHIN \((\d+) ',
     'multipath/multipath.h', 1),
    (MANUAL, r'After (\d+) seconds from its', r'WORKER_WITHIN \((\d+) ',
     'multipath/commands.h', 1),
    (MANUAL, r'when only (\d+) seconds\nare left', r'CHANGE_WITHIN \((\d+) ',
     'multipath/multipath.h', 1),
    (MANUAL, r'for (\d+) seconds, about 15', r'\bSUSPENDED_WITHIN \((\d+) ',
     'multipath/multipath.h', 1),
    (MANUAL, r'at most (\d+) paths', r'PATHS_MOST = (\d+)',
     'multipath/*.h', 1),
    (MANUAL, r'that while (\d+) wait', r'BACKLOG = (\d+)', 'listen.c', 1),
    ('SECURITY.md', r'and (\d+) may wait', r'BACKLOG = (\d+)', 'listen.c', 1),
    ('SECURITY.md', r'and (\d+) may wait', r'Backlog=(\d+)',
     'contrib/systemd/*.socket', 1)])
def test_limits_are_the_source_s(document, pattern, source, where, unit):
    assert number(pattern, read(document)) == number(
        source, sources(where)) // unit


def test_the_libraries_are_so_many():
    needs('ldd')
    claimed = row('README.md', 'shared libraries')
    lines = [line for line in run('ldd', HELPER)[1].splitlines()
             if '/' in line]
    assert [len(lines)] == [int(claimed[2])]
    if not os.path.exists(STATIC):
        pytest.skip('not installed: musl-tools')
    assert run('ldd', STATIC)[0] != 0 and claimed[3] == '0'


def test_the_binaries_are_as_small(tmp_path):
    """Within a tenth: compilers differ."""
    if os.uname().machine != 'x86_64':
        pytest.skip('the sizes are those of x86-64')
    needs('strip')
    claimed = row('README.md', 'binary, stripped, bytes')
    for binary, size in zip((HELPER, STATIC), claimed[2:]):
        if os.path.exists(binary):
            run('strip', '-o', str(tmp_path / 'stripped'), binary)
            real = os.path.getsize(tmp_path / 'stripped')
            assert abs(real - int(size)) < int(size) / 10, (binary, real)


@pytest.mark.parametrize('claim, drop_in', [
    (r'this one by (\d\.\d),', ''),
    (r'and by (\d\.\d) with `contrib/systemd/no-multipath.conf`',
     'no-multipath.conf')])
def test_systemd_finds_no_more_to_object_to(claim, drop_in, tmp_path):
    needs('systemd-analyze')
    unit = 'qemu-pr-helper.service'
    shutil.copy(TOP + '/contrib/systemd/' + unit, tmp_path)
    if drop_in:
        os.mkdir(tmp_path / (unit + '.d'))
        shutil.copy(TOP + '/contrib/systemd/' + drop_in,
                    tmp_path / (unit + '.d'))
    said = run('systemd-analyze', 'security', '--offline=yes', '--no-pager',
               unit, env=systemd_environment(tmp_path))[1]
    found = re.search(r'level for \S+: (\d\.\d)', said)
    if not found:
        pytest.skip('systemd-analyze: ' + said[-200:])
    claimed, = re.findall(claim, ' '.join(read('README.md').split()))
    assert float(found[1]) <= float(claimed)


def test_each_row_of_landlock_has_its_version_of_the_kernel():
    """Of its interface, that is: the source asks for the same."""
    versions = {'files': ('5.13', 'version < 1'),
                'TCP': ('6.7', 'version >= 4'),
                'signals': ('6.12', 'version >= 6')}
    source = read('sandbox.c')
    for name, (linux, condition) in versions.items():
        assert row('SECURITY.md', name)[0] == linux and condition in source


# Names. ---------------------------------------------------------------------

def targets():
    said = subprocess.run(['make', '-pRrq', ':'], cwd=TOP, text=True,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout
    return set(re.findall(r'^([\w-]+):(?!=)', said, re.M))


def test_the_targets_that_documents_name_are_there():
    needs('make')
    known = targets()
    assert 'check-docs' in known and 'check-doc' not in known
    for name in DOCUMENTS:
        text = read(name)
        commands = re.findall(r'`make ([^`]*)`', text) + re.findall(
            r'^ {4}(?:sudo )?make\b([^#\n]*)', text, re.M)
        for word in re.sub("'.*?'", '', ' '.join(commands)).split():
            if '=' not in word and re.match('[a-z]', word):
                assert word in known, (name, word)


def test_the_tests_that_documents_name_are_there():
    words = {word for name in DOCUMENTS for word in re.findall(
        r'\bT=(\w+)(?!\w*\.)', read(name)) if word not in ('NAME', 'test_')}
    assert len(words) > 1
    for word in words:
        assert run(TOP + '/tests/lib/find.sh', word)[0] == 0, word


def files():
    """All that is kept, as paths."""
    kept = []
    for directory, below, names in os.walk(TOP):
        below[:] = [name for name in below if name not in (
            '.git', 'build', '__pycache__', '.pytest_cache')]
        kept += [os.path.relpath(os.path.join(directory, name), TOP)
                 for name in names + below]
    return kept


def test_the_files_that_documents_name_are_there():
    kept = files()
    known = ['.h', '.c', '.md', '.sh', '.py', '.mk', '.conf', '.xml', '.yaml']
    for name in DOCUMENTS:
        for word in re.findall(r'`([\w./*-]+)`', read(name)):
            word = word.rstrip('/')
            is_path = (word.split('/')[0] in ('contrib', 'tests', 'man',
                                              'admin', 'multipath', '.ci')
                       and '/' in word)
            if not is_path and os.path.splitext(word)[1] not in known:
                continue
            if word.startswith(('/', 'build/')):
                continue
            assert any(fnmatch.fnmatch(path, word)
                       or fnmatch.fnmatch(path, '*/' + word)
                       for path in kept), (name, word)


def test_every_source_has_its_row():
    named = set(re.findall(r'`([\w./-]+\.[ch])`', read('CONTRIBUTING.md')))
    named |= {'multipath/' + name for name in named}
    kept = [path for path in files() if re.match(
        r'(multipath/|admin/)?[\w-]+\.c$|(multipath/)?[\w-]+\.h$', path)]
    assert [path for path in kept if path not in named] == []


def test_every_helper_of_tests_has_its_row():
    rows = set(re.findall(r'^\| `([\w.-]+)` \|', read('tests/README.md'), re.M))
    names = {name for name in os.listdir(TOP + '/tests/lib') if '.' in name}
    assert names - {'__pycache__'} == rows & names


# Messages. ------------------------------------------------------------------

def said_by_programs():
    """All that could be said, strings that follow each other put together."""
    text = sources('*.c', '*.h', 'multipath/*.[ch]', 'admin/*.c')
    text = text.replace('\\\n', '\n')
    return re.sub(r'\s+', ' ', re.sub(r'",?\s+"', '', text))


def test_the_messages_in_the_table_of_symptoms_are_the_helper_s():
    text = read('README.md')
    table = text[text.index('| in the guest, or in the log |'):]
    table = table[:table.index('\n\n')]
    said = said_by_programs()
    messages = [message for line in table.splitlines()
                for message in re.findall('`([^`]*)`', line.split('|')[1])]
    assert len(messages) > 10
    for message in messages[1:]:        # the first is the system's
        assert message in said, message


def test_the_messages_in_the_manual_are_the_helper_s():
    text = read(MANUAL)
    items = re.findall(r'^\.It (.*)', text[text.index(
        '.Ss Messages about'):text.index('.Sh SEE ALSO')], re.M)
    said = said_by_programs()
    assert len(items) > 30
    for item in items:
        for part in re.split(r'\.\.\.|\bsdX\b|\bK\b|\bN\b|\bNAME\b|\bPATH\b|'
                             r'\b31\b|\bCOMMAND\b|command refused: ', item):
            assert part.strip(' ;:,') in said, item


def test_each_message_about_maps_is_in_the_manual():
    """Of each the words up to a colon, a comma, or what is filled in."""
    manual = ' '.join(read(MANUAL).split())
    code = re.sub(r'"\s+"', '', sources('multipath/*.c'))
    messages = [text for call in re.findall(
        r'\b(?:log_(?:warning|error)|map_fail|paths_visit)\(([^;]*);', code)
        for text in re.findall(r'"((?:[^"\\]|\\.)*)"', call)]
    assert len(messages) > 30
    for message in messages:
        for part in re.split(r'[,:]|%[-.*\d]*l*[a-z]', message)[:3]:
            if len(part.split()) > 2:
                assert re.sub(" '?$| 0x$", '', part.strip()) in manual, message
                break


# Licences. ------------------------------------------------------------------

def test_each_file_has_a_licence_and_an_owner():
    """A line of its own, or REUSE.toml's; and the licence's text is there."""
    whole = read('REUSE.toml')
    patterns = re.findall(r'^path = "(.*)"', whole, re.M)
    assert patterns and 'SPDX-FileCopyrightText = "' in whole
    texts = {name[:-4] for name in os.listdir(TOP + '/LICENSES')}
    used = set(re.findall(r'^SPDX-License-Identifier = "(.*)"', whole, re.M))
    for path in files():
        if os.path.isfile(os.path.join(TOP, path)):
            found = re.findall(r'^[^\n"\']{0,8}SPDX-License-Identifier: (\S+)',
                               read(path)[:2000], re.M)
            used |= set(found)
            assert found or any(fnmatch.fnmatch(path, pattern)
                                for pattern in patterns), path
    assert used == texts == {'MIT'}
    assert read('LICENSES/MIT.txt') == read('LICENSE')
