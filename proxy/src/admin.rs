//! What an operator sees of a sidecar, and the two things that may be changed: the log filter, and draining.
//!
//! Three ports. Loopback has everything; the pod network has readiness on one and metrics on another, and neither
//! answers anything else. What is shown holds no secrets: no keys, no tokens, no values of credential headers.

mod certs;
mod clusters;
mod dump;
mod status;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use prometheus_client::registry::Registry;
use tulle_runtime::admin::{AdminError, AdminServer, Answer, Evicted, Refusals, json, text, typed};
use tulle_runtime::metrics;
use tulle_runtime::names::{METRICS_PATH, ports};
use tulle_runtime::tasks::Tasks;
use tulle_runtime::trace::TraceHandle;

pub use status::Status;

use crate::config::Config;
use crate::merged::Merged;
use crate::probes::{HOOKS, ProbeError, Probes};
use crate::settings::Settings;
use crate::telemetry::{Limit, Limits, Who};

/// Everything that the admin endpoint shows or changes.
#[derive(Clone, Debug)]
pub struct Admin {
    /// How far the sidecar has come, and whether it should drain.
    pub status: Status,
    /// What the control plane said.
    pub config: Config,
    /// Every metric of the process.
    pub registry: Arc<Registry>,
    /// The log filter.
    pub trace: TraceHandle,
    /// The app's own probes.
    pub app: AppProbes,
    /// Answers Prometheus, with the app's metrics if there are any.
    pub merged: Arc<Merged>,
    /// Counts connections for which there is no room.
    pub limits: Limits,
    /// Counts what the servers refuse.
    pub refusals: Refusals,
}

/// How to ask the app of this pod whether it is well.
#[derive(Clone, Debug)]
pub struct AppProbes {
    /// What to ask.
    pub probes: Probes,
    /// Where the app is.
    pub address: IpAddr,
    /// How to connect to it.
    pub settings: Arc<Settings>,
}

/// Where the three servers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Everything; must be loopback.
    pub admin: SocketAddr,
    /// Metrics, for Prometheus.
    pub metrics: SocketAddr,
    /// Readiness, for kubelet.
    pub readiness: SocketAddr,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            admin: (Ipv4Addr::LOCALHOST, ports::ADMIN).into(),
            metrics: (Ipv6Addr::UNSPECIFIED, ports::METRICS).into(),
            readiness: (Ipv6Addr::UNSPECIFIED, ports::READINESS).into(),
        }
    }
}

impl Admin {
    /// Binds and serves all three; gives the addresses that they really have.
    ///
    /// # Errors
    /// If an address cannot be bound, or the admin address is not loopback.
    pub async fn start(self, at: Addresses, tasks: &Tasks) -> Result<Addresses, AdminError> {
        let mut admin = AdminServer::bind(at.admin).await?;
        let mut scrape = AdminServer::bind_exposed(at.metrics).await?;
        let mut readiness = AdminServer::bind_exposed(at.readiness).await?;
        let bound = Addresses {
            admin: admin.local_addr(),
            metrics: scrape.local_addr(),
            readiness: readiness.local_addr(),
        };
        self.operator_routes(&mut admin);
        self.merged_route(&mut scrape, METRICS_PATH);
        self.metrics_route(&mut scrape, "/metrics");
        self.probe_routes(&mut scrape);
        self.ready_route(&mut readiness, "/healthz/ready");
        for (mut server, name) in [
            (admin, "admin"),
            (scrape, "metrics"),
            (readiness, "readiness"),
        ] {
            self.bound(&mut server, name);
            server.serve(name, tasks);
        }
        Ok(bound)
    }

    /// Takes as many connections as the operator says, and tells of more, and of what is refused.
    fn bound(&self, server: &mut AdminServer, name: &'static str) {
        let most = self.app.settings.bounds.admin_connections;
        server.refusals(self.refusals.clone());
        let limits = self.limits.clone();
        server.room(most, move |Evicted { client, oldest }| {
            let who = Who {
                address: client,
                id: None,
            };
            let what = format_args!("a connection from {oldest} is closed for one more");
            limits.reached_at(Limit::AdminConnections, name, who, what);
        });
    }

    fn operator_routes(&self, server: &mut AdminServer) {
        self.ready_route(server, "/ready");
        self.metrics_route(server, "/stats");
        self.metrics_route(server, METRICS_PATH);
        let config = self.config.clone();
        server.get("/config_dump", move |_| {
            ready(json(&dump::snapshot(&config.load())))
        });
        let config = self.config.clone();
        server.get("/clusters", move |_| {
            ready(json(&clusters::live(&config.load())))
        });
        let status = self.status.clone();
        server.get("/certs", move |_| {
            ready(match status.identity() {
                Some(identity) => json(&certs::describe(&identity.current())),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n"),
            })
        });
        self.logging_routes(server);
        let status = self.status.clone();
        server.post("/drain", move |_| {
            status.request_drain();
            ready(text(StatusCode::ACCEPTED, "draining\n"))
        });
    }

    fn logging_routes(&self, server: &mut AdminServer) {
        let trace = self.trace.clone();
        server.get("/logging", move |_| {
            ready(text(StatusCode::OK, format!("{}\n", trace.filter())))
        });
        let trace = self.trace.clone();
        server.post("/logging", move |request| {
            ready(set_filter(&trace, &request.body))
        });
    }

    fn metrics_route(&self, server: &mut AdminServer, path: &str) {
        let registry = self.registry.clone();
        server.get(path, move |_| {
            ready(typed(
                StatusCode::OK,
                metrics::CONTENT_TYPE,
                metrics::encode(&registry),
            ))
        });
    }

    fn merged_route(&self, server: &mut AdminServer, path: &str) {
        let this = (self.merged.clone(), self.registry.clone(), self.app.clone());
        server.get(path, move |request| {
            let (merged, registry, app) = this.clone();
            async move { merged.answer(&registry, &request.headers, &app).await }
        });
    }

    fn probe_routes(&self, server: &mut AdminServer) {
        let app = self.app.clone();
        server.get("/app-health/*", move |request| {
            let app = app.clone();
            async move {
                match app
                    .probes
                    .check(&request.path, app.address, &app.settings)
                    .await
                {
                    Ok(()) => text(StatusCode::OK, "ok\n"),
                    Err(error @ ProbeError::Unknown) => {
                        text(StatusCode::NOT_FOUND, format!("{error}\n"))
                    }
                    Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
                }
            }
        });
        let app = self.app.clone();
        server.get(format!("{HOOKS}*"), move |request| {
            let app = app.clone();
            async move {
                let asked = app.probes.check(&request.path, app.address, &app.settings);
                match asked.await {
                    Ok(()) => text(StatusCode::OK, "ok\n"),
                    Err(error) => hook_failed(&error),
                }
            }
        });
    }

    fn ready_route(&self, server: &mut AdminServer, path: &str) {
        let (status, config) = (self.status.clone(), self.config.clone());
        server.get(path, move |_| {
            ready(match status.unready(&config) {
                None => text(StatusCode::OK, "ready\n"),
                Some(reason) => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {reason}\n"),
                ),
            })
        });
    }
}

/// Kubelet takes an answer of any status for a hook that was heard. One that leads nowhere it could go is an error to it,
/// which the event of the pod has in words.
fn hook_failed(error: &ProbeError) -> Answer {
    let words = error.to_string();
    let word = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let mut answer = text(StatusCode::TEMPORARY_REDIRECT, format!("{words}\n"));
    let nowhere = format!(
        "hook-failed://{}",
        words.chars().map(word).collect::<String>()
    );
    if let Ok(nowhere) = HeaderValue::try_from(nowhere) {
        answer.headers_mut().insert(LOCATION, nowhere);
    }
    answer
}

fn set_filter(trace: &TraceHandle, body: &[u8]) -> Answer {
    let filter = std::str::from_utf8(body).unwrap_or_default().trim();
    if filter.is_empty() {
        let usage = "send the filter as the body, such as `info` or `info,tulle_proxy=debug`\n";
        return text(StatusCode::BAD_REQUEST, usage);
    }
    match trace.set_filter(filter) {
        Ok(()) => {
            tracing::info!(filter, "log filter changed");
            text(StatusCode::OK, format!("{}\n", trace.filter()))
        }
        Err(e) => text(StatusCode::BAD_REQUEST, format!("{e}\n")),
    }
}

fn ready(answer: Answer) -> std::future::Ready<Answer> {
    std::future::ready(answer)
}

#[cfg(test)]
mod tests;
