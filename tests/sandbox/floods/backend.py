# An app on HTTP/2. GET / is answered, GET /big with a mebibyte as far as windows allow, GET /index.html never, and POST
# with what became of the latter.
hung, cancelled, served = set(), set(), 0
# How /big looks in Huffman's code, which everybody uses.
BIG = b'\x83\x62\x33\x4d'
lock = threading.Lock()


def fields(block):
    """Indices of the table that a head is made of. Values that are written out have none."""
    at, found = 0, []
    while at < len(block):
        first = block[at]
        bits = 7 if first & 0x80 else 6 if first & 0x40 else 5 if first & 0x20 else 4
        index, at = first & ((1 << bits) - 1), at + 1
        if index == (1 << bits) - 1:
            shift = 0
            while True:
                index, more, at, shift = index + ((block[at] & 127) << shift), block[at] & 128, at + 1, shift + 7
                if not more:
                    break
        found.append(index if first & 0x80 else None)
        if first & 0x80 or first & 0xe0 == 0x20:
            continue
        for _ in range(1 if index else 2):
            length, shift = block[at] & 127, 0
            at += 1
            if length == 127:
                while True:
                    length, more, at, shift = length + ((block[at] & 127) << shift), block[at] & 128, at + 1, shift + 7
                    if not more:
                        break
            at += length
    return found


class Flow:
    """What windows allow."""

    def __init__(self, peer):
        self.peer, self.window, self.first = peer, 65535, 65535
        self.windows, self.left = {}, {}

    def begin(self, stream):
        self.windows[stream], self.left[stream] = self.first, 1 << 20
        self.pump(stream)

    def note(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack('>HI', payload[at:at + 6])
                if name == 4:
                    self.first = value
        elif kind == RST:
            self.left.pop(stream, None)
        elif kind == WINDOW:
            by = struct.unpack('>I', payload)[0]
            if stream:
                if stream in self.windows:
                    self.windows[stream] += by
                self.pump(stream)
            else:
                self.window += by
                for one in list(self.left):
                    self.pump(one)

    def pump(self, stream):
        while stream in self.left:
            piece = min(self.left[stream], self.windows[stream], self.window, 16384)
            if piece <= 0:
                return
            self.left[stream] -= piece
            self.windows[stream] -= piece
            self.window -= piece
            last = not self.left[stream]
            self.peer.send(frame(DATA, END_STREAM if last else 0, stream, bytes(piece)))
            if last:
                del self.left[stream]


def serve(sock):
    global served
    peer = Peer(sock)
    own, flow = set(), Flow(peer)

    def on(kind, flags, stream, payload):
        global served
        flow.note(kind, flags, stream, payload)
        if kind == HEADERS and BIG in payload:
            peer.send(frame(HEADERS, END_HEADERS, stream, b'\x88'))
            flow.begin(stream)
        elif kind == HEADERS:
            at = fields(payload)
            with lock:
                if 5 in at:
                    hung.add((id(peer), stream))
                    own.add(stream)
                    return
                served += 1
                counts = dict(hung=len(hung), cancelled=len(cancelled))
            if 3 in at:
                peer.send(answer(stream, json.dumps(counts).encode()))
            else:
                peer.send(answer(stream))
        elif kind == RST and stream in own:
            with lock:
                cancelled.add((id(peer), stream))
    peer.on = on
    peer.send(settings(table=0, streams=100000))
    rest = PREFACE
    while rest:
        data = sock.recv(len(rest))
        if not data:
            return
        rest = rest[len(data):]
    peer.read()
    with lock:
        cancelled.update((id(peer), stream) for stream in own)
    kept.append(peer)


kept = []
listener = socket.create_server(('0.0.0.0', 8080), backlog=1000)
while True:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
