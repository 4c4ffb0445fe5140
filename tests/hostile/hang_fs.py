"""hang_fs.py OPCODE: a file that makes whoever asks it something wait.

Mounts a FUSE file system with one file in a mount namespace of its own, and
sends a descriptor of that file over standard input, which is a Unix socket.
Requests with that opcode are never answered, until this process is killed:
then the kernel ends them all, and no mount is left behind.

It must never outlive its parent, or mount anything that others see.
"""
import array
import ctypes
import os
import signal
import socket
import struct
import sys
import threading

LOOKUP, FORGET, GETATTR, OPEN, INIT = 1, 2, 3, 14, 26  # <linux/fuse.h>
CLONE_NEWNS, MS_REC, MS_PRIVATE, PR_SET_PDEATHSIG = 0x20000, 0x4000, 1 << 18, 1
libc = ctypes.CDLL(None, use_errno=True)


def must(result):
    if result < 0:
        sys.exit(os.strerror(ctypes.get_errno()))


def attributes(node):
    mode = 0o40777 if node == 1 else 0o100666
    return struct.pack('=QQQQQQIIIIIIIIII', node, 0, 0, 0, 0, 0, 0, 0, 0,
                       mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node):
    """The body of a reply; nothing that it says may be cached."""
    if opcode == INIT:
        return struct.pack('=IIIIHHI', 7, 31, 0, 0, 1, 1, 4096).ljust(64,
                                                                      b'\0')
    if opcode == LOOKUP:
        return struct.pack('=QQQQII', 2, 0, 0, 0, 0, 0) + attributes(2)
    if opcode == GETATTR:
        return struct.pack('=QII', 0, 0, 0) + attributes(node)
    if opcode == OPEN:
        return struct.pack('=QII', 1, 1, 0)
    return b''


def serve(device, hanging):
    while True:
        request = os.read(device, 1 << 17)
        opcode, unique, node = struct.unpack_from('=IQQ', request, 4)
        if opcode == FORGET or opcode == hanging and armed.is_set():
            continue
        body = answer(opcode, node)
        os.write(device, struct.pack('=IiQ', 16 + len(body), 0, unique) + body)


armed = threading.Event()
must(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
must(libc.unshare(CLONE_NEWNS))
must(libc.mount(b'none', b'/', None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
device = os.open('/dev/fuse', os.O_RDWR)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % device
must(libc.mount(b'hang', b'/mnt', b'fuse', ctypes.c_ulong(0), options))
threading.Thread(target=serve, args=(device, int(sys.argv[1])),
                 daemon=True).start()
file = os.open('/mnt/file', os.O_RDWR)
channel = socket.socket(fileno=0)
channel.sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                          array.array('i', [file]))])
os.close(file)      # a process that exits closes the device after its files
armed.set()
channel.send(b'.')
# The parent kills us. If it dies first, it hangs in the end of its files:
# until we give up, too.
channel.settimeout(60)
try:
    channel.recv(1)
finally:
    os._exit(0)
