"""HTTP/2 frames written by hand, so that every rule can be broken, and a peer that counts what it is answered.

Runs with nothing but Python's own library. What runs it appends its own code, and prints one line of JSON.
"""
import json, os, socket, ssl, struct, sys, tempfile, threading, time

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PRIORITIZED = 1, 1, 4, 32
PREFACE = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
PATIENCE = 20


def frame(kind, flags=0, stream=0, payload=b''):
    return struct.pack('>I', len(payload))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + payload


def number(value, bits, pattern):
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([pattern | value])
    out, value = [pattern | limit], value - limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes(out + [value])


def text(value):
    return number(len(value), 7, 0) + value


def literal(name, value):
    """Without indexing, without Huffman."""
    return b'\x00' + text(name) + text(value)


def remembered(name, value):
    """With indexing: 62 means it from then on, until another one is remembered."""
    return b'\x40' + text(name) + text(value)


def indexed(index):
    return number(index, 7, 0x80)


def head(path=b'/', method=b'GET', more=b''):
    """:method, :scheme http, :authority, :path."""
    return b'\x02' + text(method) + b'\x86' + b'\x01' + text(b'web') + b'\x04' + text(path) + more


def settings(**values):
    ids = dict(table=1, push=2, streams=3, window=4, frame=5, headers=6)
    return frame(SETTINGS, payload=b''.join(struct.pack('>HI', ids[k], v) for k, v in values.items()))


def get(stream, path=b'/', more=b'', end=True):
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, head(path, more=more))


def reset(stream, code=8):
    return frame(RST, stream=stream, payload=struct.pack('>I', code))


def grow(stream, by):
    return frame(WINDOW, stream=stream, payload=struct.pack('>I', by))


def answer(stream, body=b'ok\n', status=b'\x88'):
    return frame(HEADERS, END_HEADERS, stream, status) + frame(DATA, END_STREAM, stream, body)


class Peer:
    """One end of a connection, and what has come over it so far. It answers SETTINGS and PING only if told to."""

    def __init__(self, sock, polite=True):
        self.sock, self.polite = sock, polite
        self.seen = {}
        self.goaway = self.closed = None
        self.resets, self.ended, self.heads = {}, {}, {}
        self.opened, self.data, self.acks, self.pongs, self.broken = [], 0, 0, 0, None
        self.on = lambda kind, flags, stream, payload: None
        self.buffer = b''
        self.lock = threading.Lock()
        self.news = threading.Condition()

    def send(self, data):
        """False: the other end is gone."""
        try:
            with self.lock:
                self.sock.sendall(data)
            return True
        except (OSError, ssl.SSLError) as error:
            self.broken = self.broken or type(error).__name__
            return False

    def push(self, data, seconds=0.5):
        """Sends as much as the other end takes before it stops taking any for that long. How much that was."""
        self.sock.settimeout(seconds)
        sent, view = 0, memoryview(data)
        try:
            while sent < len(data):
                sent += self.sock.send(view[sent:sent + 65536])
        except (TimeoutError, socket.timeout):
            pass
        except OSError as error:
            self.broken = self.broken or type(error).__name__
        self.sock.settimeout(None)
        return sent

    def close(self):
        """From whichever thread: whoever reads learns of it."""
        try:
            getattr(self.sock, 'sock', self.sock).shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def feed(self, data):
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= 9:
            length = int.from_bytes(self.buffer[at:at + 3], 'big')
            if len(self.buffer) - at < 9 + length:
                break
            kind, flags = self.buffer[at + 3], self.buffer[at + 4]
            stream = int.from_bytes(self.buffer[at + 5:at + 9], 'big') & 0x7fffffff
            self.take(kind, flags, stream, self.buffer[at + 9:at + 9 + length])
            at += 9 + length
        self.buffer = self.buffer[at:]

    def take(self, kind, flags, stream, payload):
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if kind == SETTINGS and flags & ACK:
            self.acks += 1
        elif kind == SETTINGS and self.polite:
            self.send(frame(SETTINGS, ACK))
        elif kind == PING and flags & ACK:
            self.pongs += 1
        elif kind == PING and self.polite:
            self.send(frame(PING, ACK, payload=payload))
        elif kind == GOAWAY:
            last, code = struct.unpack('>II', payload[:8])
            self.goaway = dict(last=last, code=code, debug=payload[8:].decode('latin1'))
        elif kind == RST:
            self.resets[stream] = struct.unpack('>I', payload)[0]
        elif kind == DATA:
            self.data += len(payload)
        elif kind == HEADERS:
            self.opened.append(stream)
            self.heads[stream] = payload.hex()
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.ended[stream] = True
        self.on(kind, flags, stream, payload)
        with self.news:
            self.news.notify_all()

    def read(self):
        """Until the end."""
        try:
            while data := self.sock.recv(1 << 16):
                self.feed(data)
            self.closed = 'end'
        except (TimeoutError, socket.timeout):
            self.closed = None
        except (OSError, ssl.SSLError) as error:
            self.closed = type(error).__name__
        with self.news:
            self.news.notify_all()

    def listen(self):
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        return self

    def until(self, what, seconds=PATIENCE):
        """Whether it became so."""
        with self.news:
            return self.news.wait_for(lambda: what(self), seconds)

    def gone(self, seconds=PATIENCE):
        return self.until(lambda it: it.closed, seconds)

    def told(self, **more):
        return dict(goaway=self.goaway, closed=self.closed, broken=self.broken, data=self.data,
                    acks=self.acks, pongs=self.pongs, heads=len(self.heads), ended=len(self.ended),
                    resets=len(self.resets), codes=sorted(set(self.resets.values())), seen=self.seen, **more)


class Tls:
    """TLS on a socket that one thread reads while another writes, as Python's own does not allow."""

    def __init__(self, sock, svid, server=False):
        self.sock, self.lock, self.order = sock, threading.Lock(), threading.Lock()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(['tulle-h2'])
        with tempfile.NamedTemporaryFile('w', dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as file:
            file.write(svid)
            file.flush()
            context.load_cert_chain(file.name)
        self.coming, self.going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.coming, self.going, server_side=server)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self.coming.write(self.sock.recv(1 << 16) or self.coming.write_eof() or b'')
        self.flush()

    def flush(self):
        with self.order:
            with self.lock:
                data = self.going.read()
            self.sock.sendall(data)

    def sendall(self, data):
        for at in range(0, len(data), 1 << 16):
            self.send(data[at:at + (1 << 16)])

    def send(self, data):
        with self.lock:
            self.tls.write(data)
        self.flush()
        return len(data)

    def recv(self, size):
        while True:
            try:
                with self.lock:
                    return self.tls.read(size)
            except ssl.SSLWantReadError:
                data = self.sock.recv(1 << 16)
                if not data:
                    return b''
                with self.lock:
                    self.coming.write(data)
            except ssl.SSLZeroReturnError:
                return b''

    def settimeout(self, seconds):
        self.sock.settimeout(seconds)

    def close(self):
        self.sock.close()


def connect(to, polite=True, receive=None, greeting=None, **values):
    """A client: its preface and its settings are out. `receive`: size of the buffer for what it does not read."""
    sock = socket.socket()
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.settimeout(PATIENCE)
    sock.connect((to['host'], to['port']))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if to.get('svid'):
        sock = Tls(sock, to['svid'])
    sock.settimeout(None)
    peer = Peer(sock, polite)
    peer.send(PREFACE + (greeting if greeting is not None else settings(**values)))
    return peer
