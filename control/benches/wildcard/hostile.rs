//! A client that asks for everything over and over again, and what another client notices of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tulle_runtime::tasks::Tasks;
use tulle_xds_proto::ResourceType::{self, Cluster, Listener};
use tulle_xds_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use crate::client::{Credentials, MAX_RESPONSE, node};
use crate::world::client_ip;

/// How long each row is measured.
const FOR: Duration = Duration::from_secs(10);
/// Pause of the well-behaved client between its questions.
const PAUSE: Duration = Duration::from_millis(20);
/// As many streams as a pod may have.
const STREAMS: usize = 16;
/// Names in one request.
const NAMES: usize = 5_000;

/// What the hostile client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// There is none.
    None,
    /// `*`, and back.
    Everything,
    /// Other names each time.
    Names,
}

/// Measures each attack; `cpu` says what the control plane has used, in milliseconds.
pub(crate) async fn measure(
    address: SocketAddr,
    place: &Path,
    cpu: fn() -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let credentials = Credentials::load(place)?;
    println!("a question of a client beside {STREAMS} streams of another, milliseconds:");
    for attack in [Attack::None, Attack::Everything, Attack::Names] {
        let tasks = Tasks::new();
        let behaved = Stream::open(address, &credentials, 0, "sidecar").await?;
        let mut streams = Vec::new();
        for _ in 0..if attack == Attack::None { 0 } else { STREAMS } {
            streams.push(Stream::open(address, &credentials, attack as usize, "envoy").await?);
        }
        for (i, stream) in streams.into_iter().enumerate() {
            tasks.spawn_connection("hostile", async move {
                if let Err(error) = stream.attack(attack, i).await {
                    eprintln!("hostile stream {i}: {error:#}");
                }
            });
        }
        let (before, began) = (cpu()?, Instant::now());
        let mut took = Vec::new();
        let ended = behaved.ask_for(FOR, &mut took).await;
        let used = (cpu()? - before) / began.elapsed().as_secs_f64() / 10.0;
        took.sort();
        if took.is_empty() {
            took.push(FOR);
        }
        let at = |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!(
            "{attack:?}: {} answers, median {:.2}, p99 {:.2}, longest {:.2}; the control plane used {used:.0} % of a core",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
        if let Err(error) = ended {
            println!(
                "{attack:?}: its stream broke after {:.1?}: {error:#}",
                began.elapsed()
            );
        }
        tasks.shutdown(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(
        address: SocketAddr,
        credentials: &Credentials,
        i: usize,
        kind: &str,
    ) -> anyhow::Result<Self> {
        let channel = credentials.channel(address, i)?;
        let client = AggregatedDiscoveryServiceClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_RESPONSE);
        let (requests, stream) = mpsc::channel(16);
        let first = DeltaDiscoveryRequest {
            node: Some(node(kind, i)),
            ..ask(ResourceType::Secret, vec!["ROOTCA".to_owned()], Vec::new())
        };
        requests.send(first).await?;
        let responses = client.delta_aggregated_resources(ReceiverStream::new(stream));
        let mut responses = responses.await?.into_inner();
        responses.message().await?.context("it is let in")?;
        Ok(Self {
            requests,
            responses,
        })
    }

    /// Asks for one thing after the other for a while, and notes how long each answer took.
    async fn ask_for(mut self, time: Duration, took: &mut Vec<Duration>) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < time {
            let name = format!("outbound|{}|80", client_ip(took.len() % 2));
            let asked = Instant::now();
            let names = vec![name.clone()];
            self.requests
                .send(ask(Listener, names.clone(), Vec::new()))
                .await?;
            let answer = self.responses.message().await?.context("it goes on")?;
            took.push(asked.elapsed());
            ensure!(answer.resources.iter().any(|it| it.name == name));
            self.requests.send(ask(Listener, Vec::new(), names)).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn attack(mut self, attack: Attack, i: usize) -> anyhow::Result<()> {
        let reads = async {
            while self.responses.message().await?.is_some() {}
            anyhow::Ok(())
        };
        let writes = async {
            for round in i.. {
                let (kind, names) = match attack {
                    Attack::Names => (Listener, names(round)),
                    Attack::None | Attack::Everything => (Cluster, vec!["*".to_owned()]),
                };
                self.requests
                    .send(ask(kind, names.clone(), Vec::new()))
                    .await?;
                self.requests.send(ask(kind, Vec::new(), names)).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! { ended = reads => ended, ended = writes => ended }
    }
}

fn names(round: usize) -> Vec<String> {
    let port = 1 + round % 60_000;
    let name = |i| format!("outbound|10.2.{}.{}|{port}", i / 250, 1 + i % 250);
    (0..NAMES).map(name).collect()
}

fn ask(
    kind: ResourceType,
    resource_names_subscribe: Vec<String>,
    resource_names_unsubscribe: Vec<String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe,
        resource_names_unsubscribe,
        ..DeltaDiscoveryRequest::default()
    }
}
