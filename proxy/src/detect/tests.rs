//! What is told from which first bytes, in whatever pieces they come.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::ClientConnection;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

/// The first flight of a real TLS client.
fn client_hello(server_name: &str, protocols: &[&[u8]]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(tulle_identity::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = server_name.to_owned().try_into().unwrap();
    let mut flight = Vec::new();
    ClientConnection::new(Arc::new(config), name)
        .unwrap()
        .write_tls(&mut flight)
        .unwrap();
    flight
}

/// The same handshake message in records of at most `size` bytes.
fn fragmented(flight: &[u8], size: usize) -> Vec<u8> {
    let message = &flight[5..];
    let mut records = Vec::new();
    for fragment in message.chunks(size) {
        records.extend_from_slice(&flight[..3]);
        records.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend_from_slice(fragment);
    }
    records
}

#[test]
fn tells_protocols_apart() {
    let http1 = Some(Carries::Http(HttpVersion::Http1));
    let http2 = Some(Carries::Http(HttpVersion::Http2));
    let opaque = Some(Carries::Opaque);
    let table: &[(&str, &[u8], Option<Carries>)] = &[
        ("nothing yet", b"", None),
        ("a request", b"GET / HTTP/1.1\r\nHost: a\r\n", http1.clone()),
        (
            "a request with bare line feeds",
            b"GET / HTTP/1.1\n",
            http1.clone(),
        ),
        (
            "a request after an empty line",
            b"\r\nPOST /a HTTP/1.0\r\n",
            http1.clone(),
        ),
        (
            "a method of one's own",
            b"M-SEARCH * HTTP/1.1\r\n",
            http1.clone(),
        ),
        ("connect", b"CONNECT a:443 HTTP/1.1\r\n", http1.clone()),
        (
            "a target with spaces, for HTTP to refuse",
            b"GET /a b HTTP/1.1\r\n",
            http1.clone(),
        ),
        ("part of a method", b"GE", None),
        ("an empty line, so far", b"\r\n", None),
        ("two of them", b"\r\n\r\n", None),
        (
            "a request after two empty lines",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            http1.clone(),
        ),
        ("nothing but empty lines", b"\r\n\r\n\r\n", opaque.clone()),
        (
            "a line feed, which is no empty line",
            b"\n\nGET / HTTP/1.1\r\n",
            opaque.clone(),
        ),
        ("part of a target", b"GET /index", None),
        ("the HTTP/2 preface", H2_PREFACE, http2.clone()),
        (
            "part of the HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            None,
        ),
        ("Redis inline", b"GET key\r\n", opaque.clone()),
        ("Redis", b"*1\r\n$4\r\nPING\r\n", opaque.clone()),
        ("SMTP", b"HELO example.org\r\n", opaque.clone()),
        ("memcached", b"get key\r\n", opaque.clone()),
        (
            "PostgreSQL's startup message",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            opaque.clone(),
        ),
        ("HTTP/0.9", b"GET /\r\n", opaque.clone()),
        (
            "TLS of another major version",
            b"\x16\x02\x00\x00\x10",
            opaque.clone(),
        ),
        (
            "a TLS record that is no ClientHello",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            opaque.clone(),
        ),
        (
            "an empty TLS record",
            b"\x16\x03\x01\x00\x00",
            opaque.clone(),
        ),
        ("part of a TLS record", b"\x16\x03\x01", None),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(classify(bytes), *expected, "{name}");
    }
    let many = b"\r\n".repeat(MAX_BYTES / 2);
    assert_eq!(classify(&many), opaque, "as many of them as are looked at");
}

#[test]
fn reads_name_and_protocols_of_a_client_hello() {
    for size in [1, 7, 100, 16_000] {
        let flight = fragmented(&client_hello("Shop.Example", &[b"h2", b"http/1.1"]), size);
        for end in (0..flight.len()).step_by(97) {
            assert_eq!(
                classify(&flight[..end]),
                None,
                "{end} of {} bytes in records of {size}",
                flight.len()
            );
        }
        let Some(Carries::Tls(hello)) = classify(&flight) else {
            panic!("a ClientHello in records of {size}")
        };
        assert_eq!(hello.server_name.as_deref(), Some("shop.example"));
        assert_eq!(
            hello.protocols,
            [Box::from(*b"h2") as Box<[u8]>, Box::from(*b"http/1.1")]
        );
        assert!(!hello.is_mesh());
    }
    let Some(Carries::Tls(hello)) = classify(&client_hello("a", &[b"tulle-tcp"])) else {
        panic!("a ClientHello")
    };
    assert!(hello.is_mesh());
}

#[test]
fn no_record_of_a_client_hello_is_looked_at_twice() {
    let flight = fragmented(&client_hello("shop.example", &[b"h2"]), 1);
    let mut classifier = Classifier::default();
    let mut seen = Vec::new();
    for (at, byte) in flight.iter().enumerate() {
        assert_eq!(
            classifier.look(&seen),
            None,
            "{at} of {} bytes",
            flight.len()
        );
        // What is complete may be anything by now, but for the byte that says that this is TLS.
        seen.push(*byte);
        let complete = at / 6 * 6;
        seen[..complete].fill(22);
    }
    let Some(Carries::Tls(hello)) = classifier.look(&seen) else {
        panic!("a ClientHello in records of one byte")
    };
    assert_eq!(hello.server_name.as_deref(), Some("shop.example"));
    assert_ne!(classify(&seen), Some(Carries::Tls(hello)));
}

#[test]
fn a_dot_at_the_end_of_a_server_name_means_nothing() {
    // Clients of rustls send none.
    let mut flight = client_hello("shop.examplex", &[]);
    let end = flight.windows(13).position(|it| it == b"shop.examplex");
    flight[end.unwrap() + 12] = b'.';
    let Some(Carries::Tls(hello)) = classify(&flight) else {
        panic!("a ClientHello")
    };
    assert_eq!(hello.server_name.as_deref(), Some("shop.example"));
    // Where there is nothing else there is no name.
    let mut flight = client_hello("x", &[]);
    let end = flight.windows(4).position(|it| it == [0, 0, 1, b'x']);
    flight[end.unwrap() + 3] = b'.';
    let Some(Carries::Tls(hello)) = classify(&flight) else {
        panic!("a ClientHello")
    };
    assert_eq!(hello.server_name, None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = classify(&bytes);
    }

    #[test]
    fn no_changed_client_hello_makes_it_panic(at in 0_usize..2000, to in any::<u8>(), end in 0_usize..2000) {
        let mut flight = client_hello("shop.example", &[b"h2"]);
        let length = flight.len();
        flight[at % length] = to;
        let _ = classify(&flight[..end % length]);
        let _ = classify(&flight);
    }

    #[test]
    fn a_verdict_stands_when_more_bytes_come(bytes in "(GET|PING|PRI|\r\n)[ -~]{0,30}(\r\n)?[ -~]{0,9}", end in 0_usize..60) {
        let bytes = bytes.as_bytes();
        if let Some(verdict) = classify(&bytes[..end.min(bytes.len())]) {
            prop_assert_eq!(classify(bytes), Some(verdict));
        }
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_silent_client_is_not_waited_for_and_its_bytes_are_not_lost() {
    let (mut client, mut server) = pair().await;
    let mut seen = BytesMut::new();
    let carries = detect(&mut server, &mut seen, Some(Duration::from_millis(1)))
        .await
        .unwrap();
    assert_eq!(carries, Carries::Silence);
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let carries = detect(&mut server, &mut seen, None).await.unwrap();
    assert_eq!(carries, Carries::Http(HttpVersion::Http1));
    assert_eq!(replay(seen), "GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn a_client_that_ends_midway_is_opaque_with_all_its_bytes() {
    let (mut client, mut server) = pair().await;
    client.write_all(b"GET").await.unwrap();
    drop(client);
    let mut seen = BytesMut::new();
    assert_eq!(
        detect(&mut server, &mut seen, None).await.unwrap(),
        Carries::Opaque
    );
    assert_eq!(replay(seen), "GET");
}
