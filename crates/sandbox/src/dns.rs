//! DNS as a cluster has it: names of Services, of pods behind headless Services, and nothing else.
//!
//! One task answers UDP and one TCP, both from a zone that the cluster's task replaces as a whole.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tulle_runtime::names::DEFAULT_CLUSTER_DOMAIN;
use tulle_runtime::tasks::Tasks;

use crate::endpoints::{cluster_ips, eligible, external_name, is_headless};
use crate::{Error, ObjectKey};

/// Seconds for which an answer may be kept: short, because pods come and go.
const TTL: u32 = 5;
const PORT: u16 = 53;
/// Without EDNS, longer answers go over TCP.
const UDP_SIZE: usize = 512;

/// Every name, in lower case and without the last dot, and what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Zone(HashMap<String, Vec<RData>>);

impl Zone {
    /// The names of a Service with its slices.
    pub(crate) fn add(&mut self, key: &ObjectKey, service: &Service, slices: &[&EndpointSlice]) {
        let base = format!(
            "{}.{}.svc.{DEFAULT_CLUSTER_DOMAIN}",
            key.name, key.namespace
        )
        .to_lowercase();
        if let Some(target) = external_name(service) {
            let target = Name::from_utf8(format!("{}.", target.trim_end_matches('.')));
            self.put(&base, target.ok().map(|target| RData::CNAME(CNAME(target))));
            return;
        }
        // A Service without endpoints exists all the same.
        self.put(&base, cluster_ips(service).into_iter().map(address));
        if !is_headless(service) {
            for port in service
                .spec
                .iter()
                .flat_map(|spec| spec.ports.iter().flatten())
            {
                self.port(
                    &base,
                    &base,
                    port.name.as_deref(),
                    port.protocol.as_deref(),
                    Some(port.port),
                );
            }
            return;
        }
        for (slice, endpoint) in eligible(slices) {
            let Some(ip) = endpoint
                .addresses
                .first()
                .and_then(|ip| ip.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let label = endpoint
                .hostname
                .clone()
                .unwrap_or_else(|| ip.to_string().replace(['.', ':'], "-"));
            let name = format!("{label}.{base}").to_lowercase();
            self.put(&base, [address(ip)]);
            self.put(&name, [address(ip)]);
            for port in slice.ports.iter().flatten() {
                self.port(
                    &base,
                    &name,
                    port.name.as_deref(),
                    port.protocol.as_deref(),
                    port.port,
                );
            }
        }
    }

    /// `_http._tcp.web.shop.svc.cluster.local`
    fn port(
        &mut self,
        base: &str,
        target: &str,
        name: Option<&str>,
        protocol: Option<&str>,
        port: Option<i32>,
    ) {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return;
        };
        let port = port.and_then(|port| u16::try_from(port).ok());
        let target = Name::from_utf8(format!("{target}."));
        if let (Some(port), Ok(target)) = (port, target) {
            let protocol = protocol.unwrap_or("TCP");
            let name = format!("_{name}._{protocol}.{base}").to_lowercase();
            self.put(&name, [RData::SRV(SRV::new(0, 1, port, target))]);
        }
    }

    fn put(&mut self, name: &str, data: impl IntoIterator<Item = RData>) {
        let known = self.0.entry(name.to_owned()).or_default();
        for data in data {
            if !known.contains(&data) {
                known.push(data);
            }
        }
    }

    /// What is known of the name for this type; `None` if there is no such name.
    fn find(&self, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
        let text = name.to_utf8().to_lowercase();
        let data = self.0.get(text.trim_end_matches('.'))?;
        let wanted = |data: &&RData| matches!(data, RData::CNAME(_)) || data.record_type() == kind;
        let records = data.iter().filter(wanted).cloned();
        Some(
            records
                .map(|data| Record::from_rdata(name.clone(), TTL, data))
                .collect(),
        )
    }

    /// The answer to a message; `None` for what is none.
    pub(crate) fn answer(&self, message: &[u8]) -> Option<Message> {
        let request = Message::from_vec(message).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.metadata.recursion_desired = request.metadata.recursion_desired;
        answer.metadata.authoritative = true;
        answer.queries = request.queries;
        answer.metadata.response_code = match &answer.queries[..] {
            [query]
                if request.metadata.op_code == OpCode::Query
                    && query.query_class() == DNSClass::IN =>
            {
                match self.find(query.name(), query.query_type()) {
                    Some(records) => {
                        answer.answers = records;
                        ResponseCode::NoError
                    }
                    None => ResponseCode::NXDomain,
                }
            }
            [_] => ResponseCode::NotImp,
            _ => ResponseCode::FormErr,
        };
        Some(answer)
    }

    pub(crate) fn answer_udp(&self, message: &[u8]) -> Option<Vec<u8>> {
        let answer = self.answer(message)?;
        let bytes = answer.to_vec().ok()?;
        if bytes.len() > UDP_SIZE {
            answer.truncate().to_vec().ok()
        } else {
            Some(bytes)
        }
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The server, by way of its zone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dns(Arc<RwLock<Zone>>);

impl Dns {
    /// Answers on these addresses from now on.
    pub(crate) async fn serve(tasks: &Tasks, ips: Vec<IpAddr>) -> Result<Self, Error> {
        let dns = Self::default();
        for ip in ips {
            let listen = SocketAddr::new(ip, PORT);
            let what = || format!("listen for DNS on {listen}");
            let udp = UdpSocket::bind(listen).await.map_err(Error::io(what()))?;
            let tcp = TcpListener::bind(listen).await.map_err(Error::io(what()))?;
            tasks.spawn("dns-udp", dns.clone().serve_udp(udp, tasks.cancelled()));
            tasks.spawn("dns-tcp", dns.clone().serve_tcp(tcp, tasks.clone()));
        }
        Ok(dns)
    }

    pub(crate) fn replace(&self, zone: Zone) {
        *self.0.write() = zone;
    }

    async fn serve_udp(self, socket: UdpSocket, cancelled: impl Future<Output = ()>) {
        let mut buffer = [0; 4096];
        let work = async {
            loop {
                // An error is an ICMP message about an earlier answer.
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                let answer = self.0.read().answer_udp(&buffer[..length]);
                if let Some(answer) = answer {
                    // A client that is gone asks no more.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = cancelled => {}
        }
    }

    async fn serve_tcp(self, listener: TcpListener, tasks: Tasks) {
        let cancelled = tasks.cancelled();
        let work = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let dns = self.clone();
                        let cancelled = tasks.cancelled();
                        tasks.spawn_connection("dns", async move {
                            tokio::select! {
                                // A client that breaks off has broken off.
                                _ = dns.converse(stream) => {}
                                () = cancelled => {}
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a DNS connection");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = cancelled => {}
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut message = vec![0; length.into()];
            stream.read_exact(&mut message).await?;
            let answer = self
                .0
                .read()
                .answer(&message)
                .and_then(|answer| answer.to_vec().ok());
            let Some((answer, length)) = answer.and_then(|answer| {
                let length = u16::try_from(answer.len()).ok()?;
                Some((answer, length))
            }) else {
                return Ok(());
            };
            stream.write_u16(length).await?;
            stream.write_all(&answer).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use serde_json::json;

    use super::*;

    fn zone() -> Zone {
        let service = |spec| serde_json::from_value(json!({ "spec": spec })).expect("a service");
        let ports = json!([{ "name": "http", "port": 80 }]);
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": { "ready": true } },
                { "addresses": ["10.244.0.3"], "conditions": { "ready": true } },
                { "addresses": ["10.244.0.4"], "conditions": { "ready": false, "serving": false } },
            ],
        }))
        .expect("a slice");
        let mut zone = Zone::default();
        zone.add(
            &ObjectKey::new("shop", "web"),
            &service(json!({ "clusterIP": "10.96.0.1", "ports": ports })),
            &[],
        );
        zone.add(
            &ObjectKey::new("shop", "db"),
            &service(json!({ "clusterIP": "None", "ports": ports })),
            &[&slice],
        );
        zone.add(
            &ObjectKey::new("shop", "ext"),
            &service(json!({ "type": "ExternalName", "externalName": "a.example" })),
            &[],
        );
        zone
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_utf8(name).expect("a name"), kind));
        let answer = zone
            .answer_udp(&query.to_vec().expect("encoded"))
            .expect("an answer");
        let answer = Message::from_vec(&answer).expect("decoded");
        assert_eq!(answer.metadata.id, query.metadata.id);
        (
            answer.metadata.response_code,
            answer
                .answers
                .iter()
                .map(|record| record.data.to_string())
                .collect(),
        )
    }

    #[test]
    fn names_are_answered_as_in_a_cluster() {
        let zone = zone();
        let found = |name, kind, expected: &[&str]| {
            let expected = expected.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(
                ask(&zone, name, kind),
                (ResponseCode::NoError, expected),
                "{name} {kind}"
            );
        };
        found("web.shop.svc.cluster.local.", RecordType::A, &["10.96.0.1"]);
        found("WEB.Shop.svc.cluster.local.", RecordType::A, &["10.96.0.1"]);
        found("web.shop.svc.cluster.local.", RecordType::AAAA, &[]);
        found(
            "_http._tcp.web.shop.svc.cluster.local.",
            RecordType::SRV,
            &["0 1 80 web.shop.svc.cluster.local."],
        );
        found(
            "db.shop.svc.cluster.local.",
            RecordType::A,
            &["10.244.0.2", "10.244.0.3"],
        );
        found(
            "db-0.db.shop.svc.cluster.local.",
            RecordType::A,
            &["10.244.0.2"],
        );
        found(
            "10-244-0-3.db.shop.svc.cluster.local.",
            RecordType::A,
            &["10.244.0.3"],
        );
        found(
            "ext.shop.svc.cluster.local.",
            RecordType::A,
            &["a.example."],
        );
        for unknown in ["none.shop.svc.cluster.local.", "example.org.", "."] {
            assert_eq!(
                ask(&zone, unknown, RecordType::A),
                (ResponseCode::NXDomain, vec![]),
                "{unknown}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_too_long_for_udp_says_so_and_garbage_is_not_answered() {
        let mut zone = Zone::default();
        zone.put(
            "many",
            (0..64).map(|last| address([10, 244, 0, last].into())),
        );
        let mut query = Message::query();
        query.add_query(Query::query(
            Name::from_utf8("many.").expect("a name"),
            RecordType::A,
        ));
        let bytes = query.to_vec().expect("encoded");
        let answer =
            Message::from_vec(&zone.answer_udp(&bytes).expect("an answer")).expect("decoded");
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert_eq!(zone.answer(&bytes).expect("an answer").answers.len(), 64);
        assert!(zone.answer(b"garbage").is_none());
    }
}
