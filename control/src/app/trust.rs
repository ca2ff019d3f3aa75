//! Where identity comes from: directories of one control plane, or the cluster that it and its replicas are in.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tulle_runtime::names;
use tulle_runtime::tasks::Tasks;

use super::{Args, Cluster};
use crate::ca::{
    Authority, BundleSink, CaError, DirectorySink, JwksReview, KubernetesReview, Memory, Metrics,
    Plugged, Settings, TokenReview,
};
use crate::election::{Election, Leadership};
use crate::snapshot::{self, SnapshotWriter};
use crate::status::{self, StatusWriter};
use crate::store::{Store, World};
use crate::writer::{self, Writer};

/// Who signs, and who says whose a token is.
pub(super) struct Trust {
    pub(super) authority: Arc<Authority>,
    pub(super) review: Arc<dyn TokenReview>,
}

/// What the CA needs that differs from one place to another.
struct Ground {
    memory: Memory,
    leadership: Leadership,
    plugged: Option<Plugged>,
    sink: Box<dyn BundleSink>,
}

/// Everything from directories.
pub(super) async fn from_files(args: &Args, metrics: Metrics) -> anyhow::Result<Trust> {
    let Files {
        state,
        bundle,
        jwks,
    } = files(args)?;
    if let Err(error) = std::fs::metadata(&jwks) {
        tracing::warn!(
            file = %jwks.display(), %error,
            "no certificate can be issued until this file is there: provide the issuer's JWKS document, or name it with --jwks"
        );
    }
    let review = JwksReview::new(jwks, &args.token_issuer, names::TOKEN_AUDIENCE);
    let ground = Memory::in_directory(&state).map(|memory| Ground {
        memory,
        leadership: Leadership::alone(),
        plugged: None,
        sink: Box::new(DirectorySink::new(bundle)),
    });
    let authority = match ground {
        Ok(ground) => authority(args, ground, metrics).await,
        Err(error) => Err(error),
    };
    Ok(Trust {
        authority: authority.context("cannot start the CA")?,
        review: Arc::new(review),
    })
}

/// Everything from the cluster: tokens are reviewed by the API server, the roots are in a Secret, and the replicas elect
/// the one that writes.
pub(super) async fn from_cluster(
    args: &Args,
    cluster: Cluster,
    (store, worlds): (&Store, watch::Receiver<Arc<World>>),
    registry: &mut Registry,
    tasks: &Tasks,
    metrics: Metrics,
) -> anyhow::Result<Trust> {
    let Cluster {
        client,
        claims,
        snapshots,
    } = cluster;
    let client = &client;
    let (election, leadership) = Election::new(client, replica(), registry);
    let counts = writer::Metrics::register(registry);
    let (writer, sink) = Writer::new(client.clone(), leadership.clone(), worlds, counts);
    let statuses = status::Metrics::register(registry);
    let (own, store) = (leadership.clone(), store.clone());
    let statuses = StatusWriter::new(client.clone(), own, store, claims, statuses);
    let counts = snapshot::Metrics::register(registry);
    let own = leadership.clone();
    let snapshots = SnapshotWriter::new(client.clone(), own, snapshots, counts);
    tasks.spawn("election", election.run(tasks.cancelled()));
    let name = args.ca_issuer_secret.as_deref();
    let ground = Ground {
        memory: Memory::in_secret(client),
        leadership,
        plugged: name.map(|name| Plugged::new(client, name, &args.trust_domain)),
        sink: Box::new(sink),
    };
    let authority = authority(args, ground, metrics).await;
    let authority = authority.context("cannot start the CA")?;
    tasks.spawn_until_cancelled("writer", writer.run());
    tasks.spawn_until_cancelled("status-writer", statuses.run());
    tasks.spawn_until_cancelled("snapshot-writer", snapshots.run());
    Ok(Trust {
        authority,
        review: Arc::new(KubernetesReview::new(client.clone(), names::TOKEN_AUDIENCE)),
    })
}

async fn authority(
    args: &Args,
    ground: Ground,
    metrics: Metrics,
) -> Result<Arc<Authority>, CaError> {
    let settings = Settings {
        memory: ground.memory,
        leadership: ground.leadership,
        plugged: ground.plugged,
        trust_domain: args.trust_domain.clone(),
        cluster_domain: args.cluster_domain.clone(),
        leaf_ttl: args.leaf_ttl,
        propagation: args.root_propagation,
        sinks: vec![ground.sink],
        now: Box::new(SystemTime::now),
    };
    Authority::open(settings, metrics).await.map(Arc::new)
}

/// The directories and files of a control plane without a cluster.
struct Files {
    state: std::path::PathBuf,
    bundle: std::path::PathBuf,
    jwks: std::path::PathBuf,
}

fn files(args: &Args) -> anyhow::Result<Files> {
    let named = |path: &Option<std::path::PathBuf>, option: &str| {
        path.clone()
            .with_context(|| format!("name one with {option}"))
    };
    Ok(Files {
        state: named(&args.state_dir, "--state-dir")?,
        bundle: named(&args.bundle_dir, "--bundle-dir")?,
        jwks: named(&args.jwks, "--jwks")?,
    })
}

/// A name for this replica that no other has, nor an earlier process of the same pod.
fn replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{host}_{:016x}", fastrand::u64(..))
}
