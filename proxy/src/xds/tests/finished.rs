//! What a sidecar makes of the word that its pod has finished.

use tokio::sync::oneshot;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tulle_xds_proto::{ENDS_WITH_POD, POD_FINISHED, POD_TRAILER};

use super::*;

fn end(word: &'static str) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(POD_TRAILER, MetadataValue::from_static(word));
    Status::with_metadata(Code::FailedPrecondition, "the end", trailers)
}

/// A client of a server in memory, in the middle of its first stream, and what it is told of its pod.
async fn start(
    tasks: &Tasks,
    listens: bool,
) -> (ScriptedServer, Session, oneshot::Receiver<()>, XdsStatus) {
    let mut server = ScriptedServer::in_memory(tasks);
    let (_, writer) = Config::new(Snapshot::default());
    let mut client = client(server.channel.clone(), writer, None);
    let status = client.status();
    let (tell, finished) = oneshot::channel();
    if listens {
        client = client.ending_with_pod(tell);
    }
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let mut session = server.session().await;
    let first = session.request().await;
    let node = first.node.expect("it says who it is");
    let says = node.client_features.iter().any(|it| it == ENDS_WITH_POD);
    assert_eq!(says, listens);
    (server, session, finished, status)
}

#[tokio::test(start_paused = true)]
async fn it_is_said_once_and_no_other_stream_is_opened() {
    let tasks = Tasks::new();
    let (mut server, session, finished, status) = start(&tasks, true).await;
    session.fail(end(POD_FINISHED)).await;
    finished.await.expect("the pod has finished");
    assert!(!status.report().connected);
    assert_eq!(status.report().last_error, None, "that is no failure");
    let hour = std::time::Duration::from_secs(3600);
    let again = tokio::time::timeout(hour, server.session_within(2 * hour));
    assert!(again.await.is_err(), "it has nothing more to ask");
}

#[tokio::test(start_paused = true)]
async fn any_other_end_is_one_to_come_back_from() {
    let tasks = Tasks::new();
    let (mut server, mut session, mut finished, _) = start(&tasks, true).await;
    let ends = [
        end("running"),
        Status::failed_precondition(POD_FINISHED),
        Status::unavailable("restarting"),
    ];
    for status in ends {
        session.fail(status).await;
        session = server.session().await;
        assert!(finished.try_recv().is_err());
    }
    // It was away when it happened.
    session.fail(end(POD_FINISHED)).await;
    finished.await.expect("the pod has finished");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_is_not_believed_is_called_again() {
    let tasks = Tasks::new();
    let (mut server, session, _, status) = start(&tasks, false).await;
    session.fail(end(POD_FINISHED)).await;
    server.session().await;
    assert!(status.report().last_error.is_some());
}
