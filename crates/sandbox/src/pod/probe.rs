//! Probes: what Kubernetes' kubelet asks of a container, asked from inside the pod.
//!
//! Until a container is first ready it is asked more often than its period says: waiting for ten seconds because a program
//! needed a tenth of one helps nobody on a single machine. Thresholds still count in periods.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe as Manifest};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::network::Netns;

const QUICK: Duration = Duration::from_millis(50);
/// Of an answer, more than the status line is not needed.
const ANSWER: usize = 1024;

/// A probe of a container.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) action: Action,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Http {
        host: Option<IpAddr>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: Option<IpAddr>,
        port: u16,
    },
    Exec(Vec<String>),
}

/// Where actions are done.
pub(crate) trait Site: Sync {
    /// Does it once; the error says what is wrong.
    fn check(&self, action: &Action) -> impl Future<Output = Result<(), String>> + Send;
}

/// The probes of a container as a manifest has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes {
    pub(crate) startup: Option<Probe>,
    pub(crate) liveness: Option<Probe>,
    pub(crate) readiness: Option<Probe>,
}

impl Probes {
    pub(crate) fn parse(container: &Container) -> Result<Self, String> {
        let parse = |field: &str, probe: &Option<Manifest>| {
            let parsed = probe
                .as_ref()
                .map(|probe| Probe::parse(probe, container))
                .transpose();
            parsed.map_err(|problem| format!("{field}: {problem}"))
        };
        Ok(Self {
            startup: parse("startupProbe", &container.startup_probe)?,
            liveness: parse("livenessProbe", &container.liveness_probe)?,
            readiness: parse("readinessProbe", &container.readiness_probe)?,
        })
    }
}

impl Probe {
    fn parse(probe: &Manifest, container: &Container) -> Result<Self, String> {
        let action = if let Some(get) = &probe.http_get {
            Action::http(get, container)?
        } else if let Some(socket) = &probe.tcp_socket {
            Action::Tcp {
                host: host(socket.host.as_deref())?,
                port: port(&socket.port, container)?,
            }
        } else if let Some(exec) = &probe.exec {
            Action::Exec(exec.command.clone().unwrap_or_default())
        } else {
            return Err("use httpGet, tcpSocket or exec: others do not exist here".to_owned());
        };
        let seconds = |value: Option<i32>, otherwise| {
            Duration::from_secs(positive(value).unwrap_or(otherwise).into())
        };
        Ok(Self {
            action,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: positive(probe.success_threshold).unwrap_or(1),
            failure_threshold: positive(probe.failure_threshold).unwrap_or(3),
        })
    }

    /// Resolves when the container has started (`Ok`), or had all the time that the probe gives it (`Err`).
    pub(crate) async fn until_started(&self, site: &impl Site) -> Result<(), String> {
        sleep(self.initial_delay).await;
        let patience = self.period * self.failure_threshold;
        let mut last = "it was never asked".to_owned();
        let succeed = async {
            while let Err(problem) = self.once(site).await {
                last = problem;
                sleep(QUICK.min(self.period)).await;
            }
        };
        let started = timeout(patience, succeed).await;
        started.map_err(|_| format!("startup probe failed for {patience:?}: {last}"))
    }

    /// Resolves when the probe has failed as often as it may.
    pub(crate) async fn until_dead(&self, site: &impl Site) -> String {
        sleep(self.initial_delay).await;
        let mut failures = 0;
        loop {
            match self.once(site).await {
                Ok(()) => failures = 0,
                Err(problem) => {
                    failures += 1;
                    if failures >= self.failure_threshold {
                        return format!("liveness probe failed {failures} times: {problem}");
                    }
                }
            }
            sleep(self.period).await;
        }
    }

    /// Tells of each change between ready and not ready; never resolves.
    pub(crate) async fn follow(&self, site: &impl Site, tell: impl Fn(bool) + Send) {
        sleep(self.initial_delay).await;
        let (mut ready, mut ever, mut successes, mut failures) = (false, false, 0, 0);
        loop {
            match self.once(site).await {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(problem) => {
                    tracing::debug!(%problem, "readiness probe failed");
                    (successes, failures) = (0, failures + 1);
                }
            }
            let now = if ready {
                failures < self.failure_threshold
            } else {
                successes >= self.success_threshold
            };
            if now != ready {
                ready = now;
                ever |= now;
                tell(ready);
            }
            sleep(if ever {
                self.period
            } else {
                QUICK.min(self.period)
            })
            .await;
        }
    }

    async fn once(&self, site: &impl Site) -> Result<(), String> {
        let answer = timeout(self.timeout, site.check(&self.action)).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
    }
}

impl Action {
    fn http(get: &HTTPGetAction, container: &Container) -> Result<Self, String> {
        if get
            .scheme
            .as_deref()
            .is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http"))
        {
            return Err("httpGet.scheme: only HTTP exists here".to_owned());
        }
        let headers = get.http_headers.iter().flatten();
        Ok(Self::Http {
            host: host(get.host.as_deref())?,
            port: port(&get.port, container)?,
            path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }
}

fn positive(value: Option<i32>) -> Option<u32> {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
}

fn host(host: Option<&str>) -> Result<Option<IpAddr>, String> {
    let host = host.filter(|host| !host.is_empty()).map(|host| match host {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        _ => host
            .parse()
            .map_err(|_| format!("host {host} is not an IP address: write one, or leave it out")),
    });
    host.transpose()
}

/// Ports of the container by name.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let named: BTreeMap<_, _> = container
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some((port.name.as_deref()?, port.container_port)))
        .collect();
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => named
            .get(name.as_str())
            .copied()
            .or_else(|| name.parse().ok()),
    };
    let number = number.and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| format!("port {port:?} is neither a number nor a port of the container"))
}

/// Does an action that needs no process.
pub(crate) async fn ask(netns: &Netns, pod: IpAddr, action: &Action) -> Result<(), String> {
    match action {
        Action::Exec(_) => Err("exec needs the container".to_owned()),
        Action::Tcp { host, port } => connect(netns, host.unwrap_or(pod), *port).await.map(drop),
        Action::Http {
            host,
            port,
            path,
            headers,
        } => {
            let host = host.unwrap_or(pod);
            let mut stream = connect(netns, host, *port).await?;
            let address = SocketAddr::new(host, *port);
            let answer = get(&mut stream, address, path, headers).await;
            judge(&answer.map_err(|error| format!("GET {path} on {address}: {error}"))?)
        }
    }
}

async fn connect(netns: &Netns, host: IpAddr, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(host, port);
    let open = move || {
        if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
    };
    let socket = netns.run(open).await.map_err(|error| error.to_string())?;
    let stream = async { socket?.connect(address).await };
    stream
        .await
        .map_err(|error| format!("connect to {address}: {error}"))
}

async fn get(
    stream: &mut TcpStream,
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> std::io::Result<Vec<u8>> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut request = format!("GET {slash}{path} HTTP/1.1\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request += &format!("Host: {address}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "User-Agent: kube-probe/sandbox\r\nAccept: */*\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.len() < ANSWER && !answer.contains(&b'\n') {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

/// Any status from 200 to 399 is good.
fn judge(answer: &[u8]) -> Result<(), String> {
    let line = answer
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let version = words
        .next()
        .filter(|version| version.starts_with("HTTP/1."));
    let status = version
        .and(words.next())
        .and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..400) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err("the answer is not HTTP/1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    fn container(probe: serde_json::Value) -> Container {
        let ports = json!([{ "name": "http", "containerPort": 8080 }]);
        serde_json::from_value(json!({ "name": "c", "ports": ports, "readinessProbe": probe }))
            .expect("a container")
    }

    fn readiness(probe: serde_json::Value) -> Result<Probe, String> {
        Probes::parse(&container(probe)).map(|probes| probes.readiness.expect("given"))
    }

    /// Succeeds at one turn only.
    struct GoodOnce {
        turn: u32,
        asked: AtomicU32,
    }

    impl Site for GoodOnce {
        async fn check(&self, _: &Action) -> Result<(), String> {
            let turn = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            if turn == self.turn {
                Ok(())
            } else {
                Err("no".to_owned())
            }
        }
    }

    #[test]
    fn actions_are_read_and_ports_found_by_name() {
        let action = |probe| readiness(probe).map(|probe| probe.action);
        let http = Action::Http {
            host: None,
            port: 8080,
            path: "/ready".to_owned(),
            headers: vec![],
        };
        assert_eq!(
            action(json!({ "httpGet": { "port": "http", "path": "/ready" } })),
            Ok(http)
        );
        assert_eq!(
            action(json!({ "tcpSocket": { "port": 9 } })),
            Ok(Action::Tcp {
                host: None,
                port: 9
            })
        );
        for bad in [
            json!({ "httpGet": { "port": "nope" } }),
            json!({ "httpGet": { "port": 1, "scheme": "HTTPS" } }),
            json!({ "tcpSocket": { "port": 70000 } }),
            json!({ "grpc": { "port": 1 } }),
        ] {
            assert!(action(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn success_is_any_status_from_200_to_399() {
        let table = [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 302 Found\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n", false),
            ("HTTP/1.1 503\r\n", false),
            ("220 smtp\r\n", false),
            ("", false),
        ];
        for (answer, good) in table {
            assert_eq!(judge(answer.as_bytes()).is_ok(), good, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_comes_with_the_first_success_and_goes_after_enough_failures() {
        let probe =
            readiness(json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 1 })).expect("a probe");
        let site = GoodOnce {
            turn: 2,
            asked: AtomicU32::new(0),
        };
        let told = Mutex::new(Vec::new());
        let follow = probe.follow(&site, |ready| {
            told.lock()
                .push((ready, site.asked.load(Ordering::Relaxed)))
        });
        let _ = timeout(Duration::from_secs(30), follow).await;
        assert_eq!(*told.lock(), [(true, 2), (false, 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn startup_gives_up_after_its_periods_and_liveness_after_its_failures() {
        let probe =
            readiness(json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 2 })).expect("a probe");
        let never = GoodOnce {
            turn: 0,
            asked: AtomicU32::new(0),
        };
        let before = tokio::time::Instant::now();
        let problem = probe.until_started(&never).await.expect_err("never");
        assert_eq!(before.elapsed(), Duration::from_secs(6), "{problem}");
        assert!(probe.until_dead(&never).await.contains("3 times"));
        assert_eq!(before.elapsed(), Duration::from_secs(10));
    }
}
