//! An endpoint whose node is gone: nothing answers there, and each attempt takes as long as connecting may take.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::harness::*;
use crate::config::Cluster;
use crate::config::cluster::{EndpointState, LbPolicy};
use crate::config::listener::TcpRoute;
use crate::conn::HttpVersion::Http1;
use crate::net::tests::vanish;
use crate::tcp;

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// A port that answers nothing, because its queue is full.
struct Silent {
    listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Silent {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("a port");
        let listener = socket.listen(0).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut queue = Vec::new();
        while let Ok(taken) = timeout(PATIENCE / 4, TcpStream::connect(address)).await {
            queue.push(taken.expect("it is taken"));
        }
        Self {
            listener,
            _queue: queue,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    /// Takes everything from now on.
    fn answer(self) {
        tokio::task::spawn_local(async move {
            let mut taken = Vec::new();
            while let Ok((tcp, _)) = self.listener.accept().await {
                taken.push(tcp);
            }
        });
    }
}

fn of(silent: SocketAddr, others: &[SocketAddr]) -> (Cluster, Arc<EndpointState>) {
    let all: Vec<_> = others.iter().copied().chain([silent]).collect();
    let mut cluster = cluster("c", plain(&all));
    cluster.connect_timeout = PATIENCE;
    cluster.outlier.base_ejection_time = PATIENCE;
    cluster.outlier.max_ejection_time = PATIENCE * 2;
    let mut endpoints = cluster.endpoints.iter();
    let silent = endpoints.find(|it| it.address == silent);
    let state = silent.expect("it is one of them").state.clone();
    (cluster, state)
}

/// Calls one after the other until something is so, and says how many had to wait for the silent endpoint.
async fn late(mut call: impl AsyncFnMut(), until: impl Fn() -> bool) -> usize {
    let mut late = 0;
    while !until() {
        let begun = Instant::now();
        call().await;
        late += usize::from(begun.elapsed() >= PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    late
}

#[test]
fn one_connection_finds_out_that_an_endpoint_is_silent_and_none_that_it_is_back() {
    run(async {
        let live = raw_app(|tcp| async move { drop(tcp) }).await;
        let silent = Silent::new().await;
        let (cluster, state) = of(silent.address(), &[live]);
        let sidecar = Sidecar::new(outbound(vec![], vec![cluster]));
        let route = TcpRoute {
            clusters: vec![("c".into(), 1)],
            by_source: false,
        };
        let call = async || {
            let client = CLIENT.0.into();
            let made = tcp::connect(&sidecar.worker, &route, client).await;
            made.expect("the other one answers");
        };
        // Ejected, looked at in vain, and ejected again.
        let waited = late(call, || state.ejections.load(Relaxed) >= 3).await;
        assert_eq!(waited, 1);
        silent.answer();
        let waited = late(call, || state.ejections.load(Relaxed) == 0).await;
        assert_eq!(waited, 0, "it is back, and nobody had to wait for that");
    });
}

#[test]
fn where_one_endpoint_is_silent_others_are_found_out_before_anybody_meets_them() {
    run(async {
        let mut live = Vec::new();
        for _ in 0..3 {
            live.push(raw_app(|tcp| async move { drop(tcp) }).await);
        }
        let silent = [Silent::new().await, Silent::new().await];
        let silent = silent.each_ref().map(Silent::address);
        let (cluster, _) = of(silent[0], &[live.as_slice(), &silent[1..]].concat());
        let cluster = Arc::new(cluster);
        let mut snapshot = outbound(vec![], vec![]);
        snapshot
            .clusters
            .insert(cluster.name.clone(), cluster.clone());
        let sidecar = Sidecar::new(snapshot);
        let endpoint = |address: &SocketAddr| {
            let mut all = cluster.endpoints.iter();
            all.find(|it| it.address == *address).expect("one of them")
        };
        crate::scout::connect_failed(&sidecar.worker, &cluster, endpoint(&silent[0]), true);
        let ejections = |it| endpoint(it).state.ejections.load(Relaxed);
        while silent.iter().any(|it| ejections(it) == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let failures = |it| endpoint(it).state.consecutive_failures.load(Relaxed);
        assert!(live.iter().all(|it| failures(it) == 0));
    });
}

#[test]
fn one_request_finds_out_that_an_endpoint_is_silent() {
    run(async {
        let live = echo(Http1, "live").await;
        let silent = Silent::new().await;
        let (cluster, state) = of(silent.address(), &[live]);
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let mut client = Client::new(sidecar.client(Http1), Http1).await;
        let call = async || {
            let answer = client.get("/").await;
            assert_eq!(answer.header("x-app"), "live");
        };
        let waited = late(call, || state.ejections.load(Relaxed) >= 3).await;
        assert_eq!(waited, 1);
    });
}

/// An app that answers until it is gone, with its machine.
struct Machine {
    listener: Rc<TcpListener>,
    taken: Rc<RefCell<Vec<Socket>>>,
}

impl Machine {
    async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = Rc::new(listener.expect("a port"));
        let taken = Rc::<RefCell<Vec<Socket>>>::default();
        let (accepting, kept) = (listener.clone(), taken.clone());
        tokio::task::spawn_local(async move {
            while let Ok((mut tcp, _)) = accepting.accept().await {
                let socket = SockRef::from(&tcp).try_clone();
                kept.borrow_mut().push(socket.expect("a descriptor"));
                tokio::task::spawn_local(async move {
                    while !read_head(&mut tcp).await.is_empty() {
                        let answer = b"HTTP/1.1 200 OK\r\nx-app: lost\r\ncontent-length: 0\r\n\r\n";
                        tcp.write_all(answer).await.expect("it is there");
                    }
                });
            }
        });
        Self { listener, taken }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    fn vanish(&self) {
        vanish(&*self.listener);
        self.taken.borrow().iter().for_each(vanish);
    }
}

/// How long a request that is under way when its server's machine is lost may take: the kernel's first repetition, two looks at the
/// connection, and one at the endpoint.
const FOUND_OUT: Duration = Duration::from_secs(4);

#[test]
fn requests_on_connections_to_a_lost_machine_end_and_go_elsewhere_if_they_may() {
    run(async {
        let lost = Machine::new().await;
        let live = echo(Http1, "live").await;
        let (mut cluster, _) = of(lost.address(), &[live]);
        cluster.lb_policy = LbPolicy::RoundRobin;
        let sidecar = Sidecar::new(outbound(vec![route_to("c")], vec![cluster]));
        let methods = [Method::GET, Method::POST, Method::POST, Method::GET];
        let mut clients = Vec::new();
        for _ in &methods {
            clients.push(Client::new(sidecar.client(Http1), Http1).await);
        }
        let mut call = async |methods: &[Method; 4]| {
            let calls = clients.iter_mut().zip(methods);
            join_all(calls.map(|(client, method)| client.send(method.clone(), "/", ""))).await
        };
        // One of each two goes there, by a connection that stays.
        while lost.taken.borrow().len() < 2 {
            call(&[const { Method::GET }; 4]).await;
        }
        lost.vanish();
        let begun = Instant::now();
        let answers = call(&methods).await;
        assert!(begun.elapsed() < FOUND_OUT, "{:?}", begun.elapsed());
        let of = |method: Method| {
            let answers = answers
                .iter()
                .zip(&methods)
                .filter(|(_, it)| **it == method);
            let statuses = answers.map(|(answer, _)| answer.status.as_u16());
            let mut statuses: Vec<_> = statuses.collect();
            statuses.sort_unstable();
            statuses
        };
        assert_eq!(
            (of(Method::GET), of(Method::POST)),
            (vec![200, 200], vec![200, 503])
        );
        // Nobody meets it any more.
        let begun = Instant::now();
        for answer in call(&methods).await {
            assert_eq!(answer.header("x-app"), "live");
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    });
}

#[test]
fn opaque_connections_to_a_lost_machine_are_reset() {
    run(async {
        let lost = Machine::new().await;
        let (cluster, _) = of(lost.address(), &[]);
        let sidecar = Sidecar::new(outbound(vec![], vec![cluster]));
        let route = TcpRoute {
            clusters: vec![("c".into(), 1)],
            by_source: false,
        };
        let made = tcp::connect(&sidecar.worker, &route, CLIENT.0.into()).await;
        let mut made = made.expect("it is there");
        made.io
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("it is there");
        assert_eq!(
            read_head(&mut made.io).await.lines().next(),
            Some("HTTP/1.1 200 OK")
        );
        lost.vanish();
        made.io
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("nobody knows");
        let ended = timeout(FOUND_OUT, made.io.read_u8()).await;
        let error = ended.expect("in time").expect_err("nothing came");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    });
}
