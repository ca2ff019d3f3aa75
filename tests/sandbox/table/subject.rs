//! Who is put to the test: our listeners, and proxies that nobody here wrote as oracles.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tulle_runtime::names::labels::INJECT;
use tulle_tests::{App, Arena, app};

use super::backend::Lane;
use super::client;
use super::outcome::Outcome;
use super::row::{Listener, Row};
use crate::foreign::{envoy_of, nginx_of};
use crate::place::Place;

/// Rows that are played at a time, each on ports of its own.
const LANES: u16 = 8;
/// First port of the backend.
const BACKEND: u16 = 8000;
/// First port of an oracle.
const ORACLE: u16 = 9000;

/// A proxy between a client and a backend.
#[derive(Debug)]
pub(crate) struct Subject {
    client: Place,
    targets: Vec<SocketAddr>,
    lanes: Vec<Lane>,
    /// Whether it is ours.
    ours: bool,
    /// Serve the lanes.
    _tasks: JoinSet<()>,
}

/// Our two listeners, each by itself: the other end of its way has no sidecar.
pub(crate) async fn ours(arena: &Arena<'_>) -> anyhow::Result<(Subject, Subject)> {
    let address = arena
        .exec("client", ["getent", "ahostsv4", "bare"])
        .await?
        .ok()?;
    let vip: IpAddr = address
        .split_whitespace()
        .next()
        .context("no address")?
        .parse()?;
    let web = arena.pod("web")?.ips;
    Ok((
        Subject::new(arena, "client", vip, BACKEND, "bare", true)?,
        Subject::new(arena, "plain", web.v4.into(), BACKEND, "web", true)?,
    ))
}

/// What [`ours`] needs.
pub(crate) fn manifests() -> String {
    let pods = app("client") + bare("bare") + app("web") + bare("plain");
    let pods = pods + service("bare", "http").as_str() + service("web", "http").as_str();
    pods.as_ref().to_owned()
}

/// A pod without a sidecar.
fn bare(name: &str) -> App {
    app(name).annotate(INJECT, "disabled")
}

/// A Service of all lanes that declares what they speak.
pub(crate) fn service(name: &str, protocol: &str) -> String {
    let ports: String = (BACKEND..BACKEND + LANES)
        .map(|port| {
            format!(
                "  - {{name: p{port}, port: {port}, targetPort: {port}, appProtocol: {protocol}}}\n"
            )
        })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports:\n{ports}"
    )
}

/// An oracle with its client and its backend in one pod.
pub(crate) fn oracle(arena: &Arena<'_>, app: &str) -> anyhow::Result<Subject> {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    Subject::new(arena, app, loopback, ORACLE, app, false)
}

/// nginx as a reverse proxy.
pub(crate) fn nginx() -> App {
    let servers: Vec<_> = (0..LANES)
        .map(|lane| {
            format!(
                "listen {};\nclient_max_body_size 0;\nlocation / {{ proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                 proxy_set_header Host $http_host; proxy_pass http://127.0.0.1:{}; }}",
                ORACLE + lane,
                BACKEND + lane
            )
        })
        .collect();
    let servers: Vec<_> = servers.iter().map(String::as_str).collect();
    nginx_of("nginx", &servers)
        .port("http", ORACLE, ORACLE)
        .annotate(INJECT, "disabled")
}

/// Envoy with what its documentation says of an edge proxy, as far as HTTP/1 goes.
pub(crate) fn envoy() -> App {
    let listeners: String = (0..LANES).map(envoy_listener).collect();
    let clusters: String = (0..LANES).map(envoy_cluster).collect();
    let config = format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}");
    envoy_of(config)
        .port("http", ORACLE, ORACLE)
        .annotate(INJECT, "disabled")
}

fn envoy_listener(lane: u16) -> String {
    let (port, cluster) = (ORACLE + lane, lane);
    format!(
        "  - address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: table
          codec_type: HTTP1
          http_protocol_options: {{accept_http_10: true, enable_trailers: true}}
          upgrade_configs: [{{upgrade_type: websocket}}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [{{match: {{prefix: /}}, route: {{cluster: c{cluster}, timeout: 0s}}}}]
          http_filters:
          - name: router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"
    )
}

fn envoy_cluster(lane: u16) -> String {
    let port = BACKEND + lane;
    format!(
        "  - name: c{lane}
    connect_timeout: 2s
    load_assignment:
      cluster_name: c{lane}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http_protocol_options: {{enable_trailers: true}}}}
"
    )
}

impl Subject {
    fn new(
        arena: &Arena<'_>,
        client: &str,
        target: IpAddr,
        first: u16,
        backend: &str,
        ours: bool,
    ) -> anyhow::Result<Self> {
        let place = Place::of(arena, backend)?;
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::new();
        for port in BACKEND..BACKEND + LANES {
            lanes.push(Lane::serve(place.listen(port)?, &mut tasks));
        }
        Ok(Self {
            client: Place::of(arena, client)?,
            targets: (0..LANES)
                .map(|lane| SocketAddr::new(target, first + lane))
                .collect(),
            lanes,
            ours,
            _tasks: tasks,
        })
    }

    /// Plays rows, several at a time; outcomes come in the order of the rows.
    pub(crate) async fn play(&self, rows: &[Row]) -> anyhow::Result<Vec<Outcome>> {
        let next = AtomicUsize::new(0);
        let lane = async |lane: usize| {
            let mut outcomes = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(row) = rows.get(index) else { break };
                let outcome = self.play_one(lane, row).await;
                let outcome = outcome.with_context(|| format!("the row {:?}", row.name))?;
                outcomes.push((index, outcome));
            }
            anyhow::Ok(outcomes)
        };
        let played = join_all((0..self.lanes.len()).map(lane)).await;
        let mut all: Vec<_> = played.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let mut all: Vec<_> = all.drain(..).flatten().collect();
        all.sort_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, outcome)| outcome).collect())
    }

    async fn play_one(&self, lane: usize, row: &Row) -> anyhow::Result<Outcome> {
        let tcp = self.client.connect(self.targets[lane]).await?;
        let lane = &self.lanes[lane];
        lane.begin(&row.answers);
        let heard = client::play(row, tcp, lane, self.ours).await;
        let record = lane.end().await;
        Ok(Outcome { record, heard })
    }
}

/// Whether a row is one for a listener.
pub(crate) fn is_for(row: &Row, listener: Listener) -> bool {
    row.only.is_none_or(|only| only == listener)
}
