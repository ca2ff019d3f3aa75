//! gRPC through two sidecars.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::manifests::FILES;
use tulle_tests::{Arena, Mesh, app, eventually, gate};

use crate::foreign::script;
use crate::proof::encrypted_requests;

tulle_tests::cases! {
    a_unary_call_says_who_answered;
    load_over_grpc_loses_nothing;
    grpcio_calls_grpcio_in_all_four_ways ["grpcio"];
}

/// A server without generated code: messages are bytes.
const SERVER: &str = r"
import concurrent.futures, grpc
def unary(request, context):
    context.set_trailing_metadata((('x-end', '42'),))
    return request.upper()
def failing(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'not today')
def server_stream(request, context):
    for number in range(int(request)):
        yield b'%d' % number
def client_stream(requests, context):
    return b'+'.join(requests)
def both(requests, context):
    for request in requests:
        yield request[::-1]
handlers = {
    'Unary': grpc.unary_unary_rpc_method_handler(unary),
    'Failing': grpc.unary_unary_rpc_method_handler(failing),
    'ServerStream': grpc.unary_stream_rpc_method_handler(server_stream),
    'ClientStream': grpc.stream_unary_rpc_method_handler(client_stream),
    'Both': grpc.stream_stream_rpc_method_handler(both),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('test.Echo', handlers),))
server.add_insecure_port('0.0.0.0:9000')
server.start()
server.wait_for_termination()
";

/// In `both`, each message is sent after the answer to the one before: neither sidecar may hold anything back.
const CLIENT: &str = r"
import grpc, queue
channel = grpc.insecure_channel('echo:9000')
answer, call = channel.unary_unary('/test.Echo/Unary').with_call(b'hello', timeout=10)
print('unary', answer.decode(), dict(call.trailing_metadata())['x-end'])
try:
    channel.unary_unary('/test.Echo/Failing')(b'', timeout=10)
except grpc.RpcError as error:
    print('failing', error.code().name, error.details())
print('server', b','.join(channel.unary_stream('/test.Echo/ServerStream')(b'5', timeout=10)).decode())
print('client', channel.stream_unary('/test.Echo/ClientStream')(iter([b'a', b'b', b'c']), timeout=10).decode())
requests = queue.Queue()
answers = channel.stream_stream('/test.Echo/Both')(iter(requests.get, None), timeout=10)
got = []
for word in (b'one', b'two', b'three'):
    requests.put(word)
    got.append(next(answers).decode())
requests.put(None)
print('both', ','.join(got), len(list(answers)))
";

async fn a_unary_call_says_who_answered(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh
        .apply("grpc-unary", app("ledger").grpc(9000) + app("client"))
        .await?;
    let answer = arena
        .app_call("client", &["grpc://ledger:9000", "--data", "hi"])
        .await?;
    ensure!(
        answer["message"] == "hi" && answer["name"] == "ledger",
        "{answer}"
    );
    encrypted_requests(&arena, "ledger", 1).await
}

async fn load_over_grpc_loses_nothing(mesh: &Mesh) -> anyhow::Result<()> {
    let ledger = app("ledger").grpc(9000).replicas(2);
    let arena = mesh.apply("grpc-load", ledger + app("client")).await?;
    let summary = arena
        .load("client", "grpc://ledger:9000", 50, 1.0, &[])
        .await?;
    ensure!(
        summary.failed == 0 && summary.ok == summary.sent,
        "{summary:?}"
    );
    ensure!(
        summary.pods.len() == 2,
        "calls on one connection went to one pod: {summary:?}"
    );
    Ok(())
}

async fn grpcio_calls_grpcio_in_all_four_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let python = gate::python().display().to_string();
    let server = app("echo")
        .command([
            python.clone(),
            "-B".to_owned(),
            format!("{FILES}/server.py"),
        ])
        .file("server.py", SERVER)
        .port("grpc", 9000, 9000);
    let arena = mesh.apply("grpc-grpcio", server + app("client")).await?;
    let out = arena
        .exec("client", script(&python, CLIENT, &[]))
        .await?
        .ok()?;
    let expected = "unary HELLO 42\nfailing FAILED_PRECONDITION not today\nserver 0,1,2,3,4\nclient a+b+c\n\
        both eno,owt,eerht 0\n";
    ensure!(out == expected, "{out}");
    encrypted_requests(&arena, "echo", 5).await?;
    for (pod, reporter) in [("client", "source"), ("echo", "destination")] {
        counted_messages(&arena, pod, reporter).await?;
    }
    Ok(())
}

/// Both ends count what the five calls sent: 1, 1, 1, 3 and 3 messages, answered by 1, 0, 5, 1 and 3.
async fn counted_messages(arena: &Arena<'_>, pod: &str, reporter: &str) -> anyhow::Result<()> {
    eventually(Duration::from_secs(5), async || {
        let metrics = arena.metrics(pod).await?;
        let labels = [("reporter", reporter), ("request_protocol", "grpc")];
        let counted = ["request", "response"]
            .map(|side| metrics.sum(&format!("istio_{side}_messages_total"), &labels));
        ensure!(counted == [9.0, 10.0], "{pod} counted {counted:?}");
        Ok(())
    })
    .await
}
