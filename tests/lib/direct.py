"""A SCSI command straight to the device by SG_IO: what the disk itself says.

The reference that the kernel tests compare the helper's answers with.  Must
never go through the helper, and shares no code with it.
"""
import ctypes
import fcntl

from prclient import Client, Reply

SG_IO = 0x2285
TO_DEV, FROM_DEV = -2, -3


class SgIoHdr(ctypes.Structure):
    """struct sg_io_hdr of <scsi/sg.h>"""
    _fields_ = [
        ('interface_id', ctypes.c_int), ('dxfer_direction', ctypes.c_int),
        ('cmd_len', ctypes.c_ubyte), ('mx_sb_len', ctypes.c_ubyte),
        ('iovec_count', ctypes.c_ushort), ('dxfer_len', ctypes.c_uint),
        ('dxferp', ctypes.c_void_p), ('cmdp', ctypes.c_void_p),
        ('sbp', ctypes.c_void_p), ('timeout', ctypes.c_uint),
        ('flags', ctypes.c_uint), ('pack_id', ctypes.c_int),
        ('usr_ptr', ctypes.c_void_p), ('status', ctypes.c_ubyte),
        ('masked_status', ctypes.c_ubyte), ('msg_status', ctypes.c_ubyte),
        ('sb_len_wr', ctypes.c_ubyte), ('host_status', ctypes.c_ushort),
        ('driver_status', ctypes.c_ushort), ('resid', ctypes.c_int),
        ('duration', ctypes.c_uint), ('info', ctypes.c_uint)]


def sg_io(fd, cdb, data=b'', length=0, cmd_len=10, timeout=30000):
    """The filled-in header, the sense bytes and the data buffer."""
    length = len(data) or length
    # LIO writes READ FULL STATUS beyond a buffer that is too short for it,
    # which is this process' own memory: leave room.
    buffer = ctypes.create_string_buffer(data, length + 4096)
    command = ctypes.create_string_buffer(cdb, 16)
    sense = ctypes.create_string_buffer(96)
    hdr = SgIoHdr(interface_id=ord('S'), cmd_len=cmd_len, mx_sb_len=96,
                  dxfer_direction=TO_DEV if data else FROM_DEV,
                  dxfer_len=length, dxferp=ctypes.addressof(buffer),
                  cmdp=ctypes.addressof(command),
                  sbp=ctypes.addressof(sense), timeout=timeout)
    fcntl.ioctl(fd, SG_IO, hdr)
    return hdr, sense.raw, buffer.raw[:length]


class Direct(Client):
    """prclient.Client's commands by name, without a helper between."""

    def __init__(self):
        pass

    def request(self, cdb, fd, data=b''):
        hdr, sense, buffer = sg_io(fd, cdb, data,
                                   length=cdb[7] << 8 | cdb[8])
        if hdr.status != 0 or data:
            return Reply(hdr.status, sense, b'')
        return Reply(hdr.status, bytes(96), buffer[:len(buffer) - hdr.resid])
