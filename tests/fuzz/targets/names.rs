//! SPIFFE ids, trust domains, names of resources, targets of gRPC channels and node ids.
//!
//! The input is one name. An id that is taken is the canonical form of its parts and of nothing else: it comes back from
//! them byte for byte, and what only looks like it is refused. A resource or listener that has a name has one. Errors
//! repeat a stranger's words cut and in printable characters.

#![no_main]

use std::sync::Arc;

use tulle_control::store::MeshSettings;
use tulle_control::translate::ResourceName;
use tulle_identity::{SpiffeId, TrustDomain};
use tulle_proxy::fuzz::xds::{listener_address, listener_name};

/// Longest error: an escaped character is ten bytes at most, and of a value 128 are repeated.
const MAX_ERROR: usize = 128 * 10 + 200;

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(name) = std::str::from_utf8(data) else {
        return;
    };
    spiffe_id(name);
    trust_domain(name);
    resource_name(name);
    grpc_target(name);
    if let Some(address) = listener_address(name) {
        assert_eq!(listener_address(&listener_name(address)), Some(address));
    }
    if let Some((pod, namespace)) = tulle_control::fuzz::node_id(name, "cluster.local") {
        assert!(name.contains(&format!("~{pod}.{namespace}~{namespace}.svc.cluster.local")));
    }
});

fn spiffe_id(name: &str) {
    let id = match SpiffeId::parse(name) {
        Ok(id) => id,
        Err(error) => return reported(&error.to_string()),
    };
    assert_eq!(id.as_str(), name);
    let (domain, namespace, account) = (id.trust_domain(), id.namespace(), id.service_account());
    assert_eq!(
        format!("spiffe://{domain}/ns/{namespace}/sa/{account}"),
        name
    );
    assert_eq!(id.domain(), domain.as_str());
    assert_eq!(SpiffeId::new(&domain, namespace, account).as_ref(), Ok(&id));
    assert_eq!(TrustDomain::new(id.domain()), Ok(domain));
    for part in [namespace, account] {
        assert!(!part.is_empty() && !part.contains(['/', '%', ':', '@', '?', '#']));
        assert!(
            part.bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        );
    }
    let look_alikes = [
        format!("{name}/"),
        format!("{name}\0"),
        format!("{name}%2e"),
        format!("{name}?"),
        format!("{name}#"),
        format!(" {name}"),
        format!("{name}\n"),
        name.to_uppercase(),
        name.replacen("spiffe://", "spiffe:///", 1),
        name.replacen("spiffe://", "spiffe://x@", 1),
        name.replacen("/ns/", ":443/ns/", 1),
        name.replacen("/ns/", "/./ns/", 1),
        name.replacen("/ns/", "//ns/", 1),
        name.replacen("/sa/", "/sa/../sa/", 1),
        name.replacen("/sa/", "%2fsa/", 1),
        name.replacen('e', "\u{435}", 1),
    ];
    for look_alike in &look_alikes {
        assert!(SpiffeId::parse(look_alike).is_err(), "{look_alike}");
    }
}

fn trust_domain(name: &str) {
    match TrustDomain::new(name) {
        Ok(domain) => {
            assert_eq!(domain.as_str(), name);
            assert!(
                SpiffeId::new(&domain, "a", "b").is_ok(),
                "{name} has no workloads"
            );
        }
        Err(error) => reported(&error.to_string()),
    }
}

fn resource_name(name: &str) {
    let mesh = MeshSettings::default();
    if let Some(parsed) = ResourceName::parse(&mesh, name) {
        assert_eq!(parsed.format(&mesh), name);
    }
}

/// Whatever way a port of a Service is named, its full name means the same.
fn grpc_target(target: &str) {
    let mesh = MeshSettings::default();
    let own = Arc::from("shop");
    let meant = tulle_control::fuzz::grpc_target(&mesh, &own, target);
    if let Some((namespace, name, port)) = &meant {
        assert!(*port > 0 && target.ends_with(&format!(":{port}")));
        let dotted = target.starts_with(&format!("{name}.{namespace}"));
        assert!(dotted || *own == **namespace && target == format!("{name}:{port}"));
        let full = format!("{name}.{namespace}.svc.cluster.local:{port}");
        assert_eq!(tulle_control::fuzz::grpc_target(&mesh, &own, &full), meant);
    }
}

fn reported(error: &str) {
    assert!(error.len() <= MAX_ERROR, "{} bytes", error.len());
    assert!(
        error.chars().all(|c| c == ' ' || c.is_ascii_graphic()),
        "{error:?}"
    );
}
