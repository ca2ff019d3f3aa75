# A gRPC server that is its own mesh peer, without a sidecar. It says which pod answers, and whom the handshake proved.
# Arguments: `xds` and the bootstrap, or `tls` and the folder of its certificate and the folder of the roots.
import concurrent.futures, os, socket, sys

mode, first = sys.argv[1:3]
if mode == 'xds':
    os.environ['GRPC_XDS_BOOTSTRAP'] = first
import grpc


def field(number, text):
    data = text.encode()
    assert len(data) < 128, text
    return bytes([number << 3 | 2, len(data)]) + data


def unary(request, context):
    names = context.auth_context().get('x509_subject_alternative_name', [b'nobody'])
    peer = 'x-forwarded-client-cert: ' + ','.join(name.decode() for name in names)
    return field(5, socket.gethostname()) + field(8, peer)


def read(folder, name):
    with open(folder + '/' + name, 'rb') as file:
        return file.read()


if mode == 'xds':
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials())
else:
    pair = read(first, 'tls.key'), read(first, 'tls.crt')
    credentials = grpc.ssl_server_credentials([pair], read(sys.argv[3], 'ca.crt'), require_client_auth=True)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), xds=mode == 'xds')
handlers = {'Unary': grpc.unary_unary_rpc_method_handler(unary)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('tulle.app.v1.Echo', handlers),))
server.add_secure_port('0.0.0.0:9000', credentials)
server.start()
server.wait_for_termination()
