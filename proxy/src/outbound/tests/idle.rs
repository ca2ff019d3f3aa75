//! Opaque connections on which nothing moves, and those of which nothing is known yet.

use super::*;
use crate::telemetry::Limit;

const BRIEF: Duration = Duration::from_millis(200);

fn settings(idle: Duration) -> Settings {
    let mut settings = Settings::default();
    settings.patience.tcp_idle = idle;
    settings
}

/// A connection to a sidecar, as captured on its way to `original_dst`.
async fn through(sidecar: &Sidecar, original_dst: SocketAddr, direction: Direction) -> TcpStream {
    let (listener, address) = listen().await;
    capture(listener, original_dst, direction, sidecar.worker.clone());
    TcpStream::connect(address).await.unwrap()
}

async fn is_reset(tcp: &mut TcpStream) -> bool {
    let read = tcp.read(&mut [0; 1]).await;
    read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

/// An app that keeps its connections open and says nothing.
async fn silent() -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::task::spawn_local(async move {
        let mut open = Vec::new();
        loop {
            open.push(listener.accept().await.unwrap());
        }
    });
    address
}

#[tokio::test]
async fn an_opaque_connection_on_which_nothing_moves_is_reset_and_counted() {
    local(async {
        for brief in [true, false] {
            let idle = if brief {
                BRIEF
            } else {
                Duration::from_secs(60)
            };
            let snapshot = outbound_config(greeter().await, None);
            let identity = Ca::new().identity("web");
            let sidecar = Sidecar::with_settings(identity, snapshot, settings(idle));
            let mut client = through(&sidecar, SERVICE, Direction::Outbound).await;
            let mut greeting = [0; 15];
            client.read_exact(&mut greeting).await.unwrap();
            if brief {
                assert!(is_reset(&mut client).await);
            } else {
                client.write_all(b"!").await.unwrap();
                client.read_exact(&mut [0; 1]).await.unwrap();
                client.shutdown().await.unwrap();
                client.read_to_end(&mut Vec::new()).await.unwrap();
            }
            let record = sidecar.connection().await;
            let told = record.flags.contains(ResponseFlag::StreamIdleTimeout);
            assert_eq!((told, record.details == "idle_timeout"), (brief, brief));
            let limits = &sidecar.worker.limits;
            let counted = limits.count(Limit::Idle, Direction::Outbound);
            assert_eq!(counted, u64::from(brief));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_inbound_client_that_says_nothing_is_not_waited_for_for_ever_and_counted() {
    local(async {
        for (plaintext, full, seconds) in
            [(false, false, 10), (true, false, 3600), (true, true, 10)]
        {
            let identity = Ca::new().identity("redis");
            let sidecar = Sidecar::new(identity, inbound_config(plaintext));
            if full {
                sidecar.worker.overload.fill(Direction::Inbound);
            }
            let begun = tokio::time::Instant::now();
            let mut client = through(&sidecar, silent().await, Direction::Inbound).await;
            assert!(is_reset(&mut client).await);
            let took = begun.elapsed();
            let expected = Duration::from_secs(seconds);
            let late = expected + Duration::from_secs(9);
            assert!((expected..late).contains(&took), "{took:?}");
            let worker = &sidecar.worker;
            let refused = worker.connections.refused(Direction::Inbound, "no_hello");
            let idle = worker.limits.count(Limit::Idle, Direction::Inbound);
            assert_eq!((refused, idle), if plaintext { (0, 1) } else { (1, 0) });
            if plaintext {
                let record = sidecar.connection().await;
                assert!(record.flags.contains(ResponseFlag::StreamIdleTimeout));
                assert_eq!(record.details, "idle_timeout");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_inbound_client_that_says_nothing_where_http_is_declared_is_closed_and_counted() {
    local(async {
        let mut snapshot = inbound_config(true);
        let mut inbound = (**snapshot.inbound.as_ref().unwrap()).clone();
        inbound.default.protocol = Protocol::Http(Arc::default());
        snapshot.inbound = Some(Arc::new(inbound));
        for full in [false, true] {
            let sidecar = Sidecar::new(Ca::new().identity("web"), snapshot.clone());
            if full {
                sidecar.worker.overload.fill(Direction::Inbound);
            }
            let begun = tokio::time::Instant::now();
            let mut client = through(&sidecar, silent().await, Direction::Inbound).await;
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            let took = begun.elapsed();
            let expected = if full {
                Duration::from_secs(10)
            } else {
                sidecar.worker.settings.patience.first_request
            };
            let late = expected + Duration::from_secs(9);
            assert!((expected..late).contains(&took), "{took:?}");
            let limits = &sidecar.worker.limits;
            assert_eq!(limits.count(Limit::FirstRequest, Direction::Inbound), 1);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_first_bytes_have_come_is_heard_though_others_need_the_room() {
    local(async {
        let http = Protocol::Http(crate::config::listener::RouteSource::Inline(Arc::default()));
        let mut declared = inbound_config(true);
        let mut inbound = (**declared.inbound.as_ref().unwrap()).clone();
        inbound.default.protocol = Protocol::Http(Arc::default());
        declared.inbound = Some(Arc::new(inbound));
        let listener = OutboundListener {
            name: "o".into(),
            address: SERVICE,
            protocol: http,
        };
        let listener = Lookup::Known(Arc::new(listener));
        declared.outbound.insert(SERVICE, listener);
        for direction in [Direction::Inbound, Direction::Outbound] {
            let sidecar = Sidecar::new(Ca::new().identity("web"), declared.clone());
            sidecar.worker.overload.fill(direction);
            let to = match direction {
                Direction::Inbound => listen().await.1,
                Direction::Outbound => SERVICE,
            };
            let mut client = through(&sidecar, to, direction).await;
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.write_all(b"GET / HT").await.unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            client
                .write_all(b"TP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            let mut answer = [0; 9];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 ", "{direction:?}");
            let limits = &sidecar.worker.limits;
            assert_eq!(limits.count(Limit::FirstRequest, direction), 0);
        }
    })
    .await;
}
