"""An iSCSI target that is a disk of this machine, for iscsi-test-cu.

Most of its tests of reservations run over iSCSI only. So this gives it a target
for each device, named after that, whose commands go to the device by SG_IO,
and those of reservations through whatever the caller gives: a helper's client,
or the device itself. To the disk each device is an initiator.

This is the least that libiscsi takes: one connection for each session, no
digests, no authentication, all data with the command. It must never answer a
command by itself, and never be reachable but from this machine.
"""
import os
import socket
import struct
import threading

import prclient as pr
from direct import sg_io

NAME = 'iqn.2026-11.example:'
LONGEST = 262144
ANSWERS = {'HeaderDigest': 'None', 'DataDigest': 'None', 'InitialR2T': 'No',
           'ImmediateData': 'Yes', 'MaxBurstLength': LONGEST,
           'FirstBurstLength': LONGEST, 'MaxOutstandingR2T': 1,
           'MaxRecvDataSegmentLength': LONGEST, 'MaxConnections': 1,
           'DefaultTime2Wait': 0, 'DefaultTime2Retain': 0,
           'DataPDUInOrder': 'Yes', 'DataSequenceInOrder': 'Yes',
           'ErrorRecoveryLevel': 0, 'AuthMethod': 'None'}
(NOP_OUT, COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT) = range(7)
RESPONSE = 0x20         # an answer's opcode is the request's and this
DATA_IN = 0x25
FINAL, READ, WRITE, UNDERFLOW = 0x80, 0x40, 0x20, 0x02


class Session:
    def __init__(self, sock, reserve):
        self.stream = sock.makefile('rwb')
        self.reserve = reserve
        self.fd = None
        self.stat_sn = 1

    def receive(self):
        """The header of a PDU, and its data."""
        header = self.stream.read(48)
        if len(header) < 48:
            raise EOFError
        length = int.from_bytes(header[5:8], 'big')
        assert header[4] == 0, 'an additional header'
        return header, self.stream.read(length + -length % 4)[:length]

    def send(self, request, opcode, flags, data=b'', fields=(), status=0):
        """fields: (offset, bytes) of what not all answers have."""
        header = bytearray(48)
        header[0], header[1], header[3] = opcode, flags, status
        header[5:8] = len(data).to_bytes(3, 'big')
        header[16:20] = request[16:20]      # the task's tag
        command_sn, = struct.unpack('>I', request[24:28])
        if not request[0] & 0x40:           # immediate: it has no number
            command_sn += 1
        header[24:36] = struct.pack('>III', self.stat_sn, command_sn,
                                    command_sn + 31)
        for offset, value in fields:
            header[offset:offset + len(value)] = value
        self.stat_sn += 1
        self.stream.write(header + data + bytes(-len(data) % 4))
        self.stream.flush()

    def log_in(self, request, data):
        asked = dict(item.split('=', 1) for item in
                     data.decode().strip('\0').split('\0') if '=' in item)
        if 'TargetName' in asked:
            self.fd = pr.open_device(
                '/dev/' + asked['TargetName'].rsplit(':')[-1])
        answers = {key: ANSWERS[key] for key in asked if key in ANSWERS}
        answers.setdefault('TargetPortalGroupTag', 1)
        text = ''.join('%s=%s\0' % item for item in answers.items())
        self.send(request, RESPONSE | LOGIN, request[1], text.encode(),
                  [(8, request[8:14] + b'\0\1'), (36, bytes(2))])

    def command(self, request, data):
        flags, cdb = request[1], request[32:48]
        expected, = struct.unpack('>I', request[20:24])
        while flags & WRITE and len(data) < expected:
            more, part = self.receive()
            assert more[0] & 0x3f == DATA_OUT
            data += part
        length = expected if flags & READ else 0
        if cdb[0] in (0x5e, 0x5f):
            reply = self.reserve(cdb, self.fd, data)
        else:
            header, sense, buffer = sg_io(self.fd, cdb, data, length,
                                          cmd_len=16)
            assert header.host_status == 0
            reply = pr.Reply(header.status, sense,
                             buffer[:length - header.resid] if length else b'')
        payload = reply.payload[:length]
        left = length - len(payload)
        fields = [(44, struct.pack('>I', left))]
        flags = FINAL | (UNDERFLOW if left else 0)
        if reply.status == pr.CHECK_CONDITION:
            sense = struct.pack('>H', len(reply.sense)) + reply.sense
            self.send(request, RESPONSE | COMMAND, flags, sense, fields,
                      reply.status)
            return
        if payload:
            self.send(request, DATA_IN, FINAL, payload,
                      [(24, bytes(4)), (20, b'\xff' * 4)])
            self.stat_sn -= 1       # it had none: that is the answer's
        self.send(request, RESPONSE | COMMAND, flags, b'', fields,
                  reply.status)

    def run(self):
        try:
            while True:
                request, data = self.receive()
                opcode = request[0] & 0x3f
                if opcode == LOGIN:
                    self.log_in(request, data)
                elif opcode == COMMAND:
                    self.command(request, data)
                elif opcode == NOP_OUT:
                    self.send(request, RESPONSE, FINAL, data,
                              [(20, b'\xff' * 4)])
                else:
                    self.send(request, RESPONSE | opcode, FINAL)
                if opcode == LOGOUT:
                    return
        except (EOFError, ConnectionError):
            pass
        finally:
            if self.fd is not None:
                os.close(self.fd)
            self.stream.close()


class Target:
    """reserve(CDB, fd, data): a prclient.Reply, for reservations' commands."""

    def __init__(self, reserve):
        self.reserve = reserve
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.url = 'iscsi://127.0.0.1:%d/%s' % (
            self.listener.getsockname()[1], NAME)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock:
                session = Session(sock, self.reserve)
            threading.Thread(target=session.run, daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
