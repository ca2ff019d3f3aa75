# An app on HTTP/2. GET / is answered, GET /index.html never, and POST with what became of the latter.
hung, cancelled, served = set(), set(), 0
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


def serve(sock):
    global served
    peer = Peer(sock)
    own = set()

    def on(kind, flags, stream, payload):
        global served
        if kind == HEADERS:
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
        elif kind == RST:
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
