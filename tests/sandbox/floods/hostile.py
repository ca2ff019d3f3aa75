# A server that does on each connection what it was told last, on port 9999: a line of JSON. It tells there, when asked,
# what became of the connections since.
from types import SimpleNamespace
now = SimpleNamespace(behave='peer.read()', svid=None, seen=[])


def obey(sock):
    order = json.loads(sock.makefile().readline())
    if 'behave' in order:
        for peer in now.seen:
            peer.close()
        now.behave, now.svid, now.seen = order['behave'], order.get('svid'), []
        sock.sendall(b'{}')
    else:
        sock.sendall(json.dumps([peer.told(**peer.more) for peer in now.seen]).encode())
    sock.close()


def serve(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if now.svid:
        sock = Tls(sock, now.svid, server=True)
    peer = Peer(sock)
    peer.more = {}
    rest = len(PREFACE)
    while rest:
        data = sock.recv(rest)
        if not data:
            return
        rest -= len(data)
    now.seen.append(peer)
    exec(now.behave, dict(globals(), peer=peer))


def listen(port, what):
    listener = socket.create_server(('0.0.0.0', port), backlog=1000)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=what, args=(sock,), daemon=True).start()


threading.Thread(target=listen, args=(9999, obey), daemon=True).start()
listen(int(sys.argv[1]), serve)
