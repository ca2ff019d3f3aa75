//! The connection of who follows a cluster: where it is, who we are, and how soon it is noticed that nobody is there.
//!
//! The client that kube makes by itself writes a line for each request that fails, and what it could not read; in an outage
//! that is several lines a second. This one leaves that to those who ask.

use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, Layer as _, ServiceExt as _};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// When a silent connection is asked whether anybody is there, how often, and how many times in vain.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody says where it is.
    #[error(
        "no cluster: run in a pod with a service account, or name a kubeconfig by KUBECONFIG; \
         --source reads manifests instead"
    )]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// What is said of it cannot be used.
    #[error("the kubeconfig or service account cannot be used")]
    Unusable(#[source] Box<kube::Error>),
}

/// A client of the cluster that this process is in, or that its kubeconfig names.
///
/// # Errors
/// If there is no such cluster. It is not asked whether its API server answers.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer()
        .await
        .map_err(|error| ConnectError::Nowhere(Box::new(error)))?;
    client(config).map_err(|error| ConnectError::Unusable(Box::new(error)))
}

/// A client as configured.
pub(crate) fn client(config: Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE.0));
    connector.set_keepalive_interval(Some(KEEPALIVE.1));
    connector.set_keepalive_retries(Some(KEEPALIVE.2));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: legacy::Client<_, Body> =
        legacy::Client::builder(TokioExecutor::new()).build(connector);
    let http = config.extra_headers_layer()?.layer(http);
    let http = http.map_err(BoxError::from);
    let address = config.base_uri_layer();
    let namespace = config.default_namespace.clone();
    Ok(match config.auth_layer()? {
        Some(authentication) => Client::new(address.layer(authentication.layer(http)), namespace),
        None => Client::new(address.layer(http), namespace),
    })
}
