"""The programs compile with the headers of Linux 4.14, and come out the same.

What newer headers have is taken away: system calls by their numbers, those
above statx(), the last one of Linux 4.14 on every architecture; and the rest,
of which no header says since when it is there, by name: it is what kernel.h
has. With the same numbers again, the compiler writes the same assembler.
"""
import glob
import os
import re
import shutil
import subprocess

import pytest

from helper import TOP

# Tables for unwinding number the functions of headers as well.
FLAGS = ['-std=c99', '-D_GNU_SOURCE', '-D_FILE_OFFSET_BITS=64', '-Wall',
         '-Wextra', '-Werror', '-DVERSION="0"', '-DLOCALSTATEDIR="/var"', '-S',
         '-fno-asynchronous-unwind-tables']
HEADERS = ['linux/audit.h', 'linux/seccomp.h', 'sys/socket.h', 'sys/syscall.h']
NEWER = ['AUDIT_ARCH_RISCV64', 'SO_PASSPIDFD']


class Compiler:
    def __init__(self, command, directory):
        self.command, self.dir = command, directory
        if command[0] == 'musl-gcc':    # as in the Makefile
            machine = self.run('-print-multiarch').strip()
            self.command = command + ['-idirafter', '/usr/include',
                                      '-idirafter', '/usr/include/' + machine]

    def run(self, *arguments, **options):
        done = subprocess.run([*self.command, *arguments], text=True, cwd=TOP,
                              capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def system_calls(self):
        """The number of each."""
        defined = self.run('-dM', '-E', '-include', 'sys/syscall.h', '-xc',
                           '/dev/null')
        names = re.findall(r'#define SYS_(\w+) ', defined)
        lines = self.run('-E', '-P', '-xc', '-', input='\n'.join(
            ['#include <sys/syscall.h>']
            + ['number "%s" SYS_%s' % (name, name) for name in names]))
        return {name: int(number) for name, number in re.findall(
            r'number "(\w+)" [^"\n]*?(\d+)\)*$', lines, re.M)}

    def old_headers(self):
        """The path of a file that takes away what is newer; and how much."""
        calls = self.system_calls()
        gone = NEWER + [prefix + name for name, number in calls.items()
                        if number > calls['statx']
                        for prefix in ('SYS_', '__NR_')]
        path = os.path.join(self.dir, 'old.h')
        with open(path, 'w') as f:
            f.writelines('#include <%s>\n' % header for header in HEADERS)
            f.writelines('#undef %s\n' % name for name in gone)
        return path, len(gone)

    def assembler(self, source, *flags):
        return self.run(*FLAGS, *flags, '-o', '-', source)


@pytest.fixture(params=['cc', 'clang', 'musl-gcc'])
def compiler(request, tmp_path):
    if shutil.which(request.param) is None:
        pytest.skip('not installed: ' + request.param)
    return Compiler([request.param], str(tmp_path))


def test_the_same_programs_come_of_old_headers(compiler):
    old, gone = compiler.old_headers()
    assert gone > 40
    sources = [path for folder in ('', 'admin/', 'multipath/')
               for path in glob.glob('%s/%s*.c' % (TOP, folder))]
    for source in sorted(sources):
        source = os.path.relpath(source, TOP)
        assert (compiler.assembler(source, '-include', old)
                == compiler.assembler(source)), source
