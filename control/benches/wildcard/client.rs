//! A client that asks as Envoy does, accepts everything, and counts what it gets.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, TrustBundle, control_channel,
};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::ResourceType::{self, Cluster, Endpoints, Listener, Route};
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::world::{NAMESPACE, client_ip};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Largest response that is read.
pub(crate) const MAX_RESPONSE: usize = 64 << 20;

/// A variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Delta,
    Full,
}

/// Issues certificates as the CA would.
pub(crate) struct Credentials {
    issuer: Issuer,
    bundle: TrustBundle,
}

impl Credentials {
    pub(crate) fn load(place: &Path) -> anyhow::Result<Self> {
        let state = std::fs::read_to_string(place.join("state/ca.json"))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let root = state["roots"][0]["secret"]
            .as_str()
            .context("it has a root")?;
        let issuer = Issuer::new(Root::from_pem(root)?, [], CsrPolicy::default())?;
        let bundle = issuer.bundle().clone();
        Ok(Self { issuer, bundle })
    }

    /// A connection of a client's own.
    pub(crate) fn channel(&self, address: SocketAddr, i: usize) -> anyhow::Result<Channel> {
        let domain = self.issuer.root().trust_domain();
        let id = SpiffeId::new(domain, NAMESPACE, &format!("web-{i}"))?;
        let svid = self.issuer.issue_svid(&IssueRequest::new(&id))?;
        let identity = Identity::new(svid, self.bundle.clone());
        Ok(control_channel(
            &address.to_string(),
            CONTROL_DNS_NAME,
            identity,
            None,
        )?)
    }
}

/// Responses and resources of each type, in the order of [`ResourceType::ALL`].
type Counts = [(usize, usize); ResourceType::ALL.len()];

/// One client.
pub(crate) struct Client {
    counts: watch::Receiver<Counts>,
    begun: Counts,
}

impl Client {
    /// Connects and asks for everything.
    pub(crate) fn start(
        variant: Variant,
        address: SocketAddr,
        credentials: &Credentials,
        (i, services): (usize, usize),
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let client = AggregatedDiscoveryServiceClient::new(credentials.channel(address, i)?);
        let client = client.max_decoding_message_size(MAX_RESPONSE);
        let (sender, counts) = watch::channel(Counts::default());
        let node = node("envoy", i);
        let all = (0..services).map(|i| format!("outbound|80||s{i}.{NAMESPACE}.svc.cluster.local"));
        let asks = [
            (Cluster, Vec::new()),
            (Endpoints, all.clone().collect()),
            (Listener, Vec::new()),
            (Route, all.collect()),
        ];
        tasks.spawn_connection("client", async move {
            let ended = match variant {
                Variant::Delta => delta(client, node, asks, sender).await,
                Variant::Full => full(client, node, asks, sender).await,
            };
            if let Err(error) = ended {
                eprintln!("client {i}: {error:#}");
            }
        });
        Ok(Self {
            counts,
            begun: Counts::default(),
        })
    }

    /// Waits until it has so many endpoints and route tables, and clusters and listeners beside them.
    pub(crate) async fn settled(&mut self, services: usize) -> anyhow::Result<()> {
        let all = |counts: &Counts| {
            [Cluster, Endpoints, Listener, Route]
                .into_iter()
                .all(|kind| counts[place(kind)].1 >= services)
        };
        self.wait(all).await
    }

    /// From now on it listens for news.
    pub(crate) fn begin(&mut self) {
        self.begun = *self.counts.borrow_and_update();
    }

    /// Waits until it has heard something of these types since [`Client::begin`].
    pub(crate) async fn hears(&mut self, kinds: &[ResourceType]) -> anyhow::Result<()> {
        let begun = self.begun;
        let heard = |counts: &Counts| {
            kinds
                .iter()
                .all(|kind| counts[place(*kind)].0 > begun[place(*kind)].0)
        };
        self.wait(heard).await
    }

    async fn wait(&mut self, until: impl Fn(&Counts) -> bool) -> anyhow::Result<()> {
        let waiting = self.counts.wait_for(|counts| until(counts));
        let counts = timeout(PATIENCE, waiting).await;
        counts.map_err(|_| anyhow::anyhow!("nothing comes: {:?}", self.begun))??;
        Ok(())
    }
}

/// Who a client says it is.
pub(crate) fn node(kind: &str, i: usize) -> Node {
    let ip = client_ip(i);
    Node {
        id: format!("{kind}~{ip}~web-{i}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
        ..Node::default()
    }
}

fn place(kind: ResourceType) -> usize {
    ResourceType::ALL
        .iter()
        .position(|other| *other == kind)
        .unwrap_or_default()
}

type Asks = [(ResourceType, Vec<String>); 4];
type Ads = AggregatedDiscoveryServiceClient<Channel>;

async fn delta(
    mut client: Ads,
    node: Node,
    asks: Asks,
    counts: watch::Sender<Counts>,
) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(16);
    for (kind, resource_names_subscribe) in asks {
        let request = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    let responses = client
        .delta_aggregated_resources(ReceiverStream::new(stream))
        .await?;
    let mut responses = responses.into_inner();
    while let Some(response) = responses.message().await? {
        count(&counts, &response.type_url, response.resources.len())?;
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    Ok(())
}

async fn full(
    mut client: Ads,
    node: Node,
    asks: Asks,
    counts: watch::Sender<Counts>,
) -> anyhow::Result<()> {
    let (requests, stream) = mpsc::channel(16);
    let wants = asks.clone();
    for (kind, resource_names) in asks {
        let request = DiscoveryRequest {
            node: Some(node.clone()),
            type_url: kind.type_url().to_owned(),
            resource_names,
            ..DiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    let responses = client
        .stream_aggregated_resources(ReceiverStream::new(stream))
        .await?;
    let mut responses = responses.into_inner();
    while let Some(response) = responses.message().await? {
        count(&counts, &response.type_url, response.resources.len())?;
        let named = wants
            .iter()
            .find(|(kind, _)| kind.type_url() == response.type_url);
        let request = DiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            version_info: response.version_info,
            resource_names: named.map(|(_, names)| names.clone()).unwrap_or_default(),
            ..DiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    Ok(())
}

fn count(counts: &watch::Sender<Counts>, type_url: &str, resources: usize) -> anyhow::Result<()> {
    let kind = ResourceType::from_type_url(type_url);
    ensure!(kind.is_some(), "{type_url}");
    counts.send_modify(|counts| {
        if let Some(kind) = kind {
            let (responses, all) = &mut counts[place(kind)];
            *responses += 1;
            *all += resources;
        }
    });
    Ok(())
}
