//! The ClientHello reader beside rustls.
//!
//! What both take says the same: the same protocols, and the same server name where rustls gives one. Whatever rustls
//! takes for a mesh peer's hello is one for us as well, and no other is. More bytes never change an answer, and who looks
//! each time that some have come gets the same one.

#![no_main]

use rustls::server::Acceptor;
use tulle_proxy::detect::{Carries, Classifier, Hello, classify};

tulle_fuzz::target!(|data: &[u8]| {
    let ours = hello(data);
    for end in (0..data.len()).rev().step_by(1 + data.len() / 64) {
        if let Some(early) = classify(&data[..end]) {
            assert_eq!(classify(data), Some(early), "after {end} bytes");
        }
    }
    let mut classifier = Classifier::default();
    let mut ends = (0..data.len()).step_by(1 + data.len() / 64);
    let early = ends.find_map(|end| classifier.look(&data[..end]));
    assert_eq!(early.or_else(|| classifier.look(data)), classify(data));
    let Some(theirs) = accepted(data) else {
        return;
    };
    let mesh = theirs.protocols.iter().any(|it| it.starts_with(b"tulle-"));
    assert_eq!(ours.as_ref().is_some_and(Hello::is_mesh), mesh);
    let Some(ours) = ours else {
        return;
    };
    assert_eq!(ours.protocols, theirs.protocols);
    if theirs.server_name.is_some() {
        assert_eq!(ours.server_name, theirs.server_name);
    }
});

fn hello(data: &[u8]) -> Option<Hello> {
    match classify(data) {
        Some(Carries::Tls(hello)) => Some(*hello),
        _ => None,
    }
}

/// What rustls reads, if it takes the whole of the hello.
fn accepted(mut data: &[u8]) -> Option<Hello> {
    let mut acceptor = Acceptor::default();
    while !data.is_empty() {
        if acceptor.read_tls(&mut data).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some(Hello {
                server_name: hello
                    .server_name()
                    .map(|name| name.to_ascii_lowercase().into()),
                protocols: hello.alpn().into_iter().flatten().map(Into::into).collect(),
            });
        }
    }
    None
}
