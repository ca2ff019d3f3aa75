//! Discovery as state of the world: a client that names all it wants in every request, and gets whole lists.

mod envoy;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tulle_xds_proto::envoy::config::cluster::v3::Cluster;
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tulle_xds_proto::envoy::config::listener::v3::Listener;
use tulle_xds_proto::envoy::config::route::v3::RouteConfiguration;
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::google::rpc;
use tulle_xds_proto::{ResourceType, unpack};

use super::harness::*;
use super::shop::*;
use crate::discovery::Limits;
use crate::store::service::AppProtocol;
use crate::store::{Event, Kind, Object};
use ResourceType::{Address, Cluster as Cds, Endpoints as Eds, Listener as Lds, Route as Rds};

const LATER: &str = "outbound|80||later.shop.svc.cluster.local";

/// A client of the state-of-the-world variant: one open stream.
struct Client {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
    wants: BTreeMap<ResourceType, Vec<String>>,
    /// By type: version and nonce of the last response that it accepted, and the nonce of the last one.
    accepted: BTreeMap<ResourceType, (String, String)>,
}

impl Client {
    async fn open(plane: &Plane) -> Self {
        Self::open_as(plane, &node_id("shop", "web-1", IP)).await
    }

    async fn open_as(plane: &Plane, id: &str) -> Self {
        let svid = plane.svid("shop", "web");
        let channel = plane.channel(Some(svid)).await.expect("it listens");
        let (requests, stream) = mpsc::channel(64);
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .stream_aggregated_resources(ReceiverStream::new(stream))
            .await;
        Self {
            requests,
            responses: responses.expect("let in").into_inner(),
            node: Some(node(id)),
            wants: BTreeMap::new(),
            accepted: BTreeMap::new(),
        }
    }

    /// Names all that it wants of a type from now on.
    async fn want(&mut self, kind: ResourceType, wanted: &[&str]) {
        self.wants.insert(kind, names(wanted));
        self.request(kind, None).await;
    }

    async fn request(&mut self, kind: ResourceType, error: Option<&str>) {
        let (version_info, response_nonce) = self.accepted.get(&kind).cloned().unwrap_or_default();
        let request = DiscoveryRequest {
            version_info,
            node: self.node.take(),
            resource_names: self.wants.get(&kind).cloned().unwrap_or_default(),
            type_url: kind.type_url().to_owned(),
            response_nonce,
            error_detail: error.map(|message| rpc::Status {
                code: 3,
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.expect("it reads");
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        let next = next.expect("it answers soon").expect("the stream goes on");
        next.expect("the stream goes on")
    }

    async fn accept(&mut self, response: &DiscoveryResponse) {
        let kind = kind_of(response);
        let (version, nonce) = (response.version_info.clone(), response.nonce.clone());
        self.accepted.insert(kind, (version, nonce));
        self.request(kind, None).await;
    }

    /// Refuses a response: it keeps the version that it had.
    async fn refuse(&mut self, response: &DiscoveryResponse, why: &str) {
        let kind = kind_of(response);
        self.accepted.entry(kind).or_default().1 = response.nonce.clone();
        self.request(kind, Some(why)).await;
    }

    /// The next response, accepted; as type and names.
    async fn take(&mut self) -> (&'static str, Vec<String>) {
        let response = self.next().await;
        self.accept(&response).await;
        summary(&response)
    }

    /// Asserts that nothing else is sent before the answer to a question asked now.
    async fn expect_silence(&mut self) {
        self.want(Address, &["/10.0.0.1"]).await;
        assert_eq!(self.take().await.0, "WDS");
        self.want(Address, &[]).await;
    }

    /// Wants everything that there is about Service `api`, and takes it.
    async fn settle(&mut self) {
        for (kind, wanted) in [
            (Cds, &[][..]),
            (Eds, &[CLUSTER]),
            (Lds, &[]),
            (Rds, &[CLUSTER]),
        ] {
            self.want(kind, wanted).await;
            self.take().await;
        }
    }
}

fn kind_of(response: &DiscoveryResponse) -> ResourceType {
    ResourceType::from_type_url(&response.type_url).expect("a known type")
}

fn summary(response: &DiscoveryResponse) -> (&'static str, Vec<String>) {
    let kind = kind_of(response);
    let name = |any: &Any| match kind {
        Cds => unpack::<Cluster>(any).map(|it| it.name),
        Eds => unpack::<ClusterLoadAssignment>(any).map(|it| it.cluster_name),
        Lds => unpack::<Listener>(any).map(|it| it.name),
        Rds => unpack::<RouteConfiguration>(any).map(|it| it.name),
        ResourceType::Secret => unpack::<Secret>(any).map(|it| it.name),
        Address => Ok("address".to_owned()),
    };
    let names = response.resources.iter().map(name);
    let names = names.collect::<Result<_, _>>().expect("of its type");
    (kind.short_name(), names)
}

async fn plane_and_client() -> (Plane, Client) {
    let mut plane = Plane::start().await;
    plane.pod("shop", "web-1", "web", IP);
    plane.writer.apply(vec![
        service("api", VIP),
        endpoints("api", &[[10, 0, 1, 1]]),
    ]);
    let client = Client::open(&plane).await;
    (plane, client)
}

/// Service `api` with other settings: its cluster, its listener and its routes all differ.
fn changed_service(sticky: bool) -> Event {
    let mut service = a_service("api", VIP);
    service.ports[0].protocol = AppProtocol::Detect;
    service.client_ip_affinity = sticky.then_some(Duration::from_secs(60));
    Event::Apply(Object::Service(service))
}

#[tokio::test]
async fn clusters_and_listeners_are_listed_whole_under_a_version_of_their_content() {
    let (mut plane, mut client) = plane_and_client().await;
    client.want(Cds, &[]).await;
    client.want(Lds, &[]).await;
    let clusters = client.next().await;
    assert_eq!(summary(&clusters), ("CDS", names(&[CLUSTER])));
    client.accept(&clusters).await;
    let listeners = client.next().await;
    assert_eq!(summary(&listeners), ("LDS", names(&["inbound", LISTENER])));
    client.accept(&listeners).await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let more = client.next().await;
    assert_eq!(summary(&more), ("CDS", names(&[CLUSTER, LATER])));
    assert_ne!(more.version_info, clusters.version_info);
    client.accept(&more).await;
    assert_eq!(
        client.take().await,
        ("LDS", names(&["inbound", LISTENER, "outbound|10.1.0.9|80"]))
    );
    plane.writer.apply(vec![delete(Kind::Service, "later")]);
    assert_eq!(client.take().await, ("LDS", names(&["inbound", LISTENER])));
    let less = client.next().await;
    assert_eq!(summary(&less), ("CDS", names(&[CLUSTER])));
    assert_eq!(less.version_info, clusters.version_info);
}

#[tokio::test]
async fn naming_nothing_means_all_until_something_was_named() {
    let (mut plane, mut client) = plane_and_client().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    client.want(Cds, &[]).await;
    assert_eq!(client.take().await, ("CDS", names(&[CLUSTER, LATER])));
    client.want(Cds, &[LATER]).await;
    assert_eq!(client.take().await, ("CDS", names(&[LATER])));
    client.want(Cds, &[]).await;
    client.expect_silence().await;
    plane.writer.apply(vec![service("third", [10, 1, 0, 10])]);
    client.expect_silence().await;
    client.want(Cds, &["*"]).await;
    let third = "outbound|80||third.shop.svc.cluster.local";
    assert_eq!(
        client.take().await,
        ("CDS", names(&[CLUSTER, LATER, third]))
    );
    // The other types have no "all".
    client.want(Eds, &[]).await;
    client.want(Rds, &["*"]).await;
    client.expect_silence().await;
}

#[tokio::test]
async fn routes_and_endpoints_are_sent_as_named_and_when_they_come_to_be() {
    let (mut plane, mut client) = plane_and_client().await;
    for kind in [Eds, Rds] {
        client.want(kind, &[CLUSTER]).await;
        assert_eq!(client.take().await, (kind.short_name(), names(&[CLUSTER])));
        client.want(kind, &[CLUSTER, LATER]).await;
        client.expect_silence().await;
    }
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    assert_eq!(client.take().await, ("EDS", names(&[LATER])));
    assert_eq!(client.take().await, ("RDS", names(&[LATER])));
    client.want(Eds, &[LATER]).await;
    // Once this is answered, the request before it has been read.
    client.expect_silence().await;
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 2]])]);
    client.expect_silence().await;
}

#[tokio::test]
async fn a_refusal_is_shown_and_the_next_version_is_sent() {
    let (mut plane, mut client) = plane_and_client().await;
    client.want(Cds, &[]).await;
    client.take().await;
    plane.writer.apply(vec![changed_service(true)]);
    let response = client.next().await;
    client.refuse(&response, "no such policy").await;
    client.expect_silence().await;
    let shown = plane.admin("/debug/proxies").await;
    assert!(shown.contains("no such policy"), "{shown}");
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_total_xds_rejects_total{type=\"CDS\"} 1"),
        "{metrics}"
    );
    plane.writer.apply(vec![changed_service(false)]);
    assert_eq!(client.take().await, ("CDS", names(&[CLUSTER])));
    client.expect_silence().await;
    let shown = plane.admin("/debug/proxies").await;
    assert!(!shown.contains("no such policy"), "{shown}");
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_total_xds_rejects_total{type=\"CDS\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_request_about_an_older_response_is_counted_and_changes_nothing() {
    let (mut plane, mut client) = plane_and_client().await;
    client.want(Eds, &[CLUSTER]).await;
    client.take().await;
    client.expect_silence().await;
    let older = client.accepted[&Eds].clone();
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 2]])]);
    let newer = client.next().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    client.accepted.insert(Eds, older);
    client.want(Eds, &[CLUSTER, LATER]).await;
    client.expect_silence().await;
    let metrics = plane.admin("/metrics").await;
    assert!(
        metrics.contains("tulle_xds_expired_nonce_total{type=\"EDS\"} 1"),
        "{metrics}"
    );
    // Once it has seen the last response it says again what it wants.
    client.accept(&newer).await;
    assert_eq!(client.take().await, ("EDS", names(&[LATER])));
}

#[tokio::test]
async fn a_client_that_names_the_last_response_again_is_no_straggler() {
    let (mut plane, mut client) = plane_and_client().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    client.want(Eds, &[CLUSTER]).await;
    client.take().await;
    // It has accepted the last response, and names it once more with each change of its mind.
    client.want(Eds, &[CLUSTER, LATER]).await;
    assert_eq!(client.take().await, ("EDS", names(&[LATER])));
    client.want(Eds, &[CLUSTER]).await;
    client.request(Eds, Some("refused after all")).await;
    client.expect_silence().await;
    let metrics = plane.admin("/metrics").await;
    assert!(
        !metrics.contains("tulle_xds_expired_nonce_total"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("tulle_total_xds_rejects_total"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_change_of_everything_comes_in_order_and_endpoints_follow_their_cluster() {
    let (mut plane, mut client) = plane_and_client().await;
    plane.writer.apply(vec![
        service("later", [10, 1, 0, 9]),
        endpoints("later", &[[10, 0, 2, 1]]),
    ]);
    client.settle().await;
    client.want(Eds, &[CLUSTER, LATER]).await;
    client.take().await;
    plane.writer.apply(vec![changed_service(true)]);
    assert_eq!(client.take().await, ("CDS", names(&[CLUSTER, LATER])));
    assert_eq!(
        client.take().await,
        ("EDS", names(&[CLUSTER])),
        "only those of the cluster that changed, although they did not"
    );
    assert_eq!(client.take().await.0, "LDS");
    assert_eq!(client.take().await, ("RDS", names(&[CLUSTER])));
    client.expect_silence().await;
}

#[tokio::test]
async fn a_change_of_one_type_sends_no_other() {
    let (mut plane, mut client) = plane_and_client().await;
    client.settle().await;
    plane
        .writer
        .apply(vec![endpoints("api", &[[10, 0, 1, 1], [10, 0, 1, 2]])]);
    assert_eq!(client.take().await, ("EDS", names(&[CLUSTER])));
    client.expect_silence().await;
}

#[tokio::test]
async fn a_cluster_that_goes_stays_listed_until_its_listener_is_gone() {
    let (mut plane, mut client) = plane_and_client().await;
    client.settle().await;
    plane.writer.apply(vec![
        delete(Kind::Service, "api"),
        delete(Kind::EndpointSlice, "api-1"),
        service("later", [10, 1, 0, 9]),
    ]);
    assert_eq!(client.take().await, ("CDS", names(&[CLUSTER, LATER])));
    assert_eq!(
        client.take().await,
        ("LDS", names(&["inbound", "outbound|10.1.0.9|80"]))
    );
    assert_eq!(client.take().await, ("CDS", names(&[LATER])));
    client.expect_silence().await;
}

#[tokio::test]
async fn a_client_that_reconnects_gets_all_of_it_again() {
    let (plane, mut client) = plane_and_client().await;
    client.settle().await;
    let (version, _) = client.accepted[&Cds].clone();
    drop(client);
    let mut client = Client::open(&plane).await;
    // It says what it has, and no nonce.
    client
        .accepted
        .insert(Cds, (version.clone(), String::new()));
    client.want(Cds, &[]).await;
    let again = client.next().await;
    assert_eq!(summary(&again), ("CDS", names(&[CLUSTER])));
    assert_eq!(again.version_info, version);
}

#[tokio::test]
async fn a_type_that_is_not_served_is_left_and_its_stream_goes_on() {
    let (mut plane, mut client) = plane_and_client().await;
    let unserved = |names: &[&str], node| DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        node,
        ..DiscoveryRequest::default()
    };
    // Also as the first request, which says who the client is.
    let first = unserved(&["rtds"], client.node.take());
    client.requests.send(first).await.expect("it reads");
    client.settle().await;
    let again = unserved(&[], None);
    client.requests.send(again).await.expect("it reads");
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 2]])]);
    assert_eq!(client.take().await, ("EDS", names(&[CLUSTER])));
    client.expect_silence().await;
    let counted = "tulle_xds_refused_requests_total{reason=\"unserved_type\"} 2\n";
    plane.measures(counted).await;
}

#[tokio::test]
async fn two_streams_of_one_pod_are_two_conversations() {
    let (mut plane, mut full) = plane_and_client().await;
    let mut delta = plane.proxy("shop", "web-1", "web", IP).await;
    full.want(Cds, &[]).await;
    assert_eq!(full.take().await, ("CDS", names(&[CLUSTER])));
    // Nothing of it is the other's: not the subscription, not the nonce, not the refusal.
    delta.expect_silence().await;
    delta.subscribe(Eds, &[CLUSTER]).await;
    assert_eq!(delta.take().await, ("EDS", names(&[CLUSTER]), vec![]));
    full.expect_silence().await;
    plane.writer.apply(vec![changed_service(true)]);
    let refused = full.next().await;
    full.refuse(&refused, "no such policy").await;
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 1, 2]])]);
    assert_eq!(delta.take().await, ("EDS", names(&[CLUSTER]), vec![]));
    full.expect_silence().await;
    // One ends, the other goes on.
    drop(delta);
    plane.writer.apply(vec![changed_service(false)]);
    assert_eq!(full.take().await, ("CDS", names(&[CLUSTER])));
    full.expect_silence().await;
}

#[tokio::test]
async fn a_first_request_of_a_type_counts_whatever_nonce_it_has() {
    let (_plane, mut client) = plane_and_client().await;
    let of_another_stream = ("1".to_owned(), "of-another-stream".to_owned());
    client.accepted.insert(Eds, of_another_stream);
    client.want(Eds, &[CLUSTER]).await;
    assert_eq!(client.take().await, ("EDS", names(&[CLUSTER])));
}

#[tokio::test]
async fn only_the_first_request_says_who_the_client_is() {
    let (mut plane, mut client) = plane_and_client().await;
    plane.pod("shop", "web-2", "web", [10, 0, 0, 7]);
    client.want(Lds, &["inbound"]).await;
    let own = client.next().await;
    client.accept(&own).await;
    // An Envoy of another pod, says the next one: it is still the first.
    let other = node_id("shop", "web-2", [10, 0, 0, 7]).replace("sidecar~", "envoy~");
    client.node = Some(node(&other));
    client.want(Lds, &["inbound", "outbound"]).await;
    let again = client.next().await;
    client.accept(&again).await;
    assert_eq!(
        summary(&again),
        ("LDS", names(&["inbound"])),
        "no listener of Envoy's"
    );
    let shown = plane.admin("/debug/proxies").await;
    assert!(
        shown.contains("web-1") && !shown.contains("web-2"),
        "{shown}"
    );
}
