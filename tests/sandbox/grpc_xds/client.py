# A gRPC client that finds its servers by xDS. Arguments: bootstrap and targets with commas between, each of which has a
# channel. Each line of input asks for calls on each: {"calls": 10, "metadata": {}, "method": "/pkg.Service/Method"}; a line answers.
import json, os, sys

os.environ['GRPC_XDS_BOOTSTRAP'] = sys.argv[1]
import grpc
import grpc.experimental


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        value, at = varint(data, at)
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        yield key >> 3, value


def count(counts, key):
    counts[key] = counts.get(key, 0) + 1


credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
channels = [grpc.secure_channel('xds:///' + target, credentials) for target in sys.argv[2].split(',')]
for line in sys.stdin:
    ask = json.loads(line)
    calls = [channel.unary_unary(ask['method']) for channel in channels]
    out = {'pods': {}, 'versions': {}, 'peers': {}, 'errors': {}, 'details': ''}
    for call in calls * ask['calls']:
        try:
            reply = call(b'', timeout=20, metadata=list(ask['metadata'].items()))
        except grpc.RpcError as error:
            count(out['errors'], error.code().name)
            out['details'] = error.details()
            continue
        for number, value in fields(reply):
            text = value.decode() if isinstance(value, bytes) else ''
            if number == 4:
                count(out['versions'], text)
            elif number == 5:
                count(out['pods'], text)
            elif number == 8 and text.startswith('x-forwarded-client-cert: '):
                count(out['peers'], text.split(': ', 1)[1])
    print(json.dumps(out), flush=True)
